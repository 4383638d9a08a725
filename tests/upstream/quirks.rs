//! States that old releases leave behind: what the bytes still say is read, and what they contradict is refused.

use std::fs;
use std::os::unix::fs::symlink;

use numpack::store::{Access, NotAStore, Store, StoreError, verify};

use crate::elements;
use crate::fixtures::{Copy, fixture, quirk, quirks};

fn open(copy: &Copy) -> Store {
    Store::open(&copy.path, Access::Read).unwrap()
}

/// What reading an array says, after the store's path, the array's name and the words "data file".
fn refusal(copy: &Copy, name: &str) -> String {
    let error = open(copy).array(name).expect_err(name);
    assert!(matches!(error, StoreError::DataFile { .. }), "{error:?}");
    let text = error.to_string();
    let path = copy.path.display();
    let start = format!("{path}: array {name:?}: data file ");
    let end = format!("; run \"npkfs verify {path}\"");
    let what = text.strip_prefix(&start).and_then(|text| text.strip_suffix(&end)).unwrap_or(&text).to_owned();
    // What cannot be read is damage.
    let report = verify(&copy.path).unwrap();
    assert!(report.problems.iter().any(|problem| problem.what.contains(&what)), "{report:?}");
    what
}

#[test]
fn every_quirk_has_a_test() {
    let mut tested = [
        "0.2.0-rust-stale_wal",
        "0.3.0-python-big_endian",
        "0.3.0-python-string_array",
        "0.3.0-rust-fortran_order",
        "0.3.0-wiped_0.2.1",
        "0.7.0-append_resurrects_rows",
        "0.7.0-killed_after_append",
        "0.7.0-killed_after_drop_and_append",
        "0.7.0-killed_after_reset",
        "0.7.0-killed_after_shrinking_save",
        "0.7.0-killed_after_update",
        "0.7.0-killed_before_close",
        "0.7.0-reader_closed_last",
        "0.7.0-two_writers",
    ];
    tested.sort_unstable();
    assert_eq!(quirks(), tested);
}

#[test]
fn a_stale_write_ahead_log_is_not_replayed() {
    let array = open(&quirk("0.2.0-rust-stale_wal")).array("a").unwrap();
    assert_eq!(array.shape(), [7]);
}

#[test]
fn what_no_byte_shows_is_returned_as_it_is() {
    let array = open(&quirk("0.3.0-rust-fortran_order")).array("a").unwrap();
    let values: Vec<f32> =
        elements(&array).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!((array.shape(), values), (&[2, 3][..], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
    let array = open(&quirk("0.3.0-python-big_endian")).array("be").unwrap();
    assert_eq!((array.shape(), array.dtype().to_string().as_str()), (&[3][..], "<f4"));
}

#[test]
fn an_array_that_is_not_as_long_as_its_shape_is_refused_and_the_others_are_read() {
    let copy = quirk("0.3.0-python-string_array");
    assert_eq!(refusal(&copy, "s"), "data_s.npkd has 16 bytes, expected 8");
    assert_eq!(open(&copy).array("ok").unwrap().shape(), [2]);
}

#[test]
fn a_table_that_was_wiped_and_one_that_was_never_written_are_told() {
    for (name, expected) in
        [("0.3.0-wiped_0.2.1", NotAStore::TableLost), ("0.7.0-killed_before_close", NotAStore::ManifestLost)]
    {
        let copy = quirk(name);
        for opened in [Store::open(&copy.path, Access::Read), Store::open_or_create(&copy.path)] {
            let found = match opened {
                Err(StoreError::NotAStore { found, .. }) => found,
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(fs::read(copy.path.join("data_a.npkd")).unwrap().len(), 24, "{name}");
    }
}

#[test]
fn what_a_killed_release_left_is_refused_where_its_lengths_disagree() {
    let cases = [
        (
            "0.7.0-append_resurrects_rows",
            "a",
            "deleted_a.npkb says that 2 rows are deleted, and its bits that 0 are",
        ),
        ("0.7.0-killed_after_append", "a", "data_a.npkd has 40 bytes, expected 24"),
        ("0.7.0-killed_after_drop_and_append", "a", "deleted_a.npkb counts 8 rows, metadata.npkm 6"),
        ("0.7.0-killed_after_reset", "a", "data_a.npkd is missing"),
        ("0.7.0-killed_after_shrinking_save", "a", "data_a.npkd has 16 bytes, expected 48"),
        ("0.7.0-killed_after_update", "a", "data_a.npkd has 16 bytes, expected 24"),
        ("0.7.0-reader_closed_last", "x", "data_x.npkd has 12 bytes, expected 8"),
    ];
    for (name, array, expected) in cases {
        assert_eq!(refusal(&quirk(name), array), expected, "{name}");
    }
}

#[test]
fn a_file_that_no_table_names_is_a_leftover() {
    let copy = quirk("0.7.0-two_writers");
    assert_eq!(open(&copy).names(), ["y".into()]);
    assert_eq!(open(&copy).array("y").unwrap().shape(), [3]);
    let report = verify(&copy.path).unwrap();
    assert!(report.problems.is_empty());
    assert_eq!(report.leftovers, ["data_x.npkd"]);
}

#[test]
fn bad_files_of_one_array_leave_the_others_readable() {
    let copy = fixture("0.7.0-rust", "dropped_rows").copy();
    let bitmap = copy.path.join("deleted_one.npkb");
    let good = fs::read(&bitmap).unwrap();
    let with = |bytes: &[u8]| {
        fs::write(&bitmap, bytes).unwrap();
        let what = refusal(&copy, "one");
        assert_eq!(open(&copy).array("untouched").unwrap().shape(), [3, 3]);
        what
    };
    assert_eq!(with(b""), "deleted_one.npkb has 0 bytes, expected 24");
    assert_eq!(with(&good[..20]), "deleted_one.npkb has 20 bytes, expected 24");
    assert_eq!(with(&[&good[..], b"x"].concat()), "deleted_one.npkb has 25 bytes, expected 24");
    let mut behind = good.clone();
    behind[23] = 0x80;
    assert_eq!(with(&behind), "deleted_one.npkb has bits behind its last row");
    fs::remove_file(&bitmap).unwrap();
    symlink("/etc/passwd", &bitmap).unwrap();
    assert_eq!(refusal(&copy, "one"), "deleted_one.npkb is not a regular file, and links are not followed");
    let data = copy.path.join("data_vec.npkd");
    fs::rename(&data, copy.path.join("elsewhere")).unwrap();
    symlink("elsewhere", &data).unwrap();
    assert_eq!(refusal(&copy, "vec"), "data_vec.npkd is not a regular file, and links are not followed");
    // A bitmap of an array without rows.
    let copy = fixture("0.7.0-rust", "zero_d").copy();
    fs::write(copy.path.join("deleted_z_f8.npkb"), [1_u64, 0, 1].map(u64::to_le_bytes).concat()).unwrap();
    assert_eq!(refusal(&copy, "z_f8"), "deleted_z_f8.npkb counts 1 rows, metadata.npkm 0");
}

#[test]
fn segments_that_are_missing_long_or_elsewhere_are_refused() {
    let copy = || fixture("0.7.0-rust", "segmented").copy();
    let segment = "data_rows6_segments/seg_000001.npkd";
    let missing = copy();
    fs::remove_file(missing.path.join(segment)).unwrap();
    assert_eq!(refusal(&missing, "rows6"), format!("{segment} is missing"));
    assert!(open(&missing).array("bytes").is_ok());
    let long = copy();
    fs::write(long.path.join(segment), [0; 65]).unwrap();
    assert_eq!(refusal(&long, "rows6"), format!("{segment} has 65 bytes, expected 64"));
    let linked = copy();
    let folder = linked.path.join("data_rows6_segments");
    fs::rename(&folder, linked.path.join("elsewhere")).unwrap();
    symlink("elsewhere", &folder).unwrap();
    assert_eq!(
        refusal(&linked, "rows6"),
        "data_rows6_segments/seg_000000.npkd is not a regular file, and links are not followed"
    );
    let list = copy();
    let path = list.path.join("data_rows6.npkseg");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("data_rows6_segments/seg_000000.npkd", "../secret", 1)).unwrap();
    assert_eq!(
        refusal(&list, "rows6"),
        "data_rows6.npkseg names the segment ../secret, which is outside of the store"
    );
    fs::write(&path, text.replacen("\"bytes\": 64", "\"bytes\": 60", 1)).unwrap();
    assert_eq!(refusal(&list, "rows6"), "data_rows6.npkseg lists 316 bytes, expected 320");
    fs::write(&path, "{").unwrap();
    assert!(refusal(&list, "rows6").starts_with("data_rows6.npkseg is no list of segments: "));
}
