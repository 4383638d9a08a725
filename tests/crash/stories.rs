//! Sequences of operations that a process may die in.

use numpack::store::{Attrs, Compression, Dtype, Filter};
use rmpv::Value;

use crate::common::model::{Content, Model};
use crate::common::ops::Op;
use crate::common::random;
use crate::common::rng::Rng;

pub struct Story {
    pub name: &'static str,
    pub durable: bool,
    pub ops: Vec<Op>,
}

impl Story {
    /// Whether it is about compressed arrays: such stories are long, and told less often.
    pub fn has_blocks(&self) -> bool {
        self.name.ends_with("blocks")
    }

    /// `n` random operations, all of which a store must do.
    pub fn random(rng: &mut Rng, n: usize, durable: bool) -> Self {
        let mut model = Model::default();
        let mut ops = Vec::new();
        while ops.len() < n {
            let op = random::op(rng, &model);
            if op.apply(&mut model).is_ok() {
                ops.push(op);
            }
        }
        Story { name: "random", durable, ops }
    }
}

fn u16s(rng: &mut Rng, shape: &[u64], fortran_order: bool) -> Content {
    random::content(rng, Dtype::parse_python("'<u2'").expect("a dtype"), shape, fortran_order)
}

/// With a filter: to choose one takes longer than all else.
const SMALL_BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: Some(Filter::Shuffle) };

/// Rows that count upwards, in small blocks.
fn counting(rng: &mut Rng, shape: &[u64], fortran_order: bool) -> Content {
    let len = 2 * shape.iter().product::<u64>() as usize;
    let first = rng.next() as u16;
    let bytes: Vec<u8> = (0..len / 2).flat_map(|i| first.wrapping_add(i as u16).to_le_bytes()).collect();
    let dtype = Dtype::parse_python("'<u2'").expect("a dtype");
    Content { compression: Some(SMALL_BLOCKS), ..Content::new(dtype, shape, fortran_order, &bytes) }
}

/// Rows that do not compress, in small blocks.
fn noise(rng: &mut Rng, shape: &[u64]) -> Content {
    Content { compression: Some(SMALL_BLOCKS), ..u16s(rng, shape, false) }
}

fn name(name: &str) -> String {
    name.to_owned()
}

fn large_attrs(rng: &mut Rng, name: Option<&str>) -> Op {
    let set: Attrs = [("large".to_owned(), Value::Binary(rng.bytes(100_000)))].into();
    Op::SetAttrs { name: name.map(str::to_owned), set, remove: vec![] }
}

/// What everybody does with a store, each story once with and once without `durable`.
pub fn stories() -> Vec<Story> {
    let mut rng = Rng::new(7);
    let r = &mut rng;
    let three = |r: &mut Rng| {
        Op::Save(vec![
            (name("a"), u16s(r, &[5, 3], false)),
            (name("b"), u16s(r, &[4], false)),
            (name("f"), u16s(r, &[3, 4], true)),
        ])
    };
    let mut stories = vec![
        (
            "save",
            vec![
                three(r),
                // More than a page, another shape, and a new one.
                Op::Save(vec![(name("a"), u16s(r, &[50, 60], false)), (name("c"), u16s(r, &[], false))]),
                Op::Save(vec![(name("a"), u16s(r, &[0, 2], false)), (name("b"), u16s(r, &[1], false))]),
                Op::Remove(vec![name("a"), name("c")]),
                Op::Save(vec![(name("a"), u16s(r, &[2], false))]),
            ],
        ),
        (
            "append",
            vec![
                three(r),
                Op::Append(vec![(name("a"), u16s(r, &[2, 3], false)), (name("b"), u16s(r, &[3], false))]),
                Op::Append(vec![(name("f"), u16s(r, &[1, 4], false)), (name("b"), u16s(r, &[1], false))]),
                Op::Append(vec![(name("a"), u16s(r, &[2000, 3], false))]),
            ],
        ),
        (
            "write in place",
            vec![
                three(r),
                Op::Replace { name: name("a"), rows: vec![4, 0, 1, 4], data: u16s(r, &[4, 3], false) },
                Op::ReplaceRange { name: name("f"), rows: 0..2, data: u16s(r, &[2, 4], false) },
                Op::WriteNpy { name: name("b"), offset: 1, header_len: 0, data: vec![1, 2, 3] },
            ],
        ),
        (
            "drop rows",
            vec![
                three(r),
                Op::DropRows { names: vec![name("a"), name("f")], rows: vec![1, 3] },
                Op::Append(vec![(name("a"), u16s(r, &[2, 3], false))]),
                Op::Replace { name: name("a"), rows: vec![1, 2], data: u16s(r, &[2, 3], false) },
                Op::DropRows { names: vec![name("a"), name("b")], rows: vec![0] },
                Op::Compact(name("a")),
                Op::DropRows { names: vec![name("b")], rows: (0..9).collect() },
            ],
        ),
        (
            "rename and remove",
            vec![
                three(r),
                Op::Rename { from: name("a"), to: name("z"), overwrite: false },
                Op::Rename { from: name("b"), to: name("f"), overwrite: true },
                Op::Save(vec![(name("a"), u16s(r, &[2], false))]),
                Op::Remove(vec![name("z"), name("missing")]),
                Op::Clear,
                three(r),
            ],
        ),
        (
            "save blocks",
            vec![
                Op::Save(vec![
                    (name("a"), counting(r, &[9, 300], false)),
                    (name("b"), counting(r, &[4], false)),
                    (name("f"), counting(r, &[30, 100], true)),
                ]),
                Op::Save(vec![(name("a"), noise(r, &[25, 200])), (name("c"), counting(r, &[], false))]),
                Op::Recompress { name: name("a"), to: None },
                Op::Recompress {
                    name: name("f"),
                    to: Some(Compression { block_len: 8192, filter: None, ..SMALL_BLOCKS }),
                },
                Op::SetDefaultCompression(Some(SMALL_BLOCKS)),
                Op::Recompress { name: name("a"), to: Some(SMALL_BLOCKS) },
            ],
        ),
        (
            "append to blocks",
            vec![
                Op::Save(vec![
                    (name("a"), counting(r, &[19, 100], false)),
                    (name("f"), counting(r, &[3, 4], true)),
                ]),
                Op::Append(vec![(name("a"), u16s(r, &[1, 100], false))]),
                Op::Append(vec![
                    (name("a"), u16s(r, &[2, 100], false)),
                    (name("f"), u16s(r, &[2, 4], false)),
                ]),
                Op::Append(vec![
                    (name("a"), u16s(r, &[50, 100], false)),
                    (name("f"), u16s(r, &[1, 4], false)),
                ]),
                Op::Append(vec![(name("a"), u16s(r, &[3, 100], false))]),
            ],
        ),
        (
            "write blocks",
            vec![
                Op::Save(vec![(name("a"), noise(r, &[31, 200]))]),
                Op::Replace { name: name("a"), rows: vec![10, 0, 1, 30], data: u16s(r, &[4, 200], false) },
                Op::WriteNpy { name: name("a"), offset: 4095, header_len: 0, data: vec![1, 2, 3] },
                Op::WriteBack { name: name("a"), ranges: vec![(2, vec![1; 5000]), (12_398, vec![1, 2])] },
                Op::ReplaceRange { name: name("a"), rows: 3..5, data: u16s(r, &[2, 200], false) },
                Op::Append(vec![(name("a"), u16s(r, &[1, 200], false))]),
                Op::ReplaceRange { name: name("a"), rows: 30..32, data: u16s(r, &[2, 200], false) },
            ],
        ),
        (
            "drop blocks",
            vec![
                Op::Save(vec![(name("a"), noise(r, &[50, 100]))]),
                Op::DropRows { names: vec![name("a")], rows: (1..40).step_by(3).collect() },
                Op::ReplaceRange { name: name("a"), rows: 10..30, data: u16s(r, &[20, 100], false) },
                Op::Compact(name("a")),
                Op::ReplaceRange { name: name("a"), rows: 0..2, data: u16s(r, &[2, 100], false) },
                Op::Compact(name("a")),
                Op::Rename { from: name("a"), to: name("b"), overwrite: false },
                Op::Remove(vec![name("b")]),
            ],
        ),
        (
            "publish a snapshot",
            vec![
                three(r),
                large_attrs(r, None),
                large_attrs(r, Some("a")),
                large_attrs(r, None),
                Op::Append(vec![(name("a"), u16s(r, &[2, 3], false))]),
                Op::Save(vec![(name("b"), u16s(r, &[7], false))]),
            ],
        ),
    ];
    let durable: Vec<Story> =
        stories.iter().map(|(name, ops)| Story { name, durable: true, ops: ops.clone() }).collect();
    let volatile = stories.drain(..).map(|(name, ops)| Story { name, durable: false, ops });
    volatile.chain(durable).collect()
}

/// Saves of more arrays than have files without names at a time, some of them over others.
pub fn many_arrays() -> [Story; 2] {
    [false, true].map(|durable| {
        let mut rng = Rng::new(7);
        let mut save = |names: &mut dyn Iterator<Item = usize>| {
            Op::Save(names.map(|i| (format!("a{i}"), u16s(&mut rng, &[i as u64 % 3, 2], false))).collect())
        };
        let ops = vec![save(&mut (0..5)), save(&mut (3..210)), Op::Remove(vec![name("a4")])];
        Story { name: "save many arrays", durable, ops }
    })
}
