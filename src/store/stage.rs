//! New versions of arrays, written whole into files that have no name yet.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::Shared;
use super::data::DataFile;
use super::error::StoreError;
use super::new_blocks::{NewBlocks, with_filter};
use crate::format::npy;
use crate::format::{ArrayId, Attrs, Blocks, Compression, Dtype, Filter, FormatError, Layout, names};

/// Bytes copied at once, between two reports of progress, and compressed at once, on all cores.
const CHUNK_LEN: u64 = 8 << 20;

/// Arrays up to this length are written with their header in one call. For longer ones the header comes first: a
/// file system that gives one write one large piece of memory makes every later small write into it walk the whole.
const SMALL_LEN: usize = 16 << 10;

/// Files from this length on have their space allocated before they are written: writing them takes a third less time,
/// and a full disk says so at once. Of smaller ones a file system that allocates late gives most of those that are soon
/// replaced no space at all, which it would have to take back: where that discards blocks at once, milliseconds each.
const RESERVE_FROM: u64 = 4 << 20;

/// Elements to be stored: contiguous bytes in the order that `fortran_order` says.
#[derive(Debug, Clone)]
pub struct NewArray<'a> {
    /// The dtype.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<u64>,
    /// Whether the first axis varies fastest in `data`.
    pub fortran_order: bool,
    /// The elements.
    pub data: &'a [u8],
}

impl NewArray<'_> {
    /// The layout of the elements, after checking that `data` holds them.
    pub(super) fn layout(&self, name: &str) -> Result<Layout, StoreError> {
        let layout = Layout::new(&self.dtype, &self.shape, self.fortran_order)?;
        if self.data.len() as u64 == layout.nbytes() {
            return Ok(layout);
        }
        let (found, expected) = (self.data.len() as u64, layout.nbytes());
        Err(StoreError::BufferLen { array: name.to_owned(), found, expected })
    }
}

/// A new version of an array, complete in a file that has no name yet.
pub(super) struct Staged {
    pub(super) name: Arc<str>,
    pub(super) data: Arc<DataFile>,
    pub(super) dtype: Dtype,
    pub(super) layout: Layout,
    pub(super) offset: u64,
    pub(super) blocks: Option<Blocks>,
    /// The attributes, if not those of the version before.
    pub(super) attrs: Option<Arc<Attrs>>,
}

/// A new version of an array that is being written, element after element.
pub(super) struct Stage<'a> {
    shared: &'a Shared,
    staged: Staged,
    /// Bytes of elements so far.
    done: u64,
    /// Of a compressed array.
    blocks: Option<StageBlocks>,
}

/// The compressed part of a [`Stage`].
struct StageBlocks {
    new: NewBlocks,
    /// Elements that do not fill a block yet, or of which there are too few to be worth all cores.
    pending: Vec<u8>,
}

impl<'a> Stage<'a> {
    /// Begins a version with an empty file.
    fn begin_file(
        shared: &'a Shared,
        name: &Arc<str>,
        dtype: &Dtype,
        layout: Layout,
        header: &[u8],
    ) -> Result<Self, StoreError> {
        let file = shared.storage.create_unnamed().map_err(|e| failed(shared, name, "create", e))?;
        let staged = Staged {
            name: Arc::clone(name),
            data: Arc::new(DataFile::new(file)),
            dtype: dtype.clone(),
            layout,
            offset: header.len() as u64,
            blocks: None,
            attrs: None,
        };
        Ok(Self { shared, staged, done: 0, blocks: None })
    }

    /// Begins a version that has the `.npy` header `header`.
    pub(super) fn begin(
        shared: &'a Shared,
        name: &Arc<str>,
        dtype: &Dtype,
        layout: Layout,
        header: Vec<u8>,
        compression: Option<&Compression>,
    ) -> Result<Self, StoreError> {
        let mut stage = Self::begin_file(shared, name, dtype, layout, &header)?;
        let Staged { data, layout, offset, .. } = &stage.staged;
        if let Some(compression) = compression {
            let new = NewBlocks::new(Arc::clone(data), header, dtype, layout, compression)?;
            stage.blocks = Some(StageBlocks { new, pending: Vec::new() });
        } else {
            let len = offset + layout.nbytes();
            if len >= RESERVE_FROM {
                data.file.reserve(len).map_err(|e| stage.failed("reserve space for", e))?;
            }
            stage.write(0, &header)?;
        }
        Ok(stage)
    }

    /// A version whose elements are all zeros, and take no space.
    pub(super) fn zeros(
        shared: &'a Shared,
        name: &Arc<str>,
        dtype: &Dtype,
        layout: Layout,
        header: Vec<u8>,
        compression: Option<&Compression>,
    ) -> Result<Staged, StoreError> {
        let nbytes = layout.nbytes();
        let stage = match compression {
            Some(_) => Self::begin(shared, name, dtype, layout, header, compression)?,
            None => {
                // Without reserving space for what may never be written.
                let stage = Self::begin_file(shared, name, dtype, layout, &header)?;
                stage.write(0, &header)?;
                let file = &stage.staged.data.file;
                let len = stage.staged.offset + nbytes;
                file.set_len(len).map_err(|e| stage.failed("change the length of", e))?;
                stage
            }
        };
        match stage.blocks {
            None => Ok(stage.staged),
            Some(StageBlocks { mut new, .. }) => {
                let sealed = new.seal();
                let blocks = Some(sealed.map_err(|error| shared.put_failed(name, error))?);
                Ok(Staged { blocks, ..stage.staged })
            }
        }
    }

    /// Puts elements behind those so far.
    pub(super) fn push(&mut self, elements: &[u8]) -> Result<(), StoreError> {
        let at = self.done;
        self.done += elements.len() as u64;
        let Some(mut blocks) = self.blocks.take() else {
            return self.write(self.staged.offset + at, elements);
        };
        let pushed = if blocks.pending.is_empty() && self.done == self.staged.layout.nbytes() {
            // All there is: no copy is needed.
            self.put(&mut blocks, at, elements)
        } else {
            blocks.pending.extend_from_slice(elements);
            if blocks.pending.len() as u64 >= CHUNK_LEN.max(blocks.new.block_len() as u64) {
                let pending = std::mem::take(&mut blocks.pending);
                self.put(&mut blocks, self.done - pending.len() as u64, &pending)
            } else {
                Ok(())
            }
        };
        self.blocks = Some(blocks);
        pushed
    }

    /// Puts `len` bytes of a file, from `offset` on, behind the elements so far, and returns how many there were. The
    /// version must not be compressed. Where the file system can share space among files, the copy takes none.
    pub(super) fn copy(&mut self, src: BorrowedFd<'_>, offset: u64, len: u64) -> Result<u64, StoreError> {
        let copied = self.staged.data.file.copy_from(src, offset, self.staged.offset + self.done, len);
        let copied = copied.map_err(|e| self.failed("write", e))?;
        self.done += copied;
        Ok(copied)
    }

    /// Encodes the whole blocks of `elements`, which begin with a block at byte `at`, and keeps what follows them.
    fn put(&self, blocks: &mut StageBlocks, at: u64, elements: &[u8]) -> Result<(), StoreError> {
        let block_len = blocks.new.block_len();
        let full = elements.len() - elements.len() % block_len;
        let put = blocks.new.put_full(at / block_len as u64, &elements[..full]);
        put.map_err(|error| self.shared.put_failed(&self.staged.name, error))?;
        blocks.pending = elements[full..].to_vec();
        Ok(())
    }

    /// The version with all its elements.
    pub(super) fn finish(mut self) -> Result<Staged, StoreError> {
        if let Some(mut blocks) = self.blocks.take() {
            let pending = std::mem::take(&mut blocks.pending);
            self.put(&mut blocks, self.done - pending.len() as u64, &pending)?;
            let sealed = blocks.new.put_tail(&blocks.pending).and_then(|()| blocks.new.seal());
            let sealed = sealed.map_err(|error| self.shared.put_failed(&self.staged.name, error))?;
            self.staged.blocks = Some(sealed);
        }
        Ok(self.staged)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.staged.data.file.write_at(bytes, offset).map_err(|e| self.failed("write", e))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StoreError {
        failed(self.shared, &self.staged.name, action, source)
    }
}

fn failed(shared: &Shared, name: &str, action: &'static str, source: io::Error) -> StoreError {
    StoreError::io(action, shared.storage.path(), &names::data_file(name, ArrayId(0)), source)
}

impl Shared {
    /// Writes a new version of an array into a file without a name.
    pub(super) fn stage(
        &self,
        name: &str,
        array: &NewArray<'_>,
        compression: Option<&Compression>,
    ) -> Result<Staged, StoreError> {
        names::check(name)?;
        let layout = array.layout(name)?;
        let header = npy::encode(&array.dtype, &layout)?;
        let name: Arc<str> = name.into();
        if compression.is_some() || array.data.len() > SMALL_LEN {
            let mut stage = Stage::begin(self, &name, &array.dtype, layout, header, compression)?;
            stage.push(array.data)?;
            return stage.finish();
        }
        // One write for a small array; the copy costs less than a second call.
        let file = self.storage.create_unnamed().map_err(|e| failed(self, &name, "create", e))?;
        let bytes = [&header, array.data].concat();
        file.write_at(&bytes, 0).map_err(|e| failed(self, &name, "write", e))?;
        let (dtype, offset) = (array.dtype.clone(), header.len() as u64);
        let data = Arc::new(DataFile::new(file));
        Ok(Staged { name, data, dtype, layout, offset, blocks: None, attrs: None })
    }

    /// Copies a `.npy` file as it is, header included.
    pub(super) fn stage_npy(
        &self,
        name: &str,
        path: &Path,
        compression: Option<&Compression>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Staged, StoreError> {
        if let Some(compression) = compression {
            compression.codec(Filter::None)?;
        }
        let read = |action, source| StoreError::Io { action, path: path.to_owned(), source };
        let source = fs::File::open(path).map_err(|e| read("open", e))?;
        let metadata = source.metadata().map_err(|e| read("stat", e))?;
        if !metadata.is_file() {
            return Err(read("import", io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let malformed = |source| StoreError::Format { path: path.to_owned(), source };
        let (bytes, header) = read_npy_header(&source).map_err(|e| read("read", e))?;
        let header = header.map_err(malformed)?;
        let layout = Layout::new(&header.dtype, &header.shape, header.fortran_order).map_err(malformed)?;
        let needed = header.header_len + layout.nbytes();
        let truncated = |found| malformed(FormatError::Truncated { part: "the array", needed, found });
        if metadata.len() < needed {
            return Err(truncated(metadata.len()));
        }
        let read_at = |out: &mut [u8], offset| match source.read_exact_at(out, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(truncated(offset)),
            result => result.map_err(|e| read("read", e)),
        };
        let sampled = |offset, out: &mut [u8]| read_at(out, header.header_len + offset);
        let compression =
            compression.map(|to| with_filter(to, &header.dtype, layout.nbytes(), sampled)).transpose()?;
        let mut stage = Stage::begin(self, &name.into(), &header.dtype, layout, bytes, compression.as_ref())?;
        let mut done = header.header_len;
        let mut buf = Vec::new();
        while done < needed {
            let len = CHUNK_LEN.min(needed - done);
            let copied = if compression.is_some() {
                buf.resize(len as usize, 0);
                read_at(&mut buf, done)?;
                stage.push(&buf)?;
                len
            } else {
                stage.copy(source.as_fd(), done, len)?
            };
            if copied < len {
                return Err(truncated(done + copied));
            }
            done += copied;
            progress(done);
        }
        stage.finish()
    }
}

/// Reads and parses the header of a `.npy` file.
fn read_npy_header(file: &fs::File) -> io::Result<(Vec<u8>, Result<npy::NpyHeader, FormatError>)> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    file.take(npy::PREFIX_LEN as u64).read_to_end(&mut bytes)?;
    match npy::header_len(&bytes) {
        Ok(len) => file.take((len - bytes.len().min(len)) as u64).read_to_end(&mut bytes)?,
        Err(error) => return Ok((bytes, Err(error))),
    };
    let header = npy::parse(&bytes);
    Ok((bytes, header))
}
