//! Commands that change a store in one short step: `rm`, `mv`, `compact`.

use crate::store::{Access, Store};

use super::error::CliError;
use super::opts::{CompactOpts, MvOpts, RmOpts};
use super::{output, select};

pub fn rm(opts: &RmOpts) -> Result<(), CliError> {
    let store = Store::open(&opts.store, Access::Write)?;
    let mut doomed = Vec::new();
    for name in &opts.names {
        let arrays = select::arrays(&store, &[name])?;
        if !opts.recursive && !arrays.iter().any(|array| **array.name() == **name) {
            return Err(CliError::IsGroup { store: opts.store.clone(), name: name.clone() });
        }
        doomed.extend(
            arrays
                .iter()
                .map(|array| array.name().clone())
                .filter(|found| opts.recursive || **found == **name),
        );
    }
    let names: Vec<&str> = doomed.iter().map(|name| &**name).collect();
    let n_removed = store.remove(&names)?;
    log::info!("{}: removed {}", opts.store.display(), output::count(n_removed, "array"));
    Ok(())
}

pub fn mv(opts: &MvOpts) -> Result<(), CliError> {
    let store = Store::open(&opts.store, Access::Write)?;
    store.rename(&opts.old, &opts.new, opts.overwrite)?;
    log::info!("{}: renamed {:?} to {:?}", opts.store.display(), opts.old, opts.new);
    Ok(())
}

pub fn compact(opts: &CompactOpts) -> Result<(), CliError> {
    let store = Store::open(&opts.store, Access::Write)?;
    for array in select::arrays(&store, &opts.names)? {
        let before = array.stat()?.allocated;
        if store.compact(array.name())? {
            let after = store.array(array.name())?.stat()?.allocated;
            log::info!(
                "{}: compacted {:?}: {} on disk, {} before",
                opts.store.display(),
                array.name(),
                output::size(after),
                output::size(before)
            );
        }
    }
    Ok(())
}
