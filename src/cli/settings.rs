//! `npkfs config`: the settings of a store.

use crate::store::{Access, Store};

use super::config::{Setting, SettingsConfig};
use super::error::CliError;
use super::output::Out;
use super::units;

pub fn settings(config: &SettingsConfig) -> Result<(), CliError> {
    let changes = config.settings.iter().any(|setting| matches!(setting, Setting::SetCompression(_)));
    let store = Store::open(&config.store, if changes { Access::Write } else { Access::Read })?;
    let mut out = Out::new();
    // Shown as they are given, so that what is shown can be set again.
    let shown: &[Setting] = match &*config.settings {
        [] => &[Setting::ShowCompression],
        settings => settings,
    };
    for setting in shown {
        match setting {
            Setting::ShowCompression => {
                let compression = store.default_compression();
                out.line(&format!("compress={}", units::compress_text(compression.as_ref())))?;
            }
            Setting::SetCompression(compression) => {
                store.set_default_compression(compression.as_ref())?;
                log::info!(
                    "{}: set compress={}",
                    config.store.display(),
                    units::compress_text(compression.as_ref())
                );
            }
        }
    }
    out.finish()
}
