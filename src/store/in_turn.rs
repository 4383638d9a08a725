//! Saving more arrays in one commit than a process should have files open for: one after the other.
//!
//! Files without a name are there only while they are open. So these get their names at once, with the writers' lock
//! held and the intent written: should this process die, whoever comes next removes them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::error::StoreError;
use super::stage::NewArray;
use super::writer::{Commit, Place, now};
use crate::format::{Compression, Op, names};

/// New versions that are written before the writers' lock is taken, each in an open file. The usual limit is 1024.
pub(super) const MAX_UNNAMED: usize = 200;

impl Shared {
    /// Saves arrays, in one commit with `ops` before and `last_ops` after them, with the writers' lock held. Of those given
    /// the same name, the last counts.
    pub(super) fn save_in_turn(
        &self,
        arrays: &[(&str, NewArray<'_>)],
        compression: impl Fn(&str) -> Option<Compression>,
        mut ops: Vec<Op>,
        last_ops: Vec<Op>,
    ) -> Result<(), StoreError> {
        let arrays = last_of_each_name(arrays);
        // What cannot be saved is refused before anything is written.
        for (name, array) in &arrays {
            names::check(name)?;
            array.layout(name)?;
        }
        let time = now();
        let (places, superseded) = self.places(arrays.iter().map(|(name, _)| *name), &ops)?;
        let files: Vec<Arc<str>> = places.iter().map(|place| Arc::clone(&place.file)).collect();
        self.begin_intent(&places, &superseded)?;
        let written = arrays
            .into_iter()
            .zip(places)
            .try_for_each(|((name, array), place)| {
                ops.push(self.write_in_place(name, array, compression(name).as_ref(), place, time)?);
                Ok(())
            })
            .and_then(|()| {
                let begun = Some(superseded);
                self.commit(Commit { ops, last_ops, time: Some(time), begun, ..Commit::default() })
            });
        // Else nobody knows what is on the disk, and the intent stays for the next writer.
        if written.is_err() && self.poison.get().is_none() {
            self.end_intent(files.iter().map(|file| &**file));
        }
        written
    }

    /// Writes a new version to the file that it is to have.
    fn write_in_place(
        &self,
        name: &str,
        array: &NewArray<'_>,
        compression: Option<&Compression>,
        place: Place,
        time: i64,
    ) -> Result<Op, StoreError> {
        let new = self.stage(name, array, compression)?;
        let failed = |e| StoreError::io("sync", self.storage.path(), &place.file, e);
        if self.is_durable() {
            self.or_poison(new.data.file.sync_data().map_err(failed))?;
        }
        self.link(&new.data.file, &place.file)?;
        self.names_dirty.store(true, Ordering::Relaxed);
        let is_synced = self.is_durable();
        let record = place.record(&new, time);
        if !is_synced {
            self.note_dirty(&record);
        }
        Ok(Op::Put(record))
    }
}

/// Of several arrays of one name the last, where the first was.
fn last_of_each_name<'a, 'b>(arrays: &'b [(&'a str, NewArray<'a>)]) -> Vec<(&'a str, &'b NewArray<'a>)> {
    let mut found: Vec<(&str, &NewArray<'_>)> = Vec::with_capacity(arrays.len());
    let mut places = HashMap::with_capacity(arrays.len());
    for (name, array) in arrays {
        match places.entry(*name) {
            Entry::Vacant(place) => {
                place.insert(found.len());
                found.push((name, array));
            }
            Entry::Occupied(place) => found[*place.get()].1 = array,
        }
    }
    found
}
