//! `all.npz`: a zip file of members that are stored as they are, one `.npy` file for each array.
//!
//! As in PKWARE's APPNOTE.TXT, with the sizes of its "zip64" where 32 bits do not hold them. Where everything is
//! follows from the shapes: nothing has to be read for it, not even for the checksums (see
//! [`checksum`](super::checksum)).
//!
//! The largest arrays come first: who reads on behind a member, as the kernel does, touches the header of the next one,
//! and has its checksum computed, which takes no longer than what he read already.

use std::cmp::Reverse;

use super::checksum::PROMISED;
use super::image::{Content, Image, npy_header};
use super::snapshot::Snapshot;
use crate::store::StoreError;

/// Elements of so many bytes begin with a page, so that pages of the file are pages of the array; those of smaller
/// arrays as in files of NumPy's.
const LARGE_LEN: u64 = 64 << 10;
const LARGE_ALIGN: u64 = 4096;
const SMALL_ALIGN: u64 = 64;

const LOCAL_LEN: u64 = 30;
const ENTRY_LEN: u64 = 46;
const END_LEN: u64 = 22;
const END64_LEN: u64 = 56;
const LOCATOR_LEN: u64 = 20;
/// Identity and length of an extra field.
const EXTRA_HEADER_LEN: u64 = 4;

const LOCAL_MAGIC: u32 = 0x0403_4b50;
const ENTRY_MAGIC: u32 = 0x0201_4b50;
const END_MAGIC: u32 = 0x0605_4b50;
const END64_MAGIC: u32 = 0x0606_4b50;
const LOCATOR_MAGIC: u32 = 0x0706_4b50;

const ZIP64_EXTRA: u16 = 0x0001;
/// Filling, as in Android's packages: an alignment that follows from it, and zeros.
const FILL_EXTRA: u16 = 0xd935;
const FILL_MIN_LEN: u64 = EXTRA_HEADER_LEN + 2;

/// What readers must know: zip64, or nothing special.
const VERSION_64: u16 = 45;
const VERSION: u16 = 20;
/// Made by that version on a Unix system: attributes are a mode.
const MADE_BY: u16 = 3 << 8 | VERSION_64;
const FILE_MODE: u32 = 0o100_644;
/// The name is UTF-8.
const UTF8_FLAG: u16 = 1 << 11;
/// 1980-01-01, the first day that zip knows, as in files that NumPy writes.
const DATE: u16 = 1 << 5 | 1;
/// Stands for a number that is found in the extra field.
const IN_EXTRA: u32 = u32::MAX;

/// A member, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Its number in the snapshot.
    pub(super) member: u32,
    /// Length of its content: header and elements of the `.npy` file.
    content_len: u64,
    offset: u64,
    fill_len: u16,
}

impl Header {
    /// The header of a member at `offset`, so that what follows it and `npy_len` bytes more is aligned.
    fn new(member: u32, offset: u64, name: &str, npy_len: u64, nbytes: u64) -> Self {
        let align = if nbytes >= LARGE_LEN { LARGE_ALIGN } else { SMALL_ALIGN };
        let mut this = Self { member, content_len: npy_len + nbytes, offset, fill_len: 0 };
        let elements = offset + this.local_len(name) + npy_len;
        let mut fill_len = elements.next_multiple_of(align) - elements;
        if (1..FILL_MIN_LEN).contains(&fill_len) {
            fill_len += align;
        }
        this.fill_len = fill_len as u16;
        this
    }

    fn is_large(&self) -> bool {
        is_large(self.content_len)
    }

    fn local_len(&self, name: &str) -> u64 {
        let sizes_len = if self.is_large() { EXTRA_HEADER_LEN + 16 } else { 0 };
        LOCAL_LEN + name.len() as u64 + sizes_len + u64::from(self.fill_len)
    }

    /// The numbers that the entry has no room for.
    fn large_numbers(&self) -> impl Iterator<Item = u64> {
        let sizes = [self.content_len; 2].into_iter().filter(|len| is_large(*len));
        sizes.chain(Some(self.offset).filter(|offset| is_large(*offset)))
    }

    fn entry_len(&self, name: &str) -> u64 {
        let n_large = self.large_numbers().count() as u64;
        let extra_len = if n_large > 0 { EXTRA_HEADER_LEN + 8 * n_large } else { 0 };
        ENTRY_LEN + name.len() as u64 + extra_len
    }

    /// What stands before the content.
    pub(super) fn local(&self, name: &str) -> Vec<u8> {
        let mut extra = Vec::new();
        if self.is_large() {
            put_extra(&mut extra, ZIP64_EXTRA, [self.content_len; 2].into_iter());
        }
        if let Some(fill_len) = self.fill_len.checked_sub(EXTRA_HEADER_LEN as u16) {
            let end = extra.len() + usize::from(self.fill_len);
            extra.extend_from_slice(&FILL_EXTRA.to_le_bytes());
            extra.extend_from_slice(&fill_len.to_le_bytes());
            extra.extend_from_slice(&(SMALL_ALIGN as u16).to_le_bytes());
            extra.resize(end, 0);
        }
        let mut out = LOCAL_MAGIC.to_le_bytes().to_vec();
        self.put_common(&mut out, name, extra.len());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&extra);
        out
    }

    /// What stands in the directory.
    pub(super) fn entry(&self, name: &str) -> Vec<u8> {
        let mut extra = Vec::new();
        if self.large_numbers().next().is_some() {
            put_extra(&mut extra, ZIP64_EXTRA, self.large_numbers());
        }
        let mut out = ENTRY_MAGIC.to_le_bytes().to_vec();
        out.extend_from_slice(&MADE_BY.to_le_bytes());
        self.put_common(&mut out, name, extra.len());
        // No comment, on disk 0, nothing about its text.
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&(FILE_MODE << 16).to_le_bytes());
        out.extend_from_slice(&short(self.offset).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&extra);
        out
    }

    /// The fields that header and entry share.
    fn put_common(&self, out: &mut Vec<u8>, name: &str, extra_len: usize) {
        let version = if self.large_numbers().next().is_some() { VERSION_64 } else { VERSION };
        let flags = if name.is_ascii() { 0 } else { UTF8_FLAG };
        // Stored, at midnight.
        for field in [version, flags, 0, 0, DATE] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [PROMISED, short(self.content_len), short(self.content_len)] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        // Names of arrays have at most 4096 bytes, their paths not much more than three times that.
        for field in [name.len() as u16, extra_len as u16] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
}

fn is_large(number: u64) -> bool {
    number >= u64::from(IN_EXTRA)
}

fn short(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(IN_EXTRA)
}

fn put_extra(out: &mut Vec<u8>, id: u16, numbers: impl Iterator<Item = u64>) {
    let bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(&bytes);
}

/// The file of all arrays.
pub(super) fn image(snapshot: &Snapshot) -> Result<Image, StoreError> {
    let mut image = Image::default();
    let mut order: Vec<u32> = (0..).zip(&snapshot.members).map(|(i, _)| i).collect();
    order.sort_by_key(|member| Reverse(snapshot.members[*member as usize].array.nbytes()));
    let mut headers = Vec::with_capacity(order.len());
    for member in order {
        let (array, name) = {
            let member = &snapshot.members[member as usize];
            (&member.array, &*member.path)
        };
        let npy_len = npy_header(array)?.len() as u64;
        let header = Header::new(member, image.len(), name, npy_len, array.nbytes());
        image.push(Content::ZipHeader(header), header.local_len(name) + npy_len);
        image.push(Content::Elements(member), array.nbytes());
        headers.push(header);
    }
    // Listed in the store's order.
    headers.sort_by_key(|header| header.member);
    let start = image.len();
    for header in &headers {
        let len = header.entry_len(&snapshot.members[header.member as usize].path);
        image.push(Content::ZipEntry(*header), len);
    }
    let end = end(headers.len() as u64, start, image.len() - start);
    let len = end.len() as u64;
    image.push(Content::Text(end.into()), len);
    Ok(image)
}

/// What stands behind the directory, which has `n_entries` and `len` bytes from `start` on.
fn end(n_entries: u64, start: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity((END64_LEN + LOCATOR_LEN + END_LEN) as usize);
    let short_count = u16::try_from(n_entries).unwrap_or(u16::MAX);
    if short_count == u16::MAX || is_large(start) || is_large(len) {
        let end64 = start + len;
        out.extend_from_slice(&END64_MAGIC.to_le_bytes());
        // What follows of this record.
        out.extend_from_slice(&(END64_LEN - 12).to_le_bytes());
        out.extend_from_slice(&MADE_BY.to_le_bytes());
        out.extend_from_slice(&VERSION_64.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        for field in [n_entries, n_entries, len, start] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&LOCATOR_MAGIC.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&end64.to_le_bytes());
        out.extend_from_slice(&1_u32.to_le_bytes());
    }
    out.extend_from_slice(&END_MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&short_count.to_le_bytes());
    out.extend_from_slice(&short_count.to_le_bytes());
    out.extend_from_slice(&short(len).to_le_bytes());
    out.extend_from_slice(&short(start).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_long_as_they_say() {
        for (name, nbytes) in [("a.npy", 0), ("g/b.npy", 4), ("\u{e9}.npy", LARGE_LEN), ("x.npy", 5 << 32)] {
            for offset in [0, 1, 63, 64, 4095, 4096 - 35, (1 << 32) - 2, 1 << 33] {
                let header = Header::new(0, offset, name, 128, nbytes);
                let local = header.local(name);
                assert_eq!(local.len() as u64, header.local_len(name));
                assert_eq!(header.entry(name).len() as u64, header.entry_len(name));
                let align = if nbytes >= LARGE_LEN { LARGE_ALIGN } else { SMALL_ALIGN };
                assert!((offset + local.len() as u64 + 128).is_multiple_of(align));
            }
        }
        assert_eq!(end(65534, 0, 10).len() as u64, END_LEN);
        for (n, start) in [(65535, 0), (1, u64::from(u32::MAX)), (70000, 1 << 40)] {
            assert_eq!(end(n, start, 10).len() as u64, END64_LEN + LOCATOR_LEN + END_LEN);
        }
    }
}
