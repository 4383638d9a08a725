//! `npkfs info`: what a store holds, and what it takes on disk.

use rmpv::Value as Attr;
use serde_json::{Value, json};

use crate::format::{Dtype, names};
use crate::store::{Access, Array, Attrs, Compression, Filter, Store};
use crate::sys::lock::claim_name;
use crate::sys::netfs::{LockReach, Place};

use super::error::CliError;
use super::opts::InfoOpts;
use super::output::{self, Align, Out, Table};
use super::units;

pub fn info(opts: &InfoOpts) -> Result<(), CliError> {
    let store = Store::open(&opts.store, Access::Read)?;
    let mut out = Out::new();
    match (&opts.name, opts.json) {
        (None, false) => store_text(&store, &mut out)?,
        (None, true) => out.json(&store_json(&store)?)?,
        (Some(name), false) => array_text(&store.array(name)?, &mut out)?,
        (Some(name), true) => out.json(&described_json(&store.array(name)?)?)?,
    }
    out.finish()
}

fn store_text(store: &Store, out: &mut Out) -> Result<(), CliError> {
    let arrays = store.arrays()?;
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("DTYPE", Align::Left),
        ("SHAPE", Align::Left),
        ("SIZE", Align::Right),
        ("ON DISK", Align::Right),
        ("RATIO", Align::Right),
        ("DEAD", Align::Right),
        ("DELETED ROWS", Align::Right),
        ("CODEC", Align::Left),
        ("MODIFIED (UTC)", Align::Left),
    ]);
    let totals = Totals::of(&arrays)?;
    for array in &arrays {
        table.push(vec![
            output::printable_name(array.name()),
            dtype_text(array.dtype()),
            shape_text(array.shape()),
            output::size(array.nbytes()),
            output::size(array.on_disk()?),
            ratio_text(array),
            array.codec().map_or_else(|| "-".to_owned(), |_| output::size(array.dead_len())),
            array.n_deleted().to_string(),
            codec_text(array),
            output::time(array.modified()?),
        ]);
    }
    for line in table.lines() {
        out.line(&line)?;
    }
    if let Some(compression) = store.default_compression() {
        out.line(&format!("arrays made through a mount: {}", units::codec_text(&compression)))?;
    }
    for (key, value) in store.attrs() {
        out.line(&format!("attribute {}: {}", output::printable_name(&key), attr_json(&value)))?;
    }
    for line in place_text(store.stat_fs()?.place) {
        out.line(&line)?;
    }
    let dead = match totals.dead {
        0 => String::new(),
        dead => format!(", {} of it dead", output::size(dead)),
    };
    let format = match store.old_layout() {
        None => format!("generation {}, format {}", store.generation().0, store.format_version()),
        Some(layout) => format!(
            "layout of NumPack {layout}, only read until \"npkfs upgrade {}\"",
            store.path().display()
        ),
    };
    out.line(&format!(
        "{}, {}, {} on disk{dead}; {format}",
        output::count(arrays.len(), "array"),
        output::size(totals.nbytes),
        output::size(totals.on_disk),
    ))
}

/// What is different where other hosts may write to the store.
fn place_text(place: Place) -> Vec<String> {
    if !place.kind.is_shared() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "on {}, which other hosts may share: others' commits are looked for in the file each time, mounts look once a second",
        place.kind
    )];
    lines.push(match place.locks {
        LockReach::Everybody => "locks keep out writers on other hosts".to_owned(),
        LockReach::ThisMount => format!(
            "locks keep out this mount only: a writer also makes {}, and each commit waits for the disk",
            claim_name(names::LOCK)
        ),
    });
    lines
}

fn array_text(array: &Array, out: &mut Out) -> Result<(), CliError> {
    let on_disk = array.on_disk()?;
    let mut lines = vec![
        ("name", output::printable_name(array.name())),
        ("dtype", dtype_text(array.dtype())),
        ("shape", shape_text(array.shape())),
        ("order", order_text(array).to_owned()),
        ("size", format!("{} ({} bytes)", output::size(array.nbytes()), array.nbytes())),
        ("on disk", format!("{} ({on_disk} bytes)", output::size(on_disk))),
        ("deleted rows", array.n_deleted().to_string()),
        ("codec", codec_text(array)),
        ("modified", output::time(array.modified()?) + " UTC"),
        ("version", array.id().0.to_string()),
        ("file", output::printable_name(array.file_name())),
    ];
    if let Some(usage) = array.usage()? {
        let zeros = match usage.n_absent {
            0 => String::new(),
            n_absent => format!(", {n_absent} of zeros only"),
        };
        lines.push(("ratio", ratio_text(array)));
        lines.push(("blocks", format!("{}, {} stored as they are{zeros}", usage.n_blocks, usage.n_raw)));
        let bytes = |n: u64| format!("{} ({n} bytes)", output::size(n));
        lines.push(("in use", bytes(usage.live)));
        lines.push(("dead", bytes(usage.dead)));
    }
    let attrs: Vec<String> = array
        .attrs()
        .iter()
        .map(|(key, value)| format!("{}: {}", output::printable_name(key), attr_json(value)))
        .collect();
    lines.extend(attrs.into_iter().map(|attr| ("attribute", attr)));
    for (key, value) in lines {
        out.line(&format!("{key:13} {value}"))?;
    }
    Ok(())
}

fn store_json(store: &Store) -> Result<Value, CliError> {
    let arrays = store.arrays()?;
    let totals = Totals::of(&arrays)?;
    let place = store.stat_fs()?.place;
    Ok(json!({
        "store": store.path().to_string_lossy(),
        "format": store.old_layout().is_none().then(|| store.format_version()),
        "old_layout": store.old_layout().map(|layout| layout.to_string()),
        "file_system": place.kind.to_string(),
        "locks_keep_out": place.locks.to_string(),
        "generation": store.generation().0,
        "n_arrays": arrays.len(),
        "nbytes": totals.nbytes,
        "on_disk": totals.on_disk,
        "stored_nbytes": totals.stored,
        "dead": totals.dead,
        "compress": store.default_compression().as_ref().map(codec_json),
        "attrs": attrs_json(&store.attrs()),
        "arrays": arrays.iter().map(described_json).collect::<Result<Vec<_>, _>>()?,
    }))
}

/// An array as `info --json` shows it: as [`array_json`], and with what takes reading its index.
fn described_json(array: &Array) -> Result<Value, CliError> {
    let mut described = array_json(array)?;
    let usage = array.usage()?;
    described["blocks"] = json!(usage.map(|usage| json!({
        "n_blocks": usage.n_blocks,
        "n_raw": usage.n_raw,
        "n_absent": usage.n_absent,
        "live": usage.live,
        "dead": usage.dead,
    })));
    Ok(described)
}

/// An array as `ls --json` shows it. What it tells is known without reading the data file.
pub fn array_json(array: &Array) -> Result<Value, CliError> {
    Ok(json!({
        "name": &**array.name(),
        "dtype": dtype_text(array.dtype()),
        "shape": array.shape(),
        "fortran_order": array.fortran_order(),
        "nbytes": array.nbytes(),
        "on_disk": array.on_disk()?,
        "raw_nbytes": array.raw_len(),
        "stored_nbytes": array.stored_len(),
        "n_deleted": array.n_deleted(),
        "codec": array.compression().as_ref().map(codec_json),
        "modified": output::time_json(array.modified()?),
        "id": array.id().0,
        "file": array.file_name(),
        "attrs": attrs_json(array.attrs()),
    }))
}

/// How the elements are stored: `zstd:1, 64 KiB blocks, shuffle`, or `none`.
fn codec_text(array: &Array) -> String {
    array.compression().map_or_else(|| "none".to_owned(), |compression| units::codec_text(&compression))
}

/// How many times smaller compressed elements are.
fn ratio_text(array: &Array) -> String {
    match (array.codec(), array.stored_len()) {
        (None, _) | (_, 0) => "-".to_owned(),
        (Some(_), stored) => format!("{:.2}", array.raw_len() as f64 / stored as f64),
    }
}

/// A codec as JSON has it. Without a filter: that which fits the array.
fn codec_json(compression: &Compression) -> Value {
    let Compression { level, block_len, filter } = compression;
    json!({ "name": "zstd", "level": level, "block": block_len, "filter": filter.map(Filter::name) })
}

struct Totals {
    nbytes: u64,
    on_disk: u64,
    stored: u64,
    dead: u64,
}

impl Totals {
    fn of(arrays: &[Array]) -> Result<Totals, CliError> {
        let mut totals = Totals { nbytes: 0, on_disk: 0, stored: 0, dead: 0 };
        for array in arrays {
            totals.nbytes = totals.nbytes.saturating_add(array.nbytes());
            totals.on_disk = totals.on_disk.saturating_add(array.on_disk()?);
            totals.stored = totals.stored.saturating_add(array.stored_len());
            totals.dead = totals.dead.saturating_add(array.dead_len());
        }
        Ok(totals)
    }
}

/// NumPy's description of a dtype: `<f4`, or `[('a', '<f4'), ('b', '<i8', (2,))]`.
pub fn dtype_text(dtype: &Dtype) -> String {
    let text = dtype.to_python();
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(plain) => plain.to_owned(),
        None => output::printable_name(&text),
    }
}

/// A shape as NumPy prints it: `(100, 3)`, `(7,)`, `()`.
pub fn shape_text(shape: &[u64]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn order_text(array: &Array) -> &'static str {
    if array.fortran_order() { "Fortran" } else { "C" }
}

fn attrs_json(attrs: &Attrs) -> Value {
    attrs.iter().map(|(key, value)| (key.clone(), attr_json(value))).collect::<serde_json::Map<_, _>>().into()
}

/// An attribute as JSON. What JSON does not have is told apart by its shape: bytes and extension types become
/// `{"hex": ...}`, with the `"ext"` type; maps with keys that are no strings become lists of pairs.
fn attr_json(attr: &Attr) -> Value {
    match attr {
        Attr::Nil => Value::Null,
        Attr::Boolean(b) => json!(b),
        Attr::Integer(n) => n.as_u64().map_or_else(|| json!(n.as_i64()), |n| json!(n)),
        // JSON has no infinities and no NaN: null.
        Attr::F32(x) => json!(x),
        Attr::F64(x) => json!(x),
        Attr::String(text) => match text.as_str() {
            Some(text) => json!(text),
            None => json!({ "hex": hex(text.as_bytes()) }),
        },
        Attr::Binary(bytes) => json!({ "hex": hex(bytes) }),
        Attr::Ext(kind, bytes) => json!({ "ext": kind, "hex": hex(bytes) }),
        Attr::Array(items) => items.iter().map(attr_json).collect(),
        Attr::Map(pairs) => {
            let object: Option<serde_json::Map<_, _>> =
                pairs.iter().map(|(key, value)| Some((key.as_str()?.to_owned(), attr_json(value)))).collect();
            object.map_or_else(
                || pairs.iter().map(|(key, value)| json!([attr_json(key), attr_json(value)])).collect(),
                Value::from,
            )
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_look_like_numpys() {
        assert_eq!(shape_text(&[]), "()");
        assert_eq!(shape_text(&[7]), "(7,)");
        assert_eq!(shape_text(&[100, 3]), "(100, 3)");
    }

    #[test]
    fn attributes_become_json() {
        let attr = Attr::Map(vec![
            ("n".into(), Attr::from(-3)),
            ("big".into(), Attr::from(u64::MAX)),
            ("raw".into(), Attr::Binary(vec![0, 255])),
            ("list".into(), Attr::Array(vec![Attr::Nil, true.into(), 0.5.into(), f64::NAN.into()])),
        ]);
        assert_eq!(
            attr_json(&attr),
            json!({"n": -3, "big": u64::MAX, "raw": {"hex": "00ff"}, "list": [null, true, 0.5, null]})
        );
        assert_eq!(attr_json(&Attr::Map(vec![(1.into(), "a".into())])), json!([[1, "a"]]));
    }
}
