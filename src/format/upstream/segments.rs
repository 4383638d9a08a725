//! The list of the files that a long array is cut into, as 0.7 wrote it: JSON.

use serde::Deserialize;

use super::{DATA_PREFIX, Fault};

const VERSION: u64 = 1;
const FOLDER_SUFFIX: &str = "_segments";
/// Longest list that is read: of a petabyte in segments of the usual size.
pub const MAX_SEGMENTS_LEN: u64 = 1 << 30;

#[derive(Deserialize)]
struct StoredList {
    version: u64,
    segments: Vec<StoredSegment>,
}

#[derive(Deserialize)]
struct StoredSegment {
    file: String,
    bytes: u64,
}

/// One file of elements. It need not end with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// A folder within the store's folder.
    pub folder: String,
    /// The name in that folder.
    pub file: String,
    /// Length in bytes.
    pub len: u64,
}

/// Reads the list of segments of an array of `nbytes` bytes.
///
/// # Errors
/// What does not decode, does not fit the array, or leads out of the store.
pub fn parse_segments(bytes: &[u8], nbytes: u64) -> Result<Vec<Segment>, Fault> {
    let wrong = |what: String| Fault::Segments { what };
    let list: StoredList = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if list.version != VERSION {
        return Err(wrong(format!("has version {}, expected {VERSION}", list.version)));
    }
    let found = list.segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(segment.bytes));
    let segments = list.segments.into_iter().map(|StoredSegment { file, bytes: len }| match split(&file) {
        Some((folder, name)) => Ok(Segment { folder: folder.to_owned(), file: name.to_owned(), len }),
        None => Err(Fault::SegmentFile { file }),
    });
    let segments = segments.collect::<Result<_, _>>()?;
    if found != nbytes {
        return Err(Fault::SegmentsLen { found, expected: nbytes });
    }
    Ok(segments)
}

/// The folder and the name in it, if that is what `file` is.
fn split(file: &str) -> Option<(&str, &str)> {
    let (folder, name) = file.split_once('/')?;
    let is_folder = folder.starts_with(DATA_PREFIX) && folder.ends_with(FOLDER_SUFFIX);
    let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    (is_folder && is_plain && !file.contains('\0')).then_some((folder, name))
}
