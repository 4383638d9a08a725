//! Repairing: of a damaged store, as much comes back as is left, what is lost is named, and the damaged files are kept.
//!
//! `repair/random.rs` damages random stores at random; in `repair/cut.rs` the repair itself dies.

#![allow(clippy::single_range_in_vec_init, reason = "these are lists of ranges")]

mod common;
#[path = "repair/cut.rs"]
mod cut;
#[path = "repair/random.rs"]
mod random;

use std::sync::Arc;

use common::blocks::{Found, look, read, table};
use common::model::Content;
use common::{FaultyStorage, MemStorage};
use numpack::format::block_index::{FILE_HEADER_LEN, SLOT_LEN, SLOT_OFFSETS};
use numpack::format::frame;
use numpack::store::{
    Access, Array, Attrs, Compression, Depth, Dtype, Filter, LOST_ROWS, Mended, NewArray, NotAStore,
    OLDER_ROWS, Outcome, Repair, Repaired, Store, StoreError, TableSource, verify_storage_with,
};
use numpack::sys::{FileAccess, Storage};
use rmpv::Value;

const MANIFEST: &str = "metadata.npkm";
const BACKUP: &str = "metadata.npkm.bak";
const BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: Some(Filter::None) };
/// Rows of 64 bytes: so many fill a block.
const ROWS_PER_BLOCK: u64 = 64;

fn repair(storage: &MemStorage) -> Result<Repaired, StoreError> {
    Repair { progress: &mut |_, _, _| () }.in_storage(Box::new(storage.clone()))
}

/// Repairs, and checks that a second repair has nothing to do any more but for what is lost.
fn repaired(storage: &MemStorage) -> Repaired {
    let repaired = repair(storage).expect("repairs");
    let again = repair(storage).expect("repairs again");
    assert!(again.manifest.is_none(), "{again:?}");
    assert!(again.arrays.iter().all(|array| array.outcome == Outcome::Lost), "{again:?}");
    let is_lost = repaired.arrays.iter().any(|array| array.outcome == Outcome::Lost);
    let report = verify_storage_with(Box::new(storage.clone()), Depth::Elements).expect("verifies");
    assert_eq!(report.problems.is_empty(), !is_lost, "{report:?}");
    repaired
}

fn only(repaired: &Repaired) -> &Mended {
    assert!(repaired.manifest.is_none(), "{repaired:?}");
    let [only] = &repaired.arrays[..] else { panic!("{repaired:?}") };
    only
}

fn open(storage: &MemStorage, access: Access) -> Store {
    Store::with_storage(Box::new(storage.clone()), access).expect("opens")
}

fn content(storage: &MemStorage, name: &str) -> Content {
    Content::read(&open(storage, Access::Read).array(name).expect("is there")).expect("reads")
}

/// Writes over a part of a file, under all its names.
fn overwrite(storage: &MemStorage, name: &str, offset: usize, bytes: &[u8]) {
    let file = storage.open(name, FileAccess::Write).expect("opens");
    file.write_at(bytes, offset as u64).expect("writes");
}

fn flip(storage: &MemStorage, name: &str, offset: usize) {
    let byte = read(storage, name)[offset];
    overwrite(storage, name, offset, &[byte ^ 0x10]);
}

fn cut(storage: &MemStorage, name: &str, len: usize) {
    let file = storage.open(name, FileAccess::Write).expect("opens");
    file.set_len(len as u64).expect("cuts");
}

/// Removes the manifest and its backup.
fn lose_manifest(storage: &MemStorage) {
    for name in [MANIFEST, BACKUP] {
        storage.remove(name).expect("removes");
    }
}

/// What is kept in `lost+found` under this name, as repairs tell it.
fn kept(storage: &MemStorage, path: &str) -> Vec<u8> {
    let name = path.strip_prefix("lost+found/").expect("is there");
    let file = storage.open_apart("lost+found", name, FileAccess::Read).expect("is kept");
    let mut bytes = vec![0; file.stat().expect("stat").len as usize];
    file.read_at(&mut bytes, 0).expect("reads");
    bytes
}

fn u8s(data: &[u8]) -> NewArray<'_> {
    let dtype = Dtype::parse_python("'|u1'").expect("a dtype");
    NewArray { dtype, shape: vec![data.len() as u64 / 64, 64], fortran_order: false, data }
}

/// Rows that are each of one number, which tells them apart and from zeros.
fn rows(first: u8, n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| [first.wrapping_add(i as u8) | 1; 64]).collect()
}

/// `plain` with attributes, `zstd` with seven blocks and a tail, and `f` in Fortran order; all on the disk.
fn sample() -> MemStorage {
    let memory = MemStorage::new();
    let store = Store::create_in(Box::new(memory.clone())).expect("creates");
    store.set_durable(true);
    store.save(&[("plain", u8s(&rows(10, 20)))]).expect("saves");
    store.set_attrs(Some("plain"), [("unit".to_owned(), "m".into())].into(), &[]).expect("sets");
    store.save_as(&[("zstd", u8s(&rows(0, 470)))], Some(&BLOCKS)).expect("saves");
    let data: Vec<u8> = (1..=60).collect();
    let dtype = Dtype::parse_python("'<u2'").expect("a dtype");
    store
        .save(&[("f", NewArray { dtype, shape: vec![5, 6], fortran_order: true, data: &data })])
        .expect("saves");
    memory
}

fn found(memory: &MemStorage, name: &str) -> Found {
    let record = table(memory).get(name).expect("decodes").expect("is there").clone();
    look(&record, &read(memory, &record.file))
}

fn ranges(array: &Array, key: &str) -> Option<Vec<(u64, u64)>> {
    let pair = |pair: &Value| {
        let pair = pair.as_array().expect("a pair");
        (pair[0].as_u64().expect("a number"), pair[1].as_u64().expect("a number"))
    };
    Some(array.attrs().get(key)?.as_array().expect("an array").iter().map(pair).collect())
}

#[test]
fn a_sound_store_is_not_touched() {
    let memory = sample();
    let before =
        [MANIFEST, "data_plain.npkd", "data_zstd.npkd", "data_f.npkd"].map(|name| read(&memory, name));
    let repaired = repair(&memory).expect("repairs");
    assert!(repaired.was_sound() && repaired.is_whole() && repaired.n_arrays == 3, "{repaired:?}");
    let after =
        [MANIFEST, "data_plain.npkd", "data_zstd.npkd", "data_f.npkd"].map(|name| read(&memory, name));
    assert!(before == after);
}

#[test]
fn a_damaged_block_costs_its_rows_and_no_others() {
    for block in [0, 3, 7] {
        let memory = sample();
        let before = content(&memory, "zstd");
        let place = found(&memory, "zstd").blocks[block].clone();
        flip(&memory, "data_zstd.npkd", place.offset + place.len / 2);
        let damaged = read(&memory, "data_zstd.npkd");
        let repaired = repaired(&memory);
        let mended = only(&repaired);
        let lost = block as u64 * ROWS_PER_BLOCK..470.min((block as u64 + 1) * ROWS_PER_BLOCK);
        assert_eq!(mended.outcome, Outcome::Partly { lost: vec![lost.clone()], older: vec![] });
        assert!(mended.what[0].starts_with(&format!("block {block} at byte {} has crc32", place.offset)));
        assert!(kept(&memory, mended.kept.as_deref().expect("is kept")) == damaged);
        let after = content(&memory, "zstd");
        for (at, (now, was)) in (0..).zip(after.rows.iter().zip(&before.rows)) {
            assert_eq!(*now, if lost.contains(&at) { vec![0; 64] } else { was.clone() }, "row {at}");
        }
        let array = open(&memory, Access::Read).array("zstd").expect("is there");
        assert_eq!(ranges(&array, LOST_ROWS), Some(vec![(lost.start, lost.end)]));
        assert_eq!(ranges(&array, OLDER_ROWS), None);
        assert_eq!(array.compression().map(|own| own.block_len), Some(4096));
    }
}

/// A page leads to all seven blocks; the header's other copy of the index is of before the append, and has them too.
#[test]
fn blocks_behind_a_damaged_page_are_found_through_an_earlier_index() {
    let memory = sample();
    let store = open(&memory, Access::Write);
    store.append(&[("zstd", u8s(&rows(3, 100)))]).expect("appends");
    let before = content(&memory, "zstd");
    let page = found(&memory, "zstd").pages[0].clone();
    flip(&memory, "data_zstd.npkd", page.offset);
    let repaired = repaired(&memory);
    // Block 7 was the tail, and blocks 7 and 8 are full or a tail only since.
    let Outcome::Partly { lost, older } = &only(&repaired).outcome else { panic!("{repaired:?}") };
    assert_eq!((&lost[..], &older[..]), (&[470..512][..], &[0..470][..]));
    let after = content(&memory, "zstd");
    assert!(after.rows[..470] == before.rows[..470], "what is called older is the same here");
    assert!(after.rows[512..] == before.rows[512..] && after.rows[470..512].iter().all(|row| row[0] == 0));
}

/// The known gap of changes in place that are not durable: the commit reached the disk, and the block did not.
#[test]
fn a_block_that_was_lost_with_the_power_is_there_as_of_the_commit_before() {
    let memory = sample();
    let before = content(&memory, "zstd");
    let store = open(&memory, Access::Write);
    store.replace_range("zstd", 70..72, u8s(&rows(200, 2))).expect("replaces");
    let place = found(&memory, "zstd").blocks[1].clone();
    overwrite(&memory, "data_zstd.npkd", place.offset, &vec![0; place.len]);
    let array = open(&memory, Access::Read).array("zstd").expect("is there");
    let refused =
        array.read_rows_into(64..65, &mut [0; 64]).expect_err("a reader takes nothing older for it");
    assert!(matches!(refused, StoreError::Block { block: 1, .. }), "{refused}");
    let repaired = repaired(&memory);
    assert_eq!(only(&repaired).outcome, Outcome::Partly { lost: vec![], older: vec![64..128] });
    assert!(content(&memory, "zstd").rows == before.rows);
    let array = open(&memory, Access::Read).array("zstd").expect("is there");
    assert_eq!(ranges(&array, OLDER_ROWS), Some(vec![(64, 128)]));
}

/// The header in the data file has copies of the last two indexes only; the manifest's frames have more.
#[test]
fn an_earlier_state_is_found_in_the_frames_of_the_manifest() {
    let memory = MemStorage::new();
    let store = Store::create_in(Box::new(memory.clone())).expect("creates");
    // Noise: what is written anew is not yet so much that the disk is waited for and room is used again.
    let noise = common::rng::Rng::new(1).bytes(448 * 64);
    store.save_as(&[("zstd", u8s(&noise))], Some(&BLOCKS)).expect("saves");
    let before = content(&memory, "zstd");
    let end = read(&memory, "data_zstd.npkd").len();
    for i in 0..3 {
        store.replace_range("zstd", 70..72, u8s(&rows(200 + 2 * i, 2))).expect("replaces");
    }
    assert!(found(&memory, "zstd").blocks[1].offset >= end);
    // All three blocks were lost, and the pages that lead to them.
    let lost = read(&memory, "data_zstd.npkd").len() - end;
    overwrite(&memory, "data_zstd.npkd", end, &vec![0; lost]);
    let repaired = repaired(&memory);
    assert_eq!(only(&repaired).outcome, Outcome::Partly { lost: vec![], older: vec![0..448] });
    assert!(content(&memory, "zstd").rows == before.rows);
}

#[test]
fn a_short_data_file_keeps_the_rows_that_it_has() {
    let memory = sample();
    let before = content(&memory, "plain");
    cut(&memory, "data_plain.npkd", 4096 + 12 * 64 + 10);
    let repaired = repaired(&memory);
    assert_eq!(only(&repaired).outcome, Outcome::Partly { lost: vec![12..20], older: vec![] });
    let after = content(&memory, "plain");
    assert!(after.rows[..12] == before.rows[..12]);
    assert_eq!(after.rows[12][..10], before.rows[12][..10]);
    assert!(after.rows[13..].iter().all(|row| *row == [0; 64]));
    let array = open(&memory, Access::Read).array("plain").expect("is there");
    assert_eq!(array.attrs()["unit"], "m".into(), "attributes stay");
}

#[test]
fn sectors_that_the_disk_does_not_give_cost_their_rows() {
    for (file, name, broken, lost) in [
        ("data_plain.npkd", "plain", 4096 + 128..4096 + 130, 0..20),
        ("data_zstd.npkd", "zstd", 8192..8200, 0..64),
    ] {
        let memory = sample();
        let before = content(&memory, name);
        let storage = FaultyStorage::new(Arc::new(memory.clone()));
        storage.break_sectors(file, broken);
        let repaired = Repair { progress: &mut |_, _, _| () }.in_storage(Box::new(storage)).expect("repairs");
        match &only(&repaired).outcome {
            // All its rows are in one sector.
            Outcome::Lost => assert_eq!(name, "plain"),
            outcome => {
                let expected = Outcome::Partly { lost: vec![lost.clone()], older: vec![] };
                assert_eq!((outcome, name), (&expected, "zstd"));
                assert!(content(&memory, name).rows[64..] == before.rows[64..]);
            }
        }
    }
}

#[test]
fn a_damaged_header_costs_nothing() {
    for (name, offset) in [("plain", 3), ("zstd", 20), ("zstd", FILE_HEADER_LEN as usize + 1), ("f", 8)] {
        let memory = sample();
        let before = content(&memory, name);
        flip(&memory, &format!("data_{name}.npkd"), offset);
        let repaired = repaired(&memory);
        assert!(repaired.is_whole() && !repaired.was_sound(), "{repaired:?}");
        assert_eq!(content(&memory, name), before);
    }
    // Both copies of the index.
    let memory = sample();
    let before = content(&memory, "zstd");
    for offset in SLOT_OFFSETS {
        overwrite(&memory, "data_zstd.npkd", offset as usize, &[0; SLOT_LEN]);
    }
    assert!(repaired(&memory).is_whole());
    assert_eq!(content(&memory, "zstd"), before);
}

/// Elements that are not compressed have no checksum: whose they are, only the header tells.
#[test]
fn a_data_file_of_another_array_is_called_doubtful() {
    let memory = sample();
    let data: Vec<u8> = (0..=255).cycle().take(20 * 64).collect();
    let dtype = Dtype::parse_python("'|i1'").expect("a dtype");
    let store = open(&memory, Access::Write);
    let other = NewArray { dtype, shape: vec![20, 64], fortran_order: false, data: &data };
    store.save(&[("other", other)]).expect("saves");
    let others = read(&memory, "data_other.npkd");
    overwrite(&memory, "data_plain.npkd", 0, &others);
    let repaired = repaired(&memory);
    assert_eq!(only(&repaired).outcome, Outcome::InDoubt);
    assert!(!repaired.is_whole() && only(&repaired).what[0].contains("describes another array"));
}

#[test]
fn an_array_without_its_data_file_stays_and_is_called_lost() {
    let memory = sample();
    memory.remove("data_plain.npkd").expect("removes");
    let lost = repaired(&memory);
    assert_eq!(only(&lost).outcome, Outcome::Lost);
    assert_eq!((&*only(&lost).array, lost.n_arrays), ("plain", 3));
    cut(&memory, "data_zstd.npkd", 100);
    let lost = repaired(&memory);
    assert!(lost.arrays.iter().all(|array| array.outcome == Outcome::Lost) && lost.arrays.len() == 2);
    assert_eq!(read(&memory, "data_zstd.npkd").len(), 100, "it is left as it is");
}

/// After a loss of power, names may be on the disk, and the commits that they belong to not.
#[test]
fn an_array_gets_the_later_version_whose_commit_was_lost() {
    let memory = sample();
    let manifest = read(&memory, MANIFEST);
    let store = open(&memory, Access::Write);
    store.save(&[("plain", u8s(&rows(77, 30)))]).expect("saves");
    cut(&memory, MANIFEST, manifest.len());
    overwrite(&memory, MANIFEST, 0, &manifest);
    let lost = store.record("plain").expect("is there").file_name().to_owned();
    let repaired = repaired(&memory);
    let mended = only(&repaired);
    assert_eq!((&mended.outcome, &mended.file), (&Outcome::FromFile, &lost));
    assert!(mended.what[0].contains("of a later version"), "{mended:?}");
    let after = content(&memory, "plain");
    assert_eq!(after.c_bytes(), rows(77, 30));
    assert_eq!(after.attrs["unit"], "m".into());
}

// The manifest

fn contents(memory: &MemStorage) -> Vec<(String, Content)> {
    let store = open(memory, Access::Read);
    let mut arrays: Vec<_> =
        store.names().iter().map(|name| (name.to_string(), content(memory, name))).collect();
    arrays.sort_by(|a, b| a.0.cmp(&b.0));
    arrays
}

fn without_attrs(mut arrays: Vec<(String, Content)>) -> Vec<(String, Content)> {
    arrays.iter_mut().for_each(|(_, content)| content.attrs = Attrs::new());
    arrays
}

#[test]
fn a_lost_manifest_is_made_anew_from_the_data_files() {
    let memory = sample();
    open(&memory, Access::Write).append(&[("zstd", u8s(&rows(9, 3)))]).expect("appends");
    let before = contents(&memory);
    lose_manifest(&memory);
    let lost = Store::with_storage(Box::new(memory.clone()), Access::Read).expect_err("it is lost");
    assert!(lost.to_string().contains("npkfs repair"), "{lost}");
    let repaired = repaired(&memory);
    let rebuilt = repaired.manifest.as_ref().expect("is rebuilt");
    assert_eq!((&*rebuilt.what, rebuilt.source), ("is missing", TableSource::DataFiles));
    assert!(repaired.arrays.len() == 3 && !repaired.is_whole());
    assert!(repaired.arrays.iter().all(|array| array.outcome == Outcome::FromFile));
    assert_eq!(contents(&memory), without_attrs(before));
    // Life goes on.
    open(&memory, Access::Write).save(&[("plain", u8s(&rows(1, 2)))]).expect("saves");
    assert_eq!(content(&memory, "plain").c_bytes(), rows(1, 2));
}

#[test]
fn versions_and_names_that_the_files_cannot_tell_apart_are_all_kept() {
    let memory = sample();
    let store = open(&memory, Access::Write);
    store.rename("plain", "renamed", false).expect("renames");
    store.save(&[("plain", u8s(&rows(5, 2)))]).expect("saves");
    store.drop_rows(&["zstd"], &[0, 1]).expect("drops");
    lose_manifest(&memory);
    let repaired = repaired(&memory);
    let names: Vec<String> = contents(&memory).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["f", "plain", "plain~old", "zstd"]);
    assert_eq!(content(&memory, "plain").c_bytes(), rows(5, 2), "the latest has the name");
    assert_eq!(content(&memory, "plain~old").c_bytes(), rows(10, 20));
    assert_eq!(content(&memory, "zstd").n_rows(), 470, "dropped rows are back");
    let told = |name: &str| repaired.arrays.iter().find(|array| &*array.array == name).expect("is told");
    assert!(told("plain~old").what[0].contains("there is a later version of \"plain\""));
}

#[test]
fn a_manifest_that_an_old_release_replaced_comes_back_from_the_backup() {
    let memory = sample();
    let before = contents(&memory);
    let file = memory.create_unnamed().expect("creates");
    file.write_at(b"\x80", 0).expect("writes");
    memory.replace(&file, MANIFEST).expect("replaces");
    let repaired = repaired(&memory);
    let rebuilt = repaired.manifest.as_ref().expect("is rebuilt");
    assert_eq!(rebuilt.source, TableSource::Backup);
    assert_eq!(kept(&memory, &rebuilt.kept[0]), b"\x80");
    assert_eq!(contents(&memory), before);
    // In memory, nothing tells whether it was the last one.
    assert!(!rebuilt.is_complete && repaired.arrays.is_empty());
}

#[test]
fn damage_to_the_first_bytes_of_the_manifest_costs_nothing() {
    for offset in [0, 8, 17, 33] {
        let memory = sample();
        let before = contents(&memory);
        flip(&memory, MANIFEST, offset);
        let damaged = read(&memory, MANIFEST);
        Store::with_storage(Box::new(memory.clone()), Access::Read).expect_err("is damaged");
        let repaired = repaired(&memory);
        let rebuilt = repaired.manifest.as_ref().expect("is rebuilt");
        assert!(rebuilt.is_complete && rebuilt.damaged.is_empty() && repaired.is_whole(), "{repaired:?}");
        assert!(kept(&memory, &rebuilt.kept[0]) == damaged);
        assert_eq!(contents(&memory), before);
    }
}

/// The offsets of the frames.
fn frames(memory: &MemStorage) -> Vec<std::ops::Range<u64>> {
    let bytes = read(memory, MANIFEST);
    let mut log = frame::Log::new(&bytes[frame::HEADER_LEN..], frame::HEADER_LEN as u64);
    std::iter::from_fn(|| log.next().expect("is whole").map(|frame| frame.offset..frame.end)).collect()
}

/// The commits after a damaged one count, and what it did is found in the data files as far as they tell.
#[test]
fn a_damaged_commit_costs_what_only_it_knew() {
    // Save `plain`, its attributes, save `zstd`, save `f`.
    for (n, is_whole) in [(1, false), (2, true), (3, false)] {
        let memory = sample();
        let before = contents(&memory);
        let damaged = frames(&memory)[n].clone();
        flip(&memory, MANIFEST, damaged.start as usize + 40);
        Store::with_storage(Box::new(memory.clone()), Access::Read).expect_err("is damaged");
        let repaired = repaired(&memory);
        let rebuilt = repaired.manifest.as_ref().expect("is rebuilt");
        assert_eq!((rebuilt.source, &rebuilt.damaged[..]), (TableSource::Frames, &[damaged][..]));
        assert!(!repaired.is_whole());
        assert_eq!(repaired.arrays.is_empty(), is_whole, "{repaired:?}");
        assert_eq!(without_attrs(contents(&memory)), without_attrs(before));
    }
}

#[test]
fn rows_whose_commits_are_damaged_are_found_in_the_data_files() {
    let memory = sample();
    let store = open(&memory, Access::Write);
    store.append(&[("plain", u8s(&rows(40, 5))), ("zstd", u8s(&rows(50, 5)))]).expect("appends");
    let before = contents(&memory);
    let damaged = frames(&memory).last().expect("there is one").clone();
    store.set_attrs(None, [("later".to_owned(), 1.into())].into(), &[]).expect("sets");
    flip(&memory, MANIFEST, damaged.start as usize + 30);
    let repaired = repaired(&memory);
    assert_eq!(repaired.arrays.len(), 2, "{repaired:?}");
    assert!(repaired.arrays.iter().all(|array| array.outcome == Outcome::FromFile));
    assert_eq!(contents(&memory), before);
    assert_eq!(open(&memory, Access::Read).attrs()["later"], 1.into());
}

#[test]
fn what_says_nothing_of_itself_is_told_and_left_alone() {
    let memory = sample();
    overwrite(&memory, "data_plain.npkd", 0, b"RIFF");
    lose_manifest(&memory);
    let damaged = read(&memory, "data_plain.npkd");
    let repaired = repair(&memory).expect("repairs");
    assert_eq!((&*repaired.unread[0].file, repaired.unread.len()), ("data_plain.npkd", 1));
    assert!(repaired.unread[0].what.contains("begins with \"RIFF"), "{repaired:?}");
    open(&memory, Access::Write).save(&[("plain", u8s(&rows(1, 2)))]).expect("saves");
    assert!(read(&memory, "data_plain.npkd") == damaged, "its name is not given away");
    // A writer that died had stated it.
    let memory = MemStorage::new();
    for (name, bytes) in [("data_x.npkd", &b"no header"[..]), ("data_y.npkd", b"")] {
        let file = memory.create_unnamed().expect("creates");
        file.write_at(bytes, 0).expect("writes");
        memory.link(&file, name).expect("links");
    }
    let nothing = repair(&memory).expect_err("nothing is left");
    assert!(matches!(nothing, StoreError::NotAStore { found: NotAStore::NothingLeft, .. }), "{nothing}");
    assert_eq!(memory.list().expect("lists"), ["data_x.npkd", "data_y.npkd", "metadata.npkm.lock"]);
}

#[test]
fn files_that_a_writer_that_died_had_stated_are_not_removed_when_the_manifest_was_lost() {
    let memory = sample();
    overwrite(&memory, "data_plain.npkd", 0, b"RIFF");
    let text = b"data_plain.npkd\ndata_zstd.npkd";
    let intent =
        [&(text.len() as u32).to_le_bytes()[..], &crc32fast::hash(text).to_le_bytes(), text].concat();
    overwrite(&memory, "metadata.npkm.lock", 0, &intent);
    lose_manifest(&memory);
    repair(&memory).expect("repairs");
    open(&memory, Access::Write).save(&[("new", u8s(&rows(1, 2)))]).expect("saves");
    assert!(memory.stat("data_plain.npkd").is_ok() && memory.stat("data_zstd.npkd").is_ok());
}

#[test]
fn what_is_no_store_is_said_to_be_none_and_nothing_is_made_there() {
    let memory = MemStorage::new();
    let refused = repair(&memory).expect_err("is none");
    assert!(matches!(refused, StoreError::NotAStore { found: NotAStore::NoManifest, .. }), "{refused}");
    assert!(memory.list().expect("lists").is_empty());
    let memory = sample();
    overwrite(&memory, MANIFEST, 8, &[9]);
    let crc = crc32fast::hash(&read(&memory, MANIFEST)[..32]);
    overwrite(&memory, MANIFEST, 32, &crc.to_le_bytes());
    let newer = repair(&memory).expect_err("is of a later release");
    assert!(newer.to_string().contains("version 9"), "{newer}");
}
