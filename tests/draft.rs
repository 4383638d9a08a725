//! Arrays under construction: written in any order, as programs write files, and whole when they are finished.

use std::time::Duration;

use numpack::store::{Access, Array, Compression, Draft, Store, StoreError};
use tempfile::TempDir;

mod common;
use common::rng::Rng;

const WAIT: Duration = Duration::from_secs(30);

const COMPRESSIONS: [Option<Compression>; 3] = [
    None,
    Some(Compression { level: 1, block_len: 4096, filter: None }),
    Some(Compression { level: 1, block_len: 65536, filter: None }),
];

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::create(&dir.path().join("data.npk")).expect("creates");
    (dir, store)
}

/// The header of a `.npy` file of `n` numbers as NumPy writes it.
fn header(n: usize) -> Vec<u8> {
    let mut header = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    let text = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({n},), }}");
    header.extend_from_slice(format!("{text:<117}\n").as_bytes());
    assert_eq!(header.len(), 128);
    header
}

/// A whole file.
fn npy(n: usize, seed: u32) -> Vec<u8> {
    let mut file = header(n);
    file.extend((0..n as u32).flat_map(|i| (i / 5 * 7 + seed).to_le_bytes()));
    file
}

fn file_of(array: &Array) -> Vec<u8> {
    let mut bytes = vec![0; array.npy_len() as usize];
    assert_eq!(array.read_npy_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn contents(draft: &Draft) -> Vec<u8> {
    let mut bytes = vec![0; draft.len() as usize + 1];
    let len = draft.read_at(0, &mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

fn finish(store: &Store, name: &str, draft: &mut Draft) -> Array {
    store.finish_draft(name, draft, true, WAIT).unwrap()
}

#[test]
fn a_file_that_is_written_from_start_to_end_is_an_array() {
    for compression in COMPRESSIONS {
        for (n, piece) in [(0, 1), (1, 7), (5000, 1000), (300_000, 131_072), (3_000_000, 1 << 20)] {
            let (_dir, store) = store();
            let file = npy(n, 3);
            let mut draft = store.begin_draft(compression.as_ref()).unwrap();
            let mut offset = 0;
            for piece in file.chunks(piece) {
                draft.write_at(offset, piece).unwrap();
                offset += piece.len() as u64;
            }
            assert!(contents(&draft) == file);
            let array = finish(&store, "a", &mut draft);
            assert!(file_of(&array) == file, "{compression:?} {n}");
            assert_eq!(array.codec().is_some(), compression.is_some());
            assert!(file_of(&Store::open(store.path(), Access::Read).unwrap().array("a").unwrap()) == file);
        }
    }
}

#[test]
fn a_compressed_draft_takes_little_space_while_it_is_written() {
    let (_dir, store) = store();
    let file = npy(8 << 20, 3);
    let mut draft = store.begin_draft(COMPRESSIONS[2].as_ref()).unwrap();
    for (i, piece) in file.chunks(1 << 20).enumerate() {
        draft.write_at((i << 20) as u64, piece).unwrap();
        assert!(draft.stat().unwrap().allocated < 2 << 20);
    }
    assert!(finish(&store, "a", &mut draft).stat().unwrap().allocated < 2 << 20);
}

#[test]
fn what_was_not_written_is_zeros_and_takes_no_space() {
    let (_dir, store) = store();
    let n = 64 << 20;
    let mut draft = store.begin_draft(COMPRESSIONS[2].as_ref()).unwrap();
    draft.write_at(0, &header(n)).unwrap();
    draft.write_at(128 + 4 * n as u64 - 1, &[0]).unwrap();
    draft.write_at(128 + (1 << 20), &[7; 100]).unwrap();
    let array = finish(&store, "a", &mut draft);
    assert_eq!(array.shape(), [n as u64]);
    let usage = array.usage().unwrap().unwrap();
    assert_eq!(usage.n_blocks - usage.n_absent, 2, "{usage:?}");
    assert!(usage.allocated < 1 << 20);
    let mut out = [1; 200];
    array.read_npy_at(128 + (1 << 20) - 50, &mut out).unwrap();
    assert_eq!((&out[..50], &out[50..150], &out[150..]), (&[0; 50][..], &[7; 100][..], &[0; 50][..]));
}

#[test]
fn writes_in_any_order_make_the_file_that_they_make_on_a_disk() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let (_dir, store) = store();
        let compression = &COMPRESSIONS[rng.below(3) as usize];
        let mut draft = store.begin_draft(compression.as_ref()).unwrap();
        let whole = npy([0, 10, 3000, 40_000][rng.below(4) as usize], seed as u32);
        let mut model: Vec<u8> = Vec::new();
        for _ in 0..rng.below(40) {
            match rng.below(12) {
                0 => {
                    let len = rng.below(whole.len() as u64 + 300) as usize;
                    draft.set_len(len as u64).unwrap();
                    model.resize(len, 0);
                }
                1 => {
                    draft.set_len(0).unwrap();
                    model.clear();
                }
                kind => {
                    // Mostly bytes of the file that it is to become, in their place.
                    let start =
                        if kind < 5 { model.len() } else { rng.below(whole.len() as u64 + 1) as usize };
                    let end = (start + rng.below(20_000) as usize).min(whole.len()).max(start);
                    let mut bytes = whole.get(start..end).unwrap_or(&[]).to_vec();
                    if kind == 11 {
                        bytes = vec![seed as u8; 300];
                    }
                    draft.write_at(start as u64, &bytes).unwrap();
                    if !bytes.is_empty() {
                        model.resize(model.len().max(start + bytes.len()), 0);
                        model[start..start + bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
            assert_eq!(draft.len(), model.len() as u64, "seed {seed}");
            assert!(contents(&draft) == model, "seed {seed}");
        }
        for _ in 0..2 {
            let finished = store.finish_draft("a", &mut draft, true, WAIT);
            let is_whole = model.len() == whole.len() && model.starts_with(&whole[..128]);
            match finished {
                Ok(array) => assert!(file_of(&array) == model, "seed {seed}"),
                Err(StoreError::Refused { .. }) => assert!(!is_whole, "seed {seed}"),
                Err(error) => panic!("seed {seed}: {error}"),
            }
            draft.set_len(0).unwrap();
            draft.write_at(0, &whole).unwrap();
            model.clone_from(&whole);
        }
    }
}

#[test]
fn a_copy_of_an_array_is_compressed_like_it() {
    for compression in COMPRESSIONS {
        let (_dir, store) = store();
        let file = npy(50_000, 3);
        let mut draft = store.begin_draft(compression.as_ref()).unwrap();
        draft.write_at(0, &file).unwrap();
        let array = finish(&store, "a", &mut draft);
        let mut copy = store.begin_draft_of(&array).unwrap();
        assert!(contents(&copy) == file);
        copy.write_at(4000, &[9; 5000]).unwrap();
        let copied = finish(&store, "b", &mut copy);
        assert_eq!(copied.codec(), array.codec());
        let mut expected = file.clone();
        expected[4000..9000].fill(9);
        assert!(file_of(&copied) == expected);
        assert!(file_of(&array) == file);
    }
}
