//! Stores of NumPack 0.1 to 0.7: read through every face of the store, refused where their bytes disagree, upgraded.

mod common;
#[path = "upstream/fixtures.rs"]
mod fixtures;
#[path = "upstream/quirks.rs"]
mod quirks;
#[path = "upstream/upgrade.rs"]
mod upgrade;

use std::fs;
use std::path::Path;

use fixtures::{Expected, all, fixture};
use numpack::format::npy;
use numpack::fs::Fs;
use numpack::store::{Access, Array, Attrs, Dtype, NewArray, Store, StoreError, verify};

fn elements(array: &Array) -> Vec<u8> {
    let mut out = vec![0xa5; array.nbytes() as usize];
    array.read_into(&mut out).unwrap();
    out
}

fn assert_elements(array: &Array, expected: &Expected) {
    assert_eq!((array.dtype(), array.shape()), (&expected.dtype, &*expected.shape), "{:?}", expected.name);
    assert!(elements(array) == expected.elements, "{:?}", expected.name);
}

/// Reads an array in every way that there is.
fn assert_array(array: &Array, expected: &Expected) {
    let name = &expected.name;
    assert_elements(array, expected);
    let map = array.map().unwrap();
    let is_whole = array.n_deleted() == 0 && !array.file_name().ends_with(".npkseg");
    assert_eq!(map.is_some(), is_whole, "{name:?}");
    assert!(map.is_none_or(|map| *map == expected.elements), "{name:?}");
    // No descriptor may be handed out: the file has no header.
    assert!(array.backing().unwrap().is_none() && array.map_npy().unwrap().is_none());

    let mut file = vec![0xa5; array.npy_len() as usize + 1];
    assert_eq!(array.read_npy_at(0, &mut file).unwrap() as u64, array.npy_len());
    let header = npy::parse(&file).unwrap();
    assert_eq!((&header.dtype, &header.shape), (&expected.dtype, &expected.shape));
    assert_eq!((header.header_len, header.fortran_order), (4096, false));
    assert!(file[4096..file.len() - 1] == expected.elements, "{name:?}");

    if expected.shape.is_empty() {
        return;
    }
    let (n_rows, row_len) = (array.n_rows(), array.row_len() as usize);
    for start in 0..=n_rows.min(70) {
        for end in [start, (start + 1).min(n_rows), (start + 5).min(n_rows), n_rows] {
            let mut rows = vec![0xa5; (end - start) as usize * row_len];
            array.read_rows_into(start..end, &mut rows).unwrap();
            assert!(rows == expected.elements[start as usize * row_len..end as usize * row_len], "{name:?}");
        }
    }
    let picked: Vec<u64> = (0..n_rows).rev().chain((0..n_rows).step_by(3)).collect();
    let mut rows = vec![0xa5; picked.len() * row_len];
    array.gather_into(&picked, &mut rows).unwrap();
    let picked = picked.iter().flat_map(|row| &expected.elements[*row as usize * row_len..][..row_len]);
    assert!(rows.iter().eq(picked), "{name:?}");
    assert!(matches!(
        array.gather_into(&[n_rows], &mut vec![0; row_len]),
        Err(StoreError::IndexOutOfRange { .. })
    ));
}

fn assert_store(store: &Store, expected: &[Expected]) {
    let mut names: Vec<String> = store.names().iter().map(|name| name.to_string()).collect();
    names.sort();
    let mut expected_names: Vec<String> = expected.iter().map(|array| array.name.clone()).collect();
    expected_names.sort();
    assert_eq!(names, expected_names);
    for array in expected {
        assert_array(&store.array(&array.name).unwrap(), array);
    }
}

/// Every file below a folder with its bytes.
fn snapshot(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_store_of_an_old_release_reads_as_what_was_saved() {
    for fixture in all() {
        let copy = fixture.copy();
        let before = snapshot(&copy.path);
        for access in [Access::Read, Access::Write] {
            let store = Store::open(&copy.path, access)
                .unwrap_or_else(|error| panic!("{}/{}: {error}", fixture.release, fixture.name));
            assert_eq!(store.old_layout().unwrap().to_string(), fixture.layout());
            assert_eq!(store.access(), Access::Read);
            assert_store(&store, &fixture.expected());
            assert!(store.refresh().unwrap().is_empty(), "nothing has changed");
        }
        let report = verify(&copy.path).unwrap();
        assert!(report.problems.is_empty(), "{}/{}: {report:?}", fixture.release, fixture.name);
        assert!(snapshot(&copy.path) == before, "{}/{}: reading wrote", fixture.release, fixture.name);
    }
}

#[test]
fn a_file_system_over_an_old_store_is_read_only() {
    let copy = fixture("0.7.0-rust", "segmented").copy();
    let fs = Fs::new(Store::open(&copy.path, Access::Write).unwrap(), false, |_| {}).unwrap();
    assert!(fs.is_read_only());
}

#[test]
fn every_write_names_the_way_out() {
    let copy = fixture("0.3.0-rust", "appended").copy();
    let before = snapshot(&copy.path);
    let store = Store::open(&copy.path, Access::Write).unwrap();
    let dtype = Dtype::parse_python("'<u4'").unwrap();
    let new = || NewArray { dtype: dtype.clone(), shape: vec![1], fortran_order: false, data: &[0; 4] };
    let array = store.array("m").unwrap();
    let refusals = [
        store.save(&[("a", new())]),
        store.append(&[("m", new())]),
        store.replace("m", &[0], new()),
        store.replace_range("m", 0..1, new()),
        store.drop_rows(&["m"], &[0]),
        store.remove(&["m"]).map(drop),
        store.clear(),
        store.rename("m", "n", false),
        store.set_attrs(None, Attrs::new(), &[]),
        store.set_default_compression(None),
        store.compact("m").map(drop),
        store.recompress("m", None, &mut |_| ()).map(drop),
        store.sync(),
        array.write_npy_at(4096, &[1]),
        array.mend().map(drop),
        array.tell_written(),
    ];
    let path = copy.path.display();
    let expected = format!(
        "{path}: the store has the layout of NumPack 0.3-0.7, which is only read; run \"npkfs upgrade {path}\", or call numpack.upgrade in Python"
    );
    for (i, refusal) in refusals.into_iter().enumerate() {
        assert_eq!(refusal.expect_err("a write").to_string(), expected, "write {i}");
    }
    assert!(snapshot(&copy.path) == before);
}

#[test]
fn what_old_releases_change_meanwhile_is_seen() {
    let copy = fixture("0.7.0-rust", "dropped_rows").copy();
    let store = Store::open(&copy.path, Access::Write).unwrap();
    store.track_changes();
    let held = store.array("untouched").unwrap();
    // The table is written anew in place, and then as a new file.
    for (i, name) in ["appended", "dtypes"].iter().enumerate() {
        let other = fixture("0.7.0-rust", name);
        for entry in fs::read_dir(&other.copy().path).unwrap() {
            let file = entry.unwrap().file_name();
            if file != "metadata.npkm" {
                fs::copy(other.copy().path.join(&file), copy.path.join(&file)).unwrap();
            }
        }
        let table = copy.path.join("metadata.npkm");
        let bytes = fs::read(other.copy().path.join("metadata.npkm")).unwrap();
        if i == 0 {
            fs::write(&table, bytes).unwrap();
        } else {
            fs::write(table.with_extension("new"), bytes).unwrap();
            fs::rename(table.with_extension("new"), &table).unwrap();
        }
        assert!(!store.refresh().unwrap().is_empty());
        assert_store(&store, &other.expected());
    }
    assert_eq!(elements(&held).len(), 36);
}

#[test]
fn tables_with_changed_bytes_give_errors_or_arrays_that_fit_their_files() {
    let cases = [
        ("0.1.1-rust", "dtypes"),
        ("0.2.0-python", "dropped_rows"),
        ("0.2.1-rust", "appended"),
        ("0.7.0-rust", "segmented_mutated"),
    ];
    for (release, name) in cases {
        let fixture = fixture(release, name);
        let copy = fixture.copy();
        let table = copy.path.join("metadata.npkm");
        let good = fs::read(&table).unwrap();
        let lens: Vec<usize> = fixture.expected().iter().map(|array| array.elements.len()).collect();
        let longest = *lens.iter().max().unwrap() as u64;
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&table, bytes).unwrap();
            let Ok(store) = Store::open(&copy.path, Access::Read) else { continue };
            for name in store.names() {
                if let Ok(array) = store.array(&name) {
                    assert!(array.nbytes() <= longest, "{release}, byte {at}: {array:?}");
                    elements(&array);
                }
            }
        }
        for len in 0..good.len() {
            fs::write(&table, &good[..len]).unwrap();
            assert!(Store::open(&copy.path, Access::Read).is_err(), "{release}, cut to {len}");
        }
    }
}
