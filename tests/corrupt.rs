//! Damaged files give an error or the right data: never a panic, a hang, or memory for lengths that nobody checked.
//!
//! The elements of uncompressed arrays have no checksum, as in any `.npy` file: other elements are other data.
//! `corrupt/hostile.rs` writes manifests with right checksums and wrong contents; in `corrupt/places.rs` something that
//! is no file takes the place of one.

#[path = "corrupt/blocks.rs"]
mod blocks;
mod common;
#[path = "corrupt/hostile.rs"]
mod hostile;
#[path = "corrupt/places.rs"]
mod places;
#[path = "corrupt/sample.rs"]
mod sample;

use std::sync::Once;

use common::MemStorage;
use common::model::Model;
use common::rng::{self, Rng};
use numpack::store::{Access, Attrs, DataFileFault, Store, StoreError};
use numpack::sys::Storage as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sample::{MANIFEST, Sample, Seen, look, read, sample, snapshot_of};

/// What the tests here cover.
const MUTATIONS: &str = "stores with flipped, cut or forged bytes";

/// Ends the whole test process should it ever want much memory, or not come to an end.
fn limit_resources() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let is_long = std::env::var_os("NUMPACK_TEST_CASES").is_some();
        for (resource, limit) in
            [(Resource::As, 1 << 30), (Resource::Cpu, if is_long { 20_000 } else { 300 })]
        {
            let maximum = getrlimit(resource).maximum;
            setrlimit(resource, Rlimit { current: Some(limit), maximum }).expect("sets a limit");
        }
    });
}

/// Tells which damage it was, should looking at it panic.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// Everything in the directory but the lock file, which opening for writing may make.
fn files(storage: &MemStorage) -> Vec<(String, Vec<u8>)> {
    let mut names = storage.list().expect("lists");
    names.retain(|name| name != "metadata.npkm.lock");
    names.into_iter().map(|name| (name.clone(), read(storage, &name))).collect()
}

/// Whatever is wrong, a writer may refuse, and then writes nothing; or what can be read it leaves alone.
fn write_to(storage: &MemStorage, seen: &Result<Seen, StoreError>) {
    let before = files(storage);
    let set: Attrs = [("next".to_owned(), rmpv::Value::from(1))].into();
    match Store::with_storage(Box::new(storage.clone()), Access::Write) {
        Ok(store) => {
            store.set_attrs(None, set, &[]).expect("what opens can be written to");
            let Ok(seen) = seen else {
                // A record is wrong that nobody asked for. Whoever does is told so, now as before.
                assert_wrong_record(storage);
                return;
            };
            let after = look(storage).expect("opens");
            for ((name, content), (_, now)) in seen.arrays.iter().zip(&after.arrays) {
                assert_eq!(content.is_ok(), now.is_ok(), "{name:?}");
                // As text: an attribute that is not a number equals nothing.
                let text =
                    |content: &Result<_, StoreError>| content.as_ref().ok().map(|found| format!("{found:?}"));
                assert!(text(now) == text(content), "{name:?}");
            }
        }
        Err(_) => {
            assert!(seen.is_err(), "what opens for reading opens for writing");
            assert!(Store::create_in(Box::new(storage.clone())).is_err(), "there is something");
            assert!(files(storage) == before, "something was written");
        }
    }
}

/// The store opens, and tells of each array either what it is or that its record is wrong, at least of one the latter.
fn assert_wrong_record(storage: &MemStorage) {
    let is_format = |error: &StoreError| matches!(error, StoreError::Format { .. });
    assert!(look(storage).is_err_and(|error| is_format(&error)), "the damage is gone");
    let store = Store::with_storage(Box::new(storage.clone()), Access::Read).expect("opens for reading");
    let records: Vec<_> = store.names().iter().map(|name| store.record(name)).collect();
    let wrong: Vec<_> = records.iter().filter_map(|record| record.as_ref().err()).collect();
    assert!(!wrong.is_empty() && wrong.into_iter().all(is_format), "{records:?}");
}

/// Whether `model` is what is seen. An array that it has and that was removed later is without its data file.
fn is_seen(seen: &Seen, model: &Model, last: &Model) -> bool {
    seen.attrs == model.attrs
        && seen.arrays.len() == model.arrays.len()
        && seen.arrays.iter().zip(&model.arrays).all(|((name, content), (expected_name, expected))| {
            let is_gone = !last.arrays.iter().any(|(_, own)| own.tags == expected.tags);
            let is_missing =
                || matches!(content, Err(StoreError::DataFile { what: DataFileFault::Missing, .. }));
            name == expected_name && (content.as_ref().ok() == Some(expected) || is_gone && is_missing())
        })
}

/// Looks at a damaged manifest. What opens must be one of `allowed`.
fn assert_damaged(storage: &MemStorage, sample: &Sample, allowed: &[&Model]) -> bool {
    let seen = look(storage);
    if let Ok(seen) = &seen {
        let is_allowed = |model: &&Model| is_seen(seen, model, sample.last());
        assert!(allowed.iter().any(is_allowed), "{seen:?} is none of {allowed:?}");
    }
    write_to(storage, &seen);
    seen.is_err()
}

/// The states that a manifest may be taken for that was damaged at byte `at`: damage at the very end looks like the
/// torn end of a writer that died.
fn states_around(sample: &Sample, at: usize) -> Vec<&Model> {
    let n_frames = sample.frame_ends.len();
    let mut states = vec![sample.last()];
    if n_frames > 1 && at >= sample.frame_ends[n_frames - 2] {
        states.push(&sample.states[n_frames - 2]);
    }
    states
}

#[test]
fn flipped_byte_of_the_manifest_is_an_error_or_harmless() {
    limit_resources();
    let log = sample();
    for sample in [snapshot_of(&log), log] {
        let manifest = &sample.files[MANIFEST];
        let (mut n, mut n_errors) = (0, 0);
        for at in 0..manifest.len() {
            for flip in [1 << (at % 8), 0xff] {
                let _told = Told(format!("byte {at} of {} ^ {flip:#x}", manifest.len()));
                let mut bytes = manifest.clone();
                bytes[at] ^= flip;
                n += 1;
                n_errors += usize::from(assert_damaged(
                    &sample.with(MANIFEST, &bytes),
                    &sample,
                    &states_around(&sample, at),
                ));
            }
        }
        eprintln!("{n} flips, {n_errors} errors");
        rng::covered(n as u64, MUTATIONS);
    }
}

#[test]
fn cut_manifest_is_an_error_or_an_earlier_state() {
    limit_resources();
    let log = sample();
    for sample in [snapshot_of(&log), log] {
        let manifest = &sample.files[MANIFEST];
        for len in 0..manifest.len() {
            let _told = Told(format!("cut at {len} of {}", manifest.len()));
            let n_frames = sample.frame_ends.iter().filter(|end| **end <= len).count();
            let allowed: Vec<&Model> = sample.states[..n_frames].last().into_iter().collect();
            let is_error = assert_damaged(&sample.with(MANIFEST, &manifest[..len]), &sample, &allowed);
            assert_eq!(is_error, n_frames == 0);
        }
        rng::covered(manifest.len() as u64, MUTATIONS);
    }
}

#[test]
fn bytes_after_the_manifest_are_a_torn_end() {
    limit_resources();
    let sample = sample();
    let mut rng = Rng::new(rng::seed());
    for len in [1, 7, 8, 24, 100, 4096, 1 << 20] {
        for tail in [vec![0; len], rng.bytes(len), b"npkF".repeat(len.div_ceil(4))] {
            let manifest = [&sample.files[MANIFEST][..], &tail].concat();
            assert!(!assert_damaged(&sample.with(MANIFEST, &manifest), &sample, &[sample.last()]));
        }
    }
}

#[test]
fn random_damage_to_the_manifest_is_an_error_or_a_state_that_was() {
    limit_resources();
    let log = sample();
    let samples = [snapshot_of(&log), log];
    rng::covered(rng::n_cases(1500), MUTATIONS);
    for mut rng in rng::cases(1500) {
        let sample = rng.pick(&samples).clone();
        let mut bytes = sample.files[MANIFEST].clone();
        for _ in 0..1 + rng.below(3) {
            let from = rng.below(bytes.len() as u64) as usize;
            let len = (rng.below(200) as usize).min(bytes.len() - from);
            match rng.below(5) {
                0 => bytes[from..from + len].fill(0),
                1 => drop(bytes.drain(from..from + len)),
                2 => {
                    let noise = rng.bytes(len);
                    bytes[from..from + len].copy_from_slice(&noise);
                }
                3 => {
                    let to = rng.below(bytes.len() as u64) as usize;
                    let piece = bytes[from..from + len].to_vec();
                    drop(bytes.splice(to..to, piece));
                }
                _ => bytes[from] = rng.next() as u8,
            }
            if bytes.is_empty() {
                break;
            }
        }
        // A hole of zeros counts as a page that never reached the disk, where no later frame knew it synced.
        let allowed: Vec<&Model> = sample.states.iter().collect();
        assert_damaged(&sample.with(MANIFEST, &bytes), &sample, &allowed);
    }
}

/// Checks what is seen with one damaged data file: the others are right, and so is this one, or it is an error.
fn assert_other_arrays(sample: &Sample, seen: &Seen, file: &str) {
    let names: Vec<&String> = seen.arrays.iter().map(|(name, _)| name).collect();
    assert_eq!(names, sample.last().arrays.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for ((name, content), (_, expected)) in seen.arrays.iter().zip(&sample.last().arrays) {
        match content {
            Ok(content) => assert_eq!(content, expected, "{name:?}"),
            Err(
                error @ (StoreError::DataFile { array, file: damaged, .. }
                | StoreError::Block { array, file: damaged, .. }),
            ) => {
                assert_eq!((array, &**damaged), (name, file));
                assert!(error.to_string().contains(file), "{error}");
                let is_told = |problem: &numpack::store::Problem| problem.file == file;
                assert!(seen.report.problems.iter().any(is_told), "{:?}", seen.report);
            }
            Err(error) => panic!("{name:?}: {error}"),
        }
    }
}

#[test]
fn flipped_byte_of_a_data_files_header_does_not_change_the_array() {
    limit_resources();
    let sample = sample();
    for file in sample.data_files() {
        let bytes = &sample.files[file];
        let mut n_problems = 0;
        // The filling is all alike.
        for at in (0..200).chain((200..4096).step_by(61)).chain(4090..4096) {
            for flip in [1 << (at % 8), 0xff] {
                let _told = Told(format!("byte {at} of {file} ^ {flip:#x}"));
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let storage = sample.with(file, &bytes);
                let seen = look(&storage).expect("opens");
                assert_other_arrays(&sample, &seen, file);
                n_problems += seen.report.problems.len();
            }
        }
        // The header of blocks is shorter.
        assert!(n_problems > 120, "verifying sees most of it: {n_problems}");
    }
}

#[test]
fn cut_data_file_is_an_error_that_names_it() {
    limit_resources();
    let sample = sample();
    for file in sample.data_files() {
        let bytes = &sample.files[file];
        for len in (0..bytes.len()).step_by(37).chain(bytes.len().saturating_sub(300).max(4090)..bytes.len())
        {
            let _told = Told(format!("{file} cut at {len}"));
            let seen = look(&sample.with(file, &bytes[..len])).expect("opens");
            assert_other_arrays(&sample, &seen, file);
            assert_eq!(seen.arrays.iter().filter(|(_, content)| content.is_err()).count(), 1);
        }
    }
}

/// Opens for writing and writes, with this lock file. No array may suffer.
fn write_with_lock_file(sample: &Sample, bytes: &[u8]) {
    let storage = sample.with("metadata.npkm.lock", bytes);
    let store = Store::with_storage(Box::new(storage.clone()), Access::Write).expect("opens");
    store.set_attrs(None, Attrs::new(), &[]).expect("commits");
    let seen = look(&storage).expect("opens");
    assert_eq!(seen.model().as_ref(), Some(sample.last()));
    assert!(seen.report.problems.is_empty());
}

fn intent(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(crc32fast::hash(text).to_le_bytes());
    bytes.extend(text);
    bytes
}

#[test]
fn damaged_lock_file_costs_no_array() {
    limit_resources();
    let mut sample = sample();
    let names = sample.data_files().into_iter().cloned().collect::<Vec<_>>().join("\n");
    let good = intent(format!("{names}\ndata_leftover~77.npkd\n").as_bytes());
    sample.files.insert("data_leftover~77.npkd".to_owned(), b"torn".to_vec());
    for at in 0..good.len() {
        for flip in [1 << (at % 8), 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            write_with_lock_file(&sample, &bytes);
        }
        write_with_lock_file(&sample, &good[..at]);
    }
    for text in [
        "metadata.npkm\nmetadata.npkm.bak\nmetadata.npkm.lock\n../x\n/etc/passwd\ndata_../../x.npkd\n.\n..\n\n",
        "data_.npkd\0\n\ndata_a.npkd/..\n",
        "\n\n\n",
    ] {
        write_with_lock_file(&sample, &intent(text.as_bytes()));
    }
    write_with_lock_file(&sample, &intent(b"data_\xff.npkd"));
    write_with_lock_file(&sample, &intent(&b"data_x.npkd\n".repeat(100_000)));
    write_with_lock_file(&sample, &[0xff; 100_000]);
}

/// Only the dtype and the shape of rows tell data files apart, and only verifying looks at them.
#[test]
fn swapped_data_files_are_found_by_verifying() {
    limit_resources();
    let sample = sample();
    let files = sample.data_files();
    for one in &files {
        for other in files.iter().filter(|other| other != &one) {
            let storage = sample.with(one, &sample.files[*other]);
            let seen = look(&storage).expect("opens");
            assert_eq!(seen.report.problems.len(), 1, "{one} replaced by {other}: {:?}", seen.report);
            assert_eq!(seen.report.problems[0].file, **one);
        }
        let mut without = sample.clone();
        without.files.remove(*one);
        let seen = look(&without.storage()).expect("opens");
        assert_other_arrays(&without, &seen, one);
        assert!(seen.report.problems[0].what.contains("missing"));
    }
}
