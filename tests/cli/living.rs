//! What a machine does with mounts: at boot, as services, and when it wants to know how they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::common::{Place, Ran, clean, numbers};
use crate::ways::{
    Way, as_root, as_user, each_mount, each_store, each_way, has_program, is_running, shared_python, signal,
    soon,
};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-scripts")
}

fn status(way: &Way, args: &[&str]) -> Ran {
    way.run(["status"].iter().chain(args))
}

fn of_mount(way: &Way) -> serde_json::Value {
    let mnt = way.mnt.to_str().unwrap();
    let listed = status(way, &["--json", mnt]).ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    listed[0].clone()
}

#[test]
fn status_tells_how_mounts_are_used() {
    each_way(|way| {
        way.make_store(&[("a", numbers(5000, 0)), ("z", numbers(50_000, 0))]);
        way.run(["recompress".as_ref(), way.place.store.as_os_str(), "z".as_ref()]).ok();
        let mnt = way.mnt.to_str().unwrap();
        status(way, &[mnt]).fails(1, &["nothing is mounted here"]);
        let (ran, _unmount) = way.mount_with("passthrough=off");
        ran.ok();
        let before = of_mount(way);
        assert_eq!((&before["state"], &before["mountpoint"]), (&"serving".into(), &mnt.into()));
        assert_eq!(before["pid"], way.server().unwrap());
        assert_eq!(before["counters"]["reads"], 0);

        way.read("a.npy");
        assert_eq!(of_mount(way)["counters"]["bytes_read"], numbers(5000, 0).len());
        way.read("z.npy");
        let write = "printf x | dd of=\"$0\" bs=1 conv=notrunc seek=1000 2>&1";
        let output = way.other_command("sh").args(["-c", write]).arg(way.mnt.join("a.npy")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let after = of_mount(way);
        let counter = |name: &str| after["counters"][name].as_u64().unwrap();
        assert!(counter("reads") > 1 && counter("writes") == 1 && counter("bytes_written") == 1, "{after}");
        // Of the blocks that were decoded, the kernel may have been given pages before it asked for them.
        let all = (numbers(5000, 0).len() + numbers(50_000, 0).len()) as u64;
        assert!((numbers(5000, 0).len() as u64 + 1..=all).contains(&counter("bytes_read")), "{after}");
        assert!(counter("bytes_decoded") >= 400_000 && counter("errors") == 0, "{after}");

        let text = status(way, &[mnt]).ok();
        let lines = text.lines();
        assert!(lines[0].starts_with("MOUNTPOINT") && lines[1].starts_with(mnt), "{text:?}");
        assert!(lines[1].contains(" serving "), "{text:?}");
        way.umount().ok();
    });
}

#[test]
fn a_prometheus_file_appears_whole() {
    each_store(|way| {
        let (ran, _unmount) = way.mount_with("passthrough=off");
        ran.ok();
        way.read("a.npy");
        let file = way.place.path("npkfs.prom");
        let ran = status(way, &["--prometheus", file.to_str().unwrap()]).ok();
        assert_eq!(ran.stdout, "");
        let text = fs::read_to_string(&file).unwrap();
        let labels =
            format!("{{mountpoint=\"{}\",store=\"{}\"}}", way.mnt.display(), way.place.store.display());
        for line in [format!("npkfs_up{labels} 1"), format!("npkfs_reads_total{labels} 1")] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
        }
        let n_files = fs::read_dir(way.place.dir.path()).unwrap().flatten();
        assert!(!n_files.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".tmp")));
        status(way, &["--prometheus", "/no/such/folder/x"]).fails(1, &["cannot write /no/such/folder/x"]);
        way.umount().ok();
    });
}

#[test]
fn status_shows_what_a_killed_process_leaves() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        signal(pid, Signal::KILL);
        soon("the end of the serving process", || !is_running(pid));
        let seen = of_mount(way);
        assert_eq!(seen["state"], "dead");
        assert!(seen.get("counters").is_none());
        way.umount().ok();
        status(way, &[way.mnt.to_str().unwrap()]).fails(1, &["nothing is mounted here"]);
    });
}

#[test]
fn counters_are_for_root_and_who_mounted() {
    as_user(|user| {
        as_root(|way| {
            way.make_store(&[("a", numbers(10, 0))]);
            fs::set_permissions(way.place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let _unmount = way.mount();
            let seen = status(user, &["--json"]).ok().json();
            let mnt = way.mnt.to_str().unwrap();
            let seen = seen.as_array().unwrap().iter().find(|mount| mount["mountpoint"] == mnt).unwrap();
            assert_eq!(seen["state"], "unknown");
            assert!(seen.get("counters").is_none());
            way.umount().ok();
        });
    });
}

#[test]
fn a_service_is_ready_when_the_mount_answers() {
    each_store(|way| {
        let path = way.place.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let _unmount = way.mount_guard();
        let mut child = way
            .command()
            .env("NOTIFY_SOCKET", &path)
            .args(["mount", "--foreground", "-o", way.options])
            .args([&way.place.store, &way.mnt])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut message = [0; 4096];
        let len = socket.recv(&mut message).unwrap();
        let message = str::from_utf8(&message[..len]).unwrap();
        assert!(message.starts_with("READY=1\nSTATUS=") && message.contains(" mounted at "), "{message:?}");
        assert_eq!(way.read("a.npy"), numbers(10, 0));
        signal(child.id(), Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(!way.is_mounted());

        // The process in the background is nobody's service.
        let args = ["mount", "-o", way.options].map(std::ffi::OsString::from);
        let mut command = way.command();
        command.env("NOTIFY_SOCKET", &path).args(args).args([&way.place.store, &way.mnt]);
        Ran::from(command.output().unwrap()).ok();
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 10]).is_err());
        way.umount().ok();
    });
}

/// `mount.npk`, with a program in place of npkfs that prints its arguments, one a line, and ends with `code`.
fn helper(place: &Place, code: i32, args: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let program = place.write("npkfs", format!("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit {code}\n").as_bytes());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = clean(Command::new(scripts().join("mount.npk")));
    let Output { status, stdout, stderr } = command.env("NPKFS", program).args(args).output().unwrap();
    let lines = String::from_utf8(stdout).unwrap().lines().map(str::to_owned).collect();
    (status.code(), lines, String::from_utf8(stderr).unwrap())
}

#[test]
fn mount_npk_hands_over_what_npkfs_knows() {
    let place = Place::new();
    let runs = |args: &[&str]| {
        let (code, lines, said) = helper(&place, 0, args);
        assert_eq!((code, &*said), (Some(0), ""), "{args:?}");
        lines
    };
    assert_eq!(runs(&["data.npk", "/mnt"]), ["mount", "--", "data.npk", "/mnt"]);
    assert_eq!(
        runs(&["-s.npk", "/m t", "-n", "-v", "-t", "npk"]),
        ["mount", "--verbose", "--", "-s.npk", "/m t"]
    );
    let options = "rw,_netdev,noauto,nofail,user,x-systemd.automount,comment=x,noexec,compress=zstd:3,log=/l";
    let expected = ["mount", "-o", "rw,noexec,compress=zstd:3", "--log", "/l", "--", "s", "m"];
    assert_eq!(runs(&["s", "m", "-o", options]), expected);
    assert_eq!(runs(&["s", "m", "-o", "a=b,ro", "-r"]), ["mount", "-o", "a=b,ro,ro", "--", "s", "m"]);
    assert_eq!(runs(&["s", "m", "-s", "-o", "a=b,ro"]), ["mount", "-o", "ro", "--", "s", "m"]);
    let shown = "uid=1000,gid=users,umask=027,user=x,default_permissions";
    let expected = ["mount", "-o", "uid=1000,gid=users,umask=027", "--", "s", "m"];
    assert_eq!(runs(&["s", "m", "-s", "-o", shown]), expected);
    assert!(runs(&["s", "m", "-f"]).is_empty());
}

#[test]
fn mount_npk_has_the_exit_codes_of_mount() {
    let place = Place::new();
    for (code, ends) in [(0, 0), (1, 32), (2, 1), (3, 32), (4, 32)] {
        assert_eq!(helper(&place, code, &["s", "m"]).0, Some(ends), "{code}");
    }
    for args in [&["s"][..], &["s", "m", "x"], &["s", "m", "-o"], &["s", "m", "-Q"], &["s", "m", "-N", "1"]] {
        let (code, lines, said) = helper(&place, 0, args);
        assert_eq!((code, lines.len()), (Some(1), 0), "{args:?}");
        assert!(said.starts_with("mount.npk: "), "{said}");
    }
    let mut command = clean(Command::new(scripts().join("mount.npk")));
    let output = command.env("NPKFS", "/no/such/program").args(["s", "m"]).output().unwrap();
    assert_eq!(output.status.code(), Some(32));
}

#[test]
fn what_is_mounted_next_stays_mounted() {
    as_root(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        for _ in 0..5 {
            let unmount = way.mount();
            let first = way.server().expect("somebody serves");
            // As umount(8) does, without waiting for the process; the next mount may get the device number of this one.
            assert!(Command::new("umount").arg(&way.mnt).status().unwrap().success());
            let _next = way.mount();
            soon("the end of the first process", || !is_running(first));
            assert_eq!(way.read("a.npy"), numbers(10, 0));
            way.umount().ok();
            drop(unmount);
        }
    });
}

#[test]
fn a_client_that_is_killed_is_survived() {
    each_way(|way| {
        way.make_store(&[("a", numbers(5000, 0))]);
        let _unmount = way.mount();
        let pid = way.server().expect("somebody serves");
        let holder = way.hold("a.npy");
        signal(holder.pid(), Signal::KILL);
        soon("the end of the client", || !is_running(holder.pid()));
        drop(holder);
        assert_eq!(way.read("a.npy"), numbers(5000, 0));
        assert!(is_running(pid));
        way.umount().ok();
        assert!(!way.is_mounted() && !is_running(pid));
    });
}

#[test]
fn a_store_that_is_removed_is_survived() {
    each_mount(|way| {
        let pid = way.server().expect("somebody serves");
        let holder = way.hold("a.npy");
        fs::remove_dir_all(&way.place.store).unwrap();
        assert_eq!(holder.read(), numbers(10, 0), "what is open stays readable");
        let output = way.other_command("cat").arg(way.mnt.join("b.npy")).output().unwrap();
        assert!(!output.status.success());
        assert!(is_running(pid));
        signal(pid, Signal::TERM);
        soon("the end of the serving process", || !is_running(pid));
        assert!(!way.is_mounted());
    });
}

#[test]
fn cp_and_rsync_carry_user_attributes() {
    as_root(|way| {
        let rsync = match has_program("rsync").and_then(|_| has_program("cp")) {
            Ok(_) => Path::new("rsync"),
            Err(reason) => return eprintln!("SKIPPED: {reason}"),
        };
        way.make_store(&[("a", numbers(10, 0))]);
        let _unmount = way.mount();
        let (a, b, copied) = (way.mnt.join("a.npy"), way.mnt.join("b.npy"), way.mnt.join("g"));
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&a, "user.npk.attrs.unit", b"\"m\"", flags).unwrap();
        let unit = |path: &Path| {
            let mut value = [0; 16];
            let len = rustix::fs::getxattr(path, "user.npk.attrs.unit", &mut value).unwrap();
            String::from_utf8(value[..len].to_vec()).unwrap()
        };
        let output = Command::new("cp").arg("-a").args([&a, &b]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(unit(&b), "\"m\"");
        let sync = || {
            let mut command = Command::new(rsync);
            command
                .args(["-aX", "--itemize-changes", "--exclude=/g/"])
                .arg(format!("{}/", way.mnt.display()));
            let output = command.arg(format!("{}/", copied.display())).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        fs::create_dir(&copied).unwrap();
        assert!(sync().contains("a.npy"));
        assert_eq!(unit(&copied.join("a.npy")), "\"m\"");
        let second = sync();
        assert!(!second.contains(".npy"), "{second}");
        way.umount().ok();
    });
}

/// In a user namespace of its own, which may have no inotify instances.
const WITHOUT_INOTIFY: &str = r#"
echo 0 >/proc/sys/user/max_inotify_instances
"$NPKFS" mount --log "$LOG" -o passthrough=off "$STORE" "$MNT"
"$NPKFS" mount -q -o passthrough=off "$STORE" "$MNT2"
exec "$PYTHON" -c '
import mmap, os, sys, time
mnt, mnt2 = sys.argv[1:]
with open(mnt + "/a.npy", "rb") as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
before, at = m[:], len(m) - 8
with open(mnt2 + "/a.npy", "r+b") as f: os.pwrite(f.fileno(), b"seen....", at)
limit = time.monotonic() + 20
while m[at:] != b"seen....": assert time.monotonic() < limit, "not seen"
assert m[:at] == before[:at]
print("seen")
' "$MNT" "$MNT2"
"#;

#[test]
fn where_inotify_does_not_see_all_commits_the_mount_looks_each_second() {
    let (unshare, python) = match has_program("unshare").and_then(|path| Ok((path, shared_python()?))) {
        Ok(found) => found,
        Err(reason) => return eprintln!("SKIPPED: {reason}"),
    };
    as_root(|way| {
        way.make_store(&[("a", numbers(50_000, 0))]);
        way.run(["recompress".as_ref(), way.place.store.as_os_str(), "a".as_ref()]).ok();
        let (second, log) = (way.place.path("mnt2"), way.place.path("log"));
        fs::create_dir(&second).unwrap();
        let mut command = clean(Command::new(&unshare));
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "sh",
            "-ec",
            WITHOUT_INOTIFY,
        ]);
        let paths = [("STORE", &way.place.store), ("MNT", &way.mnt), ("MNT2", &second), ("LOG", &log)];
        let output = command
            .envs(paths)
            .env("PYTHON", python)
            .env("NPKFS", env!("CARGO_BIN_EXE_npkfs"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("unshare")
            || said.contains("max_inotify_instances")
            || said.contains("cannot open /dev/fuse")
        {
            return eprintln!("SKIPPED: no user namespaces with mounts here: {said}");
        }
        let log = fs::read_to_string(&log).unwrap_or_default();
        assert!(output.stdout.ends_with(b"seen\n"), "{output:?} {log}");
        assert!(log.contains("inotify is not available"), "{log}");
    });
}
