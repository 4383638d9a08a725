//! What can be read of the elements of a damaged array, as a new version of it: what is lost is zeros, and the rows
//! that it is in are named.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use rmpv::Value;

use super::super::blocks::{ReadError, View};
use super::super::data::{DataFile, fault};
use super::super::error::{DataFileFault, StoreError};
use super::super::stage::{Stage, Staged};
use super::super::{Array, Shared};
use super::files::slots;
use super::manifest::{is_of_media, read_past};
use crate::format::block_index::Pointer;
use crate::format::npy;
use crate::format::{Attrs, Layout};
use crate::sys::FileAccess;

/// Bytes of elements that are copied at once.
const COPY_LEN: u64 = 8 << 20;
/// Ranges of rows that are named one by one; what is beyond is one range.
const MAX_RANGES: usize = 10_000;

/// The attribute of an array that says which of its rows are lost: pairs of the first and the one after the last.
pub const LOST_ROWS: &str = "npkfs.lost_rows";
/// The same for rows that are as of an earlier commit.
pub const OLDER_ROWS: &str = "npkfs.older_rows";

/// A new version of a damaged array.
pub(super) struct Salvaged {
    pub(super) staged: Staged,
    /// Rows that are zeros, at least in part, because their elements are lost.
    pub(super) lost: Vec<Range<u64>>,
    /// Rows that are, at least in part, as of another commit than the last.
    pub(super) older: Vec<Range<u64>>,
}

/// Reads an array of the store `of`, whatever is wrong with it, into a new version for the store `to`. `states` are those
/// in which its blocks were committed, the newest first. `None` if nothing of it can be read.
pub(super) fn salvage(
    of: &Arc<Shared>,
    to: &Shared,
    array: &Array,
    states: impl Iterator<Item = View>,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<Salvaged>, StoreError> {
    let record = array.record();
    let storage = &*of.storage;
    let file = storage.open(&record.file, FileAccess::Read);
    let file =
        file.map_err(|source| super::super::data::open_failed(storage, record, &record.file, source))?;
    let data = Arc::new(DataFile::new(file));
    let array = Array::of_file(Arc::clone(of), Arc::clone(record), Arc::clone(&data));
    let layout = Layout::new(&record.dtype, array.shape(), array.fortran_order())?;
    let header = match array.npy_header() {
        Ok(header) => header,
        Err(StoreError::DataFile { .. }) => npy::encode(&record.dtype, &layout)?,
        Err(StoreError::Io { source, .. }) if is_of_media(&source) => npy::encode(&record.dtype, &layout)?,
        Err(error) => return Err(error),
    };
    let compression = array.compression();
    let mut stage =
        Stage::begin(to, array.name(), &record.dtype, layout.clone(), header, compression.as_ref())?;
    let mut reader = Reader::new(&array, &data, states).map_err(|e| array_io(of, &array, e))?;
    let (mut lost, mut older) = (Bytes::default(), Bytes::default());
    let mut buf = Vec::new();
    let mut offset = 0;
    while offset < array.nbytes() {
        buf.resize(COPY_LEN.min(array.nbytes() - offset) as usize, 0);
        array.for_each_extent(offset, buf.len() as u64, |position, range| {
            let start = offset + range.start as u64;
            let mut told = |range: Range<usize>, fate| {
                let range = start + range.start as u64..start + range.end as u64;
                match fate {
                    Fate::Lost => lost.push(range),
                    Fate::Older => older.push(range),
                }
            };
            let read = reader.read(position, &mut buf[range], &mut told);
            read.map_err(|source| array_io(of, &array, source))
        })?;
        stage.push(&buf)?;
        offset += buf.len() as u64;
        progress(offset);
    }
    if array.nbytes() > 0 && lost.n == array.nbytes() {
        return Ok(None);
    }
    let (lost, older) = (rows_of(&layout, lost.ranges), rows_of(&layout, older.ranges));
    let mut staged = stage.finish()?;
    let mut attrs = Attrs::clone(&record.attrs);
    for (key, rows) in [(LOST_ROWS, &lost), (OLDER_ROWS, &older)] {
        add_rows(&mut attrs, key, rows);
    }
    staged.attrs = Some(Arc::new(attrs));
    Ok(Some(Salvaged { staged, lost, older }))
}

fn array_io(of: &Shared, array: &Array, source: io::Error) -> StoreError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        let (found, expected) = (0, array.record().data_end());
        return fault(&*of.storage, array.record(), DataFileFault::Short { found, expected });
    }
    StoreError::io("read", of.storage.path(), array.file_name(), source)
}

/// Names rows in an attribute, besides those that it names already.
fn add_rows(attrs: &mut Attrs, key: &str, rows: &[Range<u64>]) {
    if rows.is_empty() {
        return;
    }
    let named = attrs.get(key).and_then(Value::as_array).map_or(&[][..], |named| named);
    let named = named.iter().filter_map(|pair| {
        let pair = pair.as_array()?;
        Some(pair.first()?.as_u64()?..pair.get(1)?.as_u64()?)
    });
    let all = merged(named.chain(rows.iter().cloned()).collect());
    let pair = |range: &Range<u64>| Value::Array(vec![range.start.into(), range.end.into()]);
    attrs.insert(key.to_owned(), Value::Array(all.iter().map(pair).collect()));
}

/// Bytes of the elements, in order.
#[derive(Default)]
struct Bytes {
    ranges: Vec<Range<u64>>,
    n: u64,
}

impl Bytes {
    fn push(&mut self, range: Range<u64>) {
        self.n += range.end - range.start;
        let is_full = self.ranges.len() >= MAX_RANGES;
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start || is_full => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}

/// The rows that bytes of the elements, in stored order, belong to.
fn rows_of(layout: &Layout, bytes: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let n_rows = layout.n_rows();
    let rows = bytes.into_iter().flat_map(|bytes| {
        let none = 0..0;
        if !layout.fortran_order() {
            let row_len = layout.row_len().max(1);
            return [bytes.start / row_len..bytes.end.div_ceil(row_len), none];
        }
        // Down one column after the other.
        let itemsize = layout.itemsize().max(1);
        let (first, end) = (bytes.start / itemsize, bytes.end.div_ceil(itemsize));
        let (row, len) = (first % n_rows.max(1), end - first);
        match row + len {
            _ if len >= n_rows => [0..n_rows, none],
            end if end <= n_rows => [row..end, none],
            end => [0..end - n_rows, row..n_rows],
        }
    });
    merged(rows.collect())
}

/// The same numbers, in order, each once, in as few ranges as can be.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// What became of elements that are not as they were.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Lost,
    Older,
}

/// Reads stored elements past what is damaged.
struct Reader<'a> {
    data: &'a DataFile,
    /// Where the elements begin in a file that is not compressed.
    start: u64,
    /// Of a compressed array: the state that it is in, and others, in which there may be blocks that it has lost.
    views: Vec<View>,
    /// The block that was read last: its number and bytes, how many of them are there, and whether they are older.
    block: Option<(u64, Vec<u8>, usize, bool)>,
}

impl<'a> Reader<'a> {
    fn new(array: &Array, data: &'a DataFile, states: impl Iterator<Item = View>) -> io::Result<Self> {
        let record = array.record();
        let mut views: Vec<View> = View::of(record).into_iter().collect();
        if let Some(own) = views.first().copied() {
            let header = match data.file_header() {
                Err(error) if is_of_media(&error) => Vec::new(),
                header => header?,
            };
            let noted = slots(&header).into_iter();
            let noted = noted.map(|slot| View { index: slot.index, nbytes: slot.nbytes, ..own });
            for view in states.chain(noted) {
                let fits = view.codec == own.codec
                    && view.index.check(view.nbytes, record.offset, &own.codec).is_ok();
                if fits && !views.contains(&view) {
                    views.push(view);
                }
            }
        }
        Ok(Self { data, start: record.elements_offset(), views, block: None })
    }

    /// Fills `out` with the stored elements from byte `position` on; tells `told` of parts of `out` what became of them.
    fn read(
        &mut self,
        position: u64,
        out: &mut [u8],
        told: &mut dyn FnMut(Range<usize>, Fate),
    ) -> io::Result<()> {
        let Some(view) = self.views.first().copied() else {
            let lost = &mut |range| told(range, Fate::Lost);
            return read_past(&*self.data.file, out, self.start + position, lost);
        };
        let block_len = view.block_len();
        let mut done = 0;
        while done < out.len() {
            let at = position + done as u64;
            let (block, within) = (at / block_len, (at % block_len) as usize);
            self.load(block)?;
            let Some((_, bytes, n_there, is_older)) = &self.block else { unreachable!("it was loaded") };
            let len = (out.len() - done).min(bytes.len() - within);
            out[done..done + len].copy_from_slice(&bytes[within..within + len]);
            let there = n_there.saturating_sub(within).min(len);
            if *is_older && there > 0 {
                told(done..done + there, Fate::Older);
            }
            if there < len {
                told(done + there..done + len, Fate::Lost);
            }
            done += len;
        }
        Ok(())
    }

    /// Reads a block in the newest state that has it.
    fn load(&mut self, block: u64) -> io::Result<()> {
        if self.block.as_ref().is_some_and(|(current, ..)| *current == block) {
            return Ok(());
        }
        let raw_len = self.views[0].raw_len(block) as usize;
        let mut tried: Vec<Pointer> = Vec::new();
        for (at, view) in self.views.iter().enumerate() {
            if block >= view.n_blocks() {
                continue;
            }
            let pointer = match self.data.pointer(view, block) {
                Ok(pointer) => pointer,
                Err(error) => {
                    give_up(error)?;
                    continue;
                }
            };
            if tried.contains(&pointer) {
                continue;
            }
            let mut bytes = vec![0; view.raw_len(block) as usize];
            match self.data.read_pointer(view, &pointer, &mut bytes) {
                Ok(()) => {
                    // An earlier tail is the first part of the block that it became.
                    let n_there = bytes.len().min(raw_len);
                    bytes.resize(raw_len, 0);
                    self.block = Some((block, bytes, n_there, at > 0));
                    return Ok(());
                }
                Err(error) => give_up(error)?,
            }
            tried.push(pointer);
        }
        self.block = Some((block, vec![0; raw_len], 0, false));
        Ok(())
    }
}

/// Fails if it is not the block or page that is lost, but something else that is wrong.
fn give_up(error: ReadError) -> io::Result<()> {
    match error {
        ReadError::Io(error) if !is_of_media(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "these are lists of ranges")]
mod tests {
    use super::*;
    use crate::format::Dtype;

    fn layout(shape: &[u64], fortran_order: bool) -> Layout {
        Layout::new(&Dtype::parse_python("'<u2'").unwrap(), shape, fortran_order).unwrap()
    }

    #[test]
    fn bytes_lead_to_the_rows_that_they_are_in() {
        let c = layout(&[10, 3], false);
        assert_eq!(rows_of(&c, vec![0..1, 5..6]), [0..1]);
        assert_eq!(rows_of(&c, vec![5..7, 12..18, 59..60]), [0..3, 9..10]);
        let f = layout(&[10, 3], true);
        assert_eq!(rows_of(&f, vec![0..1]), [0..1]);
        assert_eq!(rows_of(&f, vec![17..23]), [0..2, 8..10]);
        assert_eq!(rows_of(&f, vec![10..30]), [0..10]);
        assert_eq!(rows_of(&layout(&[], false), vec![1..2]), [0..1]);
    }

    #[test]
    fn rows_are_named_besides_those_that_were() {
        let mut attrs = Attrs::new();
        add_rows(&mut attrs, LOST_ROWS, &[]);
        assert!(attrs.is_empty());
        add_rows(&mut attrs, LOST_ROWS, &[3..5, 9..10]);
        add_rows(&mut attrs, LOST_ROWS, &[5..7, 0..1]);
        assert_eq!(attrs[LOST_ROWS].to_string(), "[[0, 1], [3, 7], [9, 10]]");
    }
}
