//! mount(8), fstab, autofs and systemd: how a machine mounts stores by itself.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;

use crate::common::{Place, clean, numbers};
use crate::ways::{as_root, has_program, is_mounted, is_running, signal, soon};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-scripts")
}

/// The helper where mount(8) looks for it, for as long as this lives.
struct Installed {
    path: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Installed {
    fn new() -> Result<Installed, String> {
        has_program("mount")?;
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let path = PathBuf::from("/sbin/mount.npk");
        if path.exists() {
            return Err("mount.npk is installed already".to_owned());
        }
        let script = format!(
            "#!/bin/sh\nNPKFS='{}' exec '{}' \"$@\"\n",
            env!("CARGO_BIN_EXE_npkfs"),
            scripts().join("mount.npk").display()
        );
        fs::write(&path, script).map_err(|error| error.to_string())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
        Ok(Installed { path, _turn: turn })
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn mount_t_npk_and_lines_of_fstab_mount() {
    as_root(|way| {
        let _installed = match Installed::new() {
            Ok(installed) => installed,
            Err(reason) => return eprintln!("SKIPPED: {reason}"),
        };
        way.make_store(&[("a", numbers(10, 0))]);
        let mount = |args: &[&str]| {
            let mut command = clean(Command::new("mount"));
            command.args(args).output().unwrap()
        };
        let (store, mnt) = (way.place.store.to_str().unwrap(), way.mnt.to_str().unwrap());
        let _unmount = way.mount_guard();
        let output = mount(&["-t", "npk", "-o", "ro,noatime", store, mnt]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(way.read("a.npy"), numbers(10, 0));
        assert!(fs::OpenOptions::new().write(true).open(way.mnt.join("a.npy")).is_err());
        assert!(Command::new("umount").arg(mnt).status().unwrap().success());
        assert!(!way.is_mounted());

        let options = "noauto,user,nofail,_netdev,x-systemd.automount,exec,rw,uid=1234,gid=4321,umask=077";
        let table = way.place.write("fstab", format!("{store} {mnt} npk {options} 0 0\n").as_bytes());
        let output = mount(&["-T", table.to_str().unwrap(), mnt]);
        assert!(output.status.success(), "{output:?}");
        let file = fs::OpenOptions::new().write(true).open(way.mnt.join("a.npy")).unwrap();
        let shown = file.metadata().unwrap();
        assert_eq!((shown.uid(), shown.gid(), shown.mode() & 0o777), (1234, 4321, 0o600));
        file.write_at(&[7], numbers(10, 0).len() as u64 - 8).unwrap();
        drop(file);
        way.umount().ok();

        let output = mount(&["-t", "npk", "/no/such/store.npk", mnt]);
        assert_eq!(output.status.code(), Some(32), "{output:?}");
        assert!(!way.is_mounted());
    });
}

#[test]
fn make_install_puts_everything_in_its_place() {
    if let Err(reason) = has_program("make") {
        return eprintln!("SKIPPED: {reason}");
    }
    let place = Place::new();
    let root = place.path("root");
    install(&place, &["PREFIX=/opt/npk".to_owned(), format!("DESTDIR={}", root.display())]);
    for name in ["opt/npk/bin/npkfs", "sbin/mount.npk"] {
        let mode = fs::metadata(root.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    let unit = fs::read_to_string(root.join("etc/systemd/system/npkfs@.service")).unwrap();
    assert!(unit.contains("ExecStart=/opt/npk/bin/npkfs mount --foreground"), "{unit}");
    assert!(!unit.contains('@') || !unit.contains("@PREFIX@"), "{unit}");
    for name in ["npkfs-semantics.md", "fstab.example", "auto.npk.example", "srv-x.mount"] {
        assert!(root.join("opt/npk/share/doc/npkfs").join(name).is_file(), "{name}");
    }
    let helper = fs::read_to_string(root.join("sbin/mount.npk")).unwrap();
    assert!(helper.contains("/opt/npk/bin"), "the helper finds what was installed");
}

/// Runs `make install-files` with everything below `root`.
fn install(place: &Place, args: &[String]) {
    let mut command = clean(Command::new("make"));
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["--no-print-directory", "install-files"])
        .args(args)
        .arg(format!("NPKFS={}", env!("CARGO_BIN_EXE_npkfs")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {output:?}", place.dir.path().display());
}

#[test]
fn systemd_takes_the_units() {
    if let Err(reason) = has_program("make").and_then(|_| has_program("systemd-analyze")) {
        return eprintln!("SKIPPED: {reason}");
    }
    let place = Place::new();
    let root = place.path("root");
    let units = root.join("units");
    let at = |name: &str, path: &Path| format!("{name}={}", path.display());
    install(&place, &[at("PREFIX", &root), at("SBINDIR", &root), at("UNITDIR", &units)]);
    fs::copy(scripts().join("srv-x.mount"), units.join("srv-x.mount")).unwrap();
    let verify = |unit: &str| {
        let mut command = clean(Command::new("systemd-analyze"));
        command.arg("verify").arg(units.join(unit)).output().unwrap()
    };
    for unit in ["npkfs@srv-y.service", "srv-x.mount"] {
        let output = verify(unit);
        assert!(output.status.success() && output.stderr.is_empty(), "{unit}: {output:?}");
    }
    // It would say so if it did not.
    fs::write(units.join("bad.service"), "[Service]\nExecStart=npkfs-that-is-not-there\nType=never\n")
        .unwrap();
    assert!(!verify("bad.service").stderr.is_empty());
}

/// An automounter that is ended with the test.
struct Automounter(Child);

impl Automounter {
    /// Of maps in `place`, with their lines: an indirect one on `indirect`, and a direct one.
    fn new(place: &Place, indirect: &Path, line: &str, direct: &str) -> Self {
        let by_name = place.write("auto.npk", line.as_bytes());
        let by_path = place.write("auto.direct", direct.as_bytes());
        let master = format!(
            "{} {} --timeout=600\n/- {} --timeout=600\n",
            indirect.display(),
            by_name.display(),
            by_path.display()
        );
        let master = place.write("auto.master", master.as_bytes());
        let mut command = clean(Command::new("automount"));
        // It lets its own process group look at what is not mounted yet, and a test is to wait like anybody.
        command.args(["-f", "-p"]).arg(place.path("pid")).arg(master).process_group(0);
        let log = fs::File::create(place.path("automount.log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("automount runs");
        Self(child)
    }

    /// Unmounts what nobody uses.
    fn expire(&self) {
        signal(self.0.id(), Signal::USR1);
    }
}

impl Drop for Automounter {
    fn drop(&mut self) {
        if is_running(self.0.id()) {
            signal(self.0.id(), Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// The process in the background left its process group before it mounted, and autofs, which lets nobody but that group
/// look at a mountpoint before it is one, had it wait for itself.
#[test]
fn autofs_mounts_when_somebody_looks() {
    as_root(|way| {
        let is_known = fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("autofs"));
        let installed = has_program("automount").and_then(|_| Installed::new());
        let installed =
            installed.and_then(|at| if is_known { Ok(at) } else { Err("no autofs in this kernel".into()) });
        let _installed = match installed {
            Ok(installed) => installed,
            Err(reason) => return eprintln!("SKIPPED: {reason}"),
        };
        way.make_store(&[("a", numbers(10, 0))]);
        let (store, indirect, direct) = (&way.place.store, way.place.path("npk"), way.place.path("direct"));
        for folder in [&indirect, &direct] {
            fs::create_dir(folder).unwrap();
        }
        let line = format!("-fstype=npk,ro,allow_other  :{}\n", store.display());
        let automounter = Automounter::new(
            &way.place,
            &indirect,
            &format!("x  {line}"),
            &format!("{}  {line}", direct.display()),
        );
        let is_autofs = |path: &Path| {
            numpack::sys::mounts::find_at(path).unwrap().is_some_and(|mount| mount.fs_type == "autofs")
        };
        soon("autofs", || is_autofs(&indirect) && is_autofs(&direct));
        let store_is_at = |path: &Path| {
            numpack::sys::mounts::find_at(path).unwrap().is_some_and(|mount| mount.fs_type == "fuse.npk")
        };
        for path in [indirect.join("x"), direct.clone()] {
            for _ in 0..2 {
                assert!(!store_is_at(&path));
                // By another program, which can be given up on.
                let looked =
                    Command::new("timeout").args(["20", "cat"]).arg(path.join("a.npy")).output().unwrap();
                assert_eq!(looked.stdout, numbers(10, 0), "{looked:?}");
                assert!(store_is_at(&path));
                // Once it is not used it goes, and does not come back by itself.
                automounter.expire();
                soon("its end", || !store_is_at(&path));
                soon("the end of the process", || way.server_of(&path).is_none());
                assert!(!store_is_at(&path));
            }
        }
        drop(automounter);
        for path in [&indirect, &direct] {
            soon("the end of autofs", || !is_mounted(path));
        }
    });
}
