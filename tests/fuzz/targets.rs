//! What is done with hostile bytes, a function for each parser: none of them panics, hangs or takes memory for lengths
//! that nobody checked, and what a parser takes for good is what it is written as again.
//!
//! `tests/fuzz.rs` calls them with damaged pieces of the golden stores, `fuzz/` with what libFuzzer thinks of.

use numpack::codec::Decoder;
use numpack::format::block_index::{
    self, FileHeader, POINTER_LEN, SLOT_LEN, SLOT_OFFSETS, Slot, encode_page, parse_page,
};
use numpack::format::{BlockKind, Dtype, Edit, Index, Layout, Table, frame, npy, upstream};

/// The longest block that is decoded.
const MAX_RAW_LEN: usize = 1 << 16;

/// A manifest as a file, and its bytes as the payload of a frame, which no checksum protects from the fuzzer.
pub fn manifest(bytes: &[u8]) {
    let _ = frame::parse_header(bytes);
    for start in [0, frame::HEADER_LEN] {
        let mut log = frame::Log::new(bytes.get(start..).unwrap_or(&[]), start as u64);
        let mut end = start as u64;
        loop {
            match log.next() {
                Ok(Some(frame)) => {
                    assert!(
                        frame.offset >= end && frame.end > frame.offset && frame.end <= bytes.len() as u64
                    );
                    end = frame.end;
                    payload(frame.payload);
                }
                Ok(None) => break,
                Err(_) => match log.skip_damage() {
                    Some(gap) => assert!(gap.start >= end && gap.end > gap.start),
                    None => break,
                },
            }
        }
    }
    payload(bytes);
}

fn payload(bytes: &[u8]) {
    if let Ok(edit) = Edit::decode(bytes, 0) {
        let again = Edit::decode(&edit.encode(), 0).expect("what was read can be written");
        // A number that is none differs from itself.
        assert_eq!(format!("{again:?}"), format!("{edit:?}"));
        let mut table = Table::default();
        let first = Edit { generation: numpack::format::Generation(1), ..edit };
        if table.apply(&first, &mut |_| ()).is_ok() {
            whole(&table);
        }
    }
    if let Ok(table) = Table::decode(bytes, 0) {
        whole(&table);
    }
}

/// What a table holds is in the snapshot that it is written as.
fn whole(table: &Table) {
    let again = Table::decode(&table.encode(), 0).expect("what was read can be written");
    assert_eq!(
        (again.generation(), again.next_id(), again.len()),
        (table.generation(), table.next_id(), table.len())
    );
    for name in table.names() {
        let (own, other) = (table.get(name), again.get(name));
        assert_eq!(own.is_ok(), other.is_ok());
        if let (Ok(own), Ok(other)) = (own, other) {
            assert_eq!(format!("{own:?}"), format!("{other:?}"));
        }
    }
}

/// The header of a `.npy` file, and a dtype as Python writes it.
pub fn npy_header(bytes: &[u8]) {
    let len = npy::header_len(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(dtype) = Dtype::parse_python(text)
    {
        let again = Dtype::parse_python(&dtype.to_python()).expect("what was read can be written");
        assert_eq!(again, dtype);
    }
    let Ok(header) = npy::parse(bytes) else { return };
    assert_eq!(header.header_len, len.expect("the prefix is whole") as u64);
    let layout = Layout::new(&header.dtype, &header.shape, header.fortran_order).expect("was checked");
    for bytes in [
        npy::encode(&header.dtype, &layout).ok(),
        npy::encode_within(&header.dtype, &layout, header.header_len),
    ]
    .into_iter()
    .flatten()
    {
        let again = npy::parse(&bytes).expect("what was read can be written");
        assert!(again.describes(&header.dtype, &layout) && again.header_len == bytes.len() as u64);
    }
}

/// The header of a compressed data file, a page, an index, and a block of each kind.
pub fn block_index(bytes: &[u8]) {
    if let Ok(header) = FileHeader::parse(bytes) {
        let again = FileHeader::parse(&header.to_bytes()).expect("what was read can be written");
        assert_eq!(again, header);
    }
    for offset in SLOT_OFFSETS.into_iter().chain([0]) {
        if let Some(slot) = Slot::parse(bytes, offset) {
            assert_eq!(slot.to_bytes()[..SLOT_LEN - 4], bytes[offset as usize..][..SLOT_LEN - 4]);
        }
    }
    if let Ok(pointers) = parse_page(bytes) {
        let encoded = encode_page(&pointers);
        assert!(bytes.starts_with(&encoded) && bytes[encoded.len()..].iter().all(|byte| *byte == 0));
        for (level, pointer) in (0..9).cycle().zip(&pointers) {
            let _ = block_index::check_pointer(pointer, level, 4096, 8192, 1 << 40);
        }
    }
    if let Some((index, rest)) = bytes.split_at_checked(2 * POINTER_LEN + 16)
        && let Ok(index) = Index::parse(index)
    {
        let codec = numpack::format::Codec::new(1, 4096, numpack::format::Filter::None).expect("a codec");
        for nbytes in [0, 1, 4096, 4097, 1 << 30, u64::MAX, rest.len() as u64] {
            let _ = index.check(nbytes, 128, &codec);
        }
        assert_eq!(Index::parse(&index.to_bytes()), Ok(index));
    }
    block(bytes);
}

fn block(bytes: &[u8]) {
    let Some(([kind, itemsize, raw @ ..], stored)) = bytes.split_first_chunk::<4>() else { return };
    let Some(kind) = BlockKind::from_u8(kind % 12) else { return };
    let raw_len = usize::from(u16::from_le_bytes(*raw)).min(MAX_RAW_LEN);
    let mut out = vec![0xa5; raw_len];
    let mut decoder = Decoder::new();
    if decoder.decode(kind, u64::from(*itemsize), stored, &mut out).is_ok() {
        let mut again = vec![0; raw_len];
        decoder.decode(kind, u64::from(*itemsize), stored, &mut again).expect("decodes again");
        assert!(again == out);
    }
}

/// The tables of NumPack 0.1 to 0.7, and what is beside them.
pub fn old_layouts(bytes: &[u8]) {
    if upstream::is_table(bytes)
        && let Ok(table) = upstream::parse_table(bytes)
    {
        for array in &table.arrays {
            assert!(upstream::is_data_file(&array.file), "{:?} leads out of the store", array.file);
            assert!(array.layout.nbytes() < 1 << 63);
        }
    }
    for n_rows in [0, 1, 64, 65, bytes.len() as u64] {
        if let Ok(deleted) = upstream::parse_deleted(bytes, bytes.len() as u64, n_rows) {
            assert!(deleted.max().is_none_or(|max| max < n_rows));
        }
    }
    for nbytes in [0, 1, 1000, bytes.len() as u64] {
        for segment in upstream::parse_segments(bytes, nbytes).into_iter().flatten() {
            for name in [&segment.folder, &segment.file] {
                assert!(!name.contains('/') && *name != ".." && !name.is_empty(), "{name:?}");
            }
        }
    }
}
