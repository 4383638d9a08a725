//! The `npkfs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    numpack::cli::run(std::env::args_os()).into()
}
