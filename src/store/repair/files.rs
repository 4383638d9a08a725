//! What data files say of themselves, and what a table lacks that they say.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::super::data::DataFile;
use super::super::error::{DataFileFault, StoreError};
use super::super::writer::nanos_of;
use super::manifest::Known;
use super::{Findings, Mended, Outcome, Unread};
use crate::format::block_index::{self, FILE_HEADER_LEN, FileHeader, SLOT_OFFSETS, Slot};
use crate::format::manifest::DeletedRows;
use crate::format::npy;
use crate::format::{ArrayId, Blocks, Dtype, FormatError, Layout, Op, Record, names};
use crate::sys::{FileAccess, Storage};

/// What a data file says of itself.
struct Described {
    /// Its name and identity are those that the file's name tells, as far as it does.
    record: Record,
    /// Bytes behind the elements.
    n_behind: u64,
}

/// Reads the headers of a data file. The inner error says why they tell nothing.
fn describe(storage: &dyn Storage, file: &str) -> Result<Result<Described, String>, StoreError> {
    let failed = |action, source| StoreError::io(action, storage.path(), file, source);
    let open = match storage.open(file, FileAccess::Read) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err(said(DataFileFault::Missing)));
        }
        Err(error)
            if error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error() == Some(libc::ELOOP) =>
        {
            return Ok(Err(said(DataFileFault::NotAFile)));
        }
        Err(error) => return Err(failed("open", error)),
    };
    let stat = open.stat().map_err(|e| failed("stat", e))?;
    let mut bytes = vec![0; block_index::MAGIC.len()];
    let data = DataFile::new(open);
    let mut read = |offset: u64, len: usize| -> Result<Vec<u8>, StoreError> {
        bytes.resize(len, 0);
        match data.file.read_at(&mut bytes, offset) {
            Ok(read) => Ok(bytes[..read].to_vec()),
            Err(error) if super::manifest::is_of_media(&error) => Ok(Vec::new()),
            Err(error) => Err(failed("read", error)),
        }
    };
    let header = match read(0, block_index::MAGIC.len())?.starts_with(block_index::MAGIC) {
        false => None,
        true => {
            let bytes = data.file_header().map_err(|e| failed("read", e))?;
            match FileHeader::parse(&bytes) {
                Ok(header) => Some((header, bytes)),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    };
    let start = if header.is_some() { FILE_HEADER_LEN } else { 0 };
    let prefix = read(start, npy::PREFIX_LEN)?;
    let npy = match npy::header_len(&prefix) {
        Ok(len) => npy::parse(&read(start, len)?),
        Err(error) => Err(error),
    };
    let npy = match npy {
        Ok(npy) => npy,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let described = Layout::new(&npy.dtype, &npy.shape, npy.fortran_order).and_then(|layout| {
        let fits = layout.nbytes() <= (i64::MAX as u64).saturating_sub(npy::MAX_HEADER_LEN as u64);
        let what = "does not fit a file";
        if fits { Ok(layout) } else { Err(FormatError::Shape { shape: npy.shape.clone(), what }) }
    });
    let mut layout = match described {
        Ok(layout) => layout,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let blocks = match header {
        None => None,
        Some((header, _)) if header.npy_len != npy.header_len => {
            return Ok(Err("has a .npy header of another length than its own header says".to_owned()));
        }
        Some((header, bytes)) => {
            let found = slots(&bytes).into_iter().find_map(|slot| {
                let layout = layout_with(&layout, &npy.dtype, slot.nbytes)?;
                slot.index.check(slot.nbytes, npy.header_len, &header.codec).ok()?;
                Some((layout, slot.index))
            });
            let Some((own, index)) = found else {
                return Ok(Err(
                    "has no copy of the index in its header: where its blocks are is lost".to_owned()
                ));
            };
            layout = own;
            Some(Blocks { codec: header.codec, index })
        }
    };
    let parsed = names::parse_data_file(file);
    let name = parsed.as_ref().map_or_else(|| plain_name(file), |parsed| parsed.name.clone());
    let record = Record {
        name: name.into(),
        id: parsed.and_then(|parsed| parsed.id).unwrap_or(ArrayId(0)),
        file: file.into(),
        dtype: npy.dtype,
        layout,
        offset: npy.header_len,
        blocks,
        deleted: DeletedRows::default(),
        mtime: nanos_of(stat.mtime),
        attrs: Arc::default(),
        upstream: None,
    };
    let n_behind = match record.blocks {
        None => stat.len.saturating_sub(record.data_end()),
        Some(_) => 0,
    };
    Ok(Ok(Described { record, n_behind }))
}

fn said(fault: DataFileFault) -> String {
    fault.to_string()
}

/// The slots of a data file's header that are there, the newest first.
pub(super) fn slots(header: &[u8]) -> Vec<Slot> {
    let mut slots: Vec<Slot> =
        SLOT_OFFSETS.into_iter().filter_map(|offset| Slot::parse(header, offset)).collect();
    slots.sort_by_key(|slot| std::cmp::Reverse(slot.sequence));
    slots
}

/// The layout with as many rows as `nbytes` bytes are. The `.npy` header is written after the slot, and may lag behind.
fn layout_with(layout: &Layout, dtype: &Dtype, nbytes: u64) -> Option<Layout> {
    if layout.nbytes() == nbytes {
        return Some(layout.clone());
    }
    let row_len = layout.row_len();
    let mut shape = layout.shape().to_vec();
    *shape.first_mut()? = nbytes.checked_div(row_len)?;
    let other = Layout::new(dtype, &shape, false).ok()?;
    (!layout.fortran_order() && other.nbytes() == nbytes).then_some(other)
}

/// A name for what is in a file whose name is not one that the store gives.
fn plain_name(file: &str) -> String {
    file.strip_prefix("data_").and_then(|name| name.strip_suffix(".npkd")).unwrap_or(file).to_owned()
}

/// The name of the array that a file was made for.
fn made_for(file: &str) -> Option<String> {
    names::parse_data_file(file).map(|parsed| parsed.name)
}

/// Lets the table of `known` have what the data files say beyond it, and returns the changes that did it, each with its
/// time. The writers' lock is held.
///
/// - An array whose data file is missing gets that of a later version of it, if there is one.
/// - An array that lost commits may have changed has the rows and the index that its data file tells of.
/// - Of a table that is not all there was, each data file that no record refers to is an array.
pub(super) fn complete(
    storage: &dyn Storage,
    known: &mut Known,
    findings: &mut Findings,
) -> Result<Vec<(i64, Op)>, StoreError> {
    let mut ops = Vec::new();
    let listed = storage.list().map_err(|e| StoreError::io("list", storage.path(), "", e))?;
    let mut files: Vec<String> = listed.into_iter().filter(|file| names::is_data_file(file)).collect();
    let there: HashSet<&str> = files.iter().map(String::as_str).collect();
    let records: Vec<Arc<Record>> = known.table.records()?.into_iter().cloned().collect();
    let mut used: HashSet<String> = records.iter().map(|record| record.file.to_string()).collect();
    let mut missing = Vec::new();
    for record in &records {
        if !there.contains(&*record.file) {
            missing.push(Arc::clone(record));
        } else if known.uncertain.contains(&record.id)
            && let Some(op) = newer_state(storage, record, findings)?
            && known.apply(op.clone(), record.mtime)
        {
            ops.push((record.mtime, op));
        }
    }
    files.retain(|file| !used.contains(file));
    let id_of = |file: &String| names::parse_data_file(file).and_then(|parsed| parsed.id);
    files.sort_by_cached_key(|file| (id_of(file), file.clone()));
    for record in missing {
        let Some(name) = made_for(&record.file) else { continue };
        let later = |file: &&String| {
            made_for(file).as_ref() == Some(&name) && id_of(file) > Some(record.id) && !used.contains(*file)
        };
        let Some(file) = files.iter().rfind(later).cloned() else { continue };
        let Ok(Described { record: found, .. }) = describe(storage, &file)? else { continue };
        let why = format!(
            "data file {} is missing; {file} is of a later version, whose commit is lost",
            record.file
        );
        let found = Record { name: Arc::clone(&record.name), attrs: Arc::clone(&record.attrs), ..found };
        let put = put(known, found);
        if known.apply(put.clone(), record.mtime) {
            ops.push((record.mtime, put));
            findings.add(Mended::new(&record.name, &file, why, Outcome::FromFile));
            used.insert(file);
        }
    }
    files.retain(|file| !used.contains(file));
    if known.rebuilt.is_none() {
        findings.leftovers = files;
        return Ok(ops);
    }
    // Of versions of one name, the latest gets it.
    for file in files.iter().rev() {
        let described = match describe(storage, file)? {
            Ok(described) => described,
            Err(what) => {
                findings.unread.push(Unread { file: file.clone(), what });
                continue;
            }
        };
        let Described { record, n_behind } = described;
        let name = free_name(known, &record);
        let mut why = "is what its data file says of itself".to_owned();
        if *name != *record.name {
            why += &format!("; there is a later version of {:?}, or another array of this name", record.name);
        }
        if names::parse_data_file(file).is_none_or(|parsed| parsed.is_cut) {
            why += "; its name was longer, or another";
        }
        if n_behind > 0 {
            why += &format!(
                "; {n_behind} bytes behind its rows are left out: of an append that was interrupted, or whose commit is lost"
            );
        }
        let time = record.mtime;
        let put = put(known, Record { name: name.into(), ..record });
        let Op::Put(record) = &put else { unreachable!("it was made so") };
        let found = Mended::new(&record.name, file, why, Outcome::FromFile);
        if known.apply(put.clone(), time) {
            ops.push((time, put));
            findings.add(found);
        }
    }
    findings.unread.reverse();
    Ok(ops)
}

/// The change that adds an array, with the identity that its file tells if nobody had it.
fn put(known: &Known, record: Record) -> Op {
    let id = record.id.max(known.table.next_id());
    Op::Put(Record { id, ..record })
}

fn free_name(known: &Known, record: &Record) -> String {
    let is_free = |name: &String| !known.table.contains(name) && names::check(name).is_ok();
    let own = record.name.to_string();
    if is_free(&own) {
        return own;
    }
    let id = if record.id.0 > 0 { record.id.0.to_string() } else { "old".to_owned() };
    let mut numbered =
        (0_u64..).map(|n| if n == 0 { format!("{own}~{id}") } else { format!("{own}~{id}~{n}") });
    numbered.find(is_free).expect("a store has fewer arrays")
}

/// The change that lets an array have what its data file tells of later commits.
fn newer_state(
    storage: &dyn Storage,
    record: &Record,
    findings: &mut Findings,
) -> Result<Option<Op>, StoreError> {
    let Ok(Described { record: found, .. }) = describe(storage, &record.file)? else { return Ok(None) };
    let key =
        |record: &Record| (record.dtype.clone(), record.offset, record.blocks.map(|blocks| blocks.codec));
    let is_later = found.layout.nbytes() >= record.layout.nbytes()
        && found.layout.shape().get(1..) == record.layout.shape().get(1..)
        && found.layout.fortran_order() == record.layout.fortran_order();
    if key(&found) != key(record) || !is_later {
        return Ok(None);
    }
    let n_rows = found.layout.n_rows();
    let op = match (found.blocks, record.blocks) {
        (Some(found), Some(own)) if found.index != own.index => {
            Op::Blocks(Arc::clone(&record.name), n_rows, found.index)
        }
        (None, None) if n_rows > record.layout.n_rows() => Op::Rows(Arc::clone(&record.name), n_rows),
        _ => return Ok(None),
    };
    let why =
        format!("has {n_rows} rows, and the elements, of later commits that only its data file tells of");
    findings.add(Mended::new(&record.name, &record.file, why, Outcome::FromFile));
    Ok(Some(op))
}
