//! A process that dies at any call of an operation leaves every array as it was before or as it was to be, and what it
//! left over is gone after the next write.
//!
//! `crash/power_loss.rs` loses unsynced writes as well; in `crash/mounted.rs` the process is one that serves a mount; in
//! `crash/errors.rs` calls fail and the process lives on.

mod common;
#[path = "crash/disk.rs"]
mod disk;
#[path = "crash/errors.rs"]
mod errors;
#[path = "crash/mounted.rs"]
mod mounted;
#[path = "crash/power_loss.rs"]
mod power_loss;
#[path = "crash/stories.rs"]
mod stories;

use common::check::assert_store;
use common::model::{Content, Model};
use common::ops::Op;
use common::rng::{self, Rng};
use common::{FaultyStorage, LastWrite};
use disk::{Disk, Place};
use numpack::store::{Access, Attrs, NotAStore, Store, StoreError};
use stories::{Story, stories};

/// What was going on when the process died.
struct Death {
    before: Model,
    after: Model,
    /// The operation, as a number of the story; none while the store was being created.
    op: Option<usize>,
    /// The operation had returned, or was only tidying up.
    is_done: bool,
}

/// Lives a story until the death at the `n`-th call, if it comes.
fn live_in(storage: &FaultyStorage, story: &Story, n: usize, last_write: LastWrite) -> Option<Death> {
    storage.die_at(n, last_write);
    let mut model = Model::default();
    let created = Store::create_in(Box::new(storage.clone()));
    if storage.is_dead() {
        let is_done = created.is_ok();
        return Some(Death { before: model.clone(), after: model, op: None, is_done });
    }
    let store = created.expect("creates");
    store.set_durable(story.durable);
    for (at, op) in story.ops.iter().enumerate() {
        let before = model.clone();
        let expected = op.apply(&mut model);
        let result = op.run(&store);
        if storage.is_dead() {
            return Some(Death { before, after: model, op: Some(at), is_done: result.is_ok() });
        }
        assert_eq!(result.is_ok(), expected.is_ok(), "{op:?}: {result:?}");
    }
    None
}

/// Opens the store for writing after a death. One that was being created may not be there yet.
fn reopen(disk: &Disk, death: &Death) -> Store {
    match disk.open(Access::Write) {
        Err(StoreError::NotAStore { found: NotAStore::NoManifest, .. }) if death.op.is_none() => {
            assert!(!death.is_done, "the store was created");
            Store::create_in(disk.boxed()).expect("creates")
        }
        result => result.expect("opens"),
    }
}

/// Whether `row` may be what writes of `rows` over each other left behind.
fn is_mixture(row: &[u8], rows: &[&Vec<u8>]) -> bool {
    (0..row.len()).all(|at| rows.iter().any(|other| other[at] == row[at]))
}

/// Checks that each row of `state` is that of `before` or one that `op` wrote; of a torn write, one may be mixed.
fn assert_rows_survived(state: &Content, before: &Content, after: &Content, op: &Op, may_tear: bool) {
    assert_eq!((&state.shape, &state.dtype), (&before.shape, &before.dtype));
    let halfway = op.states_between(before);
    let mut n_torn = 0;
    for (at, (row, old)) in state.rows.iter().zip(&before.rows).enumerate() {
        let mut writes = vec![old, &after.rows[at]];
        if let Op::Replace { rows, data, .. } = op {
            // A row may be named more than once. The last counts, but it is not the first to be written.
            writes.extend(
                rows.iter().zip(&data.rows).filter(|(row, _)| **row == at as u64).map(|(_, new)| new),
            );
        }
        // So it is with ranges that overlap.
        writes.extend(halfway.iter().map(|state| &state.rows[at]));
        if !writes.contains(&row) {
            assert!(may_tear && is_mixture(row, &writes), "{row:?} is none of {writes:?}");
            n_torn += 1;
        }
    }
    assert!(n_torn <= 1 || state.fortran_order, "{n_torn} rows are torn");
}

fn assert_survived(state: &Model, death: &Death, op: Option<&Op>, last_write: LastWrite) {
    let (before, after) = (&death.before, &death.after);
    // What is compressed is written in one commit.
    let is_plain = |name: &&String| before.get(name).is_some_and(|content| content.compression.is_none());
    let in_place = op.and_then(|op| Some((op, op.in_place().filter(is_plain)?)));
    if death.is_done {
        assert_eq!(state, after, "after {op:?}");
        return;
    }
    let Some((op, name)) = in_place else {
        assert!(state == before || state == after, "{op:?} is half done: {state:?}");
        return;
    };
    assert_eq!((state.arrays.len(), &state.attrs), (before.arrays.len(), &before.attrs));
    for (((own, content), (_, old)), (_, new)) in state.arrays.iter().zip(&before.arrays).zip(&after.arrays) {
        // Bytes written through the virtual file begin and end anywhere in a row; rows in Fortran order are written
        // column by column.
        let is_piecewise = old.fortran_order || matches!(op, Op::WriteNpy { .. } | Op::WriteBack { .. });
        let may_tear = own == name && (last_write == LastWrite::Torn || is_piecewise);
        assert_rows_survived(content, old, new, op, may_tear);
    }
}

/// A small commit, after which nothing is left over.
fn write_next(store: &Store, model: &mut Model) {
    let set: Attrs = [("next".to_owned(), rmpv::Value::from(1))].into();
    model.attrs.extend(set.clone());
    store.set_attrs(None, set, &[]).expect("the next write works");
}

/// What the tests here cover.
const DEATHS: &str = "cut points: the process dies";

/// Calls of which a part may be done.
const TORN_CALLS: [&str; 3] = ["write_at", "copy_from", "punch"];

/// Lets the process die at each call of the story, and returns the number of deaths.
fn die_everywhere(place: Place, story: &Story) -> usize {
    die_at(place, story, 1..)
}

/// Lets the process die at these calls of the story, and returns the number of deaths.
fn die_at(place: Place, story: &Story, calls: impl Iterator<Item = usize>) -> usize {
    let mut n_deaths = 0;
    for n in calls {
        for last_write in [LastWrite::Lost, LastWrite::Torn] {
            let disk = Disk::new(place);
            let storage = FaultyStorage::new(disk.storage());
            let Some(death) = live_in(&storage, story, n, last_write) else { return n_deaths };
            let call = storage.failed_call().expect("it died");
            if last_write == LastWrite::Torn && !TORN_CALLS.iter().any(|torn| call.starts_with(torn)) {
                // As before.
                continue;
            }
            n_deaths += 1;
            let op = death.op.map(|at| &story.ops[at]);
            let store = reopen(&disk, &death);
            let mut model = Model::read(&store).expect("reads");
            assert_survived(&model, &death, op, last_write);
            write_next(&store, &mut model);
            disk.assert_tidy(&store);
            // Life goes on, with the operation that was interrupted.
            let is_done = death.is_done || op.is_none() || model.arrays == death.after.arrays;
            let rest = death.op.map_or(0, |at| at + usize::from(is_done));
            for op in &story.ops[rest..] {
                let expected = op.apply(&mut model);
                let result = op.run(&store);
                assert_eq!(result.is_ok(), expected.is_ok(), "{op:?}: {result:?}");
            }
            assert_store(&disk.open(Access::Read).expect("opens"), &model, &mut Rng::new(n as u64));
            disk.assert_tidy(&store);
        }
    }
    unreachable!("a story ends")
}

#[test]
fn death_at_any_call_leaves_old_or_new_in_memory() {
    for story in stories() {
        let n_deaths = die_everywhere(Place::Memory, &story);
        eprintln!("{}: {n_deaths} deaths", story.name);
        rng::covered(n_deaths as u64, DEATHS);
    }
}

#[test]
fn death_at_any_call_leaves_old_or_new_on_disk() {
    for story in stories().into_iter().filter(|story| story.durable || !story.has_blocks()) {
        let n_deaths = die_everywhere(Place::Disk, &story);
        eprintln!("{}: {n_deaths} deaths", story.name);
        rng::covered(n_deaths as u64, DEATHS);
    }
}

/// More arrays than are written before the writers' lock is taken: the files have their names before the commit.
#[test]
fn death_while_many_arrays_are_saved_leaves_old_or_new() {
    let mut rng = Rng::new(rng::seed());
    for story in stories::many_arrays() {
        let calls = (1 + rng.below(80) as usize..).step_by(80);
        let n_deaths = die_at(Place::Memory, &story, calls);
        assert!(n_deaths > 5, "{n_deaths}");
        rng::covered(n_deaths as u64, DEATHS);
    }
}

#[test]
fn death_at_any_call_of_random_operations() {
    let mut n_deaths = 0;
    for mut rng in rng::cases(4) {
        let is_durable = rng.one_in(2);
        let story = Story::random(&mut rng, 8, is_durable);
        n_deaths += die_everywhere(Place::Memory, &story);
    }
    rng::covered(n_deaths as u64, DEATHS);
}

/// Where a name is to replace another, there is a temporary one for a moment.
#[test]
fn temporaries_are_gone_after_a_death_at_a_new_snapshot() {
    let publishing = |story: &Story| story.name == "publish a snapshot";
    let story = stories().into_iter().find(publishing).expect("there is one");
    let mut died_at = Vec::new();
    for n in 1.. {
        let disk = Disk::new(Place::Disk);
        let storage = FaultyStorage::new(disk.storage());
        let Some(death) = live_in(&storage, &story, n, LastWrite::Lost) else { break };
        let call = storage.failed_call().expect("it died");
        if death.op.is_none()
            || !["replace metadata.npkm", "link_existing metadata.npkm.bak"].contains(&&*call)
        {
            continue;
        }
        died_at.push(call);
        let temporary = disk.path().expect("on disk").join("tmp_0123456789abcdef.npkd");
        std::fs::write(&temporary, "as if it had died within that call").expect("writes");
        write_next(&reopen(&disk, &death), &mut Model::default());
        assert!(!temporary.exists());
    }
    assert_eq!(died_at, ["replace metadata.npkm", "link_existing metadata.npkm.bak"]);
}

/// The next writer is one that had the store open all the time, and has written before.
#[test]
fn leftovers_are_gone_after_a_write_of_a_handle_that_was_open_all_the_time() {
    let mut n_deaths = 0;
    for place in [Place::Memory, Place::Disk] {
        for story in stories().into_iter().filter(|story| place == Place::Memory || !story.has_blocks()) {
            for (at, op) in story.ops.iter().enumerate() {
                for n in 1.. {
                    let disk = Disk::new(place);
                    let mut model = Model::default();
                    let other = Store::create_in(disk.boxed()).expect("creates");
                    for op in &story.ops[..at] {
                        let expected = op.apply(&mut model);
                        assert_eq!(op.run(&other).is_ok(), expected.is_ok());
                    }
                    write_next(&other, &mut model);
                    let storage = FaultyStorage::new(disk.storage());
                    let store = Store::with_storage(Box::new(storage.clone()), Access::Write).expect("opens");
                    store.set_durable(story.durable);
                    storage.die_at(n, LastWrite::Torn);
                    let result = op.run(&store);
                    if !storage.is_dead() {
                        break;
                    }
                    drop(store);
                    n_deaths += 1;
                    write_next(&other, &mut model);
                    disk.assert_tidy(&other);
                    let _ = op.apply(&mut model);
                    if result.is_ok() {
                        assert_store(&other, &model, &mut Rng::new(n as u64));
                    }
                }
            }
        }
    }
    rng::covered(n_deaths as u64, DEATHS);
}
