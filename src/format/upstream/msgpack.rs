//! The table of 0.2.1: one MessagePack map.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::RawEntry;

const VERSION: u64 = 1;
/// The table, its arrays, an array, its shape; and one for what is not read.
const MAX_DEPTH: usize = 8;

#[derive(Deserialize)]
struct StoredTable {
    version: u64,
    arrays: StoredArrays,
    #[serde(rename = "total_size")]
    _total_size: u64,
}

/// The arrays in the order in which they are stored.
struct StoredArrays(Vec<(String, StoredEntry)>);

#[derive(Deserialize)]
struct StoredEntry {
    name: String,
    shape: Vec<u64>,
    data_file: String,
    last_modified: u64,
    size_bytes: u64,
    dtype: u64,
}

/// MessagePack, as 0.2.1 wrote it. The error says what is wrong, in words.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<RawEntry>, String> {
    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(MAX_DEPTH);
    let table = StoredTable::deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    if table.version != VERSION {
        return Err(format!("has version {}, expected {VERSION}", table.version));
    }
    if !rest.is_empty() {
        let end = bytes.len().saturating_sub(rest.len());
        return Err(format!("ends at byte {end}, and {} bytes follow", rest.len()));
    }
    let entries = table.arrays.0.into_iter().map(|(key, entry)| {
        if key != entry.name {
            return Err(format!("array {key:?} is called {:?} as well", entry.name));
        }
        Ok(RawEntry {
            name: entry.name,
            shape: entry.shape,
            file: entry.data_file,
            modified: entry.last_modified,
            size: entry.size_bytes,
            dtype: entry.dtype,
            is_compressed: false,
        })
    });
    entries.collect()
}

impl<'de> Deserialize<'de> for StoredArrays {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ArraysVisitor;
        impl<'de> Visitor<'de> for ArraysVisitor {
            type Value = StoredArrays;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of arrays")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StoredArrays, A::Error> {
                // The number of entries is what the bytes claim: nothing is reserved for it.
                let mut arrays = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    arrays.push(entry);
                }
                Ok(StoredArrays(arrays))
            }
        }
        deserializer.deserialize_map(ArraysVisitor)
    }
}
