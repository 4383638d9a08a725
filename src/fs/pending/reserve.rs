//! Emptying what others have open: a new file for whoever asks, under the same name.
//!
//! `open` of such a file is answered with `ESTALE`, by which the kernel looks the name up once more. For that caller,
//! and nobody else, the name leads to a new pending file then, which takes the name from the old one when it is opened.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::time::{Duration, Instant};

use super::{Pendings, Spot, State, Table};
use crate::fs::{Attr, Caller, Fs, FsError, Ino, read};

/// Far longer than the kernel takes to come again, on a machine that is busy.
const EXPECTED_WITHIN: Duration = Duration::from_secs(10);
/// As many as are expected at a time before those are forgotten who did not come.
const MAX_EXPECTED: usize = 64;

/// Somebody who is to look a name up again.
#[derive(Debug)]
struct Expected {
    since: Instant,
    spot: Spot,
    /// The file that is made for him.
    file: Option<Ino>,
}

impl Expected {
    fn is_late(&self) -> bool {
        self.since.elapsed() >= EXPECTED_WITHIN
    }
}

/// Those who are to look a name up again.
#[derive(Debug, Default)]
pub(super) struct Reserved(HashMap<Caller, Expected>);

impl Reserved {
    /// Whether a file is made for somebody.
    pub(super) fn holds(&self, ino: Ino) -> bool {
        self.0.values().any(|expected| expected.file == Some(ino))
    }
}

impl Table {
    fn forget_expected(&mut self, caller: Caller) {
        if let Some(ino) = self.reserved.0.remove(&caller).and_then(|expected| expected.file) {
            self.prune(ino);
        }
    }
}

impl Pendings {
    /// Notes that `caller` will look a name up again, to empty what it leads to.
    fn expect(&self, caller: Caller, spot: Spot) {
        let mut table = self.table();
        table.forget_expected(caller);
        if table.reserved.0.len() >= MAX_EXPECTED {
            let late = table.reserved.0.iter().filter(|(_, expected)| expected.is_late());
            let late: Vec<Caller> = late.map(|(caller, _)| *caller).collect();
            late.into_iter().for_each(|caller| table.forget_expected(caller));
        }
        table.reserved.0.insert(caller, Expected { since: Instant::now(), spot, file: None });
    }

    /// Whether `caller` is expected to look this name up, and the file that is made for him already.
    fn expected(&self, caller: Caller, spot: &Spot) -> Option<Option<Ino>> {
        let mut table = self.table();
        let expected = table.reserved.0.get(&caller)?;
        if expected.is_late() {
            table.forget_expected(caller);
            return None;
        }
        (expected.spot == *spot).then_some(expected.file)
    }

    /// Ends the wait for `caller`, who came for something else.
    pub(super) fn come(&self, caller: Caller) {
        self.table().forget_expected(caller);
    }

    /// Whether `caller` comes again without having looked up the name. Ends the wait for him then.
    pub(super) fn came_without_name(&self, caller: Caller, spot: &Spot) -> bool {
        let is_so = self.expected(caller, spot) == Some(None);
        if is_so {
            self.come(caller);
        }
        is_so
    }

    /// Keeps a file for `caller`.
    fn reserve(&self, caller: Caller, ino: Ino) {
        if let Some(expected) = self.table().reserved.0.get_mut(&caller) {
            expected.file = Some(ino);
        }
    }

    /// Ends a reservation. Returns whether `ino` was reserved for `caller`.
    pub(super) fn claim(&self, caller: Caller, ino: Ino) -> bool {
        let mut table = self.table();
        let is_claimed = table.reserved.0.get(&caller).is_some_and(|expected| expected.file == Some(ino));
        if is_claimed {
            table.reserved.0.remove(&caller);
        }
        is_claimed
    }
}

impl Fs {
    /// Notes that `caller` will look a name up again, to empty what it leads to.
    pub(super) fn expect_at(&self, caller: Caller, spot: Spot) {
        self.pending.expect(caller, spot);
    }

    /// As [`Fs::expect_at`], with the name that an array has or had.
    pub(in crate::fs) fn expect_emptied(&self, caller: Caller, array: &str) {
        let place = read(&self.tree).place_for(array);
        if let Some((parent, name)) = place {
            self.pending.expect(caller, Spot { parent, name });
        }
    }

    /// The attributes of the file that is made for `caller`, if he is expected to look up this name, which leads to a
    /// file. Counts a lookup.
    pub(in crate::fs) fn look_up_emptied(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
    ) -> Result<Option<Attr>, FsError> {
        let Some(text) = name.to_str() else { return Ok(None) };
        let Some(made) = self.pending.expected(caller, &Spot { parent, name: text.into() }) else {
            return Ok(None);
        };
        let ino = match made {
            Some(ino) => ino,
            // Even if nobody has it open now: by the time of `open` somebody may.
            None => {
                let (spot, array) = self.new_spot(parent, name)?;
                let state = State::new(self.new_draft(array.as_deref())?, spot, array);
                let file = self.pending.insert(state, 0);
                self.pending.reserve(caller, file.ino);
                file.ino
            }
        };
        let Some(file) = self.pending.look_up(ino) else { return Ok(None) };
        self.pending_attr(&file).map(Some).inspect_err(|_| self.pending.forget(ino, 1))
    }
}
