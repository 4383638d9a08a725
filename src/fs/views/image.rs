//! The bytes of a view: pieces that follow each other, none of which is made before it is read.

use std::ops::Range;

use super::checksum::{PAD_LEN, fulfil};
use super::snapshot::Member;
use super::zip;
use crate::store::{Array, StoreError};

/// All pieces of a view, in order and without gaps.
#[derive(Debug, Default)]
pub(super) struct Image {
    pieces: Vec<Piece>,
    len: u64,
}

#[derive(Debug)]
struct Piece {
    start: u64,
    content: Content,
}

/// What a piece consists of. Members are called by number.
#[derive(Debug)]
pub(super) enum Content {
    /// These bytes.
    Text(Box<[u8]>),
    /// The elements, in stored order, in their own byte order.
    Elements(u32),
    /// The elements with the bytes of each `item_len` turned around.
    Swapped { member: u32, item_len: u8 },
    /// What a zip file has before a member's elements.
    ZipHeader(zip::Header),
    /// The member's entry in the directory of a zip file.
    ZipEntry(zip::Header),
}

/// What pieces are made from.
pub(super) trait Source {
    fn member(&self, member: u32) -> &Member;

    /// The member's array, opened if it can be.
    fn array(&self, member: u32) -> Array;

    /// The CRC-32 of its elements; `None` if they cannot be read.
    fn checksum(&self, member: u32, array: &Array) -> Option<u32>;
}

impl Image {
    /// Adds a piece behind those that are there.
    pub(super) fn push(&mut self, content: Content, len: u64) {
        if len > 0 {
            self.pieces.push(Piece { start: self.len, content });
            self.len += len;
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The pieces that have bytes in `range`, and where they begin and end.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (&Content, Range<u64>)> {
        let first = self.pieces.partition_point(|piece| piece.start <= range.start).saturating_sub(1);
        let pieces = self.pieces.get(first..).unwrap_or_default();
        let ends = pieces.iter().skip(1).map(|piece| piece.start).chain([self.len]);
        let pieces = pieces.iter().zip(ends).map(|(piece, end)| (&piece.content, piece.start..end));
        pieces.take_while(move |(_, piece)| piece.start < range.end)
    }

    /// The members whose checksums reading `range` takes.
    pub(super) fn checked(&self, range: Range<u64>) -> impl Iterator<Item = u32> {
        self.within(range.clone()).filter_map(move |(content, piece)| match content {
            Content::ZipHeader(header) if has_pad(&piece, &range) => Some(header.member),
            _ => None,
        })
    }

    /// Fills `out` with the bytes from `offset` on, all of which there are. Decodes only the blocks that have them.
    pub(super) fn read(&self, source: &impl Source, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let range = offset..offset + out.len() as u64;
        for (content, piece) in self.within(range.clone()) {
            let part = range.start.max(piece.start)..range.end.min(piece.end);
            let at = (part.start - piece.start) as usize;
            let out = &mut out[(part.start - offset) as usize..(part.end - offset) as usize];
            match content {
                Content::Text(text) => out.copy_from_slice(&text[at..at + out.len()]),
                Content::Elements(member) => source.array(*member).read_elements_at(at as u64, out)?,
                Content::Swapped { member, item_len } => {
                    read_swapped(&source.array(*member), (*item_len).into(), at as u64, out)?;
                }
                Content::ZipHeader(header) => {
                    let bytes = zip_header(source, header, has_pad(&piece, &part))?;
                    out.copy_from_slice(&bytes[at..at + out.len()]);
                }
                Content::ZipEntry(header) => {
                    let bytes = header.entry(&source.member(header.member).path);
                    out.copy_from_slice(&bytes[at..at + out.len()]);
                }
            }
        }
        Ok(())
    }
}

/// As [`Array::read_elements_at`], with the bytes of each item turned around.
fn read_swapped(array: &Array, item_len: u64, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
    let end = offset + out.len() as u64;
    let start = offset - offset % item_len;
    let mut items = vec![0; (end.next_multiple_of(item_len) - start) as usize];
    array.read_elements_at(start, &mut items)?;
    items.chunks_exact_mut(item_len as usize).for_each(<[u8]>::reverse);
    let skip = (offset - start) as usize;
    out.copy_from_slice(&items[skip..skip + out.len()]);
    Ok(())
}

/// The `.npy` header of a zip file's member, not yet with the checksum that it must have.
pub(super) fn npy_header(array: &Array) -> Result<Vec<u8>, StoreError> {
    array.short_npy_header(PAD_LEN)
}

/// Whether a part of a [`Content::ZipHeader`] has any of the characters that the checksum depends on.
fn has_pad(piece: &Range<u64>, part: &Range<u64>) -> bool {
    let pad_end = piece.end - 1;
    part.start < pad_end && part.end > pad_end - PAD_LEN as u64
}

fn zip_header(source: &impl Source, header: &zip::Header, is_checked: bool) -> Result<Vec<u8>, StoreError> {
    let member = source.member(header.member);
    let array = source.array(header.member);
    let mut npy = npy_header(&array)?;
    // Where the elements cannot be read, that is what tells so. The header is not to take its neighbours with it.
    if is_checked && let Some(checksum) = source.checksum(header.member, &array) {
        fulfil(&mut npy, checksum, array.nbytes());
    }
    let mut bytes = header.local(&member.path);
    bytes.extend_from_slice(&npy);
    Ok(bytes)
}
