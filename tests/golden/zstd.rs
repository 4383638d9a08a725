//! The same of compressed arrays: `tests/data/v1-zstd`, written by `write_the_golden_store_of_blocks`.
//!
//! What zstd makes of a block is up to its version. All else is compared byte for byte.

use std::path::{Path, PathBuf};
use std::time::Duration;

use numpack::format::block_index::{
    FILE_HEADER_LEN, FileHeader, SLOT_LEN, SLOT_OFFSETS, Slot, encode_page, parse_page,
};
use numpack::format::{ArrayId, BlockKind, Blocks, Codec, Compression, Filter, Index, Layout, Record, npy};
use numpack::store::{Access, Depth, Dtype, NewArray, Store, verify_storage_with};
use numpack::sys::DirStorage;

use crate::common::blocks::{Found, look, read, table};
use crate::{elements, imported_npy};

const BLOCK_LEN: usize = 4096;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1-zstd")
}

fn blocks(filter: Filter) -> Compression {
    Compression { level: 1, block_len: BLOCK_LEN as u32, filter: Some(filter) }
}

fn default_compression() -> Compression {
    Compression { level: -3, block_len: 65536, filter: None }
}

/// Items of `itemsize` bytes that count upwards in steps.
fn counting(itemsize: usize, n: u64) -> Vec<u8> {
    (0..n).flat_map(|i| [(i * 3).to_le_bytes(), [7; 8], [9; 8]].concat()[..itemsize].to_vec()).collect()
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// An array as it must be read, and how its blocks are stored, as runs of kinds.
struct Known {
    name: &'static str,
    dtype: &'static str,
    shape: &'static [u64],
    fortran_order: bool,
    elements: Vec<u8>,
    filter: Filter,
    kinds: &'static [(usize, BlockKind)],
}

fn known() -> Vec<Known> {
    use BlockKind::{
        Absent, OpenTail, Raw, Zstd, ZstdDelta, ZstdDelta2, ZstdDelta3, ZstdDelta4, ZstdShuffle,
    };
    let known =
        |name, dtype, shape: &'static [u64], elements, filter, kinds: &'static [(usize, BlockKind)]| Known {
            name,
            dtype,
            shape,
            fortran_order: false,
            elements,
            filter,
            kinds,
        };
    let mut rewritten = counting(8, 1500);
    rewritten[4000..4800].copy_from_slice(&noise(800));
    let dropped = counting(4, 3000);
    let dropped = [&dropped[4..4000], &dropped[8000..]].concat();
    let mut sparse = vec![0; 5 * BLOCK_LEN + 100];
    sparse[2 * BLOCK_LEN + 5] = 1;
    vec![
        known("none", "'|S3'", &[1500], counting(3, 1500), Filter::None, &[(2, Zstd)]),
        known("shuffle 2", "'<u2'", &[3000], counting(2, 3000), Filter::Shuffle, &[(2, ZstdShuffle)]),
        known("shuffle 12", "'|V12'", &[30, 20], counting(12, 600), Filter::Shuffle, &[(2, ZstdShuffle)]),
        known("delta 1", "'|u1'", &[5000], counting(1, 5000), Filter::Delta, &[(2, ZstdDelta)]),
        known("delta 2", "'<i2'", &[3000], counting(2, 3000), Filter::Delta, &[(2, ZstdDelta)]),
        known("delta 4", "'<f4'", &[2000], counting(4, 2000), Filter::Delta, &[(2, ZstdDelta)]),
        known("delta 8", "'<i8'", &[2000], counting(8, 2000), Filter::Delta, &[(4, ZstdDelta)]),
        known("delta2", "'<u4'", &[2000], counting(4, 2000), Filter::Delta2, &[(2, ZstdDelta2)]),
        known("delta3", "'|u1'", &[40, 40, 3], counting(1, 4800), Filter::Delta3, &[(2, ZstdDelta3)]),
        known("delta4", "'|u1'", &[40, 30, 4], counting(1, 4800), Filter::Delta4, &[(2, ZstdDelta4)]),
        // Not made for such items: the next best is used.
        known("delta of 16", "'<c16'", &[600], counting(16, 600), Filter::Delta, &[(3, ZstdShuffle)]),
        known("raw", "'|u1'", &[4200], noise(4200), Filter::Shuffle, &[(2, Raw)]),
        known("whole", "'|u1'", &[8192], counting(1, 8192), Filter::None, &[(2, Zstd)]),
        known("tail", "'|u1'", &[100], vec![5; 100], Filter::None, &[(1, Zstd)]),
        Known {
            fortran_order: true,
            ..known("fortran", "'<u4'", &[60, 30], counting(4, 1800), Filter::Shuffle, &[(2, ZstdShuffle)])
        },
        known("0-d", "'<u4'", &[], counting(4, 1), Filter::Shuffle, &[(1, Raw)]),
        known("empty", "'<u4'", &[0, 3], vec![], Filter::Shuffle, &[]),
        known("two levels", "'<u4'", &[264_200], counting(4, 264_200), Filter::Delta, &[(259, ZstdDelta)]),
        known(
            "open tail",
            "'<u4'",
            &[1100],
            counting(4, 1100),
            Filter::Delta,
            &[(1, ZstdDelta), (1, OpenTail)],
        ),
        known("grown", "'<u4'", &[2100], counting(4, 2100), Filter::Delta, &[(2, ZstdDelta), (1, OpenTail)]),
        known("rewritten", "'<u8'", &[1500], rewritten, Filter::Shuffle, &[(3, ZstdShuffle)]),
        known("dropped", "'<u4'", &[1999], dropped, Filter::Delta, &[(3, ZstdDelta)]),
        known("sparse", "'|u1'", &[20_580], sparse, Filter::None, &[(2, Absent), (1, Zstd), (3, Absent)]),
    ]
}

fn new_array(known: &Known, rows: std::ops::Range<u64>) -> NewArray<'_> {
    let dtype = Dtype::parse_python(known.dtype).unwrap();
    let row_len = known.elements.len() / known.shape[0] as usize;
    let shape = [&[rows.end - rows.start], &known.shape[1..]].concat();
    let data = &known.elements[rows.start as usize * row_len..rows.end as usize * row_len];
    NewArray { dtype, shape, fortran_order: known.fortran_order, data }
}

fn save(store: &Store, known: &Known) {
    let new = NewArray {
        dtype: Dtype::parse_python(known.dtype).unwrap(),
        shape: known.shape.to_vec(),
        fortran_order: known.fortran_order,
        data: &known.elements,
    };
    store.save_as(&[(known.name, new)], Some(&blocks(known.filter))).unwrap();
}

#[test]
#[ignore = "writes tests/data/v1-zstd, which is there for good"]
fn write_the_golden_store_of_blocks() {
    let path = golden();
    assert!(!path.exists(), "{} is there already, and must not change", path.display());
    let store = Store::create(&path).unwrap();
    for known in known() {
        let compression = blocks(known.filter);
        let append = |rows| store.append(&[(known.name, new_array(&known, rows))]).unwrap();
        let begin =
            |rows| store.save_as(&[(known.name, new_array(&known, rows))], Some(&compression)).unwrap();
        match known.name {
            "open tail" => {
                begin(0..1050);
                append(1050..1090);
                append(1090..1100);
            }
            "grown" => {
                begin(0..1000);
                append(1000..1010);
                append(1010..2060);
                append(2060..2100);
            }
            "rewritten" => {
                save(&store, &Known { elements: counting(8, 1500), ..known });
                let rows = self::known().into_iter().find(|known| known.name == "rewritten").unwrap();
                store.replace_range("rewritten", 500..600, new_array(&rows, 500..600)).unwrap();
            }
            "dropped" => {
                save(&store, &Known { shape: &[3000], elements: counting(4, 3000), ..known });
                store.drop_rows(&["dropped"], &[0]).unwrap();
                store.drop_rows(&["dropped"], &(999..1999).collect::<Vec<_>>()).unwrap();
            }
            "sparse" => {
                let array = new_array(&known, 0..known.shape[0]);
                let layout = Layout::new(&array.dtype, &array.shape, false).unwrap();
                let header = npy::encode(&array.dtype, &layout).unwrap();
                let mut draft = store.begin_draft(Some(&compression)).unwrap();
                draft.write_at(0, &header).unwrap();
                draft.write_at((header.len() + 2 * BLOCK_LEN + 5) as u64, &[1]).unwrap();
                draft.set_len((header.len() + known.elements.len()) as u64).unwrap();
                store.finish_draft("sparse", &mut draft, false, Duration::ZERO).unwrap();
            }
            _ => save(&store, &known),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("imported.npy");
    std::fs::write(&npy, imported_npy()).unwrap();
    store.import_npy("imported", &npy, false, Some(&blocks(Filter::None)), &mut |_| ()).unwrap();
    store.set_default_compression(Some(&default_compression())).unwrap();
}

/// What is in the data file of an array.
fn found(name: &str) -> (Found, Vec<u8>) {
    let storage = DirStorage::open(&golden()).unwrap();
    let record = table(&storage).get(name).unwrap().unwrap().clone();
    let file = read(&storage, &record.file);
    (look(&record, &file), file)
}

#[test]
fn every_compressed_array_of_version_1_is_read_as_it_was() {
    let store = Store::open(&golden(), Access::Read).unwrap();
    assert_eq!(store.names().len(), known().len() + 1);
    for known in known() {
        let array = store.array(known.name).unwrap();
        assert_eq!(array.dtype(), &Dtype::parse_python(known.dtype).unwrap(), "{}", known.name);
        assert_eq!(
            (array.shape(), array.fortran_order()),
            (known.shape, known.fortran_order),
            "{}",
            known.name
        );
        assert!(elements(&array) == known.elements, "{}", known.name);
        let codec = Codec::new(1, BLOCK_LEN as u32, known.filter).unwrap();
        assert_eq!(array.codec(), Some(&codec));
        let (found, _) = found(known.name);
        let runs: Vec<_> = found.kinds.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).collect();
        assert_eq!(runs, known.kinds, "{}", known.name);
    }
    assert_eq!(found("two levels").0.pages.len(), 3);
    assert_eq!(store.array("dropped").unwrap().n_deleted(), 1001);
    assert!(store.array("rewritten").unwrap().usage().unwrap().unwrap().dead > 0);
    let imported = store.array("imported").unwrap();
    let mut npy = vec![0; imported.npy_len() as usize];
    imported.read_npy_at(0, &mut npy).unwrap();
    assert_eq!(npy, imported_npy());
    assert_eq!(store.default_compression(), Some(default_compression()));
    let report =
        verify_storage_with(Box::new(DirStorage::open(&golden()).unwrap()), Depth::Elements).unwrap();
    assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{report:?}");
}

#[test]
fn headers_slots_indexes_and_pages_encode_to_the_same_bytes() {
    crate::assert_manifest_comes_back(&golden());
    let storage = DirStorage::open(&golden()).unwrap();
    for record in table(&storage).records().unwrap() {
        let file = read(&storage, &record.file);
        let found = look(record, &file);
        let mut header = FileHeader::parse(&file).unwrap().to_bytes();
        for offset in SLOT_OFFSETS {
            if let Some(slot) = Slot::parse(&file, offset) {
                header[offset as usize..][..SLOT_LEN].copy_from_slice(&slot.to_bytes());
            }
        }
        assert!(header == file[..FILE_HEADER_LEN as usize], "{}", record.name);
        let index = record.blocks.unwrap().index;
        assert_eq!(Index::parse(&index.to_bytes()), Ok(index));
        for page in found.pages {
            let bytes = &file[page.offset..][..page.len];
            assert!(encode_page(&parse_page(bytes).unwrap()) == bytes, "{}: {page:?}", record.name);
        }
    }
}

/// The bytes that `spec/npk-format.md` shows are those of the array that it says.
#[test]
fn the_specification_shows_a_compressed_array_as_it_is() {
    let spec =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("spec/npk-format.md")).unwrap();
    let (_, shown) = spec.split_once("## A compressed array, byte by byte").unwrap();
    let mut file = vec![0; FILE_HEADER_LEN as usize];
    file.resize(2 * FILE_HEADER_LEN as usize - 1, b' ');
    file.push(b'\n');
    for line in shown.lines() {
        let Some((offset, bytes)) = line.split_at_checked(8).filter(|(offset, _)| !offset.contains(' '))
        else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else { continue };
        let bytes: Vec<u8> = bytes[..51.min(bytes.len())]
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        file.resize(file.len().max(offset + bytes.len()), 0);
        file[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    assert_eq!(file.len(), 8292);
    let dtype = Dtype::parse_python("'<u2'").unwrap();
    let elements: Vec<u8> = (0..4100_u16).flat_map(u16::to_le_bytes).collect();
    for (n, slot) in [(4099, Slot::parse(&file, SLOT_OFFSETS[0])), (4100, Slot::newest(&file).0)] {
        let slot = slot.unwrap();
        let record = Record {
            name: "a".into(),
            id: ArrayId(1),
            file: "data_a.npkd".into(),
            dtype: dtype.clone(),
            layout: Layout::new(&dtype, &[n], false).unwrap(),
            offset: 4096,
            blocks: Some(Blocks { codec: FileHeader::parse(&file).unwrap().codec, index: slot.index }),
            deleted: Default::default(),
            mtime: 0,
            attrs: Default::default(),
            upstream: None,
        };
        assert_eq!(slot.nbytes, record.layout.nbytes());
        assert!(look(&record, &file).elements == elements[..2 * n as usize]);
    }
}
