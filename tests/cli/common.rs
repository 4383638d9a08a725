//! Runs `npkfs` and makes files for it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A temporary folder with a name for a store in it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = dir.path().join("data.npk");
        Place { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file below the folder, with the folders above it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("folder is made");
        fs::write(&path, bytes).expect("file is written");
        path
    }
}

/// How a run of `npkfs` ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is text"),
            stderr: String::from_utf8(output.stderr).expect("stderr is text"),
        }
    }
}

impl Ran {
    /// Exit code 0, and nothing said on stderr but what is no complaint.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// This exit code, nothing on stdout, and a message that has these parts.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> Ran {
        assert_eq!(self.stdout, "");
        self.complains(code, parts)
    }

    /// This exit code, and a message that has these parts.
    #[track_caller]
    pub fn complains(self, code: i32, parts: &[&str]) -> Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.starts_with("npkfs: "), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing in {:?}", self.stderr);
        }
        self
    }

    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).expect("stdout is JSON")
    }
}

/// The command `npkfs`, without what the environment of the test says about logging.
pub fn command() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_npkfs")))
}

pub fn clean(mut command: Command) -> Command {
    command.env_remove("NPKFS_LOG").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

pub fn npkfs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    command().args(args).output().expect("npkfs runs").into()
}

/// Runs `npkfs` with arguments of any types that are paths or text.
#[macro_export]
macro_rules! npkfs {
    ($($arg:expr),* $(,)?) => {
        $crate::common::npkfs([$(std::ffi::OsString::from(&$arg)),*])
    };
}

/// A `.npy` file as NumPy writes it.
pub fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let len = u16::try_from(header.len()).expect("a short header").to_le_bytes();
    [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()
}

/// A `.npy` file of the `int64` numbers from `first` on.
pub fn numbers(n: usize, first: i64) -> Vec<u8> {
    let data: Vec<u8> = (first..).take(n).flat_map(i64::to_le_bytes).collect();
    npy("'<i8'", &format!("({n},)"), &data)
}

/// The paths of all files below a folder, relative to it, in order.
pub fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("folder is listed") {
            let entry = entry.expect("entry is read");
            if entry.file_type().expect("type is known").is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path();
                found
                    .push(path.strip_prefix(folder).expect("is below").to_str().expect("is text").to_owned());
            }
        }
    }
    found.sort();
    found
}
