//! How snapshots, records and edits stand on disk: MessagePack maps, and what is checked when they are read.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use roaring::RoaringTreemap;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::block_index::Index;
use super::manifest::{Attrs, Blocks, DeletedRows, Edit, Op, Record, check_deleted};
use super::npy::MAX_HEADER_LEN;
use super::{ArrayId, Codec, Compression, Descr, Dtype, FormatError, Generation, Layout, names};

/// Deepest nesting in a payload: attributes or a structured dtype within an edit or a snapshot.
const MAX_PAYLOAD_DEPTH: usize = 2 * super::manifest::MAX_ATTR_DEPTH;

/// A record as it stands on disk, without its name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRecord<'a> {
    id: ArrayId,
    file: Arc<str>,
    descr: Descr,
    shape: Vec<u64>,
    fortran_order: bool,
    offset: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codec: Option<Codec>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    index: Option<Blob<'a>>,
    #[serde(default, skip_serializing_if = "DeletedRows::is_empty")]
    deleted: DeletedRows,
    mtime: i64,
    #[serde(default, skip_serializing_if = "no_attrs")]
    attrs: Arc<Attrs>,
}

fn no_attrs(attrs: &Arc<Attrs>) -> bool {
    attrs.is_empty()
}

/// A name and its record: the record is a byte string of its own, so that a reader may leave it undecoded.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredEntry<'a>(
    #[serde(borrow)] pub(super) Cow<'a, str>,
    #[serde(borrow)] pub(super) Blob<'a>,
);

/// The first frame of a manifest.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot<'a> {
    pub(super) generation: Generation,
    pub(super) next_id: ArrayId,
    #[serde(default)]
    pub(super) attrs: Attrs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) codec: Option<Compression>,
    #[serde(borrow)]
    pub(super) arrays: Vec<StoredEntry<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEdit<'a> {
    generation: Generation,
    time: i64,
    #[serde(borrow)]
    ops: Vec<StoredOp<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredOp<'a> {
    Put(#[serde(borrow)] StoredEntry<'a>),
    Delete(Arc<str>),
    Rename(Arc<str>, Arc<str>),
    Rows(Arc<str>, u64),
    DropRows(Arc<str>, DeletedRows),
    Written(Arc<str>),
    Blocks(Arc<str>, u64, #[serde(borrow)] Blob<'a>),
    Attrs(Option<Arc<str>>, Attrs, Vec<String>),
    Codec(Option<Compression>),
}

pub(super) fn encode_record(record: &Record) -> StoredEntry<'_> {
    let stored = StoredRecord {
        id: record.id,
        file: Arc::clone(&record.file),
        descr: record.dtype.descr().clone(),
        shape: record.layout.shape().to_vec(),
        fortran_order: record.layout.fortran_order(),
        offset: record.offset,
        codec: record.blocks.as_ref().map(|blocks| blocks.codec),
        index: record.blocks.as_ref().map(|blocks| Blob(Cow::Owned(blocks.index.to_bytes().to_vec()))),
        deleted: record.deleted.clone(),
        mtime: record.mtime,
        attrs: Arc::clone(&record.attrs),
    };
    StoredEntry(Cow::Borrowed(&record.name), Blob(Cow::Owned(to_bytes(&stored))))
}

/// The identity in a stored record, which is otherwise not looked at. It is the first field where we wrote it.
pub(super) fn record_id(bytes: &[u8], offset: u64) -> Result<ArrayId, FormatError> {
    if let [0x80..=0x8f, rest @ ..] = bytes
        && let Some((id, _)) = rest.strip_prefix(b"\xa2id").and_then(uint)
    {
        return Ok(ArrayId(id));
    }
    Ok(from_bytes::<StoredRecord<'_>>(bytes, offset)?.id)
}

pub(super) fn decode_record(name: Arc<str>, bytes: &[u8], offset: u64) -> Result<Record, FormatError> {
    let stored: StoredRecord<'_> = from_bytes(bytes, offset)?;
    names::check(&name)?;
    if !names::is_data_file(&stored.file) {
        return Err(FormatError::Name {
            name: stored.file.to_string(),
            what: "is not the name of a data file within the store",
        });
    }
    let dtype = Dtype::from_descr(stored.descr)?;
    let layout = Layout::new(&dtype, &stored.shape, stored.fortran_order)?;
    let fits = stored.offset <= MAX_HEADER_LEN as u64
        && layout.nbytes() <= (i64::MAX as u64).saturating_sub(MAX_HEADER_LEN as u64);
    let wrong = |what| FormatError::Shape { shape: stored.shape.clone(), what };
    if !fits {
        return Err(wrong("does not fit a file"));
    }
    if check_deleted(&stored.deleted, &layout).is_err() {
        return Err(wrong("does not have the rows that are deleted"));
    }
    let refused = |what: &str| FormatError::Index { array: name.to_string(), what: what.to_owned() };
    let blocks = match (stored.codec, stored.index) {
        (None, None) => None,
        (Some(codec), Some(index)) => Some(Blocks { codec, index: parse_index(&index, &name)? }),
        _ => return Err(refused("has no codec, or a codec has no index")),
    };
    if let Some(Blocks { codec, index }) = &blocks {
        index.check(layout.nbytes(), stored.offset, codec).map_err(refused)?;
    }
    Ok(Record {
        name,
        id: stored.id,
        file: stored.file,
        dtype,
        layout,
        offset: stored.offset,
        blocks,
        deleted: stored.deleted,
        mtime: stored.mtime,
        attrs: stored.attrs,
        upstream: None,
    })
}

fn parse_index(Blob(bytes): &Blob<'_>, name: &str) -> Result<Index, FormatError> {
    Index::parse(bytes).map_err(|what| FormatError::Index { array: name.to_owned(), what: what.to_owned() })
}

impl Edit {
    /// The payload of an edit's frame.
    pub fn encode(&self) -> Vec<u8> {
        let ops = self.ops.iter().map(|op| match op {
            Op::Put(record) => StoredOp::Put(encode_record(record)),
            Op::Delete(name) => StoredOp::Delete(Arc::clone(name)),
            Op::Rename(from, to) => StoredOp::Rename(Arc::clone(from), Arc::clone(to)),
            Op::Rows(name, n_rows) => StoredOp::Rows(Arc::clone(name), *n_rows),
            Op::DropRows(name, rows) => StoredOp::DropRows(Arc::clone(name), rows.clone()),
            Op::Written(name) => StoredOp::Written(Arc::clone(name)),
            Op::Blocks(name, n_rows, index) => {
                StoredOp::Blocks(Arc::clone(name), *n_rows, Blob(Cow::Owned(index.to_bytes().to_vec())))
            }
            Op::Codec(codec) => StoredOp::Codec(*codec),
            Op::Attrs(name, set, remove) => StoredOp::Attrs(name.clone(), set.clone(), remove.clone()),
        });
        to_bytes(&StoredEdit { generation: self.generation, time: self.time, ops: ops.collect() })
    }

    /// Reads an edit's payload. `offset` is where its frame starts.
    ///
    /// # Errors
    /// `Payload` if it does not decode, or what is wrong with a record.
    pub fn decode(payload: &[u8], offset: u64) -> Result<Self, FormatError> {
        let stored: StoredEdit<'_> = from_bytes(payload, offset)?;
        let ops = stored.ops.into_iter().map(|op| {
            Ok(match op {
                StoredOp::Put(StoredEntry(name, Blob(bytes))) => {
                    Op::Put(decode_record(name.into(), &bytes, offset)?)
                }
                StoredOp::Delete(name) => Op::Delete(name),
                StoredOp::Rename(from, to) => Op::Rename(from, to),
                StoredOp::Rows(name, n_rows) => Op::Rows(name, n_rows),
                StoredOp::DropRows(name, rows) => Op::DropRows(name, rows),
                StoredOp::Written(name) => Op::Written(name),
                StoredOp::Blocks(name, n_rows, index) => {
                    let index = parse_index(&index, &name)?;
                    Op::Blocks(name, n_rows, index)
                }
                StoredOp::Codec(codec) => Op::Codec(codec),
                StoredOp::Attrs(name, set, remove) => Op::Attrs(name, set, remove),
            })
        });
        Ok(Self {
            generation: stored.generation,
            time: stored.time,
            ops: ops.collect::<Result<_, FormatError>>()?,
        })
    }
}

/// An edit that only sets the number of rows of one array.
#[derive(Debug, PartialEq)]
pub(super) struct RowsEdit<'a> {
    pub(super) generation: Generation,
    pub(super) time: i64,
    pub(super) name: &'a str,
    pub(super) n_rows: u64,
}

/// Reads an edit that only sets a number of rows, in the very bytes in which [`Edit::encode`] writes it: a log consists
/// of little else. `None` for all others, and for these in other bytes.
pub(super) fn decode_rows(payload: &[u8]) -> Option<RowsEdit<'_>> {
    let (generation, rest) = uint(payload.strip_prefix(b"\x83\xaageneration")?)?;
    let (time, rest) = uint(rest.strip_prefix(b"\xa4time")?)?;
    let (name, rest) = text(rest.strip_prefix(b"\xa3ops\x91\x81\xa4rows\x92")?)?;
    let (n_rows, rest) = uint(rest)?;
    rest.is_empty().then_some(())?;
    Some(RowsEdit { generation: Generation(generation), time: time.try_into().ok()?, name, n_rows })
}

/// An unsigned integer of MessagePack, and what follows it.
fn uint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    Some(match kind {
        0..=0x7f => (u64::from(*kind), rest),
        0xcc => rest.split_first().map(|(value, rest)| (u64::from(*value), rest))?,
        0xcd => rest.split_first_chunk().map(|(value, rest)| (u16::from_be_bytes(*value).into(), rest))?,
        0xce => rest.split_first_chunk().map(|(value, rest)| (u32::from_be_bytes(*value).into(), rest))?,
        0xcf => rest.split_first_chunk().map(|(value, rest)| (u64::from_be_bytes(*value), rest))?,
        _ => return None,
    })
}

/// A string of MessagePack of less than 256 bytes, and what follows it.
fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (len, rest) = match kind {
        0xa0..=0xbf => (usize::from(kind & 0x1f), rest),
        0xd9 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(len)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

pub(super) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value)
        .expect("writing MessagePack to memory fails only for types that these are not")
}

pub(super) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8], offset: u64) -> Result<T, FormatError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_PAYLOAD_DEPTH);
    T::deserialize(&mut deserializer).map_err(|source| FormatError::Payload { offset, source })
}

/// Bytes that MessagePack writes as a byte string. Those that are read lie in the payload.
pub(super) struct Blob<'a>(pub(super) Cow<'a, [u8]>);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl<'de> Visitor<'de> for BlobVisitor {
            type Value = Blob<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_borrowed_bytes<E: serde::de::Error>(self, bytes: &'de [u8]) -> Result<Blob<'de>, E> {
                Ok(Blob(Cow::Borrowed(bytes)))
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob<'de>, E> {
                Ok(Blob(Cow::Owned(bytes.to_vec())))
            }
        }
        deserializer.deserialize_bytes(BlobVisitor)
    }
}

impl Serialize for DeletedRows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0.serialize_into(&mut bytes).map_err(serde::ser::Error::custom)?;
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for DeletedRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Blob(bytes) = Blob::deserialize(deserializer)?;
        let mut rest = &*bytes;
        let rows = RoaringTreemap::deserialize_from(&mut rest).map_err(D::Error::custom)?;
        if !rest.is_empty() {
            return Err(D::Error::custom("bytes after the bitmap of deleted rows"));
        }
        Ok(Self(Arc::new(rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_of_rows_is_read_as_any_other() {
        for (name, n_rows, generation, time) in [
            ("a", 0, 1, 0),
            ("g/\u{e9}", 127, 127, 1_700_000_000_000_000_000),
            (&*"n".repeat(31), 128, 128, i64::MAX),
            (&*"n".repeat(32), 255, 256, 1),
            (&*"n".repeat(255), 65_536, u64::from(u32::MAX), 1),
            ("", u64::MAX, u64::MAX, 1),
        ] {
            let ops = vec![Op::Rows(name.into(), n_rows)];
            let edit = Edit { generation: Generation(generation), time, ops };
            let bytes = edit.encode();
            let rows = RowsEdit { generation: edit.generation, time, name, n_rows };
            assert_eq!(decode_rows(&bytes), Some(rows), "{name}");
            for len in 0..bytes.len() {
                assert_eq!(decode_rows(&bytes[..len]), None, "{name} cut at {len}");
            }
            let stored: StoredEdit<'_> = from_bytes(&bytes, 0).unwrap();
            assert!(
                matches!(&stored.ops[..], [StoredOp::Rows(found, n)] if &**found == name && *n == n_rows)
            );
            assert_eq!((stored.generation, stored.time), (edit.generation, edit.time));
        }
        for ops in
            [vec![], vec![Op::Written("a".into())], vec![Op::Rows("a".into(), 1), Op::Rows("b".into(), 2)]]
        {
            let edit = Edit { generation: Generation(1), time: -1, ops };
            assert_eq!(decode_rows(&edit.encode()), None);
            assert_eq!(Edit::decode(&edit.encode(), 0).unwrap(), edit);
        }
    }
}
