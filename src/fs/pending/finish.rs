//! How pending files become arrays, what becomes of those that do not, and of those that are changed afterwards.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, error, info, warn};

use super::{Body, PendingFile};
use crate::fs::inode::ino_of;
use crate::fs::{Fh, Fs, FsError, Ino, Invalidation, write};
use crate::store::StoreError;

/// How long a file that is closed waits for other writers before no array is made of it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The time between two attempts grows to this.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// A file that was closed by the last of those who wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed(Ino);

impl Fs {
    /// What `close` does to a file open for writing, before others may have the same file open still. Returns whether
    /// [`Fs::finish`] is to follow, which may wait for other writers.
    ///
    /// # Errors
    /// `BadHandle`; `Store` if the file can become no array; `Invalid` if a part of a row was appended to one.
    pub fn flush(&self, fh: Fh) -> Result<bool, FsError> {
        if fh.is_view() {
            return Ok(false);
        }
        let fh = self.in_place_of(fh);
        if !fh.is_pending() {
            // Writes are in the data file when they are answered, but for those of a part of a row.
            self.check_whole(&*self.files.get(fh)?)?;
            return Ok(false);
        }
        let open = self.making.get(fh)?;
        if !open.write {
            return Ok(false);
        }
        let missing = {
            let mut guard = open.file.state();
            let state = &mut *guard;
            state.flushed = true;
            state.check_written()?;
            match &state.body {
                Body::Draft(draft) if state.array.is_some() => match draft.missing() {
                    Ok(missing) => Ok(missing == 0 && state.is_at_rest(draft)),
                    // Somebody else has yet to write the beginning.
                    Err(_) if state.written == 0 && state.n_writers > 1 => Ok(false),
                    Err(error) => Err(error),
                },
                _ => return Ok(false),
            }
        };
        missing.map_err(|error| self.refused(&open.file, error))
    }

    /// Makes an array of a file that is open, if it is whole and named like one.
    ///
    /// # Errors
    /// `BadHandle`; `Store` if it can become none, or if the commit fails; the file stays pending then.
    pub fn finish(&self, fh: Fh) -> Result<(), FsError> {
        let file = Arc::clone(&self.making.get(self.in_place_of(fh))?.file);
        self.make_array(&file)
    }

    pub(in crate::fs) fn fsync_pending(&self, fh: Fh) -> Result<(), FsError> {
        let file = Arc::clone(&self.making.get(fh)?.file);
        if self.read_only {
            return Ok(());
        }
        // What is whole can outlive this process only as an array.
        let is_whole = {
            let state = file.state();
            state.check_written()?;
            match &state.body {
                Body::Draft(draft) => state.is_at_rest(draft) && draft.missing().is_ok_and(|n| n == 0),
                Body::Array(_) => false,
            }
        };
        if is_whole {
            self.make_array(&file)?;
        }
        let is_plain = {
            let state = file.state();
            match &state.body {
                Body::Draft(draft) => draft.sync()?,
                Body::Array(array) => array.sync()?,
            }
            state.named && state.array.is_none()
        };
        if is_plain && self.keep_plain(&file)? {
            return Ok(());
        }
        Ok(self.store.sync()?)
    }

    /// Closes a handle. Returns the file if nobody has it open for writing any more, and something was written.
    pub(in crate::fs) fn release_pending(&self, fh: Fh) -> Option<Closed> {
        let open = self.making.remove(fh)?;
        let wants_finish = {
            let mut state = open.file.state();
            state.n_open = state.n_open.saturating_sub(1);
            state.n_writers = state.n_writers.saturating_sub(u32::from(open.write));
            if state.n_writers == 0 {
                state.mapped = false;
            }
            let was_refused = state.flushed && state.refusal.is_some();
            open.write
                && state.n_writers == 0
                && state.array.is_some()
                && matches!(state.body, Body::Draft(_))
                && !was_refused
        };
        if wants_finish {
            return Some(Closed(open.file.ino));
        }
        self.pending.prune(open.file.ino);
        None
    }

    /// Makes an array of a file that was closed, if it is whole. May wait for other writers. What fails is logged.
    pub fn finish_closed(&self, closed: Closed) {
        let Some(file) = self.pending.get(closed.0) else { return };
        if file.state().n_writers == 0 {
            // What fails is logged.
            let _ = self.make_array(&file);
            self.wait_for_rest(&file);
        }
        self.pending.prune(closed.0);
    }

    /// Says that a file that was closed is not whole; one that has no name will never be.
    fn wait_for_rest(&self, file: &PendingFile) {
        let mut state = file.state();
        let Body::Draft(draft) = &state.body else { return };
        let (len, missing) = (draft.len(), draft.missing().ok());
        if !state.named && missing != Some(0) {
            state.remove();
        }
        if let Some(missing @ 1..) = missing {
            drop(state);
            info!(
                "{}: not whole yet: has {len} bytes, {missing} or more are missing",
                self.path_of(&file.spot())
            );
        }
    }

    /// Makes an array of a pending file, if it is whole and named like one, and lets the name lead to it.
    pub(super) fn make_array(&self, file: &PendingFile) -> Result<(), FsError> {
        let name = file.state().array.clone();
        if let Some(name) = name
            && self.commit_as(file, &name, true)?
        {
            self.unveil(file);
        }
        Ok(())
    }

    /// Makes the array `name` of a pending file, if it is whole. Returns whether it is an array now.
    pub(super) fn commit_as(
        &self,
        file: &PendingFile,
        name: &Arc<str>,
        overwrite: bool,
    ) -> Result<bool, FsError> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            match self.try_commit_as(file, name, overwrite) {
                Err(FsError::Store(StoreError::Locked { .. })) if start.elapsed() < TIMEOUT => {}
                Err(error) => return Err(self.refused(file, error)),
                Ok(done) => {
                    if done {
                        let changes = std::mem::take(&mut file.state().attrs);
                        self.set_pending_attrs(name, changes);
                    }
                    return Ok(done);
                }
            }
            // Not within the attempt: the file can be read meanwhile.
            thread::sleep(pause);
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    /// As [`Fs::commit_as`], without waiting for other writers.
    fn try_commit_as(&self, file: &PendingFile, name: &Arc<str>, overwrite: bool) -> Result<bool, FsError> {
        let mut state = file.state();
        state.check_written()?;
        let Body::Draft(draft) = &mut state.body else { return Ok(true) };
        if draft.missing()? > 0 {
            return Ok(false);
        }
        let array = self.store.finish_draft(name, draft, overwrite, Duration::ZERO)?;
        if let Err(error) = array.pin() {
            warn!("cannot open: {error}");
        }
        state.body = Body::Array(array);
        Ok(true)
    }

    /// Lets the name of a file that became an array lead to that.
    pub(super) fn unveil(&self, file: &PendingFile) {
        // Places the array. What fails is logged there, and with it every lookup until it works again.
        let _ = self.sync();
        let mut tree = write(&self.tree);
        let mut state = file.state();
        if !state.named || matches!(state.body, Body::Draft(_)) {
            return;
        }
        let gone = tree.remove_pending(state.spot.parent, &state.spot.name, file.ino, SystemTime::now());
        state.named = false;
        let spot = state.spot.clone();
        drop(state);
        self.tell_names(&tree, &[(spot.parent, Arc::clone(&spot.name))], gone.unwrap_or_default());
        drop(tree);
        (self.invalidate)(Invalidation::Attr { ino: file.ino });
        self.pending.prune(file.ino);
        debug!("{}: is an array now", self.path_of(&spot));
    }

    /// Makes a file that became an array, and is still open, a file of its own again, so that it can be changed. The
    /// array stays as it is until the file is closed again. Copies it, which takes its time.
    ///
    /// # Errors
    /// `BadHandle`; `Store`.
    pub fn detach(&self, fh: Fh) -> Result<(), FsError> {
        let fh = self.in_place_of(fh);
        if fh.is_pending() {
            let file = Arc::clone(&self.making.get(fh)?.file);
            self.detach_file(&file)?;
        }
        Ok(())
    }

    /// As [`Fs::detach`], by the file's inode.
    ///
    /// # Errors
    /// `Stale`; `Store`.
    pub fn detach_inode(&self, ino: Ino) -> Result<(), FsError> {
        let file = self.pending.get(ino).ok_or(FsError::Stale { ino })?;
        self.detach_file(&file)
    }

    fn detach_file(&self, file: &PendingFile) -> Result<(), FsError> {
        let array = match &file.state().body {
            Body::Array(array) => array.clone(),
            Body::Draft(_) => return Ok(()),
        };
        let draft = self.store.begin_draft_of(&array)?;
        let mut tree = write(&self.tree);
        let mut guard = file.state();
        let state = &mut *guard;
        if !matches!(&state.body, Body::Array(now) if now.id() == array.id()) {
            return Ok(());
        }
        state.written = draft.len();
        state.body = Body::Draft(draft);
        if state.named {
            return Ok(());
        }
        let spot = &state.spot;
        let is_shown = tree.child(spot.parent, &spot.name).is_some_and(|child| child.ino() == ino_of(&array));
        if !is_shown {
            // The array was removed or overwritten since: as if that had happened to the file.
            state.remove();
            return Ok(());
        }
        let added = tree.add_pending(spot.parent, &spot.name, file.ino, SystemTime::now());
        state.named = added.is_ok();
        let spot = (spot.parent, Arc::clone(&spot.name));
        drop(guard);
        self.tell_names(&tree, &[spot], Vec::new());
        Ok(())
    }

    /// Keeps plain files in the store, and gives others that became no arrays to its folder `lost+found`, when the mount
    /// has ended.
    pub fn end(&self) {
        if self.read_only {
            return;
        }
        for file in self.pending.all() {
            // What fails is logged.
            let _ = self.make_array(&file);
            let path = self.path_of(&file.spot());
            let mut state = file.state();
            let Body::Draft(draft) = &state.body else { continue };
            if draft.is_kept() {
                continue;
            }
            if state.named && state.array.is_none() {
                drop(state);
                match self.keep_plain(&file) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => error!("{path}: is not kept for the next mount: {error}"),
                }
                state = file.state();
            }
            let Body::Draft(draft) = &state.body else { continue };
            if draft.is_empty() || !state.named && state.array.is_none() {
                continue;
            }
            match self.store.keep_draft(&path, draft) {
                Ok(kept) => warn!(
                    "{path}: was no whole .npy file when the mount ended; its {} bytes are in {}",
                    draft.len(),
                    kept.display()
                ),
                Err(error) => {
                    error!("{path}: was no whole .npy file when the mount ended, and is lost: {error}")
                }
            }
        }
    }

    /// The error that says why no array is made of a file; it is logged.
    pub(super) fn refused(&self, file: &PendingFile, error: impl Into<FsError>) -> FsError {
        let error = error.into();
        self.counters.note_error(&error);
        self.log_refusal(file, &error);
        error
    }
}
