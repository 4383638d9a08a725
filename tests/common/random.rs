//! Random arrays, attributes and operations.

use std::ops::Range;

use numpack::format::{Layout, npy};
use numpack::store::{Attrs, Compression, Dtype, Filter};
use rmpv::Value;

use super::model::{Content, Model, row_len};
use super::ops::Op;
use super::rng::Rng;

const DTYPES: [&str; 17] = [
    "'<f4'",
    "'<f4'",
    "'|b1'",
    "'|u1'",
    "'>i8'",
    "'<f2'",
    "'<c16'",
    "'<M8[ns]'",
    "'<m8[25s]'",
    "'|S5'",
    "'|S7'",
    "'|V3'",
    "'>U3'",
    "'|S0'",
    "[('a', '<f4'), ('b', [('x', '|S3'), ('', '|V2')], (2,))]",
    "[(('a title', 'it\\'s'), '<u2'), ('\u{6570}', '>c8')]",
    "[('a', '<i4'), ('c', ('<f8', (3,)), (2,)), ('d', ([('e', '|i1')], (2,)), (1,))]",
];

pub fn names() -> Vec<String> {
    let long = "\u{e9}".repeat(150);
    ["a", "b", "g/a", "", "..", "A", "a~2", "\u{6570} %41\n", &long].map(str::to_owned).to_vec()
}

pub fn dtype(rng: &mut Rng) -> Dtype {
    Dtype::parse_python(rng.pick::<&str>(&DTYPES)).expect("a dtype")
}

/// A shape of few elements.
pub fn shape(rng: &mut Rng) -> Vec<u64> {
    let n = rng.below(9);
    match rng.below(12) {
        0 => vec![],
        1 => vec![0],
        2 => vec![0, 3],
        3 => vec![n, 0],
        4 => vec![1, n],
        5 => vec![n, 1, 1],
        6 => vec![n, 2, 3],
        7 => vec![2, n, 2, 2],
        8 | 9 => vec![n, 4],
        // More than a page, and not a multiple of it.
        10 => vec![40 + rng.below(30), 37],
        _ => vec![n],
    }
}

/// A shape that takes up to six of the smallest blocks, some with rows longer than a block.
fn long_shape(rng: &mut Rng, itemsize: u64) -> Vec<u64> {
    let n_items = (4 << rng.below(4)) * 800 / itemsize.max(1);
    match rng.below(6) {
        0 => vec![1 + rng.below(3), 2, n_items / 6],
        1 => vec![n_items / 101, 101],
        2 => vec![n_items / 300, 3, 100],
        // Blocks without a tail.
        3 => vec![(1 + rng.below(3)) * 4, 1024 / itemsize.max(1)],
        4 => vec![rng.below(n_items) / 64, 64],
        // Not too many: the model takes its time for each row.
        _ => vec![rng.below(n_items).min(1500)],
    }
}

/// How to compress, now and then: mostly in blocks as small as can be, so that there are some.
pub fn compression(rng: &mut Rng) -> Option<Compression> {
    if rng.one_in(2) {
        return None;
    }
    let level = *rng.pick(&[-3, 1, 1, 1, 3]);
    let block_len = *rng.pick(&[4096, 4096, 4096, 8192, 65536]);
    let filter = if rng.one_in(2) { None } else { Some(*rng.pick(&Filter::ALL)) };
    Some(Compression { level, block_len, filter })
}

/// Elements that are found nowhere else.
pub fn content(rng: &mut Rng, dtype: Dtype, shape: &[u64], fortran_order: bool) -> Content {
    let n_rows = shape.first().copied().unwrap_or(1) as usize;
    let bytes = rng.bytes(n_rows * row_len(&dtype, shape));
    Content::new(dtype, shape, fortran_order, &bytes)
}

pub fn any_content(rng: &mut Rng) -> Content {
    let (dtype, shape, fortran_order) = (dtype(rng), shape(rng), rng.one_in(3));
    content(rng, dtype, &shape, fortran_order)
}

/// One that is to be compressed so, and is worth it, or not.
pub fn content_for(rng: &mut Rng, compression: Option<Compression>) -> Content {
    if compression.is_none() || rng.one_in(4) {
        return Content { compression, ..any_content(rng) };
    }
    let dtype = dtype(rng);
    let (shape, fortran_order) = (long_shape(rng, dtype.itemsize()), rng.one_in(4));
    let len = shape[0] as usize * row_len(&dtype, &shape);
    let bytes = elements(rng, dtype.itemsize() as usize, len);
    Content { compression, ..Content::new(dtype, &shape, fortran_order, &bytes) }
}

/// `len` bytes of items of `itemsize` bytes: zeros, noise, or something between them.
pub fn elements(rng: &mut Rng, itemsize: usize, len: usize) -> Vec<u8> {
    if len == 0 {
        return Vec::new();
    }
    let (start, step) = (rng.next(), rng.below(300));
    let item = |i: usize| {
        let mut item = (start.wrapping_add(i as u64 * step)).to_le_bytes().to_vec();
        item.resize(itemsize, 7);
        item
    };
    match rng.below(6) {
        0 => vec![0; len],
        1 => rng.bytes(len),
        // Blocks of either kind.
        2 => {
            let noise = rng.bytes(len);
            let is_noise = |at: usize| (at / 5000).is_multiple_of(2);
            noise.iter().enumerate().map(|(at, byte)| if is_noise(at) { *byte } else { 3 }).collect()
        }
        _ => (0..len / itemsize).flat_map(item).collect(),
    }
}

/// `n` rows for an array like `array`, in C-order.
fn rows_for(rng: &mut Rng, array: &Content, n: u64) -> Content {
    let mut shape = array.shape.clone();
    match shape.first_mut() {
        Some(rows) => *rows = n,
        None => shape.push(n),
    }
    if array.compression.is_none() || rng.one_in(3) {
        return content(rng, array.dtype.clone(), &shape, false);
    }
    let bytes = elements(rng, array.dtype.itemsize() as usize, n as usize * row_len(&array.dtype, &shape));
    Content::new(array.dtype.clone(), &shape, false, &bytes)
}

/// How many rows to append to an array: a few, or some blocks full.
fn n_appended(rng: &mut Rng, array: &Content) -> u64 {
    let is_long = array.compression.is_some() && array.row_len() > 0 && rng.one_in(3);
    if is_long { rng.below(10_000 / array.row_len() as u64 + 1) } else { rng.below(5) }
}

fn value(rng: &mut Rng, depth: u64) -> Value {
    match rng.below(if depth > 2 { 7 } else { 9 }) {
        0 => Value::Nil,
        1 => Value::Boolean(rng.one_in(2)),
        2 => Value::from(rng.next()),
        3 => Value::from(-(rng.below(1 << 40) as i64)),
        4 => Value::F64(rng.below(1000) as f64 / 8.0),
        5 => Value::from(format!("text {}", rng.below(100))),
        6 => {
            let len = rng.below(20) as usize;
            Value::Binary(rng.bytes(len))
        }
        7 => Value::Array((0..rng.below(4)).map(|_| value(rng, depth + 1)).collect()),
        _ => Value::Map((0..rng.below(3)).map(|i| (Value::from(i), value(rng, depth + 1))).collect()),
    }
}

pub fn attrs(rng: &mut Rng) -> Attrs {
    let mut attrs: Attrs = (0..rng.below(3)).map(|_| (key(rng), value(rng, 0))).collect();
    if rng.one_in(8) {
        // Lets the manifest grow until a new snapshot is published.
        attrs.insert("large".into(), Value::Binary(rng.bytes(100_000)));
    }
    attrs
}

fn key(rng: &mut Rng) -> String {
    (*rng.pick(&["units", "", "\u{6570}", "large"])).to_owned()
}

/// A `.npy` file as other programs write it, and what is in it.
fn npy_file(rng: &mut Rng) -> (Vec<u8>, Content) {
    let compression = compression(rng);
    let mut content = content_for(rng, compression);
    let layout = Layout::new(&content.dtype, &content.shape, content.fortran_order).expect("a small array");
    let order = if layout.fortran_order() { "True" } else { "False" };
    let dims: Vec<String> = content.shape.iter().map(|dim| format!("{dim},")).collect();
    let text = format!(
        "{{'descr':{},'fortran_order':{order},'shape':({})}}",
        content.dtype.to_python(),
        dims.concat()
    );
    let is_latin1 = text.chars().all(|c| u32::from(c) < 256);
    let header = match rng.below(4) {
        // As tight as can be.
        0 if is_latin1 => {
            let text: Vec<u8> = text.chars().map(|c| c as u8).collect();
            let mut header = b"\x93NUMPY\x01\x00".to_vec();
            header.extend((text.len() as u16).to_le_bytes());
            header.extend(text);
            header
        }
        1 => {
            let mut header = b"\x93NUMPY\x03\x00".to_vec();
            header.extend((text.len() as u32 + 1).to_le_bytes());
            header.extend(text.bytes());
            header.push(b'\n');
            header
        }
        // As NumPy writes it: a multiple of 64.
        _ => (1..)
            .find_map(|n| npy::encode_within(&content.dtype, &layout, n * 64))
            .expect("some length is enough"),
    };
    let mut npy = header.clone();
    npy.extend(content.stored_bytes());
    content.header = Some(header);
    (npy, content)
}

/// Parts of a file of `len` bytes, some of which are there twice, mostly in order.
fn pieces(rng: &mut Rng, len: usize) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> =
        (0..rng.below(6)).map(|_| rng.below(len as u64) as usize).chain([0, len]).collect();
    cuts.sort_unstable();
    let mut pieces: Vec<_> = cuts.windows(2).map(|cuts| cuts[0]..cuts[1]).collect();
    for _ in 0..rng.below(3) {
        let again = rng.pick(&pieces).clone();
        let at = rng.below(pieces.len() as u64 + 1) as usize;
        pieces.insert(at, again);
    }
    if rng.one_in(4) {
        pieces.reverse();
    }
    pieces
}

/// A row number, and now and then one that is none.
fn row(rng: &mut Rng, n_rows: u64) -> u64 {
    if rng.one_in(20) { n_rows + rng.below(3) } else { rng.below(n_rows) }
}

/// An operation that fits `model`, or nearly.
pub fn op(rng: &mut Rng, model: &Model) -> Op {
    let names = names();
    let name = match model.arrays.len() as u64 {
        0 => rng.pick(&names).clone(),
        n if !rng.one_in(12) => model.arrays[rng.below(n) as usize].0.clone(),
        _ => rng.pick(&names).clone(),
    };
    let array = model.get(&name).cloned().unwrap_or_else(|| any_content(rng));
    let n_rows = array.n_rows();
    match rng.below(29) {
        0..4 => {
            let compression = compression(rng);
            let array = |rng: &mut Rng| (rng.pick(&names).clone(), content_for(rng, compression));
            Op::Save((0..1 + rng.below(3)).map(|_| array(rng)).collect())
        }
        4..6 => {
            let (npy, content) = npy_file(rng);
            let pieces = if rng.one_in(2) { pieces(rng, npy.len()) } else { Vec::new() };
            Op::Import { name: rng.pick(&names).clone(), npy, content, overwrite: rng.one_in(2), pieces }
        }
        6..9 => {
            let first = match rng.below(14) {
                0 => any_content(rng),
                1 => Content { fortran_order: true, ..rows_for(rng, &array, 2) },
                _ => {
                    let n = n_appended(rng, &array);
                    rows_for(rng, &array, n)
                }
            };
            // The flag means nothing where both orders are one.
            let first =
                Content::new(first.dtype.clone(), &first.shape, first.fortran_order, &first.c_bytes());
            let mut rows = vec![(name, first)];
            for (name, array) in &model.arrays {
                if rng.one_in(6) && (rng.one_in(8) || !rows.iter().any(|(other, _)| other == name)) {
                    let n = rng.below(3);
                    rows.push((name.clone(), rows_for(rng, array, n)));
                }
            }
            Op::Append(rows)
        }
        9..12 => {
            let rows: Vec<u64> = (0..rng.below(6)).map(|_| row(rng, n_rows)).collect();
            let n = if rng.one_in(12) { rng.below(9) } else { rows.len() as u64 };
            Op::Replace { name, data: rows_for(rng, &array, n), rows }
        }
        12 => {
            let start = rng.below(n_rows + 1);
            let rows = start..start + rng.below(n_rows + 2 - start);
            let data = rows_for(rng, &array, rows.end - rows.start);
            match rng.below(3) {
                0 => Op::ReplaceRange { name, data, rows },
                1 => Op::WriteRows { name, data, rows },
                _ => Op::ReplaceChanged { name, data, rows },
            }
        }
        13..16 => {
            let names = (0..1 + rng.below(2))
                .map(|i| if i == 0 { name.clone() } else { rng.pick(&names).clone() })
                .collect();
            let rows = match rng.below(8) {
                0 => (0..n_rows).collect(),
                1 => (rng.below(n_rows)..n_rows).collect(),
                _ => (0..rng.below(4)).map(|_| row(rng, n_rows)).collect(),
            };
            Op::DropRows { names, rows }
        }
        16 => Op::Compact(name),
        17 => Op::Rename { from: name, to: rng.pick(&names).clone(), overwrite: rng.one_in(2) },
        18 => Op::Remove((0..1 + rng.below(2)).map(|_| rng.pick(&names).clone()).collect()),
        19 => match rng.below(7) {
            0 => Op::Clear,
            1 => Op::Sync,
            2 => Op::SetDefaultCompression(compression(rng)),
            _ => Op::SetAttrs { name: None, set: attrs(rng), remove: vec![key(rng)] },
        },
        20 => Op::SetAttrs { name: Some(name), set: attrs(rng), remove: vec![key(rng)] },
        25 | 26 => {
            let mut zeros = any_content(rng);
            zeros.rows.iter_mut().for_each(|row| row.fill(0));
            let order = Content { fortran_order: false, header: None, ..zeros };
            Op::Create {
                name: rng.pick(&names).clone(),
                zeros: Content { compression: compression(rng), ..order },
            }
        }
        27 => Op::Copy { source: name, target: rng.pick(&names).clone() },
        28 => {
            let array = |rng: &mut Rng| (rng.pick(&names).clone(), any_content(rng));
            let save = (0..rng.below(3)).map(|_| array(rng)).collect();
            Op::SaveAndRemove { save, remove: vec![name, rng.pick(&names).clone()] }
        }
        21 => Op::Recompress { name, to: compression(rng) },
        22 => {
            let len = array.stored_bytes().len() as u64;
            let range = |rng: &mut Rng| {
                let offset = rng.below(len + 1);
                let end = offset + rng.below(len + 1 - offset) + u64::from(rng.one_in(30));
                (offset, rng.bytes((end - offset) as usize))
            };
            Op::WriteBack { name, ranges: (0..rng.below(4)).map(|_| range(rng)).collect() }
        }
        _ => {
            let len = array.stored_bytes().len() as u64;
            let offset = rng.below(len + 1);
            let end = offset + rng.below(len + 1 - offset) + u64::from(rng.one_in(10));
            let header_len = if offset == 0 { rng.below(9) } else { 0 };
            Op::WriteNpy { name, offset, header_len, data: rng.bytes((end - offset) as usize) }
        }
    }
}
