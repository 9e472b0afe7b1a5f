//! File flags: the same answers as of a plain directory, for what lies in the top and for what lies below.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mount::finish;
use harness::sandbox::{self, Medium, Sandbox};
use harness::snapshot::{Exactness, Snapshot};
use nix::sys::mman::{self, MapFlags, MsFlags, ProtFlags};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, RenameFlags, Timestamps, XattrFlags};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn flags(path: &Path) -> IFlags {
    rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap()
}

fn try_set_flags(path: &Path, flags: IFlags) -> io::Result<()> {
    Ok(rustix::fs::ioctl_setflags(File::open(path)?, flags)?)
}

fn add_flags(path: &Path, more: IFlags) {
    try_set_flags(path, flags(path) | more).unwrap_or_else(|error| panic!("flags of {}: {error}", path.display()));
}

/// Things without flags.
fn make(root: &Path) {
    for dir in ["imm.d/sub", "imm.d/empty", "app.d/sub", "full.d/sub"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["imm", "app", "imm.d/f", "imm.d/sub/f", "app.d/f", "app.d/sub/f", "plain", "plain2", "full.d/sub/f"] {
        fs::write(root.join(file), file).unwrap();
        rustix::fs::setxattr(root.join(file), "user.x", b"x", XattrFlags::empty()).unwrap();
    }
}

/// Gives them flags.
fn protect(root: &Path) {
    for (names, flag) in [(["imm", "imm.d"], IFlags::IMMUTABLE), (["app", "app.d"], IFlags::APPEND)] {
        names.iter().for_each(|name| add_flags(&root.join(name), flag));
    }
    add_flags(&root.join("plain"), IFlags::NODUMP);
}

/// Calls and their answers.
struct Answers<'a> {
    root: &'a Path,
    lines: Vec<String>,
}

impl Answers<'_> {
    fn say<T, E: Into<io::Error>>(&mut self, what: &str, result: Result<T, E>) {
        let answer = match result {
            Ok(_) => "is done".to_owned(),
            Err(error) => {
                let error: io::Error = error.into();
                format!("fails: {error}")
            }
        };
        self.lines.push(format!("{what} {answer}"));
    }

    fn file(&mut self, name: &str) {
        let path = self.root.join(name);
        let open = |options: &mut fs::OpenOptions| options.open(&path);
        self.say(&format!("reading {name}"), fs::read(&path));
        self.say(&format!("opening {name} to write"), open(File::options().write(true)));
        self.say(&format!("opening {name} to read and write"), open(File::options().read(true).write(true)));
        self.say(&format!("truncating {name} at open"), open(File::options().write(true).truncate(true)));
        self.say(&format!("creating {name}"), open(File::options().write(true).create(true).append(true)));
        let appended = open(File::options().append(true)).and_then(|mut file| file.write_all(b"+"));
        self.say(&format!("appending to {name}"), appended);
        let reserved = open(File::options().append(true)).and_then(|file| {
            Ok(rustix::fs::fallocate(
                file,
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
                0,
                2,
            )?)
        });
        self.say(&format!("punching a hole in {name}"), reserved);
        self.say(&format!("truncating {name}"), nix::unistd::truncate(&path, 1));
        self.attributes(name);
    }

    fn attributes(&mut self, name: &str) {
        let path = self.root.join(name);
        self.say(
            &format!("chmod {name}"),
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)),
        );
        self.say(&format!("chown {name}"), chown(&path, Some(0), Some(0)));
        for (when, nanoseconds) in [("now", rustix::fs::UTIME_NOW), ("a time", 5)] {
            let time = rustix::fs::Timespec { tv_sec: 5, tv_nsec: nanoseconds };
            let times = Timestamps { last_access: time, last_modification: time };
            self.say(
                &format!("utimensat {name} to {when}"),
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()),
            );
        }
        self.say(&format!("setxattr {name}"), rustix::fs::setxattr(&path, "user.y", b"y", XattrFlags::empty()));
        self.say(&format!("removexattr {name}"), rustix::fs::removexattr(&path, "user.x"));
    }

    /// Only calls for the right type of entry: of another one, the kernel does not ask a FUSE file system for its
    /// flags and says ENOTDIR or EISDIR where ext4 says EPERM.
    fn names(&mut self, name: &str) {
        let path = |name: &str| self.root.join(name);
        let is_dir = path(name).is_dir();
        let (own, new, plain) =
            (path(name), path(&format!("{name}.new")), path(if is_dir { "full.d" } else { "plain" }));
        let results = [
            ("linking", fs::hard_link(&own, &new)),
            ("renaming", fs::rename(&own, &new)),
            ("renaming over", fs::rename(&plain, &own)),
            ("exchanging", renameat(&plain, &own, RenameFlags::EXCHANGE)),
            ("not replacing", renameat(&plain, &own, RenameFlags::NOREPLACE)),
            ("removing", if is_dir { fs::remove_dir(&own) } else { fs::remove_file(&own) }),
        ];
        for (what, result) in results {
            self.say(&format!("{what} {name}"), result);
        }
    }

    fn inside(&mut self, dir: &str) {
        let path = |name: &str| self.root.join(name);
        let at = |name: &str| self.root.join(dir).join(name);
        let exclusive = || File::options().write(true).create_new(true).to_owned();
        let results = [
            ("creating in", File::create_new(at("new")).map(drop)),
            ("creating what is in", exclusive().open(at("f")).map(drop)),
            ("mkdir in", fs::create_dir(at("newdir"))),
            ("mkdir of what is in", fs::create_dir(at("sub"))),
            ("symlink in", symlink("x", at("link"))),
            ("mknod in", rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).map_err(Into::into)),
            ("linking into", fs::hard_link(path("plain2"), at("linked"))),
            ("renaming into", fs::rename(path("plain2"), at("moved"))),
            ("renaming over what is in", fs::rename(path("plain"), at("f"))),
            ("renaming within", fs::rename(at("f"), at("g"))),
            ("renaming out of", fs::rename(at("f"), path("out"))),
            ("renaming a directory out of", fs::rename(at("sub"), path("outdir"))),
            ("exchanging with what is in", renameat(&path("plain"), &at("f"), RenameFlags::EXCHANGE)),
            ("unlinking what is in", fs::remove_file(at("f"))),
            ("unlinking what is not in", fs::remove_file(at("nothing"))),
            ("rmdir of what is in", fs::remove_dir(at("empty"))),
            (
                "writing to a file in",
                File::options().append(true).open(at("f")).and_then(|mut file| file.write_all(b"+")),
            ),
            (
                "writing further down in",
                File::options().append(true).open(at("sub/f")).and_then(|mut f| f.write_all(b"+")),
            ),
            ("creating further down in", File::create_new(at("sub/new")).map(drop)),
            ("unlinking further down in", fs::remove_file(at("sub/f"))),
        ];
        for (what, result) in results {
            self.say(&format!("{what} {dir}"), result);
        }
    }

    fn all(root: &Path) -> Vec<String> {
        let mut answers = Answers { root, lines: Vec::new() };
        for file in ["imm", "app"] {
            answers.file(file);
            answers.names(file);
        }
        for dir in ["imm.d", "app.d"] {
            answers.inside(dir);
            answers.attributes(dir);
            answers.names(dir);
        }
        // what is immutable takes no other flags but the loss of that
        for name in ["imm", "imm.d"] {
            let path = root.join(name);
            answers.say(&format!("same flags of {name}"), try_set_flags(&path, flags(&path)));
            answers.say(&format!("more flags of {name}"), try_set_flags(&path, flags(&path) | IFlags::NODUMP));
        }
        for name in ["imm", "app", "imm.d", "app.d", "plain"] {
            answers.lines.push(format!("{name} has {:?}", flags(&root.join(name))));
        }
        answers.lines
    }

    /// Takes the flags away, and does what they forbade.
    fn set_free(root: &Path) -> Vec<String> {
        let mut answers = Answers { root, lines: Vec::new() };
        for name in ["imm", "app", "imm.d", "app.d"] {
            let path = root.join(name);
            let free = flags(&path) - IFlags::IMMUTABLE - IFlags::APPEND;
            answers.say(&format!("freeing {name}"), try_set_flags(&path, free));
            answers.lines.push(format!("{name} has {:?}", flags(&path)));
        }
        for name in ["imm", "app"] {
            answers.attributes(name);
            answers.say(&format!("writing to {name}"), fs::write(root.join(name), "free"));
            answers.say(&format!("renaming {name}"), fs::rename(root.join(name), root.join("free")));
        }
        for name in ["imm.d", "app.d"] {
            answers.inside(name);
        }
        for name in ["imm.d", "app.d"] {
            answers.say(&format!("removing {name}"), fs::remove_dir_all(root.join(name)));
        }
        answers.lines
    }
}

fn renameat(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
}

/// Where things with flags lie, for they could not be removed from a file system that stays.
fn file_systems() -> Option<Sandbox> {
    let sandbox = sandbox::enter()?;
    for name in ["0", "1", "plain"] {
        assert!(sandbox.small_ext4(name, 16, &[]).is_dir());
    }
    Some(sandbox)
}

fn answers_of_ext4(sandbox: &Sandbox) -> [Vec<String>; 2] {
    let plain = sandbox.path().join("plain");
    make(&plain);
    protect(&plain);
    [Answers::all(&plain), Answers::set_free(&plain)]
}

#[track_caller]
fn assert_equal(found: &[String], expected: &[String], what: &str) {
    let differ = found.iter().zip(expected).filter(|(found, expected)| found != expected);
    let lines: Vec<_> = differ.map(|(found, expected)| format!("{found}, and in ext4 it is: {expected}")).collect();
    assert!(lines.is_empty() && found.len() == expected.len(), "{what}:\n{}", lines.join("\n"));
}

/// Where the kernel gathers writes, it tells the time of one before the branch has it, and nobody can set that of a
/// file that is append-only: there a remount may show `app` a moment younger.
#[track_caller]
fn remount_and_compare(u: &mut Union) {
    if !u.mounted.gathers_writes() {
        return u.remount_and_compare();
    }
    let mut before = Snapshot::take(u.mounted.target());
    u.mounted.remount();
    let after = Snapshot::take(u.mounted.target());
    if let (Some(app), Some(later)) = (before.entries.get_mut(Path::new("app")), after.entries.get(Path::new("app"))) {
        assert!(app.mtime <= later.mtime, "{:?} became {:?}", app.mtime, later.mtime);
        app.mtime = later.mtime;
    }
    before.assert_same(&after, Exactness::Equal, "a remount changed the tree");
}

#[test]
fn flags_in_the_top_are_those_of_its_file_system() {
    let Some(sandbox) = file_systems() else { return };
    let [bound, free] = answers_of_ext4(&sandbox);
    assert!(bound.iter().filter(|line| line.contains("Operation not permitted")).count() > 50, "{bound:#?}");
    assert!(!free.iter().any(|line| line.contains("Operation not permitted")), "{free:#?}");
    let mut u = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]).mount();
    make(&u.path(""));
    protect(&u.path(""));
    assert_equal(&Answers::all(&u.path("")), &bound, "bound");
    remount_and_compare(&mut u);
    assert_equal(&Answers::set_free(&u.path("")), &free, "free");
}

#[test]
fn flags_below_are_respected_as_if_they_were_in_the_top() {
    for remounted in [false, true] {
        let Some(sandbox) = file_systems() else { return };
        let [bound, free] = answers_of_ext4(&sandbox);
        let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
        make(&branches.at("1"));
        protect(&branches.at("1"));
        let mut u = branches.mount();
        assert_equal(&Answers::all(&u.path("")), &bound, "bound");
        if remounted {
            remount_and_compare(&mut u);
        }
        assert_equal(&Answers::set_free(&u.path("")), &free, "free");
        remount_and_compare(&mut u);
        u.assert_no_temporaries(0);
    }
}

fn union_over(medium: Medium) -> Option<Union> {
    let branches = Branches::on(medium, BIN, &["rw", "ro+wh"])?;
    branches.file("1/f", "low").file("1/g", "low").dir("1/d/e");
    Some(branches.mount())
}

#[test]
fn reading_flags_copies_nothing_up_and_changing_them_does() {
    let Some(u) = union_over(Medium::Disk) else { return };
    for name in ["f", "d", ""] {
        assert_eq!(flags(&u.path(name)), flags(&u.at("1").join(name)), "{name}");
    }
    assert_eq!(u.on_disk("0"), [""; 0]);
    add_flags(&u.path("f"), IFlags::NOATIME);
    add_flags(&u.path("d"), IFlags::NODUMP | IFlags::DIRSYNC);
    assert!(flags(&u.at("0/f")).contains(IFlags::NOATIME) && flags(&u.at("0/d")).contains(IFlags::DIRSYNC));
    assert_eq!((flags(&u.path("f")), flags(&u.path("d"))), (flags(&u.at("0/f")), flags(&u.at("0/d"))));
    assert_eq!(u.read("f"), "low");
}

#[test]
fn a_copy_has_the_flags_that_forbid_nothing_and_append_only() {
    let Some(sandbox) = file_systems() else { return };
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    let carried = IFlags::NOATIME | IFlags::SYNC | IFlags::NODUMP;
    for (name, flags) in [("f", carried), ("log", carried | IFlags::APPEND)] {
        branches.file(format!("1/{name}"), "low");
        add_flags(&branches.at(format!("1/{name}")), flags);
    }
    let mut u = branches.mount();
    for _remounted in 0..2 {
        for name in ["f", "log"] {
            let mut file = File::options().append(true).open(u.path(name)).unwrap();
            file.write_all(b"+").unwrap();
            assert_eq!(flags(&u.path(name)), flags(&u.at("1").join(name)), "{name}");
            assert_eq!(flags(&u.at("0").join(name)), flags(&u.at("1").join(name)), "{name}");
        }
        u.mounted.remount();
    }
    assert_eq!((u.read("f"), u.read("log")), ("low++".into(), "low++".into()));
    // nor is anything overwritten through a mapping, which ext4 would not have made
    let mut file = File::options().read(true).append(true).open(u.path("log")).unwrap();
    file.write_all(b"+").unwrap();
    // SAFETY: the mapping lies within the file, is used as bytes, and nothing else maps it.
    unsafe {
        let length = std::num::NonZeroUsize::new(4).unwrap();
        let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        let map = mman::mmap(None, length, prot, flags, &file, 0).unwrap();
        map.cast::<[u8; 4]>().write(*b"evil");
        assert!(mman::msync(map, 4, MsFlags::MS_SYNC).is_err());
        mman::munmap(map, 4).unwrap();
    }
    drop(file);
    u.mounted.remount();
    assert_eq!(u.read("log"), "low+++");
}

#[test]
fn chattr_and_lsattr_do_what_they_do_elsewhere() {
    let Some(u) = union_over(Medium::Disk) else { return };
    let run = |program: &str, arguments: &[&str], path: &Path| {
        let outcome = finish(Command::new(program).args(arguments).arg(path));
        let text = format!("{} {} {:?}", outcome.stdout, outcome.stderr, outcome.status);
        text.replace(&path.display().to_string(), "PATH")
    };
    for (below, shown) in [("1/f", "f"), ("1/d", "d")] {
        assert_eq!(
            run("lsattr", &["-d", "-v", "-p"], &u.path(shown)),
            run("lsattr", &["-d", "-v", "-p"], &u.at(below))
        );
        // a directory of the disk, not of a branch that must not change
        fs::create_dir_all(u.at("plain/d")).unwrap();
        fs::write(u.at("plain/f"), "").unwrap();
        for arguments in [&["+dA"][..], &["-d"], &["-p", "7"], &["+j"], &["=e"], &["+Q"]] {
            let plain = run("chattr", arguments, &u.at("plain").join(shown));
            assert_eq!(run("chattr", arguments, &u.path(shown)), plain, "{arguments:?} {shown}");
            let plain = run("lsattr", &["-d"], &u.at("plain").join(shown));
            assert_eq!(run("lsattr", &["-d"], &u.path(shown)), plain, "after {arguments:?} {shown}");
        }
    }
}

/// Where neither branch has flags, and for requests that nobody knows, the answer is ENOTTY, as of such file systems.
#[test]
fn what_is_not_there_is_enotty_and_never_einval() {
    let Some(sandbox) = sandbox::enter() else { return };
    assert!(sandbox.small_ext4("0", 16, &[]).is_dir());
    let u = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]).mount();
    u.write("f", "");
    let file = File::open(u.path("f")).unwrap();
    for (request, name) in [(0x5401, "TCGETS"), (0x1234_5678, "nothing"), (0x4008_7602_u64, "FS_IOC_SETVERSION")] {
        let mut space = [0_u8; 1 << 14];
        // SAFETY: any of these requests reads or writes at most what its number says, which there is room for.
        let answer = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&file), request as _, space.as_mut_ptr()) };
        assert_eq!((answer, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOTTY)), "{name}");
    }
}
