//! Arrays under construction: the bytes of a `.npy` file, written in any order into a file that nobody else sees, and
//! made an array by one commit when they are whole.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::error::StoreError;
use super::writer::{Commit, Staged, nanos_of, now};
use super::{Array, Shared, Store};
use crate::format::npy::{self, NpyHeader};
use crate::format::{FormatError, Layout, names};
use crate::sys::{FileStat, StorageFile};

/// Bytes copied at once.
const COPY_LEN: u64 = 1 << 20;

/// How often a name for a file that is put aside is tried with another number.
const MAX_NUMBERS: u32 = 100_000;

/// An array under construction. Offsets and lengths are those of the `.npy` file that it is to be.
///
/// Dropping it gives its space back to the disk.
pub struct Draft {
    shared: Arc<Shared>,
    /// Holds the bytes at the offsets that they have in the `.npy` file.
    file: Arc<dyn StorageFile>,
    len: u64,
}

impl Store {
    /// Begins an array. Nobody sees it before [`Store::finish_draft`].
    ///
    /// # Errors
    /// `ReadOnly`; `Io`.
    pub fn begin_draft(&self) -> Result<Draft, StoreError> {
        self.shared.check_writable()?;
        let file = self.shared.storage.create_unnamed();
        let file = file.map_err(|source| StoreError::io("create a file in", self.path(), "", source))?;
        Ok(Draft { shared: Arc::clone(&self.shared), file, len: 0 })
    }

    /// Begins an array with a copy of another one.
    ///
    /// # Errors
    /// As [`Store::begin_draft`]; `DataFile`.
    pub fn begin_draft_of(&self, array: &Array) -> Result<Draft, StoreError> {
        let mut draft = self.begin_draft()?;
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
        let time = nanos_of(draft.stat()?.mtime).min(now());
        let staged = Staged {
            name: name.into(),
            file: Arc::clone(&draft.file),
            dtype: header.dtype,
            layout,
            offset: header.header_len,
        };
        let _guard = self.shared.lock_writers_within(wait)?;
        self.shared.check_free(name, overwrite)?;
        self.shared.commit(Commit { staged: vec![staged], time: Some(time), ..Commit::default() })?;
        self.record(name)
    }

    /// Puts what a draft holds aside, as a file in the folder `lost+found` within the store's, where whoever misses
    /// it finds it. `path` is what it was to be; a number is added to it while that is taken.
    ///
    /// # Errors
    /// `Io`.
    pub fn keep_draft(&self, path: &str, draft: &Draft) -> Result<PathBuf, StoreError> {
        let folder = self.path().join(names::LOST_AND_FOUND);
        let mut file = Arc::clone(&draft.file);
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
        self.file.read_at(&mut buf[..len], offset).map_err(|source| self.io("read", source))
    }

    /// Writes bytes. What lies between the end and `offset` reads as zeros.
    ///
    /// # Errors
    /// `Io`; the length is as before then.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        if let Err(source) = self.file.write_at(data, offset) {
            // A part may have been written.
            let _ = self.file.set_len(self.len);
            return Err(self.io("write", source));
        }
        self.len = self.len.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }

    /// Cuts off what is beyond `len`, or adds zeros up to there.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.file.set_len(len).map_err(|source| self.io("change the length of", source))?;
        self.len = len;
        Ok(())
    }

    /// Asks for disk space for the first `len` bytes.
    ///
    /// # Errors
    /// `Io`, if the disk has less.
    pub fn reserve(&mut self, len: u64) -> Result<(), StoreError> {
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
        self.file.stat().map_err(|source| self.io("stat", source))
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
        self.file.set_times(atime, mtime).map_err(|source| self.io("set the times of", source))
    }

    /// Sets the permission bits of the file that holds the bytes, which the array's data file will have.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_mode(&mut self, mode: u32) -> Result<(), StoreError> {
        self.file.set_mode(mode).map_err(|source| self.io("change the permissions of", source))
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

    /// The bytes in a file of their own.
    fn copied(&self) -> Result<Arc<dyn StorageFile>, StoreError> {
        let storage = &self.shared.storage;
        let failed = |action, source| StoreError::io(action, storage.path(), "", source);
        let file = storage.create_unnamed().map_err(|e| failed("create a file in", e))?;
        let mut bytes = Vec::new();
        let mut done = 0;
        while done < self.len {
            bytes.resize(COPY_LEN.min(self.len - done) as usize, 0);
            self.read_at(done, &mut bytes)?;
            file.write_at(&bytes, done).map_err(|e| failed("write to a new file in", e))?;
            done += bytes.len() as u64;
        }
        Ok(file)
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
