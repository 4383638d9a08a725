//! The store through its public face: what each operation does to the arrays, and what it refuses.

use std::path::Path;

use numpack::store::{Access, Array, Attrs, ChangeKind, Dtype, NewArray, NotAStore, Store, StoreError};
use tempfile::TempDir;

fn temp() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("data.npk");
    (dir, path)
}

/// Elements `first..` of an array of `u32` with the given shape.
fn numbers(shape: &[u64], first: u32) -> Vec<u8> {
    let len = shape.iter().product::<u64>() as u32;
    (first..first + len).flat_map(u32::to_le_bytes).collect()
}

fn array<'a>(shape: &[u64], data: &'a [u8]) -> NewArray<'a> {
    NewArray { dtype: u32_dtype(), shape: shape.to_vec(), fortran_order: false, data }
}

fn u32_dtype() -> Dtype {
    Dtype::parse_python("'<u4'").unwrap()
}

fn save(store: &Store, name: &str, shape: &[u64], first: u32) {
    store.save(&[(name, array(shape, &numbers(shape, first)))]).unwrap();
}

fn elements(array: &Array) -> Vec<u32> {
    let mut out = vec![0; array.nbytes() as usize];
    array.read_into(&mut out).unwrap();
    u32s(&out)
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn data_files(path: &Path) -> Vec<String> {
    let mut files: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|file| file.starts_with("data_") || file.starts_with("tmp_"))
        .collect();
    files.sort();
    files
}

#[test]
fn arrays_survive_reopening_in_the_order_of_their_first_save() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "b", &[3, 2], 0);
    store.save(&[("a/x", array(&[], &numbers(&[], 7))), ("", array(&[0, 5], &[]))]).unwrap();
    save(&store, "b", &[1], 9);
    let reader = Store::open(&path, Access::Read).unwrap();
    assert_eq!(reader.names().iter().map(|n| &**n).collect::<Vec<_>>(), ["b", "a/x", ""]);
    assert_eq!(elements(&reader.array("b").unwrap()), [9]);
    assert_eq!(elements(&reader.array("a/x").unwrap()), [7]);
    assert_eq!(reader.array("").unwrap().shape(), [0, 5]);
    assert_eq!(reader.generation().0, 3);
    assert!(matches!(Store::create(&path), Err(StoreError::StoreExists { .. })));
}

#[test]
fn a_data_file_is_a_npy_file() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[2, 2], 5);
    let bytes = std::fs::read(path.join("data_a.npkd")).unwrap();
    assert_eq!(bytes.len(), 4096 + 16);
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"));
    assert_eq!(u32s(&bytes[4096..]), [5, 6, 7, 8]);
    let mut virtual_npy = vec![0; bytes.len() + 9];
    assert_eq!(store.array("a").unwrap().read_npy_at(0, &mut virtual_npy).unwrap(), bytes.len());
    assert_eq!(virtual_npy[..bytes.len()], bytes);
}

#[test]
fn readers_of_an_overwritten_array_keep_it() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[3], 0);
    let old = store.array("a").unwrap();
    let map = old.map().unwrap().unwrap();
    save(&store, "a", &[5], 100);
    assert_eq!(elements(&old), [0, 1, 2]);
    assert_eq!(u32s(&map), [0, 1, 2]);
    assert_eq!(elements(&store.array("a").unwrap()), [100, 101, 102, 103, 104]);
    store.remove(&["a", "a", "missing"]).unwrap();
    assert_eq!(elements(&old), [0, 1, 2]);
    drop((old, store));
    assert_eq!(u32s(&map), [0, 1, 2]);
    assert_eq!(data_files(&path), Vec::<String>::new());
}

#[test]
fn appended_rows_follow_and_old_maps_stay() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[2, 2], 0);
    let before = store.array("a").unwrap();
    let map = before.map().unwrap().unwrap();
    for i in 1..100 {
        store.append(&[("a", array(&[2, 2], &numbers(&[2, 2], 4 * i)))]).unwrap();
    }
    assert_eq!(elements(&store.array("a").unwrap()), (0..400).collect::<Vec<_>>());
    assert_eq!(elements(&before), [0, 1, 2, 3]);
    assert_eq!(map.len(), 16);
    // The header in the file follows.
    let bytes = std::fs::read(path.join("data_a.npkd")).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..128]).contains("'shape': (200, 2)"));
}

#[test]
fn append_to_several_arrays_is_all_or_none() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[2], 0);
    save(&store, "b", &[2, 3], 0);
    let rows = numbers(&[3], 50);
    let error = store.append(&[("a", array(&[3], &rows)), ("b", array(&[3], &rows))]).unwrap_err();
    assert!(matches!(error, StoreError::ShapeMismatch { .. }), "{error}");
    let error = store.append(&[("a", array(&[3], &rows)), ("c", array(&[3], &rows))]).unwrap_err();
    assert!(error.to_string().contains("array \"c\" does not exist"), "{error}");
    let error = store.append(&[("a", array(&[3], &rows)), ("a", array(&[3], &rows))]).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    let wide = NewArray { dtype: Dtype::parse_python("'<u8'").unwrap(), ..array(&[1], &[0; 8]) };
    let error = store.append(&[("a", wide)]).unwrap_err();
    assert!(matches!(error, StoreError::DtypeMismatch { .. }), "{error}");
    assert_eq!(elements(&store.array("a").unwrap()), [0, 1]);
}

#[test]
fn dropped_rows_are_gone_and_compaction_gives_their_space_back() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[10], 0);
    store.drop_rows(&["a", "missing"], &[0, 3, 3, 9, 100]).unwrap();
    store.drop_rows(&["a"], &[0]).unwrap(); // row 1 of before
    store.append(&[("a", array(&[2], &numbers(&[2], 50)))]).unwrap();
    store.replace("a", &[0, 7], array(&[2], &numbers(&[2], 90))).unwrap();
    let expected = [90, 4, 5, 6, 7, 8, 50, 91];
    let check = |store: &Store, n_deleted: u64| {
        let a = store.array("a").unwrap();
        assert_eq!(elements(&a), expected);
        assert_eq!((a.shape(), a.n_deleted()), (&[8][..], n_deleted));
        assert_eq!(a.map().unwrap().is_none(), n_deleted > 0);
        let mut npy = vec![0; a.npy_len() as usize];
        assert_eq!(a.read_npy_at(0, &mut npy).unwrap(), npy.len());
        assert!(String::from_utf8_lossy(&npy[..128]).contains("'shape': (8,)"));
        assert_eq!(u32s(&npy[4096..]), expected);
        let mut rows = vec![0; 12];
        a.gather_into(&[7, 0, 7], &mut rows).unwrap();
        assert_eq!(u32s(&rows), [91, 90, 91]);
        a.read_rows_into(2..5, &mut rows).unwrap();
        assert_eq!(u32s(&rows), [5, 6, 7]);
        for offset in 4090..4100 {
            let mut part = [0; 11];
            let read = a.read_npy_at(offset, &mut part).unwrap();
            assert_eq!(part[..read], npy[offset as usize..][..11]);
        }
    };
    check(&store, 4);
    check(&Store::open(&path, Access::Read).unwrap(), 4);
    assert!(store.compact("a").unwrap());
    assert!(!store.compact("a").unwrap());
    check(&store, 0);
    assert_eq!(data_files(&path).len(), 1);
    store.drop_rows(&["a"], &(0..8).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.array("a").unwrap().shape(), [0]);
}

#[test]
fn fortran_order_is_kept_until_rows_come_or_go() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    // [[0, 1, 2], [3, 4, 5]] column by column
    let columns: Vec<u8> = [0_u32, 3, 1, 4, 2, 5].iter().flat_map(|n| n.to_le_bytes()).collect();
    let fortran = NewArray { fortran_order: true, ..array(&[2, 3], &columns) };
    store.save(&[("f", fortran.clone()), ("g", fortran.clone()), ("h", fortran)]).unwrap();
    let f = store.array("f").unwrap();
    assert!(f.fortran_order());
    assert_eq!(elements(&f), [0, 3, 1, 4, 2, 5]);
    let mut rows = vec![0; 24];
    f.read_rows_into(0..2, &mut rows).unwrap();
    assert_eq!(u32s(&rows), [0, 1, 2, 3, 4, 5]);
    f.gather_into(&[1, 1], &mut rows).unwrap();
    assert_eq!(u32s(&rows), [3, 4, 5, 3, 4, 5]);
    store.replace("f", &[1], array(&[1, 3], &numbers(&[1, 3], 70))).unwrap();
    assert_eq!(elements(&store.array("f").unwrap()), [0, 70, 1, 71, 2, 72]);
    store.append(&[("g", array(&[1, 3], &numbers(&[1, 3], 6)))]).unwrap();
    let g = store.array("g").unwrap();
    assert!(!g.fortran_order());
    assert_eq!(elements(&g), (0..9).collect::<Vec<_>>());
    store.drop_rows(&["h"], &[0]).unwrap();
    assert_eq!(elements(&store.array("h").unwrap()), [3, 4, 5]);
}

#[test]
fn two_handles_see_each_others_commits() {
    let (_dir, path) = temp();
    let one = Store::create(&path).unwrap();
    let two = Store::open(&path, Access::Write).unwrap();
    let reader = Store::open(&path, Access::Read).unwrap();
    reader.track_changes();
    save(&one, "a", &[2], 0);
    assert_eq!(elements(&two.array("a").unwrap()), [0, 1]);
    two.append(&[("a", array(&[1], &numbers(&[1], 2)))]).unwrap();
    one.append(&[("a", array(&[1], &numbers(&[1], 3)))]).unwrap();
    two.rename("a", "b", false).unwrap();
    assert!(matches!(one.array("a"), Err(StoreError::NotFound { .. })));
    assert_eq!(elements(&reader.array("b").unwrap()), [0, 1, 2, 3]);
    let kinds: Vec<String> = reader.refresh().unwrap().iter().map(|c| format!("{:?}", c.kind)).collect();
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    assert!(reader.refresh().unwrap().is_empty());
}

#[test]
fn a_new_snapshot_is_found_by_all_handles() {
    let (_dir, path) = temp();
    let one = Store::create(&path).unwrap();
    let two = Store::open(&path, Access::Read).unwrap();
    let ino = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path.join("metadata.npkm")).unwrap());
    save(&one, "a", &[1], 0);
    let first = ino();
    let mut n = 1;
    while ino() == first {
        one.append(&[("a", array(&[1], &numbers(&[1], n)))]).unwrap();
        n += 1;
        assert!(n < 10_000, "no snapshot was published");
    }
    assert_eq!(two.array("a").unwrap().n_rows(), u64::from(n));
    one.append(&[("a", array(&[1], &numbers(&[1], n)))]).unwrap();
    assert_eq!(elements(&two.array("a").unwrap()), (0..=n).collect::<Vec<_>>());
    assert_eq!(
        ino(),
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path.join("metadata.npkm.bak")).unwrap())
    );
}

#[test]
fn an_append_costs_what_it_changes() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let one = numbers(&[1, 10], 0);
    let names: Vec<String> = (0..2000).map(|i| format!("array{i}")).collect();
    store.save(&names.iter().map(|name| (name.as_str(), array(&[1, 10], &one))).collect::<Vec<_>>()).unwrap();
    let manifest = || std::fs::metadata(path.join("metadata.npkm")).unwrap().len();
    let before = manifest();
    let set: Attrs = [("note".to_owned(), rmpv::Value::from("x".repeat(5000)))].into();
    store.set_attrs(Some("array7"), set, &[]).unwrap();
    let with_attrs = manifest();
    store.append(&[("array7", array(&[100, 10], &numbers(&[100, 10], 10)))]).unwrap();
    assert!(manifest() - with_attrs < 256, "{} bytes", manifest() - with_attrs);
    assert!(with_attrs - before < 6000);
    store.drop_rows(&["array7"], &[3, 50, 77]).unwrap();
    assert!(manifest() - with_attrs < 512, "{} bytes", manifest() - with_attrs);
}

#[test]
fn in_place_writes_reach_the_rows_and_never_the_header() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[4], 0);
    let a = store.array("a").unwrap();
    a.write_npy_at(4096 + 4, &7_u32.to_le_bytes()).unwrap();
    let mut page = vec![0; 4096 + 16];
    a.read_npy_at(0, &mut page).unwrap();
    page[4096] = 9;
    a.write_npy_at(0, &page).unwrap();
    assert_eq!(elements(&a), [9, 7, 2, 3]);
    page[0] = 0;
    assert!(matches!(a.write_npy_at(0, &page), Err(StoreError::HeaderWrite { .. })));
    assert!(matches!(a.write_npy_at(4096 + 13, &[0; 4]), Err(StoreError::OutOfBounds { .. })));
    let reader = Store::open(&path, Access::Read).unwrap();
    assert!(matches!(reader.array("a").unwrap().write_npy_at(4096, &[1]), Err(StoreError::ReadOnly { .. })));
    assert_eq!(elements(&reader.array("a").unwrap()), [9, 7, 2, 3]);
}

#[test]
fn in_place_writes_are_told_to_those_who_watch() {
    let (_dir, path) = temp();
    let writer = Store::create(&path).unwrap();
    save(&writer, "a", &[4], 0);
    let watcher = Store::open(&path, Access::Read).unwrap();
    watcher.track_changes();
    let generation = || Store::open(&path, Access::Read).unwrap().generation();
    let before = generation();
    writer.replace("a", &[1], array(&[1], &numbers(&[1], 9))).unwrap();
    assert_eq!(generation(), before, "nobody watches, so nothing is committed");
    let guard = watcher.watch().unwrap();
    writer.replace("a", &[2], array(&[1], &numbers(&[1], 9))).unwrap();
    writer.array("a").unwrap().write_npy_at(4096, &[1]).unwrap();
    let changes = watcher.refresh().unwrap();
    assert_eq!(
        changes.iter().map(|c| (&c.kind, c.is_own)).collect::<Vec<_>>(),
        [(&ChangeKind::Written, false), (&ChangeKind::Written, false)]
    );
    drop(guard);
    writer.replace("a", &[3], array(&[1], &numbers(&[1], 9))).unwrap();
    assert!(watcher.refresh().unwrap().is_empty());
}

#[test]
fn replace_takes_the_last_of_duplicates_and_checks_first() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[5], 0);
    store.replace("a", &[1, 3, 1], array(&[3], &numbers(&[3], 10))).unwrap();
    store.replace_range("a", 3..5, array(&[2], &numbers(&[2], 20))).unwrap();
    assert_eq!(elements(&store.array("a").unwrap()), [0, 12, 2, 20, 21]);
    let error = store.replace("a", &[0, 5], array(&[2], &numbers(&[2], 0))).unwrap_err();
    assert!(matches!(error, StoreError::IndexOutOfRange { index: 5, n_rows: 5, .. }), "{error}");
    let error = store.replace("a", &[0, 1, 2], array(&[2], &numbers(&[2], 0))).unwrap_err();
    assert!(matches!(error, StoreError::RowCount { found: 2, expected: 3, .. }), "{error}");
    assert_eq!(elements(&store.array("a").unwrap()), [0, 12, 2, 20, 21]);
}

#[test]
fn npy_files_are_imported_byte_for_byte() {
    let (dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let npy = dir.path().join("x.npy");
    let mut bytes =
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u4', 'fortran_order': False, 'shape': (3,), }".to_vec();
    bytes.resize(127, b' ');
    bytes.push(b'\n');
    bytes.extend(numbers(&[3], 40));
    bytes.extend(b"what follows the array is not part of it");
    std::fs::write(&npy, &bytes).unwrap();
    let mut copied = 0;
    store.import_npy("x", &npy, false, None, &mut |n| copied = n).unwrap();
    assert_eq!(copied, 140);
    assert_eq!(std::fs::read(path.join("data_x.npkd")).unwrap(), bytes[..140]);
    assert!(matches!(store.import_npy("x", &npy, false, None, &mut |_| ()), Err(StoreError::Exists { .. })));
    store.append(&[("x", array(&[2], &numbers(&[2], 43)))]).unwrap();
    let x = store.array("x").unwrap();
    assert_eq!((elements(&x), x.header_len()), ((40..45).collect(), 128));
    assert!(x.backing().unwrap().is_some());
    // Refused, by the file's name.
    std::fs::write(&npy, &bytes[..139]).unwrap();
    let error = store.import_npy("y", &npy, false, None, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("x.npy") && error.contains("139"), "{error}");
    std::fs::write(&npy, b"PK\x03\x04").unwrap();
    let error = store.import_npy("y", &npy, false, None, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("x.npy") && error.contains(".npy file"), "{error}");
    assert!(store.import_npy("y", dir.path(), false, None, &mut |_| ()).is_err());
    assert_eq!(data_files(&path).len(), 1);
}

#[test]
fn an_append_that_outgrows_the_header_moves_the_array() {
    let (dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let npy = dir.path().join("x.npy");
    let text = "{'descr': '<u4', 'fortran_order': False, 'shape': (9,)}\n";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(numbers(&[9], 0));
    std::fs::write(&npy, &bytes).unwrap();
    store.import_npy("x", &npy, false, None, &mut |_| ()).unwrap();
    let before = store.array("x").unwrap();
    store.append(&[("x", array(&[1], &numbers(&[1], 9)))]).unwrap();
    let x = store.array("x").unwrap();
    assert_eq!((elements(&x), x.header_len()), ((0..10).collect(), 4096));
    assert!(x.backing().unwrap().is_some());
    assert_eq!(elements(&before), (0..9).collect::<Vec<_>>());
    assert_eq!(data_files(&path), ["data_x~2.npkd"]);
}

#[test]
fn names_are_kept_whatever_they_hold() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let names = [
        "",
        ".",
        "..",
        "../../x",
        "a/b",
        "metadata.npkm",
        "\u{6570}\u{7ec4}",
        "tab\tnewline\n",
        "~1",
        "%41",
        "A",
        "a",
    ];
    let long = "\u{e9}".repeat(2000);
    for (i, name) in names.iter().copied().chain([long.as_str()]).enumerate() {
        save(&store, name, &[1], i as u32);
    }
    let reader = Store::open(&path, Access::Read).unwrap();
    for (i, name) in names.iter().copied().chain([long.as_str()]).enumerate() {
        assert_eq!(elements(&reader.array(name).unwrap()), [i as u32], "{name:?}");
    }
    for bad in ["a\0b", &"x".repeat(5000)] {
        assert!(matches!(store.save(&[(bad, array(&[], &[0; 4]))]), Err(StoreError::Refused { .. })));
    }
}

#[test]
fn what_is_no_store_is_named_and_not_touched() {
    let (dir, path) = temp();
    let found = |path: &Path| match Store::open(path, Access::Read) {
        Err(StoreError::NotAStore { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(&path), NotAStore::Missing);
    assert_eq!(found(dir.path()), NotAStore::NoManifest);
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    assert_eq!(found(&dir.path().join("file")), NotAStore::NotADirectory);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("data_a.npkd"), b"x").unwrap();
    assert_eq!(found(&path), NotAStore::ManifestLost);
    assert!(Store::open_or_create(&path).is_err());
    assert_eq!(data_files(&path), ["data_a.npkd"]);
    std::fs::write(path.join("metadata.npkm"), b"NPKB\x01\0\0\0").unwrap();
    assert!(matches!(Store::open(&path, Access::Read), Err(StoreError::Format { .. })));
    assert!(Store::open_or_create(&path).is_err());
    assert_eq!(std::fs::read(path.join("metadata.npkm")).unwrap(), b"NPKB\x01\0\0\0");
}

#[test]
fn a_removed_store_leaves_foreign_files() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[1], 0);
    let a = store.array("a").unwrap();
    Store::remove_all(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(elements(&a), [0]);
    assert!(store.refresh().is_err());
    assert!(store.save(&[("b", array(&[], &[0; 4]))]).is_err());
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[1], 5);
    std::fs::write(path.join("notes.txt"), b"mine").unwrap();
    Store::remove_all(&path).unwrap();
    assert_eq!(std::fs::read(path.join("notes.txt")).unwrap(), b"mine");
    assert_eq!(data_files(&path), Vec::<String>::new());
}

#[test]
fn leftovers_of_a_writer_that_died_are_swept_by_the_next() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[1], 0);
    drop(store);
    // As if it had died between naming the file and the commit.
    let names = "data_b.npkd\ndata_a.npkd";
    let mut intent = (names.len() as u32).to_le_bytes().to_vec();
    intent.extend(crc32fast::hash(names.as_bytes()).to_le_bytes());
    intent.extend(names.as_bytes());
    std::fs::write(path.join("metadata.npkm.lock"), intent).unwrap();
    std::fs::write(path.join("data_b.npkd"), b"torn").unwrap();
    std::fs::write(path.join("data_foreign.npkd"), b"not ours to remove").unwrap();
    let store = Store::open(&path, Access::Write).unwrap();
    save(&store, "c", &[1], 0);
    assert_eq!(data_files(&path), ["data_a.npkd", "data_c.npkd", "data_foreign.npkd"]);
    let report = numpack::store::verify(&path).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.leftovers, ["data_foreign.npkd"]);
}

#[test]
fn a_missing_or_short_data_file_is_named() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[100], 0);
    save(&store, "b", &[100], 0);
    save(&store, "c", &[100], 0);
    drop(store);
    std::fs::remove_file(path.join("data_a.npkd")).unwrap();
    std::fs::OpenOptions::new().write(true).open(path.join("data_b.npkd")).unwrap().set_len(4200).unwrap();
    std::fs::remove_file(path.join("data_c.npkd")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", path.join("data_c.npkd")).unwrap();
    let store = Store::open(&path, Access::Write).unwrap();
    for (name, what) in [("a", "missing"), ("b", "4200 bytes"), ("c", "link")] {
        let error = store.array(name).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(&format!("data_{name}.npkd")), "{error}");
    }
    let report = numpack::store::verify(&path).unwrap();
    assert_eq!(report.problems.len(), 3, "{:?}", report.problems);
}

#[test]
fn a_lagging_header_is_mended() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[2], 0);
    let header = std::fs::read(path.join("data_a.npkd")).unwrap()[..4096].to_vec();
    store.append(&[("a", array(&[1], &numbers(&[1], 2)))]).unwrap();
    // As if the writer had died between the commit and the header.
    let file = std::fs::OpenOptions::new().write(true).open(path.join("data_a.npkd")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &header, 0).unwrap();
    let a = Store::open(&path, Access::Read).unwrap().array("a").unwrap();
    assert!(a.backing().unwrap().is_none());
    let mut text = vec![0; 128];
    a.read_npy_at(0, &mut text).unwrap();
    assert!(String::from_utf8_lossy(&text).contains("(3,)"));
    let a = store.array("a").unwrap();
    assert!(a.mend().unwrap());
    assert!(!a.mend().unwrap());
    assert!(a.backing().unwrap().is_some());
}

/// Versions of another store may have the same numbers.
#[test]
fn a_store_that_was_made_anew_has_other_arrays() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    save(&store, "a", &[3], 0);
    let old = store.array("a").unwrap();
    store.track_changes();
    std::fs::write(path.join("notes.txt"), "keeps the folder").unwrap();
    Store::remove_all(&path).unwrap();
    let anew = Store::create(&path).unwrap();
    save(&anew, "a", &[2], 7);
    assert_eq!(elements(&store.array("a").unwrap()), [7, 8]);
    let kinds: Vec<ChangeKind> = store.refresh().unwrap().into_iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [ChangeKind::Removed, ChangeKind::Added]);
    assert_eq!(elements(&old), [0, 1, 2]);
}
