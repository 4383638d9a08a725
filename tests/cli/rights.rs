//! Who may do what through a mount, what belongs to whom, and what of that is kept.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::process::{Command, Output};

use crate::common::{Place, files_below, numbers};
use crate::npkfs;
use crate::ways::{Way, as_root, each_way, has_program, shared_python};

const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

/// Runs a shell command in the mount as a user; `$0` is the mountpoint.
fn sh_as(way: &Way, uid: u32, script: &str) -> Output {
    let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
    let mut command = Command::new("setpriv");
    command.args(ids).args(["--clear-groups", "sh", "-euc", script]).arg(&way.mnt);
    command.output().expect("setpriv runs")
}

/// Runs a shell command in the mount as the user who mounts.
#[track_caller]
fn sh(way: &Way, script: &str) -> String {
    let output = way.other_command("sh").args(["-euc", script]).arg(&way.mnt).output().expect("sh runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
    String::from_utf8(output.stdout).expect("stdout is text")
}

/// Lets others reach the store and the mountpoint.
fn open_place(way: &Way) {
    fs::set_permissions(way.place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

/// The file of the one array that the store has.
fn data_file(place: &Place) -> fs::Metadata {
    let files = files_below(&place.store);
    let data: Vec<&String> = files.iter().filter(|name| name.ends_with(".npkd")).collect();
    assert_eq!(data.len(), 1, "{files:?}");
    fs::metadata(place.store.join(data[0])).unwrap()
}

/// Owner, group and permissions of what is named.
const STAT: &str = "stat -c '%u %g %a'";

#[test]
fn owner_group_and_permissions_are_shown_as_the_options_say() {
    each_way(|way| {
        way.make_store(&[("g/a", numbers(10, 0))]);
        let own = sh(way, "id -u; id -g");
        let own: Vec<&str> = own.lines().collect();
        let before = data_file(&way.place).mode();
        for (options, file, folder) in [
            ("uid=1234,gid=4321,umask=027", "1234 4321 640", "1234 4321 750"),
            ("umask=0,ro", "%u %g 444", "%u %g 555"),
            ("gid=daemon,umask=077", "%u 1 600", "%u 1 700"),
        ] {
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            let filled = |text: &str| text.replace("%u", own[0]).replace("%g", own[1]);
            // Of folders nothing is seen by who is not to search them.
            let way_in = if options.contains("uid=") && own[0] != "0" { "$0" } else { "$0/g" };
            assert_eq!(sh(way, &format!("{STAT} {way_in}")).trim_end(), filled(folder), "{options}");
            if way_in == "$0/g" {
                assert_eq!(sh(way, &format!("{STAT} $0/g/a.npy")).trim_end(), filled(file), "{options}");
            }
            way.umount().ok();
        }
        assert_eq!(data_file(&way.place).mode(), before, "what is stored stays as it is");
        for (bad, words) in
            [("uid=no such user", "uid=USER"), ("umask=9", "umask=OCTAL"), ("gid=", "gid=GROUP")]
        {
            let (ran, _unmount) = way.mount_with(bad);
            ran.fails(2, &[bad, words]);
        }
    });
}

#[test]
fn a_mount_can_be_given_to_somebody() {
    as_root(|way| {
        if let Err(reason) = has_program("setpriv") {
            return eprintln!("SKIPPED: {reason}");
        }
        way.make_store(&[("a", numbers(10, 0))]);
        open_place(way);
        // The store is private.
        fs::set_permissions(&way.place.store, fs::Permissions::from_mode(0o700)).unwrap();
        let (ran, _unmount) = way.mount_with("allow_other,uid=nobody,gid=65534,umask=077");
        ran.ok();
        let script = "cp $0/a.npy $0/b.npy; mkdir $0/g; mv $0/b.npy $0/g/b.npy; chmod 640 $0/g/b.npy; chown 65534 $0/a.npy; \
                      printf x | dd of=$0/a.npy bs=1 conv=notrunc seek=200 status=none; stat -c '%u %g %a' $0/g/b.npy";
        let output = sh_as(way, NOBODY, script);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(output.stdout, b"65534 65534 600\n");
        let output = sh_as(way, DAEMON, "ls $0");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}");
        way.umount().ok();
        let stored = npkfs!["ls", &way.place.store].ok();
        assert_eq!(stored.lines(), ["a", "g/b"]);
        // What is stored is the mounting user's, with the permissions that were asked for.
        for name in files_below(&way.place.store).iter().filter(|name| name.ends_with(".npkd")) {
            assert_eq!(fs::metadata(way.place.store.join(name)).unwrap().uid(), 0, "{name}");
        }
    });
}

#[test]
fn new_files_belong_to_who_makes_them() {
    as_root(|way| {
        if let Err(reason) = has_program("setpriv") {
            return eprintln!("SKIPPED: {reason}");
        }
        way.make_store(&[("a", numbers(10, 0))]);
        open_place(way);
        fs::set_permissions(&way.place.store, fs::Permissions::from_mode(0o777)).unwrap();
        for options in ["allow_other", "allow_other,compress=zstd"] {
            let (ran, unmount) = way.mount_with(options);
            ran.ok();
            let script = "umask 027; cat $0/a.npy >$0/mine.npy; stat -c '%u %g %a' $0/mine.npy; mkdir $0/g; \
                          stat -c '%u %g %a' $0/g; cat $0/a.npy >$0/mine.npy; cp $0/a.npy $0/g/x.npy; rm $0/g/x.npy; \
                          rm -f $0/a.npy";
            let output = sh_as(way, NOBODY, script);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "65534 65534 640\n65534 65534 750\n");
            let output = sh_as(way, DAEMON, "cat $0/mine.npy");
            assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}");
            way.umount().ok();
            drop(unmount);
            let stored = data_file(&way.place);
            assert_eq!((stored.uid(), stored.gid(), stored.mode() & 0o777), (NOBODY, NOBODY, 0o640));
            way.run(["mv".as_ref(), way.place.store.as_os_str(), "mine".as_ref(), "a".as_ref()]).ok();
            for name in files_below(&way.place.store) {
                let path = way.place.store.join(name);
                chown(&path, Some(0), Some(0)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            }
        }
    });
}

#[test]
fn modes_owners_and_times_are_set_and_kept() {
    each_way(|way| {
        way.make_store(&[("a", numbers(2000, 0))]);
        let unmount = way.mount();
        let is_root = sh(way, "id -u").trim_end() == "0";
        sh(way, "chmod 640 $0/a.npy; touch -m -d @1000000000.5 $0/a.npy; touch -a -d @1100000000.5 $0/a.npy");
        if is_root {
            sh(way, "chown 1234:4321 $0/a.npy");
        } else {
            sh(way, "chown $(id -u):$(id -g) $0/a.npy; ! chown 1234 $0/a.npy 2>/dev/null");
        }
        let look = format!("{STAT} $0/a.npy; stat -c %.Y $0/a.npy; stat -c '%i %b' $0/a.npy");
        let seen = sh(way, &look);
        let id = |flag| sh(way, &format!("id {flag}")).trim_end().to_owned();
        let owner = if is_root { "1234 4321".to_owned() } else { format!("{} {}", id("-u"), id("-g")) };
        assert!(seen.starts_with(&format!("{owner} 640\n1000000000.5")), "{seen}");
        way.umount().ok();
        drop(unmount);
        let unmount = way.mount();
        assert_eq!(sh(way, &look), seen, "after a remount");

        // A file that is written anew is the same one, as on a disk; so is one that is compressed or compacted.
        sh(way, "cat $0/a.npy >/dev/null; cp $0/a.npy $0/b.npy; cat $0/b.npy >$0/a.npy; rm $0/b.npy");
        let kept = sh(way, &format!("{STAT} $0/a.npy"));
        assert_eq!(kept, format!("{owner} 640\n"));
        way.umount().ok();
        drop(unmount);
        let store = way.place.store.as_os_str();
        for args in [["recompress", "--level=1"], ["recompress", "--none"]] {
            way.run([args[0].as_ref(), store, "a".as_ref(), args[1].as_ref()]).ok();
            let stored = data_file(&way.place);
            let owner_now = format!("{} {}", stored.uid(), stored.gid());
            assert_eq!((owner_now, stored.mode() & 0o777), (owner.clone(), 0o640), "{args:?}");
        }
    });
}

#[test]
fn what_is_private_is_never_readable_by_others() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        for options in ["compress=off", "compress=zstd"] {
            let (ran, unmount) = way.mount_with(options);
            ran.ok();
            // The mode is there before the first byte, whatever the umask is, and stays when the file becomes an array.
            let script = "
import os, sys
os.umask(0)
path = sys.argv[1] + '/private.npy'
data = open(sys.argv[1] + '/a.npy', 'rb').read()
fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
modes = [os.fstat(fd).st_mode & 0o777, os.stat(path).st_mode & 0o777]
os.write(fd, data[:50])
modes.append(os.fstat(fd).st_mode & 0o777)
os.write(fd, data[50:])
os.fsync(fd)
modes.append(os.stat(path).st_mode & 0o777)
os.close(fd)
modes.append(os.stat(path).st_mode & 0o777)
with open(path, 'wb') as file: file.write(data)
modes.append(os.stat(path).st_mode & 0o777)
open(sys.argv[1] + '/half', 'wb', opener=lambda path, flags: os.open(path, flags, 0o600)).write(b'half')
os.mkdir(sys.argv[1] + '/folder', 0o700)
modes.append(os.stat(sys.argv[1] + '/folder').st_mode & 0o777)
print(*map(oct, modes))
";
            let python = match shared_python() {
                Ok(python) => python,
                Err(reason) => return eprintln!("SKIPPED: {reason}"),
            };
            let output = way.other_command(python).args(["-c", script]).arg(&way.mnt).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let modes = String::from_utf8(output.stdout).unwrap();
            assert_eq!(modes, "0o600 0o600 0o600 0o600 0o600 0o600 0o700\n");
            way.umount().ok();
            drop(unmount);
            for name in files_below(&way.place.store).iter().filter(|name| name.contains("private")) {
                let mode = fs::metadata(way.place.store.join(name)).unwrap().mode();
                assert_eq!(mode & 0o077, 0, "{name}");
            }
            let plain = way.place.store.join("files");
            assert_eq!(fs::metadata(&plain).unwrap().mode() & 0o077, 0);
            assert_eq!(files_below(&plain), ["half~1"]);
            assert_eq!(fs::metadata(plain.join("half~1")).unwrap().mode() & 0o077, 0);
            fs::remove_dir_all(plain).unwrap();
            way.run(["rm".as_ref(), way.place.store.as_os_str(), "private".as_ref()]).ok();
        }
    });
}

#[test]
fn links_in_the_store_are_not_followed() {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0)), ("b", numbers(10, 5))]);
        let outside = way.place.write("outside", &numbers(10, 77));
        let own = fs::metadata(&way.mnt).unwrap();
        chown(&outside, Some(own.uid()), Some(own.gid())).unwrap();
        let store = &way.place.store;
        let of_a = files_below(store).into_iter().find(|name| name.starts_with("data_a")).unwrap();
        fs::remove_file(store.join(&of_a)).unwrap();
        symlink(&outside, store.join(&of_a)).unwrap();
        // To where what is not whole is put at the end, and what is no array.
        let folder = way.place.path("folder");
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(own.uid()), Some(own.gid())).unwrap();
        for name in ["lost+found", "files"] {
            symlink(&folder, store.join(name)).unwrap();
        }
        let unmount = way.mount();
        let output = way.other_command("cat").arg(way.mnt.join("a.npy")).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("Input/output error"), "{output:?}");
        let script = ": >>$0/a.npy; chmod 777 $0/a.npy; touch $0/a.npy";
        let output = way.other_command("sh").args(["-c", script]).arg(&way.mnt).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        assert_eq!(way.read("b.npy"), numbers(10, 5));
        sh(way, "printf half >$0/half; ! mv $0/b.npy $0/b.bak 2>/dev/null; rm $0/b.npy; cat $0/half >$0/c");
        // An array over it takes its name, and leaves what the link leads to alone.
        sh(way, "printf half >$0/a.npy || true");
        way.umount().ok();
        drop(unmount);
        let outside_now = fs::read(&outside).unwrap();
        assert_eq!(outside_now, numbers(10, 77));
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o111, 0);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing was put where the link leads");
    });
}

#[test]
fn a_link_in_place_of_the_manifest_or_the_lock_is_refused() {
    each_way(|way| {
        for name in ["metadata.npkm", "metadata.npkm.lock"] {
            let store = &way.place.store;
            way.make_store(&[("a", numbers(10, 0))]);
            let moved = way.place.path("moved");
            fs::rename(store.join(name), &moved).unwrap();
            symlink(&moved, store.join(name)).unwrap();
            let before = fs::read(&moved).unwrap();
            let (ran, unmount) = way.mount_with("");
            if ran.code == Some(0) {
                // Reading takes no lock.
                assert_eq!(name, "metadata.npkm.lock");
                let output = way.other_command("rm").arg(way.mnt.join("a.npy")).output().unwrap();
                assert!(!output.status.success(), "{output:?}");
                assert_eq!(way.read("a.npy"), numbers(10, 0));
                way.umount().ok();
            }
            drop(unmount);
            assert!(!way.is_mounted());
            assert_eq!(fs::read(&moved).unwrap(), before, "{name}");
            fs::remove_dir_all(store).unwrap();
        }
    });
}

/// Everything is refused that needs a right which the permissions shown do not give.
#[test]
fn permissions_that_are_shown_are_those_that_hold() {
    as_root(|way| {
        if let Err(reason) = has_program("setpriv") {
            return eprintln!("SKIPPED: {reason}");
        }
        way.make_store(&[("a", numbers(10, 0)), ("g/b", numbers(10, 0))]);
        open_place(way);
        let (ran, _unmount) = way.mount_with("allow_other");
        ran.ok();
        for script in [
            ": >$0/new.npy",
            "mkdir $0/new",
            "rm -f $0/a.npy",
            "mv $0/a.npy $0/c.npy",
            ": >>$0/a.npy",
            "chmod 666 $0/a.npy",
            "chown 65534 $0/a.npy",
            "touch -d @1 $0/a.npy",
            "chmod 777 $0/g",
            "truncate -s 0 $0/a.npy",
            "rm -rf $0/g",
        ] {
            let output = sh_as(way, NOBODY, script);
            let said = String::from_utf8_lossy(&output.stderr);
            let words = ["Permission denied", "Operation not permitted", "cannot create"];
            assert!(
                !output.status.success() && words.iter().any(|word| said.contains(word)),
                "{script}: {output:?}"
            );
        }
        assert!(sh_as(way, NOBODY, "cat $0/a.npy $0/g/b.npy; ls -lR $0").status.success());
        // A folder that is closed hides what is in it.
        sh(way, "chmod 700 $0/g");
        assert!(!sh_as(way, NOBODY, "cat $0/g/b.npy").status.success());
        sh(way, "chown 65534 $0/g");
        assert!(sh_as(way, NOBODY, "cp $0/a.npy $0/g/c.npy; rm $0/g/b.npy").status.success());
        way.umount().ok();
        assert_eq!(npkfs!["ls", &way.place.store].ok().lines(), ["a", "g/c"]);
    });
}
