//! The second inode of an array version.
//!
//! A kernel serves all open files of an inode in one way: by itself from a file, or through its page cache. Where a
//! version is open in one way and somebody needs the other, the name leads to a second inode of it: for those who were
//! told to look the name up anew ([`Fs::lead_to_other`]), and for everybody as long as that inode is open. Both inodes
//! follow the version's changes, and what is written through one is committed before the other is opened.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use super::handle::AGAIN_WITHIN;
use super::{Caller, Fs, Ino, lock};

/// Callers that were told to look a name up anew, and the inode that they are to find.
#[derive(Debug, Default)]
pub(super) struct Aside {
    expected: Mutex<HashMap<Caller, (Ino, Instant)>>,
}

const MAX_EXPECTED: usize = 64;

impl Aside {
    fn expect(&self, caller: Caller, ino: Ino) {
        let mut expected = lock(&self.expected);
        if expected.len() >= MAX_EXPECTED {
            expected.retain(|_, (_, since)| since.elapsed() < AGAIN_WITHIN);
        }
        expected.insert(caller, (ino, Instant::now()));
    }

    /// Which of the inodes of a version `caller` is to find, if it was told so lately.
    fn expected(&self, caller: Caller, ino: Ino) -> Option<Ino> {
        let expected = lock(&self.expected);
        let (found, since) = expected.get(&caller)?;
        (found.own() == ino.own() && since.elapsed() < AGAIN_WITHIN).then_some(*found)
    }

    /// Whether anybody is to find `ino`.
    fn is_expected(&self, ino: Ino) -> bool {
        let expected = lock(&self.expected);
        expected.values().any(|(found, since)| *found == ino && since.elapsed() < AGAIN_WITHIN)
    }

    fn came(&self, caller: Caller, ino: Ino) {
        let mut expected = lock(&self.expected);
        if expected.get(&caller).is_some_and(|(found, _)| *found == ino) {
            expected.remove(&caller);
        }
    }
}

impl Fs {
    /// Lets a file be opened through the other inode of its version: the `open` of `ino` is to be answered with `ESTALE`,
    /// and the lookup that follows leads there. Until the caller [arrives](Fs::arrived), or a second has passed, it leads
    /// others there, too.
    pub fn lead_to_other(&self, ino: Ino, caller: Caller) {
        if let Some(other) = ino.other() {
            self.aside.expect(caller, other);
        }
    }

    /// Which of the inodes of a version its name leads to, given the first one.
    pub(super) fn shown_ino(&self, ino: Ino, caller: Option<Caller>) -> Ino {
        let Some(other) = ino.other() else { return ino };
        if let Some(expected) = caller.and_then(|caller| self.aside.expected(caller, ino)) {
            return expected;
        }
        let is_open = || self.inodes.get(other).is_some_and(|inode| inode.is_open());
        if self.aside.is_expected(other) || is_open() { other } else { ino }
    }

    /// Whether somebody was led to the other inode, and has not come yet, and `caller` was not led to this one.
    pub fn leads_to_other(&self, ino: Ino, caller: Caller) -> bool {
        let is_other_expected = ino.other().is_some_and(|other| self.aside.is_expected(other));
        is_other_expected && self.aside.expected(caller, ino) != Some(ino)
    }

    /// A caller opened an inode, and need not be led there any more.
    pub fn arrived(&self, ino: Ino, caller: Caller) {
        self.aside.came(caller, ino);
    }

    /// Whether something was written to the other inode of a version that is not committed: [`Fs::commit`] comes before
    /// `ino` is read.
    pub fn is_other_uncommitted(&self, ino: Ino) -> bool {
        let other = ino.other().and_then(|other| self.inodes.get(other));
        other.is_some_and(|other| !other.uncommitted.is_empty())
    }
}
