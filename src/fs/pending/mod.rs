//! Pending files: those that are being made, and are no arrays, or not yet.
//!
//! A pending file has a name in the mount and its bytes in a [`Draft`], which nobody sees elsewhere. Once it is named
//! `*.npy`, whole and closed, one commit makes an array of it ([`finish`]), and the name leads to that. Files that are
//! open go on with the pending file: it shows the array that it became, and is a file of its own again when somebody
//! changes it ([`Fs::detach`]). So to finish early is never wrong, only wasteful.
//!
//! To empty a file that others have open is to make another one of its name ([`reserve`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use log::warn;

use super::attr::FILE_PERM;
use super::xattr::AttrChanges;
use super::{Attr, FileKind, Fs, FsError, Ino, lock};
use crate::store::{Array, Draft, StoreError};

mod emptied;
mod file;
mod finish;
mod names;
mod plain;
mod reserve;

pub use file::NewFile;
pub use finish::Closed;

pub(super) use file::OpenPending;

use reserve::Reserved;

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    parent: Ino,
    name: Arc<str>,
}

/// A pending file.
#[derive(Debug)]
pub(super) struct PendingFile {
    pub(super) ino: Ino,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    body: Body,
    /// The name that shows the file, or did so last.
    spot: Spot,
    /// Whether the name still does. Changed only with the tree locked.
    named: bool,
    /// The array that it becomes when it is closed: none for names without `.npy`, and for files that were removed.
    array: Option<Arc<str>>,
    n_open: u32,
    /// How many of these are for writing.
    n_writers: u32,
    /// So many bytes at the beginning were written by `write`, and are not the zeros of a hole.
    written: u64,
    /// Whether pages of a mapping were written back: then only its end tells that all of them were.
    mapped: bool,
    /// Whether somebody closed the file after its last change.
    flushed: bool,
    /// Why no array was made of it, as far as the log tells.
    refusal: Option<String>,
    /// So many bytes may be written behind their answer before the disk is asked again what room it has.
    room: u64,
    /// Why something that was answered is not there. Nothing is written any more, and no array made, until the file is
    /// emptied.
    lost: Option<Arc<StoreError>>,
    /// What was set and removed of the attributes of the array that it becomes.
    attrs: AttrChanges,
}

/// The bytes of a pending file.
#[derive(Debug)]
enum Body {
    /// Its own.
    Draft(Draft),
    /// Those of the array that it became.
    Array(Array),
}

impl PendingFile {
    /// Whether it became an array.
    pub(super) fn is_array(&self) -> bool {
        matches!(self.state().body, Body::Array(_))
    }

    /// The array that it became, and the name of the one that it becomes.
    pub(super) fn attr_source(&self) -> (Option<Array>, Option<Arc<str>>) {
        let state = self.state();
        match &state.body {
            Body::Array(array) => (Some(array.clone()), None),
            Body::Draft(_) => (None, state.array.clone()),
        }
    }

    pub(super) fn with_attr_changes(&self, change: impl FnOnce(&mut AttrChanges)) {
        change(&mut self.state().attrs);
    }

    fn spot(&self) -> Spot {
        self.state().spot.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn new(draft: Draft, spot: Spot, array: Option<Arc<str>>) -> Self {
        Self {
            body: Body::Draft(draft),
            spot,
            named: false,
            array,
            n_open: 0,
            n_writers: 0,
            written: 0,
            mapped: false,
            flushed: false,
            refusal: None,
            room: 0,
            lost: None,
            attrs: AttrChanges::default(),
        }
    }

    fn opened(&mut self, write: bool) {
        self.n_open += 1;
        self.n_writers += u32::from(write);
    }

    /// Whether nothing is to be expected of those who have the file open: they closed it, or wrote all of it.
    fn is_at_rest(&self, draft: &Draft) -> bool {
        self.n_writers == 0 || !self.mapped && self.written >= draft.len()
    }

    /// Whether whoever wrote to the file is done.
    fn is_closed(&self) -> bool {
        match &self.body {
            Body::Draft(draft) => self.n_writers == 0 || self.flushed && self.is_at_rest(draft),
            Body::Array(_) => true,
        }
    }

    /// Notes that the contents are different now.
    fn changed(&mut self) {
        self.flushed = false;
        self.refusal = None;
    }

    /// # Errors
    /// `WriteLost`.
    fn check_written(&self) -> Result<(), FsError> {
        match &self.lost {
            Some(first) => Err(FsError::WriteLost { first: Arc::clone(first) }),
            None => Ok(()),
        }
    }

    /// Gives the name up, and with it the claim to an array's.
    fn remove(&mut self) {
        self.named = false;
        self.array = None;
        if let Body::Draft(draft) = &mut self.body {
            draft.forget();
        }
    }
}

/// The pending files of a mount.
#[derive(Debug, Default)]
pub(super) struct Pendings {
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<Ino, Known>,
    /// The same by the place that each has or had: a folder may be full of them.
    at: HashMap<Spot, Vec<Ino>>,
    /// The files that are made for those who come again.
    reserved: Reserved,
}

#[derive(Debug)]
struct Known {
    file: Arc<PendingFile>,
    /// Lookups that the kernel has not forgotten.
    nlookup: u64,
}

impl Table {
    /// Drops a file that nobody can reach any more.
    fn prune(&mut self, ino: Ino) {
        let Some(known) = self.known.get(&ino) else { return };
        if known.nlookup > 0 || self.reserved.holds(ino) {
            return;
        }
        let state = known.file.state();
        if state.n_open == 0 && !state.named {
            let spot = state.spot.clone();
            drop(state);
            self.leave(ino, &spot);
            self.known.remove(&ino);
        }
    }

    fn leave(&mut self, ino: Ino, spot: &Spot) {
        if let Some(inos) = self.at.get_mut(spot) {
            inos.retain(|other| *other != ino);
            if inos.is_empty() {
                self.at.remove(spot);
            }
        }
    }
}

impl Pendings {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<PendingFile>> {
        self.table().known.get(&ino).map(|known| Arc::clone(&known.file))
    }

    /// The folder and the name that show a file, or did so last.
    pub(super) fn place_of(&self, ino: Ino) -> Option<(Ino, Arc<str>)> {
        let Spot { parent, name } = self.get(ino)?.spot();
        Some((parent, name))
    }

    /// All of them.
    fn all(&self) -> Vec<Arc<PendingFile>> {
        self.table().known.values().map(|known| Arc::clone(&known.file)).collect()
    }

    /// Takes in a new file; `nlookup` lookups of it are counted.
    fn insert(&self, state: State, nlookup: u64) -> Arc<PendingFile> {
        let ino = Ino::of_pending(self.next.fetch_add(1, Ordering::Relaxed));
        let spot = state.spot.clone();
        let file = Arc::new(PendingFile { ino, state: Mutex::new(state) });
        let mut table = self.table();
        table.at.entry(spot).or_default().push(ino);
        table.known.insert(ino, Known { file: Arc::clone(&file), nlookup });
        file
    }

    /// Those that have or had a place.
    fn at(&self, spot: &Spot) -> Vec<Arc<PendingFile>> {
        let table = self.table();
        let inos = table.at.get(spot).into_iter().flatten();
        inos.filter_map(|ino| Some(Arc::clone(&table.known.get(ino)?.file))).collect()
    }

    /// Notes that a file has another place, unless it is gone.
    fn moved(&self, ino: Ino, from: &Spot, to: Spot) {
        let mut table = self.table();
        if table.known.contains_key(&ino) {
            table.leave(ino, from);
            table.at.entry(to).or_default().push(ino);
        }
    }

    /// Counts a lookup.
    pub(super) fn look_up(&self, ino: Ino) -> Option<Arc<PendingFile>> {
        let mut table = self.table();
        let known = table.known.get_mut(&ino)?;
        known.nlookup += 1;
        Some(Arc::clone(&known.file))
    }

    /// Uncounts lookups.
    pub(super) fn forget(&self, ino: Ino, nlookup: u64) {
        let mut table = self.table();
        if let Some(known) = table.known.get_mut(&ino) {
            known.nlookup = known.nlookup.saturating_sub(nlookup);
            table.prune(ino);
        }
    }

    /// Drops a file, if nobody can reach it any more.
    fn prune(&self, ino: Ino) {
        self.table().prune(ino);
    }
}

impl Fs {
    /// The attributes of a pending file.
    pub(super) fn pending_attr(&self, file: &PendingFile) -> Result<Attr, FsError> {
        let state = file.state();
        let (size, stat, mtime) = match &state.body {
            Body::Draft(draft) => {
                let stat = draft.stat()?;
                (draft.len(), stat, stat.mtime)
            }
            Body::Array(array) => {
                let stat = array.stat()?;
                (array.npy_len(), stat, stat.mtime.max(array.committed()))
            }
        };
        Ok(Attr {
            ino: file.ino,
            kind: FileKind::File,
            size,
            blocks: stat.allocated / 512,
            atime: stat.atime,
            mtime,
            ctime: stat.ctime.max(mtime),
            perm: self.perm(stat.mode, FILE_PERM),
            nlink: u32::from(state.named),
            uid: self.shown.uid.unwrap_or(stat.uid),
            gid: self.shown.gid.unwrap_or(stat.gid),
        })
    }

    /// The path of a pending file in the mount, for messages.
    fn path_of(&self, spot: &Spot) -> String {
        plain::path_in(&super::read(&self.tree), spot)
    }

    /// Says once why no array is made of a file.
    fn log_refusal(&self, file: &PendingFile, error: &FsError) {
        let text = error.to_string();
        let spot = {
            let mut state = file.state();
            if state.refusal.as_ref() == Some(&text) {
                return;
            }
            state.refusal = Some(text);
            state.spot.clone()
        };
        warn!("{}: no array is made of this file: {error}", self.path_of(&spot));
    }
}
