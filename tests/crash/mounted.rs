//! The way through a mount, without a kernel: files are made, written to, renamed and removed, and the process that
//! serves them dies, or the power goes, at any call.
//!
//! What holds for each name:
//!
//! - After the death of the process, the name has what the last operation left that returned, or what it had before one
//!   that did not: wholly, but for bytes that are written in place to an array that is not compressed.
//! - After a loss of power, it has what it had at some time since the last `fsync` that returned, and bytes that were
//!   written in place since to an array that is not compressed are of any time since, or zeros. If the name was given to
//!   another array since, it may be that its data file is damaged, and says so.

use std::ffi::OsStr;
use std::sync::Arc;

use numpack::fs::{Fh, FsError, Ino, NewFile, Rename};
use numpack::store::{Access, Compression, Filter, Store};

use crate::common::acts::{Act, HEADER_LEN, History, acts, file_name, npy};
use crate::common::fixture::{CALLER, Fixture, WRITE};
use crate::common::rng::{self, Rng};
use crate::common::{FaultyStorage, LastWrite, MemStorage};

const BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: Some(Filter::None) };

/// What `close` does.
fn close(f: &Fixture, ino: Ino, fh: Fh) -> Result<(), FsError> {
    let mut result = Ok(());
    if f.fs.is_uncommitted(fh) {
        result = f.fs.commit(ino);
    } else if f.fs.flush(fh)? {
        result = f.fs.finish(fh);
    }
    if let Some(closed) = f.fs.release(fh) {
        f.fs.finish_closed(closed);
    }
    result
}

fn run(f: &Fixture, act: &Act) -> Result<(), FsError> {
    match act {
        Act::Make { name, values, piece, sync } => {
            let new = NewFile { write: true, truncate: true, ..NewFile::default() };
            let name = file_name(*name);
            let (attr, fh) = match f.fs.create(Ino::ROOT, OsStr::new(&name), new, CALLER) {
                // As the kernel does when it is told that the name is there.
                Err(FsError::Stale { .. }) => {
                    f.fs.unlink(Ino::ROOT, OsStr::new(&name))?;
                    f.fs.create(Ino::ROOT, OsStr::new(&name), new, CALLER)?
                }
                made => made?,
            };
            let bytes = npy(values.clone());
            for (n, piece_of) in bytes.chunks(*piece).enumerate() {
                f.fs.write(fh, (n * piece) as u64, piece_of, false)?;
            }
            let synced = if *sync { f.fs.fsync(fh) } else { Ok(()) };
            synced.and(close(f, attr.ino, fh))
        }
        Act::Write { name, offset, len, fill, sync } => {
            let attr = f.lookup(&file_name(*name))?;
            let opened = f.fs.open(attr.ino, WRITE, CALLER)?;
            let data = vec![*fill; *len as usize];
            let written = f.fs.write(opened.fh, HEADER_LEN + offset, &data, false).map(|_| ());
            let synced = if *sync && written.is_ok() { f.fs.fsync(opened.fh) } else { Ok(()) };
            written.and(synced).and(close(f, attr.ino, opened.fh))
        }
        Act::Rename { from, to } => f.rename(&file_name(*from), &file_name(*to), Rename::Replace),
        Act::Remove { name } => f.unlink(&file_name(*name)),
    }
}

/// Serves a mount until the death at the `n`-th call. Returns what was before the last operation, and after it.
fn serve(storage: &FaultyStorage, acts: &[Act], is_compressed: bool) -> (History, History) {
    let open = || Store::with_storage(Box::new(storage.clone()), Access::Write).expect("opens");
    let (store, other) = (open(), open());
    let mut f = Fixture::over(other, store, false);
    f.fs.set_compression(is_compressed.then_some(BLOCKS));
    let mut history = History::new();
    let mut before = history.clone();
    for act in acts {
        before = history.clone();
        history.note(act);
        let result = run(&f, act);
        f.carry_out();
        if storage.is_dead() {
            return (before, history);
        }
        result.unwrap_or_else(|error| panic!("{act:?}: {error}"));
        if matches!(act, Act::Make { sync: true, .. } | Act::Write { sync: true, .. }) {
            history.synced();
        }
        before = history.clone();
    }
    (before, history)
}

fn open(left: &MemStorage) -> Store {
    Store::with_storage(Box::new(left.clone()), Access::Read).expect("opens")
}

/// Cuts everywhere, and returns how often.
fn cut_everywhere(rng: &mut Rng, acts: &[Act], is_compressed: bool) -> (usize, usize) {
    let (mut n_deaths, mut n_losses) = (0, 0);
    for n in 1.. {
        let memory = MemStorage::new();
        drop(Store::create_in(Box::new(memory.clone())).expect("creates"));
        let storage = FaultyStorage::new(Arc::new(memory.clone()));
        storage.die_at(n, if rng.one_in(2) { LastWrite::Torn } else { LastWrite::Lost });
        let (before, after) = serve(&storage, acts, is_compressed);
        let told =
            format!("compressed: {is_compressed}, {acts:?}, died at {:?}, call {n}", storage.failed_call());
        after.assert_after_death(&before, &open(&memory.after_kill()), is_compressed, &told);
        n_deaths += 1;
        for chance in 0..4 {
            let left = memory.after_power_loss(&mut || rng.below(3) < chance);
            after.assert_after_power_loss(&open(&left), is_compressed, &told);
            n_losses += 1;
        }
        if !storage.is_dead() {
            return (n_deaths, n_losses);
        }
    }
    unreachable!("a story ends")
}

#[test]
fn what_a_program_synced_through_a_mount_survives_and_the_rest_is_old_or_new() {
    let (mut n_deaths, mut n_losses) = (0, 0);
    for mut rng in rng::cases(8) {
        let is_compressed = rng.one_in(2);
        let acts = acts(&mut rng, 7);
        let (deaths, losses) = cut_everywhere(&mut rng, &acts, is_compressed);
        n_deaths += deaths;
        n_losses += losses;
    }
    rng::covered(n_deaths as u64, "cut points at a mount: the process that serves it dies");
    rng::covered(
        n_losses as u64,
        "cut points at a mount: the power goes, and unsynced writes are lost or out of order",
    );
}
