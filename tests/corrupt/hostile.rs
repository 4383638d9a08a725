//! Manifests with right checksums that say what no store says.

use std::sync::Arc;

use numpack::format::manifest::{DeletedRows, Op, Record};
use numpack::format::{ArrayId, Descr, Edit, Generation, Layout, Table, frame, names};
use numpack::store::{Access, Attrs, Dtype, NewArray, Store, StoreError, verify_storage};
use rmpv::Value;

use crate::common::MemStorage;
use crate::common::rng::{self, Rng};
use crate::sample::{MANIFEST, Sample, Seen, look, payloads, sample, snapshot_of};
use crate::{MUTATIONS, Told, files, limit_resources, write_to};

fn decode(bytes: &[u8]) -> Value {
    rmpv::decode::read_value(&mut &bytes[..]).expect("is MessagePack")
}

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).expect("writes to memory");
    bytes
}

/// What a value can be replaced by.
fn strange_value(rng: &mut Rng) -> Value {
    match rng.below(16) {
        0 => Value::Nil,
        1 => Value::from(0),
        2 => Value::from(u64::MAX),
        3 => Value::from(i64::MAX),
        4 => Value::from(i64::MIN),
        5 => Value::from(1_u64 << rng.below(64)),
        6 => Value::from(rng.below(20)),
        7 => Value::from(""),
        8 => Value::from(*rng.pick(&[
            "../x",
            "data_../../x.npkd",
            "/etc/passwd",
            "data_a.npkd",
            "a",
            "|O",
            "<f4",
        ])),
        9 => Value::from("data_x\0.npkd"),
        10 => Value::Binary(vec![]),
        11 => Value::Array(vec![Value::from(u64::MAX >> rng.below(40)); rng.below(70) as usize]),
        12 => Value::Map(vec![]),
        13 => Value::F64(f64::NAN),
        14 => Value::Ext(5, vec![1, 2, 3]),
        _ => (0..200).fold(Value::Nil, |value, _| Value::Array(vec![value])),
    }
}

/// Changes one thing somewhere in `value`.
fn mutate(value: &mut Value, rng: &mut Rng) {
    if rng.one_in(8) {
        *value = strange_value(rng);
        return;
    }
    match value {
        Value::Array(items) if !items.is_empty() => {
            let at = rng.below(items.len() as u64) as usize;
            match rng.below(8) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.push(strange_value(rng)),
                _ => mutate(&mut items[at], rng),
            }
        }
        Value::Map(entries) if !entries.is_empty() => {
            let at = rng.below(entries.len() as u64) as usize;
            match rng.below(10) {
                0 => drop(entries.remove(at)),
                1 => entries.push(entries[at].clone()),
                2 => entries.push((Value::from("unknown"), strange_value(rng))),
                3 => entries[at].0 = strange_value(rng),
                _ => mutate(&mut entries[at].1, rng),
            }
        }
        // A record is MessagePack in a byte string, a set of deleted rows is something else.
        Value::Binary(bytes) => match rmpv::decode::read_value(&mut &bytes[..]) {
            Ok(mut inner @ Value::Map(_)) => {
                mutate(&mut inner, rng);
                *bytes = encode(&inner);
            }
            _ if bytes.is_empty() => bytes.push(1),
            _ => {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(4) {
                    0 => bytes.truncate(at),
                    1 => bytes[at] ^= 1 << rng.below(8),
                    2 => bytes[at] = 0xff,
                    _ => bytes.extend_from_within(at..),
                }
            }
        },
        _ => *value = strange_value(rng),
    }
}

fn look_and_write(storage: &MemStorage) -> Result<Seen, StoreError> {
    let seen = look(storage);
    write_to(storage, &seen);
    seen
}

/// A record is decoded when its array is asked for: one that is wrong hides no other, and nothing is written over it.
#[test]
fn wrong_record_is_told_to_who_asks_for_it() {
    let records = [record("bad", 1, "/etc/passwd", &[3]), record("good", 2, "data_good.npkd", &[3])];
    let edit = Edit { generation: Generation(1), time: 0, ops: records.into_iter().map(Op::Put).collect() };
    let mut table = Table::default();
    let new = table.encode();
    table.apply(&edit, &mut |_| ()).expect("fits");
    // In a snapshot, and in an edit.
    for payloads in [vec![table.encode()], vec![new, edit.encode()]] {
        ask_for_wrong_record(&sample().with_payloads(&payloads));
    }
}

fn ask_for_wrong_record(storage: &MemStorage) {
    let store = Store::with_storage(Box::new(storage.clone()), Access::Write).expect("opens");
    assert_eq!(store.record("good").expect("is right").shape(), [3]);
    let set: Attrs = [("next".to_owned(), Value::from(1))].into();
    store.set_attrs(Some("good"), set, &[]).expect("is right");
    let dtype = Dtype::parse_python("'|u1'").expect("a dtype");
    let rows = NewArray { dtype, shape: vec![1], fortran_order: false, data: &[7] };
    let before = files(storage);
    for error in [
        store.record("bad").map(drop),
        store.array("bad").map(drop),
        store.arrays().map(drop),
        store.save(&[("bad", rows.clone())]),
        store.append(&[("bad", rows)]),
        store.rename("bad", "other", false),
        store.remove(&["bad"]).map(drop),
    ] {
        let error = error.expect_err("the record is wrong").to_string();
        assert!(error.contains("metadata.npkm") && error.contains("/etc/passwd"), "{error}");
    }
    assert!(files(storage) == before, "something was written");
    assert!(verify_storage(Box::new(storage.clone())).is_err(), "verify decodes all records");
}

#[test]
fn strange_payloads_are_errors_or_stores() {
    limit_resources();
    let log = sample();
    let samples = [snapshot_of(&log), log];
    let mut n_errors = 0;
    rng::covered(rng::n_cases(3000), MUTATIONS);
    for mut rng in rng::cases(3000) {
        let sample = rng.pick(&samples);
        let mut payloads = payloads(&sample.files[MANIFEST]);
        let at = rng.below(payloads.len() as u64) as usize;
        let mut value = decode(&payloads[at]);
        for _ in 0..1 + rng.below(2) {
            mutate(&mut value, &mut rng);
        }
        let _told = Told(format!("frame {at}: {value:?}"));
        payloads[at] = encode(&value);
        n_errors += usize::from(look_and_write(&sample.with_payloads(&payloads)).is_err());
    }
    eprintln!("{n_errors} errors");
}

#[test]
fn random_bytes_in_payloads_are_errors_or_stores() {
    limit_resources();
    let log = sample();
    let samples = [snapshot_of(&log), log];
    rng::covered(rng::n_cases(3000), MUTATIONS);
    for mut rng in rng::cases(3000) {
        let sample = rng.pick(&samples);
        let mut payloads = payloads(&sample.files[MANIFEST]);
        let at = rng.below(payloads.len() as u64) as usize;
        let payload = &mut payloads[at];
        for _ in 0..1 + rng.below(4) {
            let byte = rng.below(payload.len() as u64) as usize;
            payload[byte] = *rng.pick(&[0, 0xff, 0x7f, 0x80, 0xdd, 0xdf, 0xc6, rng.clone().next() as u8]);
        }
        let _told = Told(format!("frame {at}: {:02x?}", payloads[at]));
        let _ = look_and_write(&sample.with_payloads(&payloads));
    }
}

/// A record of bytes.
fn record(name: &str, id: u64, file: &str, shape: &[u64]) -> Record {
    let dtype = Dtype::parse_python("'|u1'").expect("a dtype");
    Record {
        name: name.into(),
        id: ArrayId(id),
        file: file.into(),
        layout: Layout::new(&dtype, shape, false).expect("NumPy could have it"),
        dtype,
        blocks: None,
        offset: 128,
        deleted: DeletedRows::default(),
        mtime: 0,
        attrs: Arc::default(),
        upstream: None,
    }
}

fn first_id(sample: &Sample) -> u64 {
    let last_put = sample.states.len() as u64 * 10;
    last_put + 100
}

/// The sample with one more edit.
fn with_edit(sample: &Sample, ops: Vec<Op>) -> MemStorage {
    let mut payloads = payloads(&sample.files[MANIFEST]);
    let generation = Generation(payloads.len() as u64);
    payloads.push(Edit { generation, time: 0, ops }.encode());
    sample.with_payloads(&payloads)
}

#[test]
fn records_of_files_elsewhere_are_refused() {
    limit_resources();
    let sample = sample();
    for file in [
        "/etc/passwd",
        "../data_a.npkd",
        "data_../../x.npkd",
        "data_a.npkd/../x.npkd",
        "data_\0.npkd",
        "metadata.npkm",
        "metadata.npkm.lock",
        "",
        "data_a.npy",
        &format!("data_{}.npkd", "x".repeat(250)),
    ] {
        let ops = vec![Op::Put(record("x", first_id(&sample), file, &[1]))];
        let error = look_and_write(&with_edit(&sample, ops)).expect_err("refused").to_string();
        assert!(error.contains(&format!("{file:?}")) && error.contains("within the store"), "{error}");
        assert!(error.contains(MANIFEST) && error.contains("npkfs verify"), "{error}");
    }
}

#[test]
fn shapes_that_no_file_holds_are_short_files() {
    limit_resources();
    let sample = sample();
    let id = first_id(&sample);
    let most = (1_u64 << 63) - (1 << 21);
    let shapes: [&[u64]; 6] =
        [&[most], &[most], &[1 << 31, 1 << 31], &[most], &[u64::MAX >> 1, 0], &[0, most]];
    let ops = (id..)
        .zip(shapes)
        .map(|(id, shape)| Op::Put(record(&format!("x{id}"), id, sample.data_files()[0], shape)));
    let seen = look_and_write(&with_edit(&sample, ops.collect())).expect("opens");
    let new = &seen.arrays[sample.last().arrays.len()..];
    for (name, content) in &new[..4] {
        assert!(content.as_ref().is_err_and(|error| error.to_string().contains("bytes, expected")), "{name}");
    }
    assert!(new[4..].iter().all(|(_, content)| content.is_ok()));
    // The same, said in an edit of its own.
    let name = Arc::from("x");
    let put = Op::Put(record("x", id, sample.data_files()[0], &[1]));
    for n_rows in [u64::MAX, 1 << 63, most] {
        let seen = look(&with_edit(&sample, vec![put.clone(), Op::Rows(Arc::clone(&name), n_rows)]));
        assert!(seen.is_err() || seen.expect("opens").arrays.last().expect("is there").1.is_err());
    }
}

#[test]
fn edits_that_do_not_fit_are_refused() {
    limit_resources();
    let sample = sample();
    let id = first_id(&sample);
    let rows = |rows: &[u64]| DeletedRows(Arc::new(rows.iter().copied().collect()));
    let put = || Op::Put(record("x", id, "data_x.npkd", &[3]));
    let name = |name: &str| -> Arc<str> { name.into() };
    for ops in [
        vec![Op::Put(record("x", 0, "data_x.npkd", &[1]))],
        vec![Op::Put(record("x", 1, "data_x.npkd", &[1]))],
        vec![Op::Put(record("x", u64::MAX, "data_x.npkd", &[1]))],
        vec![put(), put()],
        vec![Op::Put(record("nul\0", id, "data_x.npkd", &[1]))],
        vec![Op::Put(record(&"x".repeat(names::MAX_NAME_LEN + 1), id, "data_x.npkd", &[1]))],
        vec![put(), Op::Rename(name("x"), name("a"))],
        vec![put(), Op::Rename(name("x"), name("x"))],
        vec![put(), Op::Rename(name("x"), name("nul\0"))],
        vec![Op::Rename(name("missing"), name("y"))],
        vec![Op::Delete(name("missing"))],
        vec![Op::Rows(name("missing"), 3)],
        vec![put(), Op::Rows(name("x"), 2)],
        vec![Op::Rows(name("scalar"), 2)],
        vec![Op::Rows(name("renamed"), 9)],
        vec![put(), Op::DropRows(name("x"), rows(&[3]))],
        vec![Op::DropRows(name("scalar"), rows(&[0]))],
        vec![Op::DropRows(name("renamed"), rows(&[0]))],
        vec![Op::DropRows(name("missing"), rows(&[]))],
        vec![Op::Written(name("missing"))],
        vec![Op::Attrs(Some(name("missing")), Default::default(), vec![])],
        vec![Op::Put(Record { offset: (1 << 20) + 1, ..record("x", id, "data_x.npkd", &[1]) })],
        vec![Op::Put(Record { offset: u64::MAX, ..record("x", id, "data_x.npkd", &[1]) })],
    ] {
        let error = look_and_write(&with_edit(&sample, ops.clone()));
        assert!(matches!(error, Err(StoreError::Format { .. })), "{ops:?}: {error:?}");
    }
    for generation in [0, 1, 9, 11, u64::MAX] {
        let mut payloads = payloads(&sample.files[MANIFEST]);
        payloads.push(Edit { generation: Generation(generation), time: 0, ops: vec![] }.encode());
        assert!(look_and_write(&sample.with_payloads(&payloads)).is_err(), "{generation}");
    }
}

/// Two arrays in one data file are no damage that reading finds, but verifying does.
#[test]
fn array_in_the_file_of_another_is_reported() {
    limit_resources();
    let sample = sample();
    let mut shared = record("x", first_id(&sample), sample.data_files()[0], &[1]);
    shared.offset = 4096;
    let seen = look(&with_edit(&sample, vec![Op::Put(shared)])).expect("opens");
    assert!(seen.report.problems.iter().any(|problem| problem.what.contains("another array")));
}

/// Lengths are checked against what is there before memory is taken for them.
#[test]
fn claimed_lengths_take_no_memory() {
    limit_resources();
    let sample = snapshot_of(&sample());
    for claim in [
        &[0xdd, 0xff, 0xff, 0xff, 0xff][..], // an array of 2^32 - 1
        &[0xdf, 0xff, 0xff, 0xff, 0xff],     // a map
        &[0xc6, 0xff, 0xff, 0xff, 0xff],     // bytes
        &[0xdb, 0xff, 0xff, 0xff, 0xff],     // text
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 5],  // an extension
    ] {
        for key in ["attrs", "arrays", "next_id"] {
            let mut payload = vec![0x84];
            for own in ["generation", "next_id", "attrs", "arrays"] {
                payload.push(0xa0 | own.len() as u8);
                payload.extend(own.as_bytes());
                match own {
                    _ if own == key => payload.extend(claim),
                    "attrs" => payload.push(0x80),
                    "arrays" => payload.push(0x90),
                    _ => payload.push(1),
                }
            }
            assert!(look_and_write(&sample.with_payloads(&[payload])).is_err());
        }
    }
    let mut manifest = sample.files[MANIFEST].clone();
    for len in [u32::MAX, 1 << 30, (1 << 30) + 1, 1 << 20] {
        let at = frame::HEADER_LEN + 8;
        manifest[at..at + 4].copy_from_slice(&len.to_le_bytes());
        assert!(look_and_write(&sample.with(MANIFEST, &manifest)).is_err());
    }
}

/// What decodes nested values calls itself: their depth is limited, so that no stack overflows.
#[test]
fn deep_nesting_is_refused() {
    limit_resources();
    let sample = snapshot_of(&sample());
    for opening in [&[0x91_u8][..], &[0x81, 0xa1, b'k'], &[0x81, 0xa5, b'd', b'e', b's', b'c', b'r']] {
        for depth in [200, 5000, 200_000] {
            let mut payload =
                b"\x84\xaageneration\x00\xa7next_id\x01\xa6arrays\x90\xa5attrs\x81\xa1k".to_vec();
            payload.extend(opening.repeat(depth));
            payload.push(0xc0);
            assert!(look_and_write(&sample.with_payloads(&[payload])).is_err());
        }
    }
    let nested = |depth| {
        let field =
            |descr| numpack::format::Field { title: "".into(), name: "a".into(), descr, shape: vec![] };
        (0..depth).fold(Descr::Scalar("|u1".into()), |descr, _| Descr::Fields(vec![field(descr)]))
    };
    assert!(Dtype::from_descr(nested(33)).is_err());
}

/// A megabyte can say that billions of rows are deleted: they are never gone through one by one.
#[test]
fn billions_of_deleted_rows_take_neither_time_nor_memory() {
    limit_resources();
    let sample = sample();
    let mut deleted = roaring::RoaringTreemap::new();
    deleted.insert_range(1..1 << 32);
    let dropped = Record {
        deleted: DeletedRows(Arc::new(deleted)),
        offset: 4096,
        ..record("x", first_id(&sample), sample.data_files()[0], &[1 << 33, 0])
    };
    let seen = look(&with_edit(&sample, vec![Op::Put(dropped)])).expect("opens");
    let (name, content) = seen.arrays.last().expect("there are some");
    assert!(&**name == "x" && content.is_ok());
}

/// After a bad frame, a good one is looked for. Many that claim to reach to the end are not all gone through.
#[test]
fn crowd_of_long_frames_that_are_bad_comes_to_an_end() {
    limit_resources();
    let sample = sample();
    let len = 16 << 20;
    let mut manifest = sample.files[MANIFEST].clone();
    while manifest.len() + 64 < len {
        let claimed = (len - manifest.len() - 40) as u32;
        manifest.extend(b"npkF\0\0\0\0");
        manifest.extend(claimed.to_le_bytes());
        manifest.extend([1; 12]);
    }
    manifest.resize(len, 1);
    let seen = look(&sample.with(MANIFEST, &manifest)).expect("opens");
    assert_eq!(seen.model().as_ref(), Some(sample.last()));
}
