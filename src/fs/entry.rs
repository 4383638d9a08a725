//! Operations on the names in folders: `unlink`, `rmdir`, `rename`.

use std::ffi::OsStr;
use std::sync::Arc;

use super::dir::Child;
use super::{FileKind, Fs, FsError, Ino, names, read};

/// How `rename` treats a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// The array that has it is overwritten.
    Replace,
    /// `EEXIST`.
    NoReplace,
}

impl Fs {
    /// Removes an array. Files open on it go on as before.
    ///
    /// # Errors
    /// `NoEntry`, `IsADirectory`, `ReadOnly`; `Store` if the commit fails.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        self.sync()?;
        let array = self.array_name(parent, name)?;
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let n_removed = self.store.remove(&[&*array])?;
        self.sync()?;
        if n_removed == 0 { Err(FsError::NoEntry) } else { Ok(()) }
    }

    /// Removes a folder, which cannot be: a folder is there as long as it is not empty.
    ///
    /// # Errors
    /// `NotEmpty`, or else `NoEntry`, `NotADirectory`, `ReadOnly`.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        self.sync()?;
        match self.child(parent, name)? {
            Child::File { .. } => Err(FsError::NotADirectory),
            Child::Directory(_) if self.read_only => Err(FsError::ReadOnly),
            Child::Directory(_) => Err(FsError::NotEmpty),
        }
    }

    /// Renames an array, in one commit.
    ///
    /// # Errors
    /// `NoEntry`, `Exists`, `ReadOnly`, `NameTooLong`; `Unsupported` for folders and for names without `.npy`;
    /// `BadName` for names that no array is shown under; `Store` if the commit fails.
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        how: Rename,
    ) -> Result<(), FsError> {
        self.sync()?;
        let from = match self.child(parent, name)? {
            Child::File { array, .. } => array,
            Child::Directory(_) => return Err(FsError::Unsupported { what: "renaming folders" }),
        };
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let to = match self.child(new_parent, new_name) {
            Ok(Child::File { .. }) if how == Rename::NoReplace => return Err(FsError::Exists),
            Ok(Child::File { array, .. }) => array,
            Ok(Child::Directory(_)) => return Err(FsError::IsADirectory),
            Err(FsError::NoEntry) => self.new_array_name(new_parent, new_name)?,
            Err(error) => return Err(error),
        };
        if from != to {
            self.store.rename(&from, &to, how == Rename::Replace)?;
            self.sync()?;
        }
        Ok(())
    }

    /// The array that a file name leads to.
    fn array_name(&self, parent: Ino, name: &OsStr) -> Result<Arc<str>, FsError> {
        match self.child(parent, name)? {
            Child::File { array, .. } => Ok(array),
            Child::Directory(_) => Err(FsError::IsADirectory),
        }
    }

    /// The array that a file name will lead to.
    fn new_array_name(&self, parent: Ino, name: &OsStr) -> Result<Arc<str>, FsError> {
        let name = name.to_str().ok_or(FsError::BadName)?;
        if !name.ends_with(names::SUFFIX) {
            return Err(FsError::Unsupported { what: "files whose names do not end in .npy" });
        }
        let component = names::decode(name, FileKind::File).ok_or(FsError::BadName)?;
        let tree = read(&self.tree);
        let directory = tree.directory(parent).ok_or(FsError::Stale { ino: parent })?;
        Ok(format!("{}{component}", directory.prefix).into())
    }
}
