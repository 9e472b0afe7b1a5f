//! Watches over copy-up (inotify(7), fanotify(7)), and file handles of the kernel (name_to_handle_at(2)).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use harness::fixture::{Branches, Union};
use harness::{Errno, ErrnoOf as _};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags as InotifyFlags, Inotify};
use rustix::fs::XattrFlags;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

const THINGS: [&str; 6] = ["f", "gone", "replaced", "d/g", "d/sub/h", "moving/sub/i"];

fn make(root: &Path) {
    for thing in THINGS {
        let path = root.join(thing);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "low").unwrap();
    }
}

fn append(path: &Path) {
    File::options().append(true).open(path).unwrap().write_all(b"+").unwrap();
}

/// Changes everything that is watched, each thing for the first time.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    append(&at("f"));
    fs::set_permissions(at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(at("d"), fs::Permissions::from_mode(0o700)).unwrap();
    rustix::fs::setxattr(at("f"), "user.x", b"x", XattrFlags::empty()).unwrap();
    nix::unistd::truncate(&at("d/g"), 1).unwrap();
    fs::read(at("d/sub/h")).unwrap();
    File::create_new(at("d/new")).unwrap();
    fs::rename(at("d/new"), at("d/newer")).unwrap();
    fs::hard_link(at("f"), at("d/link")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::rename(at("d/newer"), at("replaced")).unwrap();
    fs::rename(at("moving"), at("d/moved")).unwrap();
    append(&at("d/moved/sub/i"));
    append(&at("f"));
    fs::remove_file(at("d/sub/h")).unwrap();
    fs::remove_dir(at("d/sub")).unwrap();
}

fn inotify_events(root: &Path) -> Vec<String> {
    let inotify = Inotify::init(InotifyFlags::IN_NONBLOCK).unwrap();
    let watched = ["", "f", "gone", "replaced", "d", "d/g", "d/sub", "d/sub/h", "moving", "moving/sub", "moving/sub/i"];
    let watches: Vec<_> = watched
        .iter()
        .map(|name| (inotify.add_watch(&root.join(name), AddWatchFlags::IN_ALL_EVENTS).unwrap(), *name))
        .collect();
    change(root);
    let mut lines = Vec::new();
    loop {
        match inotify.read_events() {
            Err(nix::errno::Errno::EAGAIN) => return lines,
            events => lines.extend(events.unwrap().into_iter().map(|event| {
                let watch = watches.iter().find(|(watch, _)| *watch == event.wd).unwrap().1;
                format!("{watch:?} {:?} {:?}", event.mask, event.name)
            })),
        }
    }
}

/// A union with the things below, and a plain directory beside it with the same.
fn below_and_plain() -> Option<Union> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    make(&branches.at("1"));
    make(&branches.at("plain"));
    Some(branches.mount())
}

#[test]
fn inotify_tells_what_it_tells_of_a_plain_directory() {
    let Some(mut u) = below_and_plain() else { return };
    let expected = inotify_events(&u.at("plain"));
    assert!(expected.len() > 50, "{expected:#?}");
    assert_eq!(inotify_events(&u.path("")), expected);
    u.remount_and_compare();
}

/// A file handle: its type and its bytes.
type Handle = (i32, Vec<u8>);

const ROOM: usize = 128;

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; ROOM],
}

fn handle_of(path: &Path) -> Handle {
    let mut raw = RawHandle { bytes: ROOM as u32, kind: 0, handle: [0; ROOM] };
    let (path, mut mount) = (CString::new(path.as_os_str().as_bytes()).unwrap(), 0);
    // SAFETY: the path ends with a zero byte, and the handle has as much room as it says.
    let done =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut raw).cast(), &raw mut mount, 0) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    (raw.kind, raw.handle[..raw.bytes as usize].to_vec())
}

fn open_handle(mount: impl AsFd, handle: &Handle, flags: i32) -> io::Result<File> {
    let mut raw = RawHandle { bytes: handle.1.len() as u32, kind: handle.0, handle: [0; ROOM] };
    raw.handle[..handle.1.len()].copy_from_slice(&handle.1);
    // SAFETY: the handle has as many bytes as it says.
    let opened = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut raw).cast(), flags) };
    // SAFETY: it was opened just now, and nobody else has it.
    if opened < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { File::from_raw_fd(opened) }) }
}

/// What is read by a handle.
fn read_handle(mount: impl AsFd, handle: &Handle) -> io::Result<String> {
    let mut text = String::new();
    open_handle(mount, handle, libc::O_RDONLY)?.read_to_string(&mut text).map(|_| text)
}

#[test]
fn fanotify_tells_files_by_their_handles_over_copy_up() {
    let Some(u) = below_and_plain() else { return };
    for root in [u.at("plain"), u.path("")] {
        let flags = InitFlags::from_bits_retain(libc::FAN_REPORT_FID | libc::FAN_NONBLOCK);
        let fanotify = Fanotify::init(flags, EventFFlags::O_RDONLY).unwrap();
        let mask =
            MaskFlags::FAN_MODIFY | MaskFlags::FAN_ATTRIB | MaskFlags::FAN_DELETE_SELF | MaskFlags::FAN_MOVE_SELF;
        let watched = ["f", "d/g", "gone", "moving/sub/i"];
        for name in watched {
            fanotify.mark(MarkFlags::FAN_MARK_ADD, mask, rustix::fs::CWD, Some(&root.join(name))).unwrap();
        }
        // what is watched is not forgotten, so it keeps its handle
        let handles: Vec<_> = watched.iter().map(|name| handle_of(&root.join(name))).collect();
        change(&root);
        let mut buffer = [0; 16384];
        let read = rustix::io::read(fanotify.as_fd(), &mut buffer).unwrap();
        let events = fid_events(&buffer[..read]);
        for (name, expected) in [
            ("f", MaskFlags::FAN_MODIFY | MaskFlags::FAN_ATTRIB),
            ("d/g", MaskFlags::FAN_MODIFY),
            ("gone", MaskFlags::FAN_ATTRIB),
            ("moving/sub/i", MaskFlags::FAN_MODIFY),
        ] {
            let handle = &handles[watched.iter().position(|watched| *watched == name).unwrap()];
            let told = events.iter().filter(|event| event.1 == *handle).fold(0, |mask, event| mask | event.0);
            assert_eq!(
                told & expected.bits(),
                expected.bits(),
                "{name}, {handle:?}, in {}: {events:?}",
                root.display()
            );
        }
        assert!(events.iter().all(|event| handles.contains(&event.1)), "{events:?}");
    }
}

/// The events of a group with FAN_REPORT_FID: masks and handles (fanotify(7)).
fn fid_events(mut bytes: &[u8]) -> Vec<(u64, Handle)> {
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let (length, header) = (word(bytes, 0) as usize, usize::from(u16::from_ne_bytes([bytes[6], bytes[7]])));
        let mask = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
        // its type and length, the file system's number, and the handle
        let info = &bytes[header..length];
        let handle = &info[12..];
        let size = word(handle, 0) as usize;
        events.push((mask, (word(handle, 4).cast_signed(), handle[8..8 + size].to_vec())));
        bytes = &bytes[length..];
    }
    events
}

#[test]
fn fanotify_marks_of_the_mount_see_every_file() {
    let Some(u) = below_and_plain() else { return };
    let fanotify = Fanotify::init(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK, EventFFlags::O_RDONLY).unwrap();
    let mask = MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE;
    fanotify
        .mark(MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT, mask, rustix::fs::CWD, Some(&u.path("")))
        .unwrap();
    append(&u.path("d/sub/h"));
    let seen: Vec<_> = fanotify.read_events().unwrap();
    let told = seen.iter().fold(MaskFlags::empty(), |told, event| told | event.mask());
    assert_eq!(told, mask);
    for event in seen {
        let path = fs::read_link(format!("/proc/self/fd/{}", event.fd().unwrap().as_raw_fd())).unwrap();
        assert_eq!(path, u.path("d/sub/h"));
    }
}

#[test]
fn a_file_is_opened_by_its_handle_over_all_that_happens_to_it() {
    let Some(u) = below_and_plain() else { return };
    let mount = File::open(u.path("")).unwrap();
    // kept in mind by the kernel
    let held: Vec<_> = ["f", "d", "gone"].iter().map(|name| File::open(u.path(name)).unwrap()).collect();
    let [f, d, gone] = ["f", "d", "gone"].map(|name| handle_of(&u.path(name)));
    assert_eq!(read_handle(&mount, &f).unwrap(), "low");
    append(&u.path("f"));
    assert_eq!((read_handle(&mount, &f).unwrap(), handle_of(&u.path("f"))), ("low+".into(), f.clone()), "copied up");
    fs::rename(u.path("f"), u.path("d/sub/renamed")).unwrap();
    fs::hard_link(u.path("d/sub/renamed"), u.path("linked")).unwrap();
    assert_eq!(read_handle(&mount, &f).unwrap(), "low+", "renamed");
    open_handle(&mount, &f, libc::O_WRONLY | libc::O_APPEND).unwrap().write_all(b"+").unwrap();
    assert_eq!(u.read("linked"), "low++");
    fs::rename(u.path("d"), u.path("moved")).unwrap();
    let directory = open_handle(&mount, &d, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    assert_eq!(directory.metadata().unwrap().ino(), u.stat("moved").ino());
    assert_eq!(handle_of(&u.path("moved")), d);
    fs::remove_file(u.path("gone")).unwrap();
    assert_eq!(read_handle(&mount, &gone).unwrap(), "low", "removed and open");
    drop(held);
}

/// The number of a file that is gone is used again; its handle is not.
#[test]
fn a_handle_never_leads_to_another_file() {
    let Some(u) = below_and_plain() else { return };
    let mount = File::open(u.path("")).unwrap();
    let mut reused = 0;
    let mut old: Vec<(Handle, String)> = Vec::new();
    let mut numbers = Vec::new();
    for round in 0..50 {
        let name = format!("new{round}");
        u.write(&name, &name);
        reused += usize::from(numbers.contains(&u.stat(&name).ino()));
        numbers.push(u.stat(&name).ino());
        for (handle, content) in &old {
            match read_handle(&mount, handle) {
                // its last handle is being closed just now
                Ok(text) => assert_eq!(text, *content),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
            }
        }
        let _held = File::open(u.path(&name)).unwrap();
        let handle = handle_of(&u.path(&name));
        assert_eq!(read_handle(&mount, &handle).unwrap(), name);
        fs::remove_file(u.path(&name)).unwrap();
        old.push((handle, name));
    }
    assert!(reused > 0, "no number was used again, and nothing was tested");
    // what the kernel has forgotten it finds no more, or finds as it was
    let f = handle_of(&u.path("f"));
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    match read_handle(&mount, &f) {
        Ok(text) => assert_eq!(text, "low"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
    }
    assert_eq!(u.read("f"), "low");
    let forged = |handle: &Handle| (handle.0, handle.1.iter().map(|byte| byte ^ 0x5a).collect());
    assert_eq!(read_handle(&mount, &forged(&handle_of(&u.path("f")))).errno(), Errno::ESTALE);
}
