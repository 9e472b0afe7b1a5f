//! Defects of the transport and of the ways to the content of files, one test each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use harness::fixture::Branches;
use harness::mapping::{Mapping, Sharing};
use harness::mount::Mounted;
use harness::sandbox::{self, Medium};
use harness::{Errno, ErrnoOf as _};
use rustix::fs::SeekFrom;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The page cache of the kernel does not look at how much of a write was done.
#[test]
fn pages_that_a_full_disk_takes_in_part_are_told_as_lost() {
    let Some(sandbox) = sandbox::enter_on(Medium::Tmpfs) else { return };
    let at = |name: &str| sandbox.path().join(name);
    for name in ["disk", "1", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    nix::mount::mount(Some("tmpfs"), &at("disk"), Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=3m"))
        .unwrap();
    fs::create_dir(at("disk/0")).unwrap();
    let string = format!("{}=rw:{}=ro+wh", at("disk/0").display(), at("1").display());
    for (number, options) in
        [["passthrough=off"].as_slice(), &["passthrough=off", "writeback=off"]].into_iter().enumerate()
    {
        let mounted = Mounted::mount(BIN, &string, &at("mnt"), options);
        let file = read_write(&mounted.target().join(format!("{number}")));
        let free = |kept: u64| {
            let disk = rustix::fs::statvfs(&at("disk")).unwrap();
            disk.f_bavail * disk.f_frsize - kept
        };
        file.write_all_at(&vec![1; free(512 << 10) as usize], 0).unwrap();
        file.sync_all().unwrap();
        let (begin, more) = (file.metadata().unwrap().len(), free(0) as usize + 4096);
        assert!(more < 1 << 20, "it fits into one request");
        file.set_len(begin + more as u64).unwrap();
        let map = Mapping::new(&file, begin as usize + more, Sharing::Shared).unwrap();
        map.write(begin as usize, &vec![2; more]);
        assert_eq!(map.sync().errno(), Errno::ENOSPC, "{options:?}, mapped");
        drop(map);
        file.set_len(begin).unwrap();
        let written = file.write_all_at(&vec![3; more], begin).and_then(|()| file.sync_all());
        assert_eq!(written.errno(), Errno::ENOSPC, "{options:?}, written");
        drop(file);
        fs::remove_file(mounted.target().join(format!("{number}"))).unwrap();
    }
}

/// Who asks for holes waits until the kernel has sent the writes that it gathered, and those wait for a copy-up.
#[test]
fn many_may_ask_for_holes_of_files_that_are_to_be_copied_up() {
    const MANY: usize = 150;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..MANY {
        branches.file(format!("1/{number}"), vec![1; 9000]);
    }
    let u = branches.mount_with(&["passthrough=off"]);
    let files: Vec<File> = (0..MANY).map(|number| read_write(&u.path(format!("{number}")))).collect();
    let all = Barrier::new(MANY);
    thread::scope(|scope| {
        for file in &files {
            file.write_all_at(b"x", 5000).unwrap();
            let all = &all;
            scope.spawn(move || {
                all.wait();
                assert_eq!(rustix::fs::seek(file, SeekFrom::Hole(0)), Ok(9000));
            });
        }
    });
}
