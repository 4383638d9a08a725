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
    /// The two arrays change names.
    Exchange,
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

    /// Renames an array, in one commit, or a pending file, or a folder with all that is in it. An array becomes a plain
    /// file under a name without `.npy`.
    ///
    /// # Errors
    /// `NoEntry`, `Exists`, `ReadOnly`, `NameTooLong`; `Busy` if another mount has the plain files; of folders,
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
        if how == Rename::Exchange {
            return self.exchange(&child, new_parent, new_name);
        }
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
        let (_, to) = self.new_spot(new_parent, new_name)?;
        let Some(to) = to else {
            // Writers of the array are to find all of it in the file. What fails is logged.
            let _ = self.commit(child.ino());
            return self.make_plain(&from, parent, name, new_parent, new_name);
        };
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

    /// Lets two arrays change names, in one commit.
    fn exchange(&self, child: &Child, new_parent: Ino, new_name: &OsStr) -> Result<(), FsError> {
        self.reveal(new_parent, new_name);
        let other = self.child(new_parent, new_name)?;
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let (Child::File { array: a, ino: a_ino }, Child::File { array: b, ino: b_ino }) = (child, &other)
        else {
            return Err(FsError::Unsupported { what: "exchanging the names of other files than arrays" });
        };
        for ino in [a_ino, b_ino] {
            let _ = self.commit(*ino);
        }
        self.store.exchange(a, b)?;
        self.sync()
    }
}
