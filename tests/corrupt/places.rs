//! Links, directories and pipes in the places of files: never followed, entered or waited for.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use numpack::store::{Access, DataFileFault, Dtype, NewArray, Store, StoreError, verify};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::limit_resources;

fn bytes(data: &[u8]) -> NewArray<'_> {
    let dtype = Dtype::parse_python("'|u1'").expect("a dtype");
    NewArray { dtype, shape: vec![data.len() as u64], fortran_order: false, data }
}

struct Place {
    dir: TempDir,
    path: PathBuf,
}

impl Place {
    /// A store with the arrays `a` and `b`, and a file outside that is not to be touched.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("data.npk");
        let store = Store::create(&path).expect("creates");
        store.save(&[("a", bytes(b"abc")), ("b", bytes(b"defg"))]).expect("saves");
        fs::copy(path.join("data_a.npkd"), dir.path().join("outside")).expect("copies");
        Place { dir, path }
    }

    fn outside(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("outside")).expect("is there")
    }
}

/// Ways to be in the way, and what they are called.
type Obstacle = (&'static str, fn(&Path));

const OBSTACLES: [Obstacle; 6] = [
    ("a link", |path| symlink("../outside", path).expect("links")),
    ("a link to nowhere", |path| symlink("../nowhere", path).expect("links")),
    ("a link to itself", |path| symlink(path, path).expect("links")),
    ("a directory", |path| fs::create_dir(path).expect("makes a directory")),
    ("a pipe", |path| {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("makes a pipe");
    }),
    ("a socket", |path| drop(UnixListener::bind(path).expect("binds"))),
];

fn put(place: &Place, file: &str, obstacle: fn(&Path)) {
    let path = place.path.join(file);
    fs::remove_file(&path).expect("was there");
    obstacle(&path);
}

#[test]
fn data_file_that_is_none_is_an_error_of_its_array() {
    limit_resources();
    for (what, obstacle) in OBSTACLES {
        let place = Place::new();
        let outside = place.outside();
        put(&place, "data_a.npkd", obstacle);
        for access in [Access::Read, Access::Write] {
            let store = Store::open(&place.path, access).expect("opens");
            let error = store.array("a").expect_err(what);
            assert!(error.to_string().contains("data_a.npkd"), "{what}: {error}");
            assert_eq!(store.array("b").expect("is whole").n_rows(), 4);
            if access == Access::Read {
                continue;
            }
            let error = store.append(&[("a", bytes(b"x"))]).expect_err(what);
            assert!(
                matches!(
                    error,
                    StoreError::DataFile { what: DataFileFault::NotAFile, .. } | StoreError::Io { .. }
                ),
                "{what}: {error}"
            );
            store.replace("a", &[0], bytes(b"x")).expect_err(what);
            store.append(&[("b", bytes(b"x"))]).expect("appends to the other");
            // Out of the way with it, or at least out of the store.
            store.save(&[("a", bytes(b"new"))]).expect("saves");
            assert_eq!(store.array("a").expect("is whole").n_rows(), 3);
        }
        assert!(verify(&place.path).expect("verifies").problems.is_empty(), "{what}");
        assert_eq!(place.outside(), outside, "{what}");
        assert!(!place.dir.path().join("nowhere").exists());
    }
}

#[test]
fn manifest_that_is_no_file_is_an_error() {
    limit_resources();
    for (what, obstacle) in OBSTACLES {
        let place = Place::new();
        put(&place, "metadata.npkm", obstacle);
        for access in [Access::Read, Access::Write] {
            let error = Store::open(&place.path, access).expect_err(what).to_string();
            assert!(error.contains("metadata.npkm"), "{what}: {error}");
        }
        Store::create(&place.path).expect_err(what);
        Store::open_or_create(&place.path).expect_err(what);
        assert!(verify(&place.path).is_err(), "{what}");
        assert!(!place.dir.path().join("nowhere").exists());
        assert_eq!(fs::read(place.path.join("data_a.npkd")).expect("is there").len(), 4099);
    }
}

#[test]
fn lock_that_is_no_file_lets_nobody_write() {
    limit_resources();
    for (what, obstacle) in OBSTACLES {
        let place = Place::new();
        let outside = place.outside();
        put(&place, "metadata.npkm.lock", obstacle);
        let store = Store::open(&place.path, Access::Write).expect("opens");
        for result in [store.append(&[("a", bytes(b"x"))]), store.save(&[("c", bytes(b"x"))]), store.clear()]
        {
            let error = result.expect_err(what).to_string();
            assert!(error.contains("metadata.npkm.lock"), "{what}: {error}");
        }
        assert_eq!(Store::open(&place.path, Access::Read).expect("opens").generation().0, 1);
        assert_eq!(place.outside(), outside, "{what}");
        assert!(!place.dir.path().join("nowhere").exists());
    }
}

/// Where a new data file or snapshot is to be, something may be already.
#[test]
fn what_is_in_the_place_of_a_new_file_goes_or_is_an_error() {
    limit_resources();
    for (what, obstacle) in OBSTACLES {
        let place = Place::new();
        let outside = place.outside();
        obstacle(&place.path.join("data_a~3.npkd"));
        let store = Store::open(&place.path, Access::Write).expect("opens");
        let saved = store.save(&[("a", bytes(b"new"))]);
        assert_eq!(saved.is_ok(), what != "a directory", "{saved:?}");
        store.save(&[("z", bytes(b"new"))]).expect("saves another one");
        assert_eq!(place.outside(), outside, "{what}");
        assert_eq!(verify(&place.path).expect("verifies").problems.len(), 0);
    }
}
