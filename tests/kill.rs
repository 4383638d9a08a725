//! Writers that are killed: whatever the moment, the store opens, and each operation is there wholly or not at all.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{blocks, rng};
use numpack::store::{Access, Array, Compression, Dtype, Filter, NewArray, Store};
use numpack::sys::DirStorage;

/// Rounds: each starts a writer and kills it. `NUMPACK_TEST_CASES` sets another number.
const N_ROUNDS: u64 = 120;
/// Tells a process of this test that it is a writer: the store's path and the number of its first operation.
const WRITER: &str = "NUMPACK_TEST_WRITER";

fn rows(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn array(data: &[u8]) -> NewArray<'_> {
    NewArray {
        dtype: Dtype::parse_python("'<u4'").unwrap(),
        shape: vec![data.len() as u64 / 4],
        fortran_order: false,
        data,
    }
}

/// As small as can be: every array that is not short has several.
const BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: Some(Filter::Shuffle) };

/// What operation `n` does to the array that it is about, if that is there.
enum Operation {
    Save(Vec<u32>, Option<Compression>),
    Append(Vec<u32>),
    /// Only what is compressed is written in one commit.
    ReplaceBlocks(usize, Vec<u32>),
    WriteBlocksBack(usize, Vec<u32>),
    DropFirstRow,
    Compact,
    Recompress(Option<Compression>),
    Remove,
}

fn operation(n: u32) -> (String, Operation) {
    let name = format!("array{}", n % 3);
    // Some blocks' worth of elements that do not compress.
    let values: Vec<u32> = (0..n % 2000 + 1).map(|i| (n ^ i).wrapping_mul(2_654_435_761)).collect();
    let at = (n * 7 % 3000) as usize;
    let compression = (!n.is_multiple_of(4)).then_some(BLOCKS);
    let operation = match n / 3 % 16 {
        0 | 9 => Operation::Save(values, compression),
        3 => Operation::DropFirstRow,
        1 | 6 | 12 => Operation::Append(values),
        7 if n.is_multiple_of(5) => Operation::Remove,
        8 => Operation::Compact,
        13 => Operation::Recompress(compression),
        5 | 10 | 15 => Operation::WriteBlocksBack(at, values),
        _ => Operation::ReplaceBlocks(at, values),
    };
    (name, operation)
}

/// The part of `values` that fits, put over elements from `at` on.
fn fitting(len: usize, at: usize, values: &[u32]) -> Option<&[u32]> {
    Some(&values[..values.len().min(len.checked_sub(at)?)])
}

/// Elements, and whether they are compressed.
type Model = BTreeMap<String, (Vec<u32>, bool)>;

fn apply(model: &mut Model, n: u32) {
    let (name, operation) = operation(n);
    match (operation, model.get_mut(&name)) {
        (Operation::Save(values, to), _) => drop(model.insert(name, (values, to.is_some()))),
        (Operation::Append(values), Some((array, _))) => array.extend(values),
        (
            Operation::ReplaceBlocks(at, values) | Operation::WriteBlocksBack(at, values),
            Some((array, true)),
        ) => {
            if let Some(values) = fitting(array.len(), at, &values) {
                array[at..at + values.len()].copy_from_slice(values);
            }
        }
        (Operation::DropFirstRow, Some((array, _))) if !array.is_empty() => drop(array.remove(0)),
        (Operation::Recompress(to), Some((_, is_compressed))) => *is_compressed = to.is_some(),
        (Operation::Remove, Some(_)) => drop(model.remove(&name)),
        _ => {}
    }
}

fn run(store: &Store, n: u32) {
    let (name, operation) = operation(n);
    store.refresh().unwrap();
    let there = store.contains(&name).then(|| store.array(&name).unwrap());
    match (operation, there) {
        (Operation::Save(values, to), _) => {
            store.save_as(&[(&name, array(&rows(&values)))], to.as_ref()).unwrap();
        }
        (Operation::Append(values), Some(_)) => store.append(&[(&name, array(&rows(&values)))]).unwrap(),
        (Operation::ReplaceBlocks(at, values), Some(there)) if there.codec().is_some() => {
            if let Some(values) = fitting(there.n_rows() as usize, at, &values) {
                let range = at as u64..(at + values.len()) as u64;
                store.replace_range(&name, range, array(&rows(values))).unwrap();
            }
        }
        (Operation::WriteBlocksBack(at, values), Some(there)) if there.codec().is_some() => {
            if let Some(values) = fitting(there.n_rows() as usize, at, &values) {
                there.write_back(&[(there.header_len() + 4 * at as u64, &rows(values))]).unwrap();
            }
        }
        (Operation::DropFirstRow, _) => store.drop_rows(&[&name], &[0]).unwrap(),
        (Operation::Compact, Some(_)) => drop(store.compact(&name).unwrap()),
        (Operation::Recompress(to), Some(_)) => {
            store.recompress(&name, to.as_ref(), &mut |_| ()).unwrap();
        }
        (Operation::Remove, _) => drop(store.remove(&[&name]).unwrap()),
        _ => {}
    }
}

fn elements(array: &Array) -> Vec<u32> {
    let mut bytes = vec![0; array.nbytes() as usize];
    array.read_into(&mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn read(store: &Store) -> Model {
    let arrays = store.arrays().unwrap();
    let content = |array: &Array| (elements(array), array.codec().is_some());
    arrays.iter().map(|array| (array.name().to_string(), content(array))).collect()
}

/// Not a test of its own: what a writer process runs. It says the number of each operation that is done.
#[test]
fn writer_process() {
    let Ok(task) = std::env::var(WRITER) else { return };
    let (first, path) = task.split_once(' ').expect("a number and a path");
    let store = Store::open(Path::new(path), Access::Write).unwrap();
    let mut stdout = std::io::stdout().lock();
    for n in first.parse().expect("a number").. {
        run(&store, n);
        // Who is not read any more ends here.
        if writeln!(stdout, "done {n}").and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}

fn start_writer(path: &Path, first: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["writer_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(WRITER, format!("{first} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The numbers of the operations that a writer said were done before it was killed.
fn last_done(writer: &mut Child) -> Option<u32> {
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| line.split_once("done ")?.1.parse().ok()).last()
}

#[test]
fn a_killed_writer_leaves_each_operation_wholly_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npk");
    drop(Store::create(&path).unwrap());
    let mut model = Model::new();
    let mut next = 0;
    let (mut n_done, mut n_halfway) = (0, 0);
    let mut held: Vec<Array> = Vec::new();
    let n_rounds = rng::n_cases(N_ROUNDS);
    for round in 0..n_rounds {
        let reader = Store::open(&path, Access::Read).unwrap();
        held.extend(reader.names().iter().map(|name| reader.array(name).unwrap()));
        let mut writer = start_writer(&path, next);
        // Delays of all lengths up to that of some hundred operations, start-up included.
        std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        writer.kill().unwrap();
        let done = last_done(&mut writer);
        writer.wait().unwrap();
        let found = read(&Store::open(&path, Access::Read).unwrap());
        let end = done.map_or(next, |done| done + 1);
        (next..end).for_each(|n| apply(&mut model, n));
        n_done += end - next;
        next = end;
        if found != model {
            // One more, which was made but not said.
            apply(&mut model, next);
            next += 1;
            n_halfway += 1;
        }
        assert!(found == model, "round {round}: operation {next} is half done");
        blocks::assert_whole(&DirStorage::open(&path).unwrap());
        // Whoever holds on to an array reads it, also if it is gone, and as it is if it has all its rows.
        for array in &held {
            let elements = elements(array);
            let now = reader.array(array.name()).ok().filter(|now| now.id() == array.id());
            if let Some(now) = now.filter(|now| now.n_deleted() == array.n_deleted()) {
                let (expected, _) = &model[&**now.name()];
                assert!(elements == expected[..elements.len()], "round {round}: {array:?}");
            }
        }
        held.drain(..held.len().saturating_sub(6));
    }
    println!(
        "{n_rounds} writers killed after {n_done} operations; {n_halfway} between a commit and its report"
    );
    rng::covered(n_rounds, "writers killed");
    assert!(n_done > 0, "no writer ever got to work");
    // What they left behind goes with the next write.
    let store = Store::open(&path, Access::Write).unwrap();
    run(&store, 0);
    drop(store);
    let report = numpack::store::verify(&path).unwrap();
    assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{report:?}");
}

#[test]
fn two_writers_at_once_lose_no_append_and_a_killed_one_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npk");
    let store = Store::create(&path).unwrap();
    store.save(&[("a", array(&rows(&[0])))]).unwrap();
    std::thread::scope(|scope| {
        for writer in 1..=4_u32 {
            let path = &path;
            scope.spawn(move || {
                let store = Store::open(path, Access::Write).unwrap();
                for i in 0..250 {
                    store.append(&[("a", array(&rows(&[writer * 1000 + i])))]).unwrap();
                }
            });
        }
        let mut victims: Vec<Child> = (0..5).map(|i| start_writer(&path, i * 100)).collect();
        for victim in &mut victims {
            std::thread::sleep(Duration::from_millis(5));
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
    });
    let (mut values, _) = read(&Store::open(&path, Access::Read).unwrap()).remove("a").unwrap();
    values.sort_unstable();
    let expected: Vec<u32> =
        std::iter::once(0).chain((1..=4).flat_map(|w| (0..250).map(move |i| w * 1000 + i))).collect();
    assert_eq!(values, expected);
}
