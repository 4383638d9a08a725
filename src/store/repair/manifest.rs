//! What is left of a manifest: every good frame of it, and what cannot be known because of those that are not.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::super::blocks::View;
use super::super::error::{NotAStore, StoreError};
use super::super::log::{ManifestLog, check_manifest_len};
use crate::bytes::{put_u32, u64_at};
use crate::format::frame::{self, Log};
use crate::format::manifest::Generation;
use crate::format::{ArrayId, Edit, FormatError, Op, Record, Table, names};
use crate::sys::{FileAccess, Storage, StorageFile};

/// Bytes that are read at once where the disk does not give all of a file.
const SECTOR_LEN: usize = 4096;

/// States of the blocks of an array that are remembered, from the newest on.
const MAX_STATES: usize = 256;

/// Where a table comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableSource {
    /// `metadata.npkm.bak`, which has all of it; commits after the one that made it may be missing.
    Backup,
    /// The good frames of a damaged manifest.
    Frames,
    /// The headers of the data files alone.
    DataFiles,
}

/// A table that had to be made anew.
#[derive(Debug, Clone)]
pub struct Rebuilt {
    /// Why the manifest cannot be used.
    pub what: String,
    /// What the new one is made of.
    pub source: TableSource,
    /// Parts of the old manifest that are damaged, in bytes: the commits in them are lost.
    pub damaged: Vec<Range<u64>>,
    /// Nothing that was committed is missing in the new one, as far as can be known.
    pub is_complete: bool,
    /// The files that had its names, in `lost+found`.
    pub kept: Vec<String>,
}

/// What is known of a store without its data files.
#[derive(Default)]
pub(super) struct Known {
    pub(super) table: Table,
    /// Random identity of the store; none if this is not all of it.
    pub(super) store_id: Option<[u8; frame::STORE_ID_LEN]>,
    /// Arrays that commits may have changed of which nothing is left.
    pub(super) uncertain: HashSet<ArrayId>,
    /// Why the manifest cannot be used as it is, unless it can.
    pub(super) rebuilt: Option<Rebuilt>,
    /// Bytes behind the last frame: of a commit that was interrupted, or of one that is damaged.
    pub(super) n_torn: u64,
    /// The manifest was longer.
    pub(super) has_lost_end: bool,
    /// Earlier states of the blocks of compressed arrays, the newest last.
    history: HashMap<ArrayId, Vec<View>>,
    has_snapshot: bool,
    has_bad_records: bool,
    /// The file was the manifest until its end: a writer that replaces it marks it before.
    is_last: bool,
}

impl Known {
    /// Reads what is left of the manifest in `storage`. The writers' lock is held.
    ///
    /// # Errors
    /// `NotAStore`; `OldLayout`; `Format` for a manifest of a later release; `Io`.
    pub(super) fn read(storage: &dyn Storage) -> Result<Self, StoreError> {
        let path = || storage.path().join(names::MANIFEST);
        let loaded = ManifestLog::load(storage, FileAccess::Read);
        let what = match loaded {
            Ok(manifest) => match manifest.upstream {
                Some(layout) => {
                    return Err(StoreError::OldLayout { store: storage.path().to_owned(), layout });
                }
                None => None,
            },
            Err(StoreError::NotAStore { found: NotAStore::ManifestLost | NotAStore::NoManifest, .. }) => {
                Some("is missing".to_owned())
            }
            Err(StoreError::NotAStore { found: NotAStore::Overwritten | NotAStore::TableLost, .. }) => {
                Some("was replaced by NumPack 0.1-0.7".to_owned())
            }
            Err(StoreError::Format { source, .. }) => Some(source.to_string()),
            // A disk that does not give all of it: the rest is read.
            Err(StoreError::Io { action: "read", source, .. }) => Some(format!("cannot be read: {source}")),
            Err(error) => return Err(error),
        };
        let mut known = match read_all(storage, names::MANIFEST)? {
            None => Self::default(),
            Some(bytes) => {
                check_version(&bytes).map_err(|source| StoreError::Format { path: path(), source })?;
                Self::of(&bytes)
            }
        };
        match what {
            None if known.is_whole() => return Ok(known),
            None => known.set_rebuilt("has records that do not decode".to_owned(), TableSource::Frames),
            Some(what) => known = known.or_backup(storage, what)?,
        }
        known.store_id = None;
        Ok(known)
    }

    /// The same, or what the backup has, if that is more. `what` is wrong with the manifest.
    fn or_backup(mut self, storage: &dyn Storage, what: String) -> Result<Self, StoreError> {
        let backup = read_all(storage, names::MANIFEST_BACKUP)?;
        let backup = backup.filter(|bytes| check_version(bytes).is_ok()).map(|bytes| Self::of(&bytes));
        let reached = |known: &Self| (known.has_snapshot, known.table.generation(), known.is_whole());
        match backup {
            Some(mut backup) if reached(&backup) > reached(&self) => {
                // It may be that of a snapshot before the last one.
                backup.forget_certainty();
                backup.set_rebuilt(what, TableSource::Backup);
                Ok(backup)
            }
            _ => {
                let has_any = self.has_snapshot || self.table.generation() > Generation(0);
                let source = if has_any { TableSource::Frames } else { TableSource::DataFiles };
                self.set_rebuilt(what, source);
                Ok(self)
            }
        }
    }

    fn set_rebuilt(&mut self, what: String, source: TableSource) {
        let damaged = self.rebuilt.take().map_or_else(Vec::new, |own| own.damaged);
        let is_complete = self.has_snapshot
            && damaged.is_empty()
            && !self.has_bad_records
            && self.n_torn == 0
            && !self.has_lost_end
            && match source {
                TableSource::Frames => true,
                TableSource::Backup => self.is_last,
                TableSource::DataFiles => false,
            };
        self.rebuilt = Some(Rebuilt { what, source, damaged, is_complete, kept: Vec::new() });
    }

    fn is_whole(&self) -> bool {
        self.has_snapshot && self.rebuilt.is_none()
    }

    /// Folds all good frames of a manifest.
    fn of(bytes: &[u8]) -> Self {
        let mut known = Self { store_id: frame::parse_header(bytes).ok(), ..Self::default() };
        let mut damaged: Vec<Range<u64>> = Vec::new();
        let mut log = Log::new(bytes.get(frame::HEADER_LEN..).unwrap_or(&[]), frame::HEADER_LEN as u64);
        loop {
            match log.next() {
                Ok(Some(frame)) => {
                    if known.take_frame(frame.payload, frame.offset).is_err() {
                        damaged.push(frame.offset..frame.end);
                        known.forget_certainty();
                    }
                }
                // Without a snapshot, nothing says that what follows never counted.
                Ok(None) if known.has_snapshot || !damaged.is_empty() => break,
                Ok(None) | Err(_) => match log.skip_damage() {
                    Some(gap) => {
                        damaged.push(gap);
                        known.forget_certainty();
                    }
                    None => break,
                },
            }
        }
        known.n_torn = (bytes.len() as u64).saturating_sub(log.offset().min(bytes.len() as u64));
        // A record that does not decode keeps nobody from the others.
        let names: Vec<Arc<str>> = known.table.names().cloned().collect();
        let is_bad = |name: &&Arc<str>| known.table.get(name).is_err();
        let bad: Vec<Arc<str>> = names.iter().filter(is_bad).cloned().collect();
        known.has_bad_records = !bad.is_empty();
        let published = u64_at(bytes, frame::PUBLISHED_OFFSET).filter(|len| *len != frame::RETIRED);
        known.is_last = published == Some(log.offset());
        known.has_lost_end = known.store_id.is_some() && published > Some(log.offset());
        let is_damaged = !damaged.is_empty() || known.has_bad_records || known.store_id.is_none();
        for name in bad {
            known.apply(Op::Delete(name), 0);
        }
        if is_damaged {
            let (what, source, kept) = (String::new(), TableSource::Frames, Vec::new());
            known.rebuilt = Some(Rebuilt { what, source, damaged, is_complete: false, kept });
        }
        known
    }

    fn take_frame(&mut self, payload: &[u8], offset: u64) -> Result<(), FormatError> {
        if !self.has_snapshot
            && self.table.generation() == Generation(0)
            && let Ok(table) = Table::decode(payload, offset)
        {
            self.has_snapshot = true;
            let records: Vec<Arc<Record>> =
                table.names().filter_map(|name| table.get(name).ok().flatten().cloned()).collect();
            records.iter().for_each(|record| self.note_state(record));
            self.table = table;
            return Ok(());
        }
        let edit = Edit::decode(payload, offset)?;
        for op in edit.ops {
            self.apply(op, edit.time);
        }
        Ok(())
    }

    /// Does one change, if it fits. Returns whether it did.
    pub(super) fn apply(&mut self, op: Op, time: i64) -> bool {
        let name = match &op {
            Op::Put(record) => Some(Arc::clone(&record.name)),
            Op::Rows(name, _) | Op::Blocks(name, ..) => Some(Arc::clone(name)),
            _ => None,
        };
        let generation = Generation(self.table.generation().0.saturating_add(1));
        let is_done = self.table.apply(&Edit { generation, time, ops: vec![op] }, &mut |_| ()).is_ok();
        if is_done
            && let Some(name) = name
            && let Ok(Some(record)) = self.table.get(&name)
        {
            let record = Arc::clone(record);
            // This much is said of it again.
            self.uncertain.remove(&record.id);
            self.note_state(&record);
        }
        is_done
    }

    fn note_state(&mut self, record: &Record) {
        let Some(view) = View::of(record) else { return };
        let states = self.history.entry(record.id).or_default();
        if states.last() != Some(&view) {
            states.push(view);
        }
        if states.len() > 2 * MAX_STATES {
            states.drain(..MAX_STATES);
        }
    }

    /// After a gap: of what is there, anything may have changed.
    fn forget_certainty(&mut self) {
        self.uncertain = self.table.records().into_iter().flatten().map(|record| record.id).collect();
    }

    /// States in which the blocks of an array were committed, the newest first.
    pub(super) fn states_of(&self, id: ArrayId) -> impl Iterator<Item = View> {
        self.history.get(&id).into_iter().flatten().rev().take(MAX_STATES).copied()
    }
}

/// Refuses a manifest that a later release wrote. One whose version is only damaged has a checksum that tells.
fn check_version(bytes: &[u8]) -> Result<(), FormatError> {
    match frame::parse_header(bytes) {
        Err(error @ FormatError::Version { .. }) => {
            let mut header = bytes.get(..frame::HEADER_LEN).unwrap_or(&[]).to_vec();
            put_u32(&mut header, frame::MAGIC.len(), frame::VERSION);
            if frame::parse_header(&header).is_ok() { Ok(()) } else { Err(error) }
        }
        Err(error @ FormatError::Features { .. }) => Err(error),
        // A table of an old release is none of this one's, unless it took the place of one.
        _ => Ok(()),
    }
}

/// All bytes of a file, with zeros for those that the disk does not give; `None` where there is no such file.
fn read_all(storage: &dyn Storage, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |action, source| StoreError::io(action, storage.path(), name, source);
    let file = match storage.open(name, FileAccess::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", error)),
    };
    let len = file.stat().map_err(|e| failed("stat", e))?.len;
    check_manifest_len(storage, len)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    read_past(&*file, &mut bytes, 0, &mut |_| ()).map_err(|e| failed("read", e))?;
    Ok(Some(bytes))
}

/// Reads as much as the disk gives. What it does not give is zeros in `out`, and `lost` is told where in `out` that is.
pub(super) fn read_past(
    file: &dyn StorageFile,
    out: &mut [u8],
    offset: u64,
    lost: &mut dyn FnMut(Range<usize>),
) -> io::Result<()> {
    let len = out.len();
    match file.read_at(out, offset) {
        Ok(read) => {
            if let Some(rest) = out.get_mut(read..).filter(|rest| !rest.is_empty()) {
                rest.fill(0);
                lost(read..len);
            }
            return Ok(());
        }
        Err(error) if !is_of_media(&error) => return Err(error),
        Err(_) => {}
    }
    // The disk gives all but some sectors.
    let mut at = 0;
    while at < len {
        let misaligned = (offset + at as u64) as usize % SECTOR_LEN;
        let end = len.min(at + SECTOR_LEN - misaligned);
        match file.read_at(&mut out[at..end], offset + at as u64) {
            Ok(read) if at + read == end => {}
            Ok(read) => {
                out[at + read..].fill(0);
                lost(at + read..len);
                return Ok(());
            }
            Err(error) if is_of_media(&error) => {
                out[at..end].fill(0);
                lost(at..end);
            }
            Err(error) => return Err(error),
        }
        at = end;
    }
    Ok(())
}

/// Whether the disk has lost what was asked for, and not the process something that it needs.
pub(super) fn is_of_media(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADMSG | libc::EUCLEAN | libc::ENODATA))
}
