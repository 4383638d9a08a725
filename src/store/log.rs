//! The manifest as a file: reads it, follows the commits of others, appends commits, publishes snapshots.
//!
//! A [`ManifestLog`] knows nothing of locks. [`ManifestLog::append`] and [`ManifestLog::publish`] are for the holder
//! of the writers' lock, after [`ManifestLog::catch_up`] in the same critical section.

use std::io;
use std::sync::{Arc, OnceLock};

use super::data::resemble;
use super::error::{NotAStore, StoreError};
use crate::format::frame::{self, Log};
use crate::format::manifest::{Change, ChangeKind};
use crate::format::upstream::{self, TableLayout};
use crate::format::{Edit, FormatError, Op, Table, names};
use crate::sys::{FileAccess, FileStat, SharedWord, Storage, StorageFile};

/// The log may grow to this many bytes beyond twice its snapshot before a new snapshot is published: opening a
/// store then reads a few thousand frames at the most, and a publication's syncs are spread over as many commits.
const MAX_LOG_LEN: u64 = 256 << 10;

/// A reader without a lock may see a torn end being cut off and written anew; it looks again this often.
const READ_ATTEMPTS: usize = 3;

/// Longest manifest that is read.
const MAX_MANIFEST_LEN: u64 = 1 << 32;

/// An open manifest and the table that it holds.
#[derive(Debug)]
pub(super) struct ManifestLog {
    file: Arc<dyn StorageFile>,
    pub(super) access: FileAccess,
    /// Which file this is, and how many names it has: a rename over it takes one away.
    stat: FileStat,
    /// The published length in the file's header, where it can be mapped, which is when it is first asked for.
    published: OnceLock<Option<Box<dyn SharedWord>>>,
    store_id: [u8; frame::STORE_ID_LEN],
    /// End of the last frame that is in `table`.
    end: u64,
    /// Length of the file when it was last looked at: more than `end` if a writer died within a frame.
    file_len: u64,
    snapshot_end: u64,
    /// Length of the manifest that is known to be on the disk.
    synced_len: u64,
    /// Arrays that the last frame of somebody else gave rows or blocks: should he have died before he wrote their
    /// headers, the next writer does.
    pub(super) lagging: Vec<Arc<str>>,
    pub(super) table: Table,
    /// The layout of the file, if NumPack 0.1 to 0.7 wrote it. Then it is only read, and only as a whole.
    pub(super) upstream: Option<TableLayout>,
    /// The table was put together from what is left of a store: no file says it, and none is followed.
    is_detached: bool,
}

impl ManifestLog {
    /// Reads the manifest of the store in `storage`.
    pub(super) fn load(storage: &dyn Storage, access: FileAccess) -> Result<Self, StoreError> {
        let file = match storage.open(names::MANIFEST, access) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let found = without_manifest(storage);
                return Err(StoreError::NotAStore { path: storage.path().to_owned(), found });
            }
            Err(source) => {
                // What can only be read needs no right to write.
                let may_read = access == FileAccess::Write
                    && matches!(
                        source.kind(),
                        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                    );
                return match may_read.then(|| Self::load(storage, FileAccess::Read)) {
                    Some(Ok(manifest)) if manifest.upstream.is_some() => Ok(manifest),
                    _ => Err(StoreError::io("open", storage.path(), names::MANIFEST, source)),
                };
            }
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match Self::read(storage, &file, access) {
                Err(StoreError::Format { .. }) if attempts < READ_ATTEMPTS => {}
                result => return result,
            }
        }
    }

    fn read(
        storage: &dyn Storage,
        file: &Arc<dyn StorageFile>,
        access: FileAccess,
    ) -> Result<Self, StoreError> {
        let damaged = |source| StoreError::Format { path: storage.path().join(names::MANIFEST), source };
        let stat = file.stat().map_err(|e| StoreError::io("stat", storage.path(), names::MANIFEST, e))?;
        let bytes = Arc::new(read_range(storage, &**file, 0, stat.len)?);
        let store_id = match frame::parse_header(&bytes) {
            Ok(store_id) => store_id,
            Err(source) => return Self::read_foreign(storage, file, access, stat, &bytes, source),
        };
        let mut log = Log::new(bytes.get(frame::HEADER_LEN..).unwrap_or(&[]), frame::HEADER_LEN as u64);
        let snapshot = log.next().map_err(damaged)?.ok_or_else(|| {
            damaged(FormatError::Truncated {
                part: "the snapshot",
                needed: (frame::HEADER_LEN + frame::FRAME_HEADER_LEN) as u64,
                found: stat.len,
            })
        })?;
        let start = frame::HEADER_LEN + frame::FRAME_HEADER_LEN;
        let payload = start..start + snapshot.payload.len();
        let table = Table::decode_shared(Arc::clone(&bytes), payload, snapshot.offset).map_err(damaged)?;
        let mut manifest = Self {
            file: Arc::clone(file),
            access,
            stat,
            published: OnceLock::new(),
            store_id,
            end: snapshot.end,
            file_len: stat.len,
            snapshot_end: snapshot.end,
            synced_len: snapshot.end,
            lagging: Vec::new(),
            table,
            upstream: None,
            is_detached: false,
        };
        manifest.fold(&mut log, &mut |_| ()).map_err(damaged)?;
        Ok(manifest)
    }

    /// Reads a file that does not begin like ours, if NumPack 0.1 to 0.7 wrote it, and tells whose it is if not.
    fn read_foreign(
        storage: &dyn Storage,
        file: &Arc<dyn StorageFile>,
        access: FileAccess,
        stat: FileStat,
        bytes: &[u8],
        source: FormatError,
    ) -> Result<Self, StoreError> {
        if matches!(source, FormatError::Magic { .. }) {
            let mut head = [0; frame::MAGIC.len()];
            let backup = storage
                .open(names::MANIFEST_BACKUP, FileAccess::Read)
                .and_then(|file| file.read_at(&mut head, 0));
            if backup.is_ok() && head == *frame::MAGIC {
                let path = storage.path().to_owned();
                return Err(StoreError::NotAStore { path, found: NotAStore::Overwritten });
            }
            if upstream::is_table(bytes) {
                let (table, layout) = super::upstream::load(storage, bytes)?;
                return Ok(Self {
                    file: Arc::clone(file),
                    access,
                    stat,
                    published: OnceLock::from(None),
                    // Another one each time: what changed between two tables of these nobody can tell.
                    store_id: super::new_store_id(storage)?,
                    end: stat.len,
                    file_len: stat.len,
                    snapshot_end: stat.len,
                    synced_len: 0,
                    lagging: Vec::new(),
                    table,
                    upstream: Some(layout),
                    is_detached: false,
                });
            }
        }
        Err(StoreError::Format { path: storage.path().join(names::MANIFEST), source })
    }

    /// Starts a manifest with the arrays of `table`, publishes it, and returns when it is on the disk.
    pub(super) fn create(
        storage: &dyn Storage,
        store_id: [u8; frame::STORE_ID_LEN],
        table: Table,
    ) -> Result<Self, StoreError> {
        let manifest = publish(storage, store_id, table)?;
        storage.sync_dir().map_err(|e| StoreError::io("sync", storage.path(), "", e))?;
        Ok(manifest)
    }

    /// The manifest that a store without a readable one would have. `file` is any file; nothing of it is read.
    pub(super) fn detached(file: Arc<dyn StorageFile>, table: Table) -> io::Result<Self> {
        Ok(Self {
            stat: file.stat()?,
            published: OnceLock::from(None),
            file,
            access: FileAccess::Read,
            store_id: [0; frame::STORE_ID_LEN],
            end: 0,
            file_len: 0,
            snapshot_end: 0,
            synced_len: 0,
            lagging: Vec::new(),
            table,
            upstream: None,
            is_detached: true,
        })
    }

    fn published(&self) -> Option<&dyn SharedWord> {
        let map = || self.file.word(frame::PUBLISHED_OFFSET, self.access).ok();
        self.published.get_or_init(map).as_deref()
    }

    /// Whether it is certain, without asking the system, that nothing was committed since the last catching up, and
    /// that nothing follows the last frame: a writer takes the published length away before it writes.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_detached || self.published().is_some_and(|word| word.load() == self.end)
    }

    /// Reads what was committed since, and tells `changed`. Returns whether it was anything.
    ///
    /// With the lock held (`locked`) what it finds is all there is; without, there may be more by now. Who has the lock
    /// calls [`ManifestLog::publish_length`] when what writers that died had to do is done.
    pub(super) fn catch_up(
        &mut self,
        storage: &dyn Storage,
        locked: bool,
        changed: &mut dyn FnMut(Change),
    ) -> Result<bool, StoreError> {
        if self.is_detached {
            return Ok(false);
        }
        let failed = |e| StoreError::io("stat", storage.path(), names::MANIFEST, e);
        if locked && !storage.has_far_locks().map_err(failed)? {
            self.file.forget_cached().map_err(failed)?;
        }
        let stat = self.file.stat().map_err(failed)?;
        let retired = self.published().is_none_or(|word| word.load() == frame::RETIRED);
        if retired || stat.nlink != self.stat.nlink {
            let named = storage.stat(names::MANIFEST).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => StoreError::NotAStore {
                    path: storage.path().to_owned(),
                    found: without_manifest(storage),
                },
                _ => StoreError::io("stat", storage.path(), names::MANIFEST, source),
            })?;
            let is_rewritten =
                self.upstream.is_some() && (named.len, named.mtime) != (self.stat.len, self.stat.mtime);
            if is_rewritten || !named.is_same_file(&self.stat) {
                let new = Self::load(storage, self.access)?;
                let path = || storage.path().join(names::MANIFEST);
                let damaged = |source| StoreError::Format { path: path(), source };
                if new.store_id == self.store_id {
                    difference(&self.table, &new.table, changed).map_err(damaged)?;
                } else {
                    // A store that was made anew gives its arrays identities that those of the old one had.
                    difference(&self.table, &Table::default(), changed).map_err(damaged)?;
                    difference(&Table::default(), &new.table, changed).map_err(damaged)?;
                }
                *self = new;
                return Ok(true);
            }
            self.stat = stat;
        }
        if self.upstream.is_some() {
            return Ok(false);
        }
        self.file_len = stat.len;
        let before = self.end;
        let bytes = read_range(storage, &*self.file, before, stat.len.max(before))?;
        match self.fold(&mut Log::new(&bytes, before), changed) {
            // Without the lock, a bad frame may be one that is being written.
            Err(FormatError::Checksum { .. }) if !locked => {}
            result => result.map_err(|source| StoreError::Format {
                path: storage.path().join(names::MANIFEST),
                source,
            })?,
        }
        Ok(self.end > before)
    }

    fn fold(&mut self, log: &mut Log<'_>, changed: &mut dyn FnMut(Change)) -> Result<(), FormatError> {
        while let Some(frame) = log.next()? {
            self.table.apply_payload(frame.payload, frame.offset, &mut self.lagging, changed)?;
            self.end = frame.end;
            self.synced_len = self.synced_len.max(frame.synced_len.min(frame.end));
        }
        Ok(())
    }

    /// Commits `ops` as one frame. With `durable`, returns when it is on the disk. The caller calls
    /// [`ManifestLog::publish_length`] when what follows a commit is done.
    ///
    /// On error nothing was committed, or, if the disk failed, nobody knows: the caller must stop writing.
    pub(super) fn append(
        &mut self,
        storage: &dyn Storage,
        time: i64,
        ops: Vec<Op>,
        durable: bool,
        changed: &mut dyn FnMut(Change),
    ) -> Result<(), StoreError> {
        let generation = crate::format::Generation(self.table.generation().0 + 1);
        let edit = Edit { generation, time, ops };
        let bytes = frame::encode(&edit.encode(), self.synced_len)?;
        let failed = |action, source| StoreError::io(action, storage.path(), names::MANIFEST, source);
        // From here on, until the commit is complete, everybody must look at the file itself.
        self.retire(storage)?;
        // Bytes after the last good frame are the torn end of a writer that died. They go before the frame comes:
        // it might be shorter than they are.
        if self.file_len > self.end {
            self.file.set_len(self.end).map_err(|e| failed("truncate", e))?;
        }
        self.file_len = self.end + bytes.len() as u64; // or less, if the next call fails
        self.file.write_at(&bytes, self.end).map_err(|e| failed("write", e))?;
        if durable {
            self.file.sync_data().map_err(|e| failed("sync", e))?;
        }
        self.table.apply(&edit, changed)?;
        self.end += bytes.len() as u64;
        if durable {
            self.synced_len = self.end;
        }
        self.lagging.clear();
        Ok(())
    }

    /// Lets all who have the manifest in `storage` open look for another one, if it is one of ours.
    pub(super) fn retire_named(storage: &dyn Storage) {
        let mut header = [0; frame::HEADER_LEN];
        let word = storage.open(names::MANIFEST, FileAccess::Write).and_then(|file| {
            file.read_at(&mut header, 0)?;
            frame::parse_header(&header).map_err(|_| io::ErrorKind::InvalidData)?;
            file.word(frame::PUBLISHED_OFFSET, FileAccess::Write)
        });
        if let Ok(word) = word {
            word.store(frame::RETIRED);
        }
    }

    /// Makes all frames so far durable.
    pub(super) fn sync(&mut self, storage: &dyn Storage) -> Result<(), StoreError> {
        let end = self.end;
        if self.synced_len == end {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| StoreError::io("sync", storage.path(), names::MANIFEST, e))?;
        self.synced_len = self.synced_len.max(end);
        Ok(())
    }

    /// Whether the log has grown so long that a new snapshot is due.
    pub(super) fn wants_snapshot(&self) -> bool {
        self.end - self.snapshot_end > MAX_LOG_LEN + 2 * self.snapshot_end
    }

    /// Replaces the manifest by a new file with nothing but a snapshot. The caller syncs the directory before anything
    /// else is committed.
    pub(super) fn publish(&mut self, storage: &dyn Storage) -> Result<(), StoreError> {
        // Readers of the old file must look for the new one from now on; should this fail, they look in vain.
        self.retire(storage)?;
        *self = publish(storage, self.store_id, self.table.clone())?;
        Ok(())
    }

    /// Lets all who have this file open look whether it grew, or whether another one has taken its place.
    pub(super) fn retire(&self, storage: &dyn Storage) -> Result<(), StoreError> {
        if let Some(word) = self.published() {
            word.store(frame::RETIRED);
            return Ok(());
        }
        // A table of NumPack 0.1 to 0.7 has other bytes there.
        if self.upstream.is_some() {
            return Ok(());
        }
        // Those may have it mapped who serve the file system that this process finds no mapping of.
        let retired = self.file.write_at(&frame::RETIRED.to_le_bytes(), frame::PUBLISHED_OFFSET as u64);
        retired.map_err(|source| StoreError::io("write", storage.path(), names::MANIFEST, source))
    }

    /// Tells all who have this file open how long it is, if they see at once what is written to it, and that nothing is
    /// left to be done: no header, no file to be removed, no torn end. Who knows this length looks no further.
    pub(super) fn publish_length(&self) {
        if self.file_len == self.end
            && let Some(word) = self.published()
        {
            word.store(self.end);
        }
    }
}

fn publish(
    storage: &dyn Storage,
    store_id: [u8; frame::STORE_ID_LEN],
    table: Table,
) -> Result<ManifestLog, StoreError> {
    let failed = |action, source| StoreError::io(action, storage.path(), names::MANIFEST, source);
    let snapshot = frame::encode(&table.encode(), 0)?;
    let end = (frame::HEADER_LEN + snapshot.len()) as u64;
    let mut bytes = frame::encode_header(store_id, end).to_vec();
    bytes.extend_from_slice(&snapshot);
    let file = storage.create_unnamed().map_err(|e| failed("create", e))?;
    // Who may not read the one before may not read this one either.
    if let Some(before) = storage.stat(names::MANIFEST).ok().filter(FileStat::is_file) {
        resemble(&*file, &before).map_err(|e| failed("change the permissions of", e))?;
    }
    file.write_at(&bytes, 0).map_err(|e| failed("write", e))?;
    file.sync_data().map_err(|e| failed("sync", e))?;
    storage.replace(&file, names::MANIFEST).map_err(|e| failed("replace", e))?;
    if let Err(error) = storage.link_existing(names::MANIFEST, names::MANIFEST_BACKUP) {
        log::warn!("{}: no {} was made: {error}", storage.path().display(), names::MANIFEST_BACKUP);
    }
    Ok(ManifestLog {
        stat: file.stat().map_err(|e| failed("stat", e))?,
        published: OnceLock::new(),
        file,
        access: FileAccess::Write,
        store_id,
        end,
        file_len: end,
        snapshot_end: end,
        synced_len: end,
        lagging: Vec::new(),
        table,
        upstream: None,
        is_detached: false,
    })
}

/// What changed between two tables of one store, when the frames between them are not there any more.
fn difference(old: &Table, new: &Table, changed: &mut dyn FnMut(Change)) -> Result<(), FormatError> {
    let (old, new) = (old.records()?, new.records()?);
    let by_id: std::collections::HashMap<_, _> = new.iter().map(|record| (record.id, record)).collect();
    for was in &old {
        let now = by_id.get(&was.id);
        let kind = match now {
            None => ChangeKind::Removed,
            Some(now) if now.name != was.name => ChangeKind::Renamed { from: Arc::clone(&was.name) },
            Some(_) => continue,
        };
        let name = now.map_or(&was.name, |now| &now.name);
        changed(Change { name: Arc::clone(name), id: was.id, kind, is_own: false });
    }
    let by_id: std::collections::HashMap<_, _> = old.iter().map(|record| (record.id, record)).collect();
    for now in &new {
        let kind = match by_id.get(&now.id) {
            None => ChangeKind::Added,
            Some(was) if was.layout != now.layout || was.deleted != now.deleted => ChangeKind::Resized,
            Some(was) if was.mtime != now.mtime || was.blocks != now.blocks => ChangeKind::Written,
            Some(was) if was.attrs != now.attrs => ChangeKind::Attrs,
            Some(_) => continue,
        };
        changed(Change { name: Arc::clone(&now.name), id: now.id, kind, is_own: false });
    }
    Ok(())
}

/// What `read_range` reads of a manifest at the most.
pub(super) fn check_manifest_len(storage: &dyn Storage, len: u64) -> Result<(), StoreError> {
    if len <= MAX_MANIFEST_LEN {
        return Ok(());
    }
    let source = FormatError::TooLong { part: "the manifest", len, max: MAX_MANIFEST_LEN };
    Err(StoreError::Format { path: storage.path().join(names::MANIFEST), source })
}

fn read_range(
    storage: &dyn Storage,
    file: &dyn StorageFile,
    start: u64,
    end: u64,
) -> Result<Vec<u8>, StoreError> {
    check_manifest_len(storage, end)?;
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    let read = file
        .read_at(&mut bytes, start)
        .map_err(|source| StoreError::io("read", storage.path(), names::MANIFEST, source))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// What a directory without a manifest is.
fn without_manifest(storage: &dyn Storage) -> NotAStore {
    match storage.list() {
        Ok(files) if files.iter().any(|file| upstream::is_data_file(file)) => NotAStore::ManifestLost,
        _ => NotAStore::NoManifest,
    }
}
