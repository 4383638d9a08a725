//! Arrays under construction: the bytes of a `.npy` file, written in any order into a file that nobody else sees, and
//! made an array by one commit when they are whole.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::block_writer::WriteError;
use super::blocks::ReadError;
use super::data::{DataFile, resemble};
use super::draft_blocks::DraftBlocks;
use super::error::StoreError;
use super::plain::Kept;
use super::stage::{Stage, Staged};
use super::writer::{Commit, nanos_of, now};
use super::{Array, Shared, Store};
use crate::format::npy::{self, NpyHeader};
use crate::format::{Compression, Filter, FormatError, Layout, names};
use crate::sys::{FileStat, StorageFile};

/// Bytes copied at once.
const COPY_LEN: u64 = 1 << 20;

/// How often a name for a file that is put aside is tried with another number.
const MAX_NUMBERS: u32 = 100_000;

/// An array under construction. Offsets and lengths are those of the `.npy` file that it is to be.
///
/// Dropping it gives its space back to the disk.
pub struct Draft {
    pub(super) shared: Arc<Shared>,
    /// Holds the bytes, at the offsets that they have in the `.npy` file or, in `blocks`, compressed.
    file: Arc<dyn StorageFile>,
    len: u64,
    /// How the array is to be compressed.
    compression: Option<Compression>,
    /// Whether the elements are compressed while they come, as soon as the header is known.
    at_once: bool,
    blocks: Option<Box<Compressed>>,
    /// The time of change that was set since the last write.
    mtime: Option<SystemTime>,
    /// Its name among the plain files.
    pub(super) kept: Option<Kept>,
    /// Whether the file may be mapped by those who have a version of an array: it is not to be changed.
    pub(super) is_shared: bool,
}

/// The compressed bytes of a [`Draft`] whose header is known.
struct Compressed {
    header: Vec<u8>,
    /// Length of the whole `.npy` file.
    npy_len: u64,
    elements: DraftBlocks,
}

impl Store {
    /// Begins an array that is to be compressed as `compression` says: while it is written, in bounded memory, if it
    /// comes as a `.npy` file does, its header first. Nobody sees it before [`Store::finish_draft`].
    ///
    /// # Errors
    /// `ReadOnly`; `Refused` for a level or block length outside of its limits; `Io`.
    pub fn begin_draft(&self, compression: Option<&Compression>) -> Result<Draft, StoreError> {
        self.shared.check_writable()?;
        if let Some(compression) = compression {
            compression.codec(Filter::None)?;
        }
        Ok(Draft {
            shared: Arc::clone(&self.shared),
            file: self.shared.new_file()?,
            len: 0,
            compression: compression.copied(),
            at_once: true,
            blocks: None,
            mtime: None,
            kept: None,
            is_shared: false,
        })
    }

    /// Begins an array with a copy of another one, compressed like that, and with its permissions.
    ///
    /// # Errors
    /// As [`Store::begin_draft`]; `DataFile`.
    pub fn begin_draft_of(&self, array: &Array) -> Result<Draft, StoreError> {
        let mut draft = self.begin_draft(array.compression().as_ref())?;
        draft.take_after(array)?;
        let len = array.npy_len();
        draft.reserve(len)?;
        let backing = array.backing()?;
        let mut bytes = Vec::new();
        while draft.len < len {
            let n = COPY_LEN.min(len - draft.len);
            if let Some(fd) = backing {
                let copied = draft.file.copy_from(fd, draft.len, draft.len, n);
                let copied = copied.map_err(|source| draft.io("write", source))?;
                if copied == n {
                    draft.len += n;
                    continue;
                }
            }
            bytes.resize(n as usize, 0);
            array.read_npy_at(draft.len, &mut bytes)?;
            draft.write_at(draft.len, &bytes)?;
        }
        Ok(draft)
    }

    /// Makes an array of a draft, byte for byte, in one commit, and returns it. Waits no longer than `wait` for other
    /// writers.
    ///
    /// The array's time of change is that of the draft's last write, or the one that was set since. After an error
    /// the draft is as it was, and can be finished again.
    ///
    /// # Errors
    /// `Refused` if the bytes are no `.npy` file that NumPy reads without pickle, or not all of one, or for the name;
    /// `Exists` unless `overwrite`; `ReadOnly`; `Locked`; `Io`.
    pub fn finish_draft(
        &self,
        name: &str,
        draft: &mut Draft,
        overwrite: bool,
        wait: Duration,
    ) -> Result<Array, StoreError> {
        self.shared.check_writable()?;
        names::check(name)?;
        let (header, layout) = draft.described()?.map_err(|missing| FormatError::Truncated {
            part: "the array",
            needed: draft.len.saturating_add(missing),
            found: draft.len,
        })?;
        let mtime = draft.stat()?.mtime;
        let staged = draft.staged(name, header, layout)?;
        // Compressing the rest was none of the writer's doing.
        if draft.compression.is_some() {
            let restored = staged.data.file.set_times(None, Some(mtime));
            restored.map_err(|source| draft.io("set the times of", source))?;
        }
        let time = nanos_of(mtime).min(now());
        let _guard = self.shared.lock_writers_within(wait)?;
        self.shared.check_free(name, overwrite)?;
        self.shared.commit(Commit { staged: vec![staged], time: Some(time), ..Commit::default() })?;
        draft.forget();
        self.record(name)
    }

    /// Puts what a draft holds aside, as a file in the folder `lost+found` within the store's, where whoever misses
    /// it finds it. `path` is what it was to be; a number is added to it while that is taken.
    ///
    /// # Errors
    /// `Io`.
    pub fn keep_draft(&self, path: &str, draft: &Draft) -> Result<PathBuf, StoreError> {
        let folder = self.path().join(names::LOST_AND_FOUND);
        let mut file = if draft.blocks.is_some() { draft.copied()? } else { Arc::clone(&draft.file) };
        let mut number = 0;
        loop {
            let name = names::lost_file(path, number);
            let linked = self.shared.storage.link_apart(&file, names::LOST_AND_FOUND, &name);
            let error = match linked {
                Ok(()) => return Ok(folder.join(name)),
                Err(error) => error,
            };
            if error.kind() == std::io::ErrorKind::AlreadyExists && number < MAX_NUMBERS {
                number += 1;
            } else if Arc::ptr_eq(&file, &draft.file) && error.kind() == std::io::ErrorKind::NotFound {
                // A file that had a name and lost it may not be given another one.
                file = draft.copied()?;
            } else {
                return Err(StoreError::io("create", &folder, &name, error));
            }
        }
    }
}

impl Draft {
    /// A draft whose bytes are those of a file.
    pub(super) fn of_file(shared: &Arc<Shared>, file: Arc<dyn StorageFile>, len: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            file,
            len,
            compression: None,
            at_once: false,
            blocks: None,
            mtime: None,
            kept: None,
            is_shared: false,
        }
    }

    /// Sets how the array is to be compressed when it is finished.
    pub fn set_compression(&mut self, compression: Option<Compression>) {
        self.compression = compression;
    }

    /// The file that holds the bytes.
    pub(super) fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    /// Lets the bytes be in the file as they are, now and as long as it has a name.
    pub(super) fn stay_as_it_is(&mut self) -> Result<(), StoreError> {
        if self.blocks.is_some() {
            self.decompress()?;
        }
        self.at_once = false;
        Ok(())
    }

    /// Goes on with a copy of the file.
    pub(super) fn replace_file(&mut self, file: Arc<dyn StorageFile>) {
        self.file = file;
    }

    /// Length of what is there.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads bytes, and returns how many: less than `buf.len()` only at the end.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let len = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        let Some(Compressed { header, elements, .. }) = self.blocks.as_deref() else {
            return self.file.read_at(buf, offset).map_err(|source| self.io("read", source));
        };
        let in_header = (header.len() as u64).saturating_sub(offset).min(len as u64) as usize;
        let (head, rest) = buf.split_at_mut(in_header);
        if in_header > 0 {
            head.copy_from_slice(&header[offset as usize..][..in_header]);
        }
        let at = (offset + in_header as u64).saturating_sub(header.len() as u64);
        elements.read_at(at, rest).map_err(|(block, error)| self.read_failed(block, error))?;
        Ok(len)
    }

    /// Writes bytes. What lies between the end and `offset` reads as zeros.
    ///
    /// # Errors
    /// `Io`; the length is as before then.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        self.own()?;
        self.mtime = None;
        let end = offset.saturating_add(data.len() as u64);
        if let Some(Compressed { header, npy_len, elements }) = self.blocks.as_deref_mut() {
            let in_header = (header.len() as u64).saturating_sub(offset).min(data.len() as u64) as usize;
            let (head, rest) = data.split_at(in_header);
            let is_same = head.is_empty() || header[offset as usize..][..in_header] == *head;
            if is_same && end <= *npy_len {
                let at = (offset + in_header as u64).saturating_sub(header.len() as u64);
                let written = elements.write_at(at, rest);
                written.map_err(|error| self.shared.put_failed("", error))?;
                self.len = self.len.max(end);
                return Ok(());
            }
            // Another header, or more than it promises: no array, or not yet.
            self.decompress()?;
        }
        if let Err(source) = self.file.write_at(data, offset) {
            // A part may have been written.
            let _ = self.file.set_len(self.len);
            return Err(self.io("write", source));
        }
        self.len = self.len.max(end);
        if self.compression.is_some() && self.at_once { self.compress() } else { Ok(()) }
    }

    /// Cuts off what is beyond `len`, or adds zeros up to there.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.own()?;
        self.mtime = None;
        if let Some(Compressed { npy_len, .. }) = self.blocks.as_deref() {
            if self.len <= len && len <= *npy_len {
                self.len = len;
                return Ok(());
            }
            if len == 0 {
                self.move_to(self.shared.new_file()?)?;
            } else {
                self.decompress()?;
            }
        }
        if len == 0 {
            self.at_once = self.kept.is_none();
        }
        self.file.set_len(len).map_err(|source| self.io("change the length of", source))?;
        self.len = len;
        Ok(())
    }

    /// Asks for disk space for the first `len` bytes.
    ///
    /// # Errors
    /// `Io`, if the disk has less.
    pub fn reserve(&mut self, len: u64) -> Result<(), StoreError> {
        if self.compression.is_some() {
            // What it will take is not known.
            return Ok(());
        }
        self.file.reserve(len).map_err(|source| self.io("reserve space for", source))
    }

    /// Returns when the bytes are on the disk. They have no name there before the draft is finished.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|source| self.io("sync", source))
    }

    /// What the system knows about the file that holds the bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn stat(&self) -> Result<FileStat, StoreError> {
        let stat = self.file.stat().map_err(|source| self.io("stat", source))?;
        Ok(FileStat { mtime: self.mtime.unwrap_or(stat.mtime), ..stat })
    }

    /// Sets the times that [`Draft::stat`] shows, until the next write.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_times(
        &mut self,
        atime: Option<SystemTime>,
        mtime: Option<SystemTime>,
    ) -> Result<(), StoreError> {
        self.mtime = mtime.or(self.mtime);
        self.file.set_times(atime, mtime).map_err(|source| self.io("set the times of", source))
    }

    /// Sets the permission bits of the file that holds the bytes, which the array's data file will have.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_mode(&mut self, mode: u32) -> Result<(), StoreError> {
        self.file.set_mode(mode & 0o7777).map_err(|source| self.io("change the permissions of", source))
    }

    /// Sets the owner and the group of the file that holds the bytes, which the array's data file will have, as far as
    /// they are given.
    ///
    /// # Errors
    /// `Io`: only root gives files away.
    pub fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) -> Result<(), StoreError> {
        self.file.set_owner(uid, gid).map_err(|source| self.io("change the owner of", source))
    }

    /// Takes over the permissions of an array's data file, and its owner and group, as far as this process may.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn take_after(&mut self, array: &Array) -> Result<(), StoreError> {
        let resembled = resemble(&*self.file, &array.stat()?);
        resembled.map_err(|source| self.io("change the permissions of", source))
    }

    /// How many bytes are missing at the end, as far as those that are there tell: 0 when the file is whole.
    ///
    /// # Errors
    /// `Refused` if this does not begin like a `.npy` file that NumPy reads without pickle, or goes on behind the
    /// array; `Io`.
    pub fn missing(&self) -> Result<u64, StoreError> {
        Ok(self.described()?.err().unwrap_or(0))
    }

    /// What the header says, or how many bytes are missing.
    fn described(&self) -> Result<Result<(NpyHeader, Layout), u64>, StoreError> {
        let mut bytes = vec![0; npy::PREFIX_LEN];
        let n = self.read_at(0, &mut bytes)?;
        bytes.truncate(n);
        let missing = |needed: u64| Ok(Err(needed.saturating_sub(self.len)));
        if n < npy::PREFIX_LEN {
            let magic = &npy::MAGIC[..n.min(npy::MAGIC.len())];
            if bytes.starts_with(magic) {
                return missing(npy::PREFIX_LEN as u64);
            }
        }
        let header_len = npy::header_len(&bytes)?;
        if self.len < header_len as u64 {
            return missing(header_len as u64);
        }
        bytes.resize(header_len, 0);
        let n = self.read_at(0, &mut bytes)?;
        bytes.truncate(n);
        let header = npy::parse(&bytes)?;
        let layout = Layout::new(&header.dtype, &header.shape, header.fortran_order)?;
        let needed = header.header_len.saturating_add(layout.nbytes());
        if self.len < needed {
            return missing(needed);
        }
        if self.len > needed {
            let what = format!("describes an array that ends at byte {needed}, the file has {}", self.len);
            return Err(FormatError::NpyHeader { what }.into());
        }
        Ok(Ok((header, layout)))
    }

    /// The array as it is to be committed; the draft has all its bytes.
    fn staged(&mut self, name: &str, header: NpyHeader, layout: Layout) -> Result<Staged, StoreError> {
        let name: Arc<str> = name.into();
        let offset = header.header_len;
        if let Some(Compressed { elements, .. }) = self.blocks.as_deref_mut() {
            let blocks = elements.seal().map_err(|error| self.shared.put_failed(&name, error))?;
            let data = Arc::clone(elements.data());
            let blocks = Some(blocks);
            return Ok(Staged { name, data, dtype: header.dtype, layout, offset, blocks, attrs: None });
        }
        let Some(compression) = &self.compression else {
            let data = Arc::new(DataFile::new(Arc::clone(&self.file)));
            return Ok(Staged { name, data, dtype: header.dtype, layout, offset, blocks: None, attrs: None });
        };
        // It did not come in an order in which it could be compressed at once.
        let mut bytes = vec![0; offset as usize];
        self.read_at(0, &mut bytes)?;
        let mut stage = Stage::begin(&self.shared, &name, &header.dtype, layout, bytes, Some(compression))?;
        self.for_each_piece(offset, |_, piece| stage.push(piece))?;
        let staged = stage.finish()?;
        self.hand_on_permissions(&*staged.data.file)?;
        Ok(staged)
    }

    /// Goes on with compressed elements, if the header is known by now.
    fn compress(&mut self) -> Result<(), StoreError> {
        let Some(compression) = self.compression else { return Ok(()) };
        let mut bytes = vec![0; npy::PREFIX_LEN];
        if self.read_at(0, &mut bytes)? < npy::PREFIX_LEN {
            return Ok(());
        }
        let Ok(header_len) = npy::header_len(&bytes) else {
            self.at_once = false;
            return Ok(());
        };
        if self.len < header_len as u64 {
            return Ok(());
        }
        bytes.resize(header_len, 0);
        self.read_at(0, &mut bytes)?;
        let known = npy::parse(&bytes).and_then(|header| {
            let layout = Layout::new(&header.dtype, &header.shape, header.fortran_order)?;
            Ok((header, layout))
        });
        let Ok((header, layout)) = known else {
            self.at_once = false;
            return Ok(());
        };
        let npy_len = header.header_len.saturating_add(layout.nbytes());
        if self.len > npy_len {
            self.at_once = false;
            return Ok(());
        }
        let file = self.shared.new_file()?;
        let mut elements = DraftBlocks::begin(&file, bytes.clone(), &header, &layout, &compression)?;
        self.for_each_piece(header.header_len, |offset, piece| {
            let at = offset - header.header_len;
            elements.write_at(at, piece).map_err(|error| self.shared.put_failed("", error))
        })?;
        let len = self.len;
        self.move_to(file)?;
        self.len = len;
        self.blocks = Some(Box::new(Compressed { header: bytes, npy_len, elements }));
        Ok(())
    }

    /// Goes on with the bytes as they are.
    fn decompress(&mut self) -> Result<(), StoreError> {
        let file = self.copied()?;
        let len = self.len;
        self.move_to(file)?;
        self.len = len;
        self.at_once = false;
        Ok(())
    }

    /// Goes on with another file, and with nothing in it.
    fn move_to(&mut self, file: Arc<dyn StorageFile>) -> Result<(), StoreError> {
        self.hand_on_permissions(&*file)?;
        self.file = file;
        self.blocks = None;
        self.len = 0;
        Ok(())
    }

    fn hand_on_permissions(&self, file: &dyn StorageFile) -> Result<(), StoreError> {
        let own = self.file.stat().map_err(|source| self.io("stat", source))?;
        resemble(file, &own).map_err(|source| self.io("change the permissions of", source))
    }

    /// Calls `f` with the bytes from `offset` on, piece by piece.
    fn for_each_piece(
        &self,
        offset: u64,
        mut f: impl FnMut(u64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        let mut done = offset;
        while done < self.len {
            bytes.resize(COPY_LEN.min(self.len - done) as usize, 0);
            self.read_at(done, &mut bytes)?;
            f(done, &bytes)?;
            done += bytes.len() as u64;
        }
        Ok(())
    }

    /// The bytes in a file of their own. Zeros take no space in it.
    pub(super) fn copied(&self) -> Result<Arc<dyn StorageFile>, StoreError> {
        let file = self.shared.new_file()?;
        file.set_len(self.len).map_err(|source| self.io("change the length of", source))?;
        self.for_each_piece(0, |offset, piece| {
            if piece.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            file.write_at(piece, offset).map_err(|source| self.io("write", source))
        })?;
        self.hand_on_permissions(&*file)?;
        Ok(file)
    }

    fn read_failed(&self, block: u64, error: ReadError) -> StoreError {
        self.shared.put_failed("", WriteError::Read(block, error))
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> StoreError {
        StoreError::io(action, self.shared.storage.path(), "a new file", source)
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("len", &self.len).finish_non_exhaustive()
    }
}
