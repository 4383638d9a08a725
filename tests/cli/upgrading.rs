//! Stores of NumPack 0.1 to 0.7: listed, exported, checked, mounted, and upgraded.

use std::fs;
use std::io;
use std::path::Path;

use numpack::format::npy;
use numpack::store::{Access, Store};

use crate::common::{Place, files_below};
use crate::fixtures::{Copy, Expected, Fixture, all, copy_folder, fixture, quirk};
use crate::npkfs;
use crate::ways::{as_root, each_way};

/// A folder with a store of 0.7.0 that has segments, deleted rows, and more.
fn place_of(fixture: &Fixture) -> Place {
    let place = Place::new();
    copy_folder(&fixture.copy().path, &place.store).unwrap();
    place
}

fn segmented() -> Fixture {
    fixture("0.7.0-rust", "segmented_mutated")
}

/// An array as a file has it, without a name.
fn read_npy(file: &[u8]) -> Expected {
    let header = npy::parse(file).unwrap();
    let elements = file[header.header_len as usize..].to_vec();
    Expected { name: String::new(), dtype: header.dtype, shape: header.shape, elements }
}

fn assert_npy(file: &[u8], expected: &Expected) {
    assert!(Expected { name: expected.name.clone(), ..read_npy(file) } == *expected, "{:?}", expected.name);
}

#[test]
fn an_old_store_is_listed_described_checked_and_exported() {
    let fixture = segmented();
    let place = place_of(&fixture);
    let before = files_below(&place.store);
    let mut names: Vec<String> = fixture.expected().into_iter().map(|array| array.name).collect();
    let ran = npkfs!("ls", place.store).ok();
    let mut listed = ran.lines();
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
    assert_eq!(npkfs!("ls", "-l", place.store).ok().lines().len(), 1 + names.len());
    let last = npkfs!("info", place.store).ok();
    let expected =
        format!("layout of NumPack 0.3-0.7, only read until \"npkfs upgrade {}\"", place.store.display());
    assert!(last.lines().last().unwrap().ends_with(&expected), "{last:?}");
    let info = npkfs!("info", "--json", place.store).ok().json();
    assert_eq!((&info["format"], &info["old_layout"]), (&serde_json::Value::Null, &"0.3-0.7".into()));
    assert!(info["on_disk"].as_u64().unwrap() > 0);
    assert!(npkfs!("verify", "--deep", place.store).ok().stdout.contains("sound"));
    npkfs!("export", place.store, place.path("out")).ok();
    for array in fixture.expected() {
        assert_npy(&fs::read(place.path("out").join(format!("{}.npy", array.name))).unwrap(), &array);
    }
    assert_eq!(files_below(&place.store), before);
}

#[test]
fn what_would_change_an_old_store_names_the_way_out() {
    let place = place_of(&segmented());
    let before = files_below(&place.store);
    let npy = place.write("x.npy", &crate::common::numbers(3, 0));
    let way_out = format!(
        "data.npk: the store has the layout of NumPack 0.3-0.7, which is only read; run \"npkfs upgrade {}\", or call numpack.upgrade in Python",
        place.store.display()
    );
    npkfs!("import", npy, place.store).fails(1, &[&way_out]);
    npkfs!("rm", place.store, "a").fails(1, &[&way_out]);
    npkfs!("mv", place.store, "a", "b").fails(1, &[&way_out]);
    npkfs!("compact", place.store).fails(1, &[&way_out]);
    npkfs!("recompress", place.store).fails(1, &[&way_out]);
    npkfs!("config", place.store, "compress=zstd").fails(1, &[&way_out]);
    assert_eq!(files_below(&place.store), before);
}

#[test]
fn an_old_store_is_mounted_read_only() {
    each_way(|way| {
        let fixture = segmented();
        copy_folder(&fixture.copy().path, &way.place.store).unwrap();
        let before = files_below(&way.place.store);
        for options in ["", "ro"] {
            let (ran, _unmount) = way.mount_with(options);
            let ran = ran.ok();
            let note = "is mounted read-only; to change it, run \"npkfs upgrade ";
            assert_eq!(ran.stderr.contains(note), options.is_empty(), "{ran:?}");
            for array in fixture.expected() {
                assert_npy(&way.read(&format!("{}.npy", array.name)), &array);
            }
            let refusals = [
                fs::write(way.mnt.join("new.npy"), b"x"),
                fs::remove_file(way.mnt.join("a.npy")),
                fs::create_dir(way.mnt.join("folder")),
                fs::OpenOptions::new().write(true).open(way.mnt.join("a.npy")).map(drop),
            ];
            // Another user than the mounting one may not even look.
            for refusal in refusals {
                let error = refusal.expect_err("read-only").kind();
                assert!(matches!(error, io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied));
            }
            way.umount().ok();
        }
        assert_eq!(files_below(&way.place.store), before);
    });
}

#[test]
fn every_old_store_mounts_with_every_array() {
    as_root(|way| {
        for fixture in all() {
            let mnt = way.mnt.as_path();
            copy_folder(&fixture.copy().path, &way.place.store).unwrap();
            let (ran, _unmount) = way.mount_with("ro");
            ran.ok();
            let mut found: Vec<Expected> =
                files_below(mnt).iter().map(|file| read_npy(&fs::read(mnt.join(file)).unwrap())).collect();
            way.umount().ok();
            fs::remove_dir_all(&way.place.store).unwrap();
            // Names are those of files, which have escapes: what is in them is compared.
            let key =
                |array: &Expected| (array.shape.clone(), array.dtype.to_string(), array.elements.clone());
            let mut expected: Vec<Expected> = fixture.expected();
            expected.iter_mut().for_each(|array| array.name.clear());
            found.sort_by_key(key);
            expected.sort_by_key(key);
            assert!(found == expected, "{}/{}", fixture.release, fixture.name);
        }
    });
}

#[test]
fn a_mount_goes_on_when_its_store_is_upgraded() {
    each_way(|way| {
        let fixture = segmented();
        copy_folder(&fixture.copy().path, &way.place.store).unwrap();
        let (ran, _unmount) = way.mount_with("");
        ran.ok();
        let assert_files = || {
            for array in fixture.expected() {
                assert_npy(&way.read(&format!("{}.npy", array.name)), &array);
            }
        };
        assert_files();
        npkfs!("upgrade", way.place.store).ok();
        assert_files();
        way.umount().ok();
    });
}

#[test]
fn upgrade_says_what_it_did() {
    let fixture = segmented();
    let place = place_of(&fixture);
    let n_arrays = fixture.expected().len();
    let other = place.path("other.npk");
    let ran = npkfs!("upgrade", "--to", other, place.store).ok();
    assert!(ran.stderr.contains(&format!("other.npk: {n_arrays} arrays of ")), "{ran:?}");
    npkfs!("upgrade", "--to", other, place.store).fails(1, &["other.npk", "a store is already there"]);
    let ran = npkfs!("upgrade", "--compress=3", place.store).ok();
    let expected = format!("data.npk: upgraded {n_arrays} arrays from NumPack 0.3-0.7\n");
    assert!(ran.stdout.is_empty() && ran.stderr.ends_with(&expected), "{ran:?}");
    let store = Store::open(&place.store, Access::Write).unwrap();
    assert!(store.arrays().unwrap().iter().all(|array| array.compression().unwrap().level == 3));
    let ran = npkfs!("upgrade", place.store).ok();
    assert!(ran.stderr.contains("data.npk: is of this release already; nothing was done"), "{ran:?}");
    let ran = npkfs!("-q", "upgrade", place.store).ok();
    assert_eq!((&*ran.stdout, &*ran.stderr), ("", ""));
    npkfs!("upgrade", "--to", place.path("third.npk"), place.store).fails(1, &["cp -r"]);
    assert!(!place.path("third.npk").exists());
    npkfs!("upgrade", "--block=8K", place.store).fails(2, &["--compress"]);
    npkfs!("upgrade", "--skip-damaged", place.store).fails(2, &["--to"]);
    npkfs!("upgrade", place.path("nowhere")).fails(1, &["no such directory"]);
}

#[test]
fn an_upgrade_that_was_interrupted_is_told_and_finished() {
    let fixture = segmented();
    let place = place_of(&fixture);
    let old = fixture.copy();
    npkfs!("upgrade", place.store).ok();
    // As it was before the last old files were removed.
    for (from, to) in [("metadata.npkm", "metadata.npkm.upgraded"), ("data_a.npkseg", "data_a.npkseg")] {
        fs::copy(old.path.join(from), place.store.join(to)).unwrap();
    }
    fs::write(place.store.join("data_d.npkd"), b"of nobody").unwrap();
    let said = npkfs!("verify", place.store).ok();
    let expected = "left over: data_d.npkd: no array uses it; if it is of the store before it was upgraded, ";
    assert!(said.stdout.contains(expected), "{said:?}");
    let ran = npkfs!("upgrade", place.store).ok();
    assert!(ran.stderr.contains("was upgraded before; removed the files of the old store"), "{ran:?}");
    assert!(
        !place.store.join("metadata.npkm.upgraded").exists() && !place.store.join("data_a.npkseg").exists()
    );
    assert!(place.store.join("data_d.npkd").exists(), "it was never the store's");
}

fn place_of_quirk(name: &str) -> Place {
    let place = Place::new();
    let Copy { path, .. } = &quirk(name);
    copy_folder(path, &place.store).unwrap();
    place
}

#[test]
fn damaged_arrays_keep_a_store_from_being_upgraded_unless_they_are_left_out() {
    let place = place_of_quirk("0.3.0-python-string_array");
    let what = "array \"s\": data file data_s.npkd has 16 bytes, expected 8";
    npkfs!("upgrade", place.store).fails(3, &[what, "nothing was changed", "--skip-damaged"]);
    let other = place.path("other.npk");
    npkfs!("upgrade", "--to", other, place.store).fails(3, &[what]);
    assert!(!other.exists());
    let ran = npkfs!("upgrade", "--to", other, "--skip-damaged", place.store);
    ran.fails(3, &[what, "1 of 2 arrays cannot be read, and were left out"]);
    let store = Store::open(&other, Access::Read).unwrap();
    assert_eq!(store.names(), ["ok".into()]);
}

#[test]
fn stores_with_damaged_arrays_are_listed_and_described() {
    for (name, array) in [("0.7.0-killed_after_reset", "a"), ("0.7.0-append_resurrects_rows", "a")] {
        let place = place_of_quirk(name);
        for args in [vec!["ls"], vec!["ls", "-l"], vec!["ls", "--json"], vec!["info"], vec!["info", "--json"]]
        {
            let args = args.into_iter().map(Path::new).chain([place.store.as_path()]);
            let ran = crate::common::npkfs(args).ok();
            assert!(ran.stdout.contains(array), "{ran:?}");
        }
        npkfs!("verify", place.store).complains(3, &[]);
        npkfs!("export", place.store, place.path("out")).complains(3, &["array \"a\""]);
    }
    let wiped = place_of_quirk("0.3.0-wiped_0.2.1");
    npkfs!("ls", wiped.store).fails(3, &["metadata.npkm lists no array, but there are data files"]);
}
