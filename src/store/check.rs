//! Looks a whole store over without changing it: every frame, every record, every data file, and, where that is asked
//! for, every block.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use super::blocks::{Cursor, ReadError, View};
use super::data::{DataFile, fault, lock};
use super::error::{BlockFault, DataFileFault, StoreError};
use super::{Access, Array, Generation, Store};
use crate::format::block_index::{self, FileHeader, Pointer, Slot};
use crate::format::upstream::{OLD_TABLE, TableLayout};
use crate::format::{BlockKind, names};
use crate::sys::Storage;
use crate::sys::process::{n_cores, share_out};
use crate::sys::sync::Mutex;

/// Bytes of elements that are checked between two reports of progress.
const CHUNK_LEN: u64 = 32 << 20;
/// How often an index is looked at anew because a writer has changed it while it was read.
const MAX_ATTEMPTS: u32 = 100;

/// How much of a store is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The manifest, the headers of data files, and the index of compressed arrays.
    Index,
    /// All elements as well: blocks are checked and decoded; what is not compressed has no checksum, and is only read.
    Elements,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Number of arrays.
    pub n_arrays: u64,
    /// Number of commits so far.
    pub generation: Option<Generation>,
    /// Bytes of the data files that are committed.
    pub nbytes: u64,
    /// Pages of the indexes of compressed arrays that were read.
    pub n_pages: u64,
    /// Blocks that were decoded.
    pub n_blocks: u64,
    /// What is damaged.
    pub problems: Vec<Problem>,
    /// Data files that no record refers to: left by a writer that died, or put there by somebody. No damage.
    pub leftovers: Vec<String>,
    /// The layout of the store, if NumPack 0.1 to 0.7 wrote it.
    pub old_layout: Option<TableLayout>,
    /// An upgrade of the store was interrupted before it had removed the old files.
    pub half_upgraded: bool,
}

/// One thing that is damaged.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The array, where it is one array's.
    pub array: Option<Arc<str>>,
    /// The file.
    pub file: String,
    /// The block, or the first one that an index page leads to, where it is one of these.
    pub block: Option<u64>,
    /// Where the block or page is in the file, in bytes.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// Checks the store at `path` as far as [`Depth::Index`].
///
/// Damage is reported, not an error.
///
/// # Errors
/// `NotAStore`, or `Io` if the store cannot be looked at.
pub fn verify(path: &Path) -> Result<Report, StoreError> {
    verify_with(path, Depth::Index, &mut |_, _, _| ())
}

/// Checks the store at `path`, on all cores. `progress` is told, only with [`Depth::Elements`], which array is looked
/// at, the bytes of elements that were checked so far, and how many there are.
///
/// Damage is reported, not an error. What others write meanwhile is no damage.
///
/// # Errors
/// As [`verify`].
pub fn verify_with(
    path: &Path,
    depth: Depth,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<Report, StoreError> {
    report_on(Store::open(path, Access::Read), depth, progress)
}

/// Checks the store in `storage`; see [`verify_with`].
///
/// # Errors
/// As [`verify`].
pub fn verify_storage_with(storage: Box<dyn Storage>, depth: Depth) -> Result<Report, StoreError> {
    report_on(Store::with_storage(storage, Access::Read), depth, &mut |_, _, _| ())
}

/// Checks the store in `storage`; see [`verify`].
///
/// # Errors
/// As [`verify`].
pub fn verify_storage(storage: Box<dyn Storage>) -> Result<Report, StoreError> {
    verify_storage_with(storage, Depth::Index)
}

fn report_on(
    opened: Result<Store, StoreError>,
    depth: Depth,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let store = match opened {
        Ok(store) => store,
        Err(error @ StoreError::Format { .. }) => {
            report.problems.push(Problem {
                array: None,
                file: names::MANIFEST.to_owned(),
                block: None,
                offset: None,
                what: error.to_string(),
            });
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.generation = Some(store.generation());
    report.old_layout = store.old_layout();
    report.half_upgraded = report.old_layout.is_none() && store.shared.storage.stat(OLD_TABLE).is_ok();
    let arrays = store.arrays()?;
    let total = arrays.iter().map(Array::raw_len).fold(0, u64::saturating_add);
    let mut files = HashSet::new();
    let mut done = 0_u64;
    // By value: an array that was looked at keeps its data file open.
    for array in arrays {
        let array = &array;
        report.n_arrays += 1;
        report.nbytes = report.nbytes.saturating_add(file_len(array));
        if !files.insert(array.file_name().to_owned()) {
            let what = "is the data file of another array as well".to_owned();
            report.problems.push(Problem { what, ..Problem::of(array) });
        }
        let mut checked = |len: u64| {
            if depth == Depth::Elements {
                progress(array.name(), done.saturating_add(len), total);
            }
        };
        if let Err(error) = check_array(array, depth, &mut report, &mut checked)
            && !is_gone(&store, array, &error)
        {
            if is_for_want_of_means(&error) {
                return Err(error);
            }
            report.problems.push(Problem::from_error(array, &error));
        }
        done = done.saturating_add(array.raw_len());
    }
    let is_leftover = |file: &String| names::is_data_file(file) && !files.contains(file);
    let listed = store.shared.storage.list();
    let mut leftovers: Vec<String> = listed
        .map_err(|e| StoreError::io("list", store.path(), "", e))?
        .into_iter()
        .filter(is_leftover)
        .collect();
    leftovers.sort();
    report.leftovers = leftovers;
    Ok(report)
}

/// Bytes of the data file, as far as they are committed.
fn file_len(array: &Array) -> u64 {
    let record = array.record();
    record.blocks.as_ref().map_or_else(|| record.data_end(), |blocks| blocks.index.end)
}

/// Whether this process could not look, which says nothing of the store.
fn is_for_want_of_means(error: &StoreError) -> bool {
    let StoreError::Io { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Whether a data file is missing because another process removed this version of the array.
fn is_gone(store: &Store, array: &Array, error: &StoreError) -> bool {
    matches!(error, StoreError::DataFile { what: DataFileFault::Missing, .. })
        && store.refresh().is_ok()
        && store.record(array.name()).map_or(true, |current| current.id() != array.id())
}

/// Checks one array. What keeps the rest of it from being checked is the error; all else goes to the report.
pub(super) fn check_array(
    array: &Array,
    depth: Depth,
    report: &mut Report,
    checked: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    // A header that lags behind is mended by the next writer; one that is no header was damaged.
    if array.backing()?.is_none() {
        array.check_stored_header()?;
    }
    if array.codec().is_some() {
        check_file_header(array, report)?;
        return check_blocks(array, depth, report, checked);
    }
    if depth == Depth::Index {
        return Ok(());
    }
    let mut buf = Vec::new();
    let mut offset = 0;
    while offset < array.nbytes() {
        buf.resize(CHUNK_LEN.min(array.nbytes() - offset) as usize, 0);
        array.read_part(offset, &mut buf)?;
        offset += buf.len() as u64;
        checked(offset);
    }
    Ok(())
}

/// Checks the header of a compressed data file: those who have it open after the array was removed rely on it.
fn check_file_header(array: &Array, report: &mut Report) -> Result<(), StoreError> {
    let (record, storage) = (array.record(), &*array.shared().storage);
    let wrong = |source| fault(storage, record, DataFileFault::Header(source));
    let bytes = array.data()?.file_header();
    let bytes = bytes.map_err(|e| StoreError::io("read", storage.path(), &record.file, e))?;
    let header = FileHeader::parse(&bytes).map_err(|source| wrong(Some(source)))?;
    if header.npy_len != record.offset || Some(&header.codec) != array.codec() {
        return Err(wrong(None));
    }
    if Slot::newest(&bytes).0.is_none() {
        let what =
            "has no copy of the index in its header; the next change of the array writes one".to_owned();
        report.problems.push(Problem { what, ..Problem::of(array) });
    }
    Ok(())
}

/// Checks the index of a compressed array, and its blocks.
fn check_blocks(
    array: &Array,
    depth: Depth,
    report: &mut Report,
    checked: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    let (shared, record, data) = (array.shared(), array.record(), array.data()?);
    let newest = || {
        let view = shared.newest_view(record, data, true);
        view.expect("the caller has looked: the array is compressed")
    };
    let mut view = newest();
    for _ in 0..MAX_ATTEMPTS {
        let mut blocks = Blocks { array, data, view, report: Report::default(), batch: Vec::new(), checked };
        let (mut live, mut pages) = (0, Vec::new());
        let walked = shared.walk_past(
            record,
            data,
            &view,
            &mut |block, pointer| {
                live += view.reserved_len(pointer);
                if pointer.kind == BlockKind::Page {
                    blocks.report.n_pages += 1;
                } else if depth == Depth::Elements {
                    blocks.push(block, *pointer);
                }
            },
            &mut |block, level, error| {
                pages.push(page_problem(array, &view, block, level, error));
                Ok(())
            },
        );
        walked?;
        blocks.check_batch();
        let mut found = blocks.report;
        if pages.is_empty() && live != view.index.live {
            let what = format!("has {live} bytes of blocks in use, its index says {}", view.index.live);
            pages.push(Problem { what, ..Problem::of(array) });
        }
        let again = newest();
        if pages.is_empty() || again == view {
            found.problems.append(&mut pages);
            found.problems.sort_by_key(|problem| problem.block);
            report.n_pages += found.n_pages;
            report.n_blocks += found.n_blocks;
            report.problems.append(&mut found.problems);
            checked(view.nbytes);
            return Ok(());
        }
        // Pages that were read may have been overwritten since that state was left.
        view = again;
    }
    let what =
        "was changed all the time while it was checked; check it again when its writer is done".to_owned();
    report.problems.push(Problem { what, ..Problem::of(array) });
    Ok(())
}

fn page_problem(array: &Array, view: &View, block: u64, level: u32, error: ReadError) -> Problem {
    let last =
        block.saturating_add(block_index::blocks_below(level) - 1).min(view.n_full().saturating_sub(1));
    let page = match level {
        0 => format!("block {block}"),
        _ => format!("index page of blocks {block} to {last}"),
    };
    let block = Some(block);
    match error {
        ReadError::Fault(offset, fault) => {
            let what = match fault {
                BlockFault::Index(what) => format!("{page} at byte {offset} {what}"),
                fault => format!("{page} at byte {offset} {fault}"),
            };
            Problem { block, offset: Some(offset), what, ..Problem::of(array) }
        }
        ReadError::Io(error) => {
            Problem { block, what: format!("{page} cannot be read: {error}"), ..Problem::of(array) }
        }
    }
}

/// Blocks of one array that are being checked.
struct Blocks<'a> {
    array: &'a Array,
    data: &'a DataFile,
    view: View,
    report: Report,
    batch: Vec<(u64, Pointer)>,
    checked: &'a mut dyn FnMut(u64),
}

impl Blocks<'_> {
    fn push(&mut self, block: u64, pointer: Pointer) {
        self.batch.push((block, pointer));
        if self.batch.len() as u64 * self.view.block_len() >= CHUNK_LEN {
            self.check_batch();
            (self.checked)((block + 1).saturating_mul(self.view.block_len()).min(self.view.nbytes));
        }
    }

    /// Checks the blocks that were collected, on all cores.
    fn check_batch(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.report.n_blocks += batch.len() as u64;
        let problems = Mutex::new(Vec::new());
        let (array, data, view) = (self.array, self.data, &self.view);
        let n_threads = n_cores().min(batch.len());
        let Ok(()) = share_out(n_threads, batch.iter(), Vec::new, |raw, (block, pointer)| {
            raw.resize(view.raw_len(*block) as usize, 0);
            if data.read_pointer(view, pointer, raw).is_err()
                && let Some(problem) = look_again(array, data, *block)
            {
                lock(&problems).push(problem);
            }
            Ok::<(), Infallible>(())
        });
        let mut problems = problems.into_inner().unwrap_or_default();
        self.report.problems.append(&mut problems);
    }
}

/// What is wrong with a block as it is now: it may have been written anew since its pointer was read.
fn look_again(array: &Array, data: &DataFile, block: u64) -> Option<Problem> {
    let (shared, record) = (array.shared(), array.record());
    let newest = shared.newest_view(record, data, true)?;
    let read = Cursor::new(shared, record, data, newest).block(block);
    read.err().map(|error| Problem::from_error(array, &error))
}

impl Problem {
    /// Something that is wrong with an array.
    fn of(array: &Array) -> Self {
        Self {
            array: Some(Arc::clone(array.name())),
            file: array.file_name().to_owned(),
            block: None,
            offset: None,
            what: String::new(),
        }
    }

    pub(super) fn from_error(array: &Array, error: &StoreError) -> Self {
        match error {
            StoreError::Block { block, offset, what, .. } => Self {
                block: Some(*block),
                offset: Some(*offset),
                what: format!("block {block} at byte {offset} {what}"),
                ..Self::of(array)
            },
            error => Self { what: error.to_string(), ..Self::of(array) },
        }
    }
}
