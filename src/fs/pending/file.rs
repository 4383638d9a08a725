//! Pending files that are open: reading, writing, lengths and times.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{debug, warn};

use super::{Body, PendingFile, State};
use crate::fs::attr::FILE_PERM;
use crate::fs::dir::Child;
use crate::fs::file::OpenFlags;
use crate::fs::names;
use crate::fs::{Attr, Caller, Fh, Fs, FsError, Ino, SetAttr, Written};
use crate::store::{Draft, StoreError};
use crate::sys::FsStat;

/// Writes of at least this many bytes may be answered before they are done: shorter ones are done as soon.
const ANSWERED_LEN: usize = 64 << 10;
/// This part of the room that the disk has, and no more than that many bytes, are written so before it is asked again.
const PART_OF_ROOM: u64 = 16;
const MAX_ROOM: u64 = 64 << 20;

/// How a file is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewFile {
    /// Open for writing, or for both.
    pub write: bool,
    /// To be emptied, should it be there.
    pub truncate: bool,
    /// An error, should it be there.
    pub exclusive: bool,
    /// Its permissions; `None`: what the umask of this process leaves.
    pub perm: Option<u16>,
    /// The user and the group that it is to belong to, if this process may give it away.
    pub owner: Option<(u32, u32)>,
}

/// A pending file that is open.
#[derive(Debug)]
pub(in crate::fs) struct OpenPending {
    pub(super) file: Arc<PendingFile>,
    pub(super) write: bool,
    /// Whether a failure was logged: a program may try again for ever.
    logged: AtomicBool,
}

impl OpenPending {
    fn log(&self, action: &str, error: &StoreError) {
        if !self.logged.swap(true, Ordering::Relaxed) {
            warn!("cannot {action}: {error}");
        }
    }
}

impl Fs {
    /// Makes a file and opens it. Counts a lookup.
    ///
    /// # Errors
    /// `ReadOnly`; `NameTooLong`; `BadName` for names that are not UTF-8, and for names of arrays that none is shown
    /// under; `Exists`; `IsADirectory`; `Stale` if the folder is gone, or the name is there by now and may be: it must
    /// be looked up again; `Store` if there is no room for a file.
    pub fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: NewFile,
        caller: Caller,
    ) -> Result<(Attr, Fh), FsError> {
        self.pending.come(caller);
        self.again.came(caller);
        Self::refuse_views(parent, name)?;
        self.sync()?;
        match self.child(parent, name) {
            Err(FsError::NoEntry) => {}
            Err(error) => return Err(error),
            Ok(_) if new.exclusive => return Err(FsError::Exists),
            Ok(Child::Directory(_)) => return Err(FsError::IsADirectory),
            // It came since the kernel looked. What is an array, or named like one, is made anew when it is to be emptied.
            Ok(Child::Pending(ino)) if !names::is_array_file(name) => return Err(FsError::Stale { ino }),
            Ok(child) if !new.truncate => return Err(FsError::Stale { ino: child.ino() }),
            Ok(_) => {}
        }
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let (spot, array) = self.new_spot(parent, name)?;
        let mut draft = self.new_draft(array.as_deref())?;
        if let Some((uid, gid)) = new.owner {
            self.give_away(&mut draft, uid, gid)?;
        }
        if let Some(perm) = new.perm {
            draft.set_mode(u32::from(perm & FILE_PERM))?;
        }
        let state = State::new(draft, spot, array);
        let file = self.pending.insert(state, 1);
        let made = self.open_new(&file, new.write, new.exclusive).and_then(|fh| {
            let attr = self.pending_attr(&file).inspect_err(|_| {
                self.release_pending(fh);
            })?;
            Ok((attr, fh))
        });
        made.inspect_err(|_| self.pending.forget(file.ino, 1))
    }

    /// Opens a file that has no name yet, and lets it take that; with `exclusive`, only if nothing has it.
    pub(super) fn open_new(
        &self,
        file: &Arc<PendingFile>,
        write: bool,
        exclusive: bool,
    ) -> Result<Fh, FsError> {
        // Whoever finds the name finds that the file is open.
        file.state().opened(write);
        let fh = self.open_handle(Arc::clone(file), write);
        self.show(file, exclusive).map(|()| fh).inspect_err(|_| {
            file.state().remove();
            self.release_pending(fh);
        })
    }

    /// Opens a pending file.
    ///
    /// # Errors
    /// `ReadOnly`; `Stale` if the name leads elsewhere by now, or if the file is open and to be emptied: the name must
    /// be looked up again; `Store` if it cannot be emptied.
    pub fn open_pending(&self, ino: Ino, flags: OpenFlags, caller: Caller) -> Result<Fh, FsError> {
        if (flags.write || flags.truncate) && self.read_only {
            return Err(FsError::ReadOnly);
        }
        let is_second = self.again.came(caller);
        let stale = || self.look_again(ino, caller);
        let file = self.pending.get(ino).ok_or_else(stale)?;
        if self.pending.claim(caller, ino) {
            if !flags.truncate {
                // Whoever was to come gave up, and now wants what everybody sees.
                return Err(stale());
            }
            return self.open_new(&file, flags.write, false);
        }
        // A link to an open file, such as /dev/stdout, leads here without a name.
        let by_link = flags.truncate && self.pending.came_without_name(caller, &file.spot());
        let mut guard = file.state();
        let state = &mut *guard;
        if !state.named && !is_second {
            let spot = state.spot.clone();
            drop(guard);
            if flags.truncate {
                self.expect_at(caller, spot);
            }
            return Err(stale());
        }
        if flags.truncate {
            // Whoever has it open makes a version of an array of it, and this will be another. What is no array has no
            // versions, and is one file for everybody.
            if state.n_open > 0 && !by_link && state.array.is_some() {
                let spot = state.spot.clone();
                drop(guard);
                self.expect_at(caller, spot);
                return Err(stale());
            }
            match &mut state.body {
                Body::Draft(draft) => draft.set_len(0)?,
                body => *body = Body::Draft(self.new_draft(state.array.as_deref())?),
            }
            state.written = 0;
            state.lost = None;
            state.changed();
        }
        state.opened(flags.write);
        drop(guard);
        Ok(self.open_handle(file, flags.write))
    }

    /// A draft of an array of this name, to be compressed as the mount says, or else the store, or else as the array
    /// that has the name, whose permissions it has in any case.
    pub(super) fn new_draft(&self, array: Option<&str>) -> Result<Draft, FsError> {
        let present = array.and_then(|array| self.store.record(array).ok());
        let compression = self
            .compression
            .unwrap_or_else(|| self.store.default_compression().or_else(|| present.as_ref()?.compression()));
        let mut draft = self.store.begin_draft(compression.as_ref())?;
        if let Some(present) = present
            && let Err(error) = draft.take_after(&present)
        {
            // Its file is missing, and this is the way to put that right.
            debug!("a new file has the permissions of any: {error}");
        }
        Ok(draft)
    }

    /// Lets a new file belong to who makes it, but for what the mount shows in any case.
    fn give_away(&self, draft: &mut Draft, uid: u32, gid: u32) -> Result<(), FsError> {
        let stat = draft.stat()?;
        let uid = Some(uid).filter(|uid| self.shown.uid.is_none() && *uid != stat.uid);
        let gid = Some(gid).filter(|gid| self.shown.gid.is_none() && *gid != stat.gid);
        if (uid.is_some() || gid.is_some())
            && let Err(error) = draft.set_owner(uid, gid)
        {
            debug!("a new file belongs to who mounted: {error}");
        }
        Ok(())
    }

    fn open_handle(&self, file: Arc<PendingFile>, write: bool) -> Fh {
        self.making.insert(OpenPending { file, write, logged: AtomicBool::new(false) })
    }

    pub(in crate::fs) fn read_pending<T>(
        &self,
        fh: Fh,
        offset: u64,
        size: u32,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        let open = self.making.get(fh)?;
        let mut bytes = Vec::new();
        let read = {
            let state = open.file.state();
            let len = match &state.body {
                Body::Draft(draft) => draft.len(),
                Body::Array(array) => array.npy_len(),
            };
            bytes.resize(len.saturating_sub(offset).min(u64::from(size)) as usize, 0);
            match &state.body {
                Body::Draft(draft) => draft.read_at(offset, &mut bytes),
                Body::Array(array) => array.read_npy_at(offset, &mut bytes),
            }
        };
        bytes.truncate(read.inspect_err(|error| open.log("read", error))?);
        Ok(reply(&bytes))
    }

    /// As [`Fs::write_answering`], of a pending file.
    pub(in crate::fs) fn write_pending(
        &self,
        fh: Fh,
        offset: u64,
        data: &[u8],
        from_cache: bool,
        answer: impl FnOnce(),
    ) -> Result<Written, FsError> {
        let open = self.making.get(fh)?;
        // Writeback may come through any handle of the inode that was open for writing.
        if !open.write && !from_cache {
            return Err(FsError::BadHandle { fh });
        }
        let mut guard = open.file.state();
        let state = &mut *guard;
        state.check_written()?;
        let Body::Draft(draft) = &mut state.body else {
            return Err(FsError::Finished { ino: open.file.ino });
        };
        let mut data = data;
        if from_cache {
            // What a page holds beyond the end is no part of the file.
            let len = usize::try_from(draft.len().saturating_sub(offset)).unwrap_or(usize::MAX);
            data = data.get(..len).unwrap_or(data);
            state.mapped = true;
        }
        let is_answered =
            !from_cache && data.len() >= ANSWERED_LEN && self.has_room(&mut state.room, data.len());
        if is_answered {
            answer();
        }
        if let Err(error) = draft.write_at(offset, data) {
            open.log("write", &error);
            if !is_answered {
                return Err(error.into());
            }
            let first = Arc::new(error);
            state.lost = Some(Arc::clone(&first));
            return Err(FsError::WriteLost { first });
        }
        if !from_cache && offset <= state.written {
            state.written = state.written.max(offset.saturating_add(data.len() as u64));
        }
        state.changed();
        Ok(Written::Done)
    }

    /// Takes `len` of the bytes that the disk is sure to have room for. It is asked once for many, as others take little
    /// of what it has left over in that time.
    fn has_room(&self, room: &mut u64, len: usize) -> bool {
        if *room < len as u64 {
            let free = |stat: FsStat| stat.blocks_available.saturating_mul(stat.block_len);
            *room = self.store.stat_fs().map_or(0, free) / PART_OF_ROOM;
            *room = (*room).min(MAX_ROOM);
        }
        let left = room.checked_sub(len as u64);
        *room = left.unwrap_or(*room);
        left.is_some()
    }

    /// Reserves disk space for a pending file that is open, and with `extend` makes it as long. For files of which
    /// the space is not known yet this does nothing else.
    ///
    /// # Errors
    /// `BadHandle`; `Unsupported` for arrays; `Finished` if the file became an array: [`Fs::detach`] it first;
    /// `Store` if the disk has less.
    pub fn fallocate(&self, fh: Fh, offset: u64, len: u64, extend: bool) -> Result<(), FsError> {
        let fh = self.in_place_of(fh);
        if !fh.is_pending() {
            return Err(FsError::Unsupported { what: "reserving space for an array" });
        }
        let open = self.making.get(fh)?;
        if !open.write {
            return Err(FsError::BadHandle { fh });
        }
        let end = offset.saturating_add(len);
        let mut guard = open.file.state();
        let state = &mut *guard;
        match &mut state.body {
            Body::Draft(draft) => {
                draft.reserve(end)?;
                if extend && end > draft.len() {
                    draft.set_len(end)?;
                    state.changed();
                }
                Ok(())
            }
            Body::Array(array) if !extend || end <= array.npy_len() => Ok(()),
            Body::Array(_) => Err(FsError::Finished { ino: open.file.ino }),
        }
    }

    pub(in crate::fs) fn set_pending_attr(&self, ino: Ino, set: SetAttr) -> Result<Attr, FsError> {
        let file = self.pending.get(ino).ok_or(FsError::Stale { ino })?;
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        // A program that gets a mode from elsewhere may ask for execute bits, which no file here has.
        let set = self.pending_attr(&file)?.changes(set, 0o777)?;
        {
            let mut guard = file.state();
            let state = &mut *guard;
            match (&mut state.body, set.size) {
                (Body::Draft(draft), Some(size)) => {
                    draft.set_len(size)?;
                    state.written = state.written.min(size);
                    if size == 0 {
                        state.lost = None;
                    }
                    state.changed();
                }
                (Body::Array(array), Some(size)) if size != array.npy_len() => {
                    return Err(FsError::Finished { ino });
                }
                _ => {}
            }
            if set.uid.is_some() || set.gid.is_some() {
                match &mut state.body {
                    Body::Draft(draft) => draft.set_owner(set.uid, set.gid)?,
                    Body::Array(array) => array.set_owner(set.uid, set.gid)?,
                }
            }
            if let Some(perm) = set.perm {
                let mode = u32::from(perm & FILE_PERM);
                match &mut state.body {
                    Body::Draft(draft) => draft.set_mode(mode)?,
                    Body::Array(array) => array.set_mode(mode)?,
                }
            }
            if set.atime.is_some() || set.mtime.is_some() {
                match &mut state.body {
                    Body::Draft(draft) => draft.set_times(set.atime, set.mtime)?,
                    Body::Array(array) => {
                        let times = || array.set_times(set.atime, set.mtime);
                        let now = self.set_array_times(array, set, times)?;
                        *array = now;
                    }
                }
            }
        }
        self.pending_attr(&file)
    }
}
