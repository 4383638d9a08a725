//! The ways in which a store is mounted: as root with and without passthrough, and as somebody else.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use numpack::sys::mounts;
use rustix::process::{Pid, Signal};

use crate::common::{Place, Ran, clean, numbers};

const NOBODY: u32 = 65534;
const DEVICE: &str = "/dev/fuse";

/// A folder with a place for a store and a mountpoint, and who mounts it how.
pub struct Way {
    pub name: &'static str,
    pub place: Place,
    pub mnt: PathBuf,
    pub options: &'static str,
    /// Before the program: what runs it as somebody else.
    prefix: Vec<OsString>,
    program: PathBuf,
    _device: Option<OpenDevice>,
}

/// Runs a test in each way that is possible here, and says aloud which are not.
#[track_caller]
pub fn each_way(test: impl Fn(&Way)) {
    let ways = if is_root() { vec![Way::root(), Way::root_plain(), Way::nobody()] } else { vec![Way::own()] };
    for way in ways {
        match way {
            Ok(way) => {
                eprintln!("-- {}", way.name);
                test(&way);
            }
            Err(reason) => eprintln!("SKIPPED: {reason}"),
        }
    }
}

/// As [`each_way`], with a store that has the array `a` of ten numbers.
#[track_caller]
pub fn each_store(test: impl Fn(&Way)) {
    each_way(|way| {
        way.make_store(&[("a", numbers(10, 0))]);
        test(way);
    });
}

/// As [`each_store`], mounted; what is left mounted is unmounted.
#[track_caller]
pub fn each_mount(test: impl Fn(&Way)) {
    each_store(|way| {
        let _unmount = way.mount();
        test(way);
        if way.is_mounted() {
            way.umount().ok();
        }
    });
}

/// Runs a test as root, with passthrough where the kernel has it.
#[track_caller]
pub fn as_root(test: impl Fn(&Way)) {
    match if is_root() { Way::root() } else { Err("only root can do this".to_owned()) } {
        Ok(way) => test(&way),
        Err(reason) => eprintln!("SKIPPED: {reason}"),
    }
}

/// Runs a test as a user who is not root.
#[track_caller]
pub fn as_user(test: impl Fn(&Way)) {
    match if is_root() { Way::nobody() } else { Way::own() } {
        Ok(way) => test(&way),
        Err(reason) => eprintln!("SKIPPED: {reason}"),
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Way {
    fn new(name: &'static str, options: &'static str) -> Way {
        let place = Place::new();
        let mnt = place.path("mnt");
        fs::create_dir(&mnt).expect("mountpoint is made");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_npkfs"));
        Way { name, place, mnt, options, prefix: Vec::new(), program, _device: None }
    }

    fn root() -> Result<Way, String> {
        has_device()?;
        Ok(Way::new("as root, passthrough", "passthrough=auto"))
    }

    fn root_plain() -> Result<Way, String> {
        has_device()?;
        Ok(Way::new("as root, no passthrough", "passthrough=off"))
    }

    fn own() -> Result<Way, String> {
        has_device()?;
        has_program("fusermount3")?;
        match fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
            Ok(_) => Ok(Way::new("as this user", "rw")),
            Err(error) => Err(format!("cannot open {DEVICE}: {error}")),
        }
    }

    /// As nobody, who needs a program that they can reach, and a folder of their own.
    fn nobody() -> Result<Way, String> {
        has_device()?;
        has_program("fusermount3")?;
        let setpriv = has_program("setpriv")?;
        let mut way = Way::new("as nobody", "rw");
        way._device = Some(OpenDevice::new());
        let folder = way.place.dir.path();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("folder is opened");
        let program = way.place.path("npkfs");
        // By another process: a child of another test may inherit a file that this one has open for writing, and until
        // that child has run its own program, nobody can run the copy ("Text file busy").
        let copied = Command::new("cp").args([&way.program, &program]).status().expect("cp runs");
        assert!(copied.success(), "program is copied");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("program can be run");
        way.program = program;
        for path in [folder, &way.mnt] {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("folder is given away");
        }
        way.prefix = vec![setpriv.into()];
        way.prefix.extend(["--reuid=65534", "--regid=65534", "--clear-groups"].map(OsString::from));
        Ok(way)
    }

    pub fn command(&self) -> Command {
        self.command_after(&[])
    }

    /// The command, run by a program that comes before it.
    pub fn command_after(&self, before: &[&OsStr]) -> Command {
        let mut words = before
            .iter()
            .copied()
            .chain(self.prefix.iter().map(OsString::as_os_str))
            .chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("there is a program"));
        command.args(words).env_remove("XDG_RUNTIME_DIR");
        clean(command)
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        self.command().args(args).output().expect("npkfs runs").into()
    }

    /// Makes a store of one `.npy` file per name.
    pub fn make_store(&self, files: &[(&str, Vec<u8>)]) {
        for (name, bytes) in files {
            let file = self.place.write(&format!("in/{name}.npy"), bytes);
            let ran = self.run([
                "import",
                "--name",
                name,
                file.to_str().unwrap(),
                self.place.store.to_str().unwrap(),
            ]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
    }

    /// Unmounts what the test mounts by itself.
    pub fn mount_guard(&self) -> Unmount {
        Unmount(self.mnt.clone())
    }

    /// `npkfs mount` with further options.
    pub fn mount_with(&self, options: &str) -> (Ran, Unmount) {
        let unmount = Unmount(self.mnt.clone());
        let args = ["mount".as_ref(), "-o".as_ref(), self.options.as_ref(), "-o".as_ref(), options.as_ref()];
        let ran = self.run(args.into_iter().chain([self.place.store.as_os_str(), self.mnt.as_os_str()]));
        (ran, unmount)
    }

    /// Mounts in the background.
    #[track_caller]
    pub fn mount(&self) -> Unmount {
        let (ran, unmount) = self.mount_with("");
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let said = format!("{} mounted at {}\n", self.place.store.display(), self.mnt.display());
        assert_eq!((&*ran.stdout, &*ran.stderr), (&*said, ""));
        unmount
    }

    /// Mounts in a process of the test's own, and returns when it says that it is done.
    #[track_caller]
    pub fn mount_in_foreground(&self) -> (Child, Unmount) {
        use std::io::{BufRead as _, BufReader};
        let unmount = Unmount(self.mnt.clone());
        let mut command = self.command();
        command
            .args(["mount", "--foreground", "-v", "-o", self.options])
            .arg(&self.place.store)
            .arg(&self.mnt);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("npkfs runs");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("stdout is text");
        assert!(said.contains(" mounted at "), "{said:?}");
        (child, unmount)
    }

    pub fn umount(&self) -> Ran {
        self.run(["umount".as_ref(), self.mnt.as_os_str()])
    }

    /// Another program, run by the same user.
    pub fn other_command(&self, program: &str) -> Command {
        let mut words = self.prefix.iter().map(OsString::as_os_str).chain([OsStr::new(program)]);
        let mut command = Command::new(words.next().expect("there is a program"));
        command.args(words).stdin(Stdio::null());
        command
    }

    /// The bytes of a file of the mount, which only the mounting user may read.
    #[track_caller]
    pub fn read(&self, name: &str) -> Vec<u8> {
        let output = self.other_command("cat").arg(self.mnt.join(name)).output().expect("cat runs");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// The files below the mountpoint, in order.
    #[track_caller]
    pub fn files(&self) -> Vec<String> {
        let output = self
            .other_command("find")
            .args([self.mnt.as_os_str(), "-type".as_ref(), "f".as_ref()])
            .output()
            .expect("find runs");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("names are text");
        let mut files: Vec<String> = text
            .lines()
            .map(|line| {
                Path::new(line)
                    .strip_prefix(&self.mnt)
                    .expect("is below")
                    .to_str()
                    .expect("is text")
                    .to_owned()
            })
            .collect();
        files.sort();
        files
    }

    /// Keeps a file of the mount open.
    pub fn hold(&self, name: &str) -> Holder {
        use std::io::Read as _;
        let mut command = self.other_command("sh");
        command.args(["-c", "exec 3<\"$0\"; echo; read -r _; exec cat <&3"]).arg(self.mnt.join(name));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh runs");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("the file is open");
        Holder(child)
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.mnt)
    }

    /// The process that serves the mount.
    pub fn server(&self) -> Option<u32> {
        self.server_of(&self.mnt)
    }

    /// The process that serves a mount: its last argument is the mountpoint.
    pub fn server_of(&self, mnt: &Path) -> Option<u32> {
        fs::read_dir("/proc").expect("proc is listed").flatten().find_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let args = fs::read(process.path().join("cmdline")).ok()?;
            let mut args = args.strip_suffix(b"\0")?.rsplit(|&byte| byte == 0);
            let is_last = args.next() == Some(mnt.as_os_str().as_encoded_bytes());
            (is_last && args.any(|arg| arg == b"--report-to-stdin")).then_some(pid)
        })
    }
}

/// A program that has a file open.
pub struct Holder(Child);

impl Holder {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it read the file, and end.
    pub fn read(mut self) -> Vec<u8> {
        drop(self.0.stdin.take());
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(self.0.stdout.as_mut().expect("a pipe"), &mut bytes)
            .expect("a pipe is read");
        bytes
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Unmounts at the end of a test, however it ends.
pub struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            let _ = mounts::unmount(&self.0, true);
        }
    }
}

/// Lets everybody open the device, as distributions do, until it is dropped. One test at a time, so that each finds
/// it as it was.
struct OpenDevice {
    mode: u32,
    _turn: MutexGuard<'static, ()>,
}

impl OpenDevice {
    fn new() -> OpenDevice {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = fs::metadata(DEVICE).expect("the device exists").permissions().mode();
        fs::set_permissions(DEVICE, fs::Permissions::from_mode(mode | 0o666)).expect("the device is opened");
        OpenDevice { mode, _turn: turn }
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = fs::set_permissions(DEVICE, fs::Permissions::from_mode(self.mode));
    }
}

fn has_device() -> Result<(), String> {
    if Path::new(DEVICE).exists() { Ok(()) } else { Err(format!("there is no {DEVICE}")) }
}

/// The path of a program, if it is installed.
pub fn has_program(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| format!("{name} is not installed"))
}

/// A Python interpreter that every user can run: the first of the PATH may be in root's home.
pub fn shared_python() -> Result<&'static str, String> {
    let paths = ["/usr/bin/python3", "/usr/local/bin/python3"];
    let found = paths.into_iter().find(|path| Path::new(path).exists());
    found.ok_or_else(|| "there is no python3 in /usr/bin or /usr/local/bin".to_owned())
}

pub fn is_mounted(mnt: &Path) -> bool {
    mounts::find(mnt).expect("the table of mounts is read").is_some()
}

pub fn is_running(pid: u32) -> bool {
    let is_zombie =
        |stat: &str| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // A zombie has ended, and waits for whoever runs the tests; its other threads may still be about to, with its
        // files open.
        Ok(stat) if is_zombie(&stat) => {
            fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
        }
        stat => stat.is_ok(),
    }
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process number")).expect("is not 0");
    rustix::process::kill_process(pid, signal).expect("the signal is sent");
}

/// Stops a process, and waits until its last thread, which may have run elsewhere, has stopped.
pub fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    soon("the process is stopped", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
        threads.flatten().all(|thread| {
            let status = fs::read_to_string(thread.path().join("status"));
            status.is_ok_and(|status| status.lines().any(|line| line.starts_with("State:\tT")))
        })
    });
}

/// As [`signal`], of a process that may have ended.
pub fn signal_if_there(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process number")).expect("is not 0");
    let _ = rustix::process::kill_process(pid, signal);
}

/// Waits for something that happens soon.
#[track_caller]
pub fn soon(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
