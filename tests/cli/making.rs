//! Making arrays through a mount with the programs that people use for it, by every kind of user that can mount.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::common::{files_below, npy, numbers};
use crate::npkfs;
use crate::ways::{Way, each_way, has_program, is_running, signal, soon};

/// Runs a program as the user who mounts.
fn run(way: &Way, program: &str, args: &[&Path]) -> Output {
    way.other_command(program).args(args).output().expect("the program runs")
}

#[track_caller]
fn ok(way: &Way, program: &str, args: &[&Path]) -> String {
    let output = run(way, program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("stdout is text")
}

/// Arrays in folders, of an age, as somebody has them on a disk.
fn make_source(way: &Way) -> std::path::PathBuf {
    let complex = npy("[('x', '<f8'), ('y', 'S3')]", "(2,)", &[65; 22]);
    way.place.write("src/ids.npy", &numbers(200_000, 5));
    way.place.write("src/g/h/small.npy", &numbers(3, 0));
    way.place.write("src/g/structured.npy", &complex);
    let source = way.place.path("src");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for path in ["ids.npy", "g/h/small.npy", "g/structured.npy", "g/h", "g", ""] {
        fs::File::open(source.join(path)).unwrap().set_modified(old).unwrap();
    }
    source
}

/// The arrays that the store has, and whether it is sound.
#[track_caller]
fn stored(way: &Way) -> Vec<String> {
    npkfs!["verify", &way.place.store].ok();
    npkfs!["ls", &way.place.store].ok().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn arrays_are_copied_in_byte_for_byte() {
    for options in ["compress=off", "compress=zstd"] {
        each_way(|way| {
            way.make_store(&[("old", numbers(10, 0))]);
            let source = make_source(way);
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            let (ids, at) = (source.join("ids.npy"), |name: &str| way.mnt.join(name));
            ok(way, "cp", &[&ids, &at("cp.npy")]);
            ok(way, "cp", &["-a".as_ref(), &ids, &at("cp-a.npy")]);
            ok(way, "cp", &[&ids, &at("old.npy")]);
            let of = |path: &Path, name: &str| format!("{name}={}", path.display());
            let dd = [of(&ids, "if"), of(&at("dd.npy"), "of"), "bs=100000".into(), "status=none".into()];
            ok(way, "dd", &dd.each_ref().map(Path::new));
            for name in ["cp.npy", "cp-a.npy", "old.npy", "dd.npy"] {
                ok(way, "cmp", &[&ids, &at(name)]);
            }
            assert_eq!(fs::metadata(&ids).unwrap().mtime(), 1_000_000_000);
            let mtime = ok(way, "stat", &["-c".as_ref(), "%Y".as_ref(), &at("cp-a.npy")]);
            assert_eq!(mtime, "1000000000\n");

            // Whole folders.
            ok(way, "cp", &["-a".as_ref(), &source, &at("tree")]);
            ok(way, "mkdir", &[&at("tar")]);
            let archive = way.place.path("src.tar");
            let packed = std::process::Command::new("tar")
                .args(["cf".as_ref(), archive.as_os_str(), "-C".as_ref(), source.as_os_str(), ".".as_ref()])
                .status();
            assert!(packed.unwrap().success());
            for _ in 0..2 {
                ok(way, "tar", &["xf".as_ref(), &archive, "-C".as_ref(), &at("tar")]);
            }
            for name in ["tree", "tar"] {
                ok(way, "diff", &["-r".as_ref(), &source, &at(name)]);
            }
            let expected = ["cp", "cp-a", "dd", "old", "tar/g/h/small", "tar/g/structured", "tar/ids"];
            let expected = [&expected[..], &["tree/g/h/small", "tree/g/structured", "tree/ids"]].concat();
            let mut arrays = stored(way);
            arrays.sort();
            assert_eq!(arrays, expected);
            let info = npkfs!["info", "--json", &way.place.store, "tree/ids"].ok().json();
            assert_eq!(info["codec"].is_null(), options == "compress=off", "{info}");

            // Names and folders.
            ok(way, "mv", &[&at("dd.npy"), &at("tree/g/moved.npy")]);
            ok(
                way,
                "rmdir",
                &[&{
                    ok(way, "mkdir", &["-p".as_ref(), &at("empty/er")]);
                    at("empty/er")
                }],
            );
            ok(way, "rm", &["-r".as_ref(), &at("tar"), &at("empty")]);
            ok(way, "cmp", &[&ids, &at("tree/g/moved.npy")]);
            assert_eq!(way.files().len(), 7);
            way.umount().ok();
            assert!(!way.place.store.join("lost+found").exists());
            // Folders that nobody made here are removed as well.
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            ok(way, "rm", &["-r".as_ref(), &at("tree")]);
            assert_eq!(way.files(), ["cp-a.npy", "cp.npy", "old.npy"]);
            way.umount().ok();
            assert_eq!(stored(way).len(), 3);
        });
    }
}

#[test]
fn rsync_copies_in_and_finds_nothing_to_do_afterwards() {
    if let Err(reason) = has_program("rsync") {
        return eprintln!("SKIPPED: {reason}");
    }
    each_way(|way| {
        way.make_store(&[("ids", numbers(10, 0))]);
        let source = make_source(way);
        let _unmount = way.mount();
        let from = Path::new(source.to_str().unwrap()).join("");
        for to in [way.mnt.join(""), way.mnt.join("new/")] {
            ok(way, "rsync", &["-a".as_ref(), &from, &to]);
            assert_eq!(ok(way, "rsync", &["-ai".as_ref(), &from, &to]), "");
            ok(way, "diff", &["-r".as_ref(), "-x".as_ref(), "new".as_ref(), &source, &to]);
        }
        // What changed, and what is gone.
        way.place.write("src/g/h/small.npy", &numbers(4, 9));
        fs::remove_file(source.join("g/structured.npy")).unwrap();
        ok(way, "rsync", &["-a".as_ref(), "--delete".as_ref(), &from, &way.mnt.join("new/")]);
        ok(way, "diff", &["-r".as_ref(), &source, &way.mnt.join("new")]);
        way.umount().ok();
        assert!(!way.place.store.join("lost+found").exists());
    });
}

#[test]
fn backups_of_arrays_are_plain_files_and_come_back() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0)), ("big", numbers(100_000, 7))]);
        let new = way.place.write("in/new.npy", &numbers(10, 99));
        for options in ["compress=off", "compress=zstd"] {
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            let at = |name: &str| way.mnt.join(name);
            // There and back, by way of another folder, over what is there.
            ok(way, "mkdir", &[&at("g")]);
            for (name, bytes) in [("a", numbers(10, 0)), ("big", numbers(100_000, 7))] {
                let array = at(&format!("{name}.npy"));
                ok(way, "mv", &[&array, &at("g/x.bak")]);
                assert!(!stored(way).contains(&name.to_owned()));
                assert!(way.read("g/x.bak") == bytes);
                ok(way, "cp", &[&new, &array]);
                ok(way, "mv", &[&at("g/x.bak"), &array]);
                assert!(way.read(&format!("{name}.npy")) == bytes);
            }
            // What cp and rsync keep of what they replace, and editors, which write a new file and rename twice.
            ok(way, "cp", &["--backup=simple".as_ref(), &new, &at("a.npy")]);
            assert_eq!((way.read("a.npy"), way.read("a.npy~")), (numbers(10, 99), numbers(10, 0)));
            ok(way, "mv", &[&at("a.npy~"), &at("a.npy")]);
            if has_program("rsync").is_ok() {
                ok(way, "rsync", &["-ac".as_ref(), "--backup".as_ref(), &new, &at("a.npy")]);
                assert_eq!((way.read("a.npy"), way.read("a.npy~")), (numbers(10, 99), numbers(10, 0)));
                ok(way, "mv", &["-f".as_ref(), &at("a.npy~"), &at("a.npy")]);
            }
            ok(way, "cp", &[&new, &at("a.tmp")]);
            ok(way, "mv", &[&at("a.npy"), &at("a.bak")]);
            ok(way, "mv", &[&at("a.tmp"), &at("a.npy")]);
            // Others find them next time, too.
            way.umount().ok();
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            assert_eq!((way.read("a.npy"), way.read("a.bak")), (numbers(10, 99), numbers(10, 0)));
            ok(way, "mv", &[&at("a.bak"), &at("a.npy")]);
            assert_eq!(way.files(), ["a.npy", "big.npy"]);
            way.umount().ok();
            assert!(files_below(&way.place.store.join("files")).is_empty());
            assert!(!way.place.store.join("lost+found").exists());
        }
    });
}

/// Hundreds of small files, locks, renames and folders, and all of it again through the next mount.
#[test]
fn a_repository_in_a_mount_is_whole_in_the_next_one() {
    if let Err(reason) = has_program("git") {
        return eprintln!("SKIPPED: {reason}");
    }
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let git = "HOME=/nonexistent GIT_CONFIG_GLOBAL=/dev/null git -C $0/repo -c user.name=n -c user.email=e -c safe.directory='*'";
        {
            let _unmount = way.mount();
            ok(way, "mkdir", &[&way.mnt.join("repo")]);
            let script = format!(
                "{git} init -q; cp $0/a.npy $0/repo; echo text >$0/repo/notes.txt; {git} add .; {git} commit -qm first"
            );
            ok(way, "sh", &["-ec".as_ref(), Path::new(&script), &way.mnt]);
            way.umount().ok();
        }
        let _unmount = way.mount();
        let script = format!("{git} fsck --strict && {git} status --short && {git} log --format=%s");
        assert_eq!(ok(way, "sh", &["-ec".as_ref(), Path::new(&script), &way.mnt]), "first\n");
        way.umount().ok();
    });
}

#[test]
fn what_is_no_array_is_refused_and_kept() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let text = way.place.write("in/text", b"no array");
        let half = way.place.write("in/half", &numbers(10, 0)[..100]);
        let _unmount = way.mount();
        let output = run(way, "cp", &[&text, &way.mnt.join("a.npy")]);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("Invalid argument"), "{output:?}");
        ok(way, "cp", &[&text, &way.mnt.join("notes.txt")]);
        ok(way, "cp", &[&half, &way.mnt.join("half.npy")]);
        assert_eq!(way.read("a.npy"), b"no array");
        assert_eq!(way.files(), ["a.npy", "half.npy", "notes.txt"]);
        assert_eq!(stored(way), ["a"]);
        way.umount().ok();
        let lost = way.place.store.join("lost+found");
        assert_eq!(files_below(&lost), ["a.npy", "half.npy"]);
        assert_eq!(fs::read(lost.join("half.npy")).unwrap(), numbers(10, 0)[..100]);
        way.run(["export".as_ref(), way.place.store.as_os_str(), way.place.path("out").as_os_str()]).ok();
        assert_eq!(fs::read(way.place.path("out/a.npy")).unwrap(), numbers(10, 0));
        // Once more: nothing of before is overwritten.
        let _unmount = way.mount();
        assert_eq!(way.files(), ["a.npy", "notes.txt"]);
        ok(way, "cmp", &[&text, &way.mnt.join("notes.txt")]);
        ok(way, "cp", &[&half, &way.mnt.join("half.npy")]);
        way.umount().ok();
        assert_eq!(files_below(&lost), ["a.npy", "half.npy", "half.npy~1"]);
    });
}

#[test]
fn a_signal_leaves_what_is_not_whole_in_lost_and_found() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let half = way.place.write("in/half", &numbers(10, 0)[..100]);
        let _unmount = way.mount();
        ok(way, "cp", &[&half, &way.mnt.join("half.npy")]);
        let pid = way.server().expect("somebody serves");
        signal(pid, Signal::TERM);
        soon("the end of the mount", || !way.is_mounted() && !is_running(pid));
        assert_eq!(files_below(&way.place.store.join("lost+found")), ["half.npy"]);
    });
}
