//! The process in the background that serves a mount: started by [`start`], it says through a socket on its stdin, by
//! [`report`], that the mount answers, or why there is none.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::config::MountConfig;
use crate::cli::error::CliError;
use crate::cli::exit::Exit;

use super::{MountError, say_mounted};

/// Starts this program with `args` as a process of its own, and returns when its mount answers.
pub fn start(config: &MountConfig, args: &[OsString], log: Option<&Path>) -> Result<(), CliError> {
    let failed = |action| move |source| MountError::Start { action, source };
    let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket"))?;
    let stderr = match log {
        None => Stdio::null(),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
            file.map_err(CliError::io("open the log", path))?.into()
        }
    };
    let program = std::env::current_exe().map_err(failed("find the program npkfs"))?;
    // The command keeps its copy of the other end until it is dropped: the end of the process shows as end of file.
    let mut child = Command::new(program)
        .args(args)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(failed("start a process in the background"))?;

    let mut report = Vec::new();
    (&ours).read_to_end(&mut report).map_err(failed("hear from the process in the background"))?;
    match parse_report(&report) {
        Some((Exit::Done, note)) => {
            say_mounted(config, &note);
            Ok(())
        }
        Some((exit, message)) => {
            // Its end is the end of whatever it had begun.
            let _ = child.wait();
            Err(CliError::Background { exit, message })
        }
        None => Err(MountError::Vanished { status: child.wait().ok() }.into()),
    }
}

/// Tells the process that waits for this one how it went.
pub struct Reporter {
    socket: Option<UnixStream>,
}

impl Reporter {
    /// The mount answers; `note` is what there is to say about it. An error if nobody is there any more to hear it.
    pub fn ready(&mut self, note: &str) -> io::Result<()> {
        self.say(Exit::Done, note)
    }

    /// Says it once; what is said later is not heard.
    fn say(&mut self, exit: Exit, message: &str) -> io::Result<()> {
        let Some(mut socket) = self.socket.take() else { return Ok(()) };
        socket.write_all(&[&[exit as u8], message.as_bytes()].concat())?;
        // Stdin stays open, so the end has to be said.
        socket.shutdown(Shutdown::Write)
    }
}

/// Serves a mount in a process that [`start`] has started.
pub fn report(serve: impl FnOnce(&mut Reporter) -> Result<(), CliError>) -> Result<(), CliError> {
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| MountError::Start { action: "take over stdin", source })?;
    let mut reporter = Reporter { socket: Some(UnixStream::from(socket)) };
    let result = serve(&mut reporter);
    if let Err(error) = &result {
        // The same goes to stderr, which is the log; there is nobody else to tell.
        let _ = reporter.say(error.exit(), &error.to_string());
    }
    result
}

/// Exit code and message of a complete report.
fn parse_report(report: &[u8]) -> Option<(Exit, String)> {
    let (&code, message) = report.split_first()?;
    Some((Exit::from_code(code)?, String::from_utf8_lossy(message).into_owned()))
}
