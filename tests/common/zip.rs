//! Reads zip files of stored members, and checks all that they say twice.

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub crc: u32,
    /// Where its content begins in the file.
    pub start: u64,
    pub len: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The data of an extra field.
fn extra(extras: &[u8], id: u16) -> Option<&[u8]> {
    let mut at = 0;
    while at < extras.len() {
        let len = usize::from(u16_at(extras, at + 2));
        if u16_at(extras, at) == id {
            return Some(&extras[at + 4..at + 4 + len]);
        }
        at += 4 + len;
    }
    assert_eq!(at, extras.len());
    None
}

/// Takes the large numbers out of the zip64 field, in order.
fn large(numbers: &mut [u64], extras: &[u8]) {
    let mut rest = extra(extras, 1).unwrap_or_default();
    for number in numbers.iter_mut().filter(|number| **number == u64::from(u32::MAX)) {
        *number = u64_at(rest, 0);
        rest = &rest[8..];
    }
    assert!(rest.is_empty());
}

/// The members that the directory lists. `read` gives bytes of the file, which has `len`.
pub fn members(len: u64, read: impl Fn(u64, usize) -> Vec<u8>) -> Vec<Member> {
    let end = read(len - 22, 22);
    assert_eq!(u32_at(&end, 0), 0x0605_4b50);
    let (mut n, mut size, mut start) =
        (u64::from(u16_at(&end, 10)), u64::from(u32_at(&end, 12)), u64::from(u32_at(&end, 16)));
    if len >= 42 && u32_at(&read(len - 42, 4), 0) == 0x0706_4b50 {
        let record = read(u64_at(&read(len - 42, 20), 8), 56);
        assert_eq!(u32_at(&record, 0), 0x0606_4b50);
        (n, size, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    } else {
        assert!(n < 65535 && start < u64::from(u32::MAX));
    }
    let directory = read(start, size as usize);
    let mut at = 0;
    let mut members = Vec::new();
    for _ in 0..n {
        let entry = &directory[at..];
        assert_eq!((u32_at(entry, 0), u16_at(entry, 10)), (0x0201_4b50, 0), "stored");
        let (name_len, extra_len) = (usize::from(u16_at(entry, 28)), usize::from(u16_at(entry, 30)));
        let name = String::from_utf8(entry[46..46 + name_len].to_vec()).unwrap();
        assert_eq!(u16_at(entry, 8) >> 11 == 1, !name.is_ascii());
        let mut numbers = [u32_at(entry, 24), u32_at(entry, 20), u32_at(entry, 42)].map(u64::from);
        large(&mut numbers, &entry[46 + name_len..][..extra_len]);
        let [len, compressed_len, offset] = numbers;
        assert_eq!(len, compressed_len);

        let local = read(offset, 30);
        assert_eq!(u32_at(&local, 0), 0x0403_4b50);
        assert_eq!(local[4..28], entry[6..30], "{name}");
        let local_extra_len = usize::from(u16_at(&local, 28));
        assert_eq!(read(offset + 30, name_len), name.as_bytes());
        let extras = read(offset + 30 + name_len as u64, local_extra_len);
        let mut sizes = [u32_at(&local, 22), u32_at(&local, 18)].map(u64::from);
        large(&mut sizes, &extras);
        assert_eq!(sizes, [len, len]);
        let start = offset + 30 + name_len as u64 + local_extra_len as u64;
        members.push(Member { name, crc: u32_at(entry, 16), start, len });
        at += 46 + name_len + extra_len;
    }
    assert_eq!(at as u64, size);
    members
}
