//! `npkfs upgrade`: a store that NumPack 0.1 to 0.7 wrote becomes one of the npk format.

use crate::store::{StoreError, Upgrade, Upgraded};

use super::config::UpgradeConfig;
use super::error::CliError;
use super::exit::Exit;
use super::output;
use super::progress::Progress;

pub fn upgrade(config: &UpgradeConfig) -> Result<(), CliError> {
    let progress = Progress::new(0, !config.quiet);
    let mut report = |array: &str, done, total| {
        progress.of(total);
        progress.start(array);
        progress.at(done);
    };
    let upgrade = Upgrade { compression: config.compression, progress: &mut report };
    let mut n_skipped = 0;
    let mut skip = |error: &StoreError| {
        progress.message(&error.to_string());
        n_skipped += 1;
    };
    let upgraded = match &config.to {
        None => upgrade.in_place(&config.store).map_err(|error| match error {
            StoreError::DataFile { .. } => {
                CliError::NotUpgraded { store: config.store.clone(), source: Box::new(error) }
            }
            error => error.into(),
        })?,
        Some(to) => upgrade.to(&config.store, to, config.skip_damaged.then_some(&mut skip))?,
    };
    drop(progress);
    let store = config.store.display();
    let text = match (upgraded, &config.to) {
        (Upgraded::From { n_arrays, .. }, _) if n_skipped > 0 => {
            return Err(CliError::Partly {
                what: "arrays cannot be read, and were left out",
                n_failed: n_skipped,
                n_asked: n_arrays + n_skipped,
                exit: Exit::Damaged,
            });
        }
        (Upgraded::From { layout, n_arrays }, None) => {
            format!("{store}: upgraded {} from NumPack {layout}", output::count(n_arrays, "array"))
        }
        (Upgraded::From { layout, n_arrays }, Some(to)) => {
            let arrays = output::count(n_arrays, "array");
            format!("{}: {arrays} of {store}, which is of NumPack {layout}", to.display())
        }
        (Upgraded::Finished, _) => {
            format!("{store}: was upgraded before; removed the files of the old store")
        }
        (Upgraded::Nothing, None) => format!("{store}: is of this release already; nothing was done"),
        (Upgraded::Nothing, Some(_)) => return Err(CliError::NotOld { store: config.store.clone() }),
    };
    if !config.quiet {
        output::message(&text);
    }
    Ok(())
}
