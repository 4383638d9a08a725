//! Rows that are changed in place, in the file or by blocks, while others move the array to another file, append to it
//! and read it: no write is lost, and each row is read as it was between the call and its return.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use numpack::store::{Access, Compression, Store, StoreError};
use shuttle::thread;

use crate::common::history::{Event, Model, assert_explained};
use crate::common::rng::Rng;
use crate::process::{Disk, Process};
use crate::{BLOCK_LEN, BLOCKS, Template, array, bytes, explore, random, values};

/// One row, or one block whose rows all say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Register(u64);

#[derive(Debug)]
enum Did {
    Write(u64),
    Read(u64),
}

impl Model for Register {
    type Op = Did;

    fn after(&self, op: &Did, _returned: bool) -> Option<Self> {
        match op {
            Did::Write(value) => Some(Register(*value)),
            Did::Read(value) => (*value == self.0).then_some(*self),
        }
    }
}

/// How an array is laid out: so many units, each of so many rows with the same number, and more may be appended.
#[derive(Clone, Copy)]
struct Kind {
    n_units: u64,
    unit_len: u64,
    compression: Option<Compression>,
    /// Whether others may store it in another way.
    moves: bool,
    /// Rows are written by those who need not take turns.
    by_regions: bool,
    durable: bool,
}

impl Kind {
    fn unit(&self, value: u64) -> Vec<u8> {
        // The first row says it all; the others let blocks be of different lengths.
        let rows =
            (0..self.unit_len).map(|row| if row == 0 { value } else { value.wrapping_mul(row | 1 << 40) });
        bytes(&rows.collect::<Vec<_>>())
    }

    fn create(&self, disk: &Disk) {
        let store = Store::create_in(Box::new(disk.process())).unwrap();
        let rows: Vec<u8> = (0..self.n_units).flat_map(|_| self.unit(0)).collect();
        store.save_as(&[("a", array(&rows))], self.compression.as_ref()).unwrap();
        store.set_durable(true);
        // Blocks that are dead, and may be written again.
        store.replace_range("a", 0..self.unit_len, array(&self.unit(0))).unwrap();
    }

    fn write(&self, store: &Store, first: u64, written: &[u64]) -> Result<(), StoreError> {
        let rows: Vec<u8> = written.iter().flat_map(|value| self.unit(*value)).collect();
        let start = first * self.unit_len;
        match self.by_regions {
            true => store.write_rows("a", start, array(&rows)),
            false => store.replace_range("a", start..start + rows.len() as u64 / 8, array(&rows)),
        }
    }

    fn read(&self, store: &Store) -> Result<Vec<u64>, StoreError> {
        let array = store.array("a")?;
        let mut out = vec![0xa5; array.nbytes() as usize];
        array.read_into(&mut out)?;
        let units = out.chunks_exact(8 * self.unit_len as usize).take(self.n_units as usize);
        let units = units.map(|unit| {
            let value = values(&unit[..8])[0];
            assert!(unit == self.unit(value), "a unit is torn: {:?}", &values(unit)[..4.min(unit.len() / 8)]);
            value
        });
        Ok(units.collect())
    }
}

type Events = Arc<Mutex<BTreeMap<u64, Vec<Event<Did>>>>>;

/// Writes down what a client did to each of the units.
fn note(events: &Events, client: usize, times: (u64, Option<u64>), units: impl Iterator<Item = (u64, Did)>) {
    let mut events = events.lock().unwrap();
    for (unit, op) in units {
        events.entry(unit).or_default().push(Event { client, start: times.0, end: times.1, op });
    }
}

/// A client that does `n` things; `false` if it died.
fn client(
    kind: Kind,
    process: &Process,
    disk: &Disk,
    number: usize,
    n: usize,
    events: &Events,
    mut rng: Rng,
) {
    let alive = |result: Result<Vec<u64>, StoreError>| match result {
        _ if process.is_dead() => None,
        result => Some(result.unwrap()),
    };
    let Ok(store) = process.open(Access::Write) else { return assert!(process.is_dead()) };
    store.set_durable(kind.durable);
    for _ in 0..n {
        let start = disk.now();
        match rng.below(8) {
            0..=2 => {
                let first = rng.below(kind.n_units);
                let n = (1 + rng.below(2)).min(kind.n_units - first);
                let written: Vec<u64> = (0..n).map(|unit| 1 + start + 1000 * unit).collect();
                let done = alive(kind.write(&store, first, &written).map(|()| Vec::new()));
                let writes = (first..).zip(written).map(|(unit, value)| (unit, Did::Write(value)));
                note(events, number, (start, done.as_ref().map(|_| disk.now())), writes);
                if done.is_none() {
                    return;
                }
            }
            3 => drop(alive(store.append(&[("a", array(&bytes(&[7])))]).map(|()| Vec::new()))),
            4 if kind.moves => {
                let to = rng.one_in(2).then_some(BLOCKS);
                drop(alive(store.recompress("a", to.as_ref(), &mut |_| ()).map(|_| Vec::new())));
            }
            4 => drop(alive(store.compact("a").map(|_| Vec::new()))),
            _ => {
                let Some(read) = alive(kind.read(&store)) else { return };
                let reads = (0..).zip(read).map(|(unit, value)| (unit, Did::Read(value)));
                note(events, number, (start, Some(disk.now())), reads);
            }
        }
        if process.is_dead() {
            return;
        }
    }
}

fn together(kind: Kind, template: &Template, n_mortal: usize) {
    let disk = template.disk();
    let events = Events::default();
    let clients = (0..3).map(|number| {
        let life = if number < n_mortal { 1 + random().below(300) } else { u64::MAX };
        let (process, rng) = (disk.mortal(life), random());
        let (disk, events) = (disk.clone(), Arc::clone(&events));
        thread::spawn(move || client(kind, &process, &disk, number, 3, &events, rng))
    });
    let clients: Vec<_> = clients.collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let start = disk.now();
    let last = kind.read(&disk.process().open(Access::Read).unwrap()).unwrap();
    let reads = (0..).zip(last).map(|(unit, value)| (unit, Did::Read(value)));
    note(&events, 3, (start, Some(disk.now())), reads);
    for unit in events.lock().unwrap().values() {
        assert_explained(Register(0), unit);
    }
}

const ROWS: Kind =
    Kind { n_units: 3, unit_len: 1, compression: None, moves: false, by_regions: true, durable: false };
const IN_BLOCKS: Kind =
    Kind { unit_len: BLOCK_LEN / 8, compression: Some(BLOCKS), by_regions: false, ..ROWS };

fn check(what: &str, kind: Kind, n_mortal: usize) {
    let template = Template::new(move |disk| kind.create(disk));
    explore(what, move || together(kind, &template, n_mortal));
}

#[test]
fn rows_that_are_written_in_place_are_read_as_they_were_written() {
    check("rows written in place", ROWS, 0);
}

#[test]
fn rows_are_not_lost_that_are_written_while_the_array_moves() {
    check("rows of an array that moves", Kind { moves: true, ..ROWS }, 1);
}

#[test]
fn blocks_are_read_as_they_were_committed_whatever_is_written_over_them() {
    check("blocks that are written again", IN_BLOCKS, 0);
}

#[test]
fn blocks_on_the_disk_make_room_for_others() {
    check("blocks that make room", Kind { durable: true, ..IN_BLOCKS }, 1);
}
