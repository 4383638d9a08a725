//! Compressed arrays on the command line: `import --compress`, `recompress`, `config`, and what the other commands make
//! of them.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use numpack::store::{Access, Array, Compression, Store};
use serde_json::json;

use crate::common::{Place, Ran, files_below, npy, numbers};
use crate::npkfs;
use crate::ways::each_way;

/// The whole of `a`, as `export` writes it.
fn exported(place: &Place, name: &str) -> Vec<u8> {
    let out = place.path("exported");
    let _ = fs::remove_dir_all(&out);
    npkfs!("-q", "export", place.store, name, out).ok();
    fs::read(out.join(format!("{name}.npy"))).unwrap()
}

fn open(place: &Place, name: &str) -> Array {
    Store::open(&place.store, Access::Read).unwrap().array(name).unwrap()
}

/// A `.npy` file of bytes that do not compress.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let data: Vec<u8> = (0..n).map(|_| next()).collect();
    npy("'|u1'", &format!("({n},)"), &data)
}

#[test]
fn import_compresses_if_asked() {
    let place = Place::new();
    let (file, bytes) = (place.path("a.npy"), numbers(100_000, 5));
    place.write("a.npy", &bytes);
    for (options, expected) in [
        (&["--compress"][..], (1, 65536)),
        (&["--compress=3"], (3, 65536)),
        (&["--compress=-5", "--block", "4096"], (-5, 4096)),
        (&["--block=1M", "--filter", "none", "--compress=19"], (19, 1 << 20)),
    ] {
        let mut args = vec!["import", "--overwrite"];
        args.extend(options);
        let paths = [&file, &place.store].map(|path| path.to_str().unwrap());
        crate::common::npkfs(args.into_iter().chain(paths)).ok();
        let array = open(&place, "a");
        let codec = array.codec().unwrap();
        assert_eq!((codec.level, codec.block_len), expected);
        assert!(array.stored_len() < array.raw_len() / 3, "{options:?}: {}", array.stored_len());
        assert_eq!(exported(&place, "a"), bytes);
    }
    npkfs!("import", "--overwrite", file, place.store).ok();
    assert!(open(&place, "a").codec().is_none());
}

#[test]
fn import_of_anything_compressed_is_exported_byte_for_byte() {
    let place = Place::new();
    let mut fortran = npy("'>f4'", "(200, 300)", &[7; 240_000]);
    let at = fortran.windows(5).position(|w| w == b"False").unwrap();
    fortran[at..at + 5].copy_from_slice(b"True ");
    let files = [
        ("a", numbers(1000, 5)),
        ("blocks", numbers(3 * 8192, 0)),
        ("fortran", fortran),
        ("scalar", npy("'|u1'", "()", &[9])),
        ("empty", npy("'<c16'", "(0, 4)", &[])),
        ("text", npy("'<U3'", "(2,)", &[0; 24])),
        ("pairs", npy("[('x', '<f8'), ('n', '<i4', (2,))]", "(3,)", &[1; 48])),
        ("noise", noise(9 << 20)),
        ("large", numbers(3 << 20, 0)),
    ];
    for (name, bytes) in &files {
        place.write(&format!("in/{name}.npy"), bytes);
    }
    npkfs!("import", "--compress", place.path("in"), place.store).ok();
    for (name, bytes) in &files {
        assert!(open(&place, name).codec().is_some());
        assert!(&exported(&place, name) == bytes, "{name}");
    }
    let noise = open(&place, "noise");
    assert!(noise.stored_len() < noise.raw_len() + noise.raw_len() / 500);
}

#[test]
fn recompress_converts_either_way() {
    let place = Place::new();
    for name in ["in/a.npy", "in/g/b.npy", "in/g/c.npy"] {
        place.write(name, &numbers(50_000, 1));
    }
    npkfs!("import", place.path("in"), place.store).ok();
    let ran = npkfs!("recompress", place.store, "g").ok();
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("recompressed 2 arrays: "), "{ran:?}");
    assert!(ran.stderr.contains(" on disk, 784.0 KiB before"), "{ran:?}");
    let codec =
        |name| open(&place, name).codec().map(|codec| (codec.level, codec.block_len, codec.filter.name()));
    let level_and_block = |name| codec(name).map(|(level, block_len, _)| (level, block_len));
    assert_eq!((codec("a"), level_and_block("g/b")), (None, Some((1, 65536))));

    let ran =
        npkfs!("recompress", "-v", place.store, "g/b", "--level=-3", "--block", "8K", "--filter", "shuffle");
    let ran = ran.ok();
    assert!(ran.stderr.contains("recompressed \"g/b\": ") && ran.stderr.contains(" before\n"), "{ran:?}");
    assert_eq!(codec("g/b"), Some((-3, 8192, "shuffle")));
    assert_eq!(level_and_block("g/c"), Some((1, 65536)));
    let generation = |place: &Place| Store::open(&place.store, Access::Read).unwrap().generation();
    let before = generation(&place);
    npkfs!("recompress", place.store, "g/b", "--level", "-3", "--block", "8192", "--filter", "shuffle").ok();
    assert_eq!(generation(&place), before, "it was so already");

    npkfs!("-q", "recompress", place.store, "--none").ok();
    for name in ["a", "g/b", "g/c"] {
        assert_eq!(codec(name), None);
    }
    npkfs!("-q", "recompress", place.store, "--level", "3", "--filter=auto").ok();
    let before = generation(&place);
    npkfs!("-q", "recompress", place.store, "--level", "3").ok();
    assert_eq!(generation(&place), before, "no filter fits better");
    npkfs!("-q", "export", place.store, place.path("out")).ok();
    assert_eq!(files_below(&place.path("out")), ["a.npy", "g/b.npy", "g/c.npy"]);
    for name in ["a", "g/b", "g/c"] {
        assert_eq!(level_and_block(name), Some((3, 65536)));
        assert_eq!(fs::read(place.path("out").join(format!("{name}.npy"))).unwrap(), numbers(50_000, 1));
    }
    npkfs!("recompress", place.store, "nope").fails(1, &["\"nope\" does not exist"]);
}

#[test]
fn wrong_ways_to_compress_are_usage_errors() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(10, 0));
    npkfs!("import", file, place.store).ok();
    for (args, parts) in [
        (&["recompress", "--level", "23"][..], &["23", "-7..=22"][..]),
        (&["recompress", "--level", "-8"], &["-8", "-7..=22"]),
        (&["recompress", "--level", "high"], &["high"]),
        (&["recompress", "--block", "1000"], &["1000", "a multiple of 4096 bytes"]),
        (&["recompress", "--block", "32M"], &["33554432", "16 MiB"]),
        (&["recompress", "--block", "64KB"], &["64KB", "with K, M, G or T"]),
        (&["recompress", "--filter", "bitshuffle"], &["bitshuffle", "expected auto, none"]),
        (&["recompress", "--none", "--level", "1"], &["--none", "--level"]),
        (&["recompress", "--none", "--filter", "auto"], &["--none", "--filter"]),
        (&["import", "--compress=99", "a.npy"], &["99", "-7..=22"]),
        (&["import", "--filter", "none", "a.npy"], &["--filter", "--compress"]),
        (&["import", "--block", "4096", "a.npy"], &["--block", "--compress"]),
    ] {
        let args = args.iter().copied().chain([place.store.to_str().unwrap()]);
        crate::common::npkfs(args).fails(2, parts);
    }
    assert!(open(&place, "a").codec().is_none());
}

#[test]
fn config_keeps_how_a_mount_compresses() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(100, 0));
    npkfs!("import", file, place.store).ok();
    let shown = |args: &[&str]| -> Ran {
        let args = ["config", place.store.to_str().unwrap()].into_iter().chain(args.iter().copied());
        crate::common::npkfs(args).ok()
    };
    assert_eq!(shown(&[]).stdout, "compress=off\n");
    assert_eq!(shown(&["compress=zstd"]).stdout, "");
    assert_eq!(shown(&["compress"]).stdout, "compress=zstd:1\n");
    assert_eq!(shown(&["compress=zstd:-4", "compress"]).stdout, "compress=zstd:-4\n");
    let default = || Store::open(&place.store, Access::Read).unwrap().default_compression();
    assert_eq!(default(), Some(Compression { level: -4, ..Compression::default() }));
    assert!(npkfs!("info", place.store).ok().stdout.contains("through a mount: zstd:-4, 64 KiB blocks"));
    assert_eq!(npkfs!("info", "--json", place.store).ok().json()["compress"]["level"], -4);
    // It is not for those who say how.
    npkfs!("import", "--overwrite", file, place.store).ok();
    assert!(open(&place, "a").codec().is_none());
    shown(&["compress=off"]);
    assert_eq!(default(), None);
    for setting in ["compress=", "compress=lz4", "compress=zstd:23", "compres", "compres=zstd", "=zstd", ""] {
        npkfs!("config", place.store, setting)
            .fails(2, &[&format!("setting \"{setting}\": expected compress")]);
    }
    npkfs!("config", place.path("nothing")).fails(1, &["no such directory"]);
}

#[test]
fn info_and_ls_tell_how_arrays_are_compressed() {
    let place = Place::new();
    let plain = place.write("plain.npy", &numbers(32, 0));
    npkfs!("import", "--compress", place.write("noise.npy", &noise(200_000)), place.store).ok();
    let sorted = place.write("sorted.npy", &numbers(50_000, 0));
    npkfs!("import", "--compress=2", "--block=16K", "--filter=delta", sorted, place.store).ok();
    npkfs!("import", plain, place.store).ok();

    let listed = npkfs!("ls", "-l", place.store).ok();
    let codecs: Vec<&str> =
        listed.lines().iter().map(|line| line.split_whitespace().nth_back(1).unwrap()).collect();
    assert_eq!(codecs, ["CODEC", "zstd:1", "none", "zstd:2"]);
    let listed = npkfs!("ls", "--json", place.store).ok().json();
    assert_eq!(listed[1]["codec"], json!(null));
    assert_eq!((&listed[1]["raw_nbytes"], &listed[1]["stored_nbytes"]), (&json!(256), &json!(256)));
    assert_eq!(listed[2]["codec"], json!({"name": "zstd", "level": 2, "block": 16384, "filter": "delta"}));

    let described = npkfs!("info", "--json", place.store).ok().json();
    let (noise, sorted, plain) = (&described["arrays"][0], &described["arrays"][1], &described["arrays"][2]);
    assert_eq!((&noise["blocks"]["n_blocks"], &noise["blocks"]["n_raw"]), (&json!(4), &json!(4)));
    assert_eq!((&sorted["blocks"]["n_blocks"], &sorted["blocks"]["n_raw"]), (&json!(25), &json!(0)));
    assert_eq!((&sorted["blocks"]["live"], &sorted["blocks"]["dead"]), (&sorted["stored_nbytes"], &json!(0)));
    assert_eq!(plain["blocks"], json!(null));
    assert!(sorted["stored_nbytes"].as_u64().unwrap() < 40_000);
    assert_eq!(described["dead"], 0);

    let ran = npkfs!("info", place.store).ok();
    assert!(ran.lines()[2].contains("  zstd:2, 16 KiB blocks, delta  "), "{ran:?}");
    assert!(ran.lines()[1].contains("  1.00   0 B  "), "{ran:?}");
    let ran = npkfs!("info", place.store, "sorted").ok();
    for start in ["codec         zstd:2, 16 KiB blocks, delta", "blocks        25, 0 stored as they are"] {
        assert!(ran.lines().contains(&start), "{start:?} is missing in {ran:?}");
    }
    assert!(
        ran.stdout.contains("\nratio         ") && ran.stdout.contains("\ndead          0 B (0 bytes)\n")
    );
}

#[test]
fn compact_gives_dead_blocks_back() {
    let place = Place::new();
    let file = place.write("a.npy", &noise(4 << 20));
    npkfs!("import", "--compress", file, place.store).ok();
    let mut bytes = fs::read(&file).unwrap();
    {
        let store = Store::open(&place.store, Access::Write).unwrap();
        let array = store.array("a").unwrap();
        let start = array.header_len();
        array.write_npy_at(start, &vec![0; 1 << 20]).unwrap();
        bytes[start as usize..][..1 << 20].fill(0);
    }
    let on_disk = |key: &str| npkfs!("info", "--json", place.store, "a").ok().json()[key].as_u64().unwrap();
    let blocks =
        |key: &str| npkfs!("info", "--json", place.store, "a").ok().json()["blocks"][key].as_u64().unwrap();
    assert!(blocks("dead") >= 1 << 20);
    assert!(npkfs!("info", place.store).ok().stdout.contains(" MiB of it dead; "));
    let before = on_disk("on_disk");
    let ran = npkfs!("compact", "-v", place.store).ok();
    assert!(ran.stderr.contains("compacted \"a\""), "{ran:?}");
    assert!(on_disk("on_disk") < before - (900 << 10), "{before} {}", on_disk("on_disk"));
    assert!(exported(&place, "a") == bytes);
    npkfs!("verify", "--deep", place.store).ok();
}

/// Where block `block` of array `a` is in its data file, and how long.
fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
}

#[test]
fn verify_finds_damage_in_blocks_and_pages_and_goes_on() {
    let place = Place::new();
    for (name, n) in [("in/a.npy", 600_000), ("in/b.npy", 600_000), ("in/whole.npy", 10_000)] {
        place.write(name, &numbers(n, 0));
    }
    npkfs!("import", "--compress", "--block", "4K", place.path("in"), place.store).ok();
    npkfs!("import", place.write("plain.npy", &numbers(1000, 0)), place.store).ok();
    let ran = npkfs!("verify", "--deep", place.store).ok();
    // 4,800,000 bytes are 1171 blocks of 4 KiB and a tail; 80,000 are 19 and one.
    assert!(
        ran.stdout.contains(": sound: 4 arrays, ") && ran.stdout.ends_with(", 2364 blocks decoded\n"),
        "{ran:?}"
    );
    assert_eq!(ran.stderr, "");
    let report = npkfs!("verify", "--json", place.store).ok().json();
    // Two arrays with 5 pages and one above, one with a single page.
    let counts = (&report["deep"], &report["n_index_pages"], &report["n_blocks"]);
    assert_eq!(counts, (&json!(false), &json!(13), &json!(0)));

    // Blocks are written in order, behind the headers.
    let first = 4096 + open(&place, "a").header_len();
    flip(&place.store.join("data_a.npkd"), first + 3);
    npkfs!("verify", place.store).ok();
    let ran = npkfs!("verify", "--deep", place.store).complains(3, &["damaged: 1 problem"]);
    let line = format!("damaged: array \"a\": data_a.npkd: block 0 at byte {first} has crc32 ");
    assert!(ran.stdout.starts_with(&line), "{ran:?}");

    // A page in the middle: the leaves come first, the root last.
    let len = fs::metadata(place.store.join("data_b.npkd")).unwrap().len();
    flip(&place.store.join("data_b.npkd"), len - 16 * 5 - 16);
    let ran = npkfs!("verify", place.store).complains(3, &["damaged: 1 problem"]);
    assert!(ran.stdout.contains("\"b\": data_b.npkd: index page of blocks 1024 to 1170 at byte "), "{ran:?}");
    let report = npkfs!("verify", "--deep", "--json", place.store).complains(3, &["2 problems"]).json();
    assert_eq!(report["sound"], false);
    assert_eq!(report["problems"][0]["block"], 0);
    assert_eq!(report["problems"][0]["offset"], first);
    assert_eq!(
        (&report["problems"][1]["array"], &report["problems"][1]["block"]),
        (&json!("b"), &json!(1024))
    );
    // All blocks but those behind the page.
    assert_eq!(report["n_blocks"], 2364 - 147);

    // What is damaged is named, with exit code 3, and the rest can be had.
    npkfs!("export", place.store, place.path("out"))
        .fails(3, &["\"a\": block 0 at byte", "\"b\": block", "2 of 4"]);
    assert_eq!(files_below(&place.path("out")), ["plain.npy", "whole.npy"]);
    assert_eq!(fs::read(place.path("out/whole.npy")).unwrap(), numbers(10_000, 0));
    npkfs!("recompress", place.store, "--none")
        .fails(3, &["\"a\": block 0", "2 of 4 arrays were not recompressed"]);
    assert!(open(&place, "whole").codec().is_none());
    npkfs!("info", place.store, "b").fails(3, &["\"b\": block 1024 at byte"]);
    npkfs!("ls", "-l", place.store).ok();
}

#[test]
fn verify_finds_damage_in_the_header_of_a_compressed_file() {
    let place = Place::new();
    let file = place.write("a.npy", &numbers(10_000, 0));
    npkfs!("import", "--compress", file, place.store).ok();
    let path = place.store.join("data_a.npkd");
    let whole = fs::read(&path).unwrap();
    for (offset, part) in
        [(0, "damaged header"), (30, "damaged header"), (520, "no copy of the index"), (4100, "header")]
    {
        flip(&path, offset);
        let ran = npkfs!("verify", place.store).complains(3, &["damaged"]);
        assert!(ran.stdout.contains(part), "{offset}: {ran:?}");
        fs::write(&path, &whole).unwrap();
    }
    npkfs!("verify", "--deep", place.store).ok();
}

#[test]
fn a_mount_compresses_what_is_copied_in_as_it_is_told() {
    each_way(|way| {
        way.make_store(&[("old", numbers(10, 0))]);
        let store = way.place.store.to_str().unwrap();
        let made = |name: &str| {
            let file = way.place.write("new.npy", &numbers(50_000, 0));
            let copied =
                way.other_command("cp").arg(file).arg(way.mnt.join(format!("{name}.npy"))).output().unwrap();
            assert!(copied.status.success(), "{copied:?}");
            assert_eq!(way.read(&format!("{name}.npy")), numbers(50_000, 0));
            let described = way.run(["info", "--json", store, name]).ok().json();
            (described["codec"]["level"].as_i64(), described["stored_nbytes"].as_u64().unwrap())
        };
        way.run(["config", store, "compress=zstd:2"]).ok();
        for (options, level) in
            [("rw", Some(2)), ("compress=off", None), ("compress=zstd:-2,decoded=0", Some(-2))]
        {
            let (ran, unmount) = way.mount_with(options);
            ran.ok();
            let (found, stored) = made("a");
            assert_eq!(found, level, "{options}");
            assert_eq!(stored < 100_000, level.is_some(), "{options}: {stored}");
            way.umount().ok();
            drop(unmount);
            way.run(["rm", store, "a"]).ok();
        }
    });
}
