//! How the members of a layer become entries of a directory.
//!
//! Nothing is remembered of members that are done, whatever an archive holds: a directory gets the
//! time that it was given back when the next member lies elsewhere, and no entry inherits anything.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::apply::ApplyError;
use super::holes;
use super::lent::{self, Lent};
use super::member::{Look, Member, What};
use super::reading::Reader;
use crate::acl;
use crate::branch::at::{At, SetTime};
use crate::branch::dir::Dir;
use crate::branch::private;
use crate::branch::stat::{Kind, Stat};
use crate::branch::work;
use crate::links::write_all;
use crate::union::name::{OPAQUE, WhiteoutFile};
use crate::union::{Name, RawName};

/// Content is copied in pieces of this size.
const PIECE: usize = 256 * 1024;
/// As many symbolic links are followed on one path as the kernel follows; see path_resolution(7).
const MOST_LINKS: usize = 40;
/// The name under which a directory is removed whose place another entry takes.
const REPLACED: &[u8] = b"replaced";

/// A layer that is being unpacked.
pub(super) struct Unpacking<'a> {
    root: Dir,
    /// The directory of the last member: most often that of the next. Nothing after an entry was replaced, which may have
    /// been on its path.
    at: Option<Entered>,
    /// Whether a directory was given an ACL that new entries inherit.
    bequeaths: bool,
    /// Where content is read into.
    piece: Vec<u8>,
    /// A directory on the same file system where entries are removed.
    holder: &'a Dir,
    /// Asked for the layers below, the topmost first; nothing where it is to end. A layer by itself
    /// has none below.
    below: Option<&'a Below<'a>>,
    ends: &'a dyn Fn() -> bool,
}

/// A directory in which entries are made.
struct Entered {
    path: Vec<u8>,
    dir: Dir,
    /// What it was before: it gets its times back when it is left.
    before: Stat,
}

/// What tells the layers below.
type Below<'a> = dyn Fn() -> Option<Vec<PathBuf>> + 'a;

/// Why a member could not be unpacked.
enum Stop {
    Errno(Errno),
    /// It is hostile, or what it wants is not allowed.
    Refused(&'static str),
    Said(ApplyError),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Errno(errno)
    }
}

/// What the last name of a member is.
enum Target<'a> {
    Entry(Name<'a>),
    Mark(WhiteoutFile),
    /// The bookkeeping of whoever made the layer.
    Nothing,
}

impl<'a> Unpacking<'a> {
    pub(super) fn new(root: Dir, holder: &'a Dir, ends: &'a dyn Fn() -> bool) -> Unpacking<'a> {
        Unpacking { root, at: None, bequeaths: false, piece: vec![0; PIECE], holder, below: None, ends }
    }

    /// One that lies over others.
    pub(super) fn over(self, below: &'a Below<'a>) -> Unpacking<'a> {
        Unpacking { below: Some(below), ..self }
    }

    /// Unpacks a member, whose content is to be read.
    pub(super) fn member(&mut self, member: &Member, reader: &mut Reader<'_>) -> Result<(), ApplyError> {
        if (self.ends)() {
            return Err(ApplyError::Interrupted);
        }
        let path = || member.path.clone();
        self.unpack(member, reader).map_err(|stop| match stop {
            Stop::Errno(error) => ApplyError::Member { path: path(), error },
            Stop::Refused(why) => ApplyError::Hostile { path: path(), why },
            Stop::Said(error) => error,
        })
    }

    /// Every member is unpacked.
    pub(super) fn finish(mut self) {
        self.leave_if(true);
    }

    /// Leaves the directory of the last member.
    fn leave_if(&mut self, leaves: bool) {
        if leaves {
            self.at.take().iter().for_each(Entered::leave);
        }
    }

    fn unpack(&mut self, member: &Member, reader: &mut Reader<'_>) -> Result<(), Stop> {
        self.bequeaths |= member.look.xattrs.iter().any(|(name, _)| name == acl::DEFAULT);
        if member.path.is_empty() {
            self.leave_if(true);
            return match member.what {
                What::Dir => set_look(self.root.at(b""), &member.look, &What::Dir),
                _ => Err(Stop::Refused("the root of a layer is a directory")),
            };
        }
        let (parent, name) = split(&member.path);
        match target(parent, name)? {
            Target::Nothing => Ok(()),
            Target::Mark(_) if !matches!(member.what, What::File(_) | What::Link(_)) => {
                Err(Stop::Refused("a whiteout is a regular file"))
            }
            Target::Mark(mark) => self.mark(parent, &mark),
            Target::Entry(name) => match &member.what {
                What::Link(first) => self.link(parent, name, first, &member.path),
                _ => self.entry(member, parent, name, reader),
            },
        }
    }

    /// Makes a whiteout or an opaque mark. In a branch of AuFS they are further names of one file.
    fn mark(&mut self, parent: &[u8], mark: &WhiteoutFile) -> Result<(), Stop> {
        let (dir, _) = self.parent(parent)?;
        match dir.create_file(&mark.file, 0o444).and_then(|file| write_all(&file, &mark.content)) {
            Err(Errno::EXIST) => Ok(()),
            made => Ok(made?),
        }
    }

    /// Makes an entry, in the place of an earlier one of its name.
    fn entry(&mut self, member: &Member, parent: &[u8], name: Name<'_>, reader: &mut Reader<'_>) -> Result<(), Stop> {
        let (holder, ends, bequeaths) = (self.holder, self.ends, self.bequeaths);
        let (dir, piece) = self.parent(parent)?;
        let name = name.as_bytes();
        let made = put(dir, name, &member.what, holder, bequeaths).map_err(|error| match (error, &member.what) {
            (Errno::PERM, What::Char(_) | What::Block(_)) => Stop::Refused("it is a device, which only root can make"),
            (error, _) => Stop::Errno(error),
        })?;
        if let Some(file) = &made.file {
            content(reader, file, piece, ends)?;
        }
        set_look(made.at(dir, name), &member.look, &member.what)?;
        self.leave_if(made.replaces);
        Ok(())
    }

    /// Gives an entry of this layer a further name.
    fn link(&mut self, parent: &[u8], name: Name<'_>, first: &[u8], path: &[u8]) -> Result<(), Stop> {
        if first == path {
            return Ok(());
        }
        if !first.split(|byte| *byte == b'/').all(|part| matches!(RawName::parse(part), RawName::Entry(_))) {
            return Err(Stop::Refused("it is a hard link to what is no entry of the layer"));
        }
        let (first_parent, first_name) = split(first);
        let from = match resolve(&self.root, first_parent, Missing::Refuse) {
            Err(Errno::NOENT) => return self.copy_from_below(parent, name, first),
            Err(Errno::NOTDIR | Errno::LOOP | Errno::INVAL) => return Err(NOT_THERE),
            from => from?,
        };
        match from.find(first_name)?.map(|stat| stat.kind) {
            None => return self.copy_from_below(parent, name, first),
            Some(Kind::Dir) => return Err(Stop::Refused("it is a hard link to a directory")),
            Some(_) => {}
        }
        let holder = self.holder;
        let (dir, _) = self.parent(parent)?;
        let before = dir.find(name.as_bytes())?.map(|stat| stat.kind);
        make_room(dir, name.as_bytes(), before, holder)?;
        from.link(first_name, dir, name.as_bytes())?;
        self.leave_if(before.is_some());
        Ok(())
    }

    /// Makes a copy of what lies below, where a link to it is wanted.
    fn copy_from_below(&mut self, parent: &[u8], name: Name<'_>, first: &[u8]) -> Result<(), Stop> {
        let Some(below) = self.below else { return Err(NOT_THERE) };
        let layers = below().ok_or(Stop::Said(ApplyError::Interrupted))?;
        let Lent { member, content } = lent::find(&layers, first)?.ok_or(NOT_THERE)?;
        let (holder, ends, bequeaths) = (self.holder, self.ends, self.bequeaths);
        let (dir, piece) = self.parent(parent)?;
        let name = name.as_bytes();
        let made = put(dir, name, &member.what, holder, bequeaths)?;
        if let (Some(file), Some(content)) = (&made.file, content) {
            copy(|piece| Ok(rustix::io::read(&content, piece)?), file, 0, piece, ends)?;
        }
        set_look(made.at(dir, name), &member.look, &member.what)?;
        self.leave_if(made.replaces);
        Ok(())
    }

    /// Opens the directory of a member, where what is missing of it is made; also where its content can be read into.
    fn parent(&mut self, path: &[u8]) -> Result<(&Dir, &mut [u8]), Stop> {
        let known = match self.at.take() {
            Some(known) if known.path == path => known,
            known => self.enter(known, path)?,
        };
        let Entered { dir, .. } = self.at.insert(known);
        Ok((dir, &mut self.piece))
    }

    fn enter(&self, from: Option<Entered>, path: &[u8]) -> Result<Entered, Stop> {
        let from = from.inspect(Entered::leave);
        // most archives go down step by step
        let down = from.as_ref().and_then(|from| Some((&from.dir, from.below(path)?)));
        let (start, rest) = down.unwrap_or((&self.root, path));
        let dir = match walk(start, rest, Missing::Make) {
            Err(Errno::LOOP | Errno::NOTDIR) => resolve(&self.root, path, Missing::Make),
            dir => dir,
        };
        let dir = dir.map_err(|error| match error {
            Errno::NOTDIR => Stop::Refused("its path leads through what is no directory"),
            Errno::LOOP => Stop::Refused("its path leads through too many symbolic links"),
            Errno::INVAL => Stop::Refused("its path leads through a symbolic link to what no layer has"),
            error => error.into(),
        })?;
        let before = dir.stat()?;
        Ok(Entered { path: path.to_vec(), dir, before })
    }
}

impl Entered {
    /// Gives it its times back.
    fn leave(&self) {
        self.dir.restore_times(&self.before);
    }

    /// What leads from it to a directory below it.
    fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        path.strip_prefix(&self.path[..])?.strip_prefix(b"/")
    }
}

/// Why a hard link is refused.
const NOT_THERE: Stop = Stop::Refused("it is a hard link to what is not in the layer");

/// What a path leads to.
fn target<'a>(parent: &[u8], name: &'a [u8]) -> Result<Target<'a>, Stop> {
    let refused = |part: &[u8]| match part {
        b".." => Stop::Refused("'..' is in its path"),
        _ => Stop::Refused("a name in its path is too long or kept for whiteouts"),
    };
    let is_bookkeeping = |part: &[u8]| part.starts_with(b".wh..wh.") && part != OPAQUE;
    let mut skip = false;
    for part in parent.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        match RawName::parse(part) {
            RawName::Entry(_) => {}
            _ if is_bookkeeping(part) => skip = true,
            RawName::Whiteout(_) | RawName::Opaque => return Err(Stop::Refused("a whiteout is no directory")),
            RawName::LongWhiteout | RawName::Reserved => return Err(refused(part)),
        }
    }
    Ok(match RawName::parse(name) {
        _ if skip => Target::Nothing,
        RawName::Entry(name) => Target::Entry(name),
        _ if is_bookkeeping(name) => Target::Nothing,
        RawName::Whiteout(hidden) => Target::Mark(hidden.whiteout()),
        RawName::Opaque => Target::Mark(WhiteoutFile { file: OPAQUE.to_vec(), content: Vec::new() }),
        RawName::LongWhiteout | RawName::Reserved => return Err(refused(name)),
    })
}

/// A path as that of its directory and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// What becomes of a directory that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Refuse,
}

/// Opens a directory by a path, one component after the other. None is a symbolic link.
fn walk(from: &Dir, path: &[u8], missing: Missing) -> Result<Dir, Errno> {
    let mut at = from.reopen()?;
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        at = step(&at, part, missing)?;
    }
    Ok(at)
}

fn step(at: &Dir, part: &[u8], missing: Missing) -> Result<Dir, Errno> {
    match at.open_dir(part) {
        Err(Errno::NOENT) if missing == Missing::Make => {
            at.keeping_times(|| at.make_dir(part, 0o755).and_then(|()| disinherit(at.at(part))))?;
            at.at(part).chmod(0o755)?;
            at.open_dir(part)
        }
        opened => opened,
    }
}

/// Opens a directory by a path on which symbolic links of the layer itself may be: its root is theirs, and `..` does not
/// lead out of it. So whatever was there when the layer was made is found where it was, and nothing else is.
///
/// # Errors
/// ELOOP where there are too many links; EINVAL where one leads to what is no entry of a layer.
fn resolve(root: &Dir, path: &[u8], missing: Missing) -> Result<Dir, Errno> {
    let parts = |path: &[u8]| path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut pending = parts(path);
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut at = root.reopen()?;
    let mut links = 0;
    while let Some(part) = pending.pop() {
        match &*part {
            b"" | b"." => {}
            b".." => {
                drop(done.pop());
                at = walk(root, &done.join(&b'/'), Missing::Refuse)?;
            }
            _ if !matches!(RawName::parse(&part), RawName::Entry(_)) => return Err(Errno::INVAL),
            _ => match step(&at, &part, missing) {
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let is_link = at.find(&part)?.is_some_and(|stat| stat.kind == Kind::Symlink);
                    let target = if is_link { at.read_link(&part)? } else { return Err(Errno::NOTDIR) };
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.first() == Some(&b'/') {
                        done.clear();
                        at = root.reopen()?;
                    }
                    pending.extend(parts(&target));
                }
                opened => {
                    at = opened?;
                    done.push(part);
                }
            },
        }
    }
    Ok(at)
}

/// Takes away what an earlier member made.
fn make_room(dir: &Dir, name: &[u8], kind: Option<Kind>, holder: &Dir) -> Result<(), Errno> {
    match kind {
        None => Ok(()),
        Some(Kind::Dir) => {
            dir.rename(name, holder, REPLACED, RenameFlags::NOREPLACE)?;
            work::remove(holder, REPLACED, Kind::Dir)
        }
        Some(_) => dir.unlink(name),
    }
}

/// An entry that was made, or a directory that was there.
struct Made {
    /// If it has content.
    file: Option<OwnedFd>,
    /// Whether another entry had its name.
    replaces: bool,
}

impl Made {
    fn at<'a>(&'a self, dir: &'a Dir, name: &'a [u8]) -> At<'a> {
        self.file.as_ref().map_or_else(|| dir.at(name), |file| At::open(file.as_fd(), dir.form()))
    }
}

/// Makes an entry, in the place of an earlier one of its name. A directory stays what it is.
fn put(dir: &Dir, name: &[u8], what: &What, holder: &Dir, bequeaths: bool) -> Result<Made, Errno> {
    let (file, replaces) = match make(dir, name, what) {
        Err(Errno::EXIST) => {
            let before = dir.find(name)?.map(|stat| stat.kind);
            if (before, what) == (Some(Kind::Dir), &What::Dir) {
                return Ok(Made { file: None, replaces: false });
            }
            make_room(dir, name, before, holder)?;
            (make(dir, name, what)?, true)
        }
        file => (file?, false),
    };
    if bequeaths && !matches!(what, What::Symlink(_)) {
        disinherit(dir.at(name))?;
    }
    Ok(Made { file, replaces })
}

/// Makes an entry, and opens it if it has content.
fn make(dir: &Dir, name: &[u8], what: &What) -> Result<Option<OwnedFd>, Errno> {
    match what {
        What::File(_) => return dir.create_file(name, 0o600).map(Some),
        What::Dir => dir.make_dir(name, 0o700),
        What::Symlink(target) => dir.make_symlink(name, target),
        What::Fifo => dir.make_node(name, Kind::Fifo, 0o600, 0),
        What::Char(number) => dir.make_node(name, Kind::Char, 0o600, *number),
        What::Block(number) => dir.make_node(name, Kind::Block, 0o600, *number),
        What::Link(_) => Err(Errno::INVAL),
    }?;
    Ok(None)
}

/// Takes away the ACLs that a new entry inherited.
pub(super) fn disinherit(at: At<'_>) -> Result<(), Errno> {
    for name in [acl::DEFAULT, acl::ACCESS] {
        match at.remove_xattr(name) {
            // a default ACL is what directories have only
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies the content of the last member: all of it, or each piece of a file with holes.
fn content(reader: &mut Reader<'_>, file: &OwnedFd, piece: &mut [u8], ends: &dyn Fn() -> bool) -> Result<(), Stop> {
    let failed = |error: super::reading::ReadError| Stop::Said(error.into());
    let Some(sparse) = reader.take_sparse() else {
        return copy(|piece| reader.read(piece).map_err(failed), file, 0, piece, ends);
    };
    for (offset, length) in sparse.pieces {
        let mut left = length;
        let read = |piece: &mut [u8]| {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            let read = reader.read(&mut piece[..wanted]).map_err(failed)?;
            left -= read as u64;
            Ok(read)
        };
        copy(read, file, offset, piece, ends)?;
    }
    Ok(rustix::fs::ftruncate(file, sparse.size)?)
}

/// Copies what `read` reads, until that is nothing, to a place in a new file. Long rows of zeros become holes.
fn copy(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Stop>,
    file: &OwnedFd,
    mut at: u64,
    piece: &mut [u8],
    ends: &dyn Fn() -> bool,
) -> Result<(), Stop> {
    let mut ends_in_hole = false;
    loop {
        let filled = fill(&mut read, piece)?;
        if filled > 0 {
            ends_in_hole = holes::write_at(file, &piece[..filled], at)?;
            at += filled as u64;
        }
        if filled < piece.len() {
            return if ends_in_hole { Ok(rustix::fs::ftruncate(file, at)?) } else { Ok(()) };
        }
        if ends() {
            return Err(Stop::Said(ApplyError::Interrupted));
        }
    }
}

/// Reads as much as there is room for, or all that is left.
fn fill(read: &mut impl FnMut(&mut [u8]) -> Result<usize, Stop>, piece: &mut [u8]) -> Result<usize, Stop> {
    let mut filled = 0;
    while filled < piece.len() {
        match read(&mut piece[filled..])? {
            0 => break,
            some => filled += some,
        }
    }
    Ok(filled)
}

/// Sets attributes in the order in which none undoes another: a change of owner strips set-id
/// bits and capabilities.
fn set_look(at: At<'_>, look: &Look, what: &What) -> Result<(), Stop> {
    let set = || {
        at.chown(Some(look.uid), Some(look.gid)).map_err(|error| match error {
            // an id that our user namespace does not know
            Errno::INVAL => Errno::PERM,
            error => error,
        })?;
        if !matches!(what, What::Symlink(_)) {
            at.chmod(look.mode)?;
        }
        // a stranger does not say what a union does with an entry
        for (name, value) in look.xattrs.iter().filter(|(name, _)| !private::is_private(name, false)) {
            at.set_xattr(name, value, XattrFlags::empty())?;
        }
        at.set_times(SetTime::To(look.mtime), SetTime::To(look.mtime))
    };
    set().map_err(|error| match error {
        Errno::PERM => Stop::Refused("only root can give it its owner and attributes"),
        Errno::OPNOTSUPP => Stop::Refused("the file system of the branch does not take its extended attributes"),
        error => Stop::Errno(error),
    })
}
