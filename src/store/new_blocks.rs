//! The blocks of a new version of a compressed array, in a file that has no name yet.

use std::ops::Range;
use std::sync::Arc;

use super::Shared;
use super::block_writer::{BlockWriter, Space, WriteError};
use super::blocks::{ReadError, View};
use super::data::DataFile;
use super::error::StoreError;
use crate::codec;
use crate::format::block_index::{FILE_HEADER_LEN, FileHeader, SLOT_LEN, SLOT_OFFSETS, Slot};
use crate::format::{ArrayId, Blocks, Compression, Dtype, Filter, Index, Layout, names};

/// What is looked at to choose a filter: this many pieces, none longer than this.
const MAX_SAMPLES: usize = 8;
const SAMPLE_BLOCK_LEN: usize = 64 << 10;

/// Blocks, in any order and as often as somebody likes; those that never come are zeros.
pub(super) struct NewBlocks {
    data: Arc<DataFile>,
    header: Vec<u8>,
    dtype: Dtype,
    nbytes: u64,
    compression: Compression,
    /// Made when there are elements to choose a filter by.
    writer: Option<BlockWriter>,
}

impl NewBlocks {
    /// Begins in an empty file, which will have the `.npy` header `header`.
    pub(super) fn new(
        data: Arc<DataFile>,
        header: Vec<u8>,
        dtype: &Dtype,
        layout: &Layout,
        compression: &Compression,
    ) -> Result<Self, StoreError> {
        compression.codec(Filter::None)?;
        Ok(Self {
            data,
            header,
            dtype: dtype.clone(),
            nbytes: layout.nbytes(),
            compression: *compression,
            writer: None,
        })
    }

    /// The file.
    pub(super) fn data(&self) -> &Arc<DataFile> {
        &self.data
    }

    /// Raw bytes of a full block.
    pub(super) fn block_len(&self) -> usize {
        self.compression.block_len as usize
    }

    /// Encodes and writes the full blocks `first..`, which `raw` holds.
    pub(super) fn put_full(&mut self, first: u64, raw: &[u8]) -> Result<(), WriteError> {
        let nbytes = self.nbytes;
        let writer = self.writer_for(raw);
        writer.put_full(first, raw)?;
        if writer.wants_flush() { writer.flush_index(nbytes) } else { Ok(()) }
    }

    /// Encodes and writes the last, partial block.
    pub(super) fn put_tail(&mut self, raw: &[u8]) -> Result<(), WriteError> {
        self.writer_for(raw).put_tail(raw, false)
    }

    /// Decodes a block, or gives the zeros of one that did not come, to `out`, which has its raw length.
    pub(super) fn read_block(&self, block: u64, out: &mut [u8]) -> Result<(), ReadError> {
        match &self.writer {
            Some(writer) => writer.read_block(block, out),
            None => {
                out.fill(0);
                Ok(())
            }
        }
    }

    /// Writes the index and the headers. More blocks may come afterwards, and this once more.
    pub(super) fn seal(&mut self) -> Result<Blocks, WriteError> {
        let nbytes = self.nbytes;
        let writer = self.writer_for(&[]);
        writer.flush_index(nbytes)?;
        let View { codec, index, .. } = *writer.view();
        let mut header = FileHeader { npy_len: self.header.len() as u64, codec }.to_bytes();
        let slot = Slot { sequence: 0, nbytes, index };
        let at = SLOT_OFFSETS[0] as usize;
        header[at..at + SLOT_LEN].copy_from_slice(&slot.to_bytes());
        header.extend_from_slice(&self.header);
        self.data.file.write_at(&header, 0).map_err(WriteError::Io)?;
        Ok(Blocks { codec, index })
    }

    fn writer_for(&mut self, raw: &[u8]) -> &mut BlockWriter {
        let Self { data, header, dtype, nbytes, compression, writer } = self;
        writer.get_or_insert_with(|| {
            let filter = match compression.filter {
                Some(filter) => filter,
                // It fails only where zstd finds no memory, as encoding will.
                None => codec::choose_filter(dtype, &sample(raw, compression), compression.level)
                    .unwrap_or_default(),
            };
            let codec = compression.codec(filter).expect("it was checked");
            let npy_len = header.len() as u64;
            let view = View {
                index: Index::empty(npy_len),
                codec,
                nbytes: *nbytes,
                itemsize: dtype.itemsize(),
                start: FILE_HEADER_LEN + npy_len,
            };
            BlockWriter::new(Arc::clone(data), view, Space::default())
        })
    }
}

/// A few blocks of `elements`, from all over, to choose a filter by.
fn sample<'a>(elements: &'a [u8], compression: &Compression) -> Vec<&'a [u8]> {
    sample_ranges(elements.len(), compression).map(|range| &elements[range]).collect()
}

/// Where the sample of so many bytes is.
fn sample_ranges(len: usize, compression: &Compression) -> impl Iterator<Item = Range<usize>> {
    let block_len = (compression.block_len as usize).min(SAMPLE_BLOCK_LEN);
    let step = len.div_ceil(block_len).div_ceil(MAX_SAMPLES).max(1);
    (0..len).step_by(step * block_len).map(move |start| start..len.min(start + block_len))
}

/// `compression` with the filter that saving `len` bytes of elements as a whole chooses: for those who write them piece by
/// piece. `read` fills a buffer from an offset on.
pub(super) fn with_filter<E>(
    compression: &Compression,
    dtype: &Dtype,
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Compression, E> {
    if compression.filter.is_some() {
        return Ok(*compression);
    }
    let mut blocks = Vec::new();
    for range in sample_ranges(len as usize, compression) {
        let mut block = vec![0; range.len()];
        read(range.start as u64, &mut block)?;
        blocks.push(block);
    }
    let blocks: Vec<&[u8]> = blocks.iter().map(|block| &**block).collect();
    let filter = codec::choose_filter(dtype, &blocks, compression.level).unwrap_or_default();
    Ok(Compression { filter: Some(filter), ..*compression })
}

impl Shared {
    /// The error of writing blocks of an array that has no file of a name yet.
    pub(super) fn put_failed(&self, name: &str, error: WriteError) -> StoreError {
        let file = names::data_file(name, ArrayId(0));
        match error {
            WriteError::Io(source) => StoreError::io("write", self.storage.path(), &file, source),
            WriteError::Read(_, ReadError::Io(source)) => {
                StoreError::io("read", self.storage.path(), &file, source)
            }
            WriteError::Read(block, ReadError::Fault(offset, what)) => StoreError::Block {
                store: self.storage.path().to_owned(),
                array: name.to_owned(),
                file,
                block,
                offset,
                what: Box::new(what),
            },
        }
    }
}
