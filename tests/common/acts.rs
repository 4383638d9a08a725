//! What programs do with the files of a mount, and what each name had meanwhile: for those who end the process that serves
//! it, or the power.

use numpack::store::{Store, StoreError};

use super::rng::Rng;

pub const NAMES: [&str; 3] = ["a", "b", "g"];
pub const HEADER_LEN: u64 = 128;

/// What a program does with a mount.
#[derive(Debug, Clone)]
pub enum Act {
    /// Makes a file of these numbers, in pieces of so many bytes.
    Make {
        name: usize,
        values: std::ops::Range<u32>,
        piece: usize,
        sync: bool,
    },
    /// Writes over bytes of a file, from an offset in its elements on.
    Write {
        name: usize,
        offset: u64,
        len: u64,
        fill: u8,
        sync: bool,
    },
    Rename {
        from: usize,
        to: usize,
    },
    Remove {
        name: usize,
    },
}

/// A `.npy` file as `numpy.save` writes it.
pub fn npy(values: std::ops::Range<u32>) -> Vec<u8> {
    let text = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(format!("{text:<117}\n").as_bytes());
    bytes.extend(values.flat_map(u32::to_le_bytes));
    bytes
}

/// What a name had at some time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Value {
    pub bytes: Option<Vec<u8>>,
    /// Of which array: what is written in place to one shows in no other.
    pub version: usize,
}

/// All that the names had, the last at the end.
#[derive(Clone)]
pub struct History {
    pub values: [Vec<Value>; NAMES.len()],
    /// What is on the disk for certain.
    floor: [usize; NAMES.len()],
    n_versions: usize,
}

impl History {
    pub fn new() -> Self {
        Self { values: std::array::from_fn(|_| vec![Value::default()]), floor: [0; 3], n_versions: 0 }
    }

    /// Begins with what is in a store.
    pub fn of(store: &Store) -> Self {
        let mut history = Self::new();
        for (version, name) in (1..).zip(NAMES) {
            let bytes = read(store, name).expect("reads");
            history.values[version - 1] = vec![Value { bytes, version }];
        }
        Self { n_versions: NAMES.len(), ..history }
    }

    pub fn last(&self, name: usize) -> &Value {
        self.values[name].last().expect("there is one")
    }

    pub fn has(&self, name: usize) -> bool {
        self.last(name).bytes.is_some()
    }

    /// Something is there that is as it was before or as it is now.
    pub fn push(&mut self, name: usize, value: Value) {
        self.values[name].push(value);
    }

    pub fn note(&mut self, act: &Act) {
        match act {
            Act::Make { name, values, .. } => {
                self.n_versions += 1;
                let version = self.n_versions;
                self.push(*name, Value { bytes: Some(npy(values.clone())), version });
            }
            Act::Write { name, offset, len, fill, .. } => {
                let mut value = self.last(*name).clone();
                let bytes = value.bytes.as_mut().expect("is there");
                bytes[(HEADER_LEN + offset) as usize..][..*len as usize].fill(*fill);
                self.push(*name, value);
            }
            Act::Rename { from, to } => {
                let value = self.last(*from).clone();
                self.push(*to, value);
                self.push(*from, Value::default());
            }
            Act::Remove { name } => self.push(*name, Value::default()),
        }
    }

    pub fn synced(&mut self) {
        self.floor = std::array::from_fn(|name| self.values[name].len() - 1);
    }

    /// Checks what is left after a loss of power.
    pub fn assert_after_power_loss(&self, left: &Store, is_compressed: bool, told: &str) {
        // What was written to an array shows in it also if its new name was lost.
        let written = self.values.iter().zip(self.floor).flat_map(|(values, floor)| &values[floor..]);
        let written: Vec<Value> = written.cloned().collect();
        for (name, values) in self.values.iter().enumerate() {
            let since = &values[self.floor[name]..];
            let is_same_array = since.iter().all(|value| value.version == since[0].version);
            match read(left, NAMES[name]) {
                Ok(found) => {
                    let is_one = |value: &Value| value.bytes == found || is_mixture(&written, value, &found);
                    let may_be = |value| !is_compressed && is_one(value) || value.bytes == found;
                    assert!(
                        since.iter().any(may_be),
                        "{told}: {:?} was never so: {}",
                        NAMES[name],
                        difference(since, &found)
                    );
                }
                Err(error) => assert!(!is_same_array, "{told}: {:?}: {error}", NAMES[name]),
            }
        }
    }

    /// Checks what is left after the death of the process, during or after the last operation.
    pub fn assert_after_death(&self, before: &Self, left: &Store, is_compressed: bool, told: &str) {
        for (name, values) in self.values.iter().enumerate() {
            let since = &values[before.values[name].len() - 1..];
            let found = read(left, NAMES[name]).unwrap_or_else(|error| panic!("{told}: {error}"));
            let may_be = |value: &Value| {
                value.bytes == found || !is_compressed && is_mixture_without_zeros(since, value, &found)
            };
            let is_one = since.iter().any(may_be);
            assert!(
                is_one,
                "{told}: {:?} is neither old nor new: {}",
                NAMES[name],
                difference(since, &found)
            );
        }
    }
}

/// Whether each byte of `found` is of some time of the array of `value`, or zero.
pub fn is_mixture(since: &[Value], value: &Value, found: &Option<Vec<u8>>) -> bool {
    is_mixed(since, value, found, true)
}

pub fn is_mixture_without_zeros(since: &[Value], value: &Value, found: &Option<Vec<u8>>) -> bool {
    is_mixed(since, value, found, false)
}

pub fn is_mixed(since: &[Value], value: &Value, found: &Option<Vec<u8>>, or_zero: bool) -> bool {
    let Some(found) = found else { return false };
    let own: Vec<&Vec<u8>> = since
        .iter()
        .filter(|other| other.version == value.version)
        .filter_map(|other| other.bytes.as_ref())
        .filter(|bytes| bytes.len() == found.len())
        .collect();
    !own.is_empty()
        && (0..found.len())
            .all(|at| or_zero && found[at] == 0 || own.iter().any(|bytes| bytes[at] == found[at]))
}

/// The file that a mount shows for an array; `None` if there is none.
fn read(store: &Store, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let array = match store.array(name) {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        array => array?,
    };
    let mut bytes = vec![0; array.npy_len() as usize];
    array.read_npy_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

/// Where something differs from all that it was, for whoever reads that a test failed.
pub fn difference(since: &[Value], found: &Option<Vec<u8>>) -> String {
    let Some(found) = found else { return "it is missing".to_owned() };
    let first = |value: &Value| {
        let bytes = value.bytes.as_ref()?;
        let at = (0..found.len().min(bytes.len())).find(|at| found[*at] != bytes[*at]);
        Some(format!("{} bytes of version {}, first other byte {at:?}", bytes.len(), value.version))
    };
    let others: Vec<Option<String>> = since.iter().map(first).collect();
    format!("{} bytes; {others:?}", found.len())
}

/// `n` things that a program may do, one after the other.
pub fn acts(rng: &mut Rng, n: usize) -> Vec<Act> {
    let mut history = History::new();
    let next = |_| {
        let act = act(rng, &history, 4000);
        history.note(&act);
        act
    };
    (0..n).map(next).collect()
}

/// Something that a program may do next; files that it makes have up to `max_len` numbers.
pub fn act(rng: &mut Rng, history: &History, max_len: u64) -> Act {
    loop {
        let name = rng.below(3) as usize;
        let sync = rng.one_in(3);
        return match rng.below(7) {
            _ if !history.has(name) => {
                let first = rng.next() as u32 >> 8;
                let values = first..first + 1 + rng.below(max_len) as u32;
                Act::Make { name, values, piece: 1000 + rng.below(9000) as usize, sync }
            }
            0..5 => {
                let len = history.last(name).bytes.as_ref().expect("is there").len() as u64 - HEADER_LEN;
                let offset = rng.below(len);
                let len = 1 + rng.below((len - offset).min(6000));
                Act::Write { name, offset, len, fill: rng.next() as u8, sync }
            }
            5 => match rng.below(3) as usize {
                to if to == name => continue,
                to => Act::Rename { from: name, to },
            },
            _ => Act::Remove { name },
        };
    }
}

/// The file of a name.
pub fn file_name(name: usize) -> String {
    format!("{}.npy", NAMES[name])
}
