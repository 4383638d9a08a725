//! Core operations, each once and alone, for callgrind to count the instructions of: see `guard.py`.
//!
//!     guard list
//!     guard prepare STORE
//!     guard run OPERATION STORE
//!
//! `prepare` makes the store that all operations work on; it runs without callgrind. What is counted is all that
//! happens in [`counted`]. Each operation is repeated, so that a cost that comes now and then is in its figure, and works
//! in the thread that asks: how threads share work is not the same twice.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::hint::black_box;
use std::path::Path;

use numpack::codec::{Decoder, Encoder};
use numpack::format::{Codec, Compression, Dtype, Filter};
use numpack::fs::{Caller, Fs, Ino, OpenFlags};
use numpack::store::{Access, NewArray, Store};

type Outcome = Result<(), Box<dyn Error>>;
/// What is counted; it is told how often it was done before.
type Work = Box<dyn FnMut(usize) -> Outcome>;
type Made = Result<Work, Box<dyn Error>>;

/// Arrays in the store besides `rows` and `packed`.
const N_TINY: usize = 1000;
/// Rows of `rows` and of `packed`, and elements of one.
const N_ROWS: u64 = 16_384;
const ROW: u64 = 16;
/// Rows of one append or replace.
const AT_ONCE: u64 = 100;
const BLOCK_LEN: u32 = 64 << 10;

/// Its name, how often it is repeated, and what prepares it.
type Operation = (&'static str, usize, fn(&Path) -> Made);

const OPERATIONS: [Operation; 14] = [
    ("open", 10, open),
    ("follow", 20, follow),
    ("save", 20, save),
    ("append", 50, append),
    ("replace", 50, replace),
    ("drop-rows", 20, drop_rows),
    ("load", 10, load),
    ("row", 200, row),
    ("gather", 20, gather),
    ("row-compressed", 20, row_compressed),
    ("encode-block", 10, encode_block),
    ("decode-block", 10, decode_block),
    ("mount-lookup", 200, mount_lookup),
    ("mount-read", 200, mount_read),
];

fn main() -> Outcome {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        ["list"] => {
            for (name, ..) in OPERATIONS {
                println!("{name}");
            }
            Ok(())
        }
        ["prepare", _] => prepare(Path::new(&arguments[1])),
        ["run", name, _] => {
            let found = OPERATIONS.iter().find(|(operation, ..)| operation == name);
            let (_, n_times, make) = found.ok_or_else(|| format!("no operation {name}; see: guard list"))?;
            let mut work = make(Path::new(&arguments[2]))?;
            // What only the first of many does, such as mapping a file, is none of them.
            work(0)?;
            counted(*n_times, &mut work)
        }
        _ => Err("usage: guard list | guard prepare STORE | guard run OPERATION STORE".into()),
    }
}

/// What callgrind counts. It finds this function by its name.
#[inline(never)]
fn counted(n_times: usize, work: &mut dyn FnMut(usize) -> Outcome) -> Outcome {
    for i in 1..=n_times {
        black_box(work(black_box(i)))?;
    }
    Ok(())
}

fn dtype() -> Dtype {
    Dtype::parse_python("'<u4'").expect("a dtype of NumPy")
}

/// Rows of numbers that grow, with low bits that are hard to compress.
fn elements(n_rows: u64) -> Vec<u8> {
    let numbers = 0..n_rows * ROW;
    numbers.flat_map(|i| ((i as u32) ^ ((i as u32).wrapping_mul(0x9e37_79b9) >> 24)).to_le_bytes()).collect()
}

fn rows(n_rows: u64, data: &[u8]) -> NewArray<'_> {
    NewArray { dtype: dtype(), shape: vec![n_rows, ROW], fortran_order: false, data }
}

fn codec() -> Codec {
    Codec { level: 1, block_len: BLOCK_LEN, filter: Filter::Shuffle }
}

fn prepare(path: &Path) -> Outcome {
    let store = Store::create(path)?;
    let (tiny, large) = (elements(1), elements(N_ROWS));
    let names: Vec<_> = (0..N_TINY).map(|i| format!("tiny{i:06}")).collect();
    let mut arrays: Vec<_> = names.iter().map(|name| (name.as_str(), rows(1, &tiny))).collect();
    arrays.push(("rows", rows(N_ROWS, &large)));
    store.save(&arrays)?;
    let compression = Compression { level: 1, block_len: BLOCK_LEN, filter: Some(Filter::Shuffle) };
    store.save_as(&[("packed", rows(N_ROWS, &large))], Some(&compression))?;
    Ok(())
}

fn open(path: &Path) -> Made {
    let path = path.to_owned();
    Ok(Box::new(move |_| {
        let store = Store::open(&path, Access::Read)?;
        black_box(store.array("rows")?.n_rows());
        Ok(())
    }))
}

/// A reader takes in what a writer has committed; the commit is counted as well.
fn follow(path: &Path) -> Made {
    let (writer, reader) = (Store::open(path, Access::Write)?, Store::open(path, Access::Read)?);
    let data = elements(1);
    Ok(Box::new(move |_| {
        writer.append(&[("rows", rows(1, &data))])?;
        reader.refresh_quietly()?;
        black_box(reader.array("rows")?.n_rows());
        Ok(())
    }))
}

fn save(path: &Path) -> Made {
    let store = Store::open(path, Access::Write)?;
    let data = elements(1);
    Ok(Box::new(move |i| Ok(store.save(&[(&format!("saved{i}"), rows(1, &data))])?)))
}

fn append(path: &Path) -> Made {
    let store = Store::open(path, Access::Write)?;
    let data = elements(AT_ONCE);
    Ok(Box::new(move |_| Ok(store.append(&[("rows", rows(AT_ONCE, &data))])?)))
}

fn replace(path: &Path) -> Made {
    let store = Store::open(path, Access::Write)?;
    let data = elements(AT_ONCE);
    Ok(Box::new(move |i| {
        let start = i as u64 * AT_ONCE;
        Ok(store.replace_range("rows", start..start + AT_ONCE, rows(AT_ONCE, &data))?)
    }))
}

fn drop_rows(path: &Path) -> Made {
    let store = Store::open(path, Access::Write)?;
    Ok(Box::new(move |i| {
        let dropped: Vec<_> = (0..AT_ONCE).map(|n| n * 7 + i as u64).collect();
        Ok(store.drop_rows(&["rows"], &dropped)?)
    }))
}

fn load(path: &Path) -> Made {
    let store = Store::open(path, Access::Read)?;
    let mut out = vec![0; usize::try_from(store.array("rows")?.nbytes())?];
    Ok(Box::new(move |_| Ok(store.array("rows")?.read_into(&mut out)?)))
}

/// A row of a new object for the array, as of `load(lazy=True)`.
fn row(path: &Path) -> Made {
    let store = Store::open(path, Access::Read)?;
    let mut out = vec![0; usize::try_from(ROW * 4)?];
    Ok(Box::new(move |i| {
        store.refresh_quietly()?;
        Ok(store.array("rows")?.gather_into(&[i as u64 * 37], &mut out)?)
    }))
}

fn gather(path: &Path) -> Made {
    let array = Store::open(path, Access::Read)?.array("rows")?;
    let wanted: Vec<_> = (0..AT_ONCE * 10).map(|i| i * 7919 % N_ROWS).collect();
    let mut out = vec![0; wanted.len() * usize::try_from(ROW * 4)?];
    Ok(Box::new(move |_| Ok(array.gather_into(&wanted, &mut out)?)))
}

fn row_compressed(path: &Path) -> Made {
    let array = Store::open(path, Access::Read)?.array("packed")?;
    let mut out = vec![0; usize::try_from(ROW * 4)?];
    Ok(Box::new(move |i| Ok(array.gather_into(&[i as u64 * 797 % N_ROWS], &mut out)?)))
}

fn encode_block(_: &Path) -> Made {
    let raw = elements(u64::from(BLOCK_LEN) / (ROW * 4));
    let mut encoder = Encoder::new(&codec(), 4);
    Ok(Box::new(move |_| {
        black_box(encoder.encode(&raw)?);
        Ok(())
    }))
}

fn decode_block(_: &Path) -> Made {
    let raw = elements(u64::from(BLOCK_LEN) / (ROW * 4));
    let mut encoder = Encoder::new(&codec(), 4);
    let (kind, stored) = encoder.encode(&raw)?;
    let (stored, mut out, mut decoder) = (stored.to_vec(), vec![0; raw.len()], Decoder::new());
    Ok(Box::new(move |_| Ok(decoder.decode(kind, 4, &stored, &mut out)?)))
}

/// What the kernel asks for a `stat` of a name that it does not know.
fn mount_lookup(path: &Path) -> Made {
    let fs = Fs::new(Store::open(path, Access::Read)?, true, |_| {})?;
    Ok(Box::new(move |i| {
        let name = OsString::from(format!("tiny{:06}.npy", i * 13 % N_TINY));
        let attr = fs.lookup(Ino::ROOT, &name, Caller(1))?;
        fs.forget(attr.ino, 1);
        Ok(())
    }))
}

/// What the kernel asks to read 4 KiB of an array that is not compressed.
fn mount_read(path: &Path) -> Made {
    let fs = Fs::new(Store::open(path, Access::Read)?, true, |_| {})?;
    let ino = fs.lookup(Ino::ROOT, "rows.npy".as_ref(), Caller(1))?.ino;
    Ok(Box::new(move |i| {
        let fh = fs.open(ino, OpenFlags::default(), Caller(1))?.fh;
        black_box(fs.read(fh, i as u64 * 4096, 4096, <[u8]>::len)?);
        fs.release(fh);
        Ok(())
    }))
}
