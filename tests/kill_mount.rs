//! The process that serves a mount is killed: whatever the moment, the store opens, each file that was closed is there, and
//! what was going on is there wholly or not at all.
#![cfg(feature = "fuse")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::acts::{Act, HEADER_LEN, History, act, file_name, npy};
use common::mounted::wait_within;
use common::rng::{self, Rng};
use numpack::store::{Access, Depth, Store, verify_with};
use numpack::sys::mounts;

/// Operations that a round ends with, should the process live so long.
const MAX_ACTS: usize = 2000;

/// Serves the store at `store`. `None` if nothing can be mounted here.
fn serve<'a>(store: &Path, mnt: &'a Path, is_compressed: bool, is_cached: bool) -> Option<Serving<'a>> {
    if File::open("/dev/fuse").is_err() {
        let _ = writeln!(
            io::stderr(),
            "SKIPPED killing the process that serves a mount: /dev/fuse cannot be opened"
        );
        return None;
    }
    let compress = if is_compressed { "zstd" } else { "off" };
    let passthrough = if is_cached { "off" } else { "auto" };
    let child = Command::new(env!("CARGO_BIN_EXE_npkfs"))
        .args(["-q", "mount", "-f", "-o", &format!("compress={compress},passthrough={passthrough}")])
        .args([store, mnt])
        .stdin(Stdio::null())
        .spawn()
        .expect("npkfs runs");
    let mut serving = Serving(child, mnt);
    wait_within(Duration::from_secs(60), "the mount", || {
        let ended = serving.0.try_wait().expect("waits");
        assert!(ended.is_none(), "npkfs ended: {ended:?}");
        mounts::find(mnt).is_ok_and(|found| found.is_some())
    });
    Some(serving)
}

fn run(mnt: &Path, act: &Act) -> io::Result<()> {
    match act {
        Act::Make { name, values, piece, sync } => {
            let mut file = File::create(mnt.join(file_name(*name)))?;
            for piece in npy(values.clone()).chunks(*piece) {
                file.write_all(piece)?;
            }
            if *sync {
                file.sync_all()?;
            }
        }
        Act::Write { name, offset, len, fill, sync } => {
            let file = OpenOptions::new().write(true).open(mnt.join(file_name(*name)))?;
            file.write_all_at(&vec![*fill; *len as usize], HEADER_LEN + offset)?;
            if *sync {
                file.sync_all()?;
            }
        }
        Act::Rename { from, to } => fs::rename(mnt.join(file_name(*from)), mnt.join(file_name(*to)))?,
        Act::Remove { name } => fs::remove_file(mnt.join(file_name(*name)))?,
    }
    // What closing a file had to say is lost. If nobody serves the mount any more, it may have failed.
    mounts::probe(mnt)
}

/// Runs `npkfs umount`, for all that waits. The process may wait in the kernel for a program that waits for it: `umount` has
/// to see that it was killed, whichever of its threads that is, and to end both waits.
fn let_go(mnt: &Path) {
    let umount =
        Command::new(env!("CARGO_BIN_EXE_npkfs")).arg("umount").arg(mnt).stderr(Stdio::null()).spawn();
    let mut umount = umount.expect("npkfs runs");
    let start = Instant::now();
    let code = loop {
        if let Some(status) = umount.try_wait().expect("waits") {
            break status.code();
        }
        assert!(start.elapsed() < Duration::from_secs(30), "npkfs umount does not end");
        std::thread::sleep(Duration::from_millis(1));
    };
    // The folder is in use.
    assert_eq!(code, Some(4), "npkfs umount");
}

/// Ends the process and the mount whatever happens.
struct Serving<'a>(Child, &'a Path);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // It may wait in the kernel for a program that waits for it.
        if let Ok(Some(mount)) = mounts::find(self.1) {
            let _ = mounts::abort(&mount);
        }
        let _ = self.0.wait();
        let _ = mounts::unmount(self.1, true);
    }
}

#[test]
fn what_was_closed_before_the_process_was_killed_is_in_the_store() {
    let mut rng = Rng::new(rng::seed());
    let (mut n_rounds, mut n_acts, mut n_halfway) = (0_u64, 0, 0);
    for is_compressed in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (path, mnt) = (dir.path().join("data.npk"), dir.path().join("mnt"));
        fs::create_dir(&mnt).expect("makes a folder");
        drop(Store::create(&path).expect("creates"));
        let mut history = History::new();
        for round in 0..rng::n_cases(24).div_ceil(2) {
            let Some(mut serving) = serve(&path, &mnt, is_compressed, round % 3 == 0) else { return };
            // As long as it is in use, it stays mounted: what is done after the death fails, and is not done to the folder.
            let in_use = File::open(&mnt).expect("opens");
            let delay = Duration::from_micros(rng.below(250_000));
            let mut before = history.clone();
            let mut acts = Vec::new();
            std::thread::scope(|scope| {
                let child = &mut serving.0;
                let mnt = &mnt;
                scope.spawn(move || {
                    std::thread::sleep(delay);
                    child.kill().expect("kills");
                    let_go(mnt);
                });
                for _ in 0..MAX_ACTS {
                    before = history.clone();
                    let next = act(&mut rng, &history, 60_000);
                    history.note(&next);
                    acts.push(next.clone());
                    if run(mnt, &next).is_err() {
                        n_halfway += 1;
                        return;
                    }
                    n_acts += 1;
                    before = history.clone();
                }
            });
            drop(in_use);
            drop(serving);
            n_rounds += 1;
            let store = Store::open(&path, Access::Write).expect("opens");
            let told = format!("round {round}, compressed {is_compressed}, {:?}", acts.last());
            history.assert_after_death(&before, &store, is_compressed, &told);
            let report = verify_with(&path, Depth::Elements, &mut |_, _, _| ()).expect("verifies");
            assert!(report.problems.is_empty(), "{told}: {:?}", report.problems);
            // The next round goes on with what is there.
            history = History::of(&store);
        }
    }
    rng::covered(n_rounds, "processes killed that served a mount");
    println!("{n_acts} operations were done, and {n_halfway} going on");
}
