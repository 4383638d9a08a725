//! Exit codes of `npkfs`.

use std::process::ExitCode;

/// How a run of `npkfs` ends. Scripts rely on the numbers: never renumber, never reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for is done.
    Done = 0,
    /// Something was not done; a message on stderr says what and why.
    Failed = 1,
    /// The command line makes no sense; nothing was tried.
    Usage = 2,
    /// The store is damaged.
    Damaged = 3,
    /// Somebody else uses the store: a writer holds its lock, or programs hold files of its mount open.
    InUse = 4,
}

impl Exit {
    /// The exit with this number, if there is one.
    pub fn from_code(code: u8) -> Option<Exit> {
        [Exit::Done, Exit::Failed, Exit::Usage, Exit::Damaged, Exit::InUse]
            .into_iter()
            .find(|exit| *exit as u8 == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn every_code_leads_back_to_its_exit() {
        for code in 0..=4 {
            assert_eq!(Exit::from_code(code).map(|exit| exit as u8), Some(code));
        }
        assert_eq!(Exit::from_code(5), None);
    }
}
