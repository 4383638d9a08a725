//! The fuzz targets of `fuzz/`, with damaged pieces of the golden stores: what runs everywhere, and how they are seeded.
//!
//! `NUMPACK_TEST_SEED` repeats a run, `NUMPACK_TEST_CASES` sets how often each piece is damaged.

#[path = "common/rng.rs"]
#[allow(dead_code, reason = "each test crate uses some of it")]
mod rng;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use numpack::format::frame;
use rng::Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Longest piece: what a parser reads of a file is not long.
const MAX_PIECE_LEN: usize = 1 << 16;
/// Where the pieces go that fuzzing begins with, if somebody wants them: a folder for each target.
const SEEDS: &str = "NUMPACK_FUZZ_SEEDS";

/// Ends the whole test process should a parser want much memory.
fn limit_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let maximum = getrlimit(Resource::As).maximum;
        setrlimit(Resource::As, Rlimit { current: Some(1 << 30), maximum }).expect("sets a limit");
    });
}

/// All files below `tests/data`.
fn golden() -> Vec<(PathBuf, Vec<u8>)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("lists") {
            let path = entry.expect("lists").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let mut bytes = fs::read(&path).expect("reads");
                bytes.truncate(MAX_PIECE_LEN);
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

fn is_old(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "upstream")
}

fn pieces(of: &str) -> Vec<Vec<u8>> {
    let named = |path: &Path, end: &str| path.to_str().is_some_and(|path| path.ends_with(end));
    let files = golden().into_iter();
    let mut pieces: Vec<Vec<u8>> = match of {
        "manifest" => files
            .filter(|(path, _)| !is_old(path) && named(path, ".npkm"))
            .flat_map(|(_, bytes)| {
                let mut log = frame::Log::new(&bytes[frame::HEADER_LEN..], frame::HEADER_LEN as u64);
                let payloads = std::iter::from_fn(|| Some(log.next().expect("is good")?.payload.to_vec()));
                let payloads: Vec<Vec<u8>> = payloads.collect();
                payloads.into_iter().chain([bytes.clone()])
            })
            .collect(),
        "npy_header" => files
            .filter(|(path, _)| !is_old(path) && named(path, ".npkd"))
            .flat_map(|(_, bytes)| {
                let start = if bytes.starts_with(b"\x93NUMPY") { 0 } else { 4096 };
                let header = bytes[start..bytes.len().min(start + 4096)].to_vec();
                // And without the filling.
                let text =
                    header.split(|byte| *byte == b'\n').next().unwrap_or(&[]).trim_ascii_end().to_vec();
                [header, text]
            })
            .chain([
                b"[('a', '<f4'), ('b', [('x', '|S3'), ('', '|V2')], (2,))]".to_vec(),
                b"'<M8[25s]'".to_vec(),
            ])
            .collect(),
        "block_index" => files
            .filter(|(path, bytes)| !is_old(path) && named(path, ".npkd") && bytes.starts_with(b"\x89NPD"))
            .flat_map(|(_, bytes)| {
                let behind = bytes[8192.min(bytes.len())..].to_vec();
                let block = [&[2, 2, 0, 16][..], &behind].concat();
                [bytes[..4096].to_vec(), bytes[512..584].to_vec(), bytes[528..576].to_vec(), behind, block]
            })
            .collect(),
        "old_layouts" => files
            .filter(|(path, _)| {
                is_old(path) && [".npkm", ".npkb", ".npkseg", ".wal"].iter().any(|end| named(path, end))
            })
            .map(|(_, bytes)| bytes)
            .collect(),
        of => panic!("there is no target {of}"),
    };
    pieces.sort();
    pieces.dedup();
    assert!(pieces.len() > 10, "{of}: {} pieces", pieces.len());
    pieces
}

/// Damages a piece: bytes, lengths, and parts of it or of another one put elsewhere.
fn damage(rng: &mut Rng, pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.pick(pieces).clone();
    for _ in 0..1 + rng.below(4) {
        let len = bytes.len() as u64;
        let from = rng.below(len + 1) as usize;
        let to = from + rng.below((len - from as u64 + 1).min(300)) as usize;
        match rng.below(8) {
            0 => bytes.truncate(from),
            1 => drop(bytes.drain(from..to)),
            2 => {
                let other = rng.pick(pieces);
                let start = rng.below(other.len() as u64 + 1) as usize;
                let piece = other[start..other.len().min(start + (to - from))].to_vec();
                drop(bytes.splice(from..from, piece));
            }
            3 => {
                let noise = rng.bytes(to - from);
                bytes[from..to].copy_from_slice(&noise);
            }
            // Numbers that lengths and counts are not.
            4 if len >= 8 => {
                let values =
                    [0, 1, 0x7f, 0xff, 0x8000, 0xffff, u64::from(u32::MAX), 1 << 31, 1 << 63, u64::MAX, len];
                let value = rng.pick(&values).to_le_bytes();
                let n = *rng.pick(&[1, 2, 4, 8]);
                let at = rng.below(len - 7) as usize;
                bytes[at..at + n].copy_from_slice(&value[..n]);
            }
            5 => {
                let piece = bytes[from..to].to_vec();
                (0..rng.below(4)).for_each(|_| drop(bytes.splice(from..from, piece.clone())));
            }
            _ if len > 0 => bytes[from.min(len as usize - 1)] ^= 1 << rng.below(8),
            _ => {}
        }
        bytes.truncate(MAX_PIECE_LEN);
    }
    bytes
}

/// Tells the bytes, should a target panic.
struct Told<'a>(&'a str, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} of {} bytes: {:02x?}", self.0, self.1.len(), self.1);
        }
    }
}

fn run(of: &str, target: fn(&[u8])) {
    limit_memory();
    let pieces = pieces(of);
    if let Some(seeds) = std::env::var_os(SEEDS) {
        let folder = Path::new(&seeds).join(of);
        fs::create_dir_all(&folder).expect("makes a folder");
        for (n, piece) in pieces.iter().enumerate() {
            fs::write(folder.join(format!("golden-{n}")), piece).expect("writes");
        }
    }
    for piece in &pieces {
        let _told = Told(of, piece);
        target(piece);
    }
    let mut n = 0_u64;
    for mut rng in rng::cases(100) {
        for _ in 0..pieces.len() {
            let bytes = damage(&mut rng, &pieces);
            let _told = Told(of, &bytes);
            target(&bytes);
            n += 1;
        }
    }
    rng::covered(n, &format!("inputs of the fuzz target {of}"));
}

#[test]
fn damaged_manifests_are_refused_or_read() {
    run("manifest", targets::manifest);
}

#[test]
fn damaged_npy_headers_are_refused_or_read() {
    run("npy_header", targets::npy_header);
}

#[test]
fn damaged_block_indexes_are_refused_or_read() {
    run("block_index", targets::block_index);
}

#[test]
fn damaged_tables_of_old_releases_are_refused_or_read() {
    run("old_layouts", targets::old_layouts);
}
