//! Compressed arrays through the store's public face: the same elements as uncompressed, whatever is done to them, and
//! what they take on the disk.

use std::path::{Path, PathBuf};

use numpack::store::{Access, Array, Compression, Dtype, Filter, NewArray, Store, StoreError};
use tempfile::TempDir;

const SMALL_BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: None };

fn temp() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("data.npk");
    (dir, path)
}

/// Elements that compress, all different from those of another `seed`.
fn numbers(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| i / 3 + seed * 1_000_000).collect()
}

/// Elements that do not.
fn noise(n: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    (0..n).map(|_| next()).collect()
}

fn bytes(elements: &[u32]) -> Vec<u8> {
    elements.iter().flat_map(|element| element.to_le_bytes()).collect()
}

fn elements(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn array<'a>(shape: &[u64], data: &'a [u8]) -> NewArray<'a> {
    let dtype = Dtype::parse_python("'<u4'").unwrap();
    NewArray { dtype, shape: shape.to_vec(), fortran_order: false, data }
}

fn save(store: &Store, shape: &[u64], all: &[u32], compression: &Compression) {
    store.save_as(&[("a", array(shape, &bytes(all)))], Some(compression)).unwrap();
}

fn read(array: &Array) -> Vec<u32> {
    let mut out = vec![0; array.nbytes() as usize];
    array.read_into(&mut out).unwrap();
    elements(&out)
}

fn load(path: &Path) -> Vec<u32> {
    read(&Store::open(path, Access::Read).unwrap().array("a").unwrap())
}

#[test]
fn what_was_saved_is_read() {
    for n in [0, 1, 7, 1023, 1024, 1025, 4096, 300 * 1024, 300 * 1024 + 5] {
        for all in [numbers(n, 1), noise(n, 1), vec![0; n]] {
            let (_dir, path) = temp();
            let store = Store::create(&path).unwrap();
            save(&store, &[n as u64], &all, &SMALL_BLOCKS);
            assert_eq!(load(&path), all, "{n}");
            let array = store.array("a").unwrap();
            assert_eq!(array.codec().unwrap().block_len, 4096);
            let mut npy = vec![0; array.npy_len() as usize];
            assert_eq!(array.read_npy_at(0, &mut npy).unwrap(), npy.len());
            assert_eq!(elements(&npy[array.header_len() as usize..]), all);
            let rows: Vec<u64> = (0..n as u64).rev().step_by(97).collect();
            let mut out = vec![0; rows.len() * 4];
            array.gather_into(&rows, &mut out).unwrap();
            assert_eq!(elements(&out), rows.iter().map(|row| all[*row as usize]).collect::<Vec<_>>());
        }
    }
}

#[test]
fn arrays_that_compress_take_less() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, &[1 << 20], &numbers(1 << 20, 1), &Compression::default());
    let usage = store.array("a").unwrap().usage().unwrap().unwrap();
    assert_eq!((usage.n_blocks, usage.n_raw, usage.n_absent, usage.dead), (64, 0, 0, 0));
    assert!(usage.live < (4 << 20) / 8, "{usage:?}");
    assert!(usage.allocated < usage.live + (64 << 10), "{usage:?}");
}

#[test]
fn rows_are_appended_in_pieces_of_any_size() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let mut all = numbers(5, 0);
    save(&store, &[5], &all, &SMALL_BLOCKS);
    let old = store.array("a").unwrap();
    for (seed, n) in (1..).zip([1, 3, 900, 100, 24, 1024, 1, 2047, 5000, 1, 100_000, 3]) {
        let more = noise(n, seed);
        store.append(&[("a", array(&[n as u64], &bytes(&more)))]).unwrap();
        all.extend(&more);
        assert_eq!(load(&path), all, "{n}");
        assert_eq!(read(&store.array("a").unwrap()), all);
    }
    assert_eq!(read(&old), numbers(5, 0));
}

#[test]
fn an_append_of_a_few_rows_writes_a_few_bytes() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, &[100_000], &numbers(100_000, 0), &Compression::default());
    store.append(&[("a", array(&[1], &bytes(&[1])))]).unwrap();
    let before = std::fs::metadata(path.join("metadata.npkm")).unwrap().len();
    let file = path.join("data_a.npkd");
    let len = std::fs::metadata(&file).unwrap().len();
    for i in 0..100 {
        store.append(&[("a", array(&[1], &bytes(&[i])))]).unwrap();
    }
    assert_eq!(std::fs::metadata(&file).unwrap().len(), len + 400);
    let grown = std::fs::metadata(path.join("metadata.npkm")).unwrap().len() - before;
    assert!(grown < 100 * 200, "{grown}");
}

#[test]
fn what_changed_between_two_states_is_found_by_their_indexes() {
    // From no index page to two levels of them.
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let mut all = numbers(200, 0);
    save(&store, &[200], &all, &SMALL_BLOCKS);
    let array_of = || Store::open(&path, Access::Read).unwrap().array("a").unwrap();
    let mut seed = 1;
    let mut random = |end: usize| {
        seed = u64::wrapping_mul(seed, 0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 33) as usize % end
    };
    let mut earlier = vec![(array_of().blocks_state().unwrap().unwrap(), all.clone())];
    for round in 0..60 {
        for _ in 0..random(3) {
            let at = random(all.len());
            let new = noise((1 + random(3000)).min(all.len() - at), round);
            all[at..at + new.len()].copy_from_slice(&new);
            let rows = at as u64..(at + new.len()) as u64;
            store.replace_range("a", rows, array(&[new.len() as u64], &bytes(&new))).unwrap();
        }
        if round % 3 != 1 {
            let more = noise(if round % 7 == 0 { 200_000 } else { random(1500) }, round + 100);
            all.extend(&more);
            store.append(&[("a", array(&[more.len() as u64], &bytes(&more)))]).unwrap();
        }
        let array = array_of();
        let now = array.blocks_state().unwrap().unwrap();
        assert!(array.changed_between(&now, &now).unwrap().is_empty());
        for (state, elements) in earlier.iter().rev().take(5) {
            let ranges = array.changed_between(state, &now).unwrap();
            let mut copy = elements.clone();
            copy.resize(all.len(), 0);
            let mut end = 0;
            for range in &ranges {
                assert!(range.start >= end && range.start < range.end && range.end <= 4 * all.len() as u64);
                end = range.end;
                let range = range.start as usize / 4..range.end as usize / 4;
                copy[range.clone()].copy_from_slice(&all[range]);
            }
            assert!(copy == all, "{round}: {ranges:?}");
            // And no more than that, to a block.
            let changed = |block: u64| {
                let block = block as usize * 1024..((block as usize + 1) * 1024).min(all.len());
                elements.get(block.clone()) != Some(&all[block])
            };
            let last = (4 * all.len() as u64 - 1) / 4096;
            let is_tight = |range: &std::ops::Range<u64>| {
                (range.start / 4096..range.end.div_ceil(4096)).all(|block| changed(block) || block == last)
            };
            assert!(ranges.iter().all(is_tight), "{round}: {ranges:?}");
        }
        earlier.push((now, all.clone()));
    }
    assert!(all.len() > 256 * 1024);
}

#[test]
fn rows_are_replaced_in_place() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let mut all = numbers(50_000, 0);
    save(&store, &[50_000], &all, &SMALL_BLOCKS);
    let handle = store.array("a").unwrap();
    let other = Store::open(&path, Access::Read).unwrap().array("a").unwrap();
    assert_eq!(read(&other), all);
    for (seed, range) in (1..).zip([0..1, 1023..1025, 1024..3072, 49_999..50_000, 0..50_000, 20_000..20_500])
    {
        let new = noise(range.len(), seed);
        let rows = range.start as u64..range.end as u64;
        store.replace_range("a", rows.clone(), array(&[new.len() as u64], &bytes(&new))).unwrap();
        all[range].copy_from_slice(&new);
        assert_eq!(load(&path), all);
        assert_eq!(read(&handle), all, "an open array shows what was written in place");
        assert_eq!(read(&other), all, "so does that of another handle");
    }
    let rows = [7, 49_000, 7, 3, 2000];
    store.replace("a", &rows, array(&[5], &bytes(&[1, 2, 3, 4, 5]))).unwrap();
    for (row, new) in rows.iter().zip([1, 2, 3, 4, 5]) {
        all[*row as usize] = new;
    }
    assert_eq!(load(&path), all);
}

#[test]
fn rows_are_dropped_and_compacted() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let mut all = numbers(30_000, 0);
    save(&store, &[30_000], &all, &SMALL_BLOCKS);
    let dropped: Vec<u64> = (0..30_000).filter(|row| row % 7 == 3 || (5000..9000).contains(row)).collect();
    store.drop_rows(&["a"], &dropped).unwrap();
    let kept = |row: u64| !dropped.contains(&row);
    let mut row = 0;
    all.retain(|_| {
        row += 1;
        kept(row - 1)
    });
    assert_eq!(load(&path), all);
    store.replace_range("a", 100..2000, array(&[1900], &bytes(&noise(1900, 3)))).unwrap();
    all[100..2000].copy_from_slice(&noise(1900, 3));
    assert_eq!(load(&path), all);
    assert!(store.compact("a").unwrap());
    assert_eq!(load(&path), all);
    let array = store.array("a").unwrap();
    assert_eq!((array.n_deleted(), array.codec().unwrap().block_len), (0, 4096));
    assert_eq!(array.usage().unwrap().unwrap().dead, 0);
    assert!(!store.compact("a").unwrap());
}

#[test]
fn an_array_is_recompressed_either_way() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let all = numbers(200_000, 0);
    save(&store, &[200_000], &all, &SMALL_BLOCKS);
    let old = store.array("a").unwrap();
    let mut seen = Vec::new();
    assert!(store.recompress("a", None, &mut |n| seen.push(n)).unwrap());
    assert_eq!(seen.last(), Some(&800_000));
    assert!(store.array("a").unwrap().codec().is_none());
    assert_eq!(load(&path), all);
    assert!(!store.recompress("a", None, &mut |_| ()).unwrap());
    for filter in [Filter::None, Filter::Shuffle, Filter::Delta] {
        let to = Compression { level: 3, block_len: 65536, filter: Some(filter) };
        assert!(store.recompress("a", Some(&to), &mut |_| ()).unwrap());
        assert!(!store.recompress("a", Some(&to), &mut |_| ()).unwrap());
        assert_eq!(load(&path), all);
        assert_eq!(store.array("a").unwrap().codec().unwrap().filter, filter);
    }
    assert_eq!(read(&old), all);
    let wrong = Compression { block_len: 1000, ..SMALL_BLOCKS };
    let error = store.recompress("a", Some(&wrong), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("block length is 1000"), "{error}");
}

#[test]
fn a_block_that_is_rewritten_often_takes_no_more_than_twice_the_space() {
    for n in [1000, 20_000, 400_000] {
        let (_dir, path) = temp();
        let store = Store::create(&path).unwrap();
        let mut all = noise(n, 0);
        save(&store, &[n as u64], &all, &SMALL_BLOCKS);
        let reader = Store::open(&path, Access::Read).unwrap().array("a").unwrap();
        reader.pin().unwrap();
        for i in 0..2000 {
            let new = noise(100, i);
            store.replace_range("a", 50..150, array(&[100], &bytes(&new))).unwrap();
            all[50..150].copy_from_slice(&new);
            if i % 101 == 0 {
                assert_eq!(read(&reader), all);
            }
        }
        assert_eq!(load(&path), all);
        let usage = store.array("a").unwrap().usage().unwrap().unwrap();
        let live = usage.live + 8192;
        assert!(usage.allocated <= 2 * live, "{n}: {usage:?}");
        let len = std::fs::metadata(path.join("data_a.npkd")).unwrap().len();
        assert!(len <= 2 * live, "{n}: {len} {usage:?}");
    }
}

#[test]
fn a_version_that_is_gone_shows_what_was_written_to_it_last() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, &[3000], &noise(3000, 0), &SMALL_BLOCKS);
    // It sees neither the commits that follow nor the removal.
    let behind = Store::open(&path, Access::Read).unwrap().array("a").unwrap();
    behind.pin().unwrap();
    for i in 1..50 {
        store.replace_range("a", 0..3000, array(&[3000], &bytes(&noise(3000, i)))).unwrap();
    }
    store.remove(&["a"]).unwrap();
    assert_eq!(read(&behind), noise(3000, 49));
}

#[test]
fn ranges_of_the_virtual_file_are_written_back_in_one_commit() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let mut all = numbers(50_000, 0);
    save(&store, &[50_000], &all, &SMALL_BLOCKS);
    let array = store.array("a").unwrap();
    let generation = store.generation();
    let header_len = array.header_len();
    let (first, second) = (bytes(&noise(3000, 1)), bytes(&noise(10, 2)));
    array.write_back(&[(header_len + 400, &first), (header_len + 199_960, &second)]).unwrap();
    all[100..3100].copy_from_slice(&noise(3000, 1));
    all[49_990..].copy_from_slice(&noise(10, 2));
    assert_eq!(load(&path), all);
    assert_eq!(store.generation().0, generation.0 + 1);
    let error = array.write_back(&[(header_len - 1, &second)]).unwrap_err();
    assert!(matches!(error, StoreError::OutOfBounds { .. }), "{error}");
}

#[test]
fn fortran_ordered_arrays_are_compressed_as_they_are() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let (rows, columns) = (5000_u64, 6_u64);
    let stored = numbers((rows * columns) as usize, 0);
    let new = NewArray { fortran_order: true, ..array(&[rows, columns], &[]) };
    store.save_as(&[("a", NewArray { data: &bytes(&stored), ..new })], Some(&SMALL_BLOCKS)).unwrap();
    let array_of = || store.array("a").unwrap();
    assert!(array_of().fortran_order());
    assert_eq!(load(&path), stored);
    let mut out = vec![0; 2 * columns as usize * 4];
    array_of().gather_into(&[4999, 17], &mut out).unwrap();
    let at = |row: u64, column: u64| stored[(column * rows + row) as usize];
    let expected: Vec<u32> = [4999, 17].iter().flat_map(|r| (0..columns).map(move |c| at(*r, c))).collect();
    assert_eq!(elements(&out), expected);
    store.replace_range("a", 17..18, array(&[1, columns], &bytes(&[9; 6]))).unwrap();
    array_of().gather_into(&[17], &mut out[..24]).unwrap();
    assert_eq!(elements(&out[..24]), [9; 6]);
    store.append(&[("a", array(&[1, columns], &bytes(&[8; 6])))]).unwrap();
    assert!(!array_of().fortran_order());
    assert!(array_of().codec().is_some());
    array_of().read_rows_into(5000..5001, &mut out[..24]).unwrap();
    assert_eq!(elements(&out[..24]), [8; 6]);
}

#[test]
fn the_stores_default_is_kept() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    assert_eq!(store.default_compression(), None);
    let compression = Compression { level: 5, block_len: 8192, filter: Some(Filter::Shuffle) };
    store.set_default_compression(Some(&compression)).unwrap();
    let other = Store::open(&path, Access::Write).unwrap();
    assert_eq!(other.default_compression(), Some(compression));
    other.set_default_compression(None).unwrap();
    assert_eq!(Store::open(&path, Access::Read).unwrap().default_compression(), None);
    let wrong = Compression { level: 99, ..compression };
    assert!(store.set_default_compression(Some(&wrong)).is_err());
}

/// Whoever has an array open writes to it under whatever name it has by now.
#[test]
fn an_array_that_was_renamed_is_written_through_an_old_handle() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let mut all = numbers(5000, 0);
    save(&store, &[5000], &all, &SMALL_BLOCKS);
    let old = store.array("a").unwrap();
    let other = Store::open(&path, Access::Read).unwrap().array("a").unwrap();
    assert_eq!(read(&other), all);
    store.rename("a", "b", false).unwrap();
    for i in 0..3 {
        let new = bytes(&noise(20, i));
        old.write_npy_at(old.header_len() + 400 * i, &new).unwrap();
        all[100 * i as usize..][..20].copy_from_slice(&elements(&new));
        assert_eq!(read(&store.array("b").unwrap()), all);
        assert_eq!(read(&Store::open(&path, Access::Read).unwrap().array("b").unwrap()), all);
        assert_eq!(read(&old), all);
        assert_eq!(read(&other), all);
    }
}

#[test]
fn a_flipped_byte_or_a_cut_is_the_right_data_or_an_error_that_names_the_block() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    // Blocks of several kinds, a page, and a tail that grows.
    let mut all = numbers(3 * 1024, 0);
    all[1024..2048].copy_from_slice(&noise(1024, 5));
    save(&store, &[3 * 1024], &all, &SMALL_BLOCKS);
    let more = noise(20, 9);
    store.append(&[("a", array(&[20], &bytes(&more)))]).unwrap();
    all.extend(&more);
    drop(store);
    let file = path.join("data_a.npkd");
    let good = std::fs::read(&file).unwrap();
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&file, bytes).unwrap();
        let array = match Store::open(&path, Access::Read).unwrap().array("a") {
            Ok(array) => array,
            Err(StoreError::DataFile { .. }) => return false,
            Err(error) => panic!("{what}: {error}"),
        };
        let mut out = vec![0; array.nbytes() as usize];
        match array.read_into(&mut out) {
            Ok(()) => assert!(elements(&out) == all, "{what}: other data"),
            Err(error @ StoreError::Block { .. }) => {
                let said = error.to_string();
                assert!(
                    said.contains("\"a\"") && said.contains("block ") && said.contains("at byte "),
                    "{said}"
                );
                return false;
            }
            Err(error) => panic!("{what}: {error}"),
        }
        true
    };
    let mut n_damaged = 0;
    for at in 0..good.len() {
        // Headers are not read for the elements: a sample of them.
        if at < 8192 && at % 61 != 0 {
            continue;
        }
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        n_damaged += usize::from(!check(&bytes, &format!("byte {at}")));
    }
    assert!(n_damaged > (good.len() - 8192) / 3, "{n_damaged} of {}", good.len());
    for len in (0..good.len()).step_by(37) {
        check(&good[..len], &format!("cut at {len}"));
    }
    assert!(check(&good, "whole"));
}
