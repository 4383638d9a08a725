//! Power loss: what was not synced may be there or not, page by page; names change in the order of the calls.
//!
//! What holds, for the operations of one process (others are told apart below):
//!
//! - The store opens, and takes writes. Its table - names, order, shapes, dtypes, attributes - is one that it had
//!   after some operation, no earlier than the last one that returned durably.
//! - Durable operations that returned are there, with all before them. One that was going on is there or not.
//! - An array that no operation changed since the last durable one reads as it was. Moving its rows to another file
//!   (compaction, another order, a longer header) changes nothing: that is always durable.
//! - An array that was changed, without `durable`, since then reads as rows of its own, of any time, with zeros in
//!   place of bytes that never reached the disk, or is reported as damaged: its data file is missing, short, or without
//!   the header that it was imported with. This includes arrays that were durable before they were overwritten, appended to or removed: the old file goes
//!   without waiting for the disk, and rows that are in the manifest but not in the file make all of it short.
//! - A compressed array reads as in the state that the table is of, or is reported as damaged.
//! - No array ever reads bytes of another one, or of a version that is gone.

use std::collections::HashMap;

use numpack::store::{
    Access, Compression, DataFileFault, Dtype, Filter, Generation, Store, StoreError, verify_storage,
};

use crate::common::check::assert_store;
use crate::common::model::{Content, Model};
use crate::common::ops::Op;
use crate::common::rng::{self, Rng};
use crate::common::{FaultyStorage, LastWrite, MemStorage, random};
use crate::stories::{many_arrays, stories};
use crate::write_next;

/// What the tests here cover.
const LOSSES: &str = "cut points: the power goes, and unsynced writes are lost or out of order";

/// What a process did, up to the loss of power.
struct History {
    /// The states after each operation; the last one may be that of an operation that was going on.
    states: Vec<Model>,
    /// The generation of each state that an operation returned with.
    generations: Vec<Generation>,
    /// The last state that is on the disk for certain.
    floor: usize,
    /// The operation that was going on, or had just returned.
    last: Option<Op>,
    /// Rows by their tags, which were written and then overwritten in one operation.
    written: Vec<(u64, Vec<u8>)>,
}

/// What became of the arrays that were not safe.
#[derive(Debug, Default)]
struct Damage {
    reads: usize,
    zeros: usize,
    missing: usize,
    short: usize,
    headers: usize,
    blocks: usize,
}

impl History {
    fn new(store: &Store) -> Self {
        let (states, generations) = (vec![Model::default()], vec![store.generation()]);
        History { states, generations, floor: 0, last: None, written: Vec::new() }
    }

    /// Does `ops`, each durable or not, until the death at the `n`-th call.
    fn live(&mut self, storage: &FaultyStorage, store: &Store, ops: &[(bool, Op)]) {
        for (durable, op) in ops {
            let mut model = self.states.last().expect("there is one").clone();
            op.apply(&mut model).expect("fits");
            if let Op::Replace { name, rows, data } = op {
                let tags = &model.get(name).expect("is there").tags;
                self.written.extend(rows.iter().map(|row| tags[*row as usize]).zip(data.rows.clone()));
            }
            let before = self.states.last().expect("there is one");
            for content in op
                .in_place()
                .and_then(|name| before.get(name))
                .into_iter()
                .flat_map(|before| op.states_between(before))
            {
                self.written.extend(content.tags.iter().copied().zip(content.rows.clone()));
            }
            self.states.push(model);
            self.last = Some(op.clone());
            store.set_durable(*durable);
            let result = op.run(store);
            // An operation that has nothing to do is none, and neither is a write through the virtual file, unless that
            // is compressed.
            let is_replace = match op {
                Op::Replace { .. } | Op::ReplaceRange { .. } => true,
                Op::WriteRows { data, .. } => !data.rows.is_empty(),
                _ => false,
            };
            let is_commit =
                is_replace || store.generation() != *self.generations.last().expect("there is one");
            if result.is_ok() && (*durable && is_commit || matches!(op, Op::Sync)) {
                self.floor = self.states.len() - 1;
            }
            if storage.is_dead() {
                return;
            }
            result.expect("works");
            self.generations.push(store.generation());
        }
    }

    /// Whether nothing happened to the array since the last state that is certain.
    fn is_untouched(&self, content: &Content) -> bool {
        let is_same = |own: &Content| own.tags == content.tags && own == content;
        !content.tags.is_empty()
            && self.states[self.floor..].iter().all(|state| state.arrays.iter().any(|(_, own)| is_same(own)))
    }

    /// All that each row has been, by its tag.
    fn rows(&self) -> HashMap<u64, Vec<&Vec<u8>>> {
        let mut rows: HashMap<u64, Vec<&Vec<u8>>> = HashMap::new();
        for (tag, row) in &self.written {
            rows.entry(*tag).or_default().push(row);
        }
        for (_, content) in self.states.iter().flat_map(|state| &state.arrays) {
            for (tag, row) in content.tags.iter().zip(&content.rows) {
                let values = rows.entry(*tag).or_default();
                if values.last() != Some(&row) {
                    values.push(row);
                }
            }
        }
        rows
    }

    /// Checks what is left after a loss of power, and returns the names of the arrays that are damaged.
    fn assert_left(&self, left: &MemStorage, damage: &mut Damage) -> Vec<String> {
        let store = Store::with_storage(Box::new(left.clone()), Access::Write).expect("opens");
        let generation = store.generation();
        let known = self.generations.iter().rposition(|known| *known == generation);
        let at = known.unwrap_or_else(|| {
            let last = self.generations.last().expect("there is one");
            assert_eq!(generation.0, last.0 + 1, "only one operation was going on");
            self.states.len() - 1
        });
        assert!(
            self.generations[self.floor.min(self.generations.len() - 1)] <= generation,
            "something durable is lost"
        );
        assert!(is_table_of(&store, &self.states[at]), "{:?} is not {:?}", store.names(), self.states[at]);
        let rows = self.rows();
        let mut damaged = Vec::new();
        for (name, expected) in &self.states[at].arrays {
            let read = store.array(name).and_then(|array| {
                array.npy_header()?;
                Content::read(&array)
            });
            if self.is_untouched(expected) {
                let read = read.unwrap_or_else(|error| panic!("{error}; the last one was {:?}", self.last));
                assert_eq!(read, *expected, "{name:?}");
                continue;
            }
            damage.reads += 1;
            match read {
                // Blocks have checksums.
                Ok(content) if expected.compression.is_some() => assert_eq!(content, *expected, "{name:?}"),
                Ok(content) => {
                    let mut is_whole = true;
                    for (tag, row) in expected.tags.iter().zip(&content.rows) {
                        for (at, byte) in row.iter().enumerate() {
                            let is_own = rows[tag].iter().any(|own| own[at] == *byte);
                            assert!(
                                is_own || *byte == 0,
                                "{name:?} has a byte of another array: {content:?}"
                            );
                            is_whole &= is_own;
                        }
                    }
                    damage.zeros += usize::from(!is_whole);
                }
                Err(StoreError::DataFile { what: DataFileFault::Missing, .. }) => {
                    damage.missing += 1;
                    damaged.push(name.clone());
                }
                Err(StoreError::DataFile { what: DataFileFault::Short { .. }, .. }) => {
                    damage.short += 1;
                    damaged.push(name.clone());
                }
                // An imported header without room for the one that we would write in its place.
                Err(StoreError::DataFile { what: DataFileFault::Header(None), .. }) => {
                    damage.headers += 1;
                    damaged.push(name.clone());
                }
                Err(StoreError::Block { .. }) if expected.compression.is_some() => {
                    damage.blocks += 1;
                    damaged.push(name.clone());
                }
                Err(error) => panic!("{name:?}: {error}"),
            }
        }
        let report = verify_storage(Box::new(left.clone())).expect("verifies");
        for problem in report.problems {
            let name = problem.array.as_deref().expect("the manifest is whole");
            // The header follows the commit, durable or not.
            let appended =
                matches!(&self.last, Some(Op::Append(rows)) if rows.iter().any(|(own, _)| own == name));
            let may_lag = appended || !self.is_untouched(self.find(at, name));
            let is_header = problem.what.contains("header") && may_lag;
            assert!(is_header || damaged.iter().any(|own| own == name), "{problem:?}");
        }
        damaged
    }

    fn find(&self, at: usize, name: &str) -> &Content {
        self.states[at].get(name).expect("is there")
    }
}

/// Whether the table of `store` is that of `model`.
fn is_table_of(store: &Store, model: &Model) -> bool {
    let arrays = store.arrays().expect("lists");
    let is_same = |(array, (name, content)): (&numpack::store::Array, &(String, Content))| {
        **array.name() == **name
            && *array.dtype() == content.dtype
            && array.shape() == content.shape
            && array.fortran_order() == content.fortran_order
            && *array.attrs() == content.attrs
    };
    store.attrs() == model.attrs
        && arrays.len() == model.arrays.len()
        && arrays.iter().zip(&model.arrays).all(is_same)
}

fn survivors(rng: &mut Rng) -> impl FnMut() -> bool {
    let mut rng = Rng::new(rng.next());
    let chance = rng.below(5);
    move || rng.below(4) < chance
}

/// Lets the power go at each call of `ops`, `n_each` times, and returns the number of losses.
fn lose_power_everywhere(ops: &[(bool, Op)], n_each: usize, rng: &mut Rng, damage: &mut Damage) -> usize {
    lose_power_at(1.., ops, n_each, rng, damage)
}

/// Lets the power go at these calls of `ops`, as far as there are so many.
fn lose_power_at(
    calls: impl Iterator<Item = usize>,
    ops: &[(bool, Op)],
    n_each: usize,
    rng: &mut Rng,
    damage: &mut Damage,
) -> usize {
    let mut n_losses = 0;
    for n in calls {
        let memory = MemStorage::new();
        drop(Store::create_in(Box::new(memory.clone())).expect("creates"));
        let storage = FaultyStorage::new(std::sync::Arc::new(memory.clone()));
        let store = Store::with_storage(Box::new(storage.clone()), Access::Write).expect("opens");
        storage.die_at(n, if rng.one_in(2) { LastWrite::Torn } else { LastWrite::Lost });
        let mut history = History::new(&store);
        history.live(&storage, &store, ops);
        for _ in 0..n_each {
            n_losses += 1;
            let left = memory.after_power_loss(&mut survivors(rng));
            let damaged = history.assert_left(&left, damage);
            go_on(&left, &damaged, rng);
        }
        if !storage.is_dead() {
            return n_losses;
        }
    }
    unreachable!("a story ends")
}

/// Life goes on after a loss of power: what is damaged can be removed, and everything else works.
fn go_on(left: &MemStorage, damaged: &[String], rng: &mut Rng) {
    let store = Store::with_storage(Box::new(left.clone()), Access::Write).expect("opens");
    store.remove(&damaged.iter().map(String::as_str).collect::<Vec<_>>()).expect("removes");
    let mut model = Model::read(&store).expect("reads");
    for _ in 0..2 {
        let op = random::op(rng, &model);
        let expected = op.apply(&mut model);
        let result = op.run(&store);
        assert_eq!(result.is_ok(), expected.is_ok(), "{op:?}: {result:?}");
    }
    write_next(&store, &mut model);
    let reader = Store::with_storage(Box::new(left.clone()), Access::Read).expect("opens");
    assert_store(&reader, &model, rng);
}

#[test]
fn power_loss_at_any_call_keeps_what_was_durable() {
    let mut rng = Rng::new(rng::seed());
    for story in stories() {
        let ops: Vec<(bool, Op)> = story.ops.iter().map(|op| (story.durable, op.clone())).collect();
        let mut damage = Damage::default();
        let n_each = if story.has_blocks() { 2 } else { 3 };
        let n_losses = lose_power_everywhere(&ops, n_each, &mut rng, &mut damage);
        eprintln!("{}, durable {}: {n_losses} losses, {damage:?}", story.name, story.durable);
        rng::covered(n_losses as u64, LOSSES);
    }
}

#[test]
fn power_loss_while_many_arrays_are_saved_keeps_what_was_durable() {
    let mut rng = Rng::new(rng::seed());
    for story in many_arrays() {
        let ops: Vec<(bool, Op)> = story.ops.iter().map(|op| (story.durable, op.clone())).collect();
        let calls = (1 + rng.below(120) as usize..).step_by(120);
        let n_losses = lose_power_at(calls, &ops, 2, &mut rng, &mut Damage::default());
        rng::covered(n_losses as u64, LOSSES);
    }
}

#[test]
fn power_loss_among_random_operations_keeps_what_was_durable() {
    let mut damage = Damage::default();
    let mut n_losses = 0;
    for mut rng in rng::cases(6) {
        let mut model = Model::default();
        let mut ops = Vec::new();
        while ops.len() < 8 {
            let op = random::op(&mut rng, &model);
            if op.apply(&mut model).is_ok() {
                ops.push((rng.one_in(3), op));
            }
        }
        n_losses += lose_power_everywhere(&ops, 3, &mut rng, &mut damage);
    }
    eprintln!("{n_losses} losses, {damage:?}");
    rng::covered(n_losses as u64, LOSSES);
}

/// Writing back waits for the blocks, whether the commit is durable or not: it is there or not, and nothing is damaged.
#[test]
fn power_loss_while_blocks_are_written_back_damages_nothing() {
    let mut rng = Rng::new(rng::seed());
    let compression = Some(Compression { level: 1, block_len: 4096, filter: Some(Filter::None) });
    let dtype = || Dtype::parse_python("'|u1'").expect("a dtype");
    let saved = Content { compression, ..random::content(&mut rng, dtype(), &[30, 300], false) };
    let mut ops = vec![(true, Op::Save(vec![("a".to_owned(), saved)]))];
    for len in [10, 5000, 1, 4096, 4097, 900] {
        let offset = rng.below(9000 - len);
        let ranges = vec![(offset, rng.bytes(len as usize))];
        ops.push((false, Op::WriteBack { name: "a".to_owned(), ranges }));
    }
    let mut damage = Damage::default();
    let n_losses = lose_power_everywhere(&ops, 3, &mut rng, &mut damage);
    eprintln!("{n_losses} losses, {damage:?}");
    rng::covered(n_losses as u64, LOSSES);
    assert_eq!(damage.missing + damage.short + damage.headers + damage.blocks, 0);
}
