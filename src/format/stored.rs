//! How snapshots, records and edits stand on disk: MessagePack maps, and what is checked when they are read.
//!
//! They are written with serde, and read with [`Reader`], which takes nothing for something else.

use std::borrow::Cow;
use std::sync::Arc;

use roaring::RoaringTreemap;
use serde::{Serialize, Serializer};

use super::block_index::Index;
use super::dtype::MAX_DEPTH;
use super::manifest::{Attrs, Blocks, DeletedRows, Edit, MAX_ATTR_DEPTH, Op, Record, check_deleted};
use super::messagepack::{Malformed, Reader, Result, needed, once, read_all, unknown};
use super::npy::MAX_HEADER_LEN;
use super::{
    ArrayId, Codec, Compression, Descr, Dtype, Field, FormatError, Generation, Layout, Subarray, names,
};

/// A record as it stands on disk, without its name.
#[derive(Serialize)]
struct StoredRecord<'a> {
    id: ArrayId,
    file: Arc<str>,
    descr: Descr,
    shape: Vec<u64>,
    fortran_order: bool,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    codec: Option<Codec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<Blob<'a>>,
    #[serde(skip_serializing_if = "DeletedRows::is_empty")]
    deleted: DeletedRows,
    mtime: i64,
    #[serde(skip_serializing_if = "no_attrs")]
    attrs: Arc<Attrs>,
}

fn no_attrs(attrs: &Arc<Attrs>) -> bool {
    attrs.is_empty()
}

impl<'a> StoredRecord<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let (mut id, mut file, mut descr, mut shape) = (None, None, None, None);
        let (mut fortran_order, mut offset, mut mtime) = (None, None, None);
        let (mut codec, mut index, mut deleted, mut attrs) = (None, None, None, None);
        reader.fields(|reader, key| match key {
            "id" => once(&mut id, key, reader.uint()?),
            "file" => once(&mut file, key, reader.str()?),
            "descr" => once(&mut descr, key, read_descr(reader, 0)?),
            "shape" => once(&mut shape, key, reader.list(Reader::uint)?),
            "fortran_order" => once(&mut fortran_order, key, reader.bool()?),
            "offset" => once(&mut offset, key, reader.uint()?),
            "codec" => once(&mut codec, key, Codec::read(reader)?),
            "index" => once(&mut index, key, reader.bin()?),
            "deleted" => once(&mut deleted, key, read_deleted(reader)?),
            "mtime" => once(&mut mtime, key, reader.int()?),
            "attrs" => once(&mut attrs, key, read_attrs(reader)?),
            key => Err(unknown(key)),
        })?;
        Ok(Self {
            id: ArrayId(needed(id, "id")?),
            file: needed(file, "file")?.into(),
            descr: needed(descr, "descr")?,
            shape: needed(shape, "shape")?,
            fortran_order: needed(fortran_order, "fortran_order")?,
            offset: needed(offset, "offset")?,
            codec,
            index: index.map(|bytes| Blob(Cow::Borrowed(bytes))),
            deleted: deleted.unwrap_or_default(),
            mtime: needed(mtime, "mtime")?,
            attrs: attrs.map(Arc::new).unwrap_or_default(),
        })
    }
}

/// A name and its record: the record is a byte string of its own, so that a reader may leave it undecoded.
#[derive(Serialize)]
pub(super) struct StoredEntry<'a>(pub(super) Cow<'a, str>, pub(super) Blob<'a>);

impl<'a> StoredEntry<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        reader.tuple(2)?;
        Ok(Self(Cow::Borrowed(reader.str()?), Blob(Cow::Borrowed(reader.bin()?))))
    }
}

/// The first frame of a manifest.
#[derive(Serialize)]
pub(super) struct Snapshot<'a> {
    pub(super) generation: Generation,
    pub(super) next_id: ArrayId,
    pub(super) attrs: Attrs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) codec: Option<Compression>,
    pub(super) arrays: Vec<StoredEntry<'a>>,
}

impl<'a> Snapshot<'a> {
    /// Reads a snapshot's payload, but not what the records say. `offset` is where its frame starts.
    pub(super) fn decode(payload: &'a [u8], offset: u64) -> std::result::Result<Self, FormatError> {
        read_all(payload, Self::read).map_err(|wrong| wrong.at(offset))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let (mut generation, mut next_id, mut attrs, mut codec, mut arrays) = (None, None, None, None, None);
        reader.fields(|reader, key| match key {
            "generation" => once(&mut generation, key, reader.uint()?),
            "next_id" => once(&mut next_id, key, reader.uint()?),
            "attrs" => once(&mut attrs, key, read_attrs(reader)?),
            "codec" => once(&mut codec, key, Compression::read(reader)?),
            "arrays" => once(&mut arrays, key, reader.list(StoredEntry::read)?),
            key => Err(unknown(key)),
        })?;
        Ok(Self {
            generation: Generation(needed(generation, "generation")?),
            next_id: ArrayId(needed(next_id, "next_id")?),
            attrs: attrs.unwrap_or_default(),
            codec,
            arrays: needed(arrays, "arrays")?,
        })
    }
}

/// An edit as it stands on disk, its records undecoded.
#[derive(Serialize)]
pub(super) struct StoredEdit<'a> {
    pub(super) generation: Generation,
    pub(super) time: i64,
    pub(super) ops: Vec<StoredOp<'a>>,
}

impl<'a> StoredEdit<'a> {
    /// Reads an edit's payload, but not what the records say. `offset` is where its frame starts.
    pub(super) fn decode(payload: &'a [u8], offset: u64) -> std::result::Result<Self, FormatError> {
        read_all(payload, Self::read).map_err(|wrong| wrong.at(offset))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let (mut generation, mut time, mut ops) = (None, None, None);
        reader.fields(|reader, key| match key {
            "generation" => once(&mut generation, key, reader.uint()?),
            "time" => once(&mut time, key, reader.int()?),
            "ops" => once(&mut ops, key, reader.list(StoredOp::read)?),
            key => Err(unknown(key)),
        })?;
        Ok(Self {
            generation: Generation(needed(generation, "generation")?),
            time: needed(time, "time")?,
            ops: needed(ops, "ops")?,
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoredOp<'a> {
    Put(StoredEntry<'a>),
    Delete(Arc<str>),
    Rename(Arc<str>, Arc<str>),
    Rows(Arc<str>, u64),
    DropRows(Arc<str>, DeletedRows),
    Written(Arc<str>),
    Blocks(Arc<str>, u64, Blob<'a>),
    Attrs(Option<Arc<str>>, Attrs, Vec<String>),
    Codec(Option<Compression>),
}

impl<'a> StoredOp<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let mut op = None;
        reader.fields(|reader, key| once(&mut op, key, Self::read_kind(reader, key)?))?;
        op.ok_or_else(|| Malformed("a change is a map without a key".into()))
    }

    fn read_kind(reader: &mut Reader<'a>, kind: &str) -> Result<Self> {
        Ok(match kind {
            "put" => Self::Put(StoredEntry::read(reader)?),
            "delete" => Self::Delete(reader.str()?.into()),
            "written" => Self::Written(reader.str()?.into()),
            "rename" => {
                reader.tuple(2)?;
                Self::Rename(reader.str()?.into(), reader.str()?.into())
            }
            "rows" => {
                reader.tuple(2)?;
                Self::Rows(reader.str()?.into(), reader.uint()?)
            }
            "drop_rows" => {
                reader.tuple(2)?;
                Self::DropRows(reader.str()?.into(), read_deleted(reader)?)
            }
            "blocks" => {
                reader.tuple(3)?;
                let (name, n_rows) = (reader.str()?.into(), reader.uint()?);
                Self::Blocks(name, n_rows, Blob(Cow::Borrowed(reader.bin()?)))
            }
            "attrs" => {
                reader.tuple(3)?;
                let name = reader.optional(Reader::str)?.map(Arc::from);
                let set = read_attrs(reader)?;
                Self::Attrs(name, set, reader.list(|reader| reader.str().map(str::to_owned))?)
            }
            "codec" => Self::Codec(reader.optional(Compression::read)?),
            kind => return Err(Malformed(format!("a change has the unknown kind {kind:?}"))),
        })
    }

    /// The change, its record decoded as well. `offset` is where the edit's frame starts.
    pub(super) fn decode(self, offset: u64) -> std::result::Result<Op, FormatError> {
        Ok(match self {
            Self::Put(StoredEntry(name, Blob(bytes))) => Op::Put(decode_record(name.into(), &bytes, offset)?),
            Self::Delete(name) => Op::Delete(name),
            Self::Rename(from, to) => Op::Rename(from, to),
            Self::Rows(name, n_rows) => Op::Rows(name, n_rows),
            Self::DropRows(name, rows) => Op::DropRows(name, rows),
            Self::Written(name) => Op::Written(name),
            Self::Blocks(name, n_rows, index) => {
                let index = parse_index(&index, &name)?;
                Op::Blocks(name, n_rows, index)
            }
            Self::Codec(codec) => Op::Codec(codec),
            Self::Attrs(name, set, remove) => Op::Attrs(name, set, remove),
        })
    }
}

fn read_descr(reader: &mut Reader<'_>, depth: usize) -> Result<Descr> {
    if depth > MAX_DEPTH {
        return Err(FormatError::Dtype { descr: "[...]".into(), what: "is nested too deeply" }.into());
    }
    let inner = depth.saturating_add(1);
    if reader.is_str() {
        return Ok(Descr::Scalar(reader.str()?.to_owned()));
    }
    if reader.is_array() {
        return Ok(Descr::Fields(reader.list(|reader| read_field(reader, inner))?));
    }
    let (mut descr, mut shape) = (None, None);
    reader.fields(|reader, key| match key {
        "descr" => once(&mut descr, key, read_descr(reader, inner)?),
        "shape" => once(&mut shape, key, reader.list(Reader::uint)?),
        key => Err(unknown(key)),
    })?;
    let (descr, shape) = (needed(descr, "descr")?, needed(shape, "shape")?);
    Ok(Descr::Subarray(Box::new(Subarray { descr, shape })))
}

fn read_field(reader: &mut Reader<'_>, depth: usize) -> Result<Field> {
    let (mut title, mut name, mut descr, mut shape) = (None, None, None, None);
    reader.fields(|reader, key| match key {
        "title" => once(&mut title, key, reader.str()?.to_owned()),
        "name" => once(&mut name, key, reader.str()?.to_owned()),
        "descr" => once(&mut descr, key, read_descr(reader, depth)?),
        "shape" => once(&mut shape, key, reader.list(Reader::uint)?),
        key => Err(unknown(key)),
    })?;
    Ok(Field {
        title: needed(title, "title")?,
        name: needed(name, "name")?,
        descr: needed(descr, "descr")?,
        shape: needed(shape, "shape")?,
    })
}

fn read_attrs(reader: &mut Reader<'_>) -> Result<Attrs> {
    let mut attrs = Attrs::new();
    reader.fields(|reader, key| {
        let value = reader.value(MAX_ATTR_DEPTH)?;
        match attrs.insert(key.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(Malformed(format!("the attribute {key:?} is there twice"))),
        }
    })?;
    Ok(attrs)
}

/// Deleted rows, in the one serialization that they have.
fn read_deleted(reader: &mut Reader<'_>) -> Result<DeletedRows> {
    let bytes = reader.bin()?;
    let wrong = |what: &str| Malformed(format!("the bitmap of deleted rows: {what}"));
    let rows = RoaringTreemap::deserialize_from(bytes).map_err(|error| wrong(&error.to_string()))?;
    let rows = DeletedRows(Arc::new(rows));
    // What follows it, is there twice, or is in another order would be lost when it is written again.
    if rows.to_bytes() != bytes || rows.0.bitmaps().any(|(_, bitmap)| bitmap.is_empty()) {
        return Err(wrong("is not as bitmaps are written"));
    }
    Ok(rows)
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

/// The identity in a stored record, which begins with it, and is otherwise not looked at.
pub(super) fn record_id(bytes: &[u8], offset: u64) -> std::result::Result<ArrayId, FormatError> {
    let id = match bytes {
        [0x80..=0x8f, rest @ ..] => rest.strip_prefix(b"\xa2id").and_then(uint),
        _ => None,
    };
    match id {
        Some((id, _)) => Ok(ArrayId(id)),
        None => Err(Malformed("a record does not begin with its id".into()).at(offset)),
    }
}

pub(super) fn decode_record(
    name: Arc<str>,
    bytes: &[u8],
    offset: u64,
) -> std::result::Result<Record, FormatError> {
    let stored = read_all(bytes, StoredRecord::read).map_err(|wrong| wrong.at(offset))?;
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

fn parse_index(Blob(bytes): &Blob<'_>, name: &str) -> std::result::Result<Index, FormatError> {
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
    pub fn decode(payload: &[u8], offset: u64) -> std::result::Result<Self, FormatError> {
        let stored = StoredEdit::decode(payload, offset)?;
        let ops = stored.ops.into_iter().map(|op| op.decode(offset));
        Ok(Self {
            generation: stored.generation,
            time: stored.time,
            ops: ops.collect::<std::result::Result<_, FormatError>>()?,
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

/// Bytes that MessagePack writes as a byte string. Those that are read lie in the payload.
pub(super) struct Blob<'a>(pub(super) Cow<'a, [u8]>);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl DeletedRows {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0.serialize_into(&mut bytes).expect("writing to memory does not fail");
        bytes
    }
}

impl Serialize for DeletedRows {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
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
            let stored = read_all(&bytes, StoredEdit::read).unwrap();
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
