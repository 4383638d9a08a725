//! Tables made here byte by byte, and their mutations. Those that old releases wrote are in `tests/upstream.rs`.

use proptest::prelude::*;

use super::*;

/// A table of one array of each layout: `ab`, (2, 3) of float32, changed at second 5.
fn tables() -> [(TableLayout, Vec<u8>); 4] {
    let u32s = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let u64s = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let text64 = |text: &str| [u64s(&[text.len() as u64]), text.as_bytes().to_vec()].concat();
    let text32 = |text: &str| [u32s(&[text.len() as u32]), text.as_bytes().to_vec()].concat();
    let bincode = [
        u32s(&[1]),
        u64s(&[1]),
        text64("ab"),
        text64("ab"),
        u64s(&[2, 2, 3]),
        text64("data_ab.npkd"),
        u64s(&[5, 24]),
        u32s(&[10]),
        u64s(&[24]),
    ];
    let python = [
        u32s(&[1]),
        u64s(&[1]),
        text64("ab"),
        text64("ab"),
        u64s(&[2, 2, 3, 10]),
        text64("data_ab.npkd"),
        u64s(&[5_000_000, 800, 24]),
    ];
    let npkb = [
        b"NPKB".to_vec(),
        u32s(&[1]),
        u64s(&[24]),
        u32s(&[1]),
        text32("ab"),
        u32s(&[2]),
        u64s(&[2, 3]),
        text32("data_ab.npkd"),
        u64s(&[5_000_000, 24]),
        vec![10, 0],
        u32s(&[0]),
        u64s(&[0, 0]),
        vec![0],
    ];
    let msgpack = msgpack_table("ab");
    [
        (TableLayout::Bincode, bincode.concat()),
        (TableLayout::BincodePython, python.concat()),
        (TableLayout::MessagePack, msgpack),
        (TableLayout::Npkb, npkb.concat()),
    ]
}

fn msgpack_table(name: &str) -> Vec<u8> {
    let entry = rmpv::Value::Map(vec![
        ("name".into(), name.into()),
        ("shape".into(), rmpv::Value::Array(vec![2.into(), 3.into()])),
        ("data_file".into(), "data_ab.npkd".into()),
        ("last_modified".into(), 5_000_000.into()),
        ("size_bytes".into(), 24.into()),
        ("dtype".into(), 10.into()),
    ]);
    let table = rmpv::Value::Map(vec![
        ("version".into(), 1.into()),
        ("arrays".into(), rmpv::Value::Map(vec![("ab".into(), entry)])),
        ("total_size".into(), 24.into()),
    ]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &table).unwrap();
    bytes
}

fn error_of(bytes: &[u8]) -> String {
    parse_table(bytes).expect_err("a bad table").to_string()
}

#[test]
fn all_layouts_say_the_same() {
    for (layout, bytes) in tables() {
        assert!(is_table(&bytes));
        let table = parse_table(&bytes).unwrap_or_else(|error| panic!("{layout}: {error}"));
        assert_eq!(table.layout, layout);
        let [array] = table.arrays.as_slice() else { panic!("{layout}: one array") };
        assert_eq!((&*array.name, &*array.file), ("ab", "data_ab.npkd"));
        assert_eq!((array.dtype.to_string().as_str(), array.layout.shape()), ("<f4", &[2, 3][..]));
        assert_eq!((array.modified, &array.fault), (5_000_000_000, &None));
    }
}

#[test]
fn tables_that_are_cut_or_too_long_are_refused() {
    for (layout, bytes) in tables() {
        for len in 0..bytes.len() {
            let cut = &bytes[..len];
            assert!(!is_table(cut) || parse_table(cut).is_err(), "{layout}, cut to {len}");
        }
        let error = error_of(&[&bytes[..], b"x"].concat());
        let expected = format!("ends at byte {}, and 1 bytes follow", bytes.len());
        assert!(error.contains(&expected) || layout == TableLayout::BincodePython, "{error}");
    }
}

#[test]
fn a_changed_byte_gives_an_error_or_an_array_that_can_be() {
    for (_, bytes) in tables() {
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 3, 9, 0x7f, 0x80, 0xc1, 0xdd, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x80] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if !is_table(&changed) {
                    continue;
                }
                for array in parse_table(&changed).map(|table| table.arrays).unwrap_or_default() {
                    assert!(array.layout.nbytes() <= MAX_NBYTES && is_data_file(&array.file));
                }
            }
        }
    }
}

#[test]
fn claimed_counts_and_lengths_reserve_nothing() {
    let all_ones = [0xff; 8];
    for (_, bytes) in tables() {
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            let end = (at + 8).min(bytes.len());
            changed[at..end].copy_from_slice(&all_ones[..end - at]);
            if is_table(&changed) {
                let _ = parse_table(&changed);
            }
        }
    }
    // A map of 2^32-1 arrays, a shape of as many dimensions, a text of as many bytes.
    let map = [&b"\x83\xa7version\x01\xa6arrays\xdf\xff\xff\xff\xff"[..]].concat();
    assert!(error_of(&map).starts_with("metadata of NumPack 0.2.1: "));
    let shape =
        [&b"\x83\xa7version\x01\xa6arrays\x81\xa1a\x86\xa5shape\xdd\xff\xff\xff\xff\x01"[..]].concat();
    assert!(parse_table(&shape).is_err());
    let text = [&b"\x83\xa7version\x01\xa6arrays\x81\xa1a\x86\xa4name\xdb\xff\xff\xff\xffx"[..]].concat();
    assert!(parse_table(&text).is_err());
    let mut deep = b"\x83\xa7version".to_vec();
    deep.extend([0x91; 100_000]);
    assert!(parse_table(&deep).is_err());
}

#[test]
fn what_no_array_can_be_is_refused_by_name() {
    let (_, npkb) = &tables()[3];
    let with = |from: &[u8], to: &[u8]| {
        let at = npkb.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = npkb.clone();
        changed.splice(at..at + from.len(), to.iter().copied());
        error_of(&changed)
    };
    assert_eq!(
        with(b"data_ab.npkd", b"../_ab.npkd\0"),
        "metadata of NumPack 0.3-0.7: array \"ab\": \"../_ab.npkd\\0\" is not the name of a data file within the store"
    );
    assert_eq!(
        with(&[10, 0, 0], &[77, 0, 0]),
        "metadata of NumPack 0.3-0.7: array \"ab\": dtype 77 is not known"
    );
    assert_eq!(with(b"NPKB\x01", b"NPKB\x02"), "metadata of NumPack 0.3-0.7: has version 2, expected 1");
    assert!(
        with(&[2, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8])
            .ends_with("array \"ab\": shape [18446744073709551615, 3]: is larger than 2**63 bytes")
    );
    assert!(error_of(&msgpack_table("x")).ends_with("array \"ab\" is called \"x\" as well"));
}

#[test]
fn sizes_that_are_not_those_of_the_shape_are_one_arrays_fault() {
    for (layout, bytes) in tables() {
        let mut changed = bytes.clone();
        match layout {
            // The size stands before the sum of all, as one byte.
            TableLayout::MessagePack => {
                let at = bytes.iter().position(|byte| *byte == 24).unwrap();
                changed[at] = 25;
            }
            _ => {
                let size = 24_u64.to_le_bytes();
                let start = bytes.len() - 60;
                let at = start + bytes[start..].windows(8).position(|window| window == size).unwrap();
                changed[at] = 25;
            }
        }
        let table = parse_table(&changed).unwrap();
        let expected = Fault::Size { found: 25, expected: 24 };
        assert_eq!(table.arrays[0].fault.as_ref(), Some(&expected), "{layout}");
    }
}

#[test]
fn the_numbers_of_0_1_are_told_by_sizes() {
    let entry =
        |dtype, size, shape: &[u64]| RawEntry { dtype, size, shape: shape.to_vec(), ..RawEntry::default() };
    assert!(is_of_0_1(&entry(9, 24, &[2, 3])) && is_of_0_1(&entry(10, 48, &[2, 3])));
    assert!(!is_of_0_1(&entry(9, 12, &[2, 3])) && !is_of_0_1(&entry(10, 24, &[2, 3])));
    assert!(!is_of_0_1(&entry(9, 0, &[0, 3])) && !is_of_0_1(&entry(8, 48, &[2, 3])));
}

/// The file of deleted rows for `n_rows` rows of which `deleted` are.
fn bitmap(n_rows: u64, deleted: &[u64]) -> Vec<u8> {
    let mut words = vec![0_u64; n_rows.div_ceil(64) as usize];
    for row in (0..n_rows).filter(|row| !deleted.contains(row)) {
        words[row as usize / 64] |= 1 << (row % 64);
    }
    let header = [n_rows, deleted.len() as u64];
    header.iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect()
}

fn parse_bitmap(bytes: &[u8], n_rows: u64) -> Result<Vec<u64>, String> {
    let rows = parse_deleted(bytes, bytes.len() as u64, n_rows).map_err(|fault| fault.to_string())?;
    Ok(rows.iter().collect())
}

#[test]
fn deleted_rows_are_the_bits_that_are_not_set() {
    for n_rows in [0, 1, 63, 64, 65, 128, 200] {
        let all: Vec<u64> = (0..n_rows).collect();
        let some: Vec<u64> = all.iter().copied().filter(|row| row % 3 == 0 || *row == n_rows - 1).collect();
        for deleted in [&all, &some, &vec![]] {
            assert_eq!(parse_bitmap(&bitmap(n_rows, deleted), n_rows).unwrap(), *deleted);
        }
        assert_eq!(deleted_file_len(n_rows), bitmap(n_rows, &[]).len() as u64);
    }
}

#[test]
fn bitmaps_that_contradict_the_table_or_themselves_are_refused() {
    let good = bitmap(70, &[1, 69]);
    let error = |bytes: &[u8], n_rows| parse_bitmap(bytes, n_rows).expect_err("a bad bitmap");
    assert_eq!(error(&good, 71), "counts 70 rows, metadata.npkm 71");
    assert_eq!(error(&good, 0), "counts 70 rows, metadata.npkm 0");
    assert_eq!(error(&good[..24], 70), "has 24 bytes, expected 32");
    assert_eq!(error(&good[..3], 70), "has 3 bytes, expected 32");
    assert_eq!(error(&[&good[..], &[0]].concat(), 70), "has 33 bytes, expected 32");
    let mut changed = good.clone();
    changed[8] = 3;
    assert_eq!(error(&changed, 70), "says that 3 rows are deleted, and its bits that 2 are");
    let mut changed = good.clone();
    changed[31] = 0x80;
    assert_eq!(error(&changed, 70), "has bits behind its last row");
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut changed = good.clone();
            changed[at] ^= 1 << bit;
            assert!(parse_bitmap(&changed, 70).is_err(), "bit {bit} of byte {at}");
        }
    }
    assert_eq!(deleted_file_len(u64::MAX), 16 + (1 << 61));
}

#[test]
fn segments_stay_within_the_store() {
    let list = |file: &str| {
        let list = format!(r#"{{"version": 1, "segments": [{{"file": "{file}", "rows": 2, "bytes": 8}}]}}"#);
        parse_segments(list.as_bytes(), 8)
    };
    let good = Segment { folder: "data_a_segments".into(), file: "seg_000000.npkd".into(), len: 8 };
    assert_eq!(list("data_a_segments/seg_000000.npkd").unwrap(), [good]);
    for file in [
        "/etc/passwd",
        "data_a_segments/../x",
        "data_a_segments/..",
        "data_a_segments/",
        "../data_a_segments/x",
        "data_a.npkd",
        "other/x",
        "data_a_segments/a/b",
        "data_a_segments/\\u0000",
        "data_/../_segments/x",
    ] {
        assert!(matches!(list(file), Err(Fault::SegmentFile { .. })), "{file}");
    }
}

#[test]
fn lists_of_segments_that_do_not_fit_are_refused() {
    let error = |list: &str| parse_segments(list.as_bytes(), 8).expect_err(list).to_string();
    assert_eq!(
        error(r#"{"version": 2, "segments": []}"#),
        "is no list of segments: has version 2, expected 1"
    );
    assert_eq!(error(r#"{"version": 1, "segments": []}"#), "lists 0 bytes, expected 8");
    let two = r#"{"version": 1, "segments": [
        {"file": "data_a_segments/x", "rows": 1, "bytes": 18446744073709551615},
        {"file": "data_a_segments/y", "rows": 1, "bytes": 18446744073709551615}]}"#;
    assert_eq!(error(two), "lists 18446744073709551615 bytes, expected 8");
    for list in
        ["", "[]", "{}", "nonsense", r#"{"version": 1, "segments": [{"file": "x"}]}"#, &"[".repeat(100_000)]
    {
        assert!(error(list).starts_with("is no list of segments: "), "{list:.20}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400), layout in 0..4_usize) {
        let (_, good) = &tables()[layout];
        for kept in [0, 4, 12, good.len() / 2, good.len() - 9] {
            let bytes = [&good[..kept], &bytes].concat();
            if is_table(&bytes) {
                let _ = parse_table(&bytes);
            }
        }
        let n_rows = bytes.len() as u64 * 3;
        let _ = parse_deleted(&bytes, bytes.len() as u64, n_rows);
        let _ = parse_segments(&bytes, n_rows);
    }
}
