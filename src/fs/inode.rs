//! Inodes: numbers, and what is kept of an array while the kernel knows it.
//!
//! An inode is one version of one array: overwriting, compacting or dropping rows gives the name a new inode, and the
//! old one goes on showing what it showed. Appending makes the inode longer, replacing changes it in place. A version may
//! have a second inode for a while (`aside`).
//! An [`Inode`] lives while the kernel counts a lookup of it ([`Inodes`]) or a file is open on it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Instant, SystemTime};

use log::debug;

use super::handle::AGAIN_WITHIN;
use super::resize::Tail;
use super::write_back::Uncommitted;
use super::{Fh, lock, names, read, write};
use crate::store::{Array, ArrayId, ArrayMap, StoreError};

/// An inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// Inode numbers with this bit are folders.
const DIRECTORY_BIT: u64 = 1 << 63;
/// Inode numbers with this bit are arrays with dropped rows; or, if they are folders, those that show a folder's views.
const DROPPED_BIT: u64 = 1 << 62;
/// With both of these bits, the number is a hash, because the array's numbers are too large to stand in it. With this
/// one alone, it is a pending file's.
const HASHED_BIT: u64 = 1 << 61;
const DROPPED_COUNT_BITS: u32 = 30;
/// With this bit and none of the above, it is the second inode of an array version; with the one above alone, a view.
const ASIDE_BIT: u64 = 1 << 60;
const VIEW_BITS: u64 = HASHED_BIT | ASIDE_BIT;
/// The bits that tell what a number stands for.
const KIND_BITS: u64 = DIRECTORY_BIT | DROPPED_BIT | HASHED_BIT | ASIDE_BIT;

impl Ino {
    /// The mount's root.
    pub const ROOT: Self = Self(1);

    /// The folder of views in it.
    pub const VIEWS: Self = Self(VIEW_BITS);

    /// The inode of an array version that shows all its stored rows but `n_dropped`.
    ///
    /// The same after each remount. Rows are dropped for good, so `id` and `n_dropped` name one view of the version.
    pub fn of_array(id: ArrayId, n_dropped: u64) -> Self {
        if n_dropped == 0 && id.0 < ASIDE_BIT - 1 {
            // Ids start at 1, and 1 is the root.
            return Self(id.0 + 1);
        }
        if id.0 >> (61 - DROPPED_COUNT_BITS) == 0 && n_dropped >> DROPPED_COUNT_BITS == 0 {
            return Self(DROPPED_BIT | (id.0 << DROPPED_COUNT_BITS) | n_dropped);
        }
        // Over 2^30 dropped rows, or 2^31 versions, or 2^60 of which none is dropped. Two of those meet with a chance
        // of 2^-61.
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&id.0.to_le_bytes());
        bytes[8..].copy_from_slice(&n_dropped.to_le_bytes());
        Self(DROPPED_BIT | HASHED_BIT | (names::hash(&bytes) & (HASHED_BIT - 1)))
    }

    /// The inode of a folder, if it is not taken by another; `probe` counts up while it is.
    pub(super) fn of_directory(path: &str, probe: u64) -> Self {
        Self(names::hash(path.as_bytes()).wrapping_add(probe) & !DROPPED_BIT | DIRECTORY_BIT)
    }

    /// The `n`-th view of a mount, from 1 on.
    pub(super) fn of_view(n: u64) -> Self {
        Self(VIEW_BITS | (n & (ASIDE_BIT - 1)))
    }

    /// Whether it is a view.
    pub fn is_view(self) -> bool {
        self.0 & KIND_BITS == VIEW_BITS && self != Self::VIEWS
    }

    /// The folder that shows the views of what is in a folder.
    pub(super) fn views_of(folder: Self) -> Self {
        if folder == Self::ROOT { Self::VIEWS } else { Self(folder.0 | DROPPED_BIT) }
    }

    /// The folder whose views are in this one; `None` if it is none of views.
    pub fn viewed(self) -> Option<Self> {
        if self == Self::VIEWS {
            return Some(Self::ROOT);
        }
        let is_of_views = self.0 & DIRECTORY_BIT != 0 && self.0 & DROPPED_BIT != 0;
        is_of_views.then_some(Self(self.0 & !DROPPED_BIT))
    }

    /// The `n`-th pending file of a mount.
    pub(super) fn of_pending(n: u64) -> Self {
        Self(HASHED_BIT | (n & (ASIDE_BIT - 1)))
    }

    /// Whether it is a pending file's: one that is no array, or not yet.
    pub fn is_pending(self) -> bool {
        self.0 & KIND_BITS == HASHED_BIT
    }

    /// The other one of the two inodes that an array version may have: see [`Fs::lead_to_other`](super::Fs::lead_to_other). `None`
    /// if it has one only.
    pub fn other(self) -> Option<Self> {
        let has_two = self != Self::ROOT && self.0 & (DIRECTORY_BIT | DROPPED_BIT | HASHED_BIT) == 0;
        has_two.then_some(Self(self.0 ^ ASIDE_BIT))
    }

    /// Whether it is the second one.
    pub fn is_aside(self) -> bool {
        self.0 & KIND_BITS == ASIDE_BIT
    }

    /// The first one.
    pub fn own(self) -> Self {
        if self.is_aside() { Self(self.0 ^ ASIDE_BIT) } else { self }
    }

    /// Whether it is a folder's.
    pub fn is_directory(self) -> bool {
        self == Self::ROOT || self == Self::VIEWS || self.0 & DIRECTORY_BIT != 0
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The inode that a name with this array leads to.
pub(super) fn ino_of(array: &Array) -> Ino {
    Ino::of_array(array.id(), array.n_deleted())
}

/// One state of the elements of an inode, as far as anybody knows: those who keep elements compare it. Later ones are
/// greater, and no two inodes have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Epoch(u64);

impl Epoch {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An array as the kernel knows it.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) ino: Ino,
    id: ArrayId,
    state: RwLock<State>,
    /// The data file's time of change of which the kernel's pages are, as far as anybody asked. Held while writing
    /// in place, so that our own writes are told from those of others.
    seen: Mutex<Option<SystemTime>>,
    /// Whether elements were written, and nobody told.
    untold: AtomicBool,
    /// What was written, if the array is compressed, and is not committed.
    pub(super) uncommitted: Uncommitted,
    /// What was written behind the last row and is none yet.
    pub(super) tail: Tail,
    /// How often something was lost that had been written.
    pub(super) n_lost: AtomicU64,
    /// The pending file that is shown instead, since this one was emptied by who had it open alone.
    pub(super) emptied: OnceLock<Fh>,
}

/// Headers that writeback may still bring, for arrays whose header shares a page with elements.
const MAX_HEADERS: usize = 16;
const PAGE_LEN: u64 = 4096;

struct State {
    /// What is read and written.
    array: Array,
    /// What `stat` shows. Behind the array's length while pages from before an append may be in the kernel's cache:
    /// were the new length known first, writing such a page back would put its zeros over the appended rows.
    shown_len: u64,
    /// Whose header is read, if not `array`'s: behind the length, so that no header promises rows that are not there.
    shown_header: Option<Array>,
    /// Invalidations that are not carried out yet.
    n_unsettled: u32,
    epoch: Epoch,
    n_open: u32,
    /// How many of them are for writing.
    n_writers: u32,
    /// Whether the data file is to stay open.
    pinned: bool,
    /// When somebody asked for that who has not opened it yet.
    wanted_at: Option<Instant>,
    /// Whether the name still leads here.
    named: bool,
    /// Kept while open. `Some(None)`: the array cannot be mapped.
    map: Option<Option<ArrayMap>>,
    /// Headers that the file has had since it was opened, newest last.
    headers: VecDeque<Vec<u8>>,
}

impl State {
    /// Remembers the header as it is read now.
    fn note_header(&mut self) {
        if self.array.header_len().is_multiple_of(PAGE_LEN) {
            return;
        }
        // An array whose header cannot be read cannot be read either.
        let Ok(header) = self.array.npy_header() else { return };
        if self.headers.back() != Some(&header) {
            if self.headers.len() == MAX_HEADERS {
                self.headers.pop_front();
            }
            self.headers.push_back(header);
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("name", self.array.name())
            .field("shown_len", &self.shown_len)
            .field("n_unsettled", &self.n_unsettled)
            .field("n_open", &self.n_open)
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}

/// The last byte of a file, for the kernel to learn the file's length by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastByte {
    /// Where it is.
    pub offset: u64,
    /// What it is.
    pub byte: [u8; 1],
}

/// What a change of the array means for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, or only attributes such as the time.
    Attributes,
    /// The header, and everything from this offset on.
    Content { header_len: u64, from: u64 },
}

impl Inode {
    pub(super) fn new(ino: Ino, array: Array) -> Self {
        let state = State {
            shown_len: array.npy_len(),
            shown_header: None,
            array,
            n_unsettled: 0,
            epoch: Epoch::next(),
            n_open: 0,
            n_writers: 0,
            pinned: false,
            wanted_at: None,
            named: true,
            map: None,
            headers: VecDeque::new(),
        };
        Self {
            ino,
            id: state.array.id(),
            state: RwLock::new(state),
            seen: Mutex::new(None),
            untold: AtomicBool::new(false),
            uncommitted: Uncommitted::default(),
            tail: Tail::default(),
            n_lost: AtomicU64::new(0),
            emptied: OnceLock::new(),
        }
    }

    /// The header as it is shown.
    pub(super) fn header(&self) -> Result<Vec<u8>, StoreError> {
        let array = {
            let state = read(&self.state);
            state.shown_header.as_ref().unwrap_or(&state.array).clone()
        };
        array.npy_header()
    }

    /// The array as its elements are read, and the length as it is shown.
    pub(super) fn array(&self) -> (Array, u64) {
        let state = read(&self.state);
        (state.array.clone(), state.shown_len)
    }

    /// The inode that the rows have which are shown: another one, once rows at the end were dropped by who had this one
    /// open alone.
    pub(super) fn view(&self) -> Ino {
        ino_of(&read(&self.state).array)
    }

    /// Shows fewer rows of the version. Nobody may have it open but who asked for that.
    pub(super) fn shorten(&self, array: Array) {
        let mut state = write(&self.state);
        if state.pinned
            && let Err(error) = array.pin()
        {
            debug!("array {:?} is shown as it was: {error}", array.name());
            return;
        }
        state.shown_len = array.npy_len();
        state.array = array;
        state.shown_header = None;
        state.map = None;
        state.epoch = Epoch::next();
        state.note_header();
    }

    /// How many files are open.
    pub(super) fn n_open(&self) -> u32 {
        read(&self.state).n_open
    }

    /// The array, and which state its elements are in at least.
    pub(super) fn readable(&self) -> (Array, Epoch) {
        let state = read(&self.state);
        (state.array.clone(), state.epoch)
    }

    /// The state whose elements may be stored into the kernel's page cache, if any may: not while it could have
    /// others, or dirty pages.
    pub(super) fn storable(&self) -> Option<Epoch> {
        let state = read(&self.state);
        let is_quiet = state.n_writers == 0 && state.n_unsettled == 0 && self.uncommitted.is_empty();
        is_quiet.then_some(state.epoch)
    }

    /// Notes that the elements are not in the state any more in which they were.
    pub(super) fn changed(&self) {
        write(&self.state).epoch = Epoch::next();
    }

    pub(super) fn is_open(&self) -> bool {
        read(&self.state).n_open > 0
    }

    /// Whether a file is open for writing.
    pub(super) fn is_written(&self) -> bool {
        read(&self.state).n_writers > 0
    }

    /// Where a part of a row begins that was written behind the last one, if any was.
    pub(super) fn tail_start(&self) -> Option<u64> {
        (self.tail.len() > 0).then(|| read(&self.state).shown_len)
    }

    /// Shows a length that the kernel knows already.
    pub(super) fn show_at_once(&self, len: u64) {
        let mut state = write(&self.state);
        state.shown_len = state.shown_len.max(len);
    }

    pub(super) fn is_named(&self) -> bool {
        read(&self.state).named
    }

    pub(super) fn is_settled(&self) -> bool {
        read(&self.state).n_unsettled == 0
    }

    pub(super) fn set_named(&self, named: bool) {
        write(&self.state).named = named;
    }

    /// Opens the data file, so that for the next second this version can be opened even if it is overwritten.
    pub(super) fn pin(&self) -> Result<(), StoreError> {
        let mut state = write(&self.state);
        state.array.pin()?;
        state.pinned = true;
        state.wanted_at = Some(Instant::now());
        Ok(())
    }

    /// Counts an open file, and opens the data file, which then stays readable whatever happens to the store.
    pub(super) fn opened(&self, for_writing: bool) -> Result<Array, StoreError> {
        let mut state = write(&self.state);
        state.array.pin()?;
        state.pinned = true;
        state.n_open += 1;
        state.n_writers += u32::from(for_writing);
        state.note_header();
        Ok(state.array.clone())
    }

    /// Uncounts an open file. After the last one nothing of the array's file stays open, if `again` gives the same
    /// state anew.
    pub(super) fn closed(&self, for_writing: bool, again: impl FnOnce(&Array) -> Option<Array>) {
        let mut state = write(&self.state);
        state.n_open = state.n_open.saturating_sub(1);
        state.n_writers = state.n_writers.saturating_sub(u32::from(for_writing));
        self.let_go_of(&mut state, again);
    }

    /// As [`Inode::closed`], when what was written before is committed.
    pub(super) fn let_go(&self, again: impl FnOnce(&Array) -> Option<Array>) {
        self.let_go_of(&mut write(&self.state), again);
    }

    fn let_go_of(&self, state: &mut State, again: impl FnOnce(&Array) -> Option<Array>) {
        if state.n_open == 0 {
            state.map = None;
            state.headers.clear();
            if !self.uncommitted.is_empty() {
                return;
            }
            if state.wanted_at.is_some_and(|since| since.elapsed() < AGAIN_WITHIN) {
                return;
            }
            // Another state must come through `follow`, which knows what the kernel has to be told.
            if state.named
                && let Some(array) = again(&state.array)
                && ino_of(&array) == self.ino.own()
                && array.name() == state.array.name()
                && array.shape() == state.array.shape()
            {
                state.array = array;
                state.pinned = false;
            }
        }
    }

    /// The array and a mapping of its data, made at the first call after an open.
    pub(super) fn mapped(&self) -> Result<(Array, Option<ArrayMap>), StoreError> {
        {
            let state = read(&self.state);
            if let Some(map) = &state.map {
                return Ok((state.array.clone(), map.clone()));
            }
        }
        let mut state = write(&self.state);
        let map = match &state.map {
            Some(map) => map.clone(),
            None => {
                let map = state.array.map()?;
                if state.n_open > 0 {
                    state.map = Some(map.clone());
                }
                map
            }
        };
        Ok((state.array.clone(), map))
    }

    /// Makes `array`, the same version at a later commit, what is read; `written`: its bytes changed in place.
    ///
    /// After [`Effect::Content`], [`Inode::show_length`] and [`Inode::settle`] must follow.
    pub(super) fn follow(&self, array: Array, written: bool) -> Effect {
        let may_be_cached = self.absorb(&array);
        let mut state = write(&self.state);
        if state.pinned
            && let Err(error) = array.pin()
        {
            // Overwritten or removed since, which will be told next.
            debug!("array {:?} is shown as it was: {error}", array.name());
            return Effect::Attributes;
        }
        let header_len = array.header_len();
        let grown = array.shape() != state.array.shape();
        // Of one that was shortened, the name leads to another.
        state.named = ino_of(&array) == self.ino.own();
        let before = std::mem::replace(&mut state.array, array);
        if grown && state.n_open > 0 {
            state.note_header();
        }
        if !grown && !written {
            return Effect::Attributes;
        }
        state.map = None;
        state.n_unsettled += 1;
        state.epoch = Epoch::next();
        let from = if written { header_len } else { state.shown_len };
        if may_be_cached {
            state.shown_header.get_or_insert(before);
        } else {
            state.shown_len = state.array.npy_len();
        }
        Effect::Content { header_len, from }
    }

    /// Makes `array`, the same state but for its time, what is read.
    pub(super) fn note_time(&self, array: Array) {
        let mut state = write(&self.state);
        let is_same = state.array.id() == array.id() && state.array.shape() == array.shape();
        if is_same && (!state.pinned || array.pin().is_ok()) {
            state.array = array;
        }
    }

    /// Takes the data file's present time of change for that of a commit which was told. Returns whether the kernel
    /// may have pages.
    fn absorb(&self, array: &Array) -> bool {
        let mut seen = lock(&self.seen);
        if seen.is_some() {
            *seen = array.stat().ok().map(|stat| stat.mtime);
        }
        seen.is_some()
    }

    /// To be called when a file is open on the inode, and read by the kernel from the data file.
    pub(super) fn bypassed(&self) {
        *lock(&self.seen) = None;
    }

    /// Sets the data file's times.
    pub(super) fn set_times(
        &self,
        array: &Array,
        atime: Option<SystemTime>,
        mtime: Option<SystemTime>,
    ) -> Result<(), StoreError> {
        if array.codec().is_some() {
            return array.set_times(atime, mtime);
        }
        let (result, effect) = self.write_with(array, || array.set_times(atime, mtime));
        // What others wrote must stay to be found: the next look would find only the time that was set.
        if effect.is_some() {
            self.show_length();
            self.settle();
            *lock(&self.seen) = Some(SystemTime::UNIX_EPOCH);
        }
        result
    }

    /// Whether somebody else wrote to the data file in place since the last call. What must follow is as after
    /// [`Inode::follow`].
    pub(super) fn written_elsewhere(&self) -> Option<Effect> {
        let (array, _) = self.array();
        let mut seen = lock(&self.seen);
        if array.codec().is_some() {
            // Each change is a commit, which is told.
            seen.get_or_insert(SystemTime::UNIX_EPOCH);
            return None;
        }
        let now = array.stat().ok()?.mtime;
        let changed = seen.replace(now).is_some_and(|before| before != now);
        changed.then(|| self.unsettle())
    }

    /// Writes in place by `write`. Returns its result, and what the kernel has to be told if others wrote as well.
    pub(super) fn write_with<T>(&self, array: &Array, write: impl FnOnce() -> T) -> (T, Option<Effect>) {
        let mut seen = lock(&self.seen);
        let before = array.stat().ok().map(|stat| stat.mtime);
        let result = write();
        // Never asked: the first open with a cache has not asked yet, and has no old pages.
        let Some(known) = *seen else { return (result, None) };
        *seen = array.stat().ok().map(|stat| stat.mtime);
        (result, (before != Some(known)).then(|| self.unsettle()))
    }

    /// Notes that elements were written. Returns whether they are the first since [`Inode::take_untold`].
    pub(super) fn wrote(&self) -> bool {
        !self.untold.swap(true, Ordering::Relaxed)
    }

    /// Starts anew with [`Inode::wrote`].
    pub(super) fn take_untold(&self) {
        self.untold.store(false, Ordering::Relaxed);
    }

    /// The elements changed, other than by what the kernel wrote. What must follow is as after [`Inode::follow`].
    pub(super) fn unsettle(&self) -> Effect {
        let mut state = write(&self.state);
        state.n_unsettled += 1;
        state.epoch = Epoch::next();
        let header_len = state.array.header_len();
        Effect::Content { header_len, from: header_len }
    }

    /// Shows the array's length, once the pages of all changes are dropped. Returns the last byte if the length
    /// grew, and the kernel may have pages.
    pub(super) fn show_length(&self) -> Option<LastByte> {
        let array = {
            let mut state = write(&self.state);
            let len = state.array.npy_len();
            if state.n_unsettled > 1 || state.shown_len == len {
                return None;
            }
            state.shown_len = len;
            state.array.clone()
        };
        let offset = array.npy_len().checked_sub(1)?;
        let mut byte = [0];
        let len = array.read_npy_at(offset, &mut byte).ok()?;
        (len == 1).then_some(LastByte { offset, byte })
    }

    /// Shows the array's header, once the attributes of all changes are dropped.
    pub(super) fn settle(&self) {
        let mut state = write(&self.state);
        state.n_unsettled = state.n_unsettled.saturating_sub(1);
        if state.n_unsettled == 0 {
            state.shown_header = None;
        }
    }

    /// Whether `bytes` stand at `offset` in a header that the file has had since it was opened.
    pub(super) fn was_header(&self, offset: u64, bytes: &[u8]) -> bool {
        let Ok(start) = usize::try_from(offset) else { return false };
        read(&self.state)
            .headers
            .iter()
            .any(|header| header.get(start..).and_then(|rest| rest.get(..bytes.len())) == Some(bytes))
    }
}

/// The arrays that the kernel knows.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    known: Mutex<HashMap<Ino, Known>>,
    /// Those that show what another inode does: [`Inode::view`]. A leaf.
    shortened: Mutex<Vec<Ino>>,
}

#[derive(Debug)]
struct Known {
    inode: Arc<Inode>,
    /// Lookups that the kernel has not forgotten.
    nlookup: u64,
}

impl Inodes {
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        lock(&self.known).get(&ino).map(|known| Arc::clone(&known.inode))
    }

    /// The inode `ino` of `array`, made if the kernel does not know it; counts a lookup.
    pub(super) fn look_up(&self, ino: Ino, array: Array) -> Arc<Inode> {
        let mut known = lock(&self.known);
        let known =
            known.entry(ino).or_insert_with(|| Known { inode: Arc::new(Inode::new(ino, array)), nlookup: 0 });
        known.nlookup += 1;
        Arc::clone(&known.inode)
    }

    /// Those that the kernel knows of an inode and the [other](Ino::other) one of its version, in this order, and of those
    /// that show the same since they were shortened.
    pub(super) fn with_other(&self, ino: Ino) -> impl Iterator<Item = Arc<Inode>> {
        let known = lock(&self.known);
        let get = |ino: Ino| Some(Arc::clone(&known.get(&ino)?.inode));
        let both = [get(ino), ino.other().and_then(get)];
        let shortened = lock(&self.shortened);
        let same = shortened.iter().filter(|of| of.own() != ino.own()).filter_map(|of| get(*of));
        let same: Vec<_> = same.filter(|inode| inode.view() == ino.own()).collect();
        both.into_iter().flatten().chain(same)
    }

    /// Notes that an inode shows what another one does, from now on.
    pub(super) fn note_shortened(&self, ino: Ino) {
        let mut shortened = lock(&self.shortened);
        if !shortened.contains(&ino) {
            shortened.push(ino);
        }
    }

    /// The inodes that show a version of an array, with more or fewer rows dropped: all of them.
    pub(super) fn views_of(&self, id: ArrayId) -> Vec<Arc<Inode>> {
        lock(&self.known).values().map(|known| &known.inode).filter(|inode| inode.id == id).cloned().collect()
    }

    /// Uncounts lookups. The last one drops the inode, unless a file is open on it, or something is not committed.
    pub(super) fn forget(&self, ino: Ino, nlookup: u64) {
        let mut inodes = lock(&self.known);
        if let Some(known) = inodes.get_mut(&ino) {
            known.nlookup = known.nlookup.saturating_sub(nlookup);
            if known.nlookup == 0 && known.inode.uncommitted.is_empty() {
                inodes.remove(&ino);
                lock(&self.shortened).retain(|shortened| *shortened != ino);
            }
        }
    }

    /// Drops an inode that was kept only because something was not committed.
    pub(super) fn tidy(&self, ino: Ino) {
        self.forget(ino, 0);
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.known).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_do_not_meet() {
        let mut seen = std::collections::HashMap::new();
        let ids = [1, 2, 3, 1 << 20, 1 << 31, (1 << 31) + 1, 1 << 40, (1 << 60) - 2, (1 << 60) - 1, 1 << 61];
        let counts = [0, 1, 2, (1 << 30) - 1, 1 << 30, 1 << 40];
        for id in ids {
            for n_dropped in counts {
                let ino = Ino::of_array(ArrayId(id), n_dropped);
                assert!(!ino.is_directory() && !ino.is_pending() && !ino.is_aside() && !ino.is_view());
                assert_ne!(ino, Ino::ROOT);
                assert_eq!(seen.insert(ino, (id, n_dropped)), None, "{id} {n_dropped}");
                let Some(aside) = ino.other() else { continue };
                assert!(!aside.is_directory() && !aside.is_pending() && aside.is_aside());
                assert_eq!((aside.own(), aside.other(), ino.own()), (ino, Some(ino), ino));
                assert_eq!(seen.insert(aside, (id, n_dropped)), None, "{id} {n_dropped}");
            }
        }
        for path in ["a/", "b/", "a/b/"] {
            let ino = Ino::of_directory(path, 0);
            for folder in [ino, Ino::views_of(ino)] {
                assert!(folder.is_directory() && folder.other().is_none() && !folder.is_view());
                assert_eq!(seen.insert(folder, (0, 0)), None);
            }
            assert_eq!((ino.viewed(), Ino::views_of(ino).viewed()), (None, Some(ino)));
        }
        assert!(Ino::VIEWS.is_directory() && !Ino::VIEWS.is_view());
        assert_eq!((Ino::views_of(Ino::ROOT), Ino::VIEWS.viewed()), (Ino::VIEWS, Some(Ino::ROOT)));
        assert_eq!(Ino::ROOT.viewed(), None);
        for n in [1, 2, 1 << 40] {
            let ino = Ino::of_view(n);
            assert!(ino.is_view() && !ino.is_directory() && !ino.is_pending());
            assert!(!ino.is_aside() && ino.other().is_none() && ino.viewed().is_none());
            assert_eq!(seen.insert(ino, (0, 0)), None);
        }
        for n in [0, 1, 1 << 40] {
            let ino = Ino::of_pending(n);
            assert!(ino.is_pending() && !ino.is_directory() && !ino.is_view() && ino.other().is_none());
            assert_eq!(seen.insert(ino, (0, 0)), None);
        }
    }
}
