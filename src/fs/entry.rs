//! Operations on the names in folders that arrays have, too: `unlink`, `rename`.

use std::ffi::OsStr;
use std::sync::Arc;

use super::dir::Child;
use super::{FileKind, Fs, FsError, Ino, read, write};

/// How `rename` treats a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// The array that has it is overwritten.
    Replace,
    /// `EEXIST`.
    NoReplace,
}

impl Fs {
    /// Removes an array, or a pending file and the array that it hides. Files open on it go on as before.
    ///
    /// # Errors
    /// `NoEntry`, `IsADirectory`, `ReadOnly`; `Store` if the commit fails.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        Self::refuse_views(parent, name)?;
        self.sync()?;
        let child = self.child(parent, name)?;
        if child.kind() == FileKind::Directory {
            return Err(FsError::IsADirectory);
        }
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let name = Self::new_name(name)?;
        let array = read(&self.tree).array_at(parent, &name).map(|(array, _)| Arc::clone(array));
        // Who has it open may go on, and should find all that was written. What fails is logged.
        let _ = self.commit(child.ino());
        // It may be removed next.
        write(&self.tree).keep(parent);
        let n_removed = match array {
            Some(array) => self.store.remove(&[&*array])?,
            None => 0,
        };
        self.give_up(parent, &name);
        self.sync()?;
        if n_removed == 0 && !child.ino().is_pending() { Err(FsError::NoEntry) } else { Ok(()) }
    }

    /// Renames an array, in one commit, or a pending file, or a folder with all that is in it.
    ///
    /// # Errors
    /// `NoEntry`, `Exists`, `ReadOnly`, `NameTooLong`; `Unsupported` for names of arrays without `.npy`; of folders,
    /// `NotADirectory`, `NotEmpty` and `Invalid`, as rename(2) has them; `BadName` for names that no array is shown under; `Store` if the commit fails.
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        how: Rename,
    ) -> Result<(), FsError> {
        Self::refuse_views(parent, name)?;
        Self::refuse_views(new_parent, new_name)?;
        self.sync()?;
        self.reveal(parent, name);
        let child = self.child(parent, name)?;
        let from = match child.clone() {
            Child::Directory(ino) => return self.rename_directory(ino, parent, new_parent, new_name, how),
            _ if self.read_only => return Err(FsError::ReadOnly),
            Child::File { array, .. } => array,
            Child::Pending(ino) => return self.rename_pending(ino, parent, name, new_parent, new_name, how),
        };
        match self.child(new_parent, new_name) {
            Ok(Child::File { .. } | Child::Pending(_)) if how == Rename::NoReplace => {
                return Err(FsError::Exists);
            }
            Ok(Child::Directory(_)) => return Err(FsError::IsADirectory),
            Ok(Child::File { .. } | Child::Pending(_)) | Err(FsError::NoEntry) => {}
            Err(error) => return Err(error),
        }
        let to = self.array_for_new(new_parent, new_name)?;
        if from != to {
            let over = read(&self.tree).child(new_parent, &new_name.to_string_lossy()).map(Child::ino);
            for ino in [child.ino()].into_iter().chain(over) {
                let _ = self.commit(ino);
            }
            write(&self.tree).keep(parent);
            self.store.rename(&from, &to, how == Rename::Replace)?;
            self.give_up(new_parent, &Self::new_name(new_name)?);
            self.sync()?;
        }
        Ok(())
    }

    /// The array that a file name leads to or will lead to.
    fn array_for_new(&self, parent: Ino, name: &OsStr) -> Result<Arc<str>, FsError> {
        let (_, array) = self.new_spot(parent, name)?;
        array.ok_or(FsError::Unsupported { what: "files that are named otherwise than *.npy for arrays" })
    }
}
