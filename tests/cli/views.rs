//! Views in the mounts that `npkfs mount` makes, for those who make them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use numpack::store::{Compression, Dtype, NewArray, Store};
use rustix::process::Signal;

use crate::common::numbers;
use crate::ways::{Way, as_root, each_way, has_program, shared_python, signal};

/// Reads all views by what every Python has, and tries to change them.
const SCRIPT: &str = r#"
import errno, io, json, mmap, os, struct, sys, zipfile
views = os.path.join(sys.argv[1], ".views")
with zipfile.ZipFile(os.path.join(views, "all.npz")) as zipped:
    assert zipped.testzip() is None
    names = zipped.namelist()
    ends = {name: zipped.read(name)[-8:] for name in names}
with open(os.path.join(views, "all.safetensors"), "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (header_len,) = struct.unpack_from("<Q", mapped)
    header = json.loads(mapped[8 : 8 + header_len])
for name in names:
    name = name.removesuffix(".npy")
    with open(os.path.join(views, name + ".raw"), "rb") as file:
        raw = file.read()
    assert os.stat(file.name).st_size == len(raw)
    start, end = header[name]["data_offsets"]
    assert mapped[8 + header_len + start : 8 + header_len + end] == raw
    assert ends[name + ".npy"].endswith(raw[-8:])
for path in ("all.npz", "g/b.raw", "new"):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_CREAT, os.O_CREAT | os.O_EXCL):
        try:
            os.open(os.path.join(views, path), flags)
        except OSError as error:
            expected = {errno.EROFS, errno.EACCES, errno.EEXIST if path != "new" else errno.ENOENT}
            assert error.errno in expected, error
        else:
            assert False, (path, flags)
print(*sorted(names))
"#;

#[test]
fn views_can_be_read_and_not_be_changed() {
    let python = match shared_python() {
        Ok(python) => python,
        Err(reason) => return eprintln!("SKIPPED: {reason}"),
    };
    each_way(|way| {
        way.make_store(&[("a", numbers(5000, 1)), ("g/b", numbers(3, 7)), ("empty", numbers(0, 0))]);
        for options in ["", "compress=zstd", "ro"] {
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            let output =
                way.other_command(python).args(["-c", SCRIPT]).arg(&way.mnt).output().expect("python runs");
            assert!(output.status.success(), "{options}: {output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "a.npy empty.npy g/b.npy\n");
            if let Err(reason) = has_program("unzip") {
                eprintln!("SKIPPED: {reason}");
            } else {
                let zip = way.mnt.join(".views/all.npz");
                let output = way.other_command("unzip").arg("-tq").arg(zip).output().expect("unzip runs");
                assert!(output.status.success(), "{output:?}");
            }
            assert_eq!(way.files(), ["a.npy", "empty.npy", "g/b.npy"]);
            way.umount().ok();
        }
    });
}

fn save(store: &Store, names: &[String], first: u32) {
    let data: Vec<u8> = (first..first + 1024).flat_map(u32::to_le_bytes).collect();
    let array = || {
        let dtype = Dtype::parse_python("'<u4'").expect("a dtype");
        NewArray { dtype, shape: vec![1024], fortran_order: false, data: &data }
    };
    let arrays: Vec<_> = names.iter().map(|name| (&**name, array())).collect();
    store.save(&arrays).expect("arrays are saved");
}

/// Mounts a store of 400 arrays within limits of descriptors. Overwrites some while a view is open, and returns whether
/// the first array, and the last one, can be read in it as they were.
fn kept_with(way: &Way, limits: &str) -> (bool, bool) {
    let names: Vec<String> = (0..400).map(|i| format!("a{i}")).collect();
    let store = Store::open_or_create(&way.place.store).expect("store is made");
    save(&store, &names, 0);
    let unmount = way.mount_guard();
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    let mut command = way.command_after(&["sh".as_ref(), "-euc".as_ref(), script.as_ref()]);
    let mounted =
        command.args(["mount", "-q", "-o", way.options]).arg(&way.place.store).arg(&way.mnt).output();
    assert!(mounted.as_ref().is_ok_and(|output| output.status.success()), "{mounted:?}");
    let zip = File::open(way.mnt.join(".views/all.npz")).expect("view is opened");
    // Both have the same descriptors.
    let tensors = File::open(way.mnt.join(".views/all.safetensors")).expect("view is opened");
    let len = tensors.metadata().expect("view has a length").len();
    save(&store, &names, 5);
    let read = |offset: u64| {
        let mut bytes = [1; 4096];
        let result = tensors.read_exact_at(&mut bytes, offset);
        match result {
            Ok(()) => assert_eq!(bytes[..8], [0, 0, 0, 0, 1, 0, 0, 0], "never those of another version"),
            Err(ref error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        }
        result.is_ok()
    };
    let kept = (read(len - 400 * 4096), read(len - 4096));
    // Who opens it now has all of them.
    let zipped = std::fs::read(way.mnt.join(".views/all.npz")).expect("view is read");
    assert_eq!(zipped.windows(4).filter(|bytes| bytes == b"PK\x01\x02").count(), 400);
    drop((zip, tensors));
    way.umount().ok();
    drop(unmount);
    kept
}

#[test]
fn an_open_view_keeps_as_many_arrays_as_there_are_descriptors_for() {
    as_root(|way| {
        assert_eq!(kept_with(way, "ulimit -n 200"), (true, false));
        // What a process may have is raised to what it could have.
        assert_eq!(kept_with(way, "ulimit -S -n 200"), (true, true));
    });
}

#[test]
fn a_view_that_is_open_can_be_read_when_the_mount_was_ended() {
    each_way(|way| {
        way.make_store(&[("a", numbers(5000, 1))]);
        let (child, _unmount) = way.mount_in_foreground();
        let holder = way.hold(".views/all.npz");
        signal(child.id(), Signal::TERM);
        let bytes = holder.read();
        assert!(bytes.len() > 40_000 && bytes.starts_with(b"PK\x03\x04"));
        let output = child.wait_with_output().expect("npkfs ends");
        assert!(output.status.success(), "{output:?}");
    });
}

#[test]
fn no_array_is_in_memory_whole_for_a_view() {
    as_root(|way| {
        let store = Store::open_or_create(&way.place.store).expect("store is made");
        let dtype = Dtype::parse_python("'>f8'").expect("a dtype");
        // Holes, and blocks that are not there: they take no disk, and are as long as others when they are read.
        store.create_zeros("plain", &dtype, &[10 << 20], None).expect("array is made");
        store
            .create_zeros("packed", &dtype, &[10 << 20], Some(&Compression::default()))
            .expect("array is made");
        let (child, _unmount) = way.mount_in_foreground();
        for (name, len) in [("all.npz", 160 << 20), ("all.safetensors", 160 << 20), ("packed.raw", 80 << 20)]
        {
            let mut file = File::open(way.mnt.join(".views").join(name)).expect("view is opened");
            let read = std::io::copy(&mut file, &mut std::io::sink()).expect("view is read");
            assert!(read >= len, "{name}: {read}");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it serves");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let peak: u64 = peak.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).expect("a number");
        assert!(peak < 60 << 10, "{peak} KiB");
        way.umount().ok();
        assert!(child.wait_with_output().expect("npkfs ends").status.success());
    });
}
