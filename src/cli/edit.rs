//! Commands that change a store in one short step: `rm`, `mv`, `compact`.

use crate::store::{Access, Store};

use super::error::CliError;
use super::opts::{CompactOpts, MvOpts, RmOpts};
use super::output;
use super::select::Catalog;

pub fn rm(opts: &RmOpts) -> Result<(), CliError> {
    let store = Store::open(&opts.store, Access::Write)?;
    let catalog = Catalog::read(&store)?;
    let mut doomed: Vec<&str> = Vec::new();
    for name in &opts.names {
        let (array, group) = (catalog.array(name), catalog.group(name));
        match (array, group) {
            (None, []) => return Err(catalog.nothing_named(name)),
            (None, _) if !opts.recursive => {
                return Err(CliError::IsGroup { store: opts.store.clone(), name: name.clone() });
            }
            _ => {}
        }
        let members = if opts.recursive { group } else { &[] };
        doomed.extend(array.into_iter().chain(members).map(|array| &**array.name()));
    }
    doomed.sort_unstable();
    doomed.dedup();
    let n_removed = store.remove(&doomed)?;
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
    for array in Catalog::read(&store)?.chosen(&opts.names)? {
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
