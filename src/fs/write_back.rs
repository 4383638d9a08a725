//! Writing to compressed arrays: bytes are collected, and then committed together.
//!
//! One byte of a compressed array costs a block that is encoded anew, and a commit. So what programs write is kept in
//! memory, where everybody who reads through the mount finds it laid over what is stored, and goes to the store in one
//! commit per array: when a program syncs or closes the file, a second later in any case, and when there is much of
//! it. Committing may wait for other writers and for the disk, so no thread that answers requests does it.
//!
//! Lock order: `Uncommitted::committing`, which is held while the store commits, before all others;
//! `Uncommitted::state` and `WriteBack::inodes`, in this order, after them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use log::{error, info, warn};

use super::inode::Inode;
use super::{Fh, Fs, FsError, Ino, lock};
use crate::store::{Array, StoreError};

/// Bytes that may be collected in a mount. Who writes more waits until some are committed.
const MAX_LEN: usize = 32 << 20;
/// From here on they are committed without being asked for, so that nobody has to wait.
const EARLY_LEN: usize = MAX_LEN / 2;
/// Longest part that is put together of parts that follow each other.
const MAX_PART_LEN: usize = 1 << 20;
/// What a part takes in memory besides its bytes.
const PART_OVERHEAD: usize = 64;
/// Time between two attempts that nobody asked for, after one has failed, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// There is nothing to do about it.
    Done,
    /// It is the first of which others are not told: [`Fs::tell_written`] or [`Fs::commit_due`] must be called by and
    /// by.
    First,
    /// So much is collected that [`Fs::commit_all`] should be called.
    Much,
}

/// Bytes of a file, by offset. No two parts overlap.
#[derive(Debug, Default, Clone)]
struct Parts {
    parts: BTreeMap<u64, Vec<u8>>,
    /// What they take in memory.
    cost: usize,
}

impl Parts {
    fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn n_bytes(&self) -> usize {
        self.parts.values().map(Vec::len).sum()
    }

    fn add(&mut self, offset: u64, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.cost += bytes.len() + PART_OVERHEAD;
            self.parts.insert(offset, bytes);
        }
    }

    fn take(&mut self, offset: u64) -> Option<Vec<u8>> {
        let bytes = self.parts.remove(&offset)?;
        self.cost -= bytes.len() + PART_OVERHEAD;
        Some(bytes)
    }

    /// Puts `bytes` over what is there.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if let Some((start, part)) = self.parts.range_mut(..=offset).next_back() {
            let at = (offset - start) as usize;
            if let Some(old) = part.get_mut(at..at + bytes.len()) {
                old.copy_from_slice(bytes);
                return;
            }
        }
        // What is there of the range goes, but for what stands out at its ends.
        let first = self.parts.range(..offset).next_back().map(|(start, _)| *start);
        let overlapping: Vec<u64> =
            first.into_iter().chain(self.parts.range(offset..end).map(|(start, _)| *start)).collect();
        for start in overlapping {
            let Some(mut part) = self.take(start) else { continue };
            let part_end = start + part.len() as u64;
            if part_end > end {
                self.add(end, part.split_off((end - start) as usize));
            }
            if start < offset {
                part.truncate((offset - start) as usize);
                self.add(start, part);
            }
        }
        // Small parts that follow each other become one.
        if let Some((start, part)) = self.parts.range_mut(..offset).next_back()
            && start + part.len() as u64 == offset
            && part.len() + bytes.len() <= MAX_PART_LEN
        {
            part.extend_from_slice(bytes);
            self.cost += bytes.len();
            return;
        }
        self.add(offset, bytes.to_vec());
    }

    /// Puts `newer` over what is there.
    fn put_all(&mut self, newer: Self) {
        if self.is_empty() {
            *self = newer;
            return;
        }
        for (offset, bytes) in newer.parts {
            self.put(offset, &bytes);
        }
    }

    /// What is there of the bytes `range`, as positions from its start.
    fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (usize, &[u8])> {
        let first = self.parts.range(..range.start).next_back();
        let rest = self.parts.range(range.clone());
        let range = range.clone();
        first.into_iter().chain(rest).filter_map(move |(start, part)| {
            let from = range.start.saturating_sub(*start).min(part.len() as u64) as usize;
            let to = (range.end - start).min(part.len() as u64) as usize;
            let position = (start + from as u64).checked_sub(range.start)? as usize;
            (from < to).then(|| (position, &part[from..to]))
        })
    }
}

/// What was written to an inode and is not committed.
#[derive(Debug, Default)]
pub(super) struct Uncommitted {
    /// Held by the one who commits.
    committing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is being committed, or could not be.
    taken: Arc<Parts>,
    /// What came after that.
    new: Parts,
    /// When something came last.
    written: Option<SystemTime>,
    /// Whether the inode is in `WriteBack::inodes`.
    is_listed: bool,
    failure: Option<Failure>,
}

/// What is known after an attempt that failed.
#[derive(Debug)]
struct Failure {
    next: Instant,
    pause: Duration,
}

impl State {
    fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.new.is_empty()
    }
}

/// Bytes that stand over those which are stored, by position in what is read.
pub(super) struct Overlay(Vec<(usize, Vec<u8>)>);

impl Overlay {
    pub(super) fn put_over(&self, out: &mut [u8]) {
        for (position, bytes) in &self.0 {
            if let Some(out) = out.get_mut(*position..position + bytes.len()) {
                out.copy_from_slice(bytes);
            }
        }
    }
}

impl Uncommitted {
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).is_empty()
    }

    /// When something was last written that is not committed.
    pub(super) fn written(&self) -> Option<SystemTime> {
        let state = lock(&self.state);
        state.written.filter(|_| !state.is_empty())
    }

    /// What is to be put over `len` bytes from `offset` on. To be asked before those are read: what is committed
    /// meanwhile is in both.
    pub(super) fn overlay(&self, offset: u64, len: usize) -> Overlay {
        let state = lock(&self.state);
        let range = offset..offset + len as u64;
        let parts = state.taken.within(&range).chain(state.new.within(&range));
        Overlay(parts.map(|(position, bytes)| (position, bytes.to_vec())).collect())
    }
}

/// What was written to all files of a mount and is not committed.
#[derive(Debug, Default)]
pub(super) struct WriteBack {
    cost: AtomicUsize,
    inodes: Mutex<Vec<Arc<Inode>>>,
    /// Whether somebody was told that there is much.
    is_asked: AtomicBool,
}

impl WriteBack {
    fn inodes(&self) -> Vec<Arc<Inode>> {
        lock(&self.inodes).clone()
    }

    fn change_cost(&self, from: usize, to: usize) {
        // Wraps around, which adds what is missing.
        self.cost.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }

    /// Collects bytes. `None` if there is no room for them.
    fn collect(&self, inode: &Arc<Inode>, offset: u64, bytes: &[u8]) -> Option<Written> {
        if bytes.is_empty() {
            return Some(Written::Done);
        }
        let cost = self.cost.load(Ordering::Relaxed);
        if cost > 0 && cost + bytes.len() > MAX_LEN {
            return None;
        }
        let mut state = lock(&inode.uncommitted.state);
        let before = state.new.cost;
        state.new.put(offset, bytes);
        state.written = Some(SystemTime::now());
        self.change_cost(before, state.new.cost);
        if !state.is_listed {
            state.is_listed = true;
            let mut inodes = lock(&self.inodes);
            inodes.push(Arc::clone(inode));
            if inodes.len() == 1 {
                return Some(Written::First);
            }
        }
        let is_much = self.cost.load(Ordering::Relaxed) > EARLY_LEN;
        Some(if is_much && !self.is_asked.swap(true, Ordering::Relaxed) {
            Written::Much
        } else {
            Written::Done
        })
    }

    /// Gives out what is to be committed of an inode.
    fn take(&self, inode: &Inode) -> Option<Arc<Parts>> {
        let mut state = lock(&inode.uncommitted.state);
        let before = state.taken.cost + state.new.cost;
        let new = std::mem::take(&mut state.new);
        Arc::make_mut(&mut state.taken).put_all(new);
        self.change_cost(before, state.taken.cost);
        (!state.taken.is_empty()).then(|| Arc::clone(&state.taken))
    }

    /// After an attempt to commit what was taken: keeps `left` of it.
    fn settle(&self, inode: &Inode, left: Parts, failed: bool) {
        let mut state = lock(&inode.uncommitted.state);
        self.change_cost(state.taken.cost, left.cost);
        state.taken = Arc::new(left);
        state.failure = failed.then(|| {
            let pause = state.failure.as_ref().map_or(Duration::ZERO, |failure| 2 * failure.pause);
            let pause = pause.clamp(Duration::from_secs(1), MAX_PAUSE);
            Failure { next: Instant::now() + pause, pause }
        });
        if state.is_empty() && state.is_listed {
            state.is_listed = false;
            lock(&self.inodes).retain(|other| !std::ptr::eq(&**other, inode));
        }
    }
}

impl Fs {
    /// Takes `data`, to be written at `offset` of a compressed array.
    pub(super) fn collect(
        &self,
        inode: &Arc<Inode>,
        array: &Array,
        offset: u64,
        data: &[u8],
        from_cache: bool,
    ) -> Result<Written, FsError> {
        let end = offset.saturating_add(data.len() as u64);
        if end > array.npy_len() {
            let array_name = array.name().to_string();
            return Err(StoreError::OutOfBounds {
                array: array_name,
                range: offset..end,
                len: array.npy_len(),
            }
            .into());
        }
        let header_len = array.header_len();
        let in_header = header_len.saturating_sub(offset).min(data.len() as u64) as usize;
        let (header, elements) = data.split_at(in_header);
        let is_same = header.is_empty()
            || array.npy_header()?.get(offset as usize..).is_some_and(|old| old.starts_with(header))
            || from_cache && inode.was_header(offset, header)
            || offset == 0 && array.has_header_like(data) && {
                self.tell_other_words(inode);
                true
            };
        if !is_same && !from_cache {
            return Err(StoreError::HeaderWrite { array: array.name().to_string(), header_len }.into());
        }
        let collected = self.write_back.collect(inode, offset.max(header_len), elements);
        let written = collected.ok_or(FsError::Uncommitted { ino: inode.ino })?;
        if !is_same {
            return Err(StoreError::HeaderWrite { array: array.name().to_string(), header_len }.into());
        }
        Ok(written)
    }

    /// Whether an open file has bytes that are not committed; see [`Fs::commit`].
    pub fn is_uncommitted(&self, fh: Fh) -> bool {
        self.files.get(fh).is_ok_and(|file| !file.inode.uncommitted.is_empty())
    }

    /// Whether any file has.
    pub fn has_uncommitted(&self) -> bool {
        !lock(&self.write_back.inodes).is_empty()
    }

    /// Commits what was written to an inode and is not committed. May wait for other writers.
    ///
    /// # Errors
    /// `Store`. What could not be committed is kept for the next attempt.
    pub fn commit(&self, ino: Ino) -> Result<(), FsError> {
        self.inodes.with_other(ino).map(|inode| self.commit_inode(&inode)).fold(Ok(()), Result::and)
    }

    /// As [`Fs::commit`], for all files. All are tried; the first error is returned.
    ///
    /// # Errors
    /// As [`Fs::commit`].
    pub fn commit_all(&self) -> Result<(), FsError> {
        self.write_back.is_asked.store(false, Ordering::Relaxed);
        let inodes = self.write_back.inodes();
        inodes.iter().map(|inode| self.commit_inode(inode)).fold(Ok(()), Result::and)
    }

    /// As [`Fs::commit_all`], of what was not tried in vain a moment ago. What fails is logged.
    pub fn commit_due(&self) {
        self.write_back.is_asked.store(false, Ordering::Relaxed);
        for inode in self.write_back.inodes() {
            let is_due = |failure: &Failure| failure.next <= Instant::now();
            if lock(&inode.uncommitted.state).failure.as_ref().is_none_or(is_due) {
                self.commit_or_lose(&inode);
            }
        }
    }

    /// As [`Fs::commit`], after a file of the inode was closed. If it was the last one, what cannot be committed is
    /// lost.
    pub fn commit_closed(&self, ino: Ino) {
        if let Some(inode) = self.inodes.get(ino) {
            self.commit_or_lose(&inode);
        }
    }

    fn commit_or_lose(&self, inode: &Inode) {
        match self.commit_inode(inode) {
            // Whoever is at work will be done some day.
            Ok(()) => inode.let_go(|array| self.store.record(array.name()).ok()),
            Err(FsError::Store(StoreError::Locked { .. })) => {}
            Err(error) if !inode.is_open() => self.lose(inode, &error),
            Err(_) => {}
        }
    }

    /// As [`Fs::commit_all`], at the end of the mount: what cannot be committed is lost.
    pub fn commit_last(&self) {
        for inode in self.write_back.inodes() {
            if let Err(error) = self.commit_inode(&inode) {
                self.lose(&inode, &error);
            }
        }
    }

    pub(super) fn commit_inode(&self, inode: &Inode) -> Result<(), FsError> {
        let _one = lock(&inode.uncommitted.committing);
        let Some(parts) = self.write_back.take(inode) else { return Ok(()) };
        let (array, _) = inode.array();
        let (left, result) = write_parts(&array, &parts);
        let was_failing = lock(&inode.uncommitted.state).failure.is_some();
        match &result {
            Ok(()) if was_failing => info!("array {:?}: what was written is stored now", array.name()),
            Err(error) if !was_failing => warn!(
                "{} bytes that were written to array {:?} cannot be stored, and are kept as long as the file is open: \
                 {error}",
                left.n_bytes(),
                array.name()
            ),
            _ => {}
        }
        // Blocks that were decoded before are not those that are stored now. What is laid over them goes after that.
        inode.changed();
        self.write_back.settle(inode, left, result.is_err());
        self.inodes.tidy(inode.ino);
        self.tell_other_views(&array, inode.ino);
        Ok(result?)
    }

    /// Tells that elements changed that other inodes show, too: those of the same version with more or fewer rows
    /// dropped.
    pub(super) fn tell_other_views(&self, array: &Array, except: Ino) {
        for inode in self.inodes.views_of(array.id()) {
            if inode.ino != except {
                let effect = inode.unsettle();
                self.tell(inode.ino, Some(effect));
            }
        }
    }

    /// Gives up what was written to an inode.
    fn lose(&self, inode: &Inode, error: &FsError) {
        let _one = lock(&inode.uncommitted.committing);
        let Some(parts) = self.write_back.take(inode) else { return };
        let (array, _) = inode.array();
        error!("{} bytes that were written to array {:?} are lost: {error}", parts.n_bytes(), array.name());
        self.write_back.settle(inode, Parts::default(), false);
        inode.n_lost.fetch_add(1, Ordering::Relaxed);
        // The kernel has them still.
        let effect = inode.unsettle();
        self.tell(inode.ino, Some(effect));
        self.inodes.tidy(inode.ino);
    }
}

/// Writes parts in one commit, if it can be. Of parts that lie in damaged blocks the others must not suffer: they are
/// returned, and the others committed.
fn write_parts(array: &Array, parts: &Parts) -> (Parts, Result<(), StoreError>) {
    let write = |parts: &Parts| {
        let ranges: Vec<(u64, &[u8])> = parts.parts.iter().map(|(offset, part)| (*offset, &**part)).collect();
        array.write_back(&ranges)
    };
    let error = match write(parts) {
        Ok(()) => return (Parts::default(), Ok(())),
        Err(error) => error,
    };
    let mut left = parts.clone();
    if matches!(error, StoreError::Block { .. }) {
        let is_readable = |offset: u64| array.read_npy_at(offset, &mut [0]).is_ok();
        let mut good = Parts::default();
        let mut bad = Parts::default();
        for (offset, part) in &parts.parts {
            let is_good = is_readable(*offset) && is_readable(offset + part.len() as u64 - 1);
            let to = if is_good { &mut good } else { &mut bad };
            to.add(*offset, part.clone());
        }
        if !good.is_empty() && !bad.is_empty() && write(&good).is_ok() {
            left = bad;
        }
    }
    (left, Err(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_bytes_stand_over_earlier_ones() {
        let mut x = 7_u64;
        let mut random = |end: u64| {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (x >> 33) % end
        };
        for _ in 0..200 {
            let mut model = vec![None; 300];
            let mut parts = Parts::default();
            for byte in 0..30 {
                let start = random(290) as usize;
                let len = 1 + random(if byte % 3 == 0 { 100 } else { 10 }) as usize;
                let bytes = vec![byte; len.min(300 - start)];
                model[start..start + bytes.len()].fill(Some(byte));
                parts.put(start as u64, &bytes);
            }
            let mut found = vec![None; 300];
            let mut end = 0;
            for (start, part) in &parts.parts {
                assert!(*start >= end && !part.is_empty());
                end = start + part.len() as u64;
                found[*start as usize..end as usize].iter_mut().zip(part).for_each(|(f, b)| *f = Some(*b));
            }
            assert_eq!(found, model);
            assert_eq!(parts.cost, parts.n_bytes() + PART_OVERHEAD * parts.parts.len());
            let range = random(150)..150 + random(150);
            let mut within = vec![None; (range.end - range.start) as usize];
            for (position, bytes) in parts.within(&range) {
                within[position..position + bytes.len()]
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(w, b)| *w = Some(*b));
            }
            assert_eq!(within, model[range.start as usize..range.end as usize]);
        }
    }

    #[test]
    fn small_parts_that_follow_each_other_become_one() {
        let mut parts = Parts::default();
        for i in 0..1000 {
            parts.put(8 * i, &[1; 8]);
        }
        assert_eq!((parts.parts.len(), parts.n_bytes()), (1, 8000));
        parts.put(0, &[2; 16]);
        assert_eq!((parts.parts.len(), parts.n_bytes()), (1, 8000));
    }
}
