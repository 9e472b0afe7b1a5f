//! Archives for tests, made byte by byte, so that they can be as wrong as one likes.

// Every test file uses a part of this.
#![allow(dead_code)]

/// A header of an archive.
pub(crate) fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")] {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[329..345].copy_from_slice(b"0000001\x000000003\0");
    sum(&mut block);
    block
}

/// Makes the checksum of a header right.
pub(crate) fn sum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A member with its content.
pub(crate) fn member(name: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), kind, content.len() as u64, link.as_bytes()).to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A regular file.
pub(crate) fn file(name: &str, content: &str) -> Vec<u8> {
    member(name, b'0', content.as_bytes(), "")
}

/// Members and an end mark.
pub(crate) fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

/// An extended header with these records, for the member that follows.
pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest..rest + 8).find(|length| length.to_string().len() + rest == *length).expect("a length");
        content.extend_from_slice(format!("{length} {key}=").as_bytes());
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    member("x", b'x', &content, "")
}

/// The header of a member whose size is this, by the bytes of a field.
pub(crate) fn sized(name: &str, field: [u8; 12]) -> Vec<u8> {
    let mut block = header(name.as_bytes(), b'0', 0, b"");
    block[124..136].copy_from_slice(&field);
    sum(&mut block);
    block.to_vec()
}
