//! Extended headers of tar archives (pax(1), "pax Extended Header"): what does not fit into the
//! fields of a header. Extended attributes are `SCHILY.xattr.NAME` with the value as it is, as
//! container tools and GNU tar have it.

use crate::branch::stat::Time;

/// Prefix of extended attributes.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Adds a record `LENGTH KEY=VALUE\n`, whose length counts its own digits.
pub(super) fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // a blank, the equals sign, the end of the line
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The records of an extended header; nothing where it is not one.
pub(super) fn parse(mut rest: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !rest.is_empty() {
        let blank = rest.iter().position(|byte| *byte == b' ')?;
        let length: usize = number(&rest[..blank])?;
        let (record, after) = rest.split_at_checked(length)?;
        let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        rest = after;
    }
    Some(records)
}

/// A decimal number.
pub(super) fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A time as seconds with a fraction: `1600000000.25`.
pub(super) fn print_time(time: Time) -> String {
    let (sign, sec, nsec) = match time {
        Time { sec, nsec: 0 } => (if sec < 0 { "-" } else { "" }, sec.unsigned_abs(), 0),
        // counted forwards from the second before
        Time { sec, nsec } if sec < 0 => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
        Time { sec, nsec } => ("", sec.unsigned_abs(), nsec),
    };
    let text = format!("{sign}{sec}.{nsec:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads a time; what is finer than a nanosecond is cut off.
pub(super) fn parse_time(text: &[u8]) -> Option<Time> {
    let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits));
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let sec: i64 = number(&digits[..point])?;
    let fraction = digits.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nsec = fraction.iter().chain([b'0'; 9].iter()).take(9).fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

/// The key of an extended attribute. An equals sign in its name is written as GNU tar does.
pub(super) fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = XATTR.to_vec();
    for byte in name {
        match byte {
            b'%' => key.extend_from_slice(b"%25"),
            b'=' => key.extend_from_slice(b"%3D"),
            other => key.push(*other),
        }
    }
    key
}

/// The name of the extended attribute of a key.
pub(super) fn xattr_name(mut encoded: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(encoded.len());
    while let Some((first, rest)) = encoded.split_first() {
        let (byte, rest) = match (first, rest) {
            (b'%', [b'2', b'5', rest @ ..]) => (b'%', rest),
            (b'%', [b'3', b'D' | b'd', rest @ ..]) => (b'=', rest),
            _ => (*first, rest),
        };
        name.push(byte);
        encoded = rest;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        for length in [0, 1, 5, 87, 88, 89, 90, 95, 985, 990, 9_990] {
            let value = vec![b'\n'; length];
            let mut bytes = Vec::new();
            push(&mut bytes, b"key", &value);
            push(&mut bytes, b"other", b"a=b");
            assert_eq!(parse(&bytes), Some(vec![(&b"key"[..], &value[..]), (b"other", b"a=b")]), "{length}");
        }
        let mut known = Vec::new();
        push(&mut known, b"path", b"a");
        assert_eq!(known, b"9 path=a\n");
    }

    #[test]
    fn what_is_no_record_is_nothing() {
        for wrong in
            [&b"x"[..], b"9 path=a", b"11 path=a\n", b"8 path=a\n", b"9 path-a\n", b"0 \n", b"-1 a=b\n", b" a=b\n"]
        {
            assert_eq!(parse(wrong), None, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn times_keep_their_nanoseconds_before_and_after_1970() {
        for (sec, nsec, text) in [
            (0, 0, "0"),
            (12, 0, "12"),
            (120, 500_000_000, "120.5"),
            (1, 1, "1.000000001"),
            (-1, 500_000_000, "-0.5"),
            (-13, 250_000_000, "-12.75"),
            (-7, 0, "-7"),
        ] {
            assert_eq!(print_time(Time { sec, nsec }), text);
            assert_eq!(parse_time(text.as_bytes()), Some(Time { sec, nsec }), "{text}");
        }
        assert_eq!(parse_time(b"1.0000000019"), Some(Time { sec: 1, nsec: 1 }));
        for wrong in [&b""[..], b".", b"-", b"x", b"1.x", b"--1", b"99999999999999999999"] {
            assert_eq!(parse_time(wrong), None, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn names_of_attributes_may_hold_any_byte() {
        for name in [&b"user.a"[..], b"user.a=b", b"user.%3D", b"user.100%"] {
            assert_eq!(xattr_name(&xattr_key(name)[XATTR.len()..]), name);
            assert!(!xattr_key(name).contains(&b'='));
        }
    }
}
