//! What `mount` refuses: with a message that says what, where and what to do, and with nothing left mounted.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use crate::common::{Place, Ran, clean, numbers};
use crate::npkfs;
use crate::ways::{Way, as_root, as_user, each_way, has_program, is_mounted, is_root};

/// `npkfs mount` in a mount namespace of its own, after a shell command that only root can run.
fn mount_after(way: &Way, setup: &str, options: &str) -> Result<Ran, String> {
    if !is_root() {
        return Err("only root can make a mount namespace to take things away in".to_owned());
    }
    has_program("unshare")?;
    let script = format!("{setup}\nexec \"$0\" \"$@\"");
    let before = ["unshare", "--mount", "--propagation=private", "sh", "-euc", &script].map(OsStr::new);
    let mut command = way.command_after(&before);
    command.args(["mount", "-o", options]).arg(&way.place.store).arg(&way.mnt);
    Ok(clean(command).output().map_err(|error| error.to_string())?.into())
}

#[test]
fn unknown_options_are_wrong_usage() {
    let place = Place::new();
    npkfs!("mount", "-o", "ro,compres=1", place.store, place.path("mnt")).fails(
        2,
        &["unknown mount option \"compres=1\"", "allow_other", "passthrough=auto|off", "threads=N"],
    );
    npkfs!("mount", "-o", "threads=many", place.store, place.path("mnt"))
        .fails(2, &["threads=many", "1 to 16"]);
    npkfs!("mount", place.store).fails(2, &["MNT"]);
    npkfs!("mount", "--foreground", "--log", "x", place.store, place.path("mnt")).fails(2, &["--log"]);
}

#[test]
fn a_store_must_exist_and_be_one() {
    each_way(|way| {
        let (ran, _unmount) = way.mount_with("");
        ran.fails(1, &["data.npk", "no such directory"]);
        way.place.write("data.npk/photo.jpg", b"no store");
        let (ran, _unmount) = way.mount_with("");
        ran.fails(1, &["data.npk", "not an npk store"]);
        assert!(!way.is_mounted());
        assert_eq!(crate::common::files_below(&way.place.store), ["photo.jpg"]);
    });
}

#[test]
fn a_damaged_store_is_not_mounted() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0)), ("b", numbers(10, 0)), ("c", numbers(10, 0))]);
        let manifest = way.place.store.join("metadata.npkm");
        let mut bytes = fs::read(&manifest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&manifest, bytes).unwrap();
        let (ran, _unmount) = way.mount_with("");
        ran.fails(3, &["metadata.npkm", "npkfs verify"]);
        assert!(!way.is_mounted());
    });
}

#[test]
fn a_mountpoint_must_be_a_free_folder() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let mount_on =
            |mnt: &std::path::Path| way.run(["mount".as_ref(), way.place.store.as_os_str(), mnt.as_os_str()]);
        let missing = way.place.path("nowhere");
        mount_on(&missing).fails(1, &["nowhere: no such folder", "mkdir"]);
        let file = way.place.write("file", b"");
        mount_on(&file).fails(1, &["file: is not a folder"]);
        mount_on(&file.join("below")).fails(1, &["file/below: is not a folder"]);
        mount_on("/proc".as_ref()).fails(1, &["/proc: is a mountpoint already, of proc (proc)"]);

        let _unmount = way.mount();
        let source = format!("mnt: is a mountpoint already, of {} (fuse.npk)", way.place.store.display());
        mount_on(&way.mnt).fails(1, &[&source]);
        assert_eq!(way.read("a.npy"), numbers(10, 0), "the mount goes on");
        way.umount().ok();
        assert!(!way.is_mounted());
    });
}

#[test]
fn a_store_is_not_mounted_on_itself() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let before = crate::common::files_below(&way.place.store);
        for mnt in [way.place.store.clone(), way.place.dir.path().to_owned()] {
            let args = ["mount".as_ref(), "-o".as_ref(), "nonempty".as_ref()];
            way.run(args.into_iter().chain([way.place.store.as_os_str(), mnt.as_os_str()]))
                .fails(1, &["neither may lie within the other"]);
            assert!(!is_mounted(&mnt));
        }
        assert_eq!(crate::common::files_below(&way.place.store), before);
    });
}

#[test]
fn without_the_device_nothing_is_mounted() {
    as_root(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        match mount_after(way, "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3", "rw") {
            Ok(ran) => drop(ran.fails(1, &["cannot open /dev/fuse", "modprobe fuse"])),
            Err(reason) => eprintln!("SKIPPED: {reason}"),
        }
        // A node without a driver behind it.
        match mount_after(
            way,
            "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod /dev/fuse c 10 254",
            "rw",
        ) {
            Ok(ran) => drop(ran.fails(1, &["cannot open /dev/fuse", "must offer FUSE"])),
            Err(reason) => eprintln!("SKIPPED: {reason}"),
        }
        assert!(!way.is_mounted());
    });
}

#[test]
fn without_rights_on_the_device_nothing_is_mounted() {
    as_user(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let setup = "mount -t tmpfs none /dev; mknod -m 600 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3";
        match mount_after(way, setup, "rw") {
            Ok(ran) => {
                drop(ran.fails(1, &["cannot open /dev/fuse", "Permission denied", "chmod 666 /dev/fuse"]))
            }
            Err(reason) => eprintln!("SKIPPED: {reason}"),
        }
        assert!(!way.is_mounted());
    });
}

#[test]
fn without_fusermount_users_are_told_to_install_it() {
    as_user(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let mut command = way.command();
        command.env("PATH", way.place.path("nothing")).arg("mount").arg(&way.place.store).arg(&way.mnt);
        let ran = Ran::from(command.output().unwrap());
        ran.fails(1, &["fusermount3", "is not installed", "install the package fuse3"]);
        assert!(!way.is_mounted());
    });
}

#[test]
fn users_do_not_let_others_in_unless_permitted() {
    as_user(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        let setup = "if [ -e /etc/fuse.conf ]; then mount --bind /dev/null /etc/fuse.conf; fi";
        match mount_after(way, setup, "allow_other") {
            Ok(ran) => {
                drop(
                    ran.fails(
                        1,
                        &["allow_other only allowed if 'user_allow_other' is set", "/etc/fuse.conf"],
                    ),
                );
            }
            Err(reason) => eprintln!("SKIPPED: {reason}"),
        }
        assert!(!way.is_mounted());
    });
}

#[test]
fn a_mountpoint_of_somebody_else_is_refused() {
    as_user(|way| {
        if !is_root() {
            return eprintln!("SKIPPED: only root can make a folder of somebody else's");
        }
        way.make_store(&[("a", numbers(10, 0))]);
        std::os::unix::fs::chown(&way.mnt, Some(0), Some(0)).unwrap();
        let (ran, _unmount) = way.mount_with("");
        ran.fails(1, &["cannot mount", "mnt"]);
        assert!(!way.is_mounted());
        assert_eq!(way.server(), None);
    });
}

#[test]
fn a_store_that_may_not_be_written_is_mounted_read_only() {
    as_user(|way| {
        if !is_root() {
            return eprintln!("SKIPPED: only root can make a store of somebody else's");
        }
        way.make_store(&[("a", numbers(10, 0))]);
        let status = Command::new("chown").args(["-R", "0:0"]).arg(&way.place.store).status().unwrap();
        assert!(status.success());
        let (ran, _unmount) = way.mount_with("rw");
        ran.fails(1, &["data.npk", "ermission denied", "-o ro"]);
        let (ran, _unmount) = way.mount_with("ro");
        ran.ok();
        assert_eq!(way.read("a.npy"), numbers(10, 0));
        way.umount().ok();
    });
}
