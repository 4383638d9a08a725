//! The views that the kernel knows, and what is kept of each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use log::{debug, warn};

use super::image::{Content, Image, Source};
use super::snapshot::{Member, Rights, Snapshot};
use super::{NPZ, SAFETENSORS, safetensors, zip};
use crate::fs::{Attr, FileKind, Ino, lock};
use crate::store::{Array, ArrayId, StoreError};
use crate::sys::process::max_descriptors;

/// Views have this part of the descriptors that this process may have.
const PART_OF_DESCRIPTORS: usize = 2;

/// What a view shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Npz,
    Safetensors,
    /// The elements of this array.
    Raw(Arc<str>),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Npz => f.write_str(NPZ),
            Self::Safetensors => f.write_str(SAFETENSORS),
            Self::Raw(array) => write!(f, "the elements of array {array:?}"),
        }
    }
}

impl Subject {
    /// The bytes of the view.
    fn image(&self, snapshot: &Snapshot) -> Result<Image, StoreError> {
        match self {
            Self::Npz => zip::image(snapshot),
            Self::Safetensors => Ok(safetensors::image(snapshot)),
            Self::Raw(_) => {
                let mut image = Image::default();
                let len = snapshot.members.first().map_or(0, |member| member.array.nbytes());
                image.push(Content::Elements(0), len);
                Ok(image)
            }
        }
    }
}

/// A view as the kernel knows it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) ino: Ino,
    pub(super) subject: Subject,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) image: Image,
    /// What those share who have it open.
    held: Mutex<Weak<Held>>,
    /// The same, kept for somebody who is to open it next.
    pub(super) reserved: Mutex<Option<Arc<Held>>>,
}

/// The arrays of a view, with their data files open, as far as there are descriptors.
#[derive(Debug)]
pub(super) struct Held {
    arrays: Vec<Array>,
    /// The numbers of those that are open.
    open: Vec<usize>,
    of_all: Arc<OpenArrays>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut of_all = lock(&self.of_all);
        for id in self.open.iter().map(|member| self.arrays[*member].id()) {
            if let Entry::Occupied(mut n_views) = of_all.entry(id) {
                *n_views.get_mut() -= 1;
                if *n_views.get() == 0 {
                    n_views.remove();
                }
            }
        }
    }
}

/// Array versions that are open because views are, and in how many. Views share the descriptors.
type OpenArrays = Mutex<HashMap<ArrayId, usize>>;

/// A view that is open.
#[derive(Debug)]
pub(in crate::fs) struct OpenView {
    pub(super) view: Arc<View>,
    held: Arc<Held>,
    is_ended: Arc<AtomicBool>,
    /// Whether a failure was logged: a program may try again for ever.
    is_logged: AtomicBool,
}

impl OpenView {
    pub(super) fn new(view: Arc<View>, held: Arc<Held>, views: &Views) -> Self {
        Self { view, held, is_ended: Arc::clone(&views.is_ended), is_logged: AtomicBool::new(false) }
    }

    pub(super) fn log(&self, error: &StoreError) {
        if !self.is_logged.swap(true, Ordering::Relaxed) {
            warn!("cannot read {}: {error}", self.view.subject);
        }
    }
}

impl Source for OpenView {
    fn member(&self, member: u32) -> &Member {
        &self.view.snapshot.members[member as usize]
    }

    fn array(&self, member: u32) -> Array {
        // One that was not opened with the view is open for as long as the clone lives.
        self.held.arrays[member as usize].clone()
    }

    fn checksum(&self, member: u32, array: &Array) -> Option<u32> {
        self.member(member).checksum(array, &self.is_ended)
    }
}

/// The views that the kernel knows.
#[derive(Debug, Default)]
pub(in crate::fs) struct Views {
    next: AtomicU64,
    table: Mutex<Table>,
    open: Arc<OpenArrays>,
    /// Whether nobody waits for checksums any more.
    pub(super) is_ended: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<Ino, Known>,
    /// The last view of each subject, if the kernel knows it.
    newest: HashMap<Subject, Arc<View>>,
    /// All arrays, as they were seen last.
    all: Option<Arc<Snapshot>>,
}

#[derive(Debug)]
struct Known {
    view: Arc<View>,
    /// Lookups that the kernel has not forgotten.
    nlookup: u64,
}

impl Views {
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<View>> {
        lock(&self.table).known.get(&ino).map(|known| Arc::clone(&known.view))
    }

    /// The view of `subject`: the last one if that shows the same. Counts a lookup.
    pub(super) fn look_up(&self, subject: Subject, snapshot: Arc<Snapshot>) -> Result<Arc<View>, StoreError> {
        let mut table = lock(&self.table);
        let newest = table.newest.get(&subject).filter(|view| view.snapshot.is_same(&snapshot));
        let view = match newest {
            Some(view) => Arc::clone(view),
            None => {
                let ino = Ino::of_view(self.next.fetch_add(1, Ordering::Relaxed) + 1);
                let image = subject.image(&snapshot)?;
                let (held, reserved) = (Mutex::default(), Mutex::default());
                let view = Arc::new(View { ino, subject: subject.clone(), snapshot, image, held, reserved });
                table.newest.insert(subject, Arc::clone(&view));
                view
            }
        };
        let known = table.known.entry(view.ino);
        known.or_insert_with(|| Known { view: Arc::clone(&view), nlookup: 0 }).nlookup += 1;
        Ok(view)
    }

    /// Lets the members share the checksums of those that were seen last, and are the same; is what was seen last then.
    pub(super) fn follow(&self, mut all: Snapshot) -> Arc<Snapshot> {
        let before = lock(&self.table).all.clone();
        if let Some(before) = before {
            let known: HashMap<_, _> =
                before.members.iter().map(|member| (member.array.id(), member)).collect();
            for member in &mut all.members {
                let old = known.get(&member.array.id());
                if let Some(old) = old.filter(|old| old.is_same(member)) {
                    member.share_checksum(old);
                }
            }
        }
        let all = Arc::new(all);
        lock(&self.table).all = Some(Arc::clone(&all));
        all
    }

    /// Opens the data files of a view; see [`View::hold`].
    pub(super) fn hold(&self, view: &View) -> Result<Arc<Held>, Arc<Held>> {
        view.hold(&self.open)
    }

    /// Uncounts lookups. The last one drops the view, unless it is open.
    pub(in crate::fs) fn forget(&self, ino: Ino, nlookup: u64) {
        let mut table = lock(&self.table);
        let Some(known) = table.known.get_mut(&ino) else { return };
        known.nlookup = known.nlookup.saturating_sub(nlookup);
        if known.nlookup > 0 {
            return;
        }
        let view = table.known.remove(&ino).map(|known| known.view);
        if let Some(view) = view
            && table.newest.get(&view.subject).is_some_and(|newest| newest.ino == ino)
        {
            table.newest.remove(&view.subject);
        }
    }
}

impl View {
    /// Opens the data files, if they are not open yet. `Err` if some could not be opened.
    fn hold(&self, of_all: &Arc<OpenArrays>) -> Result<Arc<Held>, Arc<Held>> {
        let mut shared = lock(&self.held);
        if let Some(held) = shared.upgrade() {
            return Ok(held);
        }
        let arrays: Vec<Array> = self.snapshot.members.iter().map(|member| member.array.clone()).collect();
        let mut held = Held { arrays, open: Vec::new(), of_all: Arc::clone(of_all) };
        let limit = max_descriptors() / PART_OF_DESCRIPTORS;
        {
            let mut of_all = lock(of_all);
            for (member, array) in held.arrays.iter().enumerate() {
                if of_all.len() < limit || of_all.contains_key(&array.id()) {
                    *of_all.entry(array.id()).or_default() += 1;
                    held.open.push(member);
                }
            }
        }
        self.snapshot.members.iter().for_each(Member::read_again);
        let mut is_whole = true;
        for array in held.open.iter().map(|member| &held.arrays[*member]) {
            if let Err(error) = array.pin() {
                debug!("array {:?} is not open for its view: {error}", array.name());
                is_whole = false;
            }
        }
        let held = Arc::new(held);
        *shared = Arc::downgrade(&held);
        if is_whole { Ok(held) } else { Err(held) }
    }

    /// The array that it shows, if it shows one only.
    pub(super) fn array(&self) -> Option<&Array> {
        let is_raw = matches!(self.subject, Subject::Raw(_));
        self.snapshot.members.first().filter(|_| is_raw).map(|member| &member.array)
    }

    /// Its attributes, as the store has them.
    pub(super) fn attr(&self) -> Attr {
        let Snapshot { rights: Rights { uid, gid, perm }, mtime, .. } = *self.snapshot;
        Attr {
            ino: self.ino,
            kind: FileKind::File,
            size: self.image.len(),
            // Programs that find fewer than there could be look for holes.
            blocks: self.image.len().div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            perm,
            nlink: 1,
            uid,
            gid,
        }
    }
}
