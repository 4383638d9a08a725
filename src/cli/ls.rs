//! `npkfs ls`: the arrays of a store.

use serde_json::json;

use crate::store::{Access, Array, Store};

use super::error::CliError;
use super::info;
use super::opts::LsOpts;
use super::output::{self, Align, Out, Table};
use super::select::Catalog;
use super::units;

pub fn ls(opts: &LsOpts) -> Result<(), CliError> {
    let store = Store::open(&opts.store, Access::Read)?;
    let arrays = Catalog::read(&store)?.chosen(opts.prefix.as_slice())?;
    let mut out = Out::new();
    if opts.json {
        let listed = arrays.iter().map(info::array_json).collect::<Result<Vec<_>, _>>()?;
        out.json(&json!(listed))?;
    } else if opts.long {
        for line in long(&arrays)?.lines() {
            out.line(&line)?;
        }
    } else {
        for array in &arrays {
            // Into a pipe go the names as they are; scripts want to use them.
            out.name(array.name())?;
        }
    }
    out.finish()
}

fn long(arrays: &[Array]) -> Result<Table, CliError> {
    let mut table = Table::new(&[
        ("DTYPE", Align::Left),
        ("SHAPE", Align::Left),
        ("SIZE", Align::Right),
        ("MODIFIED (UTC)", Align::Left),
        ("CODEC", Align::Left),
        ("NAME", Align::Left),
    ]);
    for array in arrays {
        table.push(vec![
            info::dtype_text(array.dtype()),
            info::shape_text(array.shape()),
            output::size(array.nbytes()),
            output::time(array.modified()?),
            array.compression().as_ref().map_or_else(|| "none".to_owned(), units::codec_name),
            output::printable_name(array.name()),
        ]);
    }
    Ok(table)
}
