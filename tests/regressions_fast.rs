//! Defects of the transport and of the ways to the content of files, one test each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use harness::fixture::Branches;
use harness::mapping::{Mapping, Sharing};
use harness::mount::{Mounted, finish, poll};
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
            let disk = rustix::fs::statvfs(at("disk")).unwrap();
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

/// Who opens as many files as the daemon may have takes no descriptors from those who open none.
#[test]
fn who_opens_all_files_that_there_may_be_keeps_nobody_from_the_rest() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..300 {
        branches.file(format!("1/f{number}"), "low");
    }
    for number in 0..40 {
        branches.file(format!("1/d{number}/a/f"), "low");
    }
    let mut mount = Command::new("prlimit");
    mount.args(["--nofile=256:256", BIN, "mount"]).arg(branches.string()).arg(branches.at("mnt"));
    assert_eq!(finish(&mut mount).status, Some(0));
    let mnt = branches.at("mnt");
    let (opened, refused): (Vec<_>, Vec<_>) =
        (0..300).map(|number| File::open(mnt.join(format!("f{number}")))).partition(Result::is_ok);
    assert!(opened.len() > 64 && !refused.is_empty(), "{} were opened", opened.len());
    assert!(refused.into_iter().all(|refused| refused.errno() == Errno::ENFILE));
    assert_eq!(OpenOptions::new().write(true).create_new(true).open(mnt.join("new")).errno(), Errno::ENFILE);
    assert!(!mnt.join("new").exists(), "it was made, and not opened");
    File::open(mnt.join("f0")).unwrap();
    for number in 0..40 {
        let at = |name: &str| mnt.join(format!("d{number}/{name}"));
        assert_eq!(fs::metadata(at("a/f")).unwrap().len(), 3);
        fs::set_permissions(at("a/f"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(at("b")).unwrap();
        fs::rename(at("a/f"), at("b/g")).unwrap();
        assert_eq!(fs::read_dir(at("b")).unwrap().count(), 1);
        nix::unistd::truncate(&at("b/g"), 1).unwrap();
        fs::remove_file(at("b/g")).unwrap();
        fs::rename(at("a"), at("c")).unwrap();
    }
    drop(opened);
    poll(Duration::from_secs(10), || fs::write(mnt.join("new"), "x").ok()).expect("there is room again");
    assert_eq!(finish(Command::new(BIN).arg("umount").arg(&mnt)).status, Some(0));
}
