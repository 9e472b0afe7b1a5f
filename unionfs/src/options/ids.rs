//! Owners as they are shown and as they are kept: `uidmapping=`, `gidmapping=` and `squash_to_*`.
//!
//! A mapping is a list of triples `KEPT:SHOWN:COUNT`: the id KEPT in the branches is shown as SHOWN, and
//! so are COUNT ids from there on. Squashed, all ids are shown as one, and kept as they are.

/// What is kept and shown in the place of an id that no range has: nobody, as in the kernel.
const NOBODY: u32 = 65_534;

/// Why a mapping is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdsError {
    /// No triples.
    #[error("KEPT:SHOWN:COUNT is expected, and more of these after a colon each")]
    NoTriples,
    /// No number.
    #[error("'{0}' is no id (0 to 4294967294)")]
    NoId(String),
    /// A range that ends beyond the last id, or is empty.
    #[error("{kept}:{shown}:{count} is no range of ids")]
    NoRange {
        /// Its first id in the branches.
        kept: u32,
        /// What that is shown as.
        shown: u32,
        /// How many follow.
        count: u32,
    },
    /// An id that is shown as two, or stands for two.
    #[error("{kept}:{shown}:{count} overlaps with a range before it")]
    Overlap {
        /// Its first id in the branches.
        kept: u32,
        /// What that is shown as.
        shown: u32,
        /// How many follow.
        count: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    kept: u32,
    shown: u32,
    count: u32,
}

/// What ids of one kind, users or groups, are mapped to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    ranges: Vec<Range>,
    squashed: Option<u32>,
}

/// What owners are mapped to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub users: Ids,
    /// Groups.
    pub groups: Ids,
}

impl IdMap {
    /// Whether every owner is shown as it is kept.
    pub fn is_plain(&self) -> bool {
        self.users.is_plain() && self.groups.is_plain()
    }
}

impl Ids {
    /// Reads `KEPT:SHOWN:COUNT[:KEPT:SHOWN:COUNT…]`. Empty fields are left out, for containers/storage
    /// writes one before the first.
    pub fn parse(text: &[u8]) -> Result<Ids, IdsError> {
        let numbers: Vec<u32> =
            text.split(|byte| *byte == b':').filter(|field| !field.is_empty()).map(number).collect::<Result<_, _>>()?;
        let (triples, []) = numbers.as_chunks::<3>() else { return Err(IdsError::NoTriples) };
        if triples.is_empty() {
            return Err(IdsError::NoTriples);
        }
        let mut ids = Ids::default();
        for &[kept, shown, count] in triples {
            ids.add(Range { kept, shown, count })?;
        }
        Ok(ids)
    }

    /// All ids are shown as this one.
    pub fn squashed(id: u32) -> Ids {
        Ids { ranges: Vec::new(), squashed: Some(id) }
    }

    /// The one that all are shown as.
    pub fn squashed_to(&self) -> Option<u32> {
        self.squashed
    }

    fn add(&mut self, range: Range) -> Result<(), IdsError> {
        let Range { kept, shown, count } = range;
        // the last number is no id
        let fits = |first: u32| count > 0 && first.checked_add(count).is_some();
        if !fits(kept) || !fits(shown) {
            return Err(IdsError::NoRange { kept, shown, count });
        }
        let meet = |a: u32, b: u32, of_b: u32| a < b + of_b && b < a + count;
        if self.ranges.iter().any(|other| meet(kept, other.kept, other.count) || meet(shown, other.shown, other.count))
        {
            return Err(IdsError::Overlap { kept, shown, count });
        }
        self.ranges.push(range);
        Ok(())
    }

    /// Whether every id is shown as it is kept.
    pub fn is_plain(&self) -> bool {
        self.ranges.is_empty() && self.squashed.is_none()
    }

    /// What an id of the branches is shown as.
    pub fn shown(&self, id: u32) -> u32 {
        if let Some(all) = self.squashed {
            return all;
        }
        let of = |range: &Range| Some(range.shown + within(id, range.kept, range.count)?);
        if self.ranges.is_empty() { id } else { self.ranges.iter().find_map(of).unwrap_or(NOBODY) }
    }

    /// What an id is kept as in the branches; nothing if no range has it.
    pub fn kept(&self, id: u32) -> Option<u32> {
        let of = |range: &Range| Some(range.kept + within(id, range.shown, range.count)?);
        if self.ranges.is_empty() { Some(id) } else { self.ranges.iter().find_map(of) }
    }

    /// What the id of whoever makes an entry is kept as: nobody's, if no range has it.
    pub fn kept_of_maker(&self, id: u32) -> u32 {
        self.kept(id).unwrap_or(NOBODY)
    }

    /// The ranges as [`Ids::parse`] reads them; nothing if there are none.
    pub fn print(&self) -> Option<String> {
        let texts: Vec<String> =
            self.ranges.iter().map(|Range { kept, shown, count }| format!("{kept}:{shown}:{count}")).collect();
        (!texts.is_empty()).then(|| texts.join(":"))
    }
}

fn within(id: u32, first: u32, count: u32) -> Option<u32> {
    id.checked_sub(first).filter(|at| *at < count)
}

/// Reads one id.
///
/// # Errors
/// What is no id; the last number means "none" to chown(2).
pub(super) fn id(text: &[u8]) -> Result<u32, IdsError> {
    let id = number(text)?;
    if id == u32::MAX { Err(IdsError::NoId(id.to_string())) } else { Ok(id) }
}

fn number(text: &[u8]) -> Result<u32, IdsError> {
    // a sign, which parse() would take, is no digit
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|text| text.parse().ok());
    number.ok_or_else(|| IdsError::NoId(String::from_utf8_lossy(text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_map_in_both_directions() {
        // as containers/storage writes them, with a colon before the first, and as containerd's snapshotter does
        for text in ["0:1000:1:1:100000:65536", ":0:1000:1:1:100000:65536", "0:1000:1::1:100000:65536:"] {
            let ids = Ids::parse(text.as_bytes()).unwrap();
            assert_eq!([0, 1, 42, 65_536].map(|id| ids.shown(id)), [1000, 100_000, 100_041, 165_535]);
            assert_eq!([1000, 100_000, 165_535].map(|id| ids.kept(id)), [Some(0), Some(1), Some(65_536)]);
            assert_eq!([65_537, 1_000_000].map(|id| ids.shown(id)), [NOBODY; 2]);
            assert_eq!([0, 999, 165_536].map(|id| ids.kept(id)), [None; 3]);
            assert_eq!(ids.kept_of_maker(0), NOBODY);
            assert_eq!(ids.print().as_deref(), Some("0:1000:1:1:100000:65536"));
        }
    }

    #[test]
    fn squashed_all_are_shown_as_one() {
        let ids = Ids::squashed(7);
        assert_eq!((ids.shown(0), ids.shown(65_536), ids.kept(0), ids.kept(99)), (7, 7, Some(0), Some(99)));
    }

    #[test]
    fn plain_ids_stay() {
        let all = Ids::parse(b"0:0:4294967295").unwrap();
        assert_eq!((all.shown(65_535), all.kept(u32::MAX - 1)), (65_535, Some(u32::MAX - 1)));
        let ids = Ids::default();
        assert!(ids.is_plain());
        assert_eq!((ids.shown(u32::MAX), ids.kept(5)), (u32::MAX, Some(5)));
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for (text, error) in [
            ("", IdsError::NoTriples),
            (":", IdsError::NoTriples),
            ("0:0", IdsError::NoTriples),
            ("0:0:1:1", IdsError::NoTriples),
            ("0:x:1", IdsError::NoId("x".into())),
            ("0:-1:1", IdsError::NoId("-1".into())),
            ("+0:1:1", IdsError::NoId("+0".into())),
            ("0:4294967296:1", IdsError::NoId("4294967296".into())),
            ("0:4294967295:1", IdsError::NoRange { kept: 0, shown: u32::MAX, count: 1 }),
            ("0:0:0", IdsError::NoRange { kept: 0, shown: 0, count: 0 }),
            ("2:0:4294967294", IdsError::NoRange { kept: 2, shown: 0, count: 4_294_967_294 }),
            ("0:5:10:9:100:1", IdsError::Overlap { kept: 9, shown: 100, count: 1 }),
            ("0:5:10:10:14:1", IdsError::Overlap { kept: 10, shown: 14, count: 1 }),
        ] {
            assert_eq!(Ids::parse(text.as_bytes()), Err(error), "{text}");
        }
    }
}
