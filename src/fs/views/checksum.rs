//! Zip members whose CRC-32 is known before anything of them is read.
//!
//! A zip file's directory has the CRC-32 of each member, so whoever opens one would wait until all arrays of the store
//! are read. But a `.npy` header ends in spaces, and tabs mean the same to those who read it: which of [`PAD_LEN`]
//! characters are tabs is chosen so that the whole member has the CRC-32 that the directory promises. So an array is
//! read for its checksum when its header is, and not before.
//!
//! There is one choice for each set of elements. What a tab changes at the n-th character from the end is, as a
//! polynomial over GF(2), a multiple of x^8n modulo the CRC's; that is irreducible of degree 32, and so is the minimal
//! polynomial of x^8, as squaring three times maps roots of it to roots. Hence 32 such powers in a row are linearly
//! independent.

use std::sync::LazyLock;

/// The CRC-32 of every member.
pub(super) const PROMISED: u32 = u32::from_le_bytes(*b"npkv");

/// How many characters before its newline a header must have that may be tabs as well as spaces.
pub(super) const PAD_LEN: usize = 32;

/// Appending so many zeros, or a multiple of that, changes no checksum: what the powers of x repeat after.
const PERIOD: u64 = u32::MAX as u64;

/// Which characters become tabs to change one bit of a header's checksum, for each bit.
static TABS_FOR_BIT: LazyLock<[u32; 32]> = LazyLock::new(|| {
    // What a tab in the place of a space changes, behind it and behind the header.
    let here = crc32fast::hash(b"\t") ^ crc32fast::hash(b" ");
    let mut rows: Vec<(u32, u32)> =
        (0..PAD_LEN).map(|at| (append(here, 0, (PAD_LEN - at) as u64), 1 << at)).collect();
    // Gauss and Jordan: until each row changes one bit only.
    for bit in 0..rows.len() {
        let pivot = (bit..rows.len()).find(|row| rows[*row].0 >> bit & 1 == 1);
        rows.swap(bit, pivot.expect("the rows are linearly independent"));
        let (change, tabs) = rows[bit];
        for (row, other) in rows.iter_mut().enumerate() {
            if row != bit && other.0 >> bit & 1 == 1 {
                *other = (other.0 ^ change, other.1 ^ tabs);
            }
        }
    }
    std::array::from_fn(|bit| rows[bit].1)
});

/// The CRC-32 of two runs of bytes, the second of which has `len`, from theirs.
pub(super) fn append(first: u32, second: u32, len: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(first);
    hasher.combine(&crc32fast::Hasher::new_with_initial_len(second, len));
    hasher.finalize()
}

/// Chooses the last [`PAD_LEN`] characters before the newline of `header`, spaces, so that it has the CRC-32
/// [`PROMISED`] with the `len` bytes that follow it, whose own is `elements`.
pub(super) fn fulfil(header: &mut [u8], elements: u32, len: u64) {
    // What the header alone must have: going on to the end of the period is going back.
    let wanted = append(PROMISED ^ elements, 0, PERIOD - len % PERIOD);
    let change = wanted ^ crc32fast::hash(header);
    let tabs = TABS_FOR_BIT.iter().enumerate().filter(|(bit, _)| change >> bit & 1 == 1);
    let tabs = tabs.fold(0, |all, (_, tabs)| all ^ tabs);
    let pad_start = header.len() - 1 - PAD_LEN;
    for (at, byte) in header[pad_start..].iter_mut().take(PAD_LEN).enumerate() {
        *byte = if tabs >> at & 1 == 1 { b'\t' } else { b' ' };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_has_the_promised_checksum() {
        let mut elements = Vec::new();
        for len in [0, 1, 2, 3, 31, 32, 33, 1000, 4096, 100_003] {
            elements.extend((elements.len()..len).map(|i| ((i * i) >> 3) as u8));
            let mut header = b"\x93NUMPY some text".to_vec();
            header.extend_from_slice(&[b' '; PAD_LEN]);
            header.push(b'\n');
            let text_len = header.len() - 1 - PAD_LEN;
            let text = header[..text_len].to_vec();
            fulfil(&mut header, crc32fast::hash(&elements), elements.len() as u64);
            assert!(header.starts_with(&text) && header.ends_with(b"\n"));
            assert!(header[text_len..].iter().all(|byte| b" \t\n".contains(byte)));
            assert_eq!(crc32fast::hash(&[&header[..], &elements].concat()), PROMISED, "{len}");
        }
    }

    #[test]
    fn any_checksum_of_any_length_can_be_made_up_for() {
        for (elements, len) in
            [(0, 0), (1, 1), (u32::MAX, 1 << 20), (0x1234_5678, PERIOD), (7, PERIOD * 9 + 5)]
        {
            let mut header = [[b' '; 63].as_slice(), b"\n"].concat();
            fulfil(&mut header, elements, len);
            assert_eq!(append(crc32fast::hash(&header), elements, len), PROMISED, "{len}");
        }
    }

    #[test]
    fn checksums_are_appended_as_the_bytes_are() {
        let (a, b) = (&b"some bytes"[..], &b"and others"[..]);
        let all = crc32fast::hash(&[a, b].concat());
        assert_eq!(append(crc32fast::hash(a), crc32fast::hash(b), b.len() as u64), all);
        assert_eq!(append(crc32fast::hash(a), crc32fast::hash(b""), 0), crc32fast::hash(a));
    }
}
