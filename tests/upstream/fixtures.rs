//! The stores in `tests/data/upstream`, and what a correct reader returns of them.

#![allow(dead_code, reason = "each test crate uses some of it")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use numpack::bytes::{u16_at, u32_at};
use numpack::format::npy;
use numpack::store::Dtype;
use tempfile::TempDir;

/// An array as it should be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub elements: Vec<u8>,
}

/// One store that an old release wrote.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The release, as the folder is called.
    pub release: String,
    pub name: String,
    path: PathBuf,
}

/// A copy of a fixture that a test may change.
pub struct Copy {
    _dir: TempDir,
    pub path: PathBuf,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/upstream")
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// All stores that have an answer.
pub fn all() -> Vec<Fixture> {
    let mut found = Vec::new();
    for release in entries(&root()).into_iter().filter(|name| name.starts_with('0')) {
        for file in entries(&root().join(&release)) {
            if let Some(name) = file.strip_suffix(".expected.npz") {
                let path = root().join(&release).join(format!("{name}.npk"));
                found.push(Fixture { release: release.clone(), name: name.to_owned(), path });
            }
        }
    }
    assert!(found.len() > 70, "{} fixtures", found.len());
    found
}

pub fn fixture(release: &str, name: &str) -> Fixture {
    let found = all().into_iter().find(|fixture| fixture.release == release && fixture.name == name);
    found.unwrap_or_else(|| panic!("no {release}/{name}"))
}

/// A state that an old release left behind.
pub fn quirk(name: &str) -> Copy {
    copy_of(&root().join("quirks").join(format!("{name}.npk")))
}

pub fn quirks() -> Vec<String> {
    entries(&root().join("quirks")).iter().map(|name| name.strip_suffix(".npk").unwrap().to_owned()).collect()
}

impl Fixture {
    pub fn copy(&self) -> Copy {
        copy_of(&self.path)
    }

    /// The layout of the table, in the words of the specification.
    pub fn layout(&self) -> &'static str {
        match self.release.as_str() {
            "0.1.1-rust" | "0.2.0-rust" => "0.1-0.2.0",
            "0.2.0-python" => "0.2.0 (Python)",
            "0.2.1-rust" | "0.2.1-python" => "0.2.1",
            _ => "0.3-0.7",
        }
    }

    /// What the store holds, in no particular order.
    pub fn expected(&self) -> Vec<Expected> {
        let zip = fs::read(self.path.with_extension("expected.npz")).unwrap();
        let members = stored_members(&zip);
        let member = |name: &str| {
            let found = members.iter().find(|(member, _)| member == &format!("{name}.npy"));
            npy(found.unwrap_or_else(|| panic!("no {name}")).1)
        };
        let names = member("names");
        let names = texts(&names);
        let arrays =
            names.into_iter().enumerate().map(|(i, name)| Expected { name, ..member(&format!("a{i}")) });
        arrays.collect()
    }
}

/// A copy in a temporary folder; fixtures whose files some file systems refuse are in an archive.
fn copy_of(path: &Path) -> Copy {
    let dir = tempfile::tempdir().unwrap();
    let name = path.file_name().unwrap();
    let archive = PathBuf::from(format!("{}.tar", path.display()));
    if archive.exists() {
        let done = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir.path()).status().unwrap();
        assert!(done.success());
    } else {
        copy_folder(path, &dir.path().join(name)).unwrap();
    }
    let path = dir.path().join(name);
    Copy { _dir: dir, path }
}

pub fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::write(to, fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// The members of a zip file that are not compressed, by its central directory.
fn stored_members(zip: &[u8]) -> Vec<(String, &[u8])> {
    const END: &[u8] = b"PK\x05\x06";
    let end = zip.windows(4).rposition(|window| window == END).unwrap();
    let u16 = |offset| usize::from(u16_at(zip, offset).unwrap());
    let u32 = |offset| u32_at(zip, offset).unwrap() as usize;
    let (n_members, mut at) = (u16(end + 10), u32(end + 16));
    let mut members = Vec::new();
    for _ in 0..n_members {
        assert_eq!((&zip[at..at + 4], u16(at + 10)), (&b"PK\x01\x02"[..], 0), "a stored member");
        let (len, name_len, header) = (u32(at + 20), u16(at + 28), u32(at + 42));
        let name = String::from_utf8(zip[at + 46..][..name_len].to_vec()).unwrap();
        let start = header + 30 + u16(header + 26) + u16(header + 28);
        members.push((name, &zip[start..start + len]));
        at += 46 + name_len + u16(at + 30) + u16(at + 32);
    }
    members
}

fn npy(bytes: &[u8]) -> Expected {
    let header = npy::parse(bytes).unwrap();
    assert!(!header.fortran_order);
    let elements = bytes[header.header_len as usize..].to_vec();
    Expected { name: String::new(), dtype: header.dtype, shape: header.shape, elements }
}

/// The elements of an array of texts.
fn texts(array: &Expected) -> Vec<String> {
    let itemsize = array.dtype.itemsize() as usize;
    if array.elements.is_empty() {
        return Vec::new();
    }
    let text = |item: &[u8]| {
        let chars = item.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap()));
        let text: String = chars.map(|c| char::from_u32(c).unwrap()).collect();
        text.trim_end_matches('\0').to_owned()
    };
    array.elements.chunks_exact(itemsize).map(text).collect()
}
