//! Emptying an array through a descriptor that is open on it: `ftruncate(fd, 0)`, and what is written then.
//!
//! As with `O_TRUNC` a pending file takes the name, and the store keeps the array until that is whole and closed. The
//! inode that is open goes on as if it were that file: so it is done only for who alone has it open.

use std::sync::Arc;

use super::State;
use crate::fs::inode::Inode;
use crate::fs::{Attr, Fh, Fs, FsError, Ino, read};

impl Fs {
    /// Empties an array: a pending file takes its name. `fh` is the handle by which that is asked for, if it is by one:
    /// it reads and writes the pending file from then on.
    ///
    /// # Errors
    /// `Stale`; `Busy` if others have the inode open, and could not keep what they see; `Store`.
    pub(in crate::fs) fn empty_array(&self, inode: &Inode, fh: Option<Fh>) -> Result<(), FsError> {
        let stale = FsError::Stale { ino: inode.ino };
        if !self.is_present(inode) {
            return Err(stale);
        }
        if !self.is_alone(inode, fh) {
            return Err(FsError::Busy { what: "emptying a file by a descriptor while others have it open" });
        }
        let place = read(&self.tree).place_for(inode.array().0.name());
        let (parent, name) = place.ok_or(stale)?;
        let (spot, array) = self.new_spot(parent, name.as_ref().as_ref())?;
        let state = State::new(self.new_draft(array.as_deref())?, spot, array);
        let file = self.pending.insert(state, 0);
        let opened = self.open_new(&file, true, false);
        let new = opened.inspect_err(|_| self.pending.prune(file.ino))?;
        if fh.is_none() || inode.emptied.set(new).is_err() {
            self.release_pending(new);
        }
        Ok(())
    }

    /// The pending file that is shown instead of an inode, as long as it is open.
    pub(in crate::fs) fn instead_of(&self, inode: &Inode) -> Option<Ino> {
        Some(self.making.get(*inode.emptied.get()?).ok()?.file.ino)
    }

    /// The attributes of the pending file that is shown instead of an inode, as those of the inode.
    pub(in crate::fs) fn attr_instead_of(&self, inode: &Inode) -> Option<Attr> {
        let open = self.making.get(*inode.emptied.get()?).ok()?;
        let attr = self.pending_attr(&Arc::clone(&open.file)).ok()?;
        Some(Attr { ino: inode.ino, ..attr })
    }

    /// The handle to use: of an array that was emptied through `fh`, that of the pending file.
    pub(in crate::fs) fn in_place_of(&self, fh: Fh) -> Fh {
        if fh.is_pending() {
            return fh;
        }
        let file = self.files.get(fh).ok();
        file.and_then(|file| file.inode.emptied.get().copied()).unwrap_or(fh)
    }

    /// The length of a pending file that is open.
    pub(in crate::fs) fn pending_len(&self, fh: Fh) -> Result<u64, FsError> {
        Ok(self.pending_attr(&self.making.get(fh)?.file)?.size)
    }
}
