//! Members as tar: ustar headers with extended ones (pax) where a field is too small.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;

use tar::{EntryType, Header};

use super::member::{Look, Member, What};
use super::pax;
use crate::acl;
use crate::branch::stat::Time;

/// Length of a block, of which archives are made.
pub(super) const BLOCK: usize = 512;
/// The largest number in a field of eight bytes, seven octal digits of it.
const SMALL: u64 = 0o7_777_777;
/// The largest number in a field of twelve bytes.
const LARGE: u64 = 0o77_777_777_777;
/// Files are copied in pieces of this size.
const PIECE: usize = 256 * 1024;

/// An archive that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    out: BufWriter<File>,
    piece: Vec<u8>,
    /// No time is later than this one (the specification of SOURCE_DATE_EPOCH).
    latest: Option<i64>,
}

/// Why a file could not be copied into the archive.
#[derive(Debug)]
pub(super) enum CopyError {
    /// It cannot be read.
    Source(rustix::io::Errno),
    /// It has become shorter than it was.
    Shorter,
    /// The archive cannot be written.
    Archive(io::Error),
}

impl Writer {
    pub(super) fn new(out: File, latest: Option<i64>) -> Writer {
        Writer { out: BufWriter::with_capacity(PIECE, out), piece: Vec::new(), latest }
    }

    /// Writes the headers of a member. The content of a file is to follow.
    pub(super) fn add(&mut self, member: &Member) -> io::Result<()> {
        let (header, extended) = self.headers(member);
        if !extended.is_empty() {
            let mut before = header_of(EntryType::XHeader, b"PaxHeaders/member");
            before.set_mode(0o644);
            before.set_size(extended.len() as u64);
            before.set_cksum();
            self.out.write_all(before.as_bytes())?;
            self.out.write_all(&extended)?;
            self.pad(extended.len() as u64)?;
        }
        self.out.write_all(header.as_bytes())
    }

    /// Writes the content of a file after its headers: as many bytes as they say.
    pub(super) fn copy(&mut self, file: &OwnedFd, size: u64) -> Result<(), CopyError> {
        self.piece.resize(PIECE, 0);
        let mut done = 0;
        while done < size {
            let wanted = usize::try_from(size - done).unwrap_or(PIECE).min(PIECE);
            let read = match rustix::io::pread(file, &mut self.piece[..wanted], done) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Err(CopyError::Shorter),
                read => read.map_err(CopyError::Source)?,
            };
            self.out.write_all(&self.piece[..read]).map_err(CopyError::Archive)?;
            done += read as u64;
        }
        self.pad(size).map_err(CopyError::Archive)
    }

    /// Writes the end mark, two blocks of zeros.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }

    fn pad(&mut self, length: u64) -> io::Result<()> {
        let over = (length % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][over..]) }
    }

    /// The header of a member, and what does not fit into it.
    fn headers(&self, member: &Member) -> (Header, Vec<u8>) {
        let mut extended = Vec::new();
        let path = shown_path(member);
        let mut header = header_of(entry_type(&member.what), fit(&path, b"path", &mut extended));
        if let What::Symlink(target) | What::Link(target) = &member.what {
            let field = &mut header.as_old_mut().linkname;
            let target = fit(target, b"linkpath", &mut extended);
            field[..target.len()].copy_from_slice(target);
        }
        if let What::Char(number) | What::Block(number) = member.what {
            put_device(&mut header, number);
        }
        let size = if let What::File(size) = member.what { size } else { 0 };
        header.set_size(fit_number(size, LARGE, b"size", &mut extended));
        // a further name says what the first says: some readers set its attributes, too
        self.put_look(&mut header, &member.look, &mut extended);
        header.set_cksum();
        (header, extended)
    }

    fn put_look(&self, header: &mut Header, look: &Look, extended: &mut Vec<u8>) {
        header.set_mode(look.mode & 0o7777);
        header.set_uid(fit_number(look.uid.into(), SMALL, b"uid", extended));
        header.set_gid(fit_number(look.gid.into(), SMALL, b"gid", extended));
        let mtime = self.clamped(look.mtime);
        let whole = u64::try_from(mtime.sec).ok().filter(|sec| *sec <= LARGE);
        header.set_mtime(whole.unwrap_or(0));
        if whole.is_none() || mtime.nsec != 0 {
            pax::push(extended, b"mtime", pax::print_time(mtime).as_bytes());
        }
        for (name, value) in &look.xattrs {
            pax::push(extended, &pax::xattr_key(name), value);
            // GNU tar and others read ACLs as text only
            if let Some((key, text)) = acl_text(name, value) {
                pax::push(extended, key, text.as_bytes());
            }
        }
    }

    fn clamped(&self, time: Time) -> Time {
        match self.latest {
            Some(latest) if (time.sec, time.nsec) > (latest, 0) => Time { sec: latest, nsec: 0 },
            _ => time,
        }
    }
}

/// The path as archives have it: a directory ends in a slash.
fn shown_path(member: &Member) -> Vec<u8> {
    match (&member.what, member.path.is_empty()) {
        (_, true) => b"./".to_vec(),
        (What::Dir, false) => [&member.path, &b"/"[..]].concat(),
        (_, false) => member.path.clone(),
    }
}

fn entry_type(what: &What) -> EntryType {
    match what {
        What::File(_) => EntryType::Regular,
        What::Dir => EntryType::Directory,
        What::Symlink(_) => EntryType::Symlink,
        What::Link(_) => EntryType::Link,
        What::Fifo => EntryType::Fifo,
        What::Char(_) => EntryType::Char,
        What::Block(_) => EntryType::Block,
    }
}

fn header_of(kind: EntryType, path: &[u8]) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    for set in [Header::set_uid, Header::set_gid, Header::set_mtime, Header::set_size] {
        set(&mut header, 0);
    }
    put_device(&mut header, 0);
    header
}

/// The numbers of a device. Linux has no larger ones than the fields hold: 12 and 20 bits.
fn put_device(header: &mut Header, number: u64) {
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(rustix::fs::major(number));
        ustar.set_device_minor(rustix::fs::minor(number));
    }
}

/// What goes into a field of 100 bytes; if that is not all, all goes into a record.
fn fit<'a>(bytes: &'a [u8], key: &[u8], extended: &mut Vec<u8>) -> &'a [u8] {
    if bytes.len() <= 100 {
        return bytes;
    }
    pax::push(extended, key, bytes);
    &bytes[..100]
}

fn fit_number(number: u64, largest: u64, key: &[u8], extended: &mut Vec<u8>) -> u64 {
    if number <= largest {
        return number;
    }
    pax::push(extended, key, number.to_string().as_bytes());
    0
}

fn acl_text(name: &[u8], value: &[u8]) -> Option<(&'static [u8], String)> {
    let key: &[u8] = match name {
        acl::ACCESS => b"SCHILY.acl.access",
        acl::DEFAULT => b"SCHILY.acl.default",
        _ => return None,
    };
    Some((key, acl::to_text(value)?))
}
