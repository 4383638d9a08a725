//! Random stores, damaged at random: what a repair brings back is right, or named.
//!
//! - Whatever a repaired array has in a row that is not named as lost or older, that row had: in its last state if the
//!   manifest was whole, and in some state of it if commits are told to be lost.
//! - An array whose file was not damaged is there, unless the manifest does not tell of it.
//! - Each damaged file is there as it was damaged, in its place or in `lost+found`.
//!
//! Elements that are not compressed have no checksum, so that none of these are flipped.

use std::collections::{BTreeMap, BTreeSet};

use numpack::format::Record;
use numpack::store::{Access, Mended, Outcome, Repaired, StoreError};
use numpack::sys::Storage;

use super::{BACKUP, MANIFEST, MemStorage, cut, kept, open, overwrite, read, repair};
use crate::common::blocks::{look, table};
use crate::common::model::{Content, Model};
use crate::common::random;
use crate::common::rng::{self, Rng};

/// Both headers of a compressed data file.
const HEADERS_LEN: usize = 8192;

/// What one data file has been the file of, row by row of those that are stored.
#[derive(Default)]
struct Version {
    names: Vec<String>,
    /// All that each stored row has been, the last at the end.
    rows: Vec<Vec<Vec<u8>>>,
    /// The stored rows that were not dropped, in the last state.
    live: Vec<u64>,
    /// Those that were.
    dropped: BTreeSet<u64>,
    last: Option<Content>,
}

/// All data files that there have been, by their names.
type History = BTreeMap<String, Version>;

fn note(history: &mut History, storage: &MemStorage) {
    let table = table(storage);
    for record in table.records().expect("decodes") {
        let stored = stored(record, &read(storage, &record.file));
        let version = history.entry(record.file.to_string()).or_default();
        if version.names.last().map(String::as_str) != Some(&*record.name) {
            version.names.push(record.name.to_string());
        }
        version.rows.resize(stored.rows.len().max(version.rows.len()), Vec::new());
        for (values, row) in version.rows.iter_mut().zip(&stored.rows) {
            values.push(row.clone());
        }
        version.dropped = record.deleted.0.iter().collect();
        version.live = (0..stored.n_rows()).filter(|row| !version.dropped.contains(row)).collect();
        version.last = Some(stored);
    }
}

/// All rows in a data file.
fn stored(record: &Record, file: &[u8]) -> Content {
    let elements = match record.blocks {
        Some(_) => look(record, file).elements,
        None => file[record.offset as usize..record.data_end() as usize].to_vec(),
    };
    let (dtype, layout) = (record.dtype.clone(), &record.layout);
    let mut content = Content::new(dtype, layout.shape(), layout.fortran_order(), &elements);
    content.set_stored_bytes(&elements);
    content
}

/// Damages the store, and returns the files that were damaged, and whether the manifest is one of them.
fn damage(storage: &MemStorage, rng: &mut Rng) -> (Vec<String>, bool) {
    let records: Vec<Record> =
        table(storage).records().expect("decodes").into_iter().map(|record| (**record).clone()).collect();
    let mut damaged = Vec::new();
    let mut of_manifest = false;
    for _ in 0..1 + rng.below(3) {
        if rng.one_in(3) || records.is_empty() {
            of_manifest = true;
            damage_manifest(storage, rng);
            continue;
        }
        let record = rng.pick(&records);
        if storage.stat(&record.file).is_err() {
            continue;
        }
        let len = read(storage, &record.file).len();
        match rng.below(4) {
            0 => storage.remove(&record.file).expect("removes"),
            1 => cut(storage, &record.file, rng.below(len as u64) as usize),
            _ => {
                // Of blocks, all bytes; of others, those of the header.
                let end = if record.blocks.is_some() { len } else { len.min(record.offset as usize) };
                for _ in 0..1 + rng.below(3) {
                    let at = rng.below(end as u64) as usize;
                    let n = (1 + rng.below(40) as usize).min(end.saturating_sub(at));
                    let noise = rng.bytes(n);
                    overwrite(storage, &record.file, at, &noise);
                }
            }
        }
        damaged.push(record.file.to_string());
    }
    damaged.sort();
    damaged.dedup();
    (damaged, of_manifest)
}

fn damage_manifest(storage: &MemStorage, rng: &mut Rng) {
    if storage.stat(MANIFEST).is_err() {
        return;
    }
    let len = read(storage, MANIFEST).len() as u64;
    match rng.below(5) {
        0 => {
            storage.remove(MANIFEST).expect("removes");
            if rng.one_in(2) {
                storage.remove(BACKUP).ok();
            }
        }
        1 => {
            storage.remove(BACKUP).ok();
            cut(storage, MANIFEST, rng.below(len) as usize);
        }
        2 => cut(storage, MANIFEST, rng.below(len) as usize),
        _ => {
            let n = 1 + rng.below(60) as usize;
            let noise = rng.bytes(n);
            overwrite(storage, MANIFEST, rng.below(len) as usize, &noise);
        }
    }
}

/// Whether each byte is that of one of these rows, or zero if `or_zero`.
fn is_mixture(row: &[u8], values: &[Vec<u8>], or_zero: bool) -> bool {
    let may_be = |at: usize| values.iter().any(|value| value.get(at) == Some(&row[at]));
    (0..row.len()).all(|at| or_zero && row[at] == 0 || may_be(at))
}

/// Whether row `at` of an array may be the stored row `position` of a version: of its last state, or of any.
fn may_be(
    (at, row): (u64, &[u8]),
    version: &Version,
    position: u64,
    is_last: bool,
    mended: Option<&Mended>,
) -> bool {
    let is_in = |ranges: &[std::ops::Range<u64>]| ranges.iter().any(|range| range.contains(&at));
    let (is_lost, is_older) = match mended.map(|mended| &mended.outcome) {
        Some(Outcome::Partly { lost, older }) => (is_in(lost), is_in(older)),
        _ => (false, false),
    };
    let values = &version.rows[position as usize];
    if is_lost || is_older {
        return is_mixture(row, values, is_lost);
    }
    if is_last {
        values.last().is_some_and(|last| last == row)
    } else {
        values.iter().any(|value| value == row)
    }
}

/// Checks one array of a repaired store.
fn assert_array(
    name: &str,
    content: &Content,
    file: &str,
    repaired: &Repaired,
    history: &History,
    of_manifest: bool,
) {
    let mended = repaired.arrays.iter().find(|mended| &*mended.array == name);
    let original = mended.map_or(file, |mended| &mended.file);
    let version = &history[original];
    let last = version.last.as_ref().expect("was noted");
    assert_eq!((&content.dtype, content.shape.get(1..)), (&last.dtype, last.shape.get(1..)), "{name:?}");
    // A manifest may be cut where a commit ends, and then is what it was before.
    let is_certain = !of_manifest && mended.is_none_or(|mended| mended.outcome != Outcome::FromFile);
    let told = || format!("{name:?}, {mended:?}: {:?} is none of what it was", content.shape);
    if is_certain {
        assert_eq!(version.names.last().map(String::as_str), Some(name));
        let mut rows = (0..).zip(&content.rows).zip(&version.live);
        let is_last = content.rows.len() == version.live.len()
            && rows.all(|((at, row), position)| may_be((at, row), version, *position, true, mended));
        assert!(is_last, "{}", told());
        return;
    }
    // Of commits that dropped rows, some may count and some be lost; so may those that appended the last rows. Here are
    // the stored rows that the next row may be.
    let n_stored = version.rows.len() as u64;
    let mut next: BTreeSet<u64> = BTreeSet::from([0]);
    for (at, row) in (0..).zip(&content.rows) {
        let mut after = BTreeSet::new();
        for start in next {
            for position in start..n_stored {
                if may_be((at, row), version, position, false, mended) {
                    after.insert(position + 1);
                }
                if !version.dropped.contains(&position) {
                    break;
                }
            }
        }
        next = after;
    }
    assert!(!next.is_empty(), "{}", told());
}

/// A file as it is now, wherever it is kept.
fn is_kept(storage: &MemStorage, file: &str, bytes: &[u8], repaired: &Repaired) -> bool {
    // A writer sets the headers right that lag behind the last commit.
    let is_same = |now: Vec<u8>| {
        now.len() == bytes.len() && now[HEADERS_LEN.min(now.len())..] == bytes[HEADERS_LEN.min(now.len())..]
    };
    let in_place = storage.stat(file).is_ok() && is_same(read(storage, file));
    let told = repaired.arrays.iter().filter_map(|mended| mended.kept.as_ref());
    let mut told = told.chain(repaired.manifest.iter().flat_map(|rebuilt| &rebuilt.kept));
    in_place || told.any(|path| is_same(kept(storage, path)))
}

#[test]
fn random_damage_is_repaired_or_named() {
    let (mut n_partly, mut n_whole, mut n_rebuilt, mut n_lost) = (0, 0, 0, 0);
    let mut n_arrays = 0;
    for mut rng in rng::cases(60) {
        let rng = &mut rng;
        let storage = MemStorage::new();
        let store = numpack::store::Store::create_in(Box::new(storage.clone())).expect("creates");
        let (mut model, mut history) = (Model::default(), History::new());
        let mut n_ops = 0;
        while n_ops < 14 {
            let op = random::op(rng, &model);
            if op.apply(&mut model).is_ok() {
                op.run(&store).expect("works");
                note(&mut history, &storage);
                n_ops += 1;
            }
        }
        drop(store);
        let (damaged, of_manifest) = damage(&storage, rng);
        let is_there = |file: &&String| storage.stat(file).is_ok();
        let files: Vec<(String, Vec<u8>)> =
            damaged.iter().filter(is_there).map(|file| (file.clone(), read(&storage, file))).collect();
        let repaired = match repair(&storage) {
            Ok(repaired) => repaired,
            Err(StoreError::NotAStore { .. }) => {
                let is_whole = |file: &String| storage.stat(file).is_ok() && !damaged.contains(file);
                assert!(of_manifest && !history.keys().any(is_whole), "there is something left");
                n_lost += 1;
                continue;
            }
            // Whether it is one of a later release, its checksum does not tell any more.
            Err(StoreError::Format { source, .. }) => {
                assert!(of_manifest && source.to_string().contains("install a newer release"), "{source}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        n_rebuilt += usize::from(repaired.manifest.is_some());
        assert!(of_manifest || repaired.manifest.is_none(), "{repaired:?}");
        let store = open(&storage, Access::Read);
        assert_eq!(repaired.n_arrays as usize, store.len());
        let outcome = |name: &str| {
            repaired.arrays.iter().find(|mended| &*mended.array == name).map(|mended| &mended.outcome)
        };
        let mut seen = Vec::new();
        for array in store.arrays().expect("lists") {
            n_arrays += 1;
            seen.push(array.file_name().to_owned());
            match outcome(array.name()) {
                Some(Outcome::Lost) => {
                    n_lost += 1;
                    continue;
                }
                // It is told to be of another array.
                Some(Outcome::InDoubt) => continue,
                Some(Outcome::Partly { .. }) => n_partly += 1,
                _ => n_whole += 1,
            }
            let content = Content::read(&array).expect("reads");
            assert_array(array.name(), &content, array.file_name(), &repaired, &history, of_manifest);
        }
        if !of_manifest {
            let names: Vec<String> = store.names().iter().map(|name| name.to_string()).collect();
            let expected: Vec<&String> = model.arrays.iter().map(|(name, _)| name).collect();
            assert_eq!(names.iter().collect::<Vec<_>>(), expected);
        } else if repaired.manifest.is_some() {
            let unread: Vec<&String> = repaired.unread.iter().map(|unread| &unread.file).collect();
            for (name, _) in &model.arrays {
                let file = history.iter().filter(|(_, version)| version.names.last() == Some(name));
                let is_whole = |file: &&String| storage.stat(file).is_ok() && !damaged.contains(file);
                for (file, _) in file.filter(|(file, _)| is_whole(file)) {
                    assert!(
                        seen.contains(file) && !unread.contains(&file),
                        "{file} of {name:?}: {repaired:?}"
                    );
                }
            }
        }
        for (file, bytes) in &files {
            assert!(is_kept(&storage, file, bytes, &repaired), "{file}: {repaired:?}");
        }
        let again = repair(&storage).expect("repairs again");
        assert!(
            again.manifest.is_none() && again.arrays.iter().all(|array| array.outcome == Outcome::Lost),
            "{again:?}"
        );
    }
    rng::covered(rng::n_cases(60), "damaged stores repaired");
    eprintln!(
        "{n_arrays} arrays: {n_whole} whole, {n_partly} in part; {n_lost} lost; {n_rebuilt} manifests rebuilt"
    );
}
