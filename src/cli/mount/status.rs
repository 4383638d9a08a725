//! `npkfs status`: the mounts of this machine, and what the processes that serve them have counted.
//!
//! Each process answers on a socket beside that of [`presence`], in a folder of its user's that only root can enter besides:
//! whoever connects gets one line of JSON. So the numbers are those of the moment, and those of a process that is gone
//! are gone with it.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::cli::opts::StatusOpts;
use crate::cli::output::{self, Align, Out, Table};
use crate::fs::Counts;
use crate::fuse::Monitor;
use crate::sys::mounts::{self, MountEntry};

use super::umount::FS_TYPE;
use super::{UmountError, preflight, presence};

/// How long a process may take to answer, or a mount to tell whether it is dead.
const TIMEOUT: Duration = Duration::from_secs(2);
/// An answer is shorter.
const MAX_ANSWER_LEN: u64 = 1 << 16;

/// The counters by the names they have in JSON, each with what it counts.
fn counters(counts: &Counts) -> [(&'static str, u64, &'static str); 7] {
    [
        ("reads", counts.reads, "Reads that were answered."),
        ("bytes_read", counts.bytes_read, "Bytes of these reads."),
        ("writes", counts.writes, "Writes that were taken."),
        ("bytes_written", counts.bytes_written, "Bytes of these writes."),
        ("bytes_decoded", counts.bytes_decoded, "Bytes of compressed arrays that were decoded to be read."),
        ("cache_hits", counts.cache_hits, "Parts of reads that a block answered which was decoded already."),
        ("errors", counts.errors, "Operations on files that failed in the store or on its disk."),
    ]
}

/// What a process serves.
#[derive(Debug)]
pub struct Place {
    pub dev: u64,
    pub store: PathBuf,
}

/// Answers whoever asks how the mount is used, until this process ends. Dropping it takes the socket away.
#[derive(Debug)]
pub struct Answering {
    path: PathBuf,
}

impl Answering {
    pub fn start(place: Place, read_only: bool, monitor: Monitor) -> io::Result<Answering> {
        let path = presence::own_folder()?.join(format!("{}-{}.status", place.dev, std::process::id()));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let since = output::time_json(SystemTime::now());
        let answer = move |mut socket: UnixStream| {
            let Some(counts) = monitor.counts() else { return };
            let counted: serde_json::Map<_, _> =
                counters(&counts).into_iter().map(|(name, n, _)| (name.to_owned(), n.into())).collect();
            let answer = json!({
                "pid": std::process::id(),
                "store": place.store.to_string_lossy(),
                "read_only": read_only,
                "since": since,
                "decoded_len": monitor.decoded_len(),
                "counters": counted,
            });
            // Who went away meanwhile does not miss it; a line fits the socket's buffer, so nobody makes this one wait.
            let _ = socket.set_write_timeout(Some(TIMEOUT));
            let _ = writeln!(socket, "{answer}");
        };
        // Not joined: it ends with this process.
        thread::Builder::new().name("npkfs-status".into()).spawn(move || {
            listener.incoming().flatten().for_each(answer);
        })?;
        Ok(Answering { path })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Device number and process number of a socket's name.
pub fn parse_name(name: &str) -> Option<(u64, u32)> {
    let (dev, pid) = name.strip_suffix(".status")?.split_once('-')?;
    Some((dev.parse().ok()?, pid.parse().ok()?))
}

pub fn status(opts: &StatusOpts) -> Result<(), CliError> {
    let mut entries = mounts::list().map_err(|source| UmountError::Table { source })?;
    entries.retain(|entry| entry.fs_type == FS_TYPE);
    if let Some(mountpoint) = &opts.mountpoint {
        let only = mounts::find(mountpoint).map_err(|source| UmountError::Table { source })?;
        entries.retain(|entry| only.as_ref() == Some(entry));
        if entries.is_empty() {
            return Err(UmountError::NotMounted { mountpoint: mountpoint.clone() }.into());
        }
    }
    let seen: Vec<Seen> = entries.into_iter().map(Seen::of).collect();
    if let Some(path) = &opts.prometheus {
        return publish(path, &prometheus(&seen)).map_err(CliError::io("write", path));
    }
    let mut out = Out::new();
    if opts.json {
        out.json(&seen.iter().map(Seen::json).collect::<Vec<_>>().into())?;
    } else {
        for line in table(&seen).lines() {
            out.line(&line)?;
        }
    }
    out.finish()
}

/// A mount and what is known of it.
struct Seen {
    entry: MountEntry,
    state: &'static str,
    /// The answer of the process that serves it.
    answer: Option<Value>,
}

impl Seen {
    fn of(entry: MountEntry) -> Seen {
        let answer = ask(entry.dev);
        let state = if answer.is_some() {
            "serving"
        } else {
            let path = entry.mount_point.clone();
            match preflight::in_time(TIMEOUT, move || mounts::probe(&path)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => "dead",
                None => "hanging",
                // Somebody else's, or of another release.
                Some(_) => "unknown",
            }
        };
        Seen { entry, state, answer }
    }

    fn counter(&self, name: &str) -> Option<u64> {
        self.answer.as_ref()?["counters"][name].as_u64()
    }

    fn mountpoint(&self) -> String {
        self.entry.mount_point.to_string_lossy().into_owned()
    }

    fn json(&self) -> Value {
        let mut value = json!({
            "mountpoint": self.mountpoint(),
            "store": self.entry.source.to_string_lossy(),
            "state": self.state,
        });
        if let (Some(Value::Object(answer)), Some(value)) = (&self.answer, value.as_object_mut()) {
            value.extend(answer.clone());
        }
        value
    }
}

/// The answer of the process that serves the mount with this device number.
fn ask(dev: u64) -> Option<Value> {
    presence::sockets_of(dev, parse_name).into_iter().find_map(|(_, path)| {
        // Whoever can write to the folder could let us wait here.
        let read = move || {
            let mut answer = String::new();
            UnixStream::connect(path).ok()?.take(MAX_ANSWER_LEN).read_to_string(&mut answer).ok()?;
            serde_json::from_str::<Value>(&answer).ok()
        };
        preflight::in_time(TIMEOUT, read)?
    })
}

fn table(seen: &[Seen]) -> Table {
    let mut table = Table::new(&[
        ("MOUNTPOINT", Align::Left),
        ("STORE", Align::Left),
        ("STATE", Align::Left),
        ("PID", Align::Right),
        ("READS", Align::Right),
        ("READ", Align::Right),
        ("WRITES", Align::Right),
        ("WRITTEN", Align::Right),
        ("DECODED", Align::Right),
        ("CACHE HITS", Align::Right),
        ("ERRORS", Align::Right),
    ]);
    for mount in seen {
        let count = |name| mount.counter(name).map_or_else(|| "-".to_owned(), |n| n.to_string());
        let size = |name| mount.counter(name).map_or_else(|| "-".to_owned(), output::size);
        let pid = mount.answer.as_ref().and_then(|answer| answer["pid"].as_u64());
        table.push(vec![
            output::printable_name(&mount.mountpoint()),
            output::printable_name(&mount.entry.source.to_string_lossy()),
            mount.state.to_owned(),
            pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            count("reads"),
            size("bytes_read"),
            count("writes"),
            size("bytes_written"),
            size("bytes_decoded"),
            count("cache_hits"),
            count("errors"),
        ]);
    }
    table
}

/// The text format of Prometheus.
fn prometheus(seen: &[Seen]) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Seen) -> Option<u64>| {
        let _ = writeln!(text, "# HELP npkfs_{name} {help}\n# TYPE npkfs_{name} {kind}");
        for mount in seen {
            if let Some(value) = value(mount) {
                let mountpoint = label(&mount.mountpoint());
                let store = label(&mount.entry.source.to_string_lossy());
                let _ =
                    writeln!(text, "npkfs_{name}{{mountpoint=\"{mountpoint}\",store=\"{store}\"}} {value}");
            }
        }
    };
    metric("up", "gauge", "Whether the process that serves the mount answers.", &|mount| {
        (mount.state != "unknown").then_some(u64::from(mount.state == "serving"))
    });
    for (name, _, help) in counters(&Counts::default()) {
        metric(&format!("{name}_total"), "counter", help, &|mount| mount.counter(name));
    }
    metric("decoded_bytes", "gauge", "Bytes of the arrays that are decoded whole now.", &|mount| {
        mount.answer.as_ref()?["decoded_len"].as_u64()
    });
    text
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes a file that appears whole.
fn publish(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    // Collectors read what ends in .prom.
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(std::ffi::OsStr::from_bytes(name.as_bytes()));
    hidden.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(hidden);
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}
