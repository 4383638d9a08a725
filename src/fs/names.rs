//! How the components of an array's name are written as names of files and folders, and read back.
//!
//! An array `a/b/c` is the file `c.npy` in the folder `b` in the folder `a`. What a file system cannot hold, or what
//! could mean two things, is percent-escaped; everything else stands as it is. Written down in
//! spec/npkfs-semantics.md, "Names".

use std::ffi::OsStr;

use super::FileKind;
use super::attr::NAME_MAX;

/// What a file name adds to the last component of an array's name.
pub const SUFFIX: &str = ".npy";

/// The folder of views, which no array is in.
pub const VIEWS: &str = ".views";

/// Marks a name that was cut: it is followed by 16 hexadecimal digits of the hash of the whole component.
const CUT_MARK: &str = "%~";
const CUT_LEN: usize = CUT_MARK.len() + 16;

/// The file or folder name of a component.
///
/// `probe` is 0, or counts up while the name is taken by another component: only cut names can collide.
pub fn encode(component: &str, kind: FileKind, probe: u64) -> String {
    let (suffix, limit) = match kind {
        FileKind::File => (SUFFIX, NAME_MAX - SUFFIX.len()),
        FileKind::Directory => ("", NAME_MAX),
    };
    let mut name = match component {
        "" => "%00".to_owned(),
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        VIEWS if kind == FileKind::Directory => "%2Eviews".to_owned(),
        _ => escape_percents(component),
    };
    if kind == FileKind::Directory
        && let Some(stem) = name.strip_suffix(SUFFIX)
    {
        name = format!("{stem}%2Enpy");
    }
    if name.len() > limit {
        let room = limit - CUT_LEN;
        let cut = (0..=room).rev().find(|&cut| name.is_char_boundary(cut)).unwrap_or(0);
        name.truncate(cut);
        let hash = hash(component.as_bytes()).wrapping_add(probe);
        name.push_str(CUT_MARK);
        name.push_str(&format!("{hash:016x}"));
    }
    name.push_str(suffix);
    name
}

/// The component that a file or folder name stands for.
///
/// `None` if no component is written so: the name of a file without `.npy`, an escape where none is needed, or a cut
/// name, which only the array that has it can explain.
pub fn decode(name: &str, kind: FileKind) -> Option<String> {
    let stem = match kind {
        FileKind::File => name.strip_suffix(SUFFIX)?,
        FileKind::Directory => name,
    };
    let component = match stem {
        "%00" => String::new(),
        _ => unescape(stem)?,
    };
    (encode(&component, kind, 0) == name).then_some(component)
}

/// Whether a file of this name is an array, or to become one.
pub(super) fn is_array_file(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(SUFFIX.as_bytes())
}

/// Whether a name that [`encode`] made was cut.
pub(super) fn is_cut(name: &str, kind: FileKind) -> bool {
    let stem = match kind {
        FileKind::File => name.strip_suffix(SUFFIX).unwrap_or(name),
        FileKind::Directory => name,
    };
    stem.len()
        .checked_sub(CUT_LEN)
        .and_then(|cut| stem.get(cut..))
        .is_some_and(|end| end.starts_with(CUT_MARK))
}

/// Escapes each percent sign that could be taken for the start of an escape or of a cut mark.
fn escape_percents(component: &str) -> String {
    let mut name = String::with_capacity(component.len());
    for (at, c) in component.char_indices() {
        name.push(c);
        if c == '%' && is_ambiguous(component.as_bytes().get(at + 1..).unwrap_or_default()) {
            name.push_str("25");
        }
    }
    name
}

fn is_ambiguous(rest: &[u8]) -> bool {
    match rest {
        [b'~', ..] => true,
        [a, b, ..] => is_upper_hex(*a) && is_upper_hex(*b),
        _ => false,
    }
}

fn is_upper_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'F')
}

fn unescape(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'%', [a, b, tail @ ..]) if is_upper_hex(*a) && is_upper_hex(*b) => {
                bytes.push(hex_value(*a) << 4 | hex_value(*b));
                rest = tail;
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

/// 64-bit FNV-1a. The same on every machine and in every release: inode numbers of folders and cut names hang on it.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_stand_as_they_are() {
        for name in [
            "a",
            "a b",
            "temp.2024",
            "100%",
            "%",
            "%zz",
            "%4",
            "a%2e",
            "x.npy",
            "\u{e4}\u{f6}",
            "...",
            "a\nb",
        ] {
            assert_eq!(encode(name, FileKind::File, 0), format!("{name}.npy"));
            assert_eq!(decode(&format!("{name}.npy"), FileKind::File).as_deref(), Some(name));
        }
        assert_eq!(encode("group", FileKind::Directory, 0), "group");
    }

    #[test]
    fn what_a_file_system_cannot_hold_is_escaped() {
        let cases = [
            ("", FileKind::File, "%00.npy"),
            ("", FileKind::Directory, "%00"),
            (".", FileKind::Directory, "%2E"),
            ("..", FileKind::Directory, "%2E%2E"),
            (".", FileKind::File, "%2E.npy"),
            ("x.npy", FileKind::Directory, "x%2Enpy"),
            (".npy", FileKind::Directory, "%2Enpy"),
            ("a%41", FileKind::File, "a%2541.npy"),
            ("%00", FileKind::Directory, "%2500"),
            ("x%2Enpy", FileKind::Directory, "x%252Enpy"),
            ("%~", FileKind::Directory, "%25~"),
            (".views", FileKind::Directory, "%2Eviews"),
            ("%2Eviews", FileKind::Directory, "%252Eviews"),
            (".views", FileKind::File, ".views.npy"),
        ];
        for (component, kind, name) in cases {
            assert_eq!(encode(component, kind, 0), name);
            assert_eq!(decode(name, kind).as_deref(), Some(component), "{name}");
        }
    }

    #[test]
    fn long_names_are_cut_at_a_character_and_told_apart() {
        for kind in [FileKind::File, FileKind::Directory] {
            let long = "\u{20ac}".repeat(100);
            let name = encode(&long, kind, 0);
            assert!(name.len() <= NAME_MAX && name.len() > NAME_MAX - 8, "{}", name.len());
            assert_ne!(name, encode(&format!("{long}x"), kind, 0));
            assert_ne!(name, encode(&long, kind, 1));
            assert_eq!(decode(&name, kind), None);
        }
        let fits = "x".repeat(251);
        assert_eq!(encode(&fits, FileKind::File, 0), format!("{fits}.npy"));
    }

    #[test]
    fn no_two_components_share_a_name() {
        let pieces = ["", ".", "%", "2", "5", "E", "0", "~", ".npy", "npy", "a"];
        let mut seen = std::collections::HashMap::new();
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    for d in pieces {
                        let component = format!("{a}{b}{c}{d}");
                        for kind in [FileKind::File, FileKind::Directory] {
                            let name = encode(&component, kind, 0);
                            assert_eq!(decode(&name, kind).as_ref(), Some(&component), "{name}");
                            let other = seen.insert(name, (component.clone(), kind));
                            assert!(other.is_none_or(|other| other == (component.clone(), kind)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_name_that_no_array_has_is_not_decoded() {
        for name in ["a", "a%41.npy", "%41.npy", "%FF.npy", "a%00.npy", ".npy", "%2E%2E%2E.npy"] {
            assert_eq!(decode(name, FileKind::File), None, "{name}");
        }
    }
}
