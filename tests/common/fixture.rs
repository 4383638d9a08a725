//! A file system over a store, without a kernel.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use numpack::fs::{Attr, Caller, Fh, FileKind, Fs, FsError, Ino, Invalidation, OpenFlags, Opened, Rename};
use numpack::store::{Access, Dtype, NewArray, Store};
use tempfile::TempDir;

pub const CALLER: Caller = Caller(1);
pub const READ: OpenFlags = OpenFlags { write: false, truncate: false };
pub const WRITE: OpenFlags = OpenFlags { write: true, truncate: false };

/// A store, a file system over it, and another handle of the store, as another process has it.
pub struct Fixture {
    _dir: TempDir,
    pub path: PathBuf,
    pub other: Store,
    pub fs: Fs,
    pub told: Arc<Mutex<Vec<Invalidation>>>,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(|_| {}, false)
    }

    pub fn with(fill: impl FnOnce(&Store), read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.npk");
        let other = Store::create(&path).unwrap();
        fill(&other);
        let store = Store::open(&path, Access::Write).unwrap();
        Self { _dir: dir, path, ..Self::over(other, store, read_only) }
    }

    /// Over `store`, of which `other` is the other handle. There is no path that leads to it.
    pub fn over(other: Store, store: Store, read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let fs =
            Fs::new(store, read_only, move |invalidation| tell.lock().unwrap().push(invalidation)).unwrap();
        Self { _dir: dir, path, other, fs, told }
    }

    /// Looks a path up, and forgets all folders on the way.
    pub fn lookup(&self, path: &str) -> Result<Attr, FsError> {
        let mut attr = self.fs.getattr(Ino::ROOT)?;
        for name in path.split('/') {
            attr = self.fs.lookup(attr.ino, OsStr::new(name), CALLER)?;
        }
        Ok(attr)
    }

    pub fn parent(&self, path: &str) -> (Ino, String) {
        match path.rsplit_once('/') {
            Some((folder, name)) => (self.lookup(folder).unwrap().ino, name.to_owned()),
            None => (Ino::ROOT, path.to_owned()),
        }
    }

    pub fn open(&self, path: &str, flags: OpenFlags) -> Result<Opened, FsError> {
        self.fs.open(self.lookup(path)?.ino, flags, CALLER)
    }

    pub fn read(&self, fh: Fh) -> Vec<u8> {
        let mut out = Vec::new();
        // Odd pieces, so that header and elements meet within one.
        while self.fs.read(fh, out.len() as u64, 1001, |bytes| out.extend_from_slice(bytes)).is_ok()
            && out.len() % 1001 == 0
            && !out.is_empty()
        {}
        out
    }

    pub fn read_path(&self, path: &str) -> Vec<u8> {
        let opened = self.open(path, READ).unwrap();
        let bytes = self.read(opened.fh);
        self.fs.release(opened.fh);
        bytes
    }

    pub fn values(&self, path: &str) -> Vec<u32> {
        values_of(&self.read_path(path))
    }

    pub fn rename(&self, from: &str, to: &str, how: Rename) -> Result<(), FsError> {
        let ((parent, name), (new_parent, new_name)) = (self.parent(from), self.parent(to));
        self.fs.rename(parent, OsStr::new(&name), new_parent, OsStr::new(&new_name), how)
    }

    pub fn unlink(&self, path: &str) -> Result<(), FsError> {
        let (parent, name) = self.parent(path);
        self.fs.unlink(parent, OsStr::new(&name))
    }

    /// All paths, folders with a slash at the end.
    pub fn tree(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        let mut folders = vec![(Ino::ROOT, String::new())];
        while let Some((ino, prefix)) = folders.pop() {
            let fh = self.fs.opendir(ino).unwrap();
            self.fs
                .readdir(fh, 0, |_, entry| {
                    if *entry.name != *"." && *entry.name != *".." {
                        let mut path = format!("{prefix}{}", entry.name);
                        if entry.kind == FileKind::Directory {
                            path.push('/');
                            folders.push((entry.ino, path.clone()));
                        }
                        assert!(paths.insert(path));
                    }
                    true
                })
                .unwrap();
            self.fs.releasedir(fh);
        }
        paths
    }

    pub fn told(&self) -> Vec<Invalidation> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    /// Does for the kernel what the notifier does.
    pub fn carry_out(&self) -> Vec<Invalidation> {
        let told = self.told();
        for invalidation in &told {
            if let Invalidation::Content { ino, .. } = invalidation {
                self.fs.show_length(*ino);
                self.fs.settle(*ino);
            }
        }
        told
    }
}

pub fn numbers(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(u32::to_le_bytes).collect()
}

pub fn array<'a>(shape: &[u64], data: &'a [u8]) -> NewArray<'a> {
    let dtype = Dtype::parse_python("'<u4'").unwrap();
    NewArray { dtype, shape: shape.to_vec(), fortran_order: false, data }
}

/// Rows of two numbers, counted from `first`.
pub fn save(store: &Store, name: &str, n_rows: u64, first: u32) {
    let data = numbers(first..first + 2 * n_rows as u32);
    store.save(&[(name, array(&[n_rows, 2], &data))]).unwrap();
}

pub fn append(store: &Store, name: &str, n_rows: u64, first: u32) {
    let data = numbers(first..first + 2 * n_rows as u32);
    store.append(&[(name, array(&[n_rows, 2], &data))]).unwrap();
}

pub fn values_of(npy: &[u8]) -> Vec<u32> {
    let header_len = numpack::format::npy::parse(npy).unwrap().header_len as usize;
    npy[header_len..].chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

pub fn shape_of(npy: &[u8]) -> Vec<u64> {
    numpack::format::npy::parse(npy).unwrap().shape
}

/// A `.npy` file as `numpy.save` writes it, with a header of 128 bytes.
pub fn write_npy(path: &Path, shape: &[u64], data: &[u8]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(|len| format!("{len},")).collect();
    let mut header = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(header.as_bytes());
    assert_eq!(bytes.len(), 128);
    bytes.extend_from_slice(data);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[track_caller]
pub fn assert_errno<T: std::fmt::Debug>(result: Result<T, FsError>, errno: i32) {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), errno, "{error}");
}
