//! What the random operations found, and what they cannot reach.

use numpack::store::{Access, Attrs, DataFileFault, Dtype, NewArray, Store, StoreError};
use rmpv::Value;
use tempfile::TempDir;

use crate::common::rng::Rng;

fn temp() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::create(&dir.path().join("data.npk")).expect("creates");
    (dir, store)
}

fn bytes_of(n: u64) -> NewArray<'static> {
    static BYTES: [u8; 256] = [7; 256];
    let dtype = Dtype::parse_python("'|u1'").expect("a dtype");
    NewArray { dtype, shape: vec![n], fortran_order: false, data: &BYTES[..n as usize] }
}

/// A header without a space to spare had no room for the text of the shape after a drop, which we write with spaces:
/// such an array was there for `read_into`, but not as a file.
#[test]
fn regression_rows_dropped_of_an_array_with_a_tight_header() {
    let (dir, store) = temp();
    let text = b"{'descr':'|u1','fortran_order':False,'shape':(9,)}";
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((text.len() as u16).to_le_bytes());
    npy.extend(text);
    npy.extend(0..9);
    let file = dir.path().join("x.npy");
    std::fs::write(&file, npy).expect("writes");
    store.import_npy("x", &file, false, None, &mut |_| ()).expect("imports");
    store.drop_rows(&["x"], &[0, 3]).expect("drops");
    let x = store.array("x").expect("is there");
    let mut npy = vec![0; x.npy_len() as usize];
    x.read_npy_at(0, &mut npy).expect("reads");
    assert_eq!(npy[x.header_len() as usize..], [1, 2, 4, 5, 6, 7, 8]);
}

/// A range that ends before it starts is empty, as in Python; its length was computed as a huge number.
#[test]
fn regression_replaced_range_ends_before_it_starts() {
    let (_dir, store) = temp();
    store.save(&[("x", bytes_of(9))]).expect("saves");
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    store.replace_range("x", 5..3, bytes_of(0)).expect("replaces nothing");
}

/// A name that was removed and saved again got the old file name again. Whoever had looked the old version up, but
/// not opened it yet, then read the new one's bytes in the old one's shape.
#[test]
fn regression_a_version_that_is_gone_is_not_read_from_its_successors_file() {
    let (_dir, store) = temp();
    store.save(&[("x", bytes_of(4))]).expect("saves");
    let old = store.record("x").expect("is there");
    store.remove(&["x"]).expect("removes");
    store.save(&[("x", bytes_of(9))]).expect("saves");
    let error = old.read_into(&mut [0; 4]).expect_err("it was removed before it was opened");
    assert!(matches!(error, StoreError::DataFile { what: DataFileFault::Missing, .. }), "{error}");
}

/// The manifest's decoder has a limit to nesting, so a commit of deeper attributes made the store unreadable.
#[test]
fn regression_attributes_nested_too_deeply() {
    let (dir, store) = temp();
    store.save(&[("x", bytes_of(4))]).expect("saves");
    for depth in [1, 64, 65, 100, 1000] {
        let nested = (0..depth).fold(Value::Nil, |value, _| Value::Array(vec![value]));
        let set: Attrs = [("deep".to_owned(), nested)].into();
        let results = [store.set_attrs(None, set.clone(), &[]), store.set_attrs(Some("x"), set.clone(), &[])];
        let reopened = Store::open(&dir.path().join("data.npk"), Access::Read).expect("opens");
        match results {
            [Ok(()), Ok(())] => {
                assert_eq!((&reopened.attrs(), reopened.array("x").unwrap().attrs()), (&set, &set))
            }
            [Err(StoreError::Refused { .. }), Err(StoreError::Refused { .. })] => assert!(depth > 64),
            results => panic!("{depth}: {results:?}"),
        }
    }
}

/// The limit to the nesting of payloads leaves room for the dtypes that are allowed.
#[test]
fn structured_dtypes_nest_as_deep_as_they_may() {
    let (dir, store) = temp();
    let nested = |depth| (0..depth).fold("'|u1'".to_owned(), |descr, _| format!("[('a', {descr})]"));
    let dtype = Dtype::parse_python(&nested(32)).expect("a dtype");
    assert!(Dtype::parse_python(&nested(33)).is_err());
    store.save(&[("x", NewArray { dtype: dtype.clone(), ..bytes_of(3) })]).expect("saves");
    let reopened = Store::open(&dir.path().join("data.npk"), Access::Read).expect("opens");
    assert_eq!(*reopened.array("x").expect("is there").dtype(), dtype);
}

/// Above 8 MiB, threads read parts of an array; with deleted rows, each part begins somewhere in a row.
#[test]
fn large_arrays_are_read_in_parts() {
    let (_dir, store) = temp();
    let (n_rows, row_len) = (4001_u64, 2999);
    let bytes = Rng::new(1).bytes(n_rows as usize * row_len);
    let shape = vec![n_rows, row_len as u64];
    store.save(&[("x", NewArray { shape, data: &bytes, ..bytes_of(0) })]).expect("saves");
    let read = || {
        let x = store.array("x").expect("is there");
        let mut out = vec![0; x.nbytes() as usize];
        x.read_into(&mut out).expect("reads");
        out
    };
    assert!(read() == bytes);
    store.drop_rows(&["x"], &(0..n_rows).filter(|row| row % 7 == 3).collect::<Vec<_>>()).expect("drops");
    let live = |(row, _): &(usize, &[u8])| row % 7 != 3;
    let expected: Vec<&[u8]> = bytes.chunks(row_len).enumerate().filter(live).map(|(_, row)| row).collect();
    assert!(read() == expected.concat());
}
