//! `import`, `export`, `ls`, `info`, `verify`, and what holds for all commands.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use numpack::store::{Access, Attrs, Store};
use serde_json::json;

use crate::common::{Place, command, files_below, npy, numbers};
use crate::npkfs;

#[test]
fn what_is_imported_is_exported_byte_for_byte() {
    let place = Place::new();
    let mut fortran = npy("'>f4'", "(2, 3)", &[7; 24]);
    let at = fortran.windows(5).position(|w| w == b"False").unwrap();
    fortran[at..at + 5].copy_from_slice(b"True ");
    let files = [
        ("in/a.npy", numbers(1000, 5)),
        ("in/fortran.npy", fortran),
        ("in/group/b.npy", npy("'|u1'", "()", &[9])),
        ("in/group/deeper/empty.npy", npy("'<c16'", "(0, 4)", &[])),
        ("in/group/text.npy", npy("'<U3'", "(2,)", &[0; 24])),
        ("in/group/pairs.npy", npy("[('x', '<f8'), ('n', '<i4', (2,))]", "(3,)", &[1; 48])),
    ];
    for (name, bytes) in &files {
        place.write(name, bytes);
    }
    let ran = npkfs!("import", place.path("in"), place.store).ok();
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.starts_with("npkfs: ") && ran.stderr.contains("imported 6 arrays"), "{ran:?}");
    let listed = npkfs!("ls", place.store).ok();
    let names =
        ["a", "fortran", "group/b", "group/deeper/empty", "group/pairs", "group/text"].map(str::to_owned);
    assert_eq!(listed.lines(), names);
    assert_eq!(listed.stderr, "");

    npkfs!("export", place.store, place.path("out")).ok();
    let written: Vec<String> =
        files.iter().map(|(name, _)| name.strip_prefix("in/").unwrap().to_owned()).collect();
    let mut expected = written.clone();
    expected.sort();
    assert_eq!(files_below(&place.path("out")), expected);
    for ((_, bytes), name) in files.iter().zip(&written) {
        assert_eq!(&fs::read(place.path("out").join(name)).unwrap(), bytes, "{name}");
    }
}

#[test]
fn import_names_what_is_no_array_and_imports_the_rest() {
    let place = Place::new();
    place.write("in/good.npy", &numbers(3, 0));
    place.write("in/object.npy", &npy("'|O'", "(3,)", b"pickle"));
    place.write("in/short.npy", &numbers(100, 0)[..500]);
    place.write("in/text.npy", b"this is no array, whatever its name says\n");
    place.write("in/empty.npy", b"");
    place.write("in/notes.txt", b"left out without a word");
    let missing = place.path("missing.npy");
    let ran = npkfs!("import", missing, place.path("in"), place.store);
    let complaints =
        ["object.npy: not imported", "short.npy", "text.npy", "empty.npy", "missing.npy", "5 of 6 files"];
    let ran = ran.fails(1, &complaints);
    assert!(ran.stderr.contains("object arrays") && !ran.stderr.contains("notes.txt"), "{}", ran.stderr);
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["good"]);
}

#[test]
fn import_of_nothing_leaves_no_store() {
    let place = Place::new();
    let bad = place.write("bad.npy", b"no array");
    npkfs!("import", bad, place.store).fails(1, &["bad.npy: not imported", "1 of 1"]);
    assert!(!place.store.exists());
    fs::create_dir(place.path("nothing")).unwrap();
    npkfs!("import", place.path("nothing"), place.store).fails(1, &["has no .npy files"]);
    assert!(!place.store.exists());
}

#[test]
fn import_replaces_arrays_only_if_asked() {
    let place = Place::new();
    let old = place.write("old/a.npy", &numbers(3, 0));
    let new = place.write("new/a.npy", &numbers(4, 10));
    let other = place.write("new/b.npy", &numbers(1, 0));
    npkfs!("import", old, place.store).ok();
    npkfs!("import", new, other, place.store).fails(1, &["a.npy: not imported", "\"a\"", "--overwrite"]);
    npkfs!("export", place.store, "a", place.path("out1")).ok();
    assert_eq!(fs::read(place.path("out1/a.npy")).unwrap(), numbers(3, 0));
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["a", "b"]);
    npkfs!("import", "--overwrite", new, place.store).ok();
    npkfs!("export", place.store, "a", place.path("out2")).ok();
    assert_eq!(fs::read(place.path("out2/a.npy")).unwrap(), numbers(4, 10));
}

#[test]
fn import_can_choose_names() {
    let place = Place::new();
    let file = place.write("in/x.npy", &numbers(1, 0));
    let plain = place.write("no-suffix", &numbers(1, 0));
    npkfs!("import", "--name", "group/y", file, place.store).ok();
    npkfs!("import", "--prefix", "run1", place.path("in"), plain, place.store).ok();
    npkfs!("import", "--prefix", "run2/", file, place.store).ok();
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["group/y", "run1/no-suffix", "run1/x", "run2/x"]);
    npkfs!("import", "--name", "n", file, plain, place.store).fails(2, &["--name", "2 sources"]);
    npkfs!("import", "--name", "n", place.path("in"), place.store).fails(2, &["--name", "--prefix"]);
    npkfs!("import", "--name", "n", "--prefix", "p", file, place.store).fails(2, &["--name", "--prefix"]);
    npkfs!("import", "--name", "a\u{0}b".replace('\0', ""), file, place.store).ok();
}

#[test]
fn import_takes_one_file_for_a_name() {
    let place = Place::new();
    let first = place.write("one/x.npy", &numbers(1, 1));
    let second = place.write("two/x.npy", &numbers(1, 2));
    npkfs!("import", first, second, place.store)
        .fails(1, &["two/x.npy: not imported", "one/x.npy", "--prefix"]);
    npkfs!("export", place.store, place.path("out")).ok();
    assert_eq!(fs::read(place.path("out/x.npy")).unwrap(), numbers(1, 1));
}

#[test]
fn import_follows_links_to_files_but_not_to_folders() {
    let place = Place::new();
    let file = place.write("real/x.npy", &numbers(1, 0));
    fs::create_dir(place.path("in")).unwrap();
    symlink(&file, place.path("in/link.npy")).unwrap();
    symlink(place.path("in"), place.path("in/again")).unwrap();
    symlink("gone", place.path("in/broken.npy")).unwrap();
    npkfs!("import", place.path("in"), place.store).fails(1, &["broken.npy", "1 of 2"]);
    assert_eq!(npkfs!("ls", place.store).ok().lines(), ["link"]);
}

#[test]
fn import_does_not_touch_folders_that_are_no_stores() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(1, 0));
    place.write("photos/cat.jpg", b"meow");
    let plain = place.write("plain", b"a file");
    npkfs!("import", file, place.path("photos")).fails(1, &["photos", "not an npk store"]);
    assert_eq!(files_below(&place.path("photos")), ["cat.jpg"]);
    npkfs!("import", file, plain).fails(1, &["plain", "not a directory"]);
    assert_eq!(fs::read(&plain).unwrap(), b"a file");
    // The store was forgotten.
    let second = place.path("b.npy");
    npkfs!("import", file, second).fails(2, &["b.npy", "the store", "npkfs import"]);
    npkfs!("import", file).fails(2, &["STORE"]);
}

#[test]
fn export_takes_arrays_and_groups() {
    let place = Place::new();
    for name in ["in/a.npy", "in/g/b.npy", "in/g/h/c.npy", "in/gg/d.npy"] {
        place.write(name, &numbers(2, 0));
    }
    npkfs!("import", place.path("in"), place.store).ok();
    npkfs!("export", place.store, "a", "g", place.path("some")).ok();
    assert_eq!(files_below(&place.path("some")), ["a.npy", "g/b.npy", "g/h/c.npy"]);
    npkfs!("export", place.store, "g/", "g/h", place.path("group")).ok();
    assert_eq!(files_below(&place.path("group")), ["g/b.npy", "g/h/c.npy"]);
    npkfs!("export", place.store, "a", "nope", place.path("none")).fails(1, &["\"nope\"", "npkfs ls"]);
    assert!(!place.path("none").exists());
    npkfs!("export", place.store).fails(2, &["DEST_DIR"]);
}

#[test]
fn export_replaces_files_only_if_asked() {
    let place = Place::new();
    place.write("in/a.npy", &numbers(2, 0));
    place.write("in/b.npy", &numbers(3, 0));
    npkfs!("import", place.path("in"), place.store).ok();
    place.write("out/a.npy", b"mine");
    npkfs!("export", place.store, place.path("out")).fails(1, &["\"a\"", "--overwrite", "1 of 2 arrays"]);
    assert_eq!(fs::read(place.path("out/a.npy")).unwrap(), b"mine");
    assert_eq!(fs::read(place.path("out/b.npy")).unwrap(), numbers(3, 0));
    npkfs!("export", "--overwrite", place.store, place.path("out")).ok();
    assert_eq!(fs::read(place.path("out/a.npy")).unwrap(), numbers(2, 0));
    assert_eq!(files_below(&place.path("out")), ["a.npy", "b.npy"]);
}

#[test]
fn export_keeps_hostile_names_below_its_folder() {
    let place = Place::new();
    let file = place.write("x.npy", &numbers(2, 0));
    let names = ["../evil", "/abs", "a//b", "..", ".", "", "a/../b", "line\nbreak", "dir.npy/x"];
    for name in names {
        npkfs!("import", "--name", name, file, place.store).ok();
    }
    npkfs!("export", place.store, place.path("deep/out")).ok();
    let found = files_below(&place.path("deep"));
    assert_eq!(found.len(), names.len());
    assert!(found.iter().all(|file| file.starts_with("out/")), "{found:?}");
    assert!(!place.path("evil.npy").exists() && !place.path("deep/evil.npy").exists());
    // And they come back under their names.
    let again = place.path("again.npk");
    npkfs!("import", place.path("deep/out"), again).ok();
    assert_eq!(npkfs!("ls", again).ok().stdout, npkfs!("ls", place.store).ok().stdout);
}

#[test]
fn export_leaves_out_deleted_rows() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(10, 0));
    npkfs!("import", file, place.store).ok();
    let store = Store::open(&place.store, Access::Write).unwrap();
    store.drop_rows(&["a"], &[0, 1, 2, 3, 4, 6]).unwrap();
    npkfs!("export", place.store, place.path("out")).ok();
    let exported = fs::read(place.path("out/a.npy")).unwrap();
    let rows: Vec<i64> = exported[exported.len() - 32..]
        .chunks(8)
        .map(|row| i64::from_le_bytes(row.try_into().unwrap()))
        .collect();
    assert_eq!(rows, [5, 7, 8, 9]);
    assert!(String::from_utf8_lossy(&exported[..128]).contains("'shape': (4,)"));
}

#[test]
fn ls_lists_names_groups_and_details() {
    let place = Place::new();
    place.write("in/b.npy", &npy("'<f4'", "(256, 2)", &[0; 2048]));
    place.write("in/a/x.npy", &numbers(1, 0));
    npkfs!("import", place.path("in"), place.store).ok();
    assert_eq!(npkfs!("ls", place.store).ok().stdout, "a/x\nb\n");
    assert_eq!(npkfs!("ls", place.store, "a").ok().stdout, "a/x\n");
    assert_eq!(npkfs!("ls", place.store, "b").ok().stdout, "b\n");
    npkfs!("ls", place.store, "nope").fails(1, &["\"nope\" does not exist"]);

    let ran = npkfs!("ls", "-l", place.store).ok();
    let lines = ran.lines();
    assert!(lines[0].starts_with("DTYPE  SHAPE") && lines[0].ends_with("NAME"), "{lines:?}");
    assert!(lines[1].starts_with("<i8    (1,)") && lines[1].ends_with("  a/x"), "{lines:?}");
    assert!(lines[2].contains("(256, 2)  2.0 KiB  20") && lines[2].ends_with("  b"), "{lines:?}");

    let listed = npkfs!("ls", "--json", place.store, "b").ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let b = &listed[0];
    assert_eq!(b["name"], "b");
    assert_eq!(b["dtype"], "<f4");
    assert_eq!(b["shape"], json!([256, 2]));
    assert_eq!(b["nbytes"], 2048);
    assert_eq!(b["codec"], json!(null));
    assert!(b["modified"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn names_do_not_steer_the_terminal() {
    let place = Place::new();
    let file = place.write("x.npy", &numbers(1, 0));
    let name = "evil\u{1b}[2J\nname";
    npkfs!("import", "--name", name, file, place.store).ok();
    // Into a pipe goes the name, for scripts; in tables for people it is harmless.
    assert_eq!(npkfs!("ls", place.store).ok().stdout, format!("{name}\n"));
    for ran in [npkfs!("ls", "-l", place.store).ok(), npkfs!("info", place.store).ok()] {
        assert!(ran.stdout.contains("evil\\u{1b}[2J\\nname") && !ran.stdout.contains('\u{1b}'), "{ran:?}");
    }
    assert_eq!(npkfs!("ls", "--json", place.store).ok().json()[0]["name"], name);
    let ran = npkfs!("info", place.store, "no\u{1b}[2Jsuch").fails(1, &["does not exist"]);
    assert!(!ran.stderr.contains('\u{1b}'));
}

#[test]
fn info_describes_store_and_array() {
    let place = Place::new();
    let file = place.write("a.npy", &npy("'<f8'", "(4, 8)", &[0; 256]));
    npkfs!("import", file, place.store).ok();
    npkfs!("import", "--name", "g/n", place.write("n.npy", &numbers(10, 0)), place.store).ok();
    let store = Store::open(&place.store, Access::Write).unwrap();
    store.drop_rows(&["a"], &[1]).unwrap();
    store.set_attrs(Some("a"), Attrs::from([("unit".to_owned(), "K".into())]), &[]).unwrap();
    store.set_attrs(None, Attrs::from([("run".to_owned(), 7.into())]), &[]).unwrap();

    let ran = npkfs!("info", place.store).ok();
    let lines = ran.lines();
    let heading: Vec<&str> = lines[0].split("  ").map(str::trim).filter(|title| !title.is_empty()).collect();
    let titles = [
        "NAME",
        "DTYPE",
        "SHAPE",
        "SIZE",
        "ON DISK",
        "RATIO",
        "DEAD",
        "DELETED ROWS",
        "CODEC",
        "MODIFIED (UTC)",
    ];
    assert_eq!(heading, titles);
    assert!(lines[1].starts_with("a     <f8    (3, 8)  192 B"), "{lines:?}");
    assert!(lines[2].starts_with("g/n   <i8    (10,)"), "{lines:?}");
    assert_eq!(lines[3], "attribute run: 7");
    assert!(lines[4].starts_with("2 arrays, 272 B, "), "{lines:?}");
    let generation = store.generation().0;
    assert!(lines[4].ends_with(&format!(" on disk; generation {generation}, format 1")), "{lines:?}");

    let ran = npkfs!("info", place.store, "a").ok();
    for line in ["name          a", "shape         (3, 8)", "deleted rows  1", "attribute     unit: \"K\""] {
        assert!(ran.lines().contains(&line), "{line:?} is missing in {ran:?}");
    }
    npkfs!("info", place.store, "g").fails(1, &["\"g\" does not exist"]);

    let described = npkfs!("info", "--json", place.store).ok().json();
    assert_eq!(described["format"], 1);
    assert_eq!(described["n_arrays"], 2);
    assert_eq!(described["nbytes"], 272);
    assert_eq!(described["generation"], generation);
    assert_eq!(described["attrs"], json!({"run": 7}));
    assert_eq!(described["arrays"][0]["n_deleted"], 1);
    assert_eq!(described["arrays"][0], npkfs!("info", "--json", place.store, "a").ok().json());
    assert!(described["on_disk"].as_u64().unwrap() >= described["arrays"][0]["on_disk"].as_u64().unwrap());
}

#[test]
fn verify_finds_damage() {
    let place = Place::new();
    for name in ["in/good.npy", "in/cut.npy", "in/gone.npy"] {
        place.write(name, &numbers(1000, 0));
    }
    npkfs!("import", place.path("in"), place.store).ok();
    let ran = npkfs!("verify", place.store).ok();
    assert!(ran.stdout.ends_with(": sound: 3 arrays, 23.8 KiB\n"), "{ran:?}");
    let report = npkfs!("verify", "--json", place.store).ok().json();
    assert_eq!((&report["sound"], &report["n_arrays"]), (&json!(true), &json!(3)));

    place.write("data.npk/data_stray~9.npkd", b"left by a writer that died");
    let ran = npkfs!("verify", place.store).ok();
    assert!(ran.stdout.contains("left over: data_stray~9.npkd"), "{ran:?}");

    fs::remove_file(place.store.join("data_gone.npkd")).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(place.store.join("data_cut.npkd"))
        .unwrap()
        .set_len(4000)
        .unwrap();
    let ran = npkfs!("verify", place.store).complains(3, &["damaged: 2 problems"]);
    let damaged: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("damaged: ")).collect();
    assert_eq!(damaged.len(), 2);
    assert!(damaged.iter().any(|line| line.contains("\"cut\"") && line.contains("4000")), "{damaged:?}");
    assert!(damaged.iter().any(|line| line.contains("\"gone\"") && line.contains("missing")), "{damaged:?}");
    let report = npkfs!("verify", "--json", place.store).complains(3, &["damaged"]).json();
    assert_eq!(report["sound"], false);
    assert_eq!(report["problems"].as_array().unwrap().len(), 2);

    // What is whole can still be had.
    npkfs!("export", place.store, place.path("out")).fails(3, &["\"cut\"", "\"gone\""]);
    assert_eq!(fs::read(place.path("out/good.npy")).unwrap(), numbers(1000, 0));
    assert_eq!(files_below(&place.path("out")), ["good.npy"]);
}

#[test]
fn a_damaged_manifest_is_damage() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(10, 0));
    for n in 0..4 {
        npkfs!("import", "--name", format!("a{n}"), file, place.store).ok();
    }
    let manifest = place.store.join("metadata.npkm");
    let mut bytes = fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&manifest, &bytes).unwrap();
    let ran = npkfs!("verify", place.store).complains(3, &["damaged: 1 problem"]);
    assert!(ran.stdout.contains("metadata.npkm"), "{ran:?}");
    for command in ["ls", "info"] {
        npkfs!(command, place.store).fails(3, &["metadata.npkm", "npkfs verify"]);
    }
    npkfs!("import", "--name", "b", file, place.store).fails(3, &["metadata.npkm"]);
    assert_eq!(fs::read(&manifest).unwrap(), bytes, "nothing is written");
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let place = Place::new();
    let plain = place.write("plain.txt", b"text");
    for command in ["ls", "info", "verify", "compact", "recompress", "config"] {
        npkfs!(command, place.store).fails(1, &["data.npk", "no such directory"]);
        npkfs!(command, plain).fails(1, &["plain.txt", "not a directory"]);
        npkfs!(command, place.dir.path()).fails(1, &["not an npk store"]);
    }
    npkfs!("rm", place.store, "a").fails(1, &["no such directory"]);
    npkfs!("mv", place.store, "a", "b").fails(1, &["no such directory"]);
    npkfs!("export", place.store, place.path("out")).fails(1, &["no such directory"]);
    assert_eq!(files_below(place.dir.path()), ["plain.txt"]);
}

#[test]
fn wrong_usage_is_told_with_exit_code_2() {
    npkfs!("frobnicate").fails(2, &["frobnicate", "Usage"]);
    npkfs!("ls").fails(2, &["STORE"]);
    npkfs!("ls", "--bogus", "x").fails(2, &["--bogus"]);
    npkfs!("umount", "--timeout", "soon", "x").fails(2, &["soon"]);
    let none: [&str; 0] = [];
    assert_eq!(crate::common::npkfs(none).code, Some(2));
}

#[test]
fn help_and_version_are_data() {
    let ran = npkfs!("--help").ok();
    assert!(ran.stdout.contains("import") && ran.stdout.contains("3 store damaged"), "{ran:?}");
    assert_eq!(ran.stderr, "");
    assert_eq!(npkfs!("--version").ok().stdout, format!("npkfs {}\n", env!("CARGO_PKG_VERSION")));
    let commands = [
        "mount",
        "umount",
        "import",
        "export",
        "ls",
        "info",
        "verify",
        "rm",
        "mv",
        "compact",
        "recompress",
        "config",
    ];
    for command in commands {
        let help = npkfs!(command, "--help").ok().stdout;
        for option in help.split("\n  -").skip(1).filter(|text| !text.contains("Print help")) {
            assert!(option.contains("default"), "{command}: no default in {option:?}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(1, 0));
    npkfs!("import", file, place.store).ok();
    for args in [&["ls"][..], &["info", "--json"], &["verify"]] {
        let mut child = command()
            .args(args)
            .arg(&place.store)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), &*said), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(1, 0));
    npkfs!("import", file, place.store).ok();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command().arg("ls").arg(&place.store).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("npkfs: cannot write to stdout"));
}

#[test]
fn verbosity_is_chosen_by_options_and_environment() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(1, 0));
    assert_eq!(npkfs!("-q", "import", file, place.store).ok().stderr, "");
    assert!(npkfs!("mv", "-v", place.store, "a", "b").ok().stderr.contains("renamed \"a\" to \"b\""));
    assert_eq!(npkfs!("mv", place.store, "b", "c").ok().stderr, "");
    let output =
        command().env("NPKFS_LOG", "info").args(["mv"]).arg(&place.store).args(["c", "d"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("npkfs: "));
    npkfs!("-q", "-v", "ls", place.store).fails(2, &["cannot be used with"]);
}

#[test]
fn names_on_the_command_line_are_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    let file = place.write("a.npy", &numbers(1, 0));
    npkfs!("import", file, place.store).ok();
    let bad = OsStr::from_bytes(b"caf\xe9");
    npkfs!("export", place.store, bad, place.path("out")).fails(2, &["UTF-8"]);
    let path = place.dir.path().join(OsStr::from_bytes(b"caf\xe9.npy"));
    fs::copy(&file, &path).unwrap();
    npkfs!("import", path, place.store).fails(1, &["not imported", "UTF-8", "rename it"]);
    npkfs!("import", "--name", "cafe", path, place.store).ok();
    // Paths are what the system says they are.
    let out = place.dir.path().join(OsStr::from_bytes(b"out\xe9"));
    npkfs!("export", place.store, "cafe", out).ok();
    assert_eq!(fs::read(out.join("cafe.npy")).unwrap(), numbers(1, 0));
}
