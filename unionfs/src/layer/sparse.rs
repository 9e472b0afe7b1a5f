//! Sparse members: files of which an archive holds only the pieces that are not zeros, in the forms
//! of GNU tar (its manual, "Storing Sparse Files"): that of its own headers, and 0.0, 0.1 and 1.0 of
//! pax.

use super::pax;
use super::writing::BLOCK;

/// No file has more pieces than this in a layer that is to be read.
const MOST: usize = 1 << 20;

/// Offset and length.
type Piece = (u64, u64);

/// Where the content of a file goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// In ascending order; between them are holes.
    pub(super) pieces: Vec<Piece>,
    /// How long the file is.
    pub(super) size: u64,
}

impl Sparse {
    /// Pieces that follow each other, lie in the file and are as long as the content; nothing else
    /// is one.
    pub(super) fn checked(pieces: Vec<Piece>, size: u64, content: u64) -> Option<Sparse> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, length) in &pieces {
            if *offset < end {
                return None;
            }
            end = offset.checked_add(*length)?;
            sum = sum.checked_add(*length)?;
        }
        (end <= size && i64::try_from(size).is_ok() && sum == content).then_some(Sparse { pieces, size })
    }
}

/// What pax records say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// 1.0: the pieces stand before the content.
    in_content: bool,
    offset: Option<u64>,
    pieces: Vec<Piece>,
    size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
}

/// Where the pieces are told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nowhere: it is no sparse file.
    Not,
    /// In the records: pieces and size.
    Here(Vec<Piece>, u64),
    /// At the start of the content; the size.
    InContent(u64),
    /// Somewhere, but not how long the file is.
    Half,
}

impl Records {
    /// Takes a record whose key began with `GNU.sparse.`; nothing if its value is none.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.in_content = pax::number::<u32>(value)? == 1,
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"size" | b"realsize" => self.size = Some(pax::number(value)?),
            b"offset" => self.offset = Some(pax::number(value)?),
            b"numbytes" => {
                let offset = self.offset.take()?;
                self.push((offset, pax::number(value)?))?;
            }
            b"map" if value.is_empty() => {}
            b"map" => {
                let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(pax::number).collect::<Option<_>>()?;
                for pair in numbers.chunks(2) {
                    self.push((*pair.first()?, *pair.get(1)?))?;
                }
            }
            // the minor version, and how many pieces there are
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, piece: Piece) -> Option<()> {
        self.pieces.push(piece);
        (self.pieces.len() <= MOST).then_some(())
    }

    pub(super) fn told(self) -> Told {
        match self.size {
            None if self.in_content || !self.pieces.is_empty() => Told::Half,
            None => Told::Not,
            Some(size) if self.in_content => Told::InContent(size),
            Some(size) => Told::Here(self.pieces, size),
        }
    }
}

/// Reads the pieces at the start of the content, by lines: how many, then offset and length of each.
/// `read` reads a block of the content. What they take of it, too.
pub(super) fn in_content<E>(
    mut read: impl FnMut(&mut [u8; BLOCK]) -> Result<(), E>,
) -> Result<Option<(Vec<Piece>, u64)>, E> {
    let mut used = 0;
    let mut block = [0; BLOCK];
    let mut at = BLOCK;
    let mut line = || -> Result<Option<u64>, E> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK {
                read(&mut block)?;
                (at, used) = (0, used + BLOCK as u64);
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => return Ok(pax::number(&digits)),
                _ if digits.len() > 20 => return Ok(None),
                digit => digits.push(digit),
            }
        }
    };
    let Some(count) = line()?.and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= MOST) else {
        return Ok(None);
    };
    let mut pieces = Vec::new();
    for _ in 0..count {
        let (Some(offset), Some(length)) = (line()?, line()?) else { return Ok(None) };
        pieces.push((offset, length));
    }
    Ok(Some((pieces, used)))
}

/// The pieces in a block of GNU's headers, which has `room` for so many from `at` on.
pub(super) fn in_header(block: &[u8], at: usize, room: usize, pieces: &mut Vec<Piece>) -> Option<()> {
    for slot in 0..room {
        let field = |from: usize| block.get(at + slot * 24 + from..at + slot * 24 + from + 12);
        let (offset, length) = (field(0)?, field(12)?);
        // slots that are not used come last
        if offset.first() == Some(&0) || length.first() == Some(&0) {
            return Some(());
        }
        pieces.push((number(offset)?, number(length)?));
        if pieces.len() > MOST {
            return None;
        }
    }
    Some(())
}

/// A number in a field of a header: octal digits or, where the first bit is set, bytes.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let bytes = std::iter::once(first & 0x7f).chain(rest.iter().copied());
        return bytes.into_iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(byte.into()));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_one_after_the_other_in_the_file() {
        for (pieces, size, content, is_one) in [
            (&[(0, 10), (10, 5), (100, 0)][..], 100, 15, true),
            (&[], 0, 0, true),
            (&[], 1 << 62, 0, true),
            (&[(5, 5), (0, 5)], 100, 10, false),
            (&[(0, 10), (9, 1)], 100, 11, false),
            (&[(90, 11)], 100, 11, false),
            (&[(0, 10)], 100, 9, false),
            (&[(u64::MAX, 2)], u64::MAX, 2, false),
            (&[], u64::MAX, 0, false),
        ] {
            assert_eq!(
                Sparse::checked(pieces.to_vec(), size, content).is_some(),
                is_one,
                "{pieces:?} {size} {content}"
            );
        }
    }

    #[test]
    fn records_are_of_three_forms() {
        let told = |records: &[(&str, &str)]| {
            let mut taken = Records::default();
            records.iter().try_for_each(|(key, value)| taken.take(key.as_bytes(), value.as_bytes()))?;
            Some(taken.told())
        };
        let here = Some(Told::Here(vec![(0, 5), (100, 7)], 200));
        assert_eq!(told(&[("size", "200"), ("map", "0,5,100,7")]), here);
        let each = [("size", "200"), ("offset", "0"), ("numbytes", "5"), ("offset", "100"), ("numbytes", "7")];
        assert_eq!(told(&each), here);
        assert_eq!(told(&[("major", "1"), ("minor", "0"), ("realsize", "9")]), Some(Told::InContent(9)));
        assert_eq!((told(&[]), told(&[("major", "1")])), (Some(Told::Not), Some(Told::Half)));
        for wrong in [("map", "1,2,3"), ("map", "x,1"), ("numbytes", "5"), ("size", "-1"), ("major", "x")] {
            assert_eq!(told(&[wrong]), None, "{wrong:?}");
        }
    }

    #[test]
    fn pieces_at_the_start_of_the_content_end_with_it() {
        let read = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            let mut blocks = bytes.chunks(BLOCK).map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter();
            in_content(|block| blocks.next().map(|next| block.copy_from_slice(&next)).ok_or("cut off"))
        };
        assert_eq!(read("2\n0\n5\n100\n7\n"), Ok(Some((vec![(0, 5), (100, 7)], 512))));
        let many = format!("200\n{}", "1\n1\n".repeat(200));
        assert_eq!(read(&many), Ok(Some((vec![(1, 1); 200], 1024))));
        for wrong in ["", "x\n", "1\n2\n", "99999999999\n", "111111111111111111111111\n"] {
            assert!(matches!(read(wrong), Ok(None) | Err(_)), "{wrong}");
        }
    }
}
