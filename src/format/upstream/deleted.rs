//! The file of deleted rows: a header, and one bit for each row that is there.

use roaring::RoaringTreemap;

use super::Fault;
use crate::bytes::u64_at;

const DELETED_OFFSET: usize = size_of::<u64>();
const WORDS_OFFSET: usize = DELETED_OFFSET + size_of::<u64>();
const WORD_BITS: u64 = u64::BITS as u64;

/// The file that says which rows of an array are deleted, where there are any.
pub fn deleted_file(name: &str) -> String {
    format!("deleted_{name}.npkb")
}

/// Length of the file of deleted rows, in bytes.
pub fn deleted_file_len(n_rows: u64) -> u64 {
    let words = n_rows.div_ceil(WORD_BITS).saturating_mul(size_of::<u64>() as u64);
    words.saturating_add(WORDS_OFFSET as u64)
}

/// Reads the file of deleted rows of an array with `n_rows` stored rows, 0 if it is 0-d. The file has `found_len`
/// bytes; `bytes` are as many of them as it should have.
///
/// # Errors
/// What does not fit the array, or itself.
pub fn parse_deleted(bytes: &[u8], found_len: u64, n_rows: u64) -> Result<RoaringTreemap, Fault> {
    let expected_len = deleted_file_len(n_rows);
    let wrong_len = || Fault::Len { found: found_len, expected: expected_len };
    let total = u64_at(bytes, 0).ok_or_else(wrong_len)?;
    let n_deleted = u64_at(bytes, DELETED_OFFSET).ok_or_else(wrong_len)?;
    if total != n_rows {
        return Err(Fault::DeletedOf { found: total, expected: n_rows });
    }
    if found_len != expected_len {
        return Err(wrong_len());
    }
    let words = bytes.get(WORDS_OFFSET..).unwrap_or(&[]);
    let mut deleted = RoaringTreemap::new();
    let mut start = 0_u64;
    for word in words.chunks_exact(size_of::<u64>()) {
        let mut gone = !u64_at(word, 0).unwrap_or(0);
        let n_bits = n_rows.saturating_sub(start).min(WORD_BITS);
        if n_bits < WORD_BITS {
            let behind = u64::MAX << n_bits;
            if gone & behind != behind {
                return Err(Fault::DeletedBehind);
            }
            gone &= !behind;
        }
        if gone == u64::MAX {
            deleted.insert_range(start..start.saturating_add(WORD_BITS));
        } else {
            while gone != 0 {
                deleted.insert(start.saturating_add(gone.trailing_zeros().into()));
                gone &= gone.wrapping_sub(1);
            }
        }
        start = start.saturating_add(WORD_BITS);
    }
    if deleted.len() != n_deleted {
        return Err(Fault::DeletedCount { found: n_deleted, bits: deleted.len() });
    }
    Ok(deleted)
}
