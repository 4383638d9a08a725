//! File-system semantics without a kernel: one test per paragraph of spec/npkfs-semantics.md.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use common::fixture::*;
use numpack::fs::{Caller, Fh, FileKind, Fs, FsError, Ino, Invalidation, Rename, SetAttr, SetMode, Shown};
use numpack::store::{Access, Attrs, Compression, NewArray, Store};

// Names

#[test]
fn an_array_is_a_file_and_slashes_make_folders() {
    let f = Fixture::new();
    for name in ["a", "g/a", "g/h/a", "g/h/b"] {
        save(&f.other, name, 1, 0);
    }
    let expected = ["a.npy", "g/", "g/a.npy", "g/h/", "g/h/a.npy", "g/h/b.npy"];
    assert_eq!(f.tree(), expected.map(str::to_owned).into());
    assert_eq!(f.lookup("g").unwrap().kind, FileKind::Directory);
    assert_eq!(f.lookup("g").unwrap().nlink, 3);
    assert_eq!(f.lookup("g/h/a.npy").unwrap().kind, FileKind::File);
    for missing in ["b.npy", "a", "g/h/c.npy", "g.npy"] {
        assert_errno(f.lookup(missing), libc::ENOENT);
    }
    let a = f.lookup("a.npy").unwrap().ino;
    assert_errno(f.fs.lookup(a, OsStr::new("x"), CALLER), libc::ENOTDIR);

    f.other.remove(&["g/h/a", "g/h/b"]).unwrap();
    assert_errno(f.lookup("g/h"), libc::ENOENT);
    assert_eq!(f.tree(), ["a.npy", "g/", "g/a.npy"].map(str::to_owned).into());
}

#[test]
fn names_that_a_file_system_cannot_hold_are_escaped() {
    let long = "x".repeat(300);
    let names =
        ["", "/", "a//b", ".", "..", "../x", "x.npy", "x.npy/y", "100%", "%41", "a\nb", "\u{e9}", &long];
    let f = Fixture::with(|store| names.iter().for_each(|name| save(store, name, 1, 0)), false);
    let tree = f.tree();
    let expected = [
        "%00.npy",
        "%00/",
        "%00/%00.npy",
        "a/",
        "a/%00/",
        "a/%00/b.npy",
        "%2E.npy",
        "%2E%2E.npy",
        "%2E%2E/",
        "%2E%2E/x.npy",
        "x.npy.npy",
        "x%2Enpy/",
        "x%2Enpy/y.npy",
        "100%.npy",
        "%2541.npy",
        "a\nb.npy",
        "\u{e9}.npy",
    ];
    for path in expected {
        assert!(tree.contains(path), "{path}: {tree:?}");
    }
    assert_eq!(tree.len(), expected.len() + 1);
    let cut = tree.iter().find(|path| path.starts_with("xxx")).unwrap();
    assert!(cut.len() <= 255 && cut.contains("%~"));
    assert_eq!(f.values(cut), [0, 1]);
}

#[test]
fn new_names_must_be_ones_that_an_array_is_shown_under() {
    let f = Fixture::with(|store| save(store, "a", 1, 0), false);
    assert_errno(f.rename("a.npy", "b%41.npy", Rename::Replace), libc::EINVAL);
    assert_errno(f.rename("a.npy", &"x".repeat(256), Rename::Replace), libc::ENAMETOOLONG);
    let latin1 = OsStr::from_bytes(b"\xe9.npy");
    assert_errno(
        f.fs.rename(Ino::ROOT, OsStr::new("a.npy"), Ino::ROOT, latin1, Rename::Replace),
        libc::EINVAL,
    );
    assert_errno(f.fs.lookup(Ino::ROOT, latin1, CALLER), libc::ENOENT);
    f.rename("a.npy", "50%.npy", Rename::Replace).unwrap();
    f.rename("50%.npy", "%2541.npy", Rename::Replace).unwrap();
    assert_eq!(f.other.arrays().unwrap()[0].name().as_ref(), "%41");
}

// Inodes

#[test]
fn an_inode_is_one_version_of_one_array() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let old = f.lookup("a.npy").unwrap();
    let opened = f.fs.open(old.ino, READ, CALLER).unwrap();
    save(&f.other, "a", 2, 100);
    let new = f.lookup("a.npy").unwrap();
    assert_ne!(old.ino, new.ino);
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(f.values("a.npy"), [100, 101, 102, 103]);
    assert_eq!(f.fs.getattr(old.ino).unwrap().nlink, 0);
    assert_eq!(f.fs.getattr(new.ino).unwrap().nlink, 1);

    f.other.rename("a", "g/b", false).unwrap();
    assert_eq!(f.lookup("g/b.npy").unwrap().ino, new.ino);
    assert_eq!(f.fs.getattr(new.ino).unwrap().nlink, 1);

    f.other.remove(&["g/b"]).unwrap();
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1, 2, 3, 4, 5]);
    f.fs.release(opened.fh);
    f.fs.forget(old.ino, 1);
    assert_errno(f.fs.getattr(old.ino), libc::ESTALE);
}

#[test]
fn compacting_gives_the_name_a_new_inode() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    f.other.drop_rows(&["a"], &[1]).unwrap();
    let dropped = f.open("a.npy", READ).unwrap();
    let ino = f.lookup("a.npy").unwrap().ino;
    f.other.compact("a").unwrap();
    assert_ne!(f.lookup("a.npy").unwrap().ino, ino);
    assert_eq!(values_of(&f.read(dropped.fh)), [0, 1, 4, 5]);
    assert_eq!(f.values("a.npy"), [0, 1, 4, 5]);
}

#[test]
fn appending_lengthens_the_inode_replacing_changes_it_in_place() {
    let f = Fixture::with(|store| save(store, "a", 2, 0), false);
    let before = f.lookup("a.npy").unwrap();
    let opened = f.fs.open(before.ino, READ, CALLER).unwrap();
    append(&f.other, "a", 1, 50);
    let after = f.lookup("a.npy").unwrap();
    f.carry_out();
    assert_eq!(after.ino, before.ino);
    assert_eq!(f.fs.getattr(before.ino).unwrap().size, before.size + 8);
    let bytes = f.read(opened.fh);
    assert_eq!((shape_of(&bytes), values_of(&bytes)), (vec![3, 2], vec![0, 1, 2, 3, 50, 51]));

    f.other.replace("a", &[0], array(&[1, 2], &numbers(70..72))).unwrap();
    assert_eq!(values_of(&f.read(opened.fh)), [70, 71, 2, 3, 50, 51]);
    assert_eq!(f.lookup("a.npy").unwrap().ino, before.ino);
}

#[test]
fn dropping_rows_gives_the_name_a_new_inode() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let whole = f.lookup("a.npy").unwrap();
    let opened = f.fs.open(whole.ino, READ, CALLER).unwrap();
    f.other.drop_rows(&["a"], &[0]).unwrap();
    let rest = f.lookup("a.npy").unwrap();
    assert_ne!(rest.ino, whole.ino);
    assert_eq!((whole.size, rest.size), (4096 + 24, 4096 + 16));
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1, 2, 3, 4, 5]);
    let bytes = f.read_path("a.npy");
    assert_eq!((shape_of(&bytes), values_of(&bytes)), (vec![2, 2], vec![2, 3, 4, 5]));

    append(&f.other, "a", 1, 9);
    assert_eq!(f.lookup("a.npy").unwrap().ino, rest.ino);
    assert_eq!(f.values("a.npy"), [2, 3, 4, 5, 9, 10]);
    // The rows as they were, and no others.
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn inode_numbers_are_the_same_after_each_remount() {
    let f =
        Fixture::with(|store| ["a", "g/b", "g/h/c"].iter().for_each(|name| save(store, name, 3, 0)), false);
    f.other.drop_rows(&["g/b"], &[1]).unwrap();
    let again = Fs::new(Store::open(&f.path, Access::Read).unwrap(), true, |_| {}).unwrap();
    let mut seen = BTreeMap::new();
    for fs in [&f.fs, &again] {
        let mut parent = Ino::ROOT;
        for name in ["g", "h", "c.npy"] {
            parent = fs.lookup(parent, OsStr::new(name), CALLER).unwrap().ino;
            assert_eq!(*seen.entry(name).or_insert(parent), parent);
        }
        let g = seen["g"];
        let b = fs.lookup(g, OsStr::new("b.npy"), CALLER).unwrap().ino;
        assert_eq!(*seen.entry("b.npy").or_insert(b), b);
    }
    assert_eq!(seen.values().collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn a_name_that_led_elsewhere_by_the_time_of_open_is_looked_up_again() {
    let f = Fixture::with(|store| ["a", "b", "c"].iter().for_each(|name| save(store, name, 3, 0)), false);
    let inos = ["a.npy", "b.npy", "c.npy"].map(|name| f.lookup(name).unwrap().ino);
    save(&f.other, "a", 1, 0);
    f.other.drop_rows(&["b"], &[1]).unwrap();
    f.other.remove(&["c"]).unwrap();
    for (ino, caller) in inos.into_iter().zip(10..) {
        assert_errno(f.fs.open(ino, READ, Caller(caller)), libc::ESTALE);
    }
    // The second open gets what the second lookup found, even if that is overwritten by then.
    let again = f.fs.lookup(Ino::ROOT, OsStr::new("a.npy"), Caller(10)).unwrap().ino;
    save(&f.other, "a", 1, 30);
    assert_errno(f.fs.open(again, READ, CALLER), libc::ESTALE);
    let opened = f.fs.open(again, READ, Caller(10)).unwrap();
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1]);
    assert_errno(f.fs.open(again, READ, Caller(10)), libc::ESTALE);
    f.open("a.npy", READ).unwrap();
    f.open("b.npy", READ).unwrap();
    assert_errno(f.open("c.npy", READ), libc::ENOENT);
}

// Attributes

#[test]
fn stat_shows_the_virtual_file() {
    let f = Fixture::with(|store| save(store, "a", 10_000, 0), false);
    let attr = f.lookup("a.npy").unwrap();
    assert_eq!(attr.size, 4096 + 80_000);
    let file = std::fs::metadata(f.path.join("data_a.npkd")).unwrap();
    assert_eq!(attr.blocks, file.blocks());
    assert_eq!(attr.nlink, 1);
    f.other.drop_rows(&["a"], &(0..9_999).collect::<Vec<_>>()).unwrap();
    let attr = f.lookup("a.npy").unwrap();
    assert_eq!((attr.size, attr.blocks), (4096 + 8, file.blocks()));
}

#[test]
fn owner_permissions_and_times_are_the_data_files() {
    let f = Fixture::with(|store| save(store, "a", 1, 0), false);
    let data = f.path.join("data_a.npkd");
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o750)).unwrap();
    std::fs::set_permissions(&f.path, std::fs::Permissions::from_mode(0o711)).unwrap();
    let file = std::fs::metadata(&data).unwrap();
    let attr = f.lookup("a.npy").unwrap();
    assert_eq!((attr.perm, attr.uid, attr.gid), (0o640, file.uid(), file.gid()));
    let root = f.fs.getattr(Ino::ROOT).unwrap();
    assert_eq!((root.perm, root.uid), (0o711, file.uid()));

    let read_only = Fs::new(Store::open(&f.path, Access::Read).unwrap(), false, |_| {}).unwrap();
    assert!(read_only.is_read_only());
    assert_eq!(read_only.lookup(Ino::ROOT, OsStr::new("a.npy"), CALLER).unwrap().perm, 0o440);
    assert_eq!(read_only.getattr(Ino::ROOT).unwrap().perm, 0o511);

    f.other.array("a").unwrap().write_npy_at(4096, &[1; 8]).unwrap();
    let written = f.lookup("a.npy").unwrap();
    assert!(written.mtime >= attr.mtime);
    f.other.set_attrs(Some("a"), BTreeMap::from([("x".to_owned(), 1.into())]), &[]).unwrap();
    assert_eq!(f.lookup("a.npy").unwrap().mtime, f.other.array("a").unwrap().modified().unwrap());

    let before = root.mtime;
    save(&f.other, "b", 1, 0);
    f.lookup("b.npy").unwrap();
    assert!(f.fs.getattr(Ino::ROOT).unwrap().mtime > before);

    std::fs::remove_file(f.path.join("data_b.npkd")).unwrap();
    let missing = f.lookup("b.npy").unwrap();
    assert_eq!((missing.size, missing.blocks), (4096 + 8, 0));
}

#[test]
fn attributes_that_are_as_asked_may_be_set() {
    let f = Fixture::with(|store| save(store, "a", 1, 0), false);
    let attr = f.lookup("a.npy").unwrap();
    let set = |set| f.fs.setattr(attr.ino, set);
    let none = SetAttr::default();
    let same = SetAttr {
        perm: Some(attr.perm),
        uid: Some(attr.uid),
        gid: Some(attr.gid),
        size: Some(attr.size),
        ..none
    };
    assert_eq!(set(same).unwrap().size, attr.size);
    assert_errno(set(SetAttr { perm: Some(attr.perm ^ 0o100), ..none }), libc::EPERM);
    if attr.uid == 0 {
        let given = set(SetAttr { uid: Some(12), gid: Some(34), ..none }).unwrap();
        assert_eq!((given.uid, given.gid), (12, 34));
        let file = std::fs::metadata(f.path.join("data_a.npkd")).unwrap();
        assert_eq!((file.uid(), file.gid()), (12, 34));
    } else {
        assert_errno(set(SetAttr { uid: Some(attr.uid + 1), ..none }), libc::EPERM);
    }
    assert_errno(set(SetAttr { size: Some(8), ..none }), libc::EINVAL);
    assert_errno(set(SetAttr { size: Some(attr.size + 1), ..none }), libc::EINVAL);
    let later = attr.mtime + std::time::Duration::from_secs(100);
    assert_eq!(set(SetAttr { mtime: Some(later), atime: Some(later), ..none }).unwrap().mtime, later);
    assert_eq!(f.lookup("a.npy").unwrap().atime, later);
    // Before the last commit, too; other mounts and the API see it.
    let earlier = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890);
    assert_eq!(set(SetAttr { mtime: Some(earlier), ..none }).unwrap().mtime, earlier);
    assert_eq!(f.lookup("a.npy").unwrap().mtime, earlier);
    assert_eq!(f.other.array("a").unwrap().modified().unwrap(), earlier);
    assert_eq!(set(SetAttr { perm: Some(0o600), ..none }).unwrap().perm, 0o600);
    let folder = |set| f.fs.setattr(Ino::ROOT, set);
    assert_eq!(folder(SetAttr { mtime: Some(earlier), ..none }).unwrap().mtime, earlier);
    assert_eq!(f.fs.getattr(Ino::ROOT).unwrap().mtime, earlier);
    // Found by pjdfstest: all times of a folder were as that when a name in it changed.
    let set = folder(SetAttr { atime: Some(later), ..none }).unwrap();
    assert_eq!(set.atime, later);
    let before = set.ctime;
    std::thread::sleep(std::time::Duration::from_millis(1));
    let set = folder(SetAttr { perm: Some(0o700), ..none }).unwrap();
    assert!(set.ctime > before && set.mtime == earlier);
    assert_eq!(f.fs.getattr(Ino::ROOT).unwrap().mtime, earlier);
    save(&f.other, "b", 1, 0);
    f.lookup("b.npy").unwrap();
    assert!(f.fs.getattr(Ino::ROOT).unwrap().mtime > earlier);
    assert_errno(f.fs.setattr(Ino::ROOT, SetAttr { size: Some(0), ..none }), libc::EISDIR);
    assert_eq!(f.values("a.npy"), [0, 1]);
}

fn listed(f: &Fixture, ino: Ino) -> Vec<String> {
    let names = String::from_utf8(f.fs.listxattr(ino).unwrap()).unwrap();
    names.split_terminator('\0').map(str::to_owned).collect()
}

fn xattr(f: &Fixture, ino: Ino, name: &str) -> Result<String, FsError> {
    f.fs.getxattr(ino, OsStr::new(name)).map(|value| String::from_utf8(value).unwrap())
}

#[test]
fn what_is_set_of_a_folder_is_kept_until_the_mount_ends() {
    let f = Fixture::with(|store| save(store, "g/a", 1, 0), false);
    let before = f.lookup("g").unwrap();
    let none = SetAttr::default();
    let set = SetAttr { perm: Some(0o700), uid: Some(12), gid: Some(34), ..none };
    for ino in [before.ino, Ino::ROOT] {
        let now = f.fs.setattr(ino, set).unwrap();
        assert_eq!((now.perm, now.uid, now.gid), (0o700, 12, 34));
    }
    assert_errno(f.fs.setattr(before.ino, SetAttr { perm: Some(0o1700), ..none }), libc::EPERM);
    save(&f.other, "g/b", 1, 0);
    f.lookup("g/b.npy").unwrap();
    assert_eq!(f.lookup("g").unwrap().perm, 0o700);
    assert_eq!(f.lookup("g/b.npy").unwrap().uid, std::fs::metadata(&f.path).unwrap().uid());
    let made = f.fs.mkdir(before.ino, OsStr::new("new"), set).unwrap();
    assert_eq!((made.perm, made.uid, made.gid), (0o700, 12, 34));
    let again = Fs::new(Store::open(&f.path, Access::Write).unwrap(), false, |_| {}).unwrap();
    let after = again.lookup(Ino::ROOT, OsStr::new("g"), CALLER).unwrap();
    assert_eq!((after.perm, after.uid, after.gid), (before.perm, before.uid, before.gid));
}

#[test]
fn uid_gid_and_umask_change_what_is_shown() {
    let f = Fixture::with(|store| save(store, "g/a", 1, 0), false);
    let open = |shown| {
        let mut fs = Fs::new(Store::open(&f.path, Access::Write).unwrap(), false, |_| {}).unwrap();
        fs.set_shown(shown);
        fs
    };
    let fs = open(Shown { uid: Some(12), gid: Some(34), umask: Some(0o027) });
    let g = fs.lookup(Ino::ROOT, OsStr::new("g"), CALLER).unwrap();
    let a = fs.lookup(g.ino, OsStr::new("a.npy"), CALLER).unwrap();
    assert_eq!((g.perm, g.uid, g.gid), (0o750, 12, 34));
    assert_eq!((a.perm, a.uid, a.gid), (0o640, 12, 34));
    // What is as shown already is not set; what else is, is stored.
    let file = || std::fs::metadata(f.path.join(f.other.array("g/a").unwrap().file_name())).unwrap();
    let before = file();
    let set = SetAttr { perm: Some(0o640), uid: Some(12), gid: Some(34), ..SetAttr::default() };
    fs.setattr(a.ino, set).unwrap();
    assert_eq!((file().mode(), file().uid(), file().gid()), (before.mode(), before.uid(), before.gid()));
    assert_eq!(fs.setattr(a.ino, SetAttr { perm: Some(0o600), ..set }).unwrap().perm, 0o640);
    assert_eq!(file().mode() & 0o777, 0o600);
    let partly = open(Shown { umask: Some(0), ..Shown::default() });
    let root = partly.getattr(Ino::ROOT).unwrap();
    assert_eq!((root.perm, root.uid), (0o777, before.uid()));
}

#[test]
fn extended_attributes_describe_an_array() {
    let f = Fixture::with(
        |store| {
            save(store, "a", 3, 0);
            store.save(&[("z", array(&[65536], &numbers(0..65536)))]).unwrap();
            store.recompress("z", Some(&Compression::default()), &mut |_| {}).unwrap();
        },
        false,
    );
    let (a, z) = (f.lookup("a.npy").unwrap().ino, f.lookup("z.npy").unwrap().ino);
    assert_eq!(xattr(&f, a, "user.npk.codec").unwrap(), "none");
    assert_eq!(xattr(&f, a, "user.npk.ratio").unwrap(), "1.00");
    assert_eq!(xattr(&f, a, "user.npk.dtype").unwrap(), "<u4");
    assert_eq!(xattr(&f, a, "user.npk.shape").unwrap(), "[3, 2]");
    assert_eq!(xattr(&f, z, "user.npk.codec").unwrap(), "zstd:1");
    assert!(xattr(&f, z, "user.npk.ratio").unwrap().parse::<f64>().unwrap() > 2.0);
    assert!(listed(&f, a).is_empty());
    assert_errno(f.fs.setxattr(a, OsStr::new("user.npk.codec"), b"none", SetMode::Any), libc::EPERM);
    assert_errno(f.fs.removexattr(a, OsStr::new("user.npk.shape")), libc::EPERM);
    assert_errno(xattr(&f, a, "user.npk.other"), libc::ENODATA);
    assert_errno(xattr(&f, a, "security.capability"), libc::EOPNOTSUPP);
    assert_errno(f.fs.setxattr(a, OsStr::new("user.x"), b"", SetMode::Any), libc::EOPNOTSUPP);
    assert_errno(xattr(&f, Ino::ROOT, "user.npk.codec"), libc::ENODATA);
}

#[test]
fn user_attributes_can_be_read_listed_and_written() {
    let f = Fixture::with(|store| save(store, "g/a", 3, 0), false);
    let value = |text: &str| rmpv::Value::from(text);
    f.other
        .set_attrs(
            Some("g/a"),
            [
                ("unit".to_owned(), value("m/s")),
                ("raw".to_owned(), rmpv::Value::Binary(vec![1])),
                ("x".repeat(241), value("long")),
            ]
            .into(),
            &[],
        )
        .unwrap();
    let a = f.lookup("g/a.npy").unwrap().ino;
    let set =
        |ino, name: &str, value: &str, mode| f.fs.setxattr(ino, OsStr::new(name), value.as_bytes(), mode);
    assert_eq!(listed(&f, a), ["user.npk.attrs.unit"]);
    assert_eq!(xattr(&f, a, "user.npk.attrs.unit").unwrap(), "\"m/s\"");
    set(a, "user.npk.attrs.n", "{\"k\":[1,-2,3.5,null,true]}", SetMode::Create).unwrap();
    set(a, "user.npk.attrs.unit", "km", SetMode::Replace).unwrap();
    assert_errno(set(a, "user.npk.attrs.n", "1", SetMode::Create), libc::EEXIST);
    assert_errno(set(a, "user.npk.attrs.m", "1", SetMode::Replace), libc::ENODATA);
    assert_eq!(listed(&f, a), ["user.npk.attrs.n", "user.npk.attrs.unit"]);
    assert_eq!(xattr(&f, a, "user.npk.attrs.unit").unwrap(), "\"km\"");
    assert_eq!(xattr(&f, a, "user.npk.attrs.n").unwrap(), "{\"k\":[1,-2,3.5,null,true]}");
    f.other.refresh().unwrap();
    assert_eq!(f.other.array("g/a").unwrap().attrs()["unit"], value("km"));
    f.fs.removexattr(a, OsStr::new("user.npk.attrs.n")).unwrap();
    assert_errno(f.fs.removexattr(a, OsStr::new("user.npk.attrs.n")), libc::ENODATA);
    assert_errno(f.fs.setxattr(a, OsStr::new("user.npk.attrs.b"), &[0xff], SetMode::Any), libc::EINVAL);

    // Whatever can be set can be read: quotes take two bytes in JSON, and the kernel takes 64 KiB.
    let quotes = "\"".repeat(32_767);
    set(a, "user.npk.attrs.q", &quotes, SetMode::Any).unwrap();
    assert_eq!(xattr(&f, a, "user.npk.attrs.q").unwrap().len(), 65536);
    assert_errno(set(a, "user.npk.attrs.q", &format!("{quotes}x"), SetMode::Any), libc::E2BIG);
    assert_eq!(xattr(&f, a, "user.npk.attrs.q").unwrap().len(), 65536);
    f.fs.removexattr(a, OsStr::new("user.npk.attrs.q")).unwrap();
    // And whatever can be set can be listed.
    let many = (0..272).map(|n| (format!("{n:0>225}"), value("")));
    f.other.set_attrs(Some("g/a"), many.collect(), &[]).unwrap();
    let n_listed = listed(&f, a).len();
    assert_errno(set(a, &format!("user.npk.attrs.{}", "y".repeat(225)), "1", SetMode::Any), libc::ENOSPC);
    assert_eq!(listed(&f, a).len(), n_listed);
    set(a, &format!("user.npk.attrs.{:0>225}", 7), "1", SetMode::Replace).unwrap();
    let names: Vec<String> = (0..272).map(|n| format!("{n:0>225}")).collect();
    f.other
        .set_attrs(Some("g/a"), Attrs::new(), &names.iter().map(String::as_str).collect::<Vec<_>>())
        .unwrap();

    set(Ino::ROOT, "user.npk.attrs.title", "\"Wind\"", SetMode::Any).unwrap();
    assert_eq!(listed(&f, Ino::ROOT), ["user.npk.attrs.title"]);
    f.other.refresh().unwrap();
    assert_eq!(f.other.attrs()["title"], value("Wind"));
    let g = f.lookup("g").unwrap().ino;
    assert!(listed(&f, g).is_empty());
    assert_errno(set(g, "user.npk.attrs.a", "1", SetMode::Any), libc::EPERM);

    let read_only = Fixture::with(|store| save(store, "a", 3, 0), true);
    let a = read_only.lookup("a.npy").unwrap().ino;
    let result = read_only.fs.setxattr(a, OsStr::new("user.npk.attrs.a"), b"1", SetMode::Any);
    assert_errno(result, libc::EROFS);
}

#[test]
fn status_tells_how_mounts_are_used() {
    let f = Fixture::with(
        |store| {
            store.save(&[("z", array(&[65536], &numbers(0..65536)))]).unwrap();
            store.recompress("z", Some(&Compression::default()), &mut |_| {}).unwrap();
        },
        false,
    );
    let opened = f.open("z.npy", READ).unwrap();
    for n in 1..=3 {
        f.fs.read(opened.fh, 4096 + 10_000 * n, 100, |bytes| assert_eq!(bytes.len(), 100)).unwrap();
        let counts = f.fs.counts();
        assert_eq!((counts.reads, counts.bytes_read), (n, 100 * n));
        assert_eq!((counts.bytes_decoded, counts.cache_hits), (65536, n - 1), "one block");
        assert_eq!((counts.writes, counts.errors), (0, 0));
    }
    // A block that is damaged.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(f.path.join(f.fs.store().array("z").unwrap().file_name()))
        .unwrap();
    file.write_all_at(&[0x55; 20_000], file.metadata().unwrap().len() / 3).unwrap();
    let end = f.lookup("z.npy").unwrap().size;
    let n_failed =
        (0..end).step_by(32768).filter(|at| f.fs.read(opened.fh, *at, 16, |_| ()).is_err()).count();
    assert!(n_failed > 0);
    assert_eq!(f.fs.counts().errors, n_failed as u64);
}

#[test]
fn statfs_is_the_stores() {
    let f = Fixture::new();
    let stat = f.fs.statfs().unwrap();
    assert!(stat.blocks > 0 && stat.block_len >= 512);
}

// Folders

#[test]
fn a_listing_is_of_the_moment_of_opendir() {
    let f = Fixture::with(
        |store| (0..100).for_each(|i| save(store, &format!("{}a{i}", ["", "g/"][i % 2]), 1, 0)),
        false,
    );
    let fh = f.fs.opendir(Ino::ROOT).unwrap();
    let mut names = Vec::new();
    let mut next = 0;
    // Seven entries per call, and a change between calls.
    for round in 0.. {
        let before = names.len();
        f.fs.readdir(fh, next, |offset, entry| {
            if names.len() == before + 7 {
                return false;
            }
            names.push(entry.name.to_string());
            next = offset;
            true
        })
        .unwrap();
        if names.len() == before {
            break;
        }
        f.other.rename(&format!("a{}", 2 * round), &format!("z{round}"), false).unwrap();
        f.fs.sync().unwrap();
    }
    assert_eq!(names[..2], [".", ".."]);
    let unique: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!((names.len(), unique.len()), (53, 53));
    assert!((0..50).all(|i| unique.contains(&format!("a{}.npy", 2 * i))) && unique.contains("g"));

    // With attributes, those that are gone are left out, and those that are shown are looked up.
    let mut shown = BTreeMap::new();
    f.fs.readdirplus(Ino::ROOT, fh, 0, |_, entry, attr| {
        shown.insert(entry.name.to_string(), *attr);
        true
    })
    .unwrap();
    assert!(!shown.contains_key("a0.npy") && shown.contains_key("a98.npy"));
    let attr = shown["a98.npy"];
    assert_eq!(f.fs.getattr(attr.ino).unwrap(), attr);
    f.fs.forget(attr.ino, 1);
    assert_errno(f.fs.getattr(attr.ino), libc::ESTALE);
    f.fs.releasedir(fh);
    assert_errno(f.fs.readdir(fh, 0, |_, _| true), libc::EBADF);
}

#[test]
fn an_entry_that_found_no_room_is_not_counted_as_a_lookup() {
    let f = Fixture::with(|store| save(store, "a", 1, 0), false);
    let fh = f.fs.opendir(Ino::ROOT).unwrap();
    let mut ino = None;
    f.fs.readdirplus(Ino::ROOT, fh, 2, |_, _, attr| {
        ino = Some(attr.ino);
        false
    })
    .unwrap();
    assert_errno(f.fs.getattr(ino.unwrap()), libc::ESTALE);
}

#[test]
fn folders_are_renamed_with_all_that_is_in_them() {
    let f = Fixture::with(
        |store| {
            for (n, name) in ["g/a", "g/h/b", "g/h/%", "k/x", "z"].into_iter().enumerate() {
                save(store, name, 1, n as u32);
            }
        },
        false,
    );
    let opened = f.open("g/h/b.npy", WRITE).unwrap();
    let folders = ["g", "g/h", "g/h/b.npy"].map(|path| f.lookup(path).unwrap().ino);
    let before = f.other.generation();
    f.rename("g", "k/new", Rename::Replace).unwrap();
    f.other.refresh().unwrap();
    assert_eq!(f.other.generation().0, before.0 + 1, "one commit");
    let mut names = f.other.names();
    names.sort();
    assert_eq!(
        names.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["k/new/a", "k/new/h/%", "k/new/h/b", "k/x", "z"]
    );
    let tree =
        ["k/", "k/new/", "k/new/a.npy", "k/new/h/", "k/new/h/%.npy", "k/new/h/b.npy", "k/x.npy", "z.npy"];
    assert_eq!(f.tree(), tree.map(str::to_owned).into());
    let moved = ["k/new", "k/new/h", "k/new/h/b.npy"].map(|path| f.lookup(path).unwrap().ino);
    assert_eq!(moved, folders, "inodes stay");
    assert_eq!((f.values("k/new/h/b.npy"), f.values("k/new/a.npy")), (vec![1, 2], vec![0, 1]));
    // Files that are open go on, and what comes next finds its place.
    f.fs.write(opened.fh, 4096, &7_u32.to_le_bytes(), false).unwrap();
    assert_eq!(f.values("k/new/h/b.npy"), [7, 2]);
    save(&f.other, "k/new/h/c", 1, 9);
    save(&f.other, "g/a", 1, 9);
    assert_eq!((f.values("k/new/h/c.npy"), f.values("g/a.npy")), (vec![9, 10], vec![9, 10]));
    assert_ne!(f.lookup("g").unwrap().ino, folders[0]);
    // As rename(2) has it.
    assert_errno(f.rename("k", "k/new/h/k", Rename::Replace), libc::EINVAL);
    assert_errno(f.rename("g", "z.npy", Rename::Replace), libc::ENOTDIR);
    assert_errno(f.rename("g", "k", Rename::Replace), libc::ENOTEMPTY);
    assert_errno(f.rename("g", "k", Rename::NoReplace), libc::EEXIST);
    assert_errno(f.rename("g", "x%41", Rename::Replace), libc::EINVAL);
    f.rename("g", "g", Rename::Replace).unwrap();
    f.fs.mkdir(Ino::ROOT, OsStr::new("empty"), SetAttr::default()).unwrap();
    f.rename("g", "empty", Rename::Replace).unwrap();
    f.rename("k/new", "new", Rename::NoReplace).unwrap();
    assert!(f.tree().contains("empty/a.npy") && f.tree().contains("new/h/c.npy"));
    f.other.remove(&["k/x"]).unwrap();
    assert_eq!(f.lookup("k").unwrap().nlink, 2, "it was emptied here, and stays");
    let names: BTreeSet<String> = f.other.names().iter().map(|name| name.to_string()).collect();
    let again = Fs::new(Store::open(&f.path, Access::Read).unwrap(), true, |_| {}).unwrap();
    assert_eq!(names.len(), 6, "{names:?}");
    assert_errno(
        again.rename(Ino::ROOT, OsStr::new("new"), Ino::ROOT, OsStr::new("n"), Rename::Replace),
        libc::EROFS,
    );
}

#[test]
fn folders_that_are_not_empty_are_not_removed() {
    let f = Fixture::with(|store| save(store, "g/a", 1, 0), false);
    assert_errno(f.fs.rmdir(Ino::ROOT, OsStr::new("g")), libc::ENOTEMPTY);
    assert_errno(f.fs.rmdir(Ino::ROOT, OsStr::new("h")), libc::ENOENT);
    let g = f.lookup("g").unwrap().ino;
    assert_errno(f.fs.rmdir(g, OsStr::new("a.npy")), libc::ENOTDIR);
}

// Reading

#[test]
fn a_file_reads_as_the_header_and_the_elements() {
    let f = Fixture::new();
    let source = f.path.join("../source.npy");
    let bytes = write_npy(&source, &[500, 2], &numbers(0..1000));
    f.other.import_npy("a", &source, false, None, &mut |_| {}).unwrap();
    assert_eq!(f.read_path("a.npy"), bytes);

    let opened = f.open("a.npy", READ).unwrap();
    for offset in [bytes.len() as u64, bytes.len() as u64 + 1, u64::MAX] {
        assert_eq!(f.fs.read(opened.fh, offset, 10, |bytes| bytes.len()).unwrap(), 0);
    }
    for (offset, len) in [(0, 1), (127, 2), (128, 1), (4000, 100), (bytes.len() - 3, 3)] {
        let read = f.fs.read(opened.fh, offset as u64, len as u32, <[u8]>::to_vec).unwrap();
        assert_eq!(read, bytes[offset..offset + len]);
    }
    assert_errno(f.fs.read(Fh(999), 0, 1, |_| ()), libc::EBADF);
    assert_errno(f.fs.open(Ino::ROOT, READ, CALLER), libc::EISDIR);
    assert_errno(f.fs.opendir(f.lookup("a.npy").unwrap().ino), libc::ENOTDIR);

    // A header that lags behind the manifest is not what is read.
    let header = std::fs::read(f.path.join("data_a.npkd")).unwrap()[..128].to_vec();
    append(&f.other, "a", 1, 7);
    let data = std::fs::OpenOptions::new().write(true).open(f.path.join("data_a.npkd")).unwrap();
    data.write_all_at(&header, 0).unwrap();
    assert_eq!(shape_of(&f.read_path("a.npy")), [501, 2]);
    // Opening it for writing puts it right.
    let opened = f.open("a.npy", WRITE).unwrap();
    assert!(opened.wants_mending);
    f.fs.mend(&opened.array);
    assert_eq!(shape_of(&std::fs::read(f.path.join("data_a.npkd")).unwrap()), [501, 2]);
}

#[test]
fn empty_and_0_d_arrays_are_files() {
    let f = Fixture::new();
    f.other.save(&[("none", array(&[0, 3], &[])), ("one", array(&[], &numbers(7..8)))]).unwrap();
    assert_eq!(f.lookup("none.npy").unwrap().size, 4096);
    assert_eq!(f.values("none.npy"), [0; 0]);
    assert_eq!(f.values("one.npy"), [7]);
}

#[test]
fn a_damaged_data_file_is_an_error_not_data() {
    let f = Fixture::with(|store| ["a", "b", "c"].iter().for_each(|name| save(store, name, 100, 0)), false);
    std::fs::remove_file(f.path.join("data_a.npkd")).unwrap();
    let b = std::fs::OpenOptions::new().write(true).open(f.path.join("data_b.npkd")).unwrap();
    b.set_len(4500).unwrap();
    std::fs::remove_file(f.path.join("data_c.npkd")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", f.path.join("data_c.npkd")).unwrap();
    for name in ["a.npy", "b.npy", "c.npy"] {
        assert_errno(f.open(name, READ), libc::EIO);
    }
}

// Writing

#[test]
fn elements_are_written_in_place() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let reader = f.open("a.npy", READ).unwrap();
    let writer = f.open("a.npy", WRITE).unwrap();
    f.fs.write(writer.fh, 4096 + 8, &numbers(90..92), false).unwrap();
    assert_eq!(values_of(&f.read(reader.fh)), [0, 1, 90, 91, 4, 5]);
    let mut out = vec![0; 24];
    f.other.array("a").unwrap().read_into(&mut out).unwrap();
    assert_eq!(out, [numbers(0..2), numbers(90..92), numbers(4..6)].concat());
    assert_errno(f.fs.write(reader.fh, 4096, &[0; 4], false), libc::EBADF);

    // Over dropped rows, too.
    f.other.drop_rows(&["a"], &[1]).unwrap();
    let writer = f.open("a.npy", WRITE).unwrap();
    f.fs.write(writer.fh, 4096 + 4, &numbers(60..63), false).unwrap();
    assert_eq!(f.values("a.npy"), [0, 60, 61, 62]);
    assert_eq!(values_of(&f.read(reader.fh)), [0, 60, 90, 91, 61, 62]);
}

#[test]
fn the_header_cannot_be_written() {
    let f = Fixture::new();
    let source = f.path.join("../source.npy");
    let bytes = write_npy(&source, &[500, 2], &numbers(0..1000));
    f.other.import_npy("a", &source, false, None, &mut |_| {}).unwrap();
    let fh = f.open("a.npy", WRITE).unwrap().fh;
    assert_errno(f.fs.write(fh, 0, &[0; 8], false), libc::EPERM);
    assert_errno(f.fs.write(fh, 120, &[0; 16], false), libc::EPERM);
    assert_eq!(f.read_path("a.npy"), bytes);

    let mut page = bytes.clone();
    page[128] = 0xff;
    f.fs.write(fh, 0, &page[..512], false).unwrap();
    assert_eq!(f.read_path("a.npy"), page);

    // A page from before an append comes back.
    append(&f.other, "a", 1, 7);
    f.fs.sync().unwrap();
    page[129] = 0xfe;
    f.fs.write(fh, 0, &page[..512], true).unwrap();
    let now = f.read_path("a.npy");
    assert_eq!(shape_of(&now), [501, 2]);
    assert_eq!(now[128..512], page[128..512]);
    assert_errno(f.fs.write(fh, 0, &page[..512], false), libc::EPERM);

    // A mapping that changed the header: its elements are taken, and it is an error.
    page[3] = b'?';
    page[130] = 0xfd;
    assert_errno(f.fs.write(fh, 0, &page[..512], true), libc::EPERM);
    assert_eq!(f.read_path("a.npy")[130], 0xfd);
    assert_eq!(shape_of(&f.read_path("a.npy")), [501, 2]);
}

#[test]
fn nothing_is_written_beyond_the_end() {
    let scalar = numbers(0..1);
    let f = Fixture::with(
        |store| {
            save(store, "a", 3, 0);
            store.save(&[("scalar", array(&[], &scalar))]).unwrap();
        },
        false,
    );
    let fh = f.open("scalar.npy", WRITE).unwrap().fh;
    assert_errno(f.fs.write(fh, 4100, &[1; 4], false), libc::EFBIG);
    let fh = f.open("a.npy", WRITE).unwrap().fh;
    let end = 4096 + 24;
    for (offset, len) in [(end + 1, 1), (end + 8, 8), (u64::MAX - 3, 4)] {
        assert_errno(f.fs.write(fh, offset, &vec![1; len], false), libc::EFBIG);
    }
    assert_eq!(f.values("a.npy"), [0, 1, 2, 3, 4, 5]);
    assert_eq!(std::fs::metadata(f.path.join("data_a.npkd")).unwrap().len(), end);
    // A whole page, as writeback has it.
    f.fs.write(fh, 4096, &[[7, 0, 0, 0].repeat(6), vec![0; 4072]].concat(), true).unwrap();
    assert_eq!(f.values("a.npy"), [7; 6]);
}

/// Two stores of the same arrays, `a`, and `f` in Fortran order: one compressed, the other not.
fn each_kind(test: impl Fn(&Fixture)) {
    for compression in [None, Some(Compression { block_len: 4096, ..Compression::default() })] {
        let f = Fixture::with(
            |store| {
                save(store, "a", 3, 0);
                let data = numbers(0..4);
                let fortran = NewArray { fortran_order: true, ..array(&[2, 2], &data) };
                store.save(&[("f", fortran)]).unwrap();
                for name in ["a", "f"] {
                    store.recompress(name, compression.as_ref(), &mut |_| {}).unwrap();
                }
            },
            false,
        );
        test(&f);
    }
}

#[test]
fn whole_rows_written_at_the_end_are_appended() {
    each_kind(|f| {
        let attr = f.lookup("a.npy").unwrap();
        let (fh, reader) = (f.open("a.npy", WRITE).unwrap().fh, f.open("a.npy", READ).unwrap().fh);
        f.fs.write(fh, attr.size, &numbers(6..10), false).unwrap();
        assert_eq!(f.fs.getattr(attr.ino).unwrap().size, attr.size + 16, "shown at once");
        f.other.refresh().unwrap();
        assert_eq!(f.other.array("a").unwrap().shape(), [5, 2]);
        f.carry_out();
        assert_eq!((shape_of(&f.read(reader)), values_of(&f.read(fh))), (vec![5, 2], (0..10).collect()));
        // What begins within rows, and ends behind them.
        f.fs.write(fh, attr.size + 12, &numbers(90..93), false).unwrap();
        f.carry_out();
        assert_eq!(f.values("a.npy")[8..], [8, 90, 91, 92]);
        f.fs.release(fh);
        f.fs.release(reader);
        // Others append as well: with O_APPEND, the end is where it is by then.
        let fh = f.open("a.npy", WRITE).unwrap().fh;
        append(&f.other, "a", 1, 50);
        f.fs.append(fh, &numbers(60..62)).unwrap();
        f.carry_out();
        assert_eq!(f.values("a.npy")[12..], [50, 51, 60, 61]);
        assert_errno(f.fs.write(fh, attr.size + 1000, &[0; 8], false), libc::EFBIG);
        f.fs.release(fh);
        // Rows that are there would have to move.
        let fh = f.open("f.npy", WRITE).unwrap().fh;
        assert_errno(f.fs.append(fh, &numbers(0..2)), libc::EOPNOTSUPP);
        assert_eq!(f.values("f.npy"), [0, 1, 2, 3]);
    });
}

#[test]
fn parts_of_rows_wait_for_the_rest() {
    each_kind(|f| {
        let attr = f.lookup("a.npy").unwrap();
        let fh = f.open("a.npy", WRITE).unwrap().fh;
        let rows = numbers(6..12);
        f.fs.append(fh, &rows[..3]).unwrap();
        f.fs.write(fh, attr.size + 3, &rows[3..11], false).unwrap();
        assert_eq!(f.fs.getattr(attr.ino).unwrap().size, attr.size + 11);
        f.other.refresh().unwrap();
        assert_eq!(f.other.array("a").unwrap().shape(), [4, 2]);
        f.carry_out();
        assert_eq!(f.read(fh)[attr.size as usize..], rows[..11]);
        assert_errno(f.fs.flush(fh), libc::EINVAL);
        f.fs.append(fh, &rows[11..]).unwrap();
        assert!(!f.fs.flush(fh).unwrap());
        f.carry_out();
        assert_eq!(f.values("a.npy"), (0..12).collect::<Vec<_>>());
        // If it never comes, the rows that were whole stay.
        f.fs.append(fh, &rows[..9]).unwrap();
        assert_errno(f.fs.flush(fh), libc::EINVAL);
        f.fs.release(fh);
        f.carry_out();
        assert_eq!(f.values("a.npy"), (0..12).chain(6..8).collect::<Vec<_>>());
        assert_eq!(f.lookup("a.npy").unwrap().size, attr.size + 32);
    });
}

#[test]
fn truncate_to_whole_rows_changes_the_rows() {
    each_kind(|f| {
        let attr = f.lookup("a.npy").unwrap();
        let set = |ino, size| f.fs.setattr(ino, SetAttr { size: Some(size), ..SetAttr::default() });
        assert_eq!(set(attr.ino, attr.size + 16).unwrap().size, attr.size + 16);
        f.carry_out();
        assert_eq!(f.values("a.npy"), [0, 1, 2, 3, 4, 5, 0, 0, 0, 0]);
        for bad in [attr.size + 1, attr.size - 1, 8, 1] {
            assert_errno(set(attr.ino, bad), libc::EINVAL);
        }
        // Fewer rows are another inode; who has the old one open keeps it, and appends nothing to the new one.
        let old = f.open("a.npy", WRITE).unwrap().fh;
        set(attr.ino, attr.size - 8).unwrap();
        let new = f.lookup("a.npy").unwrap();
        assert_eq!((new.size, f.values("a.npy")), (attr.size - 8, vec![0, 1, 2, 3]));
        assert_ne!(new.ino, attr.ino);
        assert_eq!(values_of(&f.read(old)).len(), 10);
        assert_errno(f.fs.append(old, &numbers(0..2)), libc::ESTALE);
        assert_errno(set(attr.ino, attr.size), libc::ESTALE);
        f.other.refresh().unwrap();
        assert_eq!(f.other.array("a").unwrap().shape(), [2, 2]);
        set(new.ino, attr.size).unwrap();
        assert_eq!(f.values("a.npy"), [0, 1, 2, 3, 0, 0]);
        set(f.lookup("a.npy").unwrap().ino, attr.size - 24).unwrap();
        assert!(f.values("a.npy").is_empty());
        let fortran = f.lookup("f.npy").unwrap();
        assert_errno(set(fortran.ino, fortran.size - 8), libc::EOPNOTSUPP);
    });
}

/// Regression: whose array somebody else has just removed or overwritten, of which the mount has not heard yet, was told
/// that there is no such file by `write`, and not that it is another one by now.
#[test]
fn regression_appending_to_a_version_that_has_just_gone_is_estale() {
    each_kind(|f| {
        for change in [|store: &Store| save(store, "a", 1, 0), |store: &Store| drop(store.remove(&["a"]))] {
            let attr = f.lookup("a.npy").unwrap();
            let fh = f.open("a.npy", WRITE).unwrap().fh;
            change(&f.other);
            assert_errno(f.fs.append(fh, &numbers(0..2)), libc::ESTALE);
            let size = SetAttr { size: Some(attr.size + 8), ..SetAttr::default() };
            assert_errno(f.fs.setattr(attr.ino, size), libc::ESTALE);
            f.fs.release(fh);
        }
    });
}

#[test]
fn headers_in_other_words_are_taken_as_they_are_meant() {
    each_kind(|f| {
        let fh = f.open("a.npy", WRITE).unwrap().fh;
        let before = f.read(fh);
        let text = |shape: &str| {
            let text = format!("{{'shape':{shape},'fortran_order':False,'descr':'<u4'}}");
            let mut bytes = before[..10].to_vec();
            bytes.extend_from_slice(format!("{text:<4085}\n").as_bytes());
            bytes
        };
        f.fs.write(fh, 0, &[text("(3,2)"), numbers(7..9)].concat(), false).unwrap();
        assert_eq!(f.carry_out().len(), 1, "what the kernel has of it is dropped");
        let after = f.read(fh);
        assert_eq!((&after[..4096], values_of(&after)), (&before[..4096], vec![7, 8, 2, 3, 4, 5]));
        assert_errno(f.fs.write(fh, 0, &text("(4,2)"), false), libc::EPERM);
        assert_errno(f.fs.write(fh, 0, &text("(3,2)")[..4000], false), libc::EPERM);
    });
}

#[test]
fn fsync_makes_data_and_manifest_durable() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let fh = f.open("a.npy", WRITE).unwrap().fh;
    f.fs.write(fh, 4096, &[1; 4], false).unwrap();
    f.fs.fsync(fh).unwrap();
    f.fs.fsyncdir().unwrap();
    assert_errno(f.fs.fsync(Fh(999)), libc::EBADF);
}

// Changing names

#[test]
fn unlink_removes_the_array() {
    let f = Fixture::with(|store| ["a", "g/b"].iter().for_each(|name| save(store, name, 3, 0)), false);
    let opened = f.open("g/b.npy", READ).unwrap();
    f.unlink("g/b.npy").unwrap();
    assert_errno(f.lookup("g/b.npy"), libc::ENOENT);
    // `rm -r` removes the folder next.
    assert_eq!(f.tree(), ["a.npy", "g/"].map(str::to_owned).into());
    f.fs.rmdir(Ino::ROOT, OsStr::new("g")).unwrap();
    assert_errno(f.lookup("g"), libc::ENOENT);
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1, 2, 3, 4, 5]);
    f.other.refresh().unwrap();
    assert!(!f.other.contains("g/b"));
    assert_errno(f.unlink("b.npy"), libc::ENOENT);
    save(&f.other, "g/b", 1, 0);
    assert_errno(f.unlink("g"), libc::EISDIR);
}

#[test]
fn rename_renames_the_array_over_another_one_too() {
    let f = Fixture::with(
        |store| {
            ["a", "b", "g/c"].iter().zip([0, 10, 20]).for_each(|(name, first)| save(store, name, 1, first))
        },
        false,
    );
    let a = f.lookup("a.npy").unwrap().ino;
    let b = f.open("b.npy", READ).unwrap();
    assert_errno(f.rename("a.npy", "b.npy", Rename::NoReplace), libc::EEXIST);
    f.rename("a.npy", "b.npy", Rename::Replace).unwrap();
    assert_eq!(f.lookup("b.npy").unwrap().ino, a);
    assert_eq!(f.values("b.npy"), [0, 1]);
    assert_eq!(values_of(&f.read(b.fh)), [10, 11]);
    assert_errno(f.lookup("a.npy"), libc::ENOENT);

    f.rename("b.npy", "g/d.npy", Rename::NoReplace).unwrap();
    f.rename("g/c.npy", "c.npy", Rename::Replace).unwrap();
    assert_eq!(f.tree(), ["c.npy", "g/", "g/d.npy"].map(str::to_owned).into());
    f.rename("g/d.npy", "d.npy", Rename::Replace).unwrap();
    assert_eq!(f.tree(), ["c.npy", "d.npy", "g/"].map(str::to_owned).into());
    f.fs.rmdir(Ino::ROOT, OsStr::new("g")).unwrap();
    f.rename("d.npy", "d.npy", Rename::Replace).unwrap();
    assert_errno(f.rename("x.npy", "y.npy", Rename::Replace), libc::ENOENT);

    save(&f.other, "g/e", 1, 0);
    assert_errno(f.rename("c.npy", "g", Rename::Replace), libc::EISDIR);
    f.other.refresh().unwrap();
    let names: BTreeSet<_> = f.other.names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["c", "d", "g/e"].map(str::to_owned).into());
}

#[test]
fn a_read_only_mount_refuses_all_of_these() {
    let f = Fixture::with(|store| ["a", "g/b"].iter().for_each(|name| save(store, name, 3, 0)), true);
    let a = f.lookup("a.npy").unwrap();
    assert_errno(f.fs.open(a.ino, WRITE, CALLER), libc::EROFS);
    assert_errno(f.unlink("a.npy"), libc::EROFS);
    assert_errno(f.rename("a.npy", "b.npy", Rename::Replace), libc::EROFS);
    assert_errno(f.fs.rmdir(Ino::ROOT, OsStr::new("g")), libc::EROFS);
    assert_errno(f.fs.setattr(a.ino, SetAttr { mtime: Some(a.mtime), ..SetAttr::default() }), libc::EROFS);
    assert_eq!(f.values("a.npy"), [0, 1, 2, 3, 4, 5]);
    // It follows the commits of others all the same.
    append(&f.other, "a", 1, 6);
    assert_eq!(f.values("a.npy"), [0, 1, 2, 3, 4, 5, 6, 7]);
}

// What others commit

#[test]
fn commits_are_told_to_the_kernel() {
    let f = Fixture::with(
        |store| ["a", "b", "g/c", "unseen"].iter().for_each(|name| save(store, name, 3, 0)),
        false,
    );
    let [a, b, c] = ["a.npy", "b.npy", "g/c.npy"].map(|path| f.lookup(path).unwrap().ino);
    let g = f.lookup("g").unwrap().ino;
    let root = Invalidation::Attr { ino: Ino::ROOT };
    let entry = |name: &str| Invalidation::Entry { parent: Ino::ROOT, name: name.into() };
    let after = |change: &dyn Fn(&Store)| {
        change(&f.other);
        f.fs.sync().unwrap();
        f.carry_out()
    };
    assert_eq!(after(&|_| {}), []);
    assert_eq!(after(&|store| append(store, "unseen", 1, 0)), []);
    assert_eq!(after(&|store| save(store, "new", 1, 0)), std::slice::from_ref(&root));
    assert_eq!(
        after(&|store| append(store, "a", 1, 0)),
        [Invalidation::Content { ino: a, header_len: 4096, from: 4096 + 24 }]
    );
    assert_eq!(
        after(&|store| save(store, "b", 1, 0)),
        [Invalidation::Attr { ino: b }, entry("b.npy"), root.clone()]
    );
    assert_eq!(
        after(&|store| store.rename("a", "g/a", false).unwrap())[..2],
        [Invalidation::Attr { ino: a }, entry("a.npy")]
    );
    let told = after(&|store| {
        store.remove(&["g/a", "g/c"]).unwrap();
    });
    for (ino, name) in [(a, "a.npy"), (c, "c.npy")] {
        assert!(
            told.contains(&Invalidation::Removed { parent: g, name: name.into(), child: ino }),
            "{told:?}"
        );
    }
    assert!(
        told.contains(&Invalidation::Removed { parent: Ino::ROOT, name: "g".into(), child: g }),
        "{told:?}"
    );
    assert!(told.contains(&root));
}

#[test]
fn many_changes_at_once_leave_the_names_that_the_store_has() {
    let f = Fixture::with(|store| (0..20).for_each(|i| save(store, &format!("a{i}"), 2, i)), false);
    for i in 0..20 {
        f.lookup(&format!("a{i}.npy")).unwrap();
    }
    for i in 0..20 {
        f.other.rename(&format!("a{i}"), &format!("g{}/b", i % 3), true).unwrap();
        save(&f.other, &format!("a{}", i / 2), 1, 100 + i);
        f.other.drop_rows(&[&format!("g{}/b", i % 3)], &[0]).unwrap();
        f.other.remove(&[&format!("a{}", i / 4)]).unwrap();
    }
    f.fs.sync().unwrap();
    let expected: BTreeSet<_> = f.other.names().iter().map(|name| format!("{name}.npy")).collect();
    let files: BTreeSet<_> = f.tree().into_iter().filter(|path| !path.ends_with('/')).collect();
    assert_eq!(files, expected);
    for path in &files {
        let mut out = vec![0; 8 * shape_of(&f.read_path(path))[0] as usize];
        f.other.array(path.strip_suffix(".npy").unwrap()).unwrap().read_into(&mut out).unwrap();
        assert_eq!(f.values(path).iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>(), out);
    }
}

#[test]
fn the_length_follows_the_pages() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let attr = f.lookup("a.npy").unwrap();
    let writer = f.fs.open(attr.ino, WRITE, CALLER).unwrap();
    assert!(writer.settled && f.fs.revalidate(attr.ino));
    append(&f.other, "a", 2, 50);
    let opened = f.fs.open(attr.ino, READ, CALLER).unwrap();
    assert!(!opened.settled, "the answer to this open must wait for the invalidation");
    assert_eq!(f.fs.getattr(attr.ino).unwrap().size, attr.size);
    let header = |fh| shape_of(&f.fs.read(fh, 0, 4096, <[u8]>::to_vec).unwrap());
    assert_eq!(header(opened.fh), [3, 2]);
    // The page that the kernel fills from now on has the new rows.
    let page = f.fs.read(opened.fh, 4096, 4096, <[u8]>::to_vec).unwrap();
    assert_eq!(page.len(), 40);
    // The page from before comes back, and its zeros stay out.
    f.fs.write(writer.fh, 4096, &[numbers(70..76), vec![0; 4072]].concat(), true).unwrap();
    let last = f.fs.show_length(attr.ino).unwrap();
    assert_eq!((last.offset, last.byte), (attr.size + 15, [0]));
    assert_eq!(f.fs.getattr(attr.ino).unwrap().size, attr.size + 16);
    assert_eq!(header(opened.fh), [3, 2]);
    f.fs.settle(attr.ino);
    assert_eq!(header(opened.fh), [5, 2]);
    assert_eq!(f.values("a.npy"), [70, 71, 72, 73, 74, 75, 50, 51, 52, 53]);
    assert!(f.open("a.npy", READ).unwrap().settled);
}

#[test]
fn without_pages_the_length_is_shown_at_once() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let attr = f.lookup("a.npy").unwrap();
    let opened = f.fs.open(attr.ino, READ, CALLER).unwrap();
    f.fs.revalidate(attr.ino);
    f.fs.bypass(attr.ino);
    append(&f.other, "a", 2, 50);
    assert_eq!(f.fs.getattr(attr.ino).unwrap().size, attr.size + 16);
    assert_eq!(shape_of(&f.read(opened.fh)), [5, 2]);
}

#[test]
fn writes_in_place_by_others_are_found() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let ino = f.lookup("a.npy").unwrap().ino;
    let opened = f.fs.open(ino, WRITE, CALLER).unwrap();
    let content = Invalidation::Content { ino, header_len: 4096, from: 4096 };
    assert!(f.fs.revalidate(ino));

    // Told, because somebody watches.
    f.fs.watch();
    f.other.replace("a", &[0], array(&[1, 2], &numbers(70..72))).unwrap();
    f.fs.sync().unwrap();
    assert!(!f.fs.revalidate(ino));
    assert_eq!(f.carry_out(), std::slice::from_ref(&content));
    assert!(f.fs.revalidate(ino));

    // Our own are no news.
    f.fs.write(opened.fh, 4096, &[1; 4], false).unwrap();
    f.fs.sync().unwrap();
    assert!(f.fs.revalidate(ino));
    assert_eq!(f.carry_out(), []);

    // Without telling, as a mapping is written.
    let data = std::fs::OpenOptions::new().write(true).open(f.path.join("data_a.npkd")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    data.write_all_at(&[9; 4], 4096).unwrap();
    assert!(!f.fs.revalidate(ino));
    assert_eq!(f.carry_out(), std::slice::from_ref(&content));
    assert!(f.fs.revalidate(ino));

    // Just before one of our own.
    std::thread::sleep(std::time::Duration::from_millis(20));
    data.write_all_at(&[8; 4], 4100).unwrap();
    f.fs.write(opened.fh, 4096, &[2; 4], false).unwrap();
    assert_eq!(f.carry_out(), [content]);
}

#[test]
fn a_store_that_is_taken_away_leaves_errors_not_a_hang() {
    let f = Fixture::with(|store| ["a", "b"].iter().for_each(|name| save(store, name, 3, 0)), false);
    let [a, b] = ["a.npy", "b.npy"].map(|path| f.lookup(path).unwrap().ino);
    let opened = f.fs.open(a, READ, CALLER).unwrap();
    std::fs::remove_dir_all(&f.path).unwrap();
    assert_errno(f.lookup("a.npy"), libc::EIO);
    assert_errno(f.fs.open(b, READ, CALLER), libc::EIO);
    assert_errno(f.fs.opendir(Ino::ROOT), libc::EIO);
    assert_errno(f.unlink("a.npy"), libc::EIO);
    assert_eq!(values_of(&f.read(opened.fh)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(f.fs.getattr(a).unwrap().size, 4096 + 24);
    f.fs.release(opened.fh);
}

#[test]
fn a_damaged_manifest_leaves_errors_until_it_is_whole_again() {
    let f = Fixture::with(|store| save(store, "a", 3, 0), false);
    let manifest = f.path.join("metadata.npkm");
    let bytes = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    assert_errno(f.lookup("a.npy"), libc::EIO);
    std::fs::write(&manifest, &bytes).unwrap();
    assert_eq!(f.values("a.npy"), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_closed_file_leaves_no_descriptor_behind() {
    let n_arrays = 300;
    let f = Fixture::with(|store| (0..n_arrays).for_each(|i| save(store, &format!("a{i}"), 1, i)), false);
    let n_open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = n_open();
    for i in 0..n_arrays {
        assert_eq!(f.values(&format!("a{i}.npy")), [i, i + 1]);
    }
    // The store keeps some of those that were used last.
    assert!(n_open() < before + 200, "{} descriptors", n_open() - before);
}
