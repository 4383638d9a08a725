//! Arrays that are made empty and filled by many writers, copied, mapped to be written to, and saved and removed
//! together.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use numpack::store::{Access, Attrs, Compression, Dtype, Filter, NewArray, Store, StoreError};
use numpack::sys::{DirStorage, FileAccess, FileLock, Storage};
use tempfile::TempDir;

const BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: Some(Filter::Shuffle) };

fn temp() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npk");
    (dir, path)
}

fn u32s() -> Dtype {
    Dtype::parse_python("'<u4'").unwrap()
}

fn bytes(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn rows<'a>(shape: &[u64], data: &'a [u8]) -> NewArray<'a> {
    NewArray { dtype: u32s(), shape: shape.to_vec(), fortran_order: false, data }
}

fn values(store: &Store, name: &str) -> Vec<u32> {
    let array = store.array(name).unwrap();
    let mut out = vec![0; array.nbytes() as usize];
    array.read_rows_into(0..array.n_rows(), &mut out).unwrap();
    out.chunks(4).map(|item| u32::from_le_bytes(item.try_into().unwrap())).collect()
}

fn never() -> bool {
    false
}

fn always() -> bool {
    true
}

/// Opens another handle that gives up when it would have to wait.
fn impatient(path: &Path) -> Store {
    let store = Store::open(path, Access::Write).unwrap();
    store.set_interrupt(always);
    store
}

#[test]
fn new_arrays_are_zeros_and_take_no_space() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let shape = [1 << 20, 64];
    for (name, compression) in [("plain", None), ("blocks", Some(&BLOCKS))] {
        store.create_zeros(name, &u32s(), &shape, compression).unwrap();
        let array = store.array(name).unwrap();
        assert_eq!((array.shape(), array.codec().is_some()), (&shape[..], compression.is_some()));
        assert!(array.stat().unwrap().allocated <= 64 << 10, "{name}");
        let mut row = [1; 4 * 64];
        array.read_rows_into((1 << 20) - 1..1 << 20, &mut row).unwrap();
        assert_eq!(row, [0; 4 * 64]);
        assert!(matches!(
            store.create_zeros(name, &u32s(), &[1], compression),
            Err(StoreError::Exists { .. })
        ));
        store.write_rows(name, 77, rows(&[1, 64], &bytes(0..64))).unwrap();
        array.read_rows_into(77..78, &mut row).unwrap();
        assert_eq!(row, *bytes(0..64));
        assert!(store.array(name).unwrap().stat().unwrap().allocated <= 128 << 10, "{name}");
    }
    for (name, shape) in [("none", &[0, 3][..]), ("one", &[]), ("part", &[5])] {
        for (name, compression) in [(name.to_owned(), None), (format!("{name}-blocks"), Some(&BLOCKS))] {
            store.create_zeros(&name, &u32s(), shape, compression).unwrap();
            assert_eq!(values(&store, &name), vec![0; shape.iter().product::<u64>() as usize]);
        }
    }
    store.append(&[("part-blocks", rows(&[2], &bytes([6, 7])))]).unwrap();
    assert_eq!(values(&store, "part-blocks"), [0, 0, 0, 0, 0, 6, 7]);
    assert!(numpack::store::verify(&path).unwrap().problems.is_empty());
}

#[test]
fn regions_are_rows_as_users_count_them() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let all = bytes(0..60);
    for (at, compression) in [None, Some(&BLOCKS)].into_iter().enumerate() {
        let [c, f] = [format!("c{at}"), format!("f{at}")];
        store.save_as(&[(&c, rows(&[20, 3], &all))], compression).unwrap();
        let columns = bytes((0..3).flat_map(|column| (0..20).map(move |row| row * 3 + column)));
        let fortran = NewArray { fortran_order: true, ..rows(&[20, 3], &columns) };
        store.save_as(&[(&f, fortran)], compression).unwrap();
        store.drop_rows(&[&c], &[0, 5, 6]).unwrap();
        for (name, n_rows) in [(&c, 17), (&f, 20)] {
            let mut expected = values(&store, name);
            expected[12..21].copy_from_slice(&[900, 901, 902, 903, 904, 905, 906, 907, 908]);
            store.write_rows(name, 4, rows(&[3, 3], &bytes(900..909))).unwrap();
            assert_eq!(values(&store, name), expected, "{name}");
            for (start, n) in [(n_rows, 1), (n_rows - 2, 3), (u64::MAX, 1)] {
                let beyond = store.write_rows(name, start, rows(&[n, 3], &bytes(0..n as u32 * 3)));
                assert!(matches!(beyond, Err(StoreError::IndexOutOfRange { .. })), "{start}");
            }
            store.write_rows(name, n_rows, rows(&[0, 3], &[])).unwrap();
            let wrong = store.write_rows(name, 0, rows(&[1, 2], &bytes(0..2)));
            assert!(matches!(wrong, Err(StoreError::ShapeMismatch { .. })));
            assert_eq!(values(&store, name), expected, "{name}");
        }
    }
}

#[test]
fn writers_of_regions_wait_for_nobody_who_moves_no_rows() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    store.create_zeros("a", &u32s(), &[100], None).unwrap();
    let storage = DirStorage::open(&path).unwrap();
    let held = storage.lock("metadata.npkm.lock", Duration::ZERO).unwrap();
    let store = impatient(&path);
    store.write_rows("a", 1, rows(&[2], &bytes([1, 2]))).unwrap();
    let error = store.replace_range("a", 1..3, rows(&[2], &bytes([1, 2]))).unwrap_err();
    assert!(matches!(error, StoreError::Interrupted { .. }), "{error}");
    drop(held);
    assert_eq!(values(&store, "a")[..4], [0, 1, 2, 0]);
}

#[test]
fn who_moves_rows_waits_for_writers_of_regions_and_they_for_him() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    store.save(&[("a", rows(&[4], &bytes(0..4)))]).unwrap();
    store.drop_rows(&["a"], &[0]).unwrap();
    let columns = bytes([0, 2, 1, 3]);
    let fortran = NewArray { fortran_order: true, ..rows(&[2, 2], &columns) };
    store.save(&[("f", fortran)]).unwrap();
    let storage = DirStorage::open(&path).unwrap();
    let hold = |name: &str, lock| {
        let file = store.record(name).unwrap().file_name().to_owned();
        storage.open_locked(&file, lock, Duration::ZERO).unwrap()
    };
    let gives_up = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::Interrupted { .. })), "{result:?}");
    };
    let other = impatient(&path);
    {
        let _held = (hold("a", FileLock::Shared), hold("f", FileLock::Shared));
        gives_up(other.compact("a").map(|_| ()));
        gives_up(other.recompress("a", Some(&BLOCKS), &mut |_| ()).map(|_| ()));
        gives_up(other.append(&[("f", rows(&[1, 2], &bytes([4, 5])))]));
        gives_up(other.drop_rows(&["f"], &[0]));
        other.write_rows("a", 0, rows(&[1], &bytes([10]))).unwrap();
        other.append(&[("a", rows(&[1], &bytes([4])))]).unwrap();
    }
    {
        let _held = hold("a", FileLock::Exclusive);
        gives_up(other.write_rows("a", 0, rows(&[1], &bytes([11]))));
    }
    assert!(other.compact("a").unwrap());
    assert!(storage.open("data_a.npkd", FileAccess::Read).is_err(), "the old file is gone");
    assert_eq!(values(&store, "a"), [10, 2, 3, 4]);
    assert_eq!(values(&store, "f"), [0, 1, 2, 3]);
}

#[test]
fn nothing_that_is_written_is_lost_while_the_rows_move() {
    const N_WRITERS: u32 = 3;
    const N_EACH: u32 = 40;
    const N_ROUNDS: u32 = 60;
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    // Rows behind those that are written, to be dropped one by one.
    let n_rows = u64::from(N_WRITERS * N_EACH + N_ROUNDS);
    store.create_zeros("a", &u32s(), &[n_rows], None).unwrap();
    thread::scope(|scope| {
        for writer in 0..N_WRITERS {
            let path = &path;
            scope.spawn(move || {
                let store = Store::open(path, Access::Write).unwrap();
                for round in 1..=N_ROUNDS {
                    for row in 0..N_EACH {
                        let at = u64::from(writer * N_EACH + row);
                        store.write_rows("a", at, rows(&[1], &bytes([round]))).unwrap();
                    }
                    let all = values(&store, "a");
                    let own = &all[(writer * N_EACH) as usize..][..N_EACH as usize];
                    assert!(own.iter().all(|value| *value == round), "round {round}: {own:?}");
                }
            });
        }
        for round in 0..N_ROUNDS {
            store.drop_rows(&["a"], &[n_rows - 1 - u64::from(round)]).unwrap();
            assert!(store.compact("a").unwrap());
            if round % 20 == 10 {
                assert!(store.recompress("a", Some(&BLOCKS), &mut |_| ()).unwrap());
            } else if round % 20 == 15 {
                assert!(store.recompress("a", None, &mut |_| ()).unwrap());
            }
        }
    });
    assert_eq!(values(&store, "a"), vec![N_ROUNDS; (N_WRITERS * N_EACH) as usize]);
}

#[test]
fn watchers_are_told_of_regions_and_of_mappings() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    store.create_zeros("a", &u32s(), &[1000], None).unwrap();
    let generation = |store: &Store| {
        store.refresh().unwrap();
        store.generation()
    };
    let watcher = Store::open(&path, Access::Read).unwrap();
    let before = generation(&watcher);
    store.write_rows("a", 0, rows(&[1], &bytes([1]))).unwrap();
    assert_eq!(generation(&watcher), before, "nobody watches");
    let watch = watcher.watch().unwrap();
    store.write_rows("a", 0, rows(&[1], &bytes([1]))).unwrap();
    assert_eq!(generation(&watcher).0, before.0 + 1);
    store.array("a").unwrap().tell_mapped().unwrap();
    assert_eq!(generation(&watcher).0, before.0 + 2);
    drop(watch);
    store.write_rows("a", 0, rows(&[1], &bytes([1]))).unwrap();
    assert_eq!(generation(&watcher).0, before.0 + 2);
}

#[test]
#[expect(unsafe_code, reason = "a mapping is reached by a pointer")]
fn what_is_written_to_a_mapping_is_in_the_array() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    store.save(&[("a", rows(&[1000], &bytes(0..1000)))]).unwrap();
    let array = store.array("a").unwrap();
    let map = array.map_mut().unwrap().unwrap();
    assert_eq!(map.len(), 4000);
    // SAFETY: the map has 4000 bytes, and nobody reads them meanwhile.
    unsafe { map.as_mut_ptr().add(4 * 700).copy_from_nonoverlapping([1, 2, 3, 4].as_ptr(), 4) };
    assert_eq!(values(&store, "a")[700], 0x0403_0201);
    let before = array.modified().unwrap();
    array.tell_mapped().unwrap();
    assert!(array.modified().unwrap() >= before);
    store.sync().unwrap();

    store.drop_rows(&["a"], &[0]).unwrap();
    assert!(store.array("a").unwrap().map_mut().unwrap().is_none(), "a dropped row lies between");
    store.recompress("a", Some(&BLOCKS), &mut |_| ()).unwrap();
    assert!(store.array("a").unwrap().map_mut().unwrap().is_none(), "compressed");
    let reading = Store::open(&path, Access::Read).unwrap();
    assert!(matches!(reading.array("a").unwrap().map_mut(), Err(StoreError::ReadOnly { .. })));
}

#[test]
fn only_blocks_that_differ_are_written_anew() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    // A row is half a block; the last one is a tail by itself.
    let mut expected: Vec<u32> = (0..512 * 9).collect();
    store.save_as(&[("a", rows(&[9, 512], &bytes(expected.clone())))], Some(&BLOCKS)).unwrap();
    let dead = || store.array("a").unwrap().dead_len();
    let write = |start: u64, values: &[u32]| {
        let n_rows = values.len() as u64 / 512;
        store.replace_changed("a", start, rows(&[n_rows, 512], &bytes(values.iter().copied()))).unwrap();
    };
    let before = (store.generation(), dead());
    write(0, &expected);
    assert_eq!((store.generation(), dead()), before, "nothing differs");

    expected[512 * 3 + 7] = 1 << 30;
    write(0, &expected);
    assert_eq!(store.generation().0, before.0.0 + 1);
    assert!((1..3000).contains(&(dead() - before.1)), "one block and one page: {}", dead());
    assert_eq!(values(&store, "a"), expected);

    expected[512 * 8] = 7;
    expected[512 * 5 + 1] = 8;
    write(5, &expected[512 * 5..]);
    assert_eq!(values(&store, "a"), expected);

    store.drop_rows(&["a"], &[1, 4]).unwrap();
    let mut expected = values(&store, "a");
    expected[512 * 3 + 5] = 9;
    write(2, &expected[512 * 2..512 * 5]);
    assert_eq!(values(&store, "a"), expected);
    let beyond = store.replace_changed("a", 6, rows(&[2, 512], &bytes(0..1024)));
    assert!(matches!(beyond, Err(StoreError::IndexOutOfRange { .. })));
}

fn attrs(text: &str) -> Attrs {
    [("of".to_owned(), text.into())].into()
}

#[test]
fn copies_are_like_the_array_and_apart_from_it() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let all = bytes(0..4000);
    for (name, compression) in [("plain", None), ("blocks", Some(&BLOCKS))] {
        store.save_as(&[(name, rows(&[1000, 4], &all))], compression).unwrap();
        store.set_attrs(Some(name), attrs(name), &[]).unwrap();
        let copy = format!("{name}-copy");
        store.copy_array(name, &copy).unwrap();
        store.write_rows(name, 0, rows(&[1, 4], &bytes([9; 4]))).unwrap();
        assert_eq!(values(&store, &copy), (0..4000).collect::<Vec<_>>());
        let (array, of) = (store.array(&copy).unwrap(), store.array(name).unwrap());
        assert_eq!((array.attrs(), array.codec()), (of.attrs(), of.codec()));
        store.set_attrs(Some(name), attrs("another"), &[]).unwrap();
        assert_eq!(*store.array(&copy).unwrap().attrs(), attrs(name));

        store.drop_rows(&[name], &[1, 2, 3]).unwrap();
        let logical = format!("{name}-logical");
        store.copy_array(name, &logical).unwrap();
        let copy = store.array(&logical).unwrap();
        assert_eq!((copy.shape(), copy.n_deleted()), (&[997, 4][..], 0));
        assert_eq!(values(&store, &logical), values(&store, name));
    }
    let six = bytes(0..6);
    store.save(&[("f", NewArray { fortran_order: true, ..rows(&[2, 3], &six) })]).unwrap();
    store.copy_array("f", "f-copy").unwrap();
    assert!(store.array("f-copy").unwrap().fortran_order());
    assert_eq!(values(&store, "f-copy"), values(&store, "f"));
    assert!(matches!(store.copy_array("x", "f"), Err(StoreError::NotFound { .. })));
    for target in ["plain", "f"] {
        assert!(matches!(store.copy_array("f", target), Err(StoreError::Exists { .. })));
    }
    assert!(matches!(store.copy_array("f", "a\0b"), Err(StoreError::Refused { .. })));
}

#[test]
fn what_is_saved_and_removed_together_is_one_commit() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let four = bytes(0..4);
    store.save_as(&[("blocks", rows(&[4], &four))], Some(&BLOCKS)).unwrap();
    store
        .save(&[("plain", rows(&[4], &four)), ("gone", rows(&[4], &four)), ("both", rows(&[4], &four))])
        .unwrap();
    store.set_attrs(Some("both"), attrs("both"), &[]).unwrap();
    let before = store.generation();
    let eight = bytes(0..8);
    let new = || rows(&[8], &eight);
    let save = [("blocks", new()), ("both", new()), ("new", new()), ("new", rows(&[4], &four))];
    store.save_and_remove(&save, &["gone", "both", "missing", "gone"], Some(&BLOCKS)).unwrap();
    assert_eq!(store.generation().0, before.0 + 1);
    let names: Vec<_> = store.names().iter().map(|name| name.to_string()).collect();
    assert_eq!(names, ["blocks", "plain", "both", "new"]);
    assert_eq!(store.array("blocks").unwrap().codec().copied(), BLOCKS.codec(Filter::Shuffle).ok());
    assert!(store.array("new").unwrap().codec().is_some(), "nothing was there to be like");
    assert!(store.array("both").unwrap().codec().is_none());
    assert_eq!(*store.array("both").unwrap().attrs(), attrs("both"));
    assert_eq!((values(&store, "both").len(), values(&store, "new").len()), (8, 4));
    store.save_and_remove(&[], &[], None).unwrap();
    assert_eq!(store.generation().0, before.0 + 1, "nothing to commit");
}

#[test]
fn the_wait_for_other_writers_can_be_cut_short() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    store.set_interrupt(never);
    store.save(&[("a", rows(&[4], &bytes(0..4)))]).unwrap();
    let storage = DirStorage::open(&path).unwrap();
    let held = storage.lock("metadata.npkm.lock", Duration::ZERO).unwrap();
    let other = impatient(&path);
    let error = other.remove(&["a"]).unwrap_err();
    assert!(error.to_string().ends_with("in use: the wait for other writers was interrupted"), "{error}");
    thread::scope(|scope| {
        // One thread waits for the other writer, and one for the thread: both give up.
        let waiting = [scope.spawn(|| other.remove(&["a"])), scope.spawn(|| other.remove(&["a"]))];
        for thread in waiting {
            assert!(matches!(thread.join().unwrap(), Err(StoreError::Interrupted { .. })));
        }
        let waiting = scope.spawn(|| store.remove(&["a"]));
        drop(held);
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
    });
}
