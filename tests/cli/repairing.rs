//! `npkfs repair`: what it says, its exit codes, and that `verify` names it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::json;

use crate::common::{Place, files_below, numbers};
use crate::npkfs;

/// A store with a compressed array `z` of 40,000 numbers, and a plain one.
fn made() -> Place {
    let place = Place::new();
    let z = place.write("z.npy", &numbers(40_000, 0));
    let plain = place.write("plain.npy", &numbers(100, 7));
    npkfs!("import", "--compress", "--block=4K", "--filter=none", z, place.store).ok();
    npkfs!("import", plain, place.store).ok();
    place
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
}

fn export(place: &Place, store: &Path, name: &str) -> Vec<u8> {
    let out = place.path("out");
    let _ = fs::remove_dir_all(&out);
    npkfs!("export", store, out).ok();
    fs::read(place.path(&format!("out/{name}.npy"))).unwrap()
}

#[test]
fn repair_of_a_sound_store_says_so_and_changes_nothing() {
    let place = made();
    let before: Vec<Vec<u8>> =
        files_below(&place.store).iter().map(|file| fs::read(place.store.join(file)).unwrap()).collect();
    let ran = npkfs!("repair", place.store).ok();
    assert!(
        ran.stdout.ends_with(": is sound, nothing was done: 2 arrays\n") && ran.stderr.is_empty(),
        "{ran:?}"
    );
    let after: Vec<Vec<u8>> =
        files_below(&place.store).iter().map(|file| fs::read(place.store.join(file)).unwrap()).collect();
    assert!(before == after);
    let json = npkfs!("repair", "--json", place.store).ok().json();
    assert_eq!(
        (&json["was_sound"], &json["is_whole"], &json["n_arrays"]),
        (&json!(true), &json!(true), &json!(2))
    );
}

#[test]
fn a_damaged_block_is_named_and_the_rest_comes_back() {
    let place = made();
    // Some block in the middle.
    flip(&place.store.join("data_z.npkd"), 12_000);
    let next = format!("run \"npkfs repair {}\"", place.store.display());
    npkfs!("verify", "--deep", place.store).complains(3, &["damaged: 1 problem", &next]);
    let damaged = fs::read(place.store.join("data_z.npkd")).unwrap();
    let copy = place.path("copy.npk");
    let to =
        npkfs!("repair", "--to", copy, "--json", place.store).complains(3, &["not all is as it was"]).json();
    assert_eq!(fs::read(place.store.join("data_z.npkd")).unwrap(), damaged, "--to writes nothing here");
    let lost = to["arrays"][0]["lost_rows"].clone();
    let ran = npkfs!("repair", place.store)
        .complains(3, &["repaired, but not all is as it was: see 1 array above"]);
    let first = lost[0][0].as_u64().unwrap() as usize;
    assert_eq!(lost, json!([[first, first + 512]]));
    let expected = format!(
        "; rows {first} to {} are lost, and zeros now; kept as lost+found/data_z.npkd\n",
        first + 511
    );
    assert!(
        ran.stdout.starts_with("partly lost: array \"z\": block ") && ran.stdout.contains(&expected),
        "{ran:?}"
    );
    assert_eq!(fs::read(place.store.join("lost+found/data_z.npkd")).unwrap(), damaged);
    npkfs!("verify", "--deep", place.store).ok();
    for store in [&place.store, &copy] {
        let mut expected = numbers(40_000, 0);
        let at = expected.len() - 320_000 + 8 * first;
        expected[at..at + 4096].fill(0);
        assert!(export(&place, store, "z") == expected);
        assert!(export(&place, store, "plain") == numbers(100, 7));
        let info = npkfs!("info", "--json", store, "z").ok().json();
        assert_eq!(info["attrs"]["npkfs.lost_rows"], lost);
    }
    npkfs!("repair", place.store).ok();
    npkfs!("repair", "--to", copy, place.store).fails(1, &["copy.npk", "a store is already there"]);
}

#[test]
fn a_lost_manifest_is_made_anew() {
    let place = made();
    for name in ["metadata.npkm", "metadata.npkm.bak"] {
        fs::remove_file(place.store.join(name)).unwrap();
    }
    let next = format!("\"npkfs repair {}\" makes it anew", place.store.display());
    npkfs!("ls", place.store).fails(3, &["no metadata.npkm", &next]);
    let copy = place.path("copy.npk");
    let before = files_below(&place.store);
    npkfs!("repair", "--to", copy, place.store).complains(3, &[]);
    assert_eq!(files_below(&place.store), before);
    let ran = npkfs!("repair", place.store).complains(3, &["see 2 arrays above"]);
    assert!(
        ran.stdout.starts_with("metadata.npkm: is missing; made anew from the headers of the data files")
    );
    for store in [&place.store, &copy] {
        assert!(export(&place, store, "z") == numbers(40_000, 0));
        assert!(export(&place, store, "plain") == numbers(100, 7));
    }
    npkfs!("repair", place.store).ok();
}

#[test]
fn a_manifest_that_an_old_release_replaced_comes_back_whole() {
    let place = made();
    let manifest = place.store.join("metadata.npkm");
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, [0x80]).unwrap();
    npkfs!("ls", place.store).fails(3, &["was replaced by NumPack 0.1-0.7", "npkfs repair"]);
    let ran = npkfs!("repair", place.store).ok();
    assert!(ran.stdout.contains("made anew from metadata.npkm.bak, which has all of it"), "{ran:?}");
    assert_eq!(fs::read(place.store.join("lost+found/metadata.npkm")).unwrap(), [0x80]);
    assert!(export(&place, &place.store, "z") == numbers(40_000, 0));
    npkfs!("verify", "--deep", place.store).ok();
}

#[test]
fn what_cannot_be_repaired_is_refused() {
    let place = Place::new();
    npkfs!("repair", place.store).fails(1, &["no such directory"]);
    npkfs!("repair", place.dir.path()).fails(1, &["not an npk store"]);
    assert!(files_below(place.dir.path()).is_empty());
    place.write("data.npk/data_x.npkd", b"no header");
    npkfs!("repair", place.store).fails(3, &["no data file says what is in it", "backup"]);
    npkfs!("repair", "--to", place.path("copy.npk"), place.store).fails(3, &["no data file says"]);
    assert!(!place.path("copy.npk").exists());
    let old = Place::new();
    let crate::fixtures::Copy { path, .. } = &crate::fixtures::fixture("0.7.0-rust", "segmented").copy();
    crate::fixtures::copy_folder(path, &old.store).unwrap();
    npkfs!("repair", old.store).fails(1, &["layout of NumPack 0.3-0.7", "npkfs upgrade"]);
}

#[test]
fn a_writer_at_work_is_waited_for() {
    let place = made();
    let storage = numpack::sys::DirStorage::open(&place.store).unwrap();
    let guard =
        numpack::sys::Storage::lock(&storage, "metadata.npkm.lock", std::time::Duration::ZERO).unwrap();
    let mut running = crate::common::command().arg("repair").arg(&place.store).spawn().unwrap();
    assert!(running.try_wait().unwrap().is_none());
    drop(guard);
    assert!(running.wait().unwrap().success());
}
