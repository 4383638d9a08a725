//! The elements of an array under construction, compressed while they are written: in any order, in bounded memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::block_writer::WriteError;
use super::blocks::ReadError;
use super::data::DataFile;
use super::error::StoreError;
use super::new_blocks::NewBlocks;
use crate::format::npy::NpyHeader;
use crate::format::{Blocks, Compression, Layout};
use crate::sys::StorageFile;

/// Raw bytes that are collected before they are compressed, on all cores.
const MAX_OPEN_LEN: usize = 8 << 20;

/// Elements of an array whose header is known, as blocks in a file that nobody else sees. What was not written is
/// zeros, and takes no space.
pub(super) struct DraftBlocks {
    new: NewBlocks,
    nbytes: u64,
    /// Blocks that were written to and are not compressed yet.
    open: BTreeMap<u64, Vec<u8>>,
    open_len: usize,
}

impl DraftBlocks {
    /// Begins an array with this header, whose bytes are `bytes`, in the empty file `file`.
    pub(super) fn begin(
        file: &Arc<dyn StorageFile>,
        bytes: Vec<u8>,
        header: &NpyHeader,
        layout: &Layout,
        compression: &Compression,
    ) -> Result<Self, StoreError> {
        let data = Arc::new(DataFile::new(Arc::clone(file)));
        let new = NewBlocks::new(data, bytes, &header.dtype, layout, compression)?;
        Ok(Self { new, nbytes: layout.nbytes(), open: BTreeMap::new(), open_len: 0 })
    }

    /// The file.
    pub(super) fn data(&self) -> &Arc<DataFile> {
        self.new.data()
    }

    /// Reads from byte `offset` of the elements on; `out` ends where they end, or before.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), (u64, ReadError)> {
        let (mut offset, mut out) = (offset, out);
        let mut raw = Vec::new();
        while !out.is_empty() {
            let (block, within) = self.position(offset);
            let len = out.len().min(self.raw_len(block) - within);
            let (now, rest) = out.split_at_mut(len);
            match self.open.get(&block) {
                Some(bytes) => now.copy_from_slice(&bytes[within..within + len]),
                None => {
                    raw.resize(self.raw_len(block), 0);
                    self.new.read_block(block, &mut raw).map_err(|error| (block, error))?;
                    now.copy_from_slice(&raw[within..within + len]);
                }
            }
            offset += len as u64;
            out = rest;
        }
        Ok(())
    }

    /// Writes from byte `offset` of the elements on; `data` ends where they end, or before.
    pub(super) fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), WriteError> {
        let (mut offset, mut data) = (offset, data);
        while !data.is_empty() {
            let (block, within) = self.position(offset);
            let raw_len = self.raw_len(block);
            let len = data.len().min(raw_len - within);
            let (now, rest) = data.split_at(len);
            if !self.open.contains_key(&block) {
                let mut raw = vec![0; raw_len];
                if len < raw_len {
                    let read = self.new.read_block(block, &mut raw);
                    read.map_err(|error| WriteError::Read(block, error))?;
                }
                self.open.insert(block, raw);
                self.open_len += raw_len;
            }
            let raw = self.open.get_mut(&block).expect("it is there now");
            raw[within..within + len].copy_from_slice(now);
            offset += len as u64;
            data = rest;
            if self.open_len > MAX_OPEN_LEN.max(2 * self.block_len() as usize) {
                // Who writes one block after the other goes on with the last one.
                self.flush(Some(block))?;
            }
        }
        Ok(())
    }

    /// Writes everything to the file, and says how it is read. More may be written afterwards, and this once more.
    pub(super) fn seal(&mut self) -> Result<Blocks, WriteError> {
        self.flush(None)?;
        self.new.seal()
    }

    /// Compresses the blocks that were written to, but for `kept` and the tail, which is kept until the end.
    fn flush(&mut self, kept: Option<u64>) -> Result<(), WriteError> {
        let n_full = self.nbytes / self.block_len();
        let blocks: Vec<u64> =
            self.open.keys().copied().filter(|block| Some(*block) != kept && *block < n_full).collect();
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let mut raw = Vec::with_capacity(run.len() * self.block_len() as usize);
            run.iter().for_each(|block| raw.extend_from_slice(&self.open[block]));
            self.new.put_full(run[0], &raw)?;
            // They are in the file: nothing is lost if a later one fails.
            for block in run {
                self.open.remove(block);
                self.open_len -= self.block_len() as usize;
            }
        }
        if kept.is_none()
            && let Some(tail) = self.open.get(&n_full)
        {
            self.new.put_tail(tail)?;
        }
        Ok(())
    }

    fn block_len(&self) -> u64 {
        self.new.block_len() as u64
    }

    fn position(&self, offset: u64) -> (u64, usize) {
        let block_len = self.block_len();
        (offset / block_len, (offset % block_len) as usize)
    }

    fn raw_len(&self, block: u64) -> usize {
        let start = block * self.block_len();
        (self.nbytes - start).min(self.block_len()) as usize
    }
}
