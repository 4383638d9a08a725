//! Views of file bytes that share the page cache and outlive the file's name.
//!
//! A mapped file that is cut below the map raises SIGBUS in whoever touches the lost pages. `store` therefore never
//! cuts a data file below its committed length, and a new version of an array is a new file.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions, MmapRaw};

/// Bytes of a file, shared and read-only. Cloning shares the map; the last clone unmaps it.
#[derive(Clone)]
pub struct Map(Bytes);

#[derive(Clone)]
enum Bytes {
    Mapped(Arc<Mmap>),
    Owned(Arc<[u8]>),
}

impl Map {
    /// Maps `len` bytes of `file` from `offset`, which need not be page-aligned.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file is shorter than `offset + len`.
    pub(super) fn of_file(file: &File, offset: u64, len: usize) -> io::Result<Map> {
        check_range(file, offset, len)?;
        if len == 0 {
            return Ok(Map::default()); // mmap(2) refuses empty maps
        }
        map_shared(file, offset, len).map(|map| Map(Bytes::Mapped(Arc::new(map))))
    }
}

/// Bytes of a file, shared and to be written to: what is written is in the file at once, for every reader of it. They
/// are reached by a pointer only, since anybody may write them at any time. Dropping it unmaps them; they get to the
/// disk when the file is synced.
pub struct MapMut(Option<MmapRaw>);

impl MapMut {
    /// Maps `len` bytes of `file`, which is open for writing, from `offset`, which need not be page-aligned.
    ///
    /// # Errors
    /// As [`Map::of_file`].
    pub(super) fn of_file(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        check_range(file, offset, len)?;
        if len == 0 {
            return Ok(Self(None)); // mmap(2) refuses empty maps
        }
        MmapOptions::new().offset(offset).len(len).map_raw(file).map(|map| Self(Some(map)))
    }

    /// The first byte. Valid, like all of [`MapMut::len`] bytes, for as long as this lives; dangling if that is 0.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.0.as_ref().map_or(std::ptr::NonNull::dangling().as_ptr(), MmapRaw::as_mut_ptr)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, MmapRaw::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for MapMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapMut").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Refuses a range that is not within the file.
fn check_range(file: &File, offset: u64, len: usize) -> io::Result<()> {
    let file_len = file.metadata()?.len();
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    if end.is_none_or(|end| end > file_len) {
        let message = format!("cannot map {len} bytes at offset {offset}: the file has {file_len} bytes");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a map is only as constant as its file")]
fn map_shared(file: &File, offset: u64, len: usize) -> io::Result<Mmap> {
    // SAFETY: the range lies inside the file (checked by the caller), and `store` keeps it so: it never cuts a data
    // file below its committed length. In-place writes by others are allowed, as for every shared map of a file:
    // readers take the bytes for plain numbers, of which every bit pattern is valid.
    unsafe { MmapOptions::new().offset(offset).len(len).map(file) }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for Map {
    /// The empty map.
    fn default() -> Self {
        Map(Bytes::Owned(Arc::from([])))
    }
}

impl From<Vec<u8>> for Map {
    /// Bytes that no file backs, for a storage in memory.
    fn from(bytes: Vec<u8>) -> Self {
        Map(Bytes::Owned(bytes.into()))
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(bytes).expect("write");
        file
    }

    #[test]
    fn any_offset_and_length_inside_the_file_maps() {
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        let file = file_of(&bytes);
        for offset in [0, 1, 4095, 4096, 4097, 12_345, 19_999, 20_000] {
            for len in [0, 1, 4096, 20_000 - offset] {
                if offset + len <= bytes.len() {
                    let map = Map::of_file(&file, offset as u64, len).expect("maps");
                    assert!(*map == bytes[offset..offset + len], "offset {offset}, len {len}");
                }
            }
        }
    }

    #[test]
    fn map_past_the_end_is_refused() {
        let file = file_of(b"abc");
        for (offset, len) in [(0, 4), (3, 1), (4, 0), (u64::MAX, 1), (1, usize::MAX), (0, usize::MAX)] {
            let error = Map::of_file(&file, offset, len).expect_err("past the end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "offset {offset}, len {len}");
        }
        let error = Map::of_file(&file, 2, 9).expect_err("past the end");
        assert_eq!(error.to_string(), "cannot map 9 bytes at offset 2: the file has 3 bytes");
    }

    #[test]
    fn clones_outlive_file_and_original() {
        let map = Map::of_file(&file_of(b"abcdef"), 2, 3).expect("maps");
        let clone = map.clone();
        drop(map);
        assert_eq!(&*clone, b"cde");
        assert_eq!(&*Map::from(b"xy".to_vec()), b"xy");
        assert!(Map::default().is_empty());
    }

    #[test]
    #[expect(unsafe_code, reason = "a map to write to has no safe access")]
    fn what_is_written_to_a_map_is_in_the_file() {
        let file = file_of(&[0; 8192]);
        let map = MapMut::of_file(&file, 5000, 10).expect("maps");
        let read = Map::of_file(&file, 4998, 6).expect("maps");
        // SAFETY: the map has ten bytes, which nobody else uses meanwhile.
        unsafe { map.as_mut_ptr().add(1).write(7) };
        assert_eq!((map.len(), &*read), (10, &[0, 0, 0, 7, 0, 0][..]));
        assert!(MapMut::of_file(&file, 8192, 0).expect("maps nothing").is_empty());
        MapMut::of_file(&file, 8000, 193).expect_err("past the end");
        let reading = File::open("/proc/self/exe").expect("opens");
        let error = MapMut::of_file(&reading, 0, 10).expect_err("open for reading");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn writes_show_in_an_existing_map() {
        use std::os::unix::fs::FileExt as _;
        let file = file_of(&[0; 8192]);
        let map = Map::of_file(&file, 5000, 10).expect("maps");
        file.write_all_at(b"new", 5003).expect("write");
        assert_eq!(&map[2..7], b"\0new\0");
    }
}
