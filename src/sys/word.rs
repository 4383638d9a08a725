//! One number of a file, shared between processes through a map: read and stored without a system call.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// A little-endian `u64` at a fixed, aligned offset of a file, which processes share.
///
/// A trait, so that a test can decide who is next to load or store one.
pub trait SharedWord: Send + Sync + fmt::Debug {
    /// The number, after everything that its writer stored before it.
    fn load(&self) -> u64;

    /// Stores a number. Does nothing on a word that was opened for reading.
    fn store(&self, value: u64);
}

/// A word that is mapped.
///
/// Loads and stores are atomic among processes of one host. On a network file system other hosts do not see them
/// in time: do not map a word there.
pub(super) struct MappedWord {
    map: MmapRaw,
    offset: usize,
    writable: bool,
}

impl MappedWord {
    /// Maps the word at `offset` of `file`, which must be open for writing if `writable`.
    ///
    /// # Errors
    /// `InvalidInput` for an offset that is not a multiple of 8; `UnexpectedEof` past the end of the file.
    pub(super) fn of_file(file: &File, offset: usize, writable: bool) -> io::Result<Self> {
        let len = offset.checked_add(size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        if !offset.is_multiple_of(align_of::<AtomicU64>()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let options = MmapOptions::new().len(len).to_owned();
        let map = if writable { options.map_raw(file) } else { options.map_raw_read_only(file) }?;
        Ok(Self { map, offset, writable })
    }

    #[expect(unsafe_code, reason = "an atomic view of mapped memory")]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: `of_file` checked that the word lies in the map and is aligned (maps start at a page). All
        // accesses of all processes are atomic ones through this type, or 8-byte writes of the whole word by the
        // kernel. The file is a manifest, which `store` never cuts below its header.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(self.offset).cast()) }
    }
}

impl SharedWord for MappedWord {
    fn load(&self) -> u64 {
        u64::from_le(self.word().load(Ordering::Acquire))
    }

    fn store(&self, value: u64) {
        if self.writable {
            self.word().store(value.to_le(), Ordering::Release);
        }
    }
}

impl fmt::Debug for MappedWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedWord").field("value", &self.load()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn two_maps_of_one_file_share_the_word() {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&[0; 64], 0).expect("write");
        let writer = MappedWord::of_file(&file, 40, true).expect("maps");
        let reader = MappedWord::of_file(&file, 40, false).expect("maps");
        writer.store(0x0102_0304);
        reader.store(9); // read-only: ignored
        assert_eq!(reader.load(), 0x0102_0304);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 40).expect("read");
        assert_eq!(u64::from_le_bytes(bytes), 0x0102_0304);
    }

    #[test]
    fn words_outside_the_file_are_refused() {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&[0; 16], 0).expect("write");
        assert!(MappedWord::of_file(&file, 16, false).is_err());
        assert!(MappedWord::of_file(&file, 4, false).is_err());
        assert!(MappedWord::of_file(&file, usize::MAX - 7, false).is_err());
    }
}
