//! Checked little-endian reads and writes on slices: the only place that turns offsets into numbers.

/// The `N` bytes at `offset`, or `None` where `bytes` is too short.
pub fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    let end = offset.checked_add(N)?;
    bytes.get(offset..end)?.try_into().ok()
}

/// The little-endian `u16` at `offset`.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

/// The little-endian `u32` at `offset`.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian `u64` at `offset`.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

/// Overwrites the bytes at `offset` with `value`, little-endian.
///
/// # Panics
/// If `bytes` is shorter than `offset + 4`: callers write into buffers whose size is a constant of theirs.
pub fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// Overwrites the bytes at `offset` with `value`, little-endian.
///
/// # Panics
/// If `bytes` is shorter than `offset + 8`: callers write into buffers whose size is a constant of theirs.
pub fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let bytes = [1, 0, 2, 0, 0, 0];
        assert_eq!(u16_at(&bytes, 0), Some(1));
        assert_eq!(u32_at(&bytes, 2), Some(2));
        assert_eq!(u32_at(&bytes, 3), None);
        assert_eq!(u64_at(&bytes, 0), None);
        assert_eq!(u16_at(&bytes, usize::MAX), None);
    }

    #[test]
    fn what_was_put_is_read() {
        let mut bytes = [0; 12];
        put_u32(&mut bytes, 0, 0xdead_beef);
        put_u64(&mut bytes, 4, u64::MAX - 1);
        assert_eq!(u32_at(&bytes, 0), Some(0xdead_beef));
        assert_eq!(u64_at(&bytes, 4), Some(u64::MAX - 1));
    }
}
