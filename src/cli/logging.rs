//! Log lines on stderr, through env_logger.

use std::io::Write as _;

use env_logger::Builder;
use log::{Level, LevelFilter};

use super::config::LogConfig;
use super::output::printable;

/// Starts logging. What -v or -q asked for counts first, then `NPKFS_LOG`, then `RUST_LOG`, then warnings.
pub fn init(config: LogConfig) {
    let mut builder = Builder::new();
    match config.level {
        Some(level) => {
            // The FUSE library tells each of its errors to its caller as well; its own words are for debugging.
            builder.filter_level(level.min(LevelFilter::Warn)).filter_module("numpack", level);
            if level > LevelFilter::Info {
                builder.filter_level(level);
            }
        }
        None => match ["NPKFS_LOG", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok()) {
            Some(filters) => {
                builder.parse_filters(&filters);
            }
            None => {
                builder.filter_level(LevelFilter::Warn);
            }
        },
    }
    builder.format(move |buf, record| {
        let time = if config.timestamps { format!("{} ", buf.timestamp_millis()) } else { String::new() };
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        writeln!(buf, "npkfs: {time}{level}{}", printable(&record.args().to_string()))
    });
    builder.init();
}
