//! What a store should hold, kept in plain vectors: the model that random operations are compared with.

use std::sync::atomic::{AtomicU64, Ordering};

use numpack::store::{Array, Attrs, Compression, Dtype, Store, StoreError};

/// The arrays of a store, in the order of their first save, and its attributes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    pub arrays: Vec<(String, Content)>,
    pub attrs: Attrs,
    pub default_compression: Option<Compression>,
}

/// One array.
#[derive(Clone)]
pub struct Content {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub fortran_order: bool,
    /// In C-order; a 0-d array has one.
    pub rows: Vec<Vec<u8>>,
    pub attrs: Attrs,
    /// Which row is which: for finding those that were written in place in an earlier state of the same version.
    pub tags: Vec<u64>,
    /// The header of an imported file, while nothing has changed the shape.
    pub header: Option<Vec<u8>>,
    /// How it is compressed; without a filter, with any.
    pub compression: Option<Compression>,
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        (&self.dtype, &self.shape, self.fortran_order, &self.rows, &self.attrs)
            == (&other.dtype, &other.shape, other.fortran_order, &other.rows, &other.attrs)
            && is_same_compression(self.compression, other.compression)
    }
}

/// Whether one may be the other, as far as it is known.
fn is_same_compression(one: Option<Compression>, other: Option<Compression>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => {
            let is_same_filter = one.filter.is_none() || other.filter.is_none() || one.filter == other.filter;
            (one.level, one.block_len) == (other.level, other.block_len) && is_same_filter
        }
        _ => one.is_none() && other.is_none(),
    }
}

fn compression_of(array: &Array) -> Option<Compression> {
    let codec = array.codec()?;
    Some(Compression { level: codec.level, block_len: codec.block_len, filter: Some(codec.filter) })
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = if self.fortran_order { "F" } else { "C" };
        write!(f, "{}{:?}{order} ", self.dtype, self.shape)?;
        if let Some(Compression { level, block_len, filter }) = self.compression {
            write!(f, "zstd {level}, {block_len}, {filter:?} ")?;
        }
        match self.rows.concat() {
            bytes if bytes.len() > 4000 => {
                write!(f, "{} bytes, crc32 {:x}", bytes.len(), crc32fast::hash(&bytes))?
            }
            _ => write!(f, "{:02x?}", self.rows)?,
        }
        if self.attrs.is_empty() { Ok(()) } else { write!(f, " {} attrs", self.attrs.len()) }
    }
}

/// As many new tags.
pub fn new_tags(n: usize) -> Vec<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = NEXT.fetch_add(n as u64, Ordering::Relaxed);
    (first..first + n as u64).collect()
}

impl Content {
    /// An array of the elements `bytes`, which are in C-order whatever the order they are to be stored in.
    pub fn new(dtype: Dtype, shape: &[u64], fortran_order: bool, bytes: &[u8]) -> Self {
        let n_rows = shape.first().copied().unwrap_or(1) as usize;
        let row_len = row_len(&dtype, shape);
        assert_eq!(bytes.len(), n_rows * row_len);
        let rows = (0..n_rows).map(|row| bytes[row * row_len..][..row_len].to_vec()).collect();
        Content {
            dtype,
            shape: shape.to_vec(),
            // One row or one column is in both orders.
            fortran_order: fortran_order && shape.iter().filter(|dim| **dim != 1).count() > 1,
            rows,
            attrs: Attrs::new(),
            tags: new_tags(n_rows),
            header: None,
            compression: None,
        }
    }

    /// An array as a store has it.
    pub fn read(array: &Array) -> Result<Self, StoreError> {
        let mut stored = vec![0; array.nbytes() as usize];
        array.read_into(&mut stored)?;
        let len = stored.len();
        let mut content = Content::new(array.dtype().clone(), array.shape(), array.fortran_order(), &stored);
        assert_eq!(content.fortran_order, array.fortran_order());
        assert_eq!(len, content.c_bytes().len());
        content.set_stored_bytes(&stored);
        content.attrs = array.attrs().clone();
        content.compression = compression_of(array);
        Ok(content)
    }

    /// Whether `array` is compressed as this is.
    pub fn is_compressed_as(&self, array: &Array) -> bool {
        is_same_compression(self.compression, compression_of(array))
    }

    pub fn row_len(&self) -> usize {
        row_len(&self.dtype, &self.shape)
    }

    pub fn n_rows(&self) -> u64 {
        self.rows.len() as u64
    }

    pub fn c_bytes(&self) -> Vec<u8> {
        self.rows.concat()
    }

    /// The elements in the order in which they are stored.
    pub fn stored_bytes(&self) -> Vec<u8> {
        let bytes = self.c_bytes();
        if !self.fortran_order {
            return bytes;
        }
        let itemsize = self.dtype.itemsize() as usize;
        let mut out = vec![0; bytes.len()];
        for (from, to) in fortran_positions(&self.shape).into_iter().enumerate() {
            out[to * itemsize..][..itemsize].copy_from_slice(&bytes[from * itemsize..][..itemsize]);
        }
        out
    }

    pub fn set_stored_bytes(&mut self, bytes: &[u8]) {
        let mut in_c_order = bytes.to_vec();
        if self.fortran_order {
            let itemsize = self.dtype.itemsize() as usize;
            for (to, from) in fortran_positions(&self.shape).into_iter().enumerate() {
                in_c_order[to * itemsize..][..itemsize]
                    .copy_from_slice(&bytes[from * itemsize..][..itemsize]);
            }
        }
        let row_len = self.row_len();
        for (row, bytes) in self.rows.iter_mut().enumerate() {
            *bytes = in_c_order[row * row_len..][..row_len].to_vec();
        }
    }
}

pub fn row_len(dtype: &Dtype, shape: &[u64]) -> usize {
    (dtype.itemsize() * shape.iter().skip(1).product::<u64>()) as usize
}

/// For each element in C-order, its index in Fortran order.
fn fortran_positions(shape: &[u64]) -> Vec<usize> {
    let n_items = shape.iter().product::<u64>() as usize;
    (0..n_items)
        .map(|mut item| {
            let mut indexes = vec![0; shape.len()];
            for (index, dim) in indexes.iter_mut().zip(shape).rev() {
                *index = item % *dim as usize;
                item /= *dim as usize;
            }
            let mut stride = 1;
            indexes.iter().zip(shape).fold(0, |position, (index, dim)| {
                let next = position + index * stride;
                stride *= *dim as usize;
                next
            })
        })
        .collect()
}

impl Model {
    pub fn get(&self, name: &str) -> Option<&Content> {
        self.arrays.iter().find(|(own, _)| own == name).map(|(_, content)| content)
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Content> {
        self.arrays.iter_mut().find(|(own, _)| own == name).map(|(_, content)| content)
    }

    pub fn remove(&mut self, name: &str) {
        self.arrays.retain(|(own, _)| own != name);
    }

    /// What a store holds, read through it.
    pub fn read(store: &Store) -> Result<Self, StoreError> {
        store.refresh()?;
        let default_compression = store.default_compression();
        let mut model = Model { arrays: Vec::new(), attrs: store.attrs(), default_compression };
        for name in store.names() {
            model.arrays.push((name.to_string(), Content::read(&store.array(&name)?)?));
        }
        Ok(model)
    }
}
