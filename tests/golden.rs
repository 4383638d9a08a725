//! Stores that were written once and must be read for ever: `tests/data/v1` pins version 1 of the format.
//!
//! It was written by `cargo test --test golden -- --ignored write_the_golden_store`, which is also how a store of a
//! later version is made: in a new folder, beside the old one.

mod common;
#[path = "golden/subarrays.rs"]
mod subarrays;
#[path = "golden/zstd.rs"]
mod zstd;

use std::path::{Path, PathBuf};

use numpack::format::frame::{self, Log};
use numpack::format::{Edit, Layout, Table, npy};
use numpack::store::{Access, Array, Attrs, Dtype, NewArray, Store};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1")
}

/// One array as it must be read.
struct Known {
    name: &'static str,
    dtype: &'static str,
    shape: &'static [u64],
    fortran_order: bool,
    elements: Vec<u8>,
}

/// Bytes that differ from element to element, for dtypes of which every bit pattern is a value.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 37 + 11) as u8).collect()
}

fn u16s(numbers: impl IntoIterator<Item = u16>) -> Vec<u8> {
    numbers.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// The arrays that are saved as they are, in order.
fn saved() -> Vec<Known> {
    let known = |name, dtype, shape: &'static [u64], fortran_order, elements| Known {
        name,
        dtype,
        shape,
        fortran_order,
        elements,
    };
    vec![
        known("bool", "'|b1'", &[4], false, vec![1, 0, 0, 1]),
        known("int8", "'|i1'", &[3], false, vec![0x80, 0, 0x7f]),
        known("uint16", "'<u2'", &[2, 3], false, u16s(0..6)),
        known("big-endian int32", "'>i4'", &[2], false, vec![0, 0, 0, 1, 0xff, 0xff, 0xff, 0xfe]),
        known("int64", "'<i8'", &[2, 1, 2], false, pattern(32)),
        known("float16", "'<f2'", &[3], false, vec![0, 0x3c, 0, 0x7c, 0, 0x7e]), // 1.0, inf, nan
        known("float64", "'<f8'", &[2], false, [(-0.0_f64).to_le_bytes(), f64::MIN.to_le_bytes()].concat()),
        known("complex128", "'<c16'", &[1], false, pattern(16)),
        known("datetime64", "'<M8[ns]'", &[2], false, pattern(16)),
        known("bytes", "'|S3'", &[2], false, b"abcd\0\0".to_vec()),
        known("text", "'<U2'", &[2], false, pattern(16)),
        known(
            "structured",
            "[(('a title', 'x'), '<f4'), ('', '|V4'), ('y', [('z', '<i2', (2,))])]",
            &[2],
            false,
            pattern(24),
        ),
        known("fortran", "'<u2'", &[2, 3], true, u16s([0, 3, 1, 4, 2, 5])),
        known("0-d", "'<u2'", &[], false, u16s([7])),
        known("empty", "'<u2'", &[0, 3], false, vec![]),
        known("64 dimensions", "'|u1'", &[1; 64], false, vec![9]),
        known("group/\u{6570}\u{7ec4}", "'<u2'", &[1], false, u16s([1])),
        known("", "'<u2'", &[1], false, u16s([2])),
        known("..", "'<u2'", &[1], false, u16s([3])),
    ]
}

/// The arrays that have a history.
fn changed() -> Vec<Known> {
    let known = |name, shape: &'static [u64], elements| Known {
        name,
        dtype: "'<u2'",
        shape,
        fortran_order: false,
        elements,
    };
    vec![
        known("appended", &[5], u16s([0, 1, 2, 10, 11])),
        known("dropped", &[4, 2], u16s([2, 3, 6, 7, 8, 9, 20, 21])),
        known("new name", &[1], u16s([5])),
        known("overwritten", &[2], u16s([8, 9])),
        known("imported", &[2], u16s([30, 31])),
    ]
}

fn new_array(known: &Known) -> NewArray<'_> {
    NewArray {
        dtype: Dtype::parse_python(known.dtype).unwrap(),
        shape: known.shape.to_vec(),
        fortran_order: known.fortran_order,
        data: &known.elements,
    }
}

fn save(store: &Store, name: &str, shape: &[u64], elements: &[u8]) {
    let dtype = Dtype::parse_python("'<u2'").unwrap();
    store
        .save(&[(name, NewArray { dtype, shape: shape.to_vec(), fortran_order: false, data: elements })])
        .unwrap();
}

fn append(store: &Store, name: &str, shape: &[u64], elements: &[u8]) {
    let dtype = Dtype::parse_python("'<u2'").unwrap();
    let rows = NewArray { dtype, shape: shape.to_vec(), fortran_order: false, data: elements };
    store.append(&[(name, rows)]).unwrap();
}

/// A header as other programs write it: short, and of a length of its own.
fn imported_npy() -> Vec<u8> {
    let text = "{'shape': (2,), 'fortran_order': False, 'descr': '<u2'}                        \n";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(u16s([30, 31]));
    bytes
}

#[test]
#[ignore = "writes tests/data/v1, which is there for good"]
fn write_the_golden_store() {
    let path = golden();
    assert!(!path.exists(), "{} is there already, and must not change", path.display());
    let store = Store::create(&path).unwrap();
    let arrays = saved();
    store.save(&arrays.iter().map(|known| (known.name, new_array(known))).collect::<Vec<_>>()).unwrap();
    save(&store, "appended", &[3], &u16s([0, 1, 2]));
    append(&store, "appended", &[2], &u16s([10, 11]));
    save(&store, "dropped", &[5, 2], &u16s(0..10));
    store.drop_rows(&["dropped"], &[0]).unwrap();
    store.drop_rows(&["dropped"], &[1]).unwrap();
    append(&store, "dropped", &[1, 2], &u16s([20, 21]));
    save(&store, "old name", &[1], &u16s([5]));
    store.rename("old name", "new name", false).unwrap();
    save(&store, "overwritten", &[3], &u16s([1, 1, 1]));
    save(&store, "overwritten", &[2], &u16s([8, 9]));
    save(&store, "removed", &[1], &u16s([1]));
    store.remove(&["removed"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("imported.npy");
    std::fs::write(&npy, imported_npy()).unwrap();
    store.import_npy("imported", &npy, false, None, &mut |_| ()).unwrap();
    store.set_attrs(Some("uint16"), attrs(), &[]).unwrap();
    store.set_attrs(None, attrs(), &[]).unwrap();
}

fn attrs() -> Attrs {
    [
        ("unit".to_owned(), rmpv::Value::from("m/s")),
        ("scale".to_owned(), rmpv::Value::from(0.5)),
        ("nested".to_owned(), rmpv::Value::Array(vec![rmpv::Value::from(-1), rmpv::Value::Nil])),
    ]
    .into()
}

fn elements(array: &Array) -> Vec<u8> {
    let mut out = vec![0; array.nbytes() as usize];
    array.read_into(&mut out).unwrap();
    out
}

#[test]
fn every_array_of_version_1_is_read_as_it_was() {
    let store = Store::open(&golden(), Access::Read).unwrap();
    assert_eq!(store.names().len(), saved().len() + changed().len());
    for known in saved().iter().chain(&changed()) {
        let array = store.array(known.name).unwrap();
        assert_eq!(array.dtype(), &Dtype::parse_python(known.dtype).unwrap(), "{:?}", known.name);
        assert_eq!(array.shape(), known.shape, "{:?}", known.name);
        assert_eq!(array.fortran_order(), known.fortran_order, "{:?}", known.name);
        assert_eq!(elements(&array), known.elements, "{:?}", known.name);
    }
    assert_eq!(store.array("uint16").unwrap().attrs(), &attrs());
    assert_eq!(store.attrs(), attrs());
    assert_eq!(store.array("dropped").unwrap().n_deleted(), 2);
    let imported = store.array("imported").unwrap();
    let mut npy = vec![0; imported.npy_len() as usize];
    imported.read_npy_at(0, &mut npy).unwrap();
    assert_eq!(npy, imported_npy());
    let report = numpack::store::verify(&golden()).unwrap();
    assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{report:?}");
}

#[test]
fn what_is_decoded_encodes_to_the_same_bytes() {
    assert_manifest_comes_back(&golden());
    for known in saved() {
        let dtype = Dtype::parse_python(known.dtype).unwrap();
        let layout = Layout::new(&dtype, known.shape, known.fortran_order).unwrap();
        let store = Store::open(&golden(), Access::Read).unwrap();
        let file = golden().join(store.array(known.name).unwrap().file_name());
        let mut expected = npy::encode(&dtype, &layout).unwrap();
        expected.extend(&known.elements);
        assert!(std::fs::read(file).unwrap() == expected, "{:?}", known.name);
    }
}

/// # Panics
/// If the manifest of the store at `path`, decoded and encoded, is another one.
fn assert_manifest_comes_back(path: &Path) {
    let bytes = std::fs::read(path.join("metadata.npkm")).unwrap();
    let store_id = frame::parse_header(&bytes).unwrap();
    let published = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    assert_eq!(published, bytes.len() as u64);
    let mut written = frame::encode_header(store_id, published).to_vec();
    let mut log = Log::new(&bytes[frame::HEADER_LEN..], frame::HEADER_LEN as u64);
    let snapshot = log.next().unwrap().unwrap();
    let table = Table::decode(snapshot.payload, snapshot.offset).unwrap();
    written.extend(frame::encode(&table.encode(), snapshot.synced_len).unwrap());
    while let Some(frame) = log.next().unwrap() {
        let edit = Edit::decode(frame.payload, frame.offset).unwrap();
        written.extend(frame::encode(&edit.encode(), frame.synced_len).unwrap());
    }
    assert!(written == bytes);
}
