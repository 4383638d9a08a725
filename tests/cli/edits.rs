//! `rm`, `mv`, `compact`, and a store that somebody else is writing to.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use numpack::store::{Access, Store};

use crate::common::{Place, numbers};
use crate::npkfs;

fn place_with(names: &[&str]) -> Place {
    let place = Place::new();
    let file = place.write("x.npy", &numbers(4, 0));
    for name in names {
        npkfs!("import", "--name", name, file, place.store).ok();
    }
    place
}

#[test]
fn rm_removes_arrays_and_their_files() {
    let place = place_with(&["a", "b", "c"]);
    let ran = npkfs!("rm", place.store, "a", "c").ok();
    assert_eq!((&*ran.stdout, &*ran.stderr), ("", ""));
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["b"]);
    assert!(!place.store.join("data_a.npkd").exists() && place.store.join("data_b.npkd").exists());
}

#[test]
fn rm_of_something_missing_removes_nothing() {
    let place = place_with(&["a", "b"]);
    npkfs!("rm", place.store, "a", "nope").fails(1, &["\"nope\" does not exist"]);
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["a", "b"]);
}

#[test]
fn rm_removes_groups_only_if_asked() {
    let place = place_with(&["g", "g/x", "g/h/y", "gg/z", "h/w"]);
    npkfs!("rm", place.store, "h").fails(1, &["\"h\" is a group", "-r"]);
    npkfs!("rm", place.store, "g").ok();
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["g/h/y", "g/x", "gg/z", "h/w"]);
    npkfs!("rm", "-r", place.store, "g", "h/").ok();
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["gg/z"]);
}

#[test]
fn mv_renames_and_replaces_only_if_asked() {
    let place = place_with(&["a", "b"]);
    npkfs!("mv", place.store, "a", "g/a").ok();
    npkfs!("mv", place.store, "a", "c").fails(1, &["\"a\" does not exist"]);
    npkfs!("mv", place.store, "g/a", "b").fails(1, &["\"b\" already exists"]);
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["b", "g/a"]);
    npkfs!("mv", "--overwrite", place.store, "g/a", "b").ok();
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["b"]);
    npkfs!("mv", place.store, "b", "x".repeat(5000)).fails(1, &["longer than 4096 bytes"]);
}

#[test]
fn compact_gives_the_space_of_deleted_rows_back() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(100_000, 0));
    npkfs!("import", file, place.store).ok();
    npkfs!("import", "--name", "b", file, place.store).ok();
    let store = Store::open(&place.store, Access::Write).unwrap();
    store.drop_rows(&["a", "b"], &(0..90_000).collect::<Vec<u64>>()).unwrap();
    let on_disk = || -> u64 {
        fs::read_dir(&place.store)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
            .sum()
    };
    let before = on_disk();
    let ran = npkfs!("compact", "-v", place.store, "a").ok();
    assert!(ran.stderr.contains("compacted \"a\""), "{ran:?}");
    assert!(on_disk() < before * 6 / 10, "{} of {before}", on_disk());
    npkfs!("compact", place.store).ok();
    assert!(on_disk() < before * 2 / 10, "{} of {before}", on_disk());
    assert_eq!(npkfs!("info", "--json", place.store, "b").ok().json()["n_deleted"], 0);
    npkfs!("compact", place.store, "nope").fails(1, &["\"nope\" does not exist"]);
}
