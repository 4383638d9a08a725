//! Operations on a store: what each does to the model, and how it is called.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::ops::Range;
use std::time::Duration;

use numpack::store::{Attrs, Codec, Compression, NewArray, Store, StoreError};

use super::model::{Content, Model, new_tags};

/// One operation with all its data. The attributes of a [`Content`] are not part of it.
#[derive(Debug, Clone)]
pub enum Op {
    /// Of those that are saved together, the first says how they are compressed.
    Save(Vec<(String, Content)>),
    Import {
        name: String,
        npy: Vec<u8>,
        content: Content,
        overwrite: bool,
        /// Parts of `npy` in the order in which they are written to a draft; none if it is imported as a file.
        pieces: Vec<Range<usize>>,
    },
    Append(Vec<(String, Content)>),
    Replace {
        name: String,
        rows: Vec<u64>,
        data: Content,
    },
    ReplaceRange {
        name: String,
        rows: Range<u64>,
        data: Content,
    },
    /// As `ReplaceRange`, by a writer of regions.
    WriteRows {
        name: String,
        rows: Range<u64>,
        data: Content,
    },
    /// As `ReplaceRange`, as far as elements differ.
    ReplaceChanged {
        name: String,
        rows: Range<u64>,
        data: Content,
    },
    /// Zeros.
    Create {
        name: String,
        zeros: Content,
    },
    Copy {
        source: String,
        target: String,
    },
    /// In one commit; arrays that are there stay compressed as they are, and new ones are not.
    SaveAndRemove {
        save: Vec<(String, Content)>,
        remove: Vec<String>,
    },
    DropRows {
        names: Vec<String>,
        rows: Vec<u64>,
    },
    Compact(String),
    Recompress {
        name: String,
        to: Option<Compression>,
    },
    SetDefaultCompression(Option<Compression>),
    Rename {
        from: String,
        to: String,
        overwrite: bool,
    },
    Remove(Vec<String>),
    Clear,
    SetAttrs {
        name: Option<String>,
        set: Attrs,
        remove: Vec<String>,
    },
    /// Writes `data` over the elements from byte `offset` on, and the last `header_len` bytes of the header with it.
    WriteNpy {
        name: String,
        offset: u64,
        header_len: u64,
        data: Vec<u8>,
    },
    /// Writes over the elements, from these offsets on.
    WriteBack {
        name: String,
        ranges: Vec<(u64, Vec<u8>)>,
    },
    Sync,
}

/// Why a store must refuse an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Exists,
    NoRows,
    Shape,
    Dtype,
    RowCount,
    Index,
    Bounds,
    Name,
}

pub fn refusal_of(error: &StoreError) -> Option<Refusal> {
    Some(match error {
        StoreError::NotFound { .. } => Refusal::NotFound,
        StoreError::Exists { .. } => Refusal::Exists,
        StoreError::NoRows { .. } => Refusal::NoRows,
        StoreError::ShapeMismatch { .. } => Refusal::Shape,
        StoreError::DtypeMismatch { .. } => Refusal::Dtype,
        StoreError::RowCount { .. } => Refusal::RowCount,
        StoreError::IndexOutOfRange { .. } => Refusal::Index,
        StoreError::OutOfBounds { .. } => Refusal::Bounds,
        StoreError::Refused { .. } => Refusal::Name,
        _ => return None,
    })
}

/// Whether two results of one operation are alike.
pub fn is_expected(result: &Result<(), StoreError>, expected: Result<(), Refusal>) -> bool {
    match (result, expected) {
        (Ok(()), Ok(())) => true,
        (Err(error), Err(refusal)) => refusal_of(error) == Some(refusal),
        _ => false,
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.contains('\0') || name.len() > 4096 { Err(Refusal::Name) } else { Ok(()) }
}

impl Op {
    /// Does to the model what the store is to do. A refused operation changes nothing.
    pub fn apply(&self, model: &mut Model) -> Result<(), Refusal> {
        let mut next = model.clone();
        self.change(&mut next)?;
        *model = next;
        Ok(())
    }

    fn change(&self, model: &mut Model) -> Result<(), Refusal> {
        match self {
            Op::Save(arrays) => {
                arrays.iter().try_for_each(|(name, _)| check_name(name))?;
                let compression = compression_of(arrays);
                for (name, content) in arrays {
                    put(model, name, &Content { compression, ..content.clone() });
                }
            }
            Op::Import { name, content, overwrite, .. } => {
                check_name(name)?;
                if !overwrite && model.get(name).is_some() {
                    return Err(Refusal::Exists);
                }
                put(model, name, content);
            }
            Op::Append(rows) => append(model, rows)?,
            Op::Replace { name, rows, data } => replace(model, name, rows, data)?,
            Op::ReplaceRange { name, rows, data }
            | Op::WriteRows { name, rows, data }
            | Op::ReplaceChanged { name, rows, data } => {
                replace(model, name, &rows.clone().collect::<Vec<_>>(), data)?;
            }
            Op::Create { name, zeros } => {
                check_name(name)?;
                if model.get(name).is_some() {
                    return Err(Refusal::Exists);
                }
                put(model, name, zeros);
            }
            Op::Copy { source, target } => {
                let content = model.get(source).ok_or(Refusal::NotFound)?.clone();
                check_name(target)?;
                if model.get(target).is_some() {
                    return Err(Refusal::Exists);
                }
                let tags = new_tags(content.rows.len());
                model.arrays.push((target.clone(), Content { tags, ..content }));
            }
            Op::SaveAndRemove { save, remove } => {
                save.iter().try_for_each(|(name, _)| check_name(name))?;
                let is_saved = |name: &String| save.iter().any(|(saved, _)| saved == name);
                let kept: Vec<_> =
                    save.iter().map(|(name, _)| model.get(name).and_then(|old| old.compression)).collect();
                remove.iter().filter(|name| !is_saved(name)).for_each(|name| model.remove(name));
                for ((name, content), compression) in save.iter().zip(kept) {
                    put(model, name, &Content { compression, ..content.clone() });
                }
            }
            Op::DropRows { names, rows } => drop_rows(model, names, rows)?,
            Op::Compact(name) => {
                model.get(name).ok_or(Refusal::NotFound)?;
            }
            Op::Recompress { name, to } => {
                model.get_mut(name).ok_or(Refusal::NotFound)?.compression = *to;
            }
            Op::SetDefaultCompression(to) => model.default_compression = *to,
            Op::Rename { from, to, overwrite } => {
                check_name(to)?;
                model.get(from).ok_or(Refusal::NotFound)?;
                if from != to {
                    if model.get(to).is_some() && !overwrite {
                        return Err(Refusal::Exists);
                    }
                    model.remove(to);
                    let entry = model.arrays.iter_mut().find(|(name, _)| name == from);
                    entry.expect("it was found above").0 = to.clone();
                }
            }
            Op::Remove(names) => names.iter().for_each(|name| model.remove(name)),
            Op::Clear => model.arrays.clear(),
            Op::SetAttrs { name, set, remove } => {
                let attrs = match name {
                    Some(name) => &mut model.get_mut(name).ok_or(Refusal::NotFound)?.attrs,
                    None => &mut model.attrs,
                };
                attrs.retain(|key, _| !remove.contains(key));
                attrs.extend(set.clone());
            }
            Op::WriteNpy { name, offset, data, .. } => {
                write(model.get_mut(name).ok_or(Refusal::NotFound)?, *offset, data)?;
            }
            Op::WriteBack { name, ranges } => {
                let content = model.get_mut(name).ok_or(Refusal::NotFound)?;
                ranges.iter().try_for_each(|(offset, data)| write(content, *offset, data))?;
            }
            Op::Sync => {}
        }
        Ok(())
    }

    /// Does it to a store.
    pub fn run(&self, store: &Store) -> Result<(), StoreError> {
        match self {
            Op::Save(arrays) => {
                let compression = compression_of(arrays);
                with_arrays(arrays, |arrays| store.save_as(arrays, compression.as_ref()))
            }
            Op::Import { name, npy, overwrite, content, pieces } if pieces.is_empty() => {
                let mut file = tempfile::NamedTempFile::new().expect("temporary file");
                file.write_all(npy).expect("temporary file");
                let compression = content.compression.as_ref();
                store.import_npy(name, file.path(), *overwrite, compression, &mut |_| ())
            }
            Op::Import { name, npy, overwrite, content, pieces } => {
                let mut draft = store.begin_draft(content.compression.as_ref())?;
                for piece in pieces {
                    draft.write_at(piece.start as u64, &npy[piece.clone()])?;
                }
                let array = store.finish_draft(name, &mut draft, *overwrite, Duration::from_secs(60))?;
                assert_eq!(array.npy_len(), npy.len() as u64);
                Ok(())
            }
            Op::Append(rows) => with_arrays(rows, |rows| store.append(rows)),
            Op::Replace { name, rows, data } => {
                with_array(data, |data| store.replace(name, rows, data.clone()))
            }
            Op::ReplaceRange { name, rows, data } => {
                with_array(data, |data| store.replace_range(name, rows.clone(), data.clone()))
            }
            Op::WriteRows { name, rows, data } => {
                with_array(data, |data| store.write_rows(name, rows.start, data.clone()))
            }
            Op::ReplaceChanged { name, rows, data } => {
                with_array(data, |data| store.replace_changed(name, rows.start, data.clone()))
            }
            Op::Create { name, zeros } => {
                store.create_zeros(name, &zeros.dtype, &zeros.shape, zeros.compression.as_ref())
            }
            Op::Copy { source, target } => store.copy_array(source, target),
            Op::SaveAndRemove { save, remove } => {
                with_arrays(save, |save| store.save_and_remove(save, &strs(remove), None))
            }
            Op::DropRows { names, rows } => store.drop_rows(&strs(names), rows),
            Op::Compact(name) => {
                let array = store.array(name)?;
                let is_dead = array.usage()?.is_some_and(|usage| usage.dead > 0);
                let was_needed = store.compact(name)?;
                // Space that was given back before may be known to be so.
                assert!(array.n_deleted() == 0 || was_needed);
                assert!(!was_needed || array.n_deleted() > 0 || is_dead);
                assert!(!store.compact(name)?, "twice");
                assert_eq!(store.array(name)?.n_deleted(), 0);
                Ok(())
            }
            Op::Recompress { name, to } => {
                let array = store.array(name)?;
                let was_needed = store.recompress(name, to.as_ref(), &mut |_| ())?;
                let after = store.array(name)?;
                // Where the filter is to be chosen, it may be the one that the array has.
                assert_eq!(was_needed, array.codec() != after.codec());
                let same_filter = |to: &Compression, own: &Codec| to.filter.is_none_or(|f| f == own.filter);
                assert!(match (after.codec(), to) {
                    (None, None) => true,
                    (Some(own), Some(to)) => {
                        (own.level, own.block_len) == (to.level, to.block_len) && same_filter(to, own)
                    }
                    _ => false,
                });
                assert!(!store.recompress(name, to.as_ref(), &mut |_| ())?, "twice");
                Ok(())
            }
            Op::SetDefaultCompression(to) => store.set_default_compression(to.as_ref()),
            Op::Rename { from, to, overwrite } => store.rename(from, to, *overwrite),
            Op::Remove(names) => {
                store.refresh_quietly()?;
                let present: BTreeSet<&String> = names.iter().filter(|name| store.contains(name)).collect();
                let n_removed = store.remove(&strs(names))?;
                assert_eq!(n_removed, present.len());
                Ok(())
            }
            Op::Clear => store.clear(),
            Op::SetAttrs { name, set, remove } => {
                store.set_attrs(name.as_deref(), set.clone(), &strs(remove))
            }
            Op::WriteNpy { name, offset, header_len, data } => {
                let array = store.array(name)?;
                let header = array.npy_header()?;
                let mut bytes = header[header.len() - *header_len as usize..].to_vec();
                bytes.extend_from_slice(data);
                array.write_npy_at(header.len() as u64 + offset - header_len, &bytes)
            }
            Op::WriteBack { name, ranges } => {
                let array = store.array(name)?;
                let at = |offset: u64| array.header_len() + offset;
                let ranges: Vec<(u64, &[u8])> =
                    ranges.iter().map(|(offset, data)| (at(*offset), &data[..])).collect();
                array.write_back(&ranges)
            }
            Op::Sync => store.sync(),
        }
    }

    /// The states that an array that is written to in place goes through, where it is not obvious.
    pub fn states_between(&self, before: &Content) -> Vec<Content> {
        let Op::WriteBack { ranges, .. } = self else { return Vec::new() };
        let mut now = before.clone();
        let after_each =
            ranges.iter().map(|(offset, data)| write(&mut now, *offset, data).map(|()| now.clone()));
        after_each.collect::<Result<_, _>>().unwrap_or_default()
    }

    /// Whether it writes elements in place, and which array's.
    pub fn in_place(&self) -> Option<&String> {
        match self {
            Op::Replace { name, .. }
            | Op::ReplaceRange { name, .. }
            | Op::WriteRows { name, .. }
            | Op::ReplaceChanged { name, .. }
            | Op::WriteNpy { name, .. }
            | Op::WriteBack { name, .. } => Some(name),
            _ => None,
        }
    }
}

fn compression_of(arrays: &[(String, Content)]) -> Option<Compression> {
    arrays.first()?.1.compression
}

/// Writes `data` over the stored elements from byte `offset` on.
pub fn write(content: &mut Content, offset: u64, data: &[u8]) -> Result<(), Refusal> {
    let mut bytes = content.stored_bytes();
    let range = offset as usize..offset as usize + data.len();
    bytes.get_mut(range).ok_or(Refusal::Bounds)?.copy_from_slice(data);
    content.set_stored_bytes(&bytes);
    Ok(())
}

fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn with_array<T>(content: &Content, f: impl FnOnce(&NewArray<'_>) -> T) -> T {
    f(&NewArray {
        dtype: content.dtype.clone(),
        shape: content.shape.clone(),
        fortran_order: content.fortran_order,
        data: &content.stored_bytes(),
    })
}

fn with_arrays<T>(arrays: &[(String, Content)], f: impl FnOnce(&[(&str, NewArray<'_>)]) -> T) -> T {
    let bytes: Vec<Vec<u8>> = arrays.iter().map(|(_, content)| content.stored_bytes()).collect();
    let arrays: Vec<(&str, NewArray<'_>)> = arrays
        .iter()
        .zip(&bytes)
        .map(|((name, content), data)| {
            let shape = content.shape.clone();
            let (dtype, fortran_order) = (content.dtype.clone(), content.fortran_order);
            (name.as_str(), NewArray { dtype, shape, fortran_order, data })
        })
        .collect();
    f(&arrays)
}

fn put(model: &mut Model, name: &str, content: &Content) {
    let mut content = Content { tags: new_tags(content.rows.len()), ..content.clone() };
    content.attrs.clear();
    match model.get_mut(name) {
        // Attributes belong to the name.
        Some(old) => *old = Content { attrs: std::mem::take(&mut old.attrs), ..content },
        None => model.arrays.push((name.to_owned(), content)),
    }
}

fn check_rows(array: &Content, rows: &Content) -> Result<(), Refusal> {
    if array.shape.is_empty() {
        return Err(Refusal::NoRows);
    }
    if rows.shape.len() != array.shape.len() || rows.shape[1..] != array.shape[1..] {
        return Err(Refusal::Shape);
    }
    if rows.dtype != array.dtype {
        return Err(Refusal::Dtype);
    }
    if rows.fortran_order { Err(Refusal::Name) } else { Ok(()) }
}

fn append(model: &mut Model, rows: &[(String, Content)]) -> Result<(), Refusal> {
    for (name, rows) in rows {
        check_rows(model.get(name).ok_or(Refusal::NotFound)?, rows)?;
    }
    let names: BTreeSet<&String> = rows.iter().map(|(name, _)| name).collect();
    if names.len() < rows.len() {
        return Err(Refusal::Exists);
    }
    for (name, rows) in rows.iter().filter(|(_, rows)| !rows.rows.is_empty()) {
        let content = model.get_mut(name).expect("it was found above");
        content.fortran_order = false;
        content.header = None;
        content.shape[0] += rows.shape[0];
        content.rows.extend(rows.rows.iter().cloned());
        content.tags.extend(new_tags(rows.rows.len()));
    }
    Ok(())
}

fn replace(model: &mut Model, name: &str, rows: &[u64], data: &Content) -> Result<(), Refusal> {
    let content = model.get_mut(name).ok_or(Refusal::NotFound)?;
    check_rows(content, data)?;
    if data.rows.len() != rows.len() {
        return Err(Refusal::RowCount);
    }
    if rows.iter().any(|row| *row >= content.n_rows()) {
        return Err(Refusal::Index);
    }
    for (row, bytes) in rows.iter().zip(&data.rows) {
        content.rows[*row as usize].clone_from(bytes);
    }
    Ok(())
}

fn drop_rows(model: &mut Model, names: &[String], rows: &[u64]) -> Result<(), Refusal> {
    let is_0d = |name: &String| model.get(name).is_some_and(|content| content.shape.is_empty());
    if names.iter().any(is_0d) {
        return Err(Refusal::NoRows);
    }
    for name in names.iter().collect::<BTreeSet<_>>() {
        let Some(content) = model.get_mut(name) else { continue };
        let doomed: BTreeSet<u64> = rows.iter().copied().filter(|row| *row < content.n_rows()).collect();
        if doomed.is_empty() {
            continue;
        }
        content.fortran_order = false;
        content.header = None;
        let is_kept = |row: usize| !doomed.contains(&(row as u64));
        let kept: Vec<usize> = (0..content.rows.len()).filter(|row| is_kept(*row)).collect();
        content.rows = kept.iter().map(|row| content.rows[*row].clone()).collect();
        content.tags = kept.iter().map(|row| content.tags[*row]).collect();
        content.shape[0] = kept.len() as u64;
    }
    Ok(())
}
