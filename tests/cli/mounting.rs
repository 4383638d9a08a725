//! `mount` and `umount` as they are meant to be used, and how a mount ends.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::common::{Ran, npy, numbers};
use crate::npkfs;
use crate::ways::{
    Way, as_root, as_user, each_mount, each_store, each_way, has_program, is_root, is_running, signal,
    signal_if_there, soon, stop,
};

fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("stderr is text");
    (child.wait().expect("npkfs ends").code(), said)
}

#[test]
fn a_mounted_store_is_a_folder_of_npy_files() {
    each_way(|way| {
        let files = [("a", numbers(5000, 1)), ("g/b", npy("'<f4'", "(3,)", &[1; 12]))];
        way.make_store(&files);
        let _unmount = way.mount();
        assert_eq!(way.files(), ["a.npy", "g/b.npy"]);
        for (name, bytes) in &files {
            assert_eq!(&way.read(&format!("{name}.npy")), bytes);
        }
        way.umount().ok();
        assert!(!way.is_mounted());
        assert_eq!(fs::read_dir(&way.mnt).unwrap().count(), 0);
    });
}

#[test]
fn umount_returns_when_the_serving_process_is_gone() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        let ran = way.umount().ok();
        assert_eq!((&*ran.stdout, &*ran.stderr), ("", ""));
        assert!(!is_running(pid));
        way.umount().fails(1, &["mnt: nothing is mounted here", "npkfs mount"]);
    });
}

#[test]
fn the_background_process_is_detached() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        for fd in [1, 2] {
            assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(), Path::new("/dev/null"));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // State, parent, group, session, terminal: it leads both, and has none.
        assert_eq!((fields[2], fields[3], fields[4]), (&*pid.to_string(), &*pid.to_string(), "0"));
    });
}

#[test]
fn paths_may_be_relative() {
    each_store(|way| {
        let _unmount = way.mount_with("").1;
        way.umount().ok();
        let run = |args: &[&str]| -> crate::common::Ran {
            way.command().current_dir(way.place.dir.path()).args(args).output().unwrap().into()
        };
        assert_eq!(run(&["mount", "data.npk", "./mnt/"]).ok().stdout, "data.npk mounted at ./mnt/\n");
        assert_eq!(way.read("a.npy"), numbers(10, 0));
        run(&["umount", "mnt"]).ok();
        assert!(!way.is_mounted());
    });
}

#[test]
fn writes_in_place_reach_the_store_unless_read_only() {
    each_store(|way| {
        let offset = numbers(10, 0).len() - 8;
        let write = || {
            let path = way.mnt.join("a.npy");
            let command = "printf '\\115\\0\\0\\0\\0\\0\\0\\0' | dd of=\"$0\" bs=1 conv=notrunc seek=\"$1\"";
            way.other_command("sh").args(["-c", command]).arg(path).arg(offset.to_string()).output().unwrap()
        };
        let unmount = way.mount();
        assert!(write().status.success());
        way.umount().ok();
        drop(unmount);
        way.run(["export".as_ref(), way.place.store.as_os_str(), way.place.path("out").as_os_str()]).ok();
        assert!(fs::read(way.place.path("out/a.npy")).unwrap().ends_with(&77_i64.to_le_bytes()));

        let (ran, _unmount) = way.mount_with("ro,noatime,noexec");
        ran.ok();
        let output = write();
        assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only file system"), "{output:?}");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(way.mnt.to_str().unwrap())).unwrap();
        for option in ["ro", "noatime", "noexec", "nosuid", "nodev"] {
            assert!(line.split([' ', ',']).any(|word| word == option), "{option} is missing in {line}");
        }
        way.umount().ok();
    });
}

#[test]
fn other_users_look_in_only_if_allowed() {
    as_root(|way| {
        if let Err(reason) = has_program("setpriv") {
            return eprintln!("SKIPPED: {reason}");
        }
        way.make_store(&[("a", numbers(10, 0))]);
        fs::set_permissions(way.place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let nobody_reads = || {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
                .arg(way.mnt.join("a.npy"));
            command.output().unwrap().status.success()
        };
        let unmount = way.mount();
        assert!(!nobody_reads());
        way.umount().ok();
        drop(unmount);
        let (ran, _unmount) = way.mount_with("allow_other");
        ran.ok();
        assert!(nobody_reads());
        way.umount().ok();
    });
}

#[test]
fn a_mount_in_use_is_not_unmounted() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        let holder = way.hold("a.npy");
        let named = format!("in use by process {} (sh)", holder.pid());
        way.umount().fails(4, &[&named, "still mounted", "--lazy"]);
        assert!(way.is_mounted() && is_running(pid));

        way.run(["umount".as_ref(), "--lazy".as_ref(), way.mnt.as_os_str()]).ok();
        assert!(!way.is_mounted());
        assert_eq!(holder.read(), numbers(10, 0), "what is open stays readable");
        soon("the end of the serving process", || !is_running(pid));
    });
}

#[test]
fn a_folder_in_use_is_a_mount_in_use() {
    as_root(|way| {
        way.make_store(&[("g/a", numbers(10, 0))]);
        let _unmount = way.mount();
        let mut child = Command::new("sleep").arg("60").current_dir(way.mnt.join("g")).spawn().unwrap();
        let ran = way.umount();
        child.kill().unwrap();
        child.wait().unwrap();
        ran.fails(4, &["in use by process", &format!("process {} (sleep)", child.id())]);
        way.umount().ok();
    });
}

#[test]
fn a_signal_unmounts() {
    each_store(|way| {
        for number in [Signal::TERM, Signal::INT, Signal::HUP] {
            let (child, _unmount) = way.mount_in_foreground();
            way.read("a.npy");
            signal(child.id(), number);
            let (code, said) = ended(child);
            assert_eq!(code, Some(0), "{number:?}: {said}");
            assert!(!way.is_mounted() && said.contains("unmounting"), "{said}");
        }
        let _unmount = way.mount();
        let pid = way.server().expect("somebody serves");
        signal(pid, Signal::TERM);
        soon("the end of the serving process", || !is_running(pid));
        assert!(!way.is_mounted());
    });
}

#[test]
fn a_signal_to_a_mount_in_use_takes_it_out_of_sight() {
    each_store(|way| {
        let (child, _unmount) = way.mount_in_foreground();
        let holder = way.hold("a.npy");
        signal(child.id(), Signal::TERM);
        soon("the end of the mount", || !way.is_mounted());
        assert_eq!(holder.read(), numbers(10, 0));
        let (code, said) = ended(child);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("is in use"), "{said}");

        // A second signal does not wait.
        let (child, _unmount) = way.mount_in_foreground();
        let holder = way.hold("a.npy");
        signal(child.id(), Signal::TERM);
        soon("the end of the mount", || !way.is_mounted());
        signal(child.id(), Signal::TERM);
        let (code, said) = ended(child);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("ended at once"), "{said}");
        drop(holder);
    });
}

#[test]
fn foreground_ends_with_umount() {
    each_store(|way| {
        let (child, _unmount) = way.mount_in_foreground();
        way.umount().ok();
        let (code, said) = ended(child);
        assert_eq!(code, Some(0), "{said}");
    });
}

#[test]
fn what_a_killed_process_leaves_is_named_and_removed() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        signal(pid, Signal::KILL);
        soon("the end of the serving process", || !is_running(pid));
        let (ran, _again) = way.mount_with("");
        ran.fails(1, &["mnt: has a dead mount on it", "npkfs umount"]);
        way.umount().ok();
        assert!(!way.is_mounted());
        let _unmount = way.mount();
        assert_eq!(way.read("a.npy"), numbers(10, 0));
    });
}

/// A program that waits for an answer to something that is in no cache; it fails when there is none any more.
fn waiting(way: &Way, name: &str) -> Child {
    let mut command = way.other_command("mkdir");
    command.arg(way.mnt.join(name)).stderr(Stdio::null()).spawn().expect("mkdir runs")
}

/// `umount` by a path that leads to the mountpoint through a link and back: to follow it one has to look at what is there,
/// and nobody answers.
fn umount_by_way_of_a_link(way: &Way, args: &[&str]) -> Ran {
    let link = way.place.path("link");
    let _ = std::os::unix::fs::symlink("mnt", &link);
    way.run(["umount"].iter().chain(args).map(std::ffi::OsStr::new).chain([link.as_os_str()]))
}

#[test]
fn a_stopped_process_is_named_and_goes_on() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        stop(pid);
        let mut program = waiting(way, "new");
        let parts = ["which serves it, is stopped", &format!("kill -CONT {pid}"), "npkfs umount --force"];
        way.umount().fails(1, &parts);
        umount_by_way_of_a_link(way, &["--lazy"]).fails(1, &parts);
        assert!(way.is_mounted());
        signal(pid, Signal::CONT);
        assert!(program.wait().expect("ends").success(), "what waited for it goes on");
    });
}

#[test]
fn force_ends_the_mount_of_a_stopped_process_and_what_waits_for_it() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        stop(pid);
        let mut program = waiting(way, "new");
        umount_by_way_of_a_link(way, &["--force"]).ok();
        assert!(!way.is_mounted());
        assert!(!program.wait().expect("ends").success(), "it is told that nobody answers");
        signal_if_there(pid, Signal::CONT);
        soon("the end of the serving process", || !is_running(pid));
        let _unmount = way.mount();
        assert_eq!(way.read("a.npy"), numbers(10, 0));
    });
}

#[test]
fn force_ends_a_mount_that_is_well_and_in_use() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        let _holder = way.hold("a.npy");
        way.run(["umount".as_ref(), "--force".as_ref(), way.mnt.as_os_str()]).ok();
        assert!(!way.is_mounted() && !is_running(pid));
    });
}

#[test]
fn programs_that_wait_for_a_killed_process_are_let_go() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        stop(pid);
        let mut program = waiting(way, "new");
        signal(pid, Signal::KILL);
        umount_by_way_of_a_link(way, &[]).ok();
        assert!(!way.is_mounted());
        soon("the end of the serving process", || !is_running(pid));
        assert!(!program.wait().expect("ends").success(), "it is told that nobody answers");
    });
}

#[test]
fn root_unmounts_what_users_mounted() {
    as_user(|way| {
        if !is_root() {
            return eprintln!("SKIPPED: only root can unmount what others mounted");
        }
        way.make_store(&[("a", numbers(10, 0))]);
        let _unmount = way.mount();
        let pid = way.server().expect("somebody serves");
        npkfs!("umount", way.mnt).ok();
        assert!(!way.is_mounted() && !is_running(pid));
    });
}

#[test]
fn users_do_not_unmount_what_root_mounted() {
    as_user(|user| {
        as_root(|way| {
            way.make_store(&[("a", numbers(10, 0))]);
            let _unmount = way.mount();
            fs::set_permissions(way.place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let ran = user.run(["umount".as_ref(), way.mnt.as_os_str()]);
            ran.fails(1, &["cannot unmount", "mnt", "only root and the user who mounted it"]);
            assert!(way.is_mounted());
            way.umount().ok();
        });
    });
}

#[test]
fn the_log_goes_to_its_file() {
    each_store(|way| {
        let log = way.place.path("npkfs.log");
        let _unmount = way.mount_with("").1;
        way.umount().ok();
        let args = ["mount".as_ref(), "-v".as_ref(), "--log".as_ref(), log.as_os_str()];
        way.run(args.into_iter().chain([way.place.store.as_os_str(), way.mnt.as_os_str()])).ok();
        way.umount().ok();
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains(" mounted at ") && text.contains(" unmounted"), "{text}");
        // With the time, and for nobody else to read.
        assert!(text.starts_with("npkfs: 20"), "{text}");
        assert_eq!(fs::metadata(&log).unwrap().mode() & 0o077, 0);

        let missing = way.place.path("missing/log");
        let args = ["mount".as_ref(), "--log".as_ref(), missing.as_os_str()];
        way.run(args.into_iter().chain([way.place.store.as_os_str(), way.mnt.as_os_str()]))
            .fails(1, &["cannot open the log", "missing/log"]);
        assert!(!way.is_mounted());
    });
}

#[test]
fn contents_are_hidden_only_if_asked() {
    each_store(|way| {
        fs::File::create(way.mnt.join("mine.txt")).unwrap().write_all(b"mine").unwrap();
        let (ran, unmount) = way.mount_with("");
        ran.fails(1, &["mnt: is not empty", "mine.txt", "-o nonempty"]);
        assert!(!way.is_mounted());
        drop(unmount);
        let (ran, _unmount) = way.mount_with("nonempty");
        ran.ok();
        assert_eq!(way.files(), ["a.npy"]);
        way.umount().ok();
        assert_eq!(fs::read(way.mnt.join("mine.txt")).unwrap(), b"mine");
    });
}

#[test]
fn other_file_systems_are_left_mounted() {
    each_way(|way| {
        let ran = way.run(["umount", "/proc"]);
        ran.fails(1, &["/proc", "(proc)", "not of a store"]);
        way.run(["umount".as_ref(), way.place.path("nowhere").as_os_str()])
            .fails(1, &["nowhere: no such folder"]);
    });
}
