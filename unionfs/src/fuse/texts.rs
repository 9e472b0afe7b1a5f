//! A file system of a few texts, each made at the moment in which it is opened, or read from its beginning, as those in /proc
//! are: what a launcher shows a container instead of the machine's.
//!
//! Whoever reads gets all of one moment, however it reads, until it begins anew. One thread serves, and waits for nobody but the kernel, so a
//! reader cannot keep it from others. What it costs is bounded, too: a text that was made a moment ago is not made anew,
//! and where very many are held open, those that come get the last one.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::abi::{
    Attr, AttrOut, Dirent, EntryOut, InHeader, InitIn, InitOut, Kstatfs, MAJOR, MIN_READ_BUFFER, MINOR, OLDEST_MINOR,
    OpenOut, ReadIn, ReleaseIn, fopen, init, op,
};
use super::device::{Answered, Device, Reply};
use super::listing::Listing;
use super::message::{Arguments, split};

/// The number of the directory; the files have the following.
const ROOT: u64 = 1;
/// So long a text is the current one, from when it was begun: the kernel's own numbers are no fresher. Whoever changes what it
/// tells of and waits so long is sure that everybody is told of the change.
pub const FRESH: Duration = Duration::from_millis(10);
/// So many bytes of texts may be held by open files, all together.
const MOST_BYTES: usize = 4 << 20;
/// So many files may be open at a time.
const MOST_HANDLES: usize = 1 << 16;
const PAGE: u64 = 4096;
const FOR_EVER: u64 = u32::MAX as u64;
const DIRECTORY: u32 = 0o040_555;
const FILE: u32 = 0o100_444;

/// What is shown, and how it is made.
pub trait Source {
    /// The names of the files.
    fn names(&self) -> Vec<&'static str>;

    /// The text of the file that is so far down the list.
    fn text(&mut self, index: usize) -> Vec<u8>;
}

/// Serves a mounted device until the mount is gone.
///
/// # Errors
/// What reading the device answers, or that the kernel's protocol is too old.
pub fn serve(device: OwnedFd, source: &mut dyn Source) -> io::Result<()> {
    let device = Device::new(device)?;
    let names = source.names();
    let mut server = Server { texts: Texts::new(names.len()), names, source, never_opens_directories: false };
    let mut buffer = [0; MIN_READ_BUFFER];
    loop {
        match device.read(&mut buffer) {
            Ok(length) => server.serve(&device, buffer.get(..length).unwrap_or_default())?,
            Err(Errno::AGAIN) => {
                device.wait(None);
            }
            // whoever asked was killed meanwhile
            Err(Errno::INTR | Errno::NOENT) => {}
            Err(Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

struct Server<'a> {
    names: Vec<&'static str>,
    source: &'a mut dyn Source,
    texts: Texts,
    never_opens_directories: bool,
}

impl Server<'_> {
    fn serve(&mut self, device: &Arc<Device>, request: &[u8]) -> io::Result<()> {
        let Some((header, mut arguments)) = split(request) else { return Ok(()) };
        let reply = Reply::new(device, header.unique);
        if header.opcode == op::INIT {
            return self.agree(reply, arguments);
        }
        drop(self.answer(&header, &mut arguments, reply));
        Ok(())
    }

    fn agree(&mut self, reply: Reply, arguments: Arguments<'_>) -> io::Result<()> {
        let asked: InitIn = arguments.take_short();
        if asked.major != MAJOR || asked.minor < OLDEST_MINOR {
            drop(reply.error(Errno::PROTO));
            return Err(Errno::PROTO.into());
        }
        let wanted = init::DO_READDIRPLUS | init::PARALLEL_DIROPS | init::NO_OPENDIR_SUPPORT;
        let flags = asked.flags & wanted as u32;
        self.never_opens_directories = u64::from(flags) & init::NO_OPENDIR_SUPPORT != 0;
        let minor = asked.minor.min(MINOR);
        let answer = InitOut { major: MAJOR, minor, flags, max_write: PAGE as u32, time_gran: 1, ..InitOut::default() };
        drop(reply.message(Ok(answer)));
        Ok(())
    }

    fn answer(&mut self, header: &InHeader, arguments: &mut Arguments<'_>, reply: Reply) -> Answered {
        match header.opcode {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => reply.none(),
            op::LOOKUP => reply.message(self.look_up(header.nodeid, arguments.name())),
            op::GETATTR => reply.message(self.attributes(header.nodeid)),
            op::OPENDIR if self.never_opens_directories => reply.error(Errno::NOSYS),
            op::OPENDIR => reply.message(Ok(OpenOut::default())),
            op::READDIR | op::READDIRPLUS => {
                let Some(wanted) = arguments.take::<ReadIn>() else { return reply.error(Errno::INVAL) };
                let mut room = vec![0; wanted.size as usize];
                let mut listing = Listing::new(&mut room);
                self.list(wanted.offset, header.opcode == op::READDIRPLUS, &mut listing);
                reply.parts(&[listing.bytes()])
            }
            op::OPEN => reply.message(self.open(header.nodeid)),
            op::READ => match arguments.take::<ReadIn>() {
                Some(wanted) => reply.bytes(self.read(header.nodeid, &wanted)),
                None => reply.error(Errno::INVAL),
            },
            op::RELEASE => {
                if let Some(ReleaseIn { fh, .. }) = arguments.take() {
                    self.texts.close(fh);
                }
                reply.parts(&[])
            }
            op::RELEASEDIR | op::DESTROY => reply.parts(&[]),
            op::STATFS => {
                let bsize = PAGE as u32;
                reply.parts(&[Kstatfs { bsize, frsize: bsize, namelen: 255, ..Kstatfs::default() }.as_bytes()])
            }
            // the kernel asks for most of them no more
            _ => reply.error(Errno::NOSYS),
        }
    }

    fn look_up(&self, parent: u64, name: Option<&[u8]>) -> Result<EntryOut, Errno> {
        if parent != ROOT {
            return Err(Errno::NOTDIR);
        }
        let index = self.names.iter().position(|own| Some(own.as_bytes()) == name).ok_or(Errno::NOENT)?;
        Ok(self.entry(index))
    }

    fn entry(&self, index: usize) -> EntryOut {
        let nodeid = number(index);
        // the attributes are asked for at each open, so that the length is that of the time
        EntryOut { nodeid, entry_valid: FOR_EVER, attr: file(nodeid, PAGE), ..EntryOut::default() }
    }

    fn attributes(&mut self, nodeid: u64) -> Result<AttrOut, Errno> {
        if nodeid == ROOT {
            let attr = Attr { ino: ROOT, mode: DIRECTORY, nlink: 2, blksize: PAGE as u32, ..Attr::default() };
            return Ok(AttrOut { attr_valid: FOR_EVER, attr, ..AttrOut::default() });
        }
        let index = self.index(nodeid)?;
        let text = self.texts.now(index, || self.source.text(index));
        // sendfile(2) and mmap(2) end where the file does; a little more does not hurt, for then the kernel asks
        let size = (text.bytes.len() as u64 + 1).next_multiple_of(PAGE);
        Ok(AttrOut { attr: file(nodeid, size), ..AttrOut::default() })
    }

    /// The file that has this number.
    fn index(&self, nodeid: u64) -> Result<usize, Errno> {
        let index = nodeid.checked_sub(number(0)).and_then(|index| usize::try_from(index).ok());
        index.filter(|index| *index < self.names.len()).ok_or(Errno::NOENT)
    }

    fn open(&mut self, nodeid: u64) -> Result<OpenOut, Errno> {
        let index = self.index(nodeid)?;
        let text = self.texts.now(index, || self.source.text(index));
        let fh = self.texts.open(text)?;
        // read from us, not from the page cache, which all who have it open share
        Ok(OpenOut { fh, open_flags: fopen::DIRECT_IO, ..OpenOut::default() })
    }

    /// Whoever begins anew gets the text of this moment, as in /proc: top(1) and vmstat(8) keep files open.
    fn read(&mut self, nodeid: u64, wanted: &ReadIn) -> Result<&[u8], Errno> {
        if wanted.offset == 0 {
            let index = self.index(nodeid)?;
            let text = self.texts.now(index, || self.source.text(index));
            self.texts.renew(wanted.fh, text)?;
        }
        self.texts.read(wanted)
    }

    fn list(&self, offset: u64, with_entries: bool, listing: &mut Listing<'_>) {
        const REGULAR: u32 = 8;
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for index in first..self.names.len() {
            let entry = with_entries.then(|| self.entry(index));
            let name = self.names.get(index).copied().unwrap_or_default();
            let head = Dirent { ino: number(index), off: index as u64 + 1, namelen: 0, kind: REGULAR };
            if listing.add(entry.as_ref(), head, name.as_bytes()) {
                break;
            }
        }
    }
}

fn number(index: usize) -> u64 {
    ROOT + 1 + index as u64
}

/// It is of this moment, as those in /proc are.
fn file(ino: u64, size: u64) -> Attr {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(0);
    let times = Attr { atime: now, mtime: now, ctime: now, ..Attr::default() };
    Attr { ino, size, mode: FILE, nlink: 1, blksize: PAGE as u32, ..times }
}

/// One text. It is counted as long as somebody holds it.
struct Text {
    bytes: Vec<u8>,
    held: Rc<Cell<usize>>,
}

impl Drop for Text {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.bytes.len());
    }
}

/// The texts that somebody reads, and the current ones.
struct Texts {
    open: Vec<Option<Rc<Text>>>,
    /// Places in it that are free.
    free: Vec<usize>,
    current: Vec<Option<(Instant, Rc<Text>)>>,
    /// The bytes of all.
    held: Rc<Cell<usize>>,
}

impl Texts {
    fn new(count: usize) -> Texts {
        Texts { open: Vec::new(), free: Vec::new(), current: vec![None; count], held: Rc::default() }
    }

    /// The current text of a file, made by `make` where there is none.
    fn now(&mut self, index: usize, make: impl FnOnce() -> Vec<u8>) -> Rc<Text> {
        let held = self.held.get();
        let good = |(made, _): &&(Instant, Rc<Text>)| held > MOST_BYTES || made.elapsed() < FRESH;
        let old = self.current.get(index).and_then(Option::as_ref);
        if let Some((_, text)) = old.filter(good) {
            return Rc::clone(text);
        }
        // What changes while it is made may be missing in it.
        let begun = Instant::now();
        let bytes = make();
        let text = match old.filter(|(_, text)| text.bytes == bytes) {
            Some((_, same)) => Rc::clone(same),
            None => {
                self.held.set(held + bytes.len());
                Rc::new(Text { bytes, held: Rc::clone(&self.held) })
            }
        };
        if let Some(place) = self.current.get_mut(index) {
            *place = Some((begun, Rc::clone(&text)));
        }
        text
    }

    fn open(&mut self, text: Rc<Text>) -> Result<u64, Errno> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.open.len() < MOST_HANDLES => {
                self.open.push(None);
                self.open.len() - 1
            }
            None => return Err(Errno::NFILE),
        };
        if let Some(free) = self.open.get_mut(place) {
            *free = Some(text);
        }
        Ok(place as u64)
    }

    /// Gives an open file another text.
    fn renew(&mut self, fh: u64, text: Rc<Text>) -> Result<(), Errno> {
        let place = usize::try_from(fh).map_err(|_| Errno::BADF)?;
        let open = self.open.get_mut(place).and_then(Option::as_mut).ok_or(Errno::BADF)?;
        *open = text;
        Ok(())
    }

    fn read(&self, wanted: &ReadIn) -> Result<&[u8], Errno> {
        let place = usize::try_from(wanted.fh).map_err(|_| Errno::BADF)?;
        let text = self.open.get(place).and_then(Option::as_ref).ok_or(Errno::BADF)?;
        let start = usize::try_from(wanted.offset).unwrap_or(usize::MAX).min(text.bytes.len());
        let end = start.saturating_add(wanted.size as usize).min(text.bytes.len());
        Ok(text.bytes.get(start..end).unwrap_or_default())
    }

    fn close(&mut self, fh: u64) {
        let place = usize::try_from(fh).unwrap_or(usize::MAX);
        if self.open.get_mut(place).and_then(Option::take).is_some() {
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &Texts, fh: u64, offset: u64, size: u32) -> Result<String, Errno> {
        let bytes = texts.read(&ReadIn { fh, offset, size, ..ReadIn::default() })?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn who_has_it_open_goes_on_with_the_same_text() {
        let mut texts = Texts::new(2);
        let first = texts.now(1, || b"first".to_vec());
        let first = texts.open(first).unwrap();
        texts.current[1] = None;
        let second = texts.now(1, || b"second".to_vec());
        let second = texts.open(second).unwrap();
        assert_eq!(read(&texts, first, 1, 3).unwrap(), "irs");
        assert_eq!(read(&texts, second, 0, 100).unwrap(), "second");
        let third = texts.now(0, || b"third".to_vec());
        assert_eq!(texts.renew(second, third), Ok(()));
        assert_eq!(read(&texts, second, 0, 100).unwrap(), "third");
        for (offset, size) in [(5, 1), (u64::MAX, u32::MAX), (0, 0)] {
            assert_eq!(read(&texts, first, offset, size).unwrap(), "", "{offset} {size}");
        }
        texts.close(first);
        assert_eq!(read(&texts, first, 0, 1), Err(Errno::BADF));
        assert_eq!(read(&texts, u64::MAX, 0, 1), Err(Errno::BADF));
        let text = texts.now(0, || b"third".to_vec());
        assert_eq!(
            (texts.renew(first, Rc::clone(&text)), texts.renew(u64::MAX, text)),
            (Err(Errno::BADF), Err(Errno::BADF))
        );
        texts.close(first);
        texts.close(u64::MAX);
    }

    #[test]
    fn a_text_of_this_moment_is_not_made_anew_and_the_same_is_not_kept_twice() {
        let mut texts = Texts::new(1);
        let first = texts.now(0, || b"text".to_vec());
        let current = texts.current[0].as_mut().unwrap();
        current.0 += Duration::from_secs(3600);
        assert!(Rc::ptr_eq(&first, &texts.now(0, || panic!("it is fresh"))));
        texts.current[0].as_mut().unwrap().0 = Instant::now() - FRESH;
        assert!(Rc::ptr_eq(&first, &texts.now(0, || b"text".to_vec())));
        texts.current[0].as_mut().unwrap().0 = Instant::now() - FRESH;
        assert!(!Rc::ptr_eq(&first, &texts.now(0, || b"other".to_vec())));
        assert_eq!(texts.held.get(), 9);
        drop(first);
        assert_eq!(texts.held.get(), 5);
    }

    #[test]
    fn what_is_held_open_is_bounded() {
        let mut texts = Texts::new(1);
        let mut made = 0;
        for _ in 0..MOST_HANDLES {
            let text = texts.now(0, || {
                made += 1;
                [&made.to_string().into_bytes()[..], &[b'x'; 100_000]].concat()
            });
            texts.open(text).unwrap();
            texts.current[0].as_mut().unwrap().0 = Instant::now() - FRESH;
        }
        assert!(texts.held.get() < MOST_BYTES + 200_000, "{}", texts.held.get());
        assert!(made > 10, "{made}");
        let text = texts.now(0, || panic!("there are too many"));
        assert_eq!(texts.open(text), Err(Errno::NFILE));
        texts.close(7);
        // What was the only one to read that text has gone, so there is place for another.
        let text = texts.now(0, || b"another".to_vec());
        assert_eq!(text.bytes, b"another");
        assert_eq!(texts.open(text), Ok(7));
    }
}
