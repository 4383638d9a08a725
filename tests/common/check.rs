//! Compares a store with the model, through every way to read it.

use numpack::format::npy;
use numpack::store::{Array, Store, StoreError};

use super::model::{Content, Model};
use super::rng::Rng;

/// # Panics
/// If `store` does not hold what `model` holds.
pub fn assert_store(store: &Store, model: &Model, rng: &mut Rng) {
    store.refresh_quietly().expect("refreshes");
    let expected: Vec<&str> = model.arrays.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(store.names().iter().map(|name| &**name).collect::<Vec<_>>(), expected);
    assert_eq!((store.len(), store.is_empty()), (expected.len(), expected.is_empty()));
    assert_eq!(store.attrs(), model.attrs);
    assert_eq!(store.default_compression(), model.default_compression);
    let arrays = store.arrays().expect("lists");
    assert_eq!(arrays.iter().map(|array| &**array.name()).collect::<Vec<_>>(), expected);
    for ((name, content), listed) in model.arrays.iter().zip(arrays) {
        assert!(store.contains(name));
        let array = store.array(name).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!((array.id(), array.shape()), (listed.id(), listed.shape()));
        assert_array(&array, content, rng);
    }
    assert!(!store.contains("missing"));
    assert!(matches!(store.array("missing"), Err(StoreError::NotFound { .. })));
}

/// # Panics
/// If `array` is not `content`.
pub fn assert_array(array: &Array, content: &Content, rng: &mut Rng) {
    let name = array.name();
    assert_eq!(*array.dtype(), content.dtype, "{name:?}");
    assert_eq!(array.shape(), content.shape, "{name:?}");
    assert_eq!(array.fortran_order(), content.fortran_order, "{name:?}");
    assert_eq!(*array.attrs(), content.attrs, "{name:?}");
    assert!(content.is_compressed_as(array), "{name:?}: {:?}, {content:?}", array.codec());
    let (n_rows, row_len) = (content.n_rows(), content.row_len());
    assert_eq!((array.n_rows(), array.row_len()), (n_rows, row_len as u64), "{name:?}");
    assert_elements(array, content, rng);
    assert_rows(array, content, rng);
    assert_npy(array, content, rng);
}

fn assert_elements(array: &Array, content: &Content, rng: &mut Rng) {
    let stored = content.stored_bytes();
    assert_eq!(array.nbytes(), stored.len() as u64);
    let mut out = vec![0xa5; stored.len()];
    array.read_into(&mut out).expect("reads");
    if let Some(at) = (0..out.len()).find(|at| out[*at] != stored[*at]) {
        let read = &out[at..out.len().min(at + 1000)];
        panic!("{:?}: elements differ from byte {at} on: {content:?}, read {read:02x?}", array.name());
    }
    out.push(0);
    assert!(matches!(array.read_into(&mut out), Err(StoreError::BufferLen { .. })));
    match array.map().expect("maps") {
        Some(map) => assert!(*map == stored, "{:?}: mapped elements differ", array.name()),
        None => assert!(array.n_deleted() > 0 || array.codec().is_some()),
    }
    if array.n_deleted() > 0 || array.codec().is_some() {
        assert!(rng.one_in(2) || array.map().expect("maps").is_none());
    }
}

fn assert_rows(array: &Array, content: &Content, rng: &mut Rng) {
    let (n_rows, row_len) = (content.n_rows(), content.row_len());
    let windows = (0..2).map(|_| {
        let start = rng.below(n_rows + 1);
        start..start + rng.below(n_rows + 1 - start)
    });
    for window in std::iter::once(0..n_rows).chain(windows.collect::<Vec<_>>()) {
        let expected = content.rows[window.start as usize..window.end as usize].concat();
        let mut out = vec![0xa5; expected.len()];
        array.read_rows_into(window.clone(), &mut out).expect("reads rows");
        assert!(out == expected, "{:?}: rows {window:?} differ: {content:?}", array.name());
    }
    let result = array.read_rows_into(n_rows..n_rows + 1, &mut vec![0; row_len]);
    assert!(matches!(result, Err(StoreError::IndexOutOfRange { .. })));
    let rows: Vec<u64> =
        if n_rows == 0 { Vec::new() } else { (0..rng.below(6)).map(|_| rng.below(n_rows)).collect() };
    let expected: Vec<u8> = rows.iter().flat_map(|row| content.rows[*row as usize].clone()).collect();
    let mut out = vec![0xa5; expected.len()];
    array.gather_into(&rows, &mut out).expect("gathers");
    assert!(out == expected, "{:?}: gathered rows {rows:?} differ: {content:?}", array.name());
    let result = array.gather_into(&[n_rows], &mut vec![0; row_len]);
    assert!(matches!(result, Err(StoreError::IndexOutOfRange { .. })));
}

fn assert_npy(array: &Array, content: &Content, rng: &mut Rng) {
    let mut file = vec![0xa5; array.npy_len() as usize + 5];
    let len = array.read_npy_at(0, &mut file).expect("reads the file");
    assert_eq!(len as u64, array.npy_len());
    file.truncate(len);
    let header = npy::parse(&file).unwrap_or_else(|error| panic!("{:?}: {error}", array.name()));
    assert_eq!(header.header_len, array.header_len());
    assert_eq!(
        (&header.dtype, &header.shape, header.fortran_order),
        (&content.dtype, &content.shape, content.fortran_order)
    );
    let (head, elements) = file.split_at(header.header_len as usize);
    assert!(elements == content.stored_bytes(), "{:?}: the file's elements differ", array.name());
    if let Some(imported) = &content.header {
        assert_eq!(head, imported, "{:?}: the imported header changed", array.name());
    }
    for _ in 0..2 {
        let start = rng.below(file.len() as u64 + 3);
        let mut out = vec![0xa5; rng.below(300) as usize];
        let n = array.read_npy_at(start, &mut out).expect("reads a window");
        let rest = file.get(start as usize..).unwrap_or(&[]);
        assert_eq!(out[..n], rest[..rest.len().min(out.len())], "{:?}: bytes from {start}", array.name());
    }
    if let Some(map) = array.map_npy().expect("maps the file") {
        assert!(*map == file, "{:?}: the mapped file differs", array.name());
    }
}
