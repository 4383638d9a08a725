//! Commits of several processes and threads: each is seen wholly or not at all, in one order that all agree on, and at
//! once by whoever looks after it has returned.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use numpack::store::{Access, Array, Attrs, Store, StoreError};
use numpack::sys::Storage as _;
use shuttle::thread;

use crate::common::history::{Event, Model, assert_explained};
use crate::common::rng::Rng;
use crate::process::{Disk, Process};
use crate::{BLOCKS, Template, array, bytes, explore, random, values};

const NAMES: [&str; 2] = ["a", "b"];

#[derive(Debug, Clone)]
pub enum Op {
    /// Both arrays in one commit, the second as long as the first.
    SaveBoth([u64; 2]),
    Save(&'static str, Vec<u64>),
    Append(&'static str, u64),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    DropFirst(&'static str),
    /// What changes no element: compaction, other compression.
    Rewrite(&'static str),
    Read(&'static str),
    /// How long each array is, all at one moment.
    List,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Done,
    NotFound,
    Exists,
    Count(usize),
    Rows(Vec<u64>),
    Lens(BTreeMap<String, usize>),
}

/// What a store has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Arrays(BTreeMap<String, Vec<u64>>);

impl Arrays {
    /// What an operation returns.
    fn apply(&mut self, op: &Op) -> Seen {
        let arrays = &mut self.0;
        match op {
            Op::SaveBoth(rows) => {
                for (name, row) in NAMES.iter().zip(rows) {
                    arrays.insert((*name).into(), vec![*row]);
                }
            }
            Op::Save(name, rows) => drop(arrays.insert((*name).into(), rows.clone())),
            Op::Append(name, row) => match arrays.get_mut(*name) {
                Some(rows) => rows.push(*row),
                None => return Seen::NotFound,
            },
            Op::Remove(name) => return Seen::Count(arrays.remove(*name).map_or(0, |_| 1)),
            Op::Rename(from, to) => {
                if !arrays.contains_key(*from) {
                    return Seen::NotFound;
                }
                if arrays.contains_key(*to) {
                    return Seen::Exists;
                }
                let rows = arrays.remove(*from).expect("it is there");
                arrays.insert((*to).into(), rows);
            }
            Op::DropFirst(name) => {
                if let Some(rows) = arrays.get_mut(*name).filter(|rows| !rows.is_empty()) {
                    rows.remove(0);
                }
            }
            Op::Rewrite(name) if !arrays.contains_key(*name) => return Seen::NotFound,
            Op::Rewrite(_) => {}
            Op::Read(name) => {
                return arrays.get(*name).map_or(Seen::NotFound, |rows| Seen::Rows(rows.clone()));
            }
            Op::List => {
                return Seen::Lens(arrays.iter().map(|(name, rows)| (name.clone(), rows.len())).collect());
            }
        }
        Seen::Done
    }
}

impl Model for Arrays {
    type Op = (Op, Option<Seen>);

    fn after(&self, (op, seen): &Self::Op, returned: bool) -> Option<Self> {
        let mut after = self.clone();
        let expected = after.apply(op);
        (!returned || Some(expected) == *seen).then_some(after)
    }
}

fn choose(rng: &mut Rng, next_row: &mut u64) -> Op {
    let name = *rng.pick(&NAMES);
    let row = *next_row;
    *next_row += 2;
    match rng.below(16) {
        0 => Op::SaveBoth([row, row + 1]),
        1 => Op::Save(name, vec![row, row + 1]),
        2..=5 => Op::Append(name, row),
        6 => Op::Remove(name),
        7 => Op::Rename(NAMES[0], NAMES[1]),
        8 => Op::DropFirst(name),
        9 => Op::Rewrite(name),
        10..=13 => Op::Read(name),
        _ => Op::List,
    }
}

fn rows_of(array: &Array) -> Result<Vec<u64>, StoreError> {
    let mut out = vec![0xa5; array.nbytes() as usize];
    array.read_into(&mut out)?;
    Ok(values(&out))
}

/// Does an operation, and keeps the arrays that it read.
fn run(store: &Store, op: &Op, rng: &mut Rng, held: &mut Vec<(Array, Vec<u64>)>) -> Result<Seen, StoreError> {
    let compression = (!rng.one_in(2)).then_some(BLOCKS);
    let done = match op {
        Op::SaveBoth([a, b]) => {
            let (a, b) = (bytes(&[*a]), bytes(&[*b]));
            store.save_as(&[(NAMES[0], array(&a)), (NAMES[1], array(&b))], compression.as_ref())
        }
        Op::Save(name, rows) => store.save_as(&[(name, array(&bytes(rows)))], compression.as_ref()),
        Op::Append(name, row) => store.append(&[(name, array(&bytes(&[*row])))]),
        Op::Remove(name) => return Ok(Seen::Count(store.remove(&[name])?)),
        Op::Rename(from, to) => store.rename(from, to, false),
        Op::DropFirst(name) => store.drop_rows(&[name], &[0]),
        Op::Rewrite(name) if rng.one_in(2) => store.compact(name).map(drop),
        Op::Rewrite(name) => store.recompress(name, compression.as_ref(), &mut |_| ()).map(drop),
        Op::Read(name) => match store.array(name) {
            Ok(array) => {
                let rows = rows_of(&array)?;
                held.push((array, rows.clone()));
                return Ok(Seen::Rows(rows));
            }
            Err(error) => Err(error),
        },
        Op::List => {
            let arrays = store.arrays()?;
            let len = |array: &Array| (array.name().to_string(), array.n_rows() as usize);
            return Ok(Seen::Lens(arrays.iter().map(len).collect()));
        }
    };
    match done {
        Ok(()) => Ok(Seen::Done),
        Err(StoreError::NotFound { .. }) => Ok(Seen::NotFound),
        Err(StoreError::Exists { .. }) => Ok(Seen::Exists),
        Err(error) => Err(error),
    }
}

type Events = Arc<Mutex<Vec<Event<(Op, Option<Seen>)>>>>;

/// A client: does some things, and writes down what it saw.
fn client(process: &Process, store: &Store, number: usize, ops: Vec<Op>, disk: &Disk, events: &Events) {
    let mut rng = random();
    let mut held = Vec::new();
    for op in ops {
        let start = disk.now();
        let result = run(store, &op, &mut rng, &mut held);
        let is_dead = process.is_dead();
        let (end, seen) = match result {
            Ok(seen) if !is_dead => (Some(disk.now()), Some(seen)),
            Err(error) if !is_dead => panic!("{op:?} failed: {error}"),
            _ => (None, None),
        };
        events.lock().unwrap().push(Event { client: number, start, end, op: (op, seen) });
        if is_dead {
            return;
        }
    }
    for (array, rows) in held {
        match rows_of(&array) {
            _ if process.is_dead() => return,
            now => assert_eq!(now.unwrap(), rows, "who has an array keeps it"),
        }
    }
}

/// What a process does.
pub struct Plan {
    /// What each of its threads does.
    pub threads: Vec<Vec<Op>>,
    /// At which call it is killed, if it gets that far.
    pub life: u64,
    /// Whether it had the store open before the others began, and so knows the state that they find.
    pub is_early: bool,
}

/// Processes with so many threads, each of which does `n` random things; the first `n_mortal` of them die on the way.
fn random_plans(n_threads: &[usize], n: usize, n_mortal: usize) -> Vec<Plan> {
    let mut rng = random();
    let mut row = 1000;
    let plan = |(number, n_threads): (usize, &usize)| Plan {
        threads: (0..*n_threads).map(|_| (0..n).map(|_| choose(&mut rng, &mut row)).collect()).collect(),
        // About as many calls as there are in what it would do.
        life: if number < n_mortal { 1 + random().below(100 * n as u64) } else { u64::MAX },
        is_early: number % 2 == 0,
    };
    n_threads.iter().enumerate().map(plan).collect()
}

/// Lets processes work on the store at once, and checks what they saw and what is left.
pub fn together(template: &Template, plans: Vec<Plan>) {
    let disk = template.disk();
    let events = Events::default();
    let mut clients = Vec::new();
    let initial = Arrays(NAMES.iter().map(|name| ((*name).to_owned(), vec![1, 2])).collect());
    let n_clients = plans.iter().map(|plan| plan.threads.len()).sum();
    let mut number = 0;
    for Plan { threads, life, is_early } in plans {
        let process = disk.mortal(life);
        let opened = is_early.then(|| process.open(Access::Write).ok()).flatten();
        let (disk, events, first) = (disk.clone(), Arc::clone(&events), number);
        number += threads.len();
        clients.push(thread::spawn(move || {
            let Some(store) = opened.or_else(|| process.open(Access::Write).ok()) else {
                return assert!(process.is_dead(), "a store can be opened whatever others do");
            };
            let mut others = Vec::new();
            for (number, ops) in (first..).zip(threads) {
                let (process, store) = (process.clone(), store.clone());
                let (disk, events) = (disk.clone(), Arc::clone(&events));
                let work = move || client(&process, &store, number, ops, &disk, &events);
                if number == first { work() } else { others.push(thread::spawn(work)) }
            }
            others.into_iter().for_each(|thread| thread.join().unwrap());
        }));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    // Who comes later sees it all, and what the dead left behind goes with the next write.
    let process = disk.process();
    let store = process.open(Access::Write).unwrap();
    for name in NAMES {
        let (op, start) = (Op::Read(name), disk.now());
        let seen = run(&store, &op, &mut random(), &mut Vec::new()).unwrap();
        let event = Event { client: n_clients, start, end: Some(disk.now()), op: (op, Some(seen)) };
        events.lock().unwrap().push(event);
    }
    assert_explained(initial, &events.lock().unwrap());
    store.save(&[("last", array(&[]))]).unwrap();
    let report = numpack::store::verify_storage(Box::new(process)).unwrap();
    assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{report:?}");
}

/// A store with the arrays `a` and `b`.
pub fn two_arrays() -> Template {
    Template::new(|disk| drop(make_two_arrays(disk)))
}

fn make_two_arrays(disk: &Disk) -> Store {
    let store = Store::create_in(Box::new(disk.process())).unwrap();
    let rows = bytes(&[1, 2]);
    store.save(&[("a", array(&rows))]).unwrap();
    store.save_as(&[("b", array(&rows))], Some(&BLOCKS)).unwrap();
    store
}

#[test]
fn commits_of_processes_are_seen_in_one_order() {
    let template = two_arrays();
    explore("commits of three processes", move || together(&template, random_plans(&[1, 1, 1], 3, 0)));
}

#[test]
fn commits_of_threads_are_seen_in_one_order() {
    let template = two_arrays();
    explore("commits of threads of two processes", move || together(&template, random_plans(&[2, 2], 2, 0)));
}

#[test]
fn the_dead_hold_nobody_up_and_leave_nothing_half_done() {
    let template = two_arrays();
    explore("commits beside processes that die", move || together(&template, random_plans(&[1, 1, 1], 3, 2)));
}

/// Regression: a writer tells that its commit is done before it has removed what that superseded, and dies there. Who
/// knew the state found nothing new to see in the manifest, looked for no leftovers, and wrote its own intent over the
/// one that named them: they stayed forever.
#[test]
fn regression_what_the_dead_had_to_remove_is_removed_by_who_knows_their_commit() {
    let template = two_arrays();
    explore("overwrites by a process that dies", move || {
        let victim = vec![Op::Save("a", vec![3]), Op::Save("a", vec![4])];
        let witness =
            vec![Op::Append("b", 5), Op::List, Op::Save("b", vec![6]), Op::List, Op::Save("b", vec![7])];
        let life = 1 + random().below(200);
        let plans = [(victim, life), (witness, u64::MAX)];
        let plans = plans.map(|(ops, life)| Plan { threads: vec![ops], life, is_early: true });
        together(&template, plans.into());
    });
}

/// The log is so long that the next commit is followed by a new snapshot.
#[test]
fn readers_go_on_with_a_new_manifest() {
    let template = Template::new(|disk| {
        let store = make_two_arrays(disk);
        let len = disk.files().stat("metadata.npkm").unwrap().len;
        // 200 bytes, two commits or so, are left of the length at which a log is long.
        let text = "x".repeat(262_400 - 200 - len as usize - 120);
        store.set_attrs(None, Attrs::from([("text".into(), text.into())]), &[]).unwrap();
        store.set_attrs(None, Attrs::new(), &["text"]).unwrap();
    });
    explore("commits while a new manifest is published", move || {
        together(&template, random_plans(&[1, 2, 1], 2, 1))
    });
}
