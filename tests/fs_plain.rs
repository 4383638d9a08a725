//! Plain files without a kernel: those of names that no array has, which the next mount shows, too; and arrays that are
//! renamed to such names, and back. Wherever the process dies, one of the two is there, and whole.

mod common;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use common::fixture::*;
use common::{FaultyStorage, LastWrite};
use numpack::fs::{Fh, Fs, FsError, Ino, NewFile, OpenFlags, Rename, SetMode};
use numpack::store::{Access, Compression, Store};
use numpack::sys::DirStorage;
use tempfile::TempDir;

const EMPTY: OpenFlags = OpenFlags { write: true, truncate: true };
const BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: None };

/// A mount of the store at `path`, which may be the next one.
fn mount(path: &Path) -> Fixture {
    let open = || Store::open(path, Access::Write).unwrap();
    Fixture::over(open(), open(), false)
}

fn each_kind(test: impl Fn(&Path)) {
    for compression in [None, Some(BLOCKS)] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("data.npk");
        let store = Store::create(&path).unwrap();
        for (name, n_rows, first) in [("a", 3000, 0), ("g/b", 2, 100)] {
            save(&store, name, n_rows, first);
            store.recompress(name, compression.as_ref(), &mut |_| {}).unwrap();
        }
        test(&path);
    }
}

fn bytes_of(f: &Fixture, path: &str) -> Vec<u8> {
    let ino = f.lookup(path).unwrap().ino;
    let fh = if ino.is_pending() {
        f.fs.open_pending(ino, READ, CALLER).unwrap()
    } else {
        f.fs.open(ino, READ, CALLER).unwrap().fh
    };
    let bytes = f.read(fh);
    f.fs.release(fh);
    bytes
}

fn create(f: &Fixture, path: &str, bytes: &[u8]) -> Fh {
    let (parent, name) = f.parent(path);
    let new = NewFile { write: true, truncate: true, ..NewFile::default() };
    let (_, fh) = f.fs.create(parent, OsStr::new(&name), new, CALLER).unwrap();
    f.fs.write(fh, 0, bytes, false).unwrap();
    fh
}

fn close(f: &Fixture, fh: Fh) -> Result<(), FsError> {
    let flushed = f.fs.flush(fh).and_then(|finish| if finish { f.fs.finish(fh) } else { Ok(()) });
    if let Some(closed) = f.fs.release(fh) {
        f.fs.finish_closed(closed);
    }
    flushed
}

fn put(f: &Fixture, path: &str, bytes: &[u8]) {
    let fh = create(f, path, bytes);
    close(f, fh).unwrap();
}

fn names_in(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_array_under_a_name_that_no_array_has_is_a_plain_file() {
    each_kind(|path| {
        let f = mount(path);
        let before = bytes_of(&f, "a.npy");
        let mapped = f.open("a.npy", READ).unwrap().fh;
        f.fs.setxattr(
            f.lookup("a.npy").unwrap().ino,
            OsStr::new("user.npk.attrs.unit"),
            b"\"m\"",
            SetMode::Any,
        )
        .unwrap();
        f.rename("a.npy", "g/a.bak", Rename::NoReplace).unwrap();
        assert_eq!(f.tree(), ["g/", "g/a.bak", "g/b.npy"].map(str::to_owned).into());
        assert!(bytes_of(&f, "g/a.bak") == before);
        f.other.refresh().unwrap();
        assert!(!f.other.contains("a"));
        // Who has the array open reads on.
        assert!(f.read(mapped) == before);
        assert_errno(f.rename("g/b.npy", "g/a.bak", Rename::NoReplace), libc::EEXIST);
        // It is there again without the mount's end having been awaited, and after it.
        for _ in 0..2 {
            let crashed = copy_of(path);
            let next = mount(&crashed.path().join("data.npk"));
            assert!(bytes_of(&next, "g/a.bak") == before);
            assert_errno(next.lookup("a.npy"), libc::ENOENT);
            f.fs.end();
        }
        // Another array over it.
        f.rename("g/b.npy", "g/a.bak", Rename::Replace).unwrap();
        assert_eq!(values_of(&bytes_of(&f, "g/a.bak")), [100, 101, 102, 103]);
        assert_eq!(names_in(&path.join("files")).len(), 1);
        // And back: an array of the same bytes, compressed as it was.
        f.rename("g/a.bak", "c.npy", Rename::Replace).unwrap();
        assert_eq!(values_of(&bytes_of(&f, "c.npy")), [100, 101, 102, 103]);
        assert!(names_in(&path.join("files")).is_empty());
        f.other.refresh().unwrap();
        assert_eq!(
            f.other.array("c").unwrap().compression().is_some(),
            f.other.contains("c") && path_is_compressed(&f)
        );
        assert!(numpack::store::verify(path).unwrap().problems.is_empty());
    });
}

/// Whether the arrays of this store are compressed.
fn path_is_compressed(f: &Fixture) -> bool {
    f.other.array("c").unwrap().codec().is_some()
}

/// The store as it is on the disk now: as a process that is killed leaves it.
fn copy_of(path: &Path) -> TempDir {
    let dir = TempDir::new().unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(path).arg(dir.path()).status().unwrap();
    assert!(copied.success());
    dir
}

#[test]
fn attributes_come_along_there_and_back() {
    each_kind(|path| {
        let f = mount(path);
        let name = OsStr::new("user.npk.attrs.unit");
        f.fs.setxattr(f.lookup("a.npy").unwrap().ino, name, b"m", SetMode::Any).unwrap();
        f.rename("a.npy", "a.bak", Rename::Replace).unwrap();
        f.rename("a.bak", "d.npy", Rename::Replace).unwrap();
        assert_eq!(f.fs.getxattr(f.lookup("d.npy").unwrap().ino, name).unwrap(), b"\"m\"");
    });
}

#[test]
fn an_array_whose_file_is_not_its_npy_file_is_copied() {
    each_kind(|path| {
        let f = mount(path);
        f.other.drop_rows(&["a"], &[0, 5]).unwrap();
        let before = bytes_of(&f, "a.npy");
        f.rename("a.npy", "a.npy~", Rename::Replace).unwrap();
        assert!(bytes_of(&f, "a.npy~") == before);
        f.rename("a.npy~", "a.npy", Rename::Replace).unwrap();
        assert!(bytes_of(&f, "a.npy") == before);
        // Of no other the bytes are copied.
        let f = Fixture::with(|store| save(store, "x", 3000, 0), false);
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let data = inode(&f.path.join("data_x.npkd"));
        f.rename("x.npy", "x.bak", Rename::Replace).unwrap();
        let file = f.path.join("files").join(&names_in(&f.path.join("files"))[0]);
        assert_eq!(inode(&file), data);
        f.rename("x.bak", "x.npy", Rename::Replace).unwrap();
        f.other.refresh().unwrap();
        assert_eq!(inode(&f.path.join(f.other.array("x").unwrap().file_name())), data);
    });
}

#[test]
fn a_plain_file_that_was_an_array_is_changed_without_those_who_have_that_seeing_it() {
    each_kind(|path| {
        let f = mount(path);
        let before = bytes_of(&f, "a.npy");
        let array = f.other.array("a").unwrap();
        let map = array.map().unwrap();
        f.rename("a.npy", "a.bak", Rename::Replace).unwrap();
        let ino = f.lookup("a.bak").unwrap().ino;
        let fh = f.fs.open_pending(ino, WRITE, CALLER).unwrap();
        f.fs.write(fh, 4, b"changed", false).unwrap();
        close(&f, fh).unwrap();
        assert_eq!(&bytes_of(&f, "a.bak")[4..11], b"changed");
        let fh = f.fs.open_pending(ino, EMPTY, CALLER).unwrap();
        close(&f, fh).unwrap();
        assert!(bytes_of(&f, "a.bak").is_empty());
        // Mapped pages of a file that was cut would end this process.
        let mut bytes = vec![0; before.len()];
        assert_eq!(array.read_npy_at(0, &mut bytes).unwrap(), before.len());
        assert!(bytes == before && map.is_none_or(|map| map[..] == before[array.header_len() as usize..]));
        assert_eq!(names_in(&path.join("files")).len(), 1);
        assert!(bytes_of(&mount(&copy_of(path).path().join("data.npk")), "a.bak").is_empty());
    });
}

#[test]
fn plain_files_are_there_again_when_the_store_is_next_mounted() {
    each_kind(|path| {
        let f = mount(path);
        f.fs.mkdir(Ino::ROOT, OsStr::new("h"), Default::default()).unwrap();
        put(&f, "g/notes.txt", b"text");
        put(&f, "h/empty", b"");
        put(&f, "removed", b"x");
        put(&f, "h/moved", b"moved");
        put(&f, "half.npy", &bytes_of(&f, "a.npy")[..300]);
        let synced = create(&f, "synced", b"on the disk");
        f.fs.fsync(synced).unwrap();
        // What was synced is there after the process was killed, under the name that it had then.
        f.rename("synced", "h/synced", Rename::Replace).unwrap();
        let killed = copy_of(path);
        let next = mount(&killed.path().join("data.npk"));
        assert_eq!(bytes_of(&next, "h/synced"), b"on the disk");
        assert_errno(next.lookup("g/notes.txt"), libc::ENOENT);
        drop(next);
        f.rename("h", "k", Rename::Replace).unwrap();
        assert_eq!(bytes_of(&mount(&copy_of(path).path().join("data.npk")), "k/synced"), b"on the disk");
        f.unlink("removed").unwrap();
        f.fs.end();
        drop(f);

        let f = mount(path);
        let expected = ["a.npy", "g/", "g/b.npy", "g/notes.txt", "k/", "k/empty", "k/moved", "k/synced"];
        assert_eq!(f.tree(), expected.map(str::to_owned).into());
        assert_eq!((&*bytes_of(&f, "g/notes.txt"), &*bytes_of(&f, "k/moved")), (&b"text"[..], &b"moved"[..]));
        // They are files as any others: written to, renamed, removed, for good.
        let fh = f.fs.open_pending(f.lookup("g/notes.txt").unwrap().ino, WRITE, CALLER).unwrap();
        f.fs.write(fh, 4, b", and more", false).unwrap();
        close(&f, fh).unwrap();
        f.rename("k/moved", "g/notes.old", Rename::Replace).unwrap();
        f.rename("k/synced", "g/notes.old", Rename::Replace).unwrap();
        f.unlink("k/empty").unwrap();
        f.fs.end();
        drop(f);
        let f = mount(path);
        let expected = ["a.npy", "g/", "g/b.npy", "g/notes.old", "g/notes.txt"];
        assert_eq!(f.tree(), expected.map(str::to_owned).into());
        assert_eq!(bytes_of(&f, "g/notes.txt"), b"text, and more");
        assert_eq!(bytes_of(&f, "g/notes.old"), b"on the disk");
        drop(f);
        // A mount for reading shows them.
        let open = |access| Store::open(path, access).unwrap();
        let f = Fixture::over(open(Access::Read), open(Access::Read), true);
        assert_eq!(bytes_of(&f, "g/notes.txt"), b"text, and more");
        assert_errno(f.rename("g/notes.txt", "x", Rename::Replace), libc::EROFS);
        f.fs.end();
        assert_eq!(names_in(&path.join("files")).len(), 2);
    });
}

#[test]
fn one_mount_at_a_time_has_the_plain_files() {
    each_kind(|path| {
        let first = mount(path);
        first.rename("a.npy", "a.bak", Rename::Replace).unwrap();
        let second = mount(path);
        assert_errno(second.lookup("a.bak"), libc::ENOENT);
        assert_errno(second.rename("g/b.npy", "b.bak", Rename::Replace), libc::EBUSY);
        assert_eq!(second.values("g/b.npy"), [100, 101, 102, 103]);
        put(&second, "notes.txt", b"text");
        drop(first);
        // Who comes next, or has waited, has them.
        second.rename("g/b.npy", "b.bak", Rename::Replace).unwrap();
        second.lookup("a.bak").unwrap();
        second.fs.end();
        drop(second);
        let third = mount(path);
        assert_eq!(
            third.tree(),
            ["a.bak", "b.bak", "g/", "notes.txt"]
                .into_iter()
                .filter(|name| *name != "g/")
                .map(str::to_owned)
                .collect()
        );
    });
}

#[test]
fn paths_that_are_too_long_are_not_kept() {
    each_kind(|path| {
        let f = mount(path);
        let long = "x".repeat(210);
        assert_errno(f.rename("a.npy", &long, Rename::Replace), libc::ENAMETOOLONG);
        put(&f, &long, b"text");
        f.fs.end();
        assert_eq!(names_in(&path.join("lost+found")).len(), 1);
        assert!(f.lookup("a.npy").is_ok());
    });
}

#[test]
fn two_arrays_change_names_in_one_commit() {
    each_kind(|path| {
        let f = mount(path);
        let (a, b) = (f.lookup("a.npy").unwrap().ino, f.lookup("g/b.npy").unwrap().ino);
        f.rename("a.npy", "g/b.npy", Rename::Exchange).unwrap();
        assert_eq!((f.lookup("a.npy").unwrap().ino, f.lookup("g/b.npy").unwrap().ino), (b, a));
        assert_eq!(f.values("a.npy"), [100, 101, 102, 103]);
        f.other.refresh().unwrap();
        assert_eq!(f.other.array("g/b").unwrap().shape(), [3000, 2]);
        assert_errno(f.rename("a.npy", "c.npy", Rename::Exchange), libc::ENOENT);
        put(&f, "plain", b"text");
        assert_errno(f.rename("a.npy", "plain", Rename::Exchange), libc::EOPNOTSUPP);
        assert_errno(f.rename("plain", "a.npy", Rename::Exchange), libc::EOPNOTSUPP);
        assert_errno(f.rename("a.npy", "g", Rename::Exchange), libc::EOPNOTSUPP);
    });
}

/// The death of the process that serves the mount, at each call that changes something.
#[test]
fn wherever_the_process_dies_there_is_the_array_or_the_file() {
    for (from, to) in [("a.npy", "x.bak"), ("x.bak", "g/b.npy"), ("x.bak", "y.bak")] {
        each_kind(|original| {
            let whole = |f: &Fixture, path: &str| f.lookup(path).ok().map(|_| bytes_of(f, path));
            // What there is before: an array, and a plain file that was one, over which another one comes.
            let f = mount(original);
            f.rename("g/b.npy", "x.bak", Rename::Replace).unwrap();
            save(&f.other, "g/b", 7, 500);
            put(&f, "y.bak", b"something else");
            f.fs.end();
            drop(f);
            let before = {
                let f = mount(original);
                [whole(&f, from), whole(&f, to)]
            };
            let source = before[0].clone().unwrap();
            let mut n_cuts = 0;
            for n in 1.. {
                let dir = copy_of(original);
                let path = dir.path().join("data.npk");
                let storage = FaultyStorage::new(Arc::new(DirStorage::open(&path).unwrap()));
                let open = || Store::with_storage(Box::new(storage.clone()), Access::Write).unwrap();
                let f = Fixture::over(open(), open(), false);
                storage.die_at(storage.calls().len() + n, LastWrite::Torn);
                let result = f.rename(from, to, Rename::Replace);
                let died = storage.is_dead();
                drop(f);
                let told = format!("{from} -> {to}: {:?}, call {n}", storage.failed_call());
                let next = mount(&path);
                let now = [whole(&next, from), whole(&next, to)];
                let is_old = now == before;
                let is_new = now == [None, Some(source.clone())];
                // A plain file becomes an array by a commit, and loses its name behind it.
                let is_both = now == [Some(source.clone()), Some(source.clone())] && to.ends_with(".npy");
                assert!(is_old && result.is_err() || is_new || is_both, "{told}: {:?}", result);
                // Nothing is left over, and neither changes with the other.
                next.fs.end();
                drop(next);
                let next = mount(&path);
                assert!([whole(&next, from), whole(&next, to)] == now, "{told}");
                assert!(numpack::store::verify(&path).unwrap().problems.is_empty(), "{told}");
                let n_shown = next.tree().iter().filter(|path| path.ends_with(".bak")).count();
                assert_eq!(names_in(&path.join("files")).len(), n_shown, "{told}");
                n_cuts += 1;
                if !died {
                    result.unwrap();
                    break;
                }
            }
            assert!(n_cuts > 1, "{from} -> {to}: {n_cuts}");
        });
    }
}

/// An error at each call leaves both names as they were, or does what was asked.
/// Its array was there again then, without its data file, and the copy was taken for half of a step and removed.
#[test]
fn a_plain_file_outlives_an_old_manifest_that_is_put_back() {
    each_kind(|path| {
        let manifest = path.join("metadata.npkm");
        let old = std::fs::read(&manifest).unwrap();
        let f = mount(path);
        let before = bytes_of(&f, "a.npy");
        f.rename("a.npy", "a.bak", Rename::Replace).unwrap();
        f.fs.end();
        drop(f);
        std::fs::write(&manifest, old).unwrap();
        for _ in 0..2 {
            assert!(bytes_of(&mount(path), "a.bak") == before);
        }
    });
}

#[test]
fn what_fails_changes_no_name() {
    each_kind(|original| {
        for n in 1.. {
            let dir = copy_of(original);
            let path = dir.path().join("data.npk");
            let storage = FaultyStorage::new(Arc::new(DirStorage::open(&path).unwrap()));
            let open = || Store::with_storage(Box::new(storage.clone()), Access::Write).unwrap();
            let f = Fixture::over(open(), open(), false);
            let before = bytes_of(&f, "a.npy");
            storage.fail_at(storage.calls().len() + n, std::io::Error::from_raw_os_error(libc::ENOSPC));
            let result = f.rename("a.npy", "a.bak", Rename::Replace);
            let failed = storage.failed_call();
            match (&result, f.lookup("a.npy")) {
                (Err(_), Ok(_)) => assert!(bytes_of(&f, "a.npy") == before, "{failed:?}"),
                _ => assert!(bytes_of(&f, "a.bak") == before, "{failed:?}"),
            }
            if failed.is_none() {
                result.unwrap();
                break;
            }
        }
    });
}

#[test]
fn a_file_system_over_old_stores_needs_no_plain_files() {
    let f = Fixture::with(|store| save(store, "a", 1, 0), false);
    assert!(!f.path.join("files").exists());
    put(&f, "x", b"");
    f.unlink("x").unwrap();
    f.fs.end();
    assert!(!f.path.join("files").exists(), "nothing is made before something is to be kept");
    let _: &Fs = &f.fs;
}
