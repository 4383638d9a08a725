//! `npkfs recompress`: arrays that are stored get another codec, or none. Each array is one commit.

use crate::store::{Access, Array, Store, StoreError};

use super::config::RecompressConfig;
use super::error::{CliError, store_exit};
use super::exit::Exit;
use super::output;
use super::progress::Progress;
use super::select::Catalog;

pub fn recompress(config: &RecompressConfig) -> Result<(), CliError> {
    let store = Store::open(&config.store, Access::Write)?;
    let arrays = Catalog::read(&store)?.chosen(&config.names)?;
    let n_bytes = arrays.iter().map(Array::nbytes).fold(0, u64::saturating_add);
    let mut progress = Progress::new(n_bytes, !config.quiet);
    let (mut n_done, mut n_failed) = (0, 0);
    let (mut before, mut after) = (0_u64, 0_u64);
    let mut exit = Exit::Failed;
    let n_asked = arrays.len();
    // By value: an array that was read keeps its data file open.
    for array in arrays {
        let array = &array;
        progress.start(array.name());
        match recompress_array(&store, array, config, &progress) {
            Ok(None) => {}
            Ok(Some(sizes)) => {
                n_done += 1;
                before = before.saturating_add(sizes.0);
                after = after.saturating_add(sizes.1);
            }
            // The others are not damaged.
            Err(error) if store_exit(&error) == Exit::Damaged => {
                exit = Exit::Damaged;
                progress.message(&error.to_string());
                n_failed += 1;
            }
            Err(error) => return Err(error.into()),
        }
        progress.end(array.nbytes());
    }
    drop(progress);
    if n_failed > 0 {
        let what = "arrays were not recompressed";
        return Err(CliError::Partly { what, n_failed, n_asked, exit });
    }
    if !config.quiet {
        output::message(&format!(
            "{}: recompressed {}: {} on disk, {} before",
            config.store.display(),
            output::count(n_done, "array"),
            output::size(after),
            output::size(before)
        ));
    }
    Ok(())
}

/// Recompresses one array. Returns what it took on disk before and takes now, if anything had to be done.
fn recompress_array(
    store: &Store,
    array: &Array,
    config: &RecompressConfig,
    progress: &Progress,
) -> Result<Option<(u64, u64)>, StoreError> {
    let before = array.stat()?.allocated;
    let to = config.compression.as_ref();
    let is_done = store.recompress(array.name(), to, &mut |n_bytes| progress.at(n_bytes))?;
    if !is_done {
        log::info!("{}: {:?} is so already", config.store.display(), array.name());
        return Ok(None);
    }
    let after = store.array(array.name())?.stat()?.allocated;
    // Where the bar is, a line of the log would tear it.
    progress.suspend(|| {
        log::info!(
            "{}: recompressed {:?}: {} on disk, {} before",
            config.store.display(),
            array.name(),
            output::size(after),
            output::size(before)
        );
    });
    Ok(Some((before, after)))
}
