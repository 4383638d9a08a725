//! The table of arrays: records, the edits that change them, and folding edits into the table.
//!
//! The first frame of a manifest is a [`Snapshot`] of the whole table, each later one an [`Edit`]. An edit is one
//! commit: its operations apply in order, all or none.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use roaring::RoaringTreemap;
use serde::Serialize;

use super::block_index::{FILE_HEADER_LEN, Index};
use super::stored::{
    Blob, RowsEdit, Snapshot, StoredEdit, StoredEntry, StoredOp, decode_record, decode_rows, encode_record,
    record_id, to_bytes,
};
use super::{Codec, Compression, Dtype, FormatError, Layout, names, upstream};

/// User attributes: names and MessagePack values.
pub type Attrs = BTreeMap<String, rmpv::Value>;

/// Deepest nesting of arrays and maps in the value of an attribute. What decodes it calls itself for each level.
pub(super) const MAX_ATTR_DEPTH: usize = 64;

/// Generations and ids are below this: no count of them comes to its end.
const MAX_COUNT: u64 = 1 << 63;

/// Checks that a store can hold these attributes.
///
/// # Errors
/// `Attr` for a value that is nested deeper than 64 levels.
pub fn check_attrs(attrs: &Attrs) -> Result<(), FormatError> {
    match attrs.iter().find(|(_, value)| !is_shallow(value, MAX_ATTR_DEPTH)) {
        Some((name, _)) => {
            Err(FormatError::Attr { name: name.clone(), what: "is nested deeper than 64 levels" })
        }
        None => Ok(()),
    }
}

fn is_shallow(value: &rmpv::Value, depth: usize) -> bool {
    let inner = depth.saturating_sub(1);
    match value {
        rmpv::Value::Array(items) => depth > 0 && items.iter().all(|item| is_shallow(item, inner)),
        rmpv::Value::Map(entries) => {
            depth > 0 && entries.iter().all(|(key, value)| is_shallow(key, inner) && is_shallow(value, inner))
        }
        _ => true,
    }
}

/// The identity of one version of an array. Never reused within a store; 0 is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ArrayId(pub u64);

/// The number of commits that led to a state of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// A set of stored rows that are deleted: a 64-bit Roaring bitmap in its portable serialization.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeletedRows(pub Arc<RoaringTreemap>);

/// How the elements of an array are compressed, and where their blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// How they are encoded.
    pub codec: Codec,
    /// Where they are.
    pub index: Index,
}

/// What the store knows of one version of an array. Checked when it was made: no field contradicts another.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The array's name.
    pub name: Arc<str>,
    /// The identity of this version.
    pub id: ArrayId,
    /// The data file, a plain name within the store's folder.
    pub file: Arc<str>,
    /// The dtype.
    pub dtype: Dtype,
    /// The stored elements: with the rows that are deleted.
    pub layout: Layout,
    /// Length of the `.npy` header, in bytes: the offset of the first element in the virtual file, and in the data
    /// file if that is not compressed.
    pub offset: u64,
    /// How the elements are compressed, if they are, and where their blocks are.
    pub blocks: Option<Blocks>,
    /// Stored rows that are deleted.
    pub deleted: DeletedRows,
    /// Time of the last commit that changed the array, in nanoseconds since 1970.
    pub mtime: i64,
    /// The user's attributes.
    pub attrs: Arc<Attrs>,
    /// Of an array in a store of NumPack 0.1 to 0.7. Never in a manifest.
    pub upstream: Option<Arc<upstream::Source>>,
}

impl Record {
    /// Rows that are not deleted.
    pub fn n_rows(&self) -> u64 {
        self.layout.n_rows().saturating_sub(self.deleted.0.len())
    }

    /// The shape without the deleted rows.
    pub fn shape(&self) -> Vec<u64> {
        let mut shape = self.layout.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = self.n_rows();
        }
        shape
    }

    /// Length of the data file, in bytes, as far as it is committed.
    pub fn data_end(&self) -> u64 {
        match &self.blocks {
            None => self.elements_offset().saturating_add(self.layout.nbytes()),
            // What follows may be reserved, and not written yet.
            Some(_) => self.header_offset().saturating_add(self.offset),
        }
    }

    /// Offset of the first element in the data file of an array that is not compressed, in bytes.
    pub fn elements_offset(&self) -> u64 {
        if self.upstream.is_some() { 0 } else { self.offset }
    }

    /// Whether the elements are in several files, as only NumPack 0.7 stored them.
    pub fn is_segmented(&self) -> bool {
        self.upstream.is_some() && upstream::is_segmented(&self.file)
    }

    /// Offset of the `.npy` header in the data file, in bytes.
    pub fn header_offset(&self) -> u64 {
        if self.blocks.is_some() { FILE_HEADER_LEN } else { 0 }
    }
}

/// One commit: what it changes, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The generation that the commit makes: one more than the one before.
    pub generation: Generation,
    /// Time of the commit, in nanoseconds since 1970.
    pub time: i64,
    /// The operations.
    pub ops: Vec<Op>,
}

/// One change to the table.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Adds an array, or a new version that takes the name and place of the old.
    Put(Record),
    /// Removes an array.
    Delete(Arc<str>),
    /// Gives an array another name, which no array has. It keeps its place.
    Rename(Arc<str>, Arc<str>),
    /// Sets the number of stored rows: rows were appended.
    Rows(Arc<str>, u64),
    /// Deletes further stored rows.
    DropRows(Arc<str>, DeletedRows),
    /// Tells that elements were written in place.
    Written(Arc<str>),
    /// Sets the number of stored rows and the index of a compressed array: rows were appended, or written in place.
    Blocks(Arc<str>, u64, Index),
    /// Sets how new arrays are compressed where nobody says.
    Codec(Option<Compression>),
    /// Sets and removes user attributes of an array, or of the store.
    Attrs(Option<Arc<str>>, Attrs, Vec<String>),
}

/// What an edit did to one array, for those who keep something derived from the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The array's name, after the change.
    pub name: Arc<str>,
    /// The version that changed.
    pub id: ArrayId,
    /// What changed.
    pub kind: ChangeKind,
    /// Whether it was this process's own commit, through this handle.
    pub is_own: bool,
}

/// See [`Change`]. A new version of an array is a removal and an addition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// The array is new.
    Added,
    /// The array is gone.
    Removed,
    /// The array had another name.
    Renamed {
        /// The name it had.
        from: Arc<str>,
    },
    /// Rows were appended or deleted.
    Resized,
    /// Elements were written in place, as far as that was told: it is only where somebody watches.
    Written,
    /// Only user attributes changed.
    Attrs,
}

/// All arrays of a store at one generation, in the order of their first save.
///
/// What the manifest says of an array that was put there stays undecoded until somebody asks for that array, or it
/// changes: its frame's checksum is right, names and identities are checked, and the rest is when it is decoded. A store
/// of many arrays thus opens quickly.
#[derive(Debug, Clone)]
pub struct Table {
    generation: Generation,
    next_id: ArrayId,
    attrs: Arc<Attrs>,
    compression: Option<Compression>,
    entries: BTreeMap<u64, Entry>,
    places: HashMap<Arc<str>, u64>,
    /// Made when first asked for.
    places_by_id: OnceLock<HashMap<ArrayId, u64>>,
    /// Bytes that were read together, and hold the records that lie [there](StoredRecord::Shared).
    shared: Arc<Vec<u8>>,
}

/// An array's place in the table.
#[derive(Debug, Clone)]
struct Entry {
    name: Arc<str>,
    id: ArrayId,
    stored: Stored,
    record: OnceLock<Arc<Record>>,
}

/// What an entry was read from.
#[derive(Debug, Clone)]
struct Stored {
    record: StoredRecord,
    /// Where its frame starts in the file.
    offset: u64,
}

/// A record that is not decoded.
#[derive(Debug, Clone)]
enum StoredRecord {
    /// At a place of the bytes that all share, so long: a manifest has at most 2^32 bytes.
    Shared(u32, u32),
    Own(Arc<[u8]>),
}

impl Stored {
    /// Of a record that was made here.
    fn nowhere() -> Self {
        Self { record: StoredRecord::Shared(0, 0), offset: 0 }
    }

    /// Of `record`, which lies in `shared`, or in other bytes.
    fn new(record: &[u8], shared: &[u8], offset: u64) -> Self {
        let start = record.as_ptr().addr().wrapping_sub(shared.as_ptr().addr());
        let is_shared = shared.get(start..).is_some_and(|rest| rest.len() >= record.len());
        let place = (u32::try_from(start), u32::try_from(record.len()));
        let record = match place {
            (Ok(start), Ok(len)) if is_shared => StoredRecord::Shared(start, len),
            _ => StoredRecord::Own(record.into()),
        };
        Self { record, offset }
    }

    fn bytes<'a>(&'a self, shared: &'a [u8]) -> &'a [u8] {
        match &self.record {
            StoredRecord::Shared(start, len) => {
                let record = shared.get(*start as usize..).and_then(|rest| rest.get(..*len as usize));
                record.unwrap_or(&[])
            }
            StoredRecord::Own(bytes) => bytes,
        }
    }
}

impl Entry {
    fn new(record: Record) -> Self {
        Self {
            name: Arc::clone(&record.name),
            id: record.id,
            stored: Stored::nowhere(),
            record: OnceLock::from(Arc::new(record)),
        }
    }

    fn decode(&self, shared: &[u8]) -> Result<&Arc<Record>, FormatError> {
        if let Some(record) = self.record.get() {
            return Ok(record);
        }
        let bytes = self.stored.bytes(shared);
        let record = decode_record(Arc::clone(&self.name), bytes, self.stored.offset)?;
        Ok(self.record.get_or_init(|| Arc::new(record)))
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            generation: Generation(0),
            next_id: ArrayId(1),
            attrs: Arc::default(),
            compression: None,
            entries: BTreeMap::new(),
            places: HashMap::new(),
            places_by_id: OnceLock::new(),
            shared: Arc::default(),
        }
    }
}

impl Table {
    /// The generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The identity that the next new version gets.
    pub fn next_id(&self) -> ArrayId {
        self.next_id
    }

    /// The store's own attributes.
    pub fn attrs(&self) -> &Arc<Attrs> {
        &self.attrs
    }

    /// How new arrays are compressed where nobody says.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Number of arrays.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no array.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The names of all arrays, in the order of their first save.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.values().map(|entry| &entry.name)
    }

    /// The record of an array.
    ///
    /// # Errors
    /// `Payload` if it does not decode, or what is wrong with it.
    pub fn get(&self, name: &str) -> Result<Option<&Arc<Record>>, FormatError> {
        self.at(self.places.get(name))
    }

    /// The record of a version of an array, whatever name it has by now.
    ///
    /// # Errors
    /// As [`Table::get`].
    pub fn by_id(&self, id: ArrayId) -> Result<Option<&Arc<Record>>, FormatError> {
        let places = self
            .places_by_id
            .get_or_init(|| self.entries.iter().map(|(place, entry)| (entry.id, *place)).collect());
        self.at(places.get(&id))
    }

    fn at(&self, place: Option<&u64>) -> Result<Option<&Arc<Record>>, FormatError> {
        let entry = place.and_then(|place| self.entries.get(place));
        entry.map(|entry| entry.decode(&self.shared)).transpose()
    }

    /// All records, in the order of their first save.
    ///
    /// # Errors
    /// As [`Table::get`].
    pub fn records(&self) -> Result<Vec<&Arc<Record>>, FormatError> {
        self.entries.values().map(|entry| entry.decode(&self.shared)).collect()
    }

    /// Reads a snapshot's payload, without the records in it. `offset` is where its frame starts.
    ///
    /// # Errors
    /// `Payload` if it does not decode; `Edit` for names and identities that are there twice, or cannot be.
    pub fn decode(payload: &[u8], offset: u64) -> Result<Self, FormatError> {
        Self::decode_shared(Arc::new(payload.to_vec()), 0..payload.len(), offset)
    }

    /// As [`Table::decode`], of the payload that `bytes` has at `payload`. The table keeps them.
    ///
    /// # Errors
    /// As [`Table::decode`].
    pub fn decode_shared(
        bytes: Arc<Vec<u8>>,
        payload: Range<usize>,
        offset: u64,
    ) -> Result<Self, FormatError> {
        let shared = bytes;
        let snapshot = Snapshot::decode(shared.get(payload).unwrap_or(&[]), offset)?;
        let refused = |what: String| FormatError::Edit { generation: snapshot.generation.0, what };
        if snapshot.generation.0 >= MAX_COUNT || snapshot.next_id.0 >= MAX_COUNT {
            return Err(refused(format!("counts up to 2**63: the next id is {}", snapshot.next_id.0)));
        }
        let mut places = HashMap::with_capacity(snapshot.arrays.len());
        let mut entries = Vec::with_capacity(snapshot.arrays.len());
        for (place, StoredEntry(name, Blob(bytes))) in (0_u64..).zip(&snapshot.arrays) {
            let id = record_id(bytes, offset)?;
            let name: Arc<str> = Arc::from(&**name);
            if id >= snapshot.next_id || id.0 == 0 {
                return Err(refused(format!("array {name:?} has the id {} of another", id.0)));
            }
            if places.insert(Arc::clone(&name), place).is_some() {
                return Err(refused(format!("array {name:?} is there twice")));
            }
            let stored = Stored::new(bytes, &shared, offset);
            entries.push((place, Entry { name, id, stored, record: OnceLock::new() }));
        }
        let mut ids: Vec<_> = entries.iter().map(|(_, entry)| entry.id).collect();
        ids.sort_unstable();
        if let Some((id, _)) = ids.iter().zip(ids.iter().skip(1)).find(|(a, b)| a == b) {
            return Err(refused(format!("two arrays have the id {}", id.0)));
        }
        let Snapshot { generation, next_id, attrs, codec, arrays: _ } = snapshot;
        Ok(Self {
            generation,
            next_id,
            attrs: Arc::new(attrs),
            compression: codec,
            entries: entries.into_iter().collect(),
            places,
            places_by_id: OnceLock::new(),
            shared,
        })
    }

    /// The payload of a snapshot of this table.
    pub fn encode(&self) -> Vec<u8> {
        to_bytes(&Snapshot {
            generation: self.generation,
            next_id: self.next_id,
            attrs: Attrs::clone(&self.attrs),
            codec: self.compression,
            arrays: self.entries.values().map(|entry| self.stored(entry)).collect(),
        })
    }

    /// A record as it stands in a snapshot. Those that nobody asked for stay as they are.
    fn stored<'a>(&'a self, entry: &'a Entry) -> StoredEntry<'a> {
        match entry.record.get() {
            Some(record) => encode_record(record),
            None => {
                let bytes = entry.stored.bytes(&self.shared);
                StoredEntry(Cow::Borrowed(&entry.name), Blob(Cow::Borrowed(bytes)))
            }
        }
    }

    /// Reads the payload of an edit's frame, which starts at `offset`, and applies it as [`Table::apply`] does. `grown`
    /// becomes the names of the arrays that it gave rows or blocks.
    ///
    /// # Errors
    /// As [`Edit::decode`] and [`Table::apply`].
    pub fn apply_payload(
        &mut self,
        payload: &[u8],
        offset: u64,
        grown: &mut Vec<Arc<str>>,
        changed: &mut dyn FnMut(Change),
    ) -> Result<(), FormatError> {
        grown.clear();
        if let Some(RowsEdit { generation, time, name, n_rows }) = decode_rows(payload) {
            self.check_follows(generation)?;
            grown.push(self.set_rows(name, n_rows, generation, time, changed)?);
            self.generation = generation;
            return Ok(());
        }
        let edit = StoredEdit::decode(payload, offset)?;
        self.check_follows(edit.generation)?;
        for op in edit.ops {
            if let StoredOp::Put(StoredEntry(name, Blob(record))) = op {
                let id = record_id(&record, offset)?;
                let stored = Stored::new(&record, &self.shared, offset);
                let entry = Entry { name: name.into(), id, stored, record: OnceLock::new() };
                self.put(entry, edit.generation, changed)?;
                continue;
            }
            let op = op.decode(offset)?;
            self.apply_op(&op, edit.generation, edit.time, changed)?;
            if let Op::Rows(name, _) | Op::Blocks(name, ..) = op {
                grown.push(name);
            }
        }
        self.generation = edit.generation;
        Ok(())
    }

    /// Applies a commit, and tells `changed` what it did to each array.
    ///
    /// # Errors
    /// `Edit` if it does not fit this table, which is then of no use any more.
    pub fn apply(&mut self, edit: &Edit, changed: &mut dyn FnMut(Change)) -> Result<(), FormatError> {
        self.check_follows(edit.generation)?;
        for op in &edit.ops {
            self.apply_op(op, edit.generation, edit.time, changed)?;
        }
        self.generation = edit.generation;
        Ok(())
    }

    /// Adds an array, or a new version of the one that has its name.
    fn put(
        &mut self,
        entry: Entry,
        generation: Generation,
        changed: &mut dyn FnMut(Change),
    ) -> Result<(), FormatError> {
        let (name, id) = (Arc::clone(&entry.name), entry.id);
        if id < self.next_id {
            return Err(refused(generation, format!("array {name:?} has the id {} of another", id.0)));
        }
        if id.0 >= MAX_COUNT {
            return Err(refused(generation, format!("array {name:?} has the id {}", id.0)));
        }
        self.next_id = ArrayId(id.0.saturating_add(1));
        let end = self.entries.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        let place = *self.places.entry(Arc::clone(&name)).or_insert(end);
        if let Some(places) = self.places_by_id.get_mut() {
            places.insert(id, place);
        }
        if let Some(old) = self.entries.insert(place, entry) {
            self.forget_id(old.id);
            changed(Change { name: old.name, id: old.id, kind: ChangeKind::Removed, is_own: false });
        }
        changed(Change { name, id, kind: ChangeKind::Added, is_own: false });
        Ok(())
    }

    fn apply_op(
        &mut self,
        op: &Op,
        generation: Generation,
        time: i64,
        changed: &mut dyn FnMut(Change),
    ) -> Result<(), FormatError> {
        let refused = |what| refused(generation, what);
        let mut tell_of = |name: &Arc<str>, id, kind| {
            changed(Change { name: Arc::clone(name), id, kind, is_own: false });
        };
        match op {
            Op::Put(record) => self.put(Entry::new(record.clone()), generation, changed)?,
            Op::Delete(name) => {
                let place = self.places.remove(name);
                let entry = place.and_then(|place| self.entries.remove(&place));
                let entry = entry.ok_or_else(|| refused(format!("removes {name:?}, which is not there")))?;
                self.forget_id(entry.id);
                tell_of(&entry.name, entry.id, ChangeKind::Removed);
            }
            Op::Rename(from, to) => {
                if self.places.contains_key(to) {
                    return Err(refused(format!("renames to {to:?}, which is there")));
                }
                names::check(to)?;
                let record = self.change(from, generation, |record| record.name = Arc::clone(to))?;
                tell_of(&record.name, record.id, ChangeKind::Renamed { from: Arc::clone(from) });
                if let Some(place) = self.places.remove(from) {
                    self.places.insert(Arc::clone(to), place);
                }
            }
            Op::Rows(name, n_rows) => {
                self.set_rows(name, *n_rows, generation, time, changed)?;
            }
            Op::DropRows(name, rows) => {
                let record = self.get(name)?.ok_or_else(|| missing(generation, name))?;
                check_deleted(rows, &record.layout).map_err(refused)?;
                let record = self.change(name, generation, |record| {
                    *Arc::make_mut(&mut record.deleted.0) |= &*rows.0;
                    record.mtime = time;
                })?;
                tell_of(&record.name, record.id, ChangeKind::Resized);
            }
            Op::Blocks(name, n_rows, index) => {
                let record = self.get(name)?.ok_or_else(|| missing(generation, name))?;
                let before = record.layout.n_rows();
                let mut shape = record.layout.shape().to_vec();
                match shape.first_mut() {
                    Some(rows) if *rows < *n_rows && !record.layout.fortran_order() => *rows = *n_rows,
                    _ if before == *n_rows => {}
                    _ => return Err(refused(format!("gives {name:?} {n_rows} rows"))),
                }
                let layout = Layout::new(&record.dtype, &shape, record.layout.fortran_order())?;
                let Some(Blocks { codec, .. }) = record.blocks else {
                    return Err(refused(format!("gives {name:?} blocks, and it is not compressed")));
                };
                index
                    .check(layout.nbytes(), record.offset, &codec)
                    .map_err(|what| refused(format!("gives {name:?} an index that {what}")))?;
                let record = self.change(name, generation, |record| {
                    record.layout = layout;
                    record.blocks = Some(Blocks { codec, index: *index });
                    record.mtime = time;
                })?;
                let is_longer = before != *n_rows;
                tell_of(
                    &record.name,
                    record.id,
                    if is_longer { ChangeKind::Resized } else { ChangeKind::Written },
                );
            }
            Op::Codec(compression) => self.compression = *compression,
            Op::Written(name) => {
                let record = self.change(name, generation, |record| record.mtime = time)?;
                tell_of(&record.name, record.id, ChangeKind::Written);
            }
            Op::Attrs(None, set, remove) => change_attrs(&mut self.attrs, set, remove),
            Op::Attrs(Some(name), set, remove) => {
                let record = self.change(name, generation, |record| {
                    change_attrs(&mut record.attrs, set, remove);
                })?;
                tell_of(&record.name, record.id, ChangeKind::Attrs);
            }
        }
        Ok(())
    }

    /// Checks that `generation` is the one after this table's.
    fn check_follows(&self, generation: Generation) -> Result<(), FormatError> {
        if Some(generation.0) == self.generation.0.checked_add(1) {
            return Ok(());
        }
        Err(refused(generation, format!("follows generation {}", self.generation.0)))
    }

    /// Gives an array as many stored rows, and returns its name.
    fn set_rows(
        &mut self,
        name: &str,
        n_rows: u64,
        generation: Generation,
        time: i64,
        changed: &mut dyn FnMut(Change),
    ) -> Result<Arc<str>, FormatError> {
        let record = self.try_change(name, generation, |record| {
            let layout = &mut record.layout;
            let is_longer = layout.shape().first().is_some_and(|rows| *rows <= n_rows);
            if !is_longer || layout.fortran_order() || record.blocks.is_some() {
                return Err(refused(generation, format!("gives {name:?} {n_rows} rows")));
            }
            layout.set_n_rows(&record.dtype, n_rows)?;
            record.mtime = time;
            Ok(())
        })?;
        let (name, id) = (Arc::clone(&record.name), record.id);
        changed(Change { name: Arc::clone(&name), id, kind: ChangeKind::Resized, is_own: false });
        Ok(name)
    }

    fn change(
        &mut self,
        name: &str,
        generation: Generation,
        f: impl FnOnce(&mut Record),
    ) -> Result<&Arc<Record>, FormatError> {
        self.try_change(name, generation, |record| {
            f(record);
            Ok(())
        })
    }

    fn try_change(
        &mut self,
        name: &str,
        generation: Generation,
        f: impl FnOnce(&mut Record) -> Result<(), FormatError>,
    ) -> Result<&Arc<Record>, FormatError> {
        let place = self.places.get(name);
        let entry =
            place.and_then(|place| self.entries.get_mut(place)).ok_or_else(|| missing(generation, name))?;
        entry.decode(&self.shared)?;
        let record = entry.record.get_mut().ok_or_else(|| missing(generation, name))?;
        f(Arc::make_mut(record))?;
        if !Arc::ptr_eq(&entry.name, &record.name) {
            entry.name = Arc::clone(&record.name);
        }
        Ok(record)
    }

    fn forget_id(&mut self, id: ArrayId) {
        if let Some(places) = self.places_by_id.get_mut() {
            places.remove(&id);
        }
    }
}

fn refused(generation: Generation, what: String) -> FormatError {
    FormatError::Edit { generation: generation.0, what }
}

fn missing(generation: Generation, name: &str) -> FormatError {
    refused(generation, format!("changes {name:?}, which is not there"))
}

fn change_attrs(attrs: &mut Arc<Attrs>, set: &Attrs, remove: &[String]) {
    let attrs = Arc::make_mut(attrs);
    for name in remove {
        attrs.remove(name);
    }
    attrs.extend(set.iter().map(|(name, value)| (name.clone(), value.clone())));
}

pub(super) fn check_deleted(deleted: &DeletedRows, layout: &Layout) -> Result<(), String> {
    match deleted.0.max() {
        Some(_) if layout.fortran_order() || layout.shape().is_empty() => {
            Err("rows are deleted of an array that cannot have deleted rows".into())
        }
        Some(max) if max >= layout.n_rows() => Err(format!("row {max} of {} is deleted", layout.n_rows())),
        _ => Ok(()),
    }
}

impl DeletedRows {
    /// Whether no row is deleted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, id: u64, rows: u64) -> Record {
        let dtype = Dtype::parse_python("'<f4'").unwrap();
        Record {
            name: name.into(),
            id: ArrayId(id),
            file: names::data_file(name, ArrayId(id)).into(),
            layout: Layout::new(&dtype, &[rows, 2], false).unwrap(),
            dtype,
            offset: 4096,
            blocks: None,
            deleted: DeletedRows::default(),
            mtime: 17,
            attrs: Arc::default(),
            upstream: None,
        }
    }

    fn rows(rows: &[u64]) -> DeletedRows {
        DeletedRows(Arc::new(rows.iter().copied().collect()))
    }

    fn commit(table: &mut Table, ops: Vec<Op>) -> Result<Vec<Change>, FormatError> {
        let edit = Edit { generation: Generation(table.generation().0 + 1), time: 99, ops };
        let decoded = Edit::decode(&edit.encode(), 64)?;
        assert_eq!(decoded, edit);
        let mut changes = Vec::new();
        table.apply(&decoded, &mut |change| changes.push(change))?;
        Ok(changes)
    }

    fn names_of(table: &Table) -> Vec<&str> {
        table.names().map(|name| &**name).collect()
    }

    #[test]
    fn arrays_keep_the_place_of_their_first_save() {
        let mut table = Table::default();
        commit(&mut table, vec![Op::Put(record("b", 1, 3)), Op::Put(record("a", 2, 3))]).unwrap();
        let changes = commit(&mut table, vec![Op::Put(record("b", 3, 5))]).unwrap();
        assert_eq!(
            changes.iter().map(|c| (c.id.0, &c.kind)).collect::<Vec<_>>(),
            [(1, &ChangeKind::Removed), (3, &ChangeKind::Added)]
        );
        commit(&mut table, vec![Op::Rename("b".into(), "z".into()), Op::Put(record("c", 4, 1))]).unwrap();
        assert_eq!(names_of(&table), ["z", "a", "c"]);
        commit(&mut table, vec![Op::Delete("a".into()), Op::Put(record("a", 5, 1))]).unwrap();
        assert_eq!(names_of(&table), ["z", "c", "a"]);
        let decoded = Table::decode(&table.encode(), 64).unwrap();
        assert_eq!(names_of(&decoded), names_of(&table));
        assert_eq!(decoded.generation(), Generation(4));
        assert_eq!(decoded.next_id(), ArrayId(6));
        for table in [&table, &decoded] {
            let names: Vec<_> =
                (0..7).map(|id| table.by_id(ArrayId(id)).unwrap().map(|record| &*record.name)).collect();
            assert_eq!(names, [None, None, None, Some("z"), Some("c"), Some("a"), None]);
        }
    }

    #[test]
    fn rows_are_counted_without_the_deleted() {
        let mut table = Table::default();
        commit(&mut table, vec![Op::Put(record("a", 1, 10))]).unwrap();
        commit(&mut table, vec![Op::DropRows("a".into(), rows(&[0, 9]))]).unwrap();
        commit(&mut table, vec![Op::Rows("a".into(), 12), Op::DropRows("a".into(), rows(&[9, 11]))]).unwrap();
        let record = Table::decode(&table.encode(), 64).unwrap().get("a").unwrap().unwrap().clone();
        assert_eq!((record.n_rows(), record.shape(), record.mtime), (9, vec![9, 2], 99));
        assert_eq!(record.layout.shape(), [12, 2]);
    }

    #[test]
    fn attributes_are_set_and_removed() {
        let mut table = Table::default();
        commit(&mut table, vec![Op::Put(record("a", 1, 1))]).unwrap();
        let set: Attrs =
            [("x".to_owned(), rmpv::Value::from(1)), ("y".to_owned(), rmpv::Value::from("s"))].into();
        commit(
            &mut table,
            vec![Op::Attrs(Some("a".into()), set.clone(), vec![]), Op::Attrs(None, set, vec![])],
        )
        .unwrap();
        commit(&mut table, vec![Op::Attrs(Some("a".into()), Attrs::new(), vec!["x".into()])]).unwrap();
        let table = Table::decode(&table.encode(), 64).unwrap();
        assert_eq!(table.get("a").unwrap().unwrap().attrs.keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!(table.attrs().len(), 2);
    }

    #[test]
    fn edits_that_do_not_fit_are_refused() {
        let table = {
            let mut table = Table::default();
            commit(&mut table, vec![Op::Put(record("a", 1, 3)), Op::Put(record("b", 2, 3))]).unwrap();
            table
        };
        for ops in [
            vec![Op::Put(record("c", 2, 3))],
            vec![Op::Delete("c".into())],
            vec![Op::Rename("a".into(), "b".into())],
            vec![Op::Rename("c".into(), "d".into())],
            vec![Op::Rows("a".into(), 2)],
            vec![Op::Rows("c".into(), 2)],
            vec![Op::Rows("a".into(), u64::MAX)],
            vec![Op::DropRows("a".into(), rows(&[3]))],
            vec![Op::Attrs(Some("c".into()), Attrs::new(), vec![])],
        ] {
            assert!(commit(&mut table.clone(), ops.clone()).is_err(), "{ops:?}");
        }
        let skipped = Edit { generation: Generation(9), time: 0, ops: vec![] };
        assert!(table.clone().apply(&skipped, &mut |_| ()).is_err());
    }

    #[test]
    fn hostile_records_are_refused() {
        let refuse = |change: &dyn Fn(&mut Record)| {
            let mut bad = record("a", 1, 3);
            change(&mut bad);
            let edit = Edit { generation: Generation(1), time: 0, ops: vec![Op::Put(bad)] };
            Edit::decode(&edit.encode(), 64).unwrap_err().to_string()
        };
        assert!(refuse(&|r| r.file = "/etc/passwd".into()).contains("/etc/passwd"));
        assert!(refuse(&|r| r.file = "data_../x.npkd".into()).contains("within the store"));
        assert!(refuse(&|r| r.name = "a\0b".into()).contains("NUL"));
        assert!(refuse(&|r| r.offset = u64::MAX).contains("fit"));
        assert!(refuse(&|r| r.deleted = rows(&[7])).contains("deleted"));
    }

    #[test]
    fn every_cut_and_flip_of_a_snapshot_is_an_error_or_a_table() {
        let mut table = Table::default();
        commit(&mut table, vec![Op::Put(record("a", 1, 10)), Op::DropRows("a".into(), rows(&[1, 2, 7]))])
            .unwrap();
        let good = table.encode();
        for len in 0..good.len() {
            assert!(Table::decode(&good[..len], 64).is_err(), "{len}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = Table::decode(&bad, 64).map(|table| table.records().map(|records| records.len()));
            }
        }
    }
}
