//! The segments of a long array as one file.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::SystemTime;

use super::super::data::{fault_of, open_failed};
use super::super::error::StoreError;
use super::{check_len, read_start};
use crate::format::Record;
use crate::format::upstream::{Fault, MAX_SEGMENTS_LEN, parse_segments};
use crate::sys::{FileAccess, FileStat, Map, Storage, StorageFile};

/// Files that are read as if they were one. They are mapped: an array may have more segments than a process may have
/// open files.
#[derive(Debug)]
struct Joined {
    /// The segments that are not empty, and where in the whole each begins.
    parts: Vec<(u64, Map)>,
    stat: FileStat,
}

/// Opens the segments of an array, as its list says.
pub(super) fn open(
    storage: &dyn Storage,
    record: &Record,
    list: &dyn StorageFile,
) -> Result<Arc<dyn StorageFile>, StoreError> {
    let failed = |action, name: &str, source| StoreError::io(action, storage.path(), name, source);
    let mut stat = list.stat().map_err(|e| failed("stat", &record.file, e))?;
    let nbytes = record.layout.nbytes();
    let wrong = |fault: Fault| fault_of(storage, record, &record.file, fault.into());
    if stat.len > MAX_SEGMENTS_LEN {
        return Err(wrong(Fault::Segments { what: format!("{} bytes are too many", stat.len) }));
    }
    let bytes = read_start(list, stat.len).map_err(|e| failed("read", &record.file, e))?;
    let mut parts = Vec::new();
    let mut start = 0_u64;
    for segment in parse_segments(&bytes, nbytes).map_err(wrong)? {
        let name = format!("{}/{}", segment.folder, segment.file);
        let opened = storage.open_apart(&segment.folder, &segment.file, FileAccess::Read);
        let file = opened.map_err(|source| match source.kind() {
            // The folder is a link, or a file.
            io::ErrorKind::NotADirectory => fault_of(storage, record, &name, Fault::NotAFile.into()),
            _ => open_failed(storage, record, &name, source),
        })?;
        let found = check_len(storage, record, &name, &*file, segment.len)?;
        if segment.len > 0 {
            let len = usize::try_from(segment.len).map_err(|_| io::ErrorKind::FileTooLarge.into());
            let map = len.and_then(|len| file.map(0, len)).map_err(|e| failed("map", &name, e))?;
            parts.push((start, map));
        }
        start = start.saturating_add(segment.len);
        stat.mtime = stat.mtime.max(found.mtime);
        stat.allocated = stat.allocated.saturating_add(found.allocated);
    }
    stat.len = nbytes;
    Ok(Arc::new(Joined { parts, stat }))
}

impl Joined {
    /// The parts that lie in the range `range` of the whole, each from its start in the range on.
    fn parts_in(&self, range: Range<u64>) -> impl Iterator<Item = &[u8]> {
        let first = self.parts.partition_point(|(start, map)| start + map.len() as u64 <= range.start);
        self.parts[first..].iter().take_while(move |(start, _)| *start < range.end).map(
            move |(start, map)| {
                let from = range.start.saturating_sub(*start) as usize;
                let to = (range.end - start).min(map.len() as u64) as usize;
                &map[from..to]
            },
        )
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl StorageFile for Joined {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        for part in self.parts_in(offset..offset.saturating_add(buf.len() as u64)) {
            buf[done..done + part.len()].copy_from_slice(part);
            done += part.len();
        }
        Ok(done)
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn reserve(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn stat(&self) -> io::Result<FileStat> {
        Ok(self.stat)
    }

    fn set_times(&self, _atime: Option<SystemTime>, _mtime: Option<SystemTime>) -> io::Result<()> {
        read_only()
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        let _ = (offset, len);
        Err(io::ErrorKind::Unsupported.into())
    }

    fn copy_from(&self, _src: BorrowedFd<'_>, _from: u64, _to: u64, _len: u64) -> io::Result<u64> {
        read_only()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
