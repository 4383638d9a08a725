//! `npkfs repair`: makes of a damaged store one that can be used, and says what is lost.

use std::ops::Range;

use serde_json::json;

use crate::store::{LOST_ROWS, Mended, OLDER_ROWS, Outcome, Rebuilt, Repair, Repaired, TableSource};

use super::config::RepairConfig;
use super::error::CliError;
use super::output::{self, Out};
use super::progress::Progress;

/// Ranges of rows that are named on one line.
const MAX_RANGES: usize = 20;

pub fn repair(config: &RepairConfig) -> Result<(), CliError> {
    let progress = Progress::new(0, !config.quiet);
    let mut tell = |array: &str, done, total| {
        progress.of(total);
        progress.start(array);
        progress.at(done);
    };
    let repair = Repair { progress: &mut tell };
    let repaired = match &config.to {
        None => repair.in_place(&config.store),
        Some(to) => repair.to(&config.store, to),
    };
    drop(progress);
    let repaired = repaired?;
    let mut out = Out::new();
    if config.json {
        out.json(&report_json(config, &repaired))?;
    } else {
        report_text(config, &repaired, &mut out)?;
    }
    out.finish()?;
    if repaired.is_whole() {
        return Ok(());
    }
    let n_arrays = repaired.arrays.iter().filter(|array| array.outcome != Outcome::Whole).count();
    Err(CliError::Lossy { store: config.store.clone(), n_arrays: n_arrays + repaired.unread.len() })
}

fn report_text(config: &RepairConfig, repaired: &Repaired, out: &mut Out) -> Result<(), CliError> {
    if let Some(rebuilt) = &repaired.manifest {
        out.line(&rebuilt_text(rebuilt))?;
    }
    if repaired.n_torn > 0 {
        let n_torn = repaired.n_torn;
        out.line(&format!(
            "metadata.npkm: ends with {n_torn} bytes of a commit that was interrupted, or damaged"
        ))?;
    }
    if repaired.has_lost_end {
        out.line("metadata.npkm: was longer, and its last commits are lost")?;
    }
    for array in &repaired.arrays {
        out.line(&array_text(config, array))?;
    }
    for unread in &repaired.unread {
        let (file, what) = (output::printable_name(&unread.file), output::printable_name(&unread.what));
        out.line(&format!("lost: {file}: {what}; it stays where it is"))?;
    }
    for file in &repaired.leftovers {
        out.line(&format!("left over: {}: no array uses it", output::printable_name(file)))?;
    }
    let arrays = output::count(usize::try_from(repaired.n_arrays).unwrap_or(usize::MAX), "array");
    let store = config.store.display();
    out.line(&match &config.to {
        Some(to) => format!("{}: {arrays} of {store}", to.display()),
        None if repaired.was_sound() => format!("{store}: is sound, nothing was done: {arrays}"),
        None => format!("{store}: repaired: {arrays}"),
    })
}

fn rebuilt_text(rebuilt: &Rebuilt) -> String {
    let mut text = format!("metadata.npkm: {}; ", rebuilt.what);
    text += match rebuilt.source {
        TableSource::Backup if rebuilt.is_complete => "made anew from metadata.npkm.bak, which has all of it",
        TableSource::Backup => "made anew from metadata.npkm.bak: later commits may be lost",
        TableSource::Frames if rebuilt.is_complete => "made anew from its frames, which are all there",
        TableSource::Frames => "made anew from what is good of it",
        TableSource::DataFiles => {
            "made anew from the headers of the data files: attributes, new names of renamed arrays, and which rows were dropped are lost"
        }
    };
    for damaged in &rebuilt.damaged {
        text += &format!("; the commits in its bytes {} to {} are lost", damaged.start, damaged.end - 1);
    }
    text + &kept_text(&rebuilt.kept)
}

fn kept_text(kept: &[String]) -> String {
    if kept.is_empty() {
        String::new()
    } else {
        format!("; kept as {}", output::printable_name(&kept.join(", ")))
    }
}

fn array_text(config: &RepairConfig, array: &Mended) -> String {
    let (head, rest) = match &array.outcome {
        Outcome::Whole => ("repaired", "nothing is lost".to_owned()),
        Outcome::FromFile => (
            "from its data file",
            "what only the manifest knew of it is of an earlier commit, or lost".to_owned(),
        ),
        Outcome::InDoubt => {
            ("in doubt", "its elements are those of its data file; look whether they are its own".to_owned())
        }
        Outcome::Partly { lost, older } => {
            let mut parts = Vec::new();
            if !lost.is_empty() {
                parts.push(format!("{} lost, and zeros now{}", rows_text(lost), more(lost, LOST_ROWS)));
            }
            if !older.is_empty() {
                parts.push(format!(
                    "{} as of an earlier commit{}",
                    rows_text(older),
                    more(older, OLDER_ROWS)
                ));
            }
            ("partly lost", parts.join("; "))
        }
        Outcome::Lost => {
            let left = if config.to.is_some() { "is left out" } else { "stays as it is" };
            ("lost", format!("nothing of it can be read, and it {left}"))
        }
    };
    let what = output::printable_name(&array.what.join(", "));
    let kept = kept_text(array.kept.as_slice());
    format!("{head}: array {:?}: {what}; {rest}{kept}", array.array)
}

fn rows_text(rows: &[Range<u64>]) -> String {
    let one = |range: &Range<u64>| match range.end - range.start {
        1 => format!("{}", range.start),
        _ => format!("{} to {}", range.start, range.end - 1),
    };
    let listed: Vec<String> = rows.iter().take(MAX_RANGES).map(one).collect();
    let is_one = matches!(rows, [only] if only.end - only.start == 1);
    if is_one { format!("row {} is", listed.join(", ")) } else { format!("rows {} are", listed.join(", ")) }
}

fn more(rows: &[Range<u64>], attribute: &str) -> String {
    if rows.len() <= MAX_RANGES {
        return String::new();
    }
    format!(", and more: {} ranges in all, in its attribute {attribute}", rows.len())
}

fn report_json(config: &RepairConfig, repaired: &Repaired) -> serde_json::Value {
    let ranges =
        |ranges: &[Range<u64>]| ranges.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>();
    json!({
        "store": config.store.to_string_lossy(),
        "to": config.to.as_ref().map(|to| to.to_string_lossy()),
        "was_sound": repaired.was_sound(),
        "is_whole": repaired.is_whole(),
        "n_arrays": repaired.n_arrays,
        "manifest": repaired.manifest.as_ref().map(|rebuilt| json!({
            "what": rebuilt.what,
            "source": match rebuilt.source {
                TableSource::Backup => "backup",
                TableSource::Frames => "frames",
                TableSource::DataFiles => "data files",
            },
            "is_complete": rebuilt.is_complete,
            "damaged": ranges(&rebuilt.damaged),
            "kept": rebuilt.kept,
        })),
        "n_torn_bytes": repaired.n_torn,
        "has_lost_end": repaired.has_lost_end,
        "arrays": repaired.arrays.iter().map(|array| {
            let (outcome, lost, older) = match &array.outcome {
                Outcome::Whole => ("whole", vec![], vec![]),
                Outcome::FromFile => ("from data file", vec![], vec![]),
                Outcome::InDoubt => ("in doubt", vec![], vec![]),
                Outcome::Partly { lost, older } => ("partly lost", ranges(lost), ranges(older)),
                Outcome::Lost => ("lost", vec![], vec![]),
            };
            json!({
                "array": &*array.array,
                "file": array.file,
                "what": array.what,
                "outcome": outcome,
                "lost_rows": lost,
                "older_rows": older,
                "kept": array.kept,
            })
        }).collect::<Vec<_>>(),
        "unread": repaired.unread.iter().map(|unread| json!({
            "file": unread.file,
            "what": unread.what,
        })).collect::<Vec<_>>(),
        "left_over": repaired.leftovers,
    })
}
