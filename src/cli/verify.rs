//! `npkfs verify`: looks for damage, and changes nothing.

use serde_json::json;

use crate::store::{self, Depth, Report};

use super::config::VerifyConfig;
use super::error::CliError;
use super::output::{self, Out};
use super::progress::Progress;

pub fn verify(config: &VerifyConfig) -> Result<(), CliError> {
    let depth = if config.deep { Depth::Elements } else { Depth::Index };
    let progress = Progress::new(0, config.deep && !config.quiet);
    let report = store::verify_with(&config.store, depth, &mut |array, done, total| {
        progress.of(total);
        progress.start(array);
        progress.at(done);
    });
    drop(progress);
    let report = report?;
    let mut out = Out::new();
    if config.json {
        out.json(&report_json(config, &report))?;
    } else {
        report_text(config, &report, &mut out)?;
    }
    out.finish()?;
    match report.problems.len() {
        0 => Ok(()),
        n_problems => {
            let is_old = report.old_layout.is_some();
            Err(CliError::Damaged { store: config.store.clone(), n_problems, is_old })
        }
    }
}

fn report_text(config: &VerifyConfig, report: &Report, out: &mut Out) -> Result<(), CliError> {
    for problem in &report.problems {
        // The file is named by each problem itself, where it is about one.
        let what = output::printable_name(&problem.what);
        out.line(&match &problem.array {
            Some(array) => {
                format!("damaged: array {array:?}: {}: {what}", output::printable_name(&problem.file))
            }
            None => format!("damaged: {}: {what}", output::printable_name(&problem.file)),
        })?;
    }
    let rest = if report.half_upgraded {
        format!(
            "; if it is of the store before it was upgraded, \"npkfs upgrade {}\" removes it",
            config.store.display()
        )
    } else if report.old_layout.is_some() {
        String::new()
    } else {
        "; the next writer removes it".to_owned()
    };
    for file in &report.leftovers {
        out.line(&format!("left over: {}: no array uses it{rest}", output::printable_name(file)))?;
    }
    let count = |n: u64, noun| output::count(usize::try_from(n).unwrap_or(usize::MAX), noun);
    let mut checked = format!("{}, {}", count(report.n_arrays, "array"), output::size(report.nbytes));
    if config.deep {
        checked += &format!(", {} decoded", count(report.n_blocks, "block"));
    }
    if report.problems.is_empty() {
        out.line(&format!("{}: sound: {checked}", config.store.display()))
    } else {
        out.line(&format!("{}: checked: {checked}", config.store.display()))
    }
}

fn report_json(config: &VerifyConfig, report: &Report) -> serde_json::Value {
    json!({
        "store": config.store.to_string_lossy(),
        "deep": config.deep,
        "sound": report.problems.is_empty(),
        "old_layout": report.old_layout.map(|layout| layout.to_string()),
        "half_upgraded": report.half_upgraded,
        "n_arrays": report.n_arrays,
        "generation": report.generation.map(|generation| generation.0),
        "nbytes": report.nbytes,
        "n_index_pages": report.n_pages,
        "n_blocks": report.n_blocks,
        "problems": report.problems.iter().map(|problem| json!({
            "array": problem.array.as_deref(),
            "file": problem.file,
            "block": problem.block,
            "offset": problem.offset,
            "what": problem.what,
        })).collect::<Vec<_>>(),
        "left_over": report.leftovers,
    })
}
