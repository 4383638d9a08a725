//! The mount options, `-o`.

use std::fmt;
use std::num::NonZeroUsize;

use crate::cli::units;
use crate::fs::Shown;
use crate::store::Compression;
use crate::sys::accounts;

/// What `-o` can say, for messages.
const KNOWN: &str = "ro, rw, allow_other, nonempty, passthrough=auto|off, threads=N, \
                     compress=off|zstd[:LEVEL], decoded=SIZE, uid=USER, gid=GROUP, umask=OCTAL, dev, nodev, suid, nosuid, \
                     exec, noexec, atime, noatime, nodiratime, relatime, \
                     strictatime, sync, async, dirsync, defaults";

/// As many threads as a mount takes.
const MAX_THREADS: usize = 16;

/// The meaning of all `-o` of one command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Nothing can be changed through the mount.
    pub read_only: bool,
    /// Users other than the mounting one may look in.
    pub allow_other: bool,
    /// What the mountpoint contains may be hidden.
    pub nonempty: bool,
    /// The kernel may read data files itself.
    pub passthrough: bool,
    /// Threads that answer the kernel; `None` is for the mount to choose.
    pub threads: Option<NonZeroUsize>,
    /// How arrays are compressed that are made through the mount; `None`: as the store says.
    pub compression: Option<Option<Compression>>,
    /// Bytes that decoded arrays may take, for the kernel to serve them itself; `None` is for the mount to choose.
    pub decoded: Option<u64>,
    /// What is shown of all files and folders, whatever the store's have.
    pub shown: Shown,
    /// Options that only concern the kernel.
    pub kernel: Vec<&'static str>,
}

impl Default for Choices {
    fn default() -> Self {
        Choices {
            read_only: false,
            allow_other: false,
            nonempty: false,
            passthrough: true,
            threads: None,
            compression: None,
            decoded: None,
            shown: Shown::default(),
            kernel: Vec::new(),
        }
    }
}

/// The mount options that the kernel carries out, each with the one that takes it back.
const KERNEL_OPTIONS: [(&str, Option<&str>); 14] = [
    ("dev", Some("nodev")),
    ("nodev", Some("dev")),
    ("suid", Some("nosuid")),
    ("nosuid", Some("suid")),
    ("exec", Some("noexec")),
    ("noexec", Some("exec")),
    ("atime", Some("noatime")),
    ("noatime", Some("atime")),
    ("nodiratime", None),
    ("relatime", Some("strictatime")),
    ("strictatime", Some("relatime")),
    ("sync", Some("async")),
    ("async", Some("sync")),
    ("dirsync", None),
];

/// An option that `-o` does not know, or whose value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionError {
    /// No such option.
    Unknown { option: String },
    /// The option exists, its value does not.
    BadValue { option: String, expected: &'static str },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionError::Unknown { option } => {
                write!(f, "unknown mount option \"{option}\"; npkfs knows {KNOWN}")
            }
            OptionError::BadValue { option, expected } => {
                write!(f, "mount option \"{option}\": expected {expected}")
            }
        }
    }
}

impl std::error::Error for OptionError {}

impl Choices {
    /// Reads the comma lists of all `-o`, in their order; of options that exclude each other, the last one counts.
    pub fn parse(lists: &[String]) -> Result<Choices, OptionError> {
        let mut choices = Choices::default();
        for option in lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
            choices.take(option)?;
        }
        Ok(choices)
    }

    fn take(&mut self, option: &str) -> Result<(), OptionError> {
        let (word, value) = match option.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (option, None),
        };
        let bad_value = |expected| Err(OptionError::BadValue { option: option.to_owned(), expected });
        match (word, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = true,
            ("nonempty", None) => self.nonempty = true,
            ("defaults", None) => {}
            ("passthrough", Some("auto")) => self.passthrough = true,
            ("passthrough", Some("off")) => self.passthrough = false,
            ("passthrough", _) => return bad_value("passthrough=auto or passthrough=off"),
            ("threads", value) => match value.and_then(|n| n.parse::<NonZeroUsize>().ok()) {
                Some(n) if n.get() <= MAX_THREADS => self.threads = Some(n),
                _ => return bad_value("threads=N, N from 1 to 16"),
            },
            ("compress", value) => match value.and_then(units::compress) {
                Some(compression) => self.compression = Some(compression),
                None => return bad_value(units::COMPRESS_EXPECTED),
            },
            ("decoded", value) => match value.and_then(units::size) {
                Some(n_bytes) => self.decoded = Some(n_bytes),
                None => return bad_value("decoded=SIZE, SIZE in bytes, or with K, M, G or T; 0 for none"),
            },
            ("uid", value) => match value.and_then(|user| number_of(user, accounts::user)) {
                Some(uid) => self.shown.uid = Some(uid),
                None => return bad_value("uid=USER, the name or number of a user"),
            },
            ("gid", value) => match value.and_then(|group| number_of(group, accounts::group)) {
                Some(gid) => self.shown.gid = Some(gid),
                None => return bad_value("gid=GROUP, the name or number of a group"),
            },
            ("umask", value) => match value.and_then(umask) {
                Some(umask) => self.shown.umask = Some(umask),
                None => return bad_value("umask=OCTAL, permissions to take away, up to 777"),
            },
            (word, None) => match KERNEL_OPTIONS.iter().find(|(known, _)| *known == word) {
                Some(&(known, opposite)) => {
                    self.kernel.retain(|&earlier| earlier != known && Some(earlier) != opposite);
                    self.kernel.push(known);
                }
                None => return Err(OptionError::Unknown { option: option.to_owned() }),
            },
            (_, Some(_)) => return Err(OptionError::Unknown { option: option.to_owned() }),
        }
        Ok(())
    }
}

/// A number, or that of a name. The largest one means "none" to the kernel.
fn number_of(account: &str, by_name: impl Fn(&str) -> Option<u32>) -> Option<u32> {
    let number = match account.parse() {
        Ok(number) => Some(number),
        Err(_) => by_name(account),
    };
    number.filter(|number| *number != u32::MAX)
}

fn umask(octal: &str) -> Option<u16> {
    let is_octal = octal.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    u16::from_str_radix(octal, 8).ok().filter(|umask| is_octal && *umask <= 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lists: &[&str]) -> Result<Choices, OptionError> {
        Choices::parse(&lists.iter().map(|list| (*list).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_means_writable_private_and_passed_through() {
        let choices = parse(&[]).unwrap();
        assert_eq!(choices, Choices::default());
        assert!(!choices.read_only && !choices.allow_other && choices.passthrough);
    }

    #[test]
    fn lists_add_up_and_the_last_one_counts() {
        let choices =
            parse(&["ro,allow_other,,nodev", "rw,passthrough=off,threads=3", "dev,noatime"]).unwrap();
        assert!(!choices.read_only && choices.allow_other && !choices.passthrough);
        assert_eq!(choices.threads, NonZeroUsize::new(3));
        assert_eq!(choices.kernel, ["dev", "noatime"]);
    }

    #[test]
    fn compression_is_the_stores_unless_it_is_chosen() {
        assert_eq!((parse(&[]).unwrap().compression, parse(&[]).unwrap().decoded), (None, None));
        assert_eq!(parse(&["compress=off,decoded=0"]).unwrap().compression, Some(None));
        let choices = parse(&["compress=off", "compress=zstd:-3,decoded=512M"]).unwrap();
        assert_eq!(choices.compression.flatten().map(|compression| compression.level), Some(-3));
        assert_eq!(choices.decoded, Some(512 << 20));
        assert_eq!(parse(&["decoded=0"]).unwrap().decoded, Some(0));
    }

    #[test]
    fn owners_are_names_or_numbers() {
        let choices = parse(&["uid=1000,gid=root,umask=027", "uid=root"]).unwrap();
        assert_eq!(choices.shown, Shown { uid: Some(0), gid: Some(0), umask: Some(0o27) });
        assert_eq!(parse(&["umask=0"]).unwrap().shown.umask, Some(0));
        assert_eq!(parse(&["gid=4294967294"]).unwrap().shown.gid, Some(u32::MAX - 1));
    }

    #[test]
    fn unknown_options_are_named_with_the_known_ones() {
        for option in ["compres", "compres=off", "ro=1", "Passthrough=off", "nodev=", "fsname=x"] {
            let message = parse(&["rw", option]).unwrap_err().to_string();
            assert!(message.starts_with(&format!("unknown mount option \"{option}\"")), "{message}");
            assert!(message.contains("allow_other") && message.contains("noatime"), "{message}");
        }
    }

    #[test]
    fn known_words_are_in_the_message() {
        for (word, _) in KERNEL_OPTIONS {
            assert!(KNOWN.split([',', ' ']).any(|known| known == word), "{word}");
        }
    }

    #[test]
    fn bad_values_say_what_is_expected() {
        for option in [
            "threads",
            "threads=",
            "threads=0",
            "threads=-1",
            "threads=17",
            "passthrough",
            "passthrough=on",
            "compress",
            "compress=on",
            "compress=zstd:23",
            "decoded",
            "decoded=much",
            "decoded=-1",
            "uid",
            "uid=",
            "uid=-1",
            "uid=4294967295",
            "gid=no such group",
            "umask",
            "umask=",
            "umask=8",
            "umask=+7",
            "umask=1000",
        ] {
            let message = parse(&[option]).unwrap_err().to_string();
            assert!(message.contains("expected") && message.contains(option), "{message}");
        }
    }
}
