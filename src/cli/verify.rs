//! `npkfs verify`: looks for damage, and changes nothing.

use serde_json::json;

use crate::store::{self, Report};

use super::error::CliError;
use super::opts::VerifyOpts;
use super::output::{self, Out};

pub fn verify(opts: &VerifyOpts) -> Result<(), CliError> {
    let report = store::verify(&opts.store)?;
    let mut out = Out::new();
    if opts.json {
        out.json(&report_json(opts, &report))?;
    } else {
        report_text(opts, &report, &mut out)?;
    }
    out.finish()?;
    match report.problems.len() {
        0 => Ok(()),
        n_problems => Err(CliError::Damaged { store: opts.store.clone(), n_problems }),
    }
}

fn report_text(opts: &VerifyOpts, report: &Report, out: &mut Out) -> Result<(), CliError> {
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
    for file in &report.leftovers {
        out.line(&format!(
            "left over: {}: no array uses it; the next writer removes it",
            output::printable_name(file)
        ))?;
    }
    let n_arrays = usize::try_from(report.n_arrays).unwrap_or(usize::MAX);
    let checked = format!("{}, {}", output::count(n_arrays, "array"), output::size(report.nbytes));
    if report.problems.is_empty() {
        out.line(&format!("{}: sound: {checked}", opts.store.display()))
    } else {
        out.line(&format!("{}: checked: {checked}", opts.store.display()))
    }
}

fn report_json(opts: &VerifyOpts, report: &Report) -> serde_json::Value {
    json!({
        "store": opts.store.to_string_lossy(),
        "sound": report.problems.is_empty(),
        "n_arrays": report.n_arrays,
        "generation": report.generation.map(|generation| generation.0),
        "nbytes": report.nbytes,
        "problems": report.problems.iter().map(|problem| json!({
            "array": problem.array.as_deref(),
            "file": problem.file,
            "what": problem.what,
        })).collect::<Vec<_>>(),
        "left_over": report.leftovers,
    })
}
