//! Text for people: data on stdout, messages on stderr.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::CliError;

/// Data on stdout. A reader that goes away early (`npkfs ls STORE | head -1`) ends the command quietly:
/// [`CliError::StdoutClosed`].
pub struct Out {
    inner: BufWriter<StdoutLock<'static>>,
    terminal: bool,
}

impl Out {
    pub fn new() -> Out {
        let stdout = io::stdout().lock();
        let terminal = stdout.is_terminal();
        Out { inner: BufWriter::new(stdout), terminal }
    }

    /// Writes one line.
    pub fn line(&mut self, line: &str) -> Result<(), CliError> {
        writeln!(self.inner, "{line}").map_err(CliError::from_stdout)
    }

    /// Writes a name on a line: as it is into a pipe or file, made harmless on a terminal.
    pub fn name(&mut self, name: &str) -> Result<(), CliError> {
        if self.terminal { self.line(&printable_name(name)) } else { self.line(name) }
    }

    /// Writes a value as indented JSON.
    pub fn json(&mut self, value: &serde_json::Value) -> Result<(), CliError> {
        self.line(&format!("{value:#}"))
    }

    /// Hands everything to the operating system. Must be called at the end: dropping loses errors.
    pub fn finish(mut self) -> Result<(), CliError> {
        self.inner.flush().map_err(CliError::from_stdout)
    }
}

/// Writes a message on stderr, with the name of the program before it.
///
/// Names come from stores that somebody else may have written: what would steer a terminal is escaped.
pub fn message(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "npkfs: {}", printable(text));
}

/// The text with control characters, except line breaks, written as escapes.
pub fn printable(text: &str) -> String {
    escaped(text, |c| c.is_control() && c != '\n')
}

/// A name as it is shown in a table or list that people read: control characters, line breaks too, as escapes.
pub fn printable_name(name: &str) -> String {
    escaped(name, char::is_control)
}

fn escaped(text: &str, must_escape: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if must_escape(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Which edge of a column its cells touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Lines of aligned columns under a heading.
pub struct Table {
    columns: Vec<Align>,
    lines: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heading: &[(&str, Align)]) -> Table {
        Table {
            columns: heading.iter().map(|(_, align)| *align).collect(),
            lines: vec![heading.iter().map(|(title, _)| (*title).to_owned()).collect()],
        }
    }

    /// Adds a line; it has a cell for each column.
    pub fn push(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.lines.push(cells);
    }

    /// The lines, columns two spaces apart, without spaces at the end.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.lines.iter().map(|line| width(&line[column])).max().unwrap_or(0))
            .collect();
        self.lines.iter().map(move |line| {
            let mut text = String::new();
            for ((cell, align), &full) in line.iter().zip(&self.columns).zip(&widths) {
                let padding = " ".repeat(full - width(cell));
                match align {
                    Align::Left => text.extend([cell, &*padding, "  "]),
                    Align::Right => text.extend([&*padding, cell, "  "]),
                }
            }
            text.trim_end().to_owned()
        })
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// A number of bytes for people: `512 B`, `3.4 MiB`. JSON has exact numbers.
pub fn size(n_bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n_bytes < 1024 {
        return format!("{n_bytes} B");
    }
    let mut scaled = n_bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// A count with its noun: `1 array`, `2 arrays`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A point in time, UTC, to the second: `2024-02-29 23:59:59`.
pub fn time(time: SystemTime) -> String {
    let (date, second_of_day, _) = utc(time);
    format!("{date} {}", clock(second_of_day))
}

/// A point in time as JSON has it: RFC 3339, UTC, to the nanosecond.
pub fn time_json(time: SystemTime) -> String {
    let (date, second_of_day, nanos) = utc(time);
    format!("{date}T{}.{nanos:09}Z", clock(second_of_day))
}

fn clock(second_of_day: u64) -> String {
    format!("{:02}:{:02}:{:02}", second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60)
}

/// Date, second of the day, and nanoseconds of a point in time.
fn utc(time: SystemTime) -> (String, u64, u32) {
    // What is before 1970 is a clock that was not set.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let days = since.as_secs() / 86_400;
    // Days since 1 March of year 0; years that begin in March have their leap day last.
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (format!("{year:04}-{month:02}-{day:02}"), since.as_secs() % 86_400, since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_never_four_digits() {
        for (n_bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (268_435_456, "256.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(n_bytes), text);
        }
    }

    #[test]
    fn times_are_utc() {
        for (secs, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_868_799, "2000-02-29 23:59:59"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (4_102_444_800, "2100-01-01 00:00:00"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
        assert_eq!(time_json(UNIX_EPOCH + Duration::new(1, 5)), "1970-01-01T00:00:01.000000005Z");
    }

    #[test]
    fn tables_align_and_do_not_trail_spaces() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("DTYPE", Align::Left)]);
        table.push(vec!["a".into(), "1.0 KiB".into(), "<f4".into()]);
        table.push(vec!["images/t\u{e9}st".into(), "3 B".into(), "|u1".into()]);
        let lines: Vec<String> = table.lines().collect();
        assert_eq!(
            lines,
            ["NAME            SIZE  DTYPE", "a            1.0 KiB  <f4", "images/t\u{e9}st      3 B  |u1"]
        );
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable_name("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable("two\nlines\r"), "two\nlines\\r");
        assert_eq!(printable_name("\u{e9}t\u{e9}/1"), "\u{e9}t\u{e9}/1");
    }
}
