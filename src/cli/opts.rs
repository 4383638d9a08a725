//! What the user types. [`super::config`] turns it into what the program needs.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::units;
use crate::format::{MAX_LEVEL, MIN_LEVEL};
use crate::store::{Compression, Filter};

/// NumPy arrays in a store, and the store as a folder of .npy files.
///
/// Data goes to stdout, messages go to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage,
/// 3 store damaged, 4 store or mount in use by somebody else.
#[derive(Debug, Parser)]
#[command(name = "npkfs", version, subcommand_required = true, arg_required_else_help = true)]
pub struct Opts {
    #[command(subcommand)]
    pub command: CommandOpts,

    /// Say more: once for information, twice for debugging, three times for everything
    /// (default: warnings; otherwise as NPKFS_LOG or RUST_LOG say)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,

    /// Say less: only errors, no progress (default: warnings, progress on a terminal)
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum CommandOpts {
    Mount(MountOpts),
    Umount(UmountOpts),
    Status(StatusOpts),
    Import(ImportOpts),
    Export(ExportOpts),
    Ls(LsOpts),
    Info(InfoOpts),
    Verify(VerifyOpts),
    Repair(RepairOpts),
    Rm(RmOpts),
    Mv(MvOpts),
    Compact(CompactOpts),
    Recompress(RecompressOpts),
    Upgrade(UpgradeOpts),
    Config(ConfigOpts),
}

/// Show a store as a folder of .npy files
///
/// Returns as soon as the mount answers; a process in the background serves it until
/// "npkfs umount MNT", or until SIGTERM.
#[derive(Debug, Args)]
pub struct MountOpts {
    /// The store
    pub store: PathBuf,

    /// The folder to mount it on: must exist and be empty
    #[arg(value_name = "MNT")]
    pub mountpoint: PathBuf,

    /// Mount options, separated by commas; may be given several times, the last one counts
    ///
    /// ro, rw: read-only or writable (default: rw; ro for a store of NumPack 0.1 to 0.7).
    /// allow_other: let other users in (default: only the mounting user).
    /// nonempty: mount over a folder that has contents, hiding them (default: refuse).
    /// passthrough=auto|off: let the kernel read uncompressed arrays from the store itself where it
    /// can (default: auto).
    /// threads=N: number of threads that answer the kernel (1 to 16, default: 2).
    /// compress=off|zstd|zstd:LEVEL: compress the arrays that are made through the mount; LEVEL is -7 (fastest) to 22
    /// (smallest) (default: as "npkfs config" says; zstd alone is zstd:1).
    /// decoded=SIZE: room for decoded copies of compressed arrays, in bytes or with K, M, G or T, which the kernel, for
    /// root, then reads as if they were not compressed; 0 for none (default: an eighth of the memory, or a quarter of
    /// what is free on the store's disk, if that is less).
    /// uid=USER, gid=GROUP, umask=OCTAL: show all files and folders as belonging to USER and GROUP, by name or number, and
    /// with all permissions but those in OCTAL; what is stored stays as it is (default: show what is stored).
    /// nodev, nosuid, noexec, noatime, nodiratime, relatime, sync, dirsync, their opposites, and defaults: as in mount(8)
    /// (default: nodev,nosuid).
    #[arg(short = 'o', value_name = "OPTIONS", verbatim_doc_comment)]
    pub options: Vec<String>,

    /// Serve the mount from this process, and log to stderr (default: in the background)
    #[arg(short, long)]
    pub foreground: bool,

    /// Append the log of the background process to this file (default: no log)
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    pub log: Option<PathBuf>,

    /// Serve in this process and report to the socket on stdin: what the background process is started with
    #[arg(long, hide = true, conflicts_with_all = ["foreground", "log"])]
    pub report_to_stdin: bool,
}

/// Unmount a store and wait until the process that served it is gone
///
/// Also removes what a killed process left behind ("Transport endpoint is not connected").
#[derive(Debug, Args)]
pub struct UmountOpts {
    /// The folder that the store is mounted on
    #[arg(value_name = "MNT")]
    pub mountpoint: PathBuf,

    /// Take the mount out of sight at once, although programs still use it; it ends when the last
    /// of them closes its files (default: refuse, exit code 4)
    #[arg(short, long)]
    pub lazy: bool,

    /// End the mount although the process that serves it does not answer: whatever waits for it fails, and what it has
    /// not written yet is lost (default: wait for it, unless it was killed)
    #[arg(short, long)]
    pub force: bool,

    /// How long to wait for the serving process to end, in seconds (default: 60)
    #[arg(long, value_name = "SECONDS", default_value_t = 60, hide_default_value = true)]
    pub timeout: u64,
}

/// List the mounts of this machine, and how much they were used
///
/// Reads, writes and so on are counted since the mount began, by the process that serves it; what the kernel serves by
/// itself, from its cache or from the data files, is not. They are told to root and to the user who mounted.
#[derive(Debug, Args)]
pub struct StatusOpts {
    /// Only the mount on this folder; exit code 1 if there is none (default: all)
    #[arg(value_name = "MNT")]
    pub mountpoint: Option<PathBuf>,

    /// JSON, sizes in bytes, times in UTC (default: text)
    #[arg(long)]
    pub json: bool,

    /// Write the counters to this file, for a collector of Prometheus text files, and nothing to stdout; whoever reads the
    /// file finds it old or new, never in parts
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub prometheus: Option<PathBuf>,
}

/// Copy .npy files into a store
///
/// Each file becomes an array that is named like it, without ".npy"; of a folder, every .npy file
/// below it, named by its path from there with "/" between the parts. Each file is there wholly or
/// not at all. Files that are not arrays are named and left out; the rest is imported, and the exit
/// code is 1.
#[derive(Debug, Args)]
pub struct ImportOpts {
    /// .npy files, and folders that have some
    #[arg(required = true, value_name = "SRC")]
    pub sources: Vec<PathBuf>,

    /// The store; created if it does not exist
    pub store: PathBuf,

    /// Name of the array, for a single file (default: the file's name without ".npy")
    #[arg(long, conflicts_with = "prefix")]
    pub name: Option<String>,

    /// Put the arrays into this group: "PREFIX/" goes before each name (default: no group)
    #[arg(long)]
    pub prefix: Option<String>,

    /// Replace arrays that exist (default: leave them, say so, exit code 1)
    #[arg(long)]
    pub overwrite: bool,

    /// Compress the arrays with zstd, LEVEL -7 (fastest) to 22 (smallest) (default: not compressed; without LEVEL: 1)
    #[arg(
        long,
        value_name = "LEVEL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = level(),
    )]
    pub compress: Option<i32>,

    #[command(flatten)]
    pub blocks: BlockOpts,
}

/// How a compressed array is cut into blocks, each of which is encoded by itself.
#[derive(Debug, Args)]
pub struct BlockOpts {
    /// Bytes of elements per block, a multiple of 4096 up to 16M: reading any element decodes one block (default: 64K)
    #[arg(long, value_name = "SIZE", value_parser = block_len)]
    pub block: Option<u32>,

    /// What is done to a block before zstd: none; shuffle, bytes of the same place together; delta, differences of
    /// neighbouring integers, shuffled; delta2, delta3, delta4, the same of integers so many places apart, for pairs,
    /// colours and vectors; auto, what makes a sample of the array smallest (default: auto)
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    pub filter: Option<FilterOpt>,
}

/// A filter as it is typed; `None`: the one that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterOpt(pub Option<Filter>);

fn filter(text: &str) -> Result<FilterOpt, String> {
    match text {
        "auto" => Ok(FilterOpt(None)),
        name => name.parse().map(|filter| FilterOpt(Some(filter))).map_err(|_| {
            let known = Filter::ALL.map(Filter::name).join(", ");
            format!("expected auto, {known}")
        }),
    }
}

fn level() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(i64::from(MIN_LEVEL)..=i64::from(MAX_LEVEL))
}

fn block_len(text: &str) -> Result<u32, String> {
    let n_bytes = units::size(text).ok_or_else(|| format!("expected {}", units::SIZE_EXPECTED))?;
    let n_bytes = u32::try_from(n_bytes).unwrap_or(u32::MAX);
    let compression = Compression { block_len: n_bytes, ..Compression::default() };
    compression.codec(Filter::None).map_err(|error| error.to_string())?;
    Ok(n_bytes)
}

/// Copy arrays out of a store, as .npy files
///
/// Groups become folders. Each file is there wholly or not at all.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct ExportOpts {
    /// The store
    pub store: PathBuf,

    /// Arrays, or groups with all that is in them (default: everything)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// The folder to write to; created if it does not exist
    #[arg(value_name = "DEST_DIR")]
    pub dest: PathBuf,

    /// Replace files that exist (default: leave them, say so, exit code 1)
    #[arg(long)]
    pub overwrite: bool,
}

/// List the arrays of a store
#[derive(Debug, Args)]
pub struct LsOpts {
    /// The store
    pub store: PathBuf,

    /// Only the array of this name, or the arrays of this group (default: all)
    pub prefix: Option<String>,

    /// One line per array with dtype, shape, size, and time of the last change in UTC (default: names only)
    #[arg(short)]
    pub long: bool,

    /// JSON, sizes in bytes, times in UTC (default: text)
    #[arg(long)]
    pub json: bool,
}

/// Describe a store, or one array of it
#[derive(Debug, Args)]
pub struct InfoOpts {
    /// The store
    pub store: PathBuf,

    /// The array (default: a table of all arrays, and totals)
    pub name: Option<String>,

    /// JSON, sizes in bytes, times in UTC (default: text)
    #[arg(long)]
    pub json: bool,
}

/// Look for damage: in the manifest, and in every data file that it names
///
/// Of compressed arrays the whole index is read and checked. Changes nothing. Exit code 3 if there is damage.
#[derive(Debug, Args)]
pub struct VerifyOpts {
    /// The store
    pub store: PathBuf,

    /// Read everything: every block of every compressed array is checked and decoded, on all cores; arrays that are not
    /// compressed have no checksums, and are read only to see that the disk gives them (default: no elements are read)
    #[arg(long)]
    pub deep: bool,

    /// JSON, offsets and sizes in bytes (default: text)
    #[arg(long)]
    pub json: bool,
}

/// Make of a damaged store one that can be used, and say what is lost
///
/// A manifest that is lost or damaged is made anew: of its own good parts, its backup, or the headers of the data files.
/// A damaged array is replaced by what can be read of it: what cannot is zeros, and the rows that it was in are told, and
/// named in the array's attribute npkfs.lost_rows. Nothing damaged is removed or overwritten: the originals are in the
/// folder lost+found in the store. Everything is read; what is sound is not changed. It can be run again at any time, also
/// after it was interrupted. Exit code 3 if something is lost, or in doubt.
#[derive(Debug, Args)]
pub struct RepairOpts {
    /// The store
    pub store: PathBuf,

    /// Write what is left to a new store in this folder, which is created, and leave the damaged one as it is (default:
    /// in its place)
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,

    /// JSON, offsets in bytes, ranges of rows without the last number (default: text)
    #[arg(long)]
    pub json: bool,
}

/// Remove arrays
///
/// All of them in one step, or none if one does not exist.
#[derive(Debug, Args)]
pub struct RmOpts {
    /// The store
    pub store: PathBuf,

    /// Arrays; with -r also groups
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,

    /// Remove groups with all that is in them (default: only arrays)
    #[arg(short, long)]
    pub recursive: bool,
}

/// Rename an array
#[derive(Debug, Args)]
pub struct MvOpts {
    /// The store
    pub store: PathBuf,

    /// Name of the array
    pub old: String,

    /// Its new name
    pub new: String,

    /// Replace the array that has the new name (default: refuse)
    #[arg(long)]
    pub overwrite: bool,
}

/// Give the space of deleted rows, and of what compressed arrays do not need any more, back to the disk
#[derive(Debug, Args)]
pub struct CompactOpts {
    /// The store
    pub store: PathBuf,

    /// Arrays, or groups with all that is in them (default: everything)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Compress arrays that are stored, differently or not at all
///
/// Each array is stored anew, and replaced when that is on the disk; its elements stay what they are. Who has it open
/// or mapped keeps the old one, whose space is free when the last of them closes it.
#[derive(Debug, Args)]
pub struct RecompressOpts {
    /// The store
    pub store: PathBuf,

    /// Arrays, or groups with all that is in them (default: everything)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Level of zstd, -7 (fastest) to 22 (smallest) (default: 1)
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true, value_parser = level())]
    pub level: Option<i32>,

    #[command(flatten)]
    pub blocks: BlockOpts,

    /// Store the arrays uncompressed (default: compressed)
    #[arg(long, conflicts_with_all = ["level", "block", "filter"])]
    pub none: bool,
}

/// Turn a store that NumPack 0.1 to 0.7 wrote into one that can be written to
///
/// In its place, every array is written anew before anything is removed, so that as much space must be free as the store
/// takes. Whatever happens on the way, the store is the old one or the new one; run it again to go on. NumPack 0.1 to
/// 0.7 can not read the new store. End programs that have it open with one of these releases before.
#[derive(Debug, Args)]
pub struct UpgradeOpts {
    /// The store
    pub store: PathBuf,

    /// Write the new store to this folder, which is created, and leave the old one as it is (default: in its place)
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,

    /// Leave out arrays that cannot be read, say so, exit code 3 (default: do nothing if there are any)
    #[arg(long, requires = "to")]
    pub skip_damaged: bool,

    /// Compress the arrays with zstd, LEVEL -7 (fastest) to 22 (smallest) (default: not compressed; without LEVEL: 1)
    #[arg(
        long,
        value_name = "LEVEL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = level()
    )]
    pub compress: Option<i32>,

    #[command(flatten)]
    pub blocks: BlockOpts,
}

/// Show or change the settings of a store
///
/// compress=off|zstd|zstd:LEVEL: how arrays are compressed that are made through a mount whose options do not say;
/// LEVEL is -7 (fastest) to 22 (smallest), zstd alone is zstd:1. A new store has compress=off: then only what replaces
/// a compressed array is compressed, as that is. The API and "npkfs import" compress what they are told to.
#[derive(Debug, Args)]
pub struct ConfigOpts {
    /// The store
    pub store: PathBuf,

    /// KEY shows a setting, KEY=VALUE changes it (default: show all)
    #[arg(value_name = "KEY[=VALUE]")]
    pub settings: Vec<String>,
}
