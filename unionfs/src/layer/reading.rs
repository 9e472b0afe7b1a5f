//! Members from tar: ustar, pax and GNU headers, one after the other. Nothing of an archive is
//! believed: headers have a checksum, extended ones a limit, and content that says it is long is
//! read only as far as there is some.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::member::{Look, Member, What};
use super::pax;
use super::sparse::{self, Sparse, Told};
use super::writing::BLOCK;
use crate::branch::stat::Time;

/// How long the extended headers of one member may be: room for many attributes of 64 KiB.
const LONGEST_EXTENDED: u64 = 16 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ReadError {
    #[error("cannot read the archive: {0}")]
    Io(io::Error),
    #[error("the archive is cut off: it ends in the middle of {}", shown(.0))]
    CutOff(Vec<u8>),
    #[error("the archive is cut off: it has no end mark")]
    NoEnd,
    #[error("it is no tar archive, or damaged: the header after {} is none", shown(.0))]
    NoHeader(Vec<u8>),
    #[error("the header of {} is damaged: {what}", shown(path))]
    Damaged { path: Vec<u8>, what: &'static str },
    #[error("{} has an entry type that layers do not have: {what}", shown(path))]
    Unsupported { path: Vec<u8>, what: String },
}

/// A path of a layer for a message, which need not hold more of it than anybody reads.
pub(crate) fn shown(path: &[u8]) -> String {
    const LONGEST: usize = 4096;
    match path.len() {
        0 => "its root".to_owned(),
        length if length > LONGEST => format!("…{}", String::from_utf8_lossy(&path[length - LONGEST..])),
        _ => String::from_utf8_lossy(path).into_owned(),
    }
}

/// An archive that is being read.
pub(super) struct Reader<'a> {
    input: Box<dyn Read + 'a>,
    /// Bytes of the last member that nobody has read, and the rest of its last block.
    content: u64,
    padding: u64,
    /// Where the content goes, if the last member is a file with holes.
    sparse: Option<Sparse>,
    /// For messages.
    last: Vec<u8>,
}

/// What headers before the one of a member say of it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: sparse::Records,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: Box<dyn Read + 'a>) -> Reader<'a> {
        Reader { input, content: 0, padding: 0, sparse: None, last: b"the start".to_vec() }
    }

    /// The next member; nothing after the last one, when the input has been read to its end.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ReadError> {
        self.skip(self.content)?;
        let mut extended = Extended::default();
        let mut room = LONGEST_EXTENDED;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| self.damaged("its size is no number"))?;
            if is_extended(header.entry_type()) {
                room = room.checked_sub(size).ok_or_else(|| self.damaged("its extended headers are too long"))?;
            }
            match header.entry_type() {
                EntryType::XHeader => self.take_pax(size, &mut extended)?,
                EntryType::XGlobalHeader => drop(self.extended_header(size)?),
                EntryType::GNULongName => extended.path = Some(until_zero(self.extended_header(size)?)),
                EntryType::GNULongLink => extended.target = Some(until_zero(self.extended_header(size)?)),
                _ => return self.member(&header, extended).map(Some),
            }
        }
    }

    /// Where the content of the last member goes, if it has holes.
    pub(super) fn take_sparse(&mut self) -> Option<Sparse> {
        self.sparse.take()
    }

    /// Reads some content of the last member; nothing at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let wanted = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.some(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(ReadError::CutOff(self.last.clone()));
        }
        self.content -= read as u64;
        Ok(read)
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ReadError::CutOff(self.last.clone()));
                }
                read => return read.map_err(ReadError::Io),
            }
        }
    }

    /// Fills a buffer as far as the input goes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.some(&mut buffer[done..])? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    /// Passes over what is left of a member.
    fn skip(&mut self, content: u64) -> Result<(), ReadError> {
        let mut left = content.saturating_add(self.padding);
        (self.content, self.padding) = (0, 0);
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.some(&mut buffer[..wanted])? {
                0 => return Err(ReadError::CutOff(self.last.clone())),
                read => left -= read as u64,
            }
        }
        Ok(())
    }

    /// The next header, or nothing at the end mark. What follows that is read, too, so that a
    /// checksum behind the archive is looked at, and nobody writes to a closed pipe.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let mut header = Header::new_old();
        match self.fill(header.as_mut_bytes())? {
            BLOCK => {}
            0 => return Err(ReadError::NoEnd),
            _ => return Err(ReadError::CutOff(self.last.clone())),
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let mut rest = [0; 16 * 1024];
            while self.some(&mut rest)? > 0 {}
            return Ok(None);
        }
        let sum = header.as_bytes().iter().enumerate();
        let sum: u32 = sum.map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
        match header.cksum() {
            Ok(said) if said == sum => {}
            _ => return Err(ReadError::NoHeader(self.last.clone())),
        }
        self.last = clean(&header.path_bytes());
        Ok(Some(header))
    }

    fn extended_header(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        // no more room than there is content for
        let mut bytes = Vec::new();
        self.expect(size);
        let mut piece = [0; 16 * 1024];
        while self.content > 0 {
            let read = self.read(&mut piece)?;
            bytes.extend_from_slice(&piece[..read]);
        }
        self.skip(0)?;
        Ok(bytes)
    }

    /// Says how long the content is that follows.
    fn expect(&mut self, size: u64) {
        self.content = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn take_pax(&mut self, size: u64, extended: &mut Extended) -> Result<(), ReadError> {
        let bytes = self.extended_header(size)?;
        let records = pax::parse(&bytes).ok_or_else(|| self.damaged("its extended header cannot be read"))?;
        for (key, value) in records {
            extended.take(key, value).ok_or_else(|| self.damaged("a record of it is no number"))?;
        }
        Ok(())
    }

    fn member(&mut self, header: &Header, mut extended: Extended) -> Result<Member, ReadError> {
        let raw = extended.sparse.name.take().or(extended.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let path = clean(&raw);
        self.last.clone_from(&path);
        if path.contains(&0) {
            return Err(self.damaged("a zero byte is in its name"));
        }
        let target = extended.target.or_else(|| header.link_name_bytes().map(|target| target.into_owned()));
        let size = match extended.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| self.damaged("its size is no number"))?,
        };
        let what = self.what(header, size, target, raw.ends_with(b"/"))?;
        // content that the type does not have is passed over
        self.expect(if matches!(what, What::Link(_)) { 0 } else { size });
        self.sparse = self.holes(header, std::mem::take(&mut extended.sparse).told(), size)?;
        let id = |own: Option<u32>, said: io::Result<u64>| match own {
            Some(id) => Some(id),
            None => u32::try_from(said.ok()?).ok(),
        };
        let owner = id(extended.uid, header.uid()).zip(id(extended.gid, header.gid()));
        // the last number is nobody's
        let owner = owner.filter(|(uid, gid)| ![uid, gid].contains(&&u32::MAX));
        let (uid, gid) = owner.ok_or_else(|| self.damaged("its owner is no number"))?;
        let mode = header.mode().map_err(|_| self.damaged("its mode is no number"))? & 0o7777;
        let mtime = match extended.mtime {
            Some(time) => time,
            None => header
                .mtime()
                .ok()
                // GNU tar has times before 1970 as negative numbers, of which this is the last part
                .map(|sec| Time { sec: sec.cast_signed(), nsec: 0 })
                .ok_or_else(|| self.damaged("its time is no number"))?,
        };
        Ok(Member { path, what, look: Look { mode, uid, gid, mtime, xattrs: extended.xattrs.into_iter().collect() } })
    }

    fn what(&self, header: &Header, size: u64, target: Option<Vec<u8>>, slash: bool) -> Result<What, ReadError> {
        let target = || target.filter(|target| !target.is_empty()).ok_or_else(|| self.damaged("its target is missing"));
        let device = || match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok(rustix::fs::makedev(major, minor)),
            _ => Err(self.damaged("its device number is no number")),
        };
        Ok(match header.entry_type() {
            // before there was a type for directories
            EntryType::Regular if slash => What::Dir,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => What::File(size),
            EntryType::Directory => What::Dir,
            EntryType::Symlink => What::Symlink(target()?),
            EntryType::Link => What::Link(clean(&target()?)),
            EntryType::Fifo => What::Fifo,
            EntryType::Char => What::Char(device()?),
            EntryType::Block => What::Block(device()?),
            other => {
                let what = format!("'{}'", other.as_byte().escape_ascii());
                return Err(ReadError::Unsupported { path: self.last.clone(), what });
            }
        })
    }

    /// Reads where the pieces of a file with holes go, as far as that is told before the content.
    fn holes(&mut self, header: &Header, told: Told, size: u64) -> Result<Option<Sparse>, ReadError> {
        let (pieces, size, content) = match told {
            _ if header.entry_type() == EntryType::GNUSparse => {
                let (pieces, whole) = self.holes_of_gnu(header)?;
                (pieces, whole, size)
            }
            Told::Not => return Ok(None),
            Told::Half => return Err(self.damaged("its holes cannot be read")),
            Told::Here(pieces, whole) => (pieces, whole, size),
            Told::InContent(whole) => {
                let pieces = sparse::in_content(|block| self.block(block))?;
                let (pieces, _) = pieces.ok_or_else(|| self.damaged("its holes cannot be read"))?;
                (pieces, whole, self.content)
            }
        };
        let sparse = Sparse::checked(pieces, size, content);
        sparse.map(Some).ok_or_else(|| self.damaged("its holes are not where they can be"))
    }

    /// The pieces in a header of GNU, and in the blocks that follow it, which are no content.
    fn holes_of_gnu(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), ReadError> {
        let bytes = header.as_bytes();
        let mut pieces = Vec::new();
        let wrong = |reader: &Self| reader.damaged("its holes cannot be read");
        sparse::in_header(bytes, 386, 4, &mut pieces).ok_or_else(|| wrong(self))?;
        let size = sparse::number(&bytes[483..495]).ok_or_else(|| wrong(self))?;
        let mut goes_on = bytes[482] != 0;
        while goes_on {
            let mut block = [0; BLOCK];
            if self.fill(&mut block)? < BLOCK {
                return Err(ReadError::CutOff(self.last.clone()));
            }
            sparse::in_header(&block, 0, 21, &mut pieces).ok_or_else(|| wrong(self))?;
            goes_on = block[504] != 0;
        }
        Ok((pieces, size))
    }

    /// Reads a whole block of the content.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < BLOCK {
            match self.read(&mut block[done..])? {
                0 => return Err(self.damaged("its holes cannot be read")),
                read => done += read,
            }
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> ReadError {
        ReadError::Damaged { path: self.last.clone(), what }
    }
}

impl Extended {
    /// Takes a record; nothing if its value is none. An empty value takes an earlier record back.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()).filter(|value| !value.is_empty()),
            b"linkpath" => self.target = Some(value.to_vec()).filter(|value| !value.is_empty()),
            b"size" => self.size = optional(value, pax::number)?,
            b"uid" => self.uid = optional(value, pax::number)?,
            b"gid" => self.gid = optional(value, pax::number)?,
            b"mtime" => self.mtime = optional(value, pax::parse_time)?,
            _ => {
                if let Some(name) = key.strip_prefix(pax::XATTR) {
                    self.xattrs.insert(pax::xattr_name(name), value.to_vec());
                } else if let Some(word) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(word, value)?;
                }
            }
        }
        Some(())
    }
}

fn is_extended(kind: EntryType) -> bool {
    use EntryType::{GNULongLink, GNULongName, XGlobalHeader, XHeader};
    matches!(kind, XHeader | XGlobalHeader | GNULongName | GNULongLink)
}

fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// A path without needless slashes and dots: a layer begins at its root, whatever it is called.
fn clean(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}
