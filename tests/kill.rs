//! Writers that are killed: whatever the moment, the store opens, and each operation is there wholly or not at all.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use numpack::store::{Access, Dtype, NewArray, Store};

/// Rounds: each starts a writer and kills it.
const N_ROUNDS: u32 = 120;
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

/// What operation `n` does to the array that it is about: `None` for an array that is not there.
enum Operation {
    Save(Vec<u32>),
    Append(Vec<u32>),
    DropFirstRow,
    Remove,
}

fn operation(n: u32) -> (String, Operation) {
    let name = format!("array{}", n % 3);
    let values: Vec<u32> = (0..n % 2000 + 1).map(|i| n ^ i).collect();
    let operation = match n / 3 % 7 {
        0 | 4 => Operation::Save(values),
        3 => Operation::DropFirstRow,
        6 if n.is_multiple_of(5) => Operation::Remove,
        _ => Operation::Append(values),
    };
    (name, operation)
}

type Model = BTreeMap<String, Vec<u32>>;

fn apply(model: &mut Model, n: u32) {
    let (name, operation) = operation(n);
    match (operation, model.get_mut(&name)) {
        (Operation::Save(values), _) => drop(model.insert(name, values)),
        (Operation::Append(values), Some(array)) => array.extend(values),
        (Operation::DropFirstRow, Some(array)) if !array.is_empty() => drop(array.remove(0)),
        (Operation::Remove, Some(_)) => drop(model.remove(&name)),
        _ => {}
    }
}

fn run(store: &Store, n: u32) {
    let (name, operation) = operation(n);
    let is_there = store.refresh().is_ok() && store.contains(&name);
    match operation {
        Operation::Save(values) => store.save(&[(&name, array(&rows(&values)))]).unwrap(),
        Operation::Append(values) if is_there => store.append(&[(&name, array(&rows(&values)))]).unwrap(),
        Operation::DropFirstRow => store.drop_rows(&[&name], &[0]).unwrap(),
        Operation::Remove => drop(store.remove(&[&name]).unwrap()),
        Operation::Append(_) => {}
    }
}

fn read(store: &Store) -> Model {
    let arrays = store.arrays().unwrap();
    arrays
        .iter()
        .map(|array| {
            let mut bytes = vec![0; array.nbytes() as usize];
            array.read_into(&mut bytes).unwrap();
            let values = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            (array.name().to_string(), values)
        })
        .collect()
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
    for round in 0..N_ROUNDS {
        let mut writer = start_writer(&path, next);
        // Delays of all lengths up to that of some hundred operations, start-up included.
        std::thread::sleep(Duration::from_micros(u64::from(round * 7919 % 40_000)));
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
    }
    println!(
        "{N_ROUNDS} writers killed after {n_done} operations; {n_halfway} between a commit and its report"
    );
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
    let mut values = read(&Store::open(&path, Access::Read).unwrap()).remove("a").unwrap();
    values.sort_unstable();
    let expected: Vec<u32> =
        std::iter::once(0).chain((1..=4).flat_map(|w| (0..250).map(move |i| w * 1000 + i))).collect();
    assert_eq!(values, expected);
}
