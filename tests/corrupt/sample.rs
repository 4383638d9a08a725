//! A small store to be damaged, as the bytes of its files, and what is seen of it afterwards.

use std::collections::BTreeMap;

use numpack::format::{Edit, Table, frame};
use numpack::store::{Access, Array, Attrs, Compression, Dtype, Report, Store, StoreError, verify_storage};
use numpack::sys::{FileAccess, Storage};

use crate::common::MemStorage;
use crate::common::model::{Content, Model};
use crate::common::ops::Op;
use crate::common::random::content;
use crate::common::rng::Rng;

pub const MANIFEST: &str = "metadata.npkm";

/// Arrays with more rows than this have none with bytes.
const MANY_ROWS: u64 = 1 << 16;

#[derive(Clone)]
pub struct Sample {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The state after each frame.
    pub states: Vec<Model>,
    /// Where each frame ends; the first is the snapshot.
    pub frame_ends: Vec<usize>,
}

/// Several frames: arrays of several kinds, rows dropped, appended and replaced, a removed and a renamed array,
/// attributes.
pub fn sample() -> Sample {
    let mut rng = Rng::new(3);
    let r = &mut rng;
    let u16s = |r: &mut Rng, shape: &[u64], fortran_order| {
        content(r, Dtype::parse_python("'<u2'").expect("a dtype"), shape, fortran_order)
    };
    let structured = Dtype::parse_python("[('x', '<f4'), ('', '|V1'), ('y', '|S3', (2,))]").expect("a dtype");
    let attrs = |key: &str| -> Attrs { [(key.to_owned(), rmpv::Value::from("value"))].into() };
    let ops = [
        Op::Save(vec![
            ("a".to_owned(), u16s(r, &[6, 3], false)),
            ("gone".to_owned(), u16s(r, &[2], false)),
            ("f".to_owned(), u16s(r, &[2, 3], true)),
        ]),
        Op::Save(vec![("g/\u{e9}".to_owned(), content(r, structured, &[2], false))]),
        Op::DropRows { names: vec!["a".to_owned()], rows: vec![1, 4] },
        Op::Append(vec![("a".to_owned(), u16s(r, &[2, 3], false))]),
        Op::SetAttrs { name: Some("f".to_owned()), set: attrs("unit"), remove: vec![] },
        Op::SetAttrs { name: None, set: attrs("title"), remove: vec![] },
        Op::Remove(vec!["gone".to_owned()]),
        Op::Rename { from: "f".to_owned(), to: "renamed".to_owned(), overwrite: false },
        Op::Save(vec![("scalar".to_owned(), u16s(r, &[], false))]),
    ];
    let memory = MemStorage::new();
    let store = Store::create_in(Box::new(memory.clone())).expect("creates");
    let len = || read(&memory, MANIFEST).len();
    let mut sample =
        Sample { files: BTreeMap::new(), states: vec![Model::default()], frame_ends: vec![len()] };
    for op in ops {
        let mut model = sample.states.last().expect("there is one").clone();
        op.apply(&mut model).expect("fits");
        op.run(&store).expect("works");
        sample.states.push(model);
        sample.frame_ends.push(len());
    }
    for name in memory.list().expect("lists").into_iter().filter(|name| name != "metadata.npkm.bak") {
        sample.files.insert(name.clone(), read(&memory, &name));
    }
    sample
}

/// The same in one frame.
pub fn snapshot_of(sample: &Sample) -> Sample {
    let snapshot = frame::encode(&table_of(sample).encode(), 0).expect("is short");
    let mut manifest = sample.files[MANIFEST][..frame::HEADER_LEN].to_vec();
    manifest.extend(snapshot);
    let mut files = sample.files.clone();
    let frame_ends = vec![manifest.len()];
    files.insert(MANIFEST.to_owned(), manifest);
    Sample { files, states: vec![sample.last().clone()], frame_ends }
}

/// The payloads of the frames.
pub fn payloads(manifest: &[u8]) -> Vec<Vec<u8>> {
    let mut log = frame::Log::new(&manifest[frame::HEADER_LEN..], frame::HEADER_LEN as u64);
    std::iter::from_fn(|| log.next().expect("is good").map(|frame| frame.payload.to_vec())).collect()
}

fn table_of(sample: &Sample) -> Table {
    let payloads = payloads(&sample.files[MANIFEST]);
    let mut table = Table::decode(&payloads[0], 0).expect("decodes");
    for payload in &payloads[1..] {
        table.apply(&Edit::decode(payload, 0).expect("decodes"), &mut |_| ()).expect("fits");
    }
    table
}

impl Sample {
    pub fn last(&self) -> &Model {
        self.states.last().expect("there is one")
    }

    pub fn storage(&self) -> MemStorage {
        let memory = MemStorage::new();
        for (name, bytes) in &self.files {
            put(&memory, name, bytes);
        }
        memory
    }

    /// The store with other bytes for one of its files.
    pub fn with(&self, name: &str, bytes: &[u8]) -> MemStorage {
        let memory = self.storage();
        put(&memory, name, bytes);
        memory
    }

    /// The store with these payloads in its manifest.
    pub fn with_payloads(&self, payloads: &[Vec<u8>]) -> MemStorage {
        let mut manifest = self.files[MANIFEST][..frame::HEADER_LEN].to_vec();
        for payload in payloads {
            manifest.extend(frame::encode(payload, 0).expect("is short"));
        }
        self.with(MANIFEST, &manifest)
    }

    pub fn data_files(&self) -> Vec<&String> {
        self.files.keys().filter(|name| name.starts_with("data_")).collect()
    }
}

pub fn put(memory: &MemStorage, name: &str, bytes: &[u8]) {
    let file = memory.create_unnamed().expect("creates");
    file.write_at(bytes, 0).expect("writes");
    memory.replace(&file, name).expect("replaces");
}

pub fn read(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let file = storage.open(name, FileAccess::Read).expect("opens");
    let mut bytes = vec![0; file.stat().expect("stat").len as usize];
    file.read_at(&mut bytes, 0).expect("reads");
    bytes
}

/// What is seen of a store by who reads all of it.
#[derive(Debug)]
pub struct Seen {
    pub attrs: Attrs,
    pub default_compression: Option<Compression>,
    pub arrays: Vec<(String, Result<Content, StoreError>)>,
    pub report: Report,
}

/// Looks at everything that can be looked at.
pub fn look(storage: &MemStorage) -> Result<Seen, StoreError> {
    let opened = Store::with_storage(Box::new(storage.clone()), Access::Read);
    let report = verify_storage(Box::new(storage.clone()));
    let store = match opened {
        Ok(store) => store,
        Err(error) => {
            assert!(report.is_err() || !report.expect("verifies").problems.is_empty());
            assert!(!error.to_string().is_empty());
            return Err(error);
        }
    };
    let arrays = store.arrays()?;
    let look = |array: &Array| (array.name().to_string(), look_at(array));
    Ok(Seen {
        attrs: store.attrs(),
        default_compression: store.default_compression(),
        arrays: arrays.iter().map(look).collect(),
        report: report.expect("verifies what opens"),
    })
}

fn look_at(array: &Array) -> Result<Content, StoreError> {
    array.pin()?;
    let _ = (array.modified()?, array.backing()?, array.map()?.map(|map| map.len()), array.map_npy()?);
    let n_rows = array.n_rows();
    if n_rows > 0 {
        let row_len = array.row_len() as usize;
        array.gather_into(&[0, n_rows - 1], &mut vec![0; 2 * row_len])?;
        array.read_rows_into(n_rows - 1..n_rows, &mut vec![0; row_len])?;
    }
    let mut npy = vec![0; array.npy_len().min(1 << 16) as usize];
    array.read_npy_at(0, &mut npy)?;
    array.read_npy_at(array.npy_len() - 1, &mut [0; 2])?;
    if n_rows > MANY_ROWS {
        assert_eq!(array.nbytes(), 0, "the file is short");
        let dtype = array.dtype().clone();
        return Ok(Content { attrs: array.attrs().clone(), ..Content::new(dtype, &[0], false, &[]) });
    }
    let content = Content::read(array)?;
    assert_eq!(npy[array.header_len() as usize..], content.stored_bytes());
    Ok(content)
}

impl Seen {
    /// The state, if all of it could be read.
    pub fn model(&self) -> Option<Model> {
        let arrays =
            self.arrays.iter().map(|(name, content)| Some((name.clone(), content.as_ref().ok()?.clone())));
        let default_compression = self.default_compression;
        Some(Model { attrs: self.attrs.clone(), arrays: arrays.collect::<Option<_>>()?, default_compression })
    }
}
