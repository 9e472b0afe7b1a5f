//! A change made again and again over the same branches; the daemon dies at its first system call that may change
//! something, then at the second, and so on until the change is complete.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use harness::kill_at::{Life, kill_at};
use harness::model::{self, Clock};
use harness::mount::Mounted;
use harness::sandbox::{self, Medium, Sandbox};
use harness::snapshot::{Kind, Snapshot, WORK_AREA, names};
use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, mknodat, renameat_with, setxattr};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// In which form the top is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each test file has its form")]
pub(crate) enum Form {
    /// Files `.wh.NAME`.
    Wh,
    /// As overlayfs.
    Overlay,
}

/// Long ago, so that a time that should have been kept is told from the clock's.
const OLD: Duration = Duration::from_secs(1_000_000_000);

/// What a caller does in the union.
pub(crate) type Act = fn(&Path) -> io::Result<()>;

/// One change: what the branches hold, and what a caller does in the union.
///
/// `1/d/` is a directory of the branch B1, `1/f` a file and `1/g=f` one more name for it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) things: &'static [&'static str],
    pub(crate) change: Act,
}

fn make(form: Form, things: &[&str], root: &Path) {
    for branch in ["0", "1", "mnt"] {
        fs::create_dir_all(root.join(branch)).unwrap();
    }
    for thing in things {
        let (path, link) = thing.split_once('=').map_or((*thing, None), |(path, target)| (path, Some(target)));
        let at = root.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        match link {
            _ if form == Form::Overlay && path.contains("/.wh.") => make_mark(&at),
            _ if path.ends_with('/') => fs::create_dir_all(&at).unwrap(),
            Some(target) => fs::hard_link(at.parent().unwrap().join(target), &at).unwrap(),
            None => {
                fs::write(&at, if path.contains("/.wh.") { "" } else { path }).unwrap();
                File::options().write(true).open(&at).unwrap().set_times(old()).unwrap();
            }
        }
    }
}

/// What a file `.wh.NAME` says, in the form of overlayfs.
fn make_mark(at: &Path) {
    let dir = at.parent().unwrap();
    match at.file_name().unwrap().to_str().unwrap().strip_prefix(".wh.").unwrap() {
        ".wh..opq" => setxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap(),
        name => mknodat(CWD, dir.join(name), FileType::CharacterDevice, Mode::empty(), 0).unwrap(),
    }
}

fn old() -> FileTimes {
    FileTimes::new().set_modified(UNIX_EPOCH + OLD).set_accessed(UNIX_EPOCH + OLD)
}

/// A union in a directory of its own.
pub(crate) fn mount(sandbox: &Sandbox, form: Form, name: &str, things: &[&str]) -> (PathBuf, Mounted) {
    let root = sandbox.path().join(name);
    make(form, things, &root);
    let options: &[&str] = if form == Form::Overlay { &["whiteout=overlay"] } else { &[] };
    let branches = format!("{0}/0=rw:{0}/1=ro+wh", root.display());
    let mounted = Mounted::mount(BIN, branches, &root.join("mnt"), options);
    (root, mounted)
}

/// The names of files by the number they show, so that torn links are seen.
fn groups(tree: &Snapshot) -> Vec<Vec<&Path>> {
    let mut groups: HashMap<u64, Vec<&Path>> = HashMap::new();
    for (path, entry) in tree.entries.iter().filter(|(_, entry)| entry.kind != Kind::Directory) {
        groups.entry(entry.ino).or_default().push(path);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort();
    groups
}

pub(crate) fn difference(found: &Snapshot, expected: &Snapshot) -> Vec<String> {
    // whoever dies between two steps has touched directories already
    difference_but_times(found, expected, Clock::NotDirectories)
}

fn difference_but_times(found: &Snapshot, expected: &Snapshot, clock: Clock) -> Vec<String> {
    let mut lines = model::difference(found, expected, clock);
    if groups(found) != groups(expected) {
        lines.push(format!("the same file are {:?} and not {:?}", groups(found), groups(expected)));
    }
    lines
}

/// Says what is wrong after a death at one call; nothing where all is well. The mount is gone afterwards.
fn look_after_death(
    root: &Path,
    mounted: &mut Mounted,
    case: &Case,
    before: Option<&Snapshot>,
    after: &Snapshot,
) -> Vec<String> {
    mounted.wait_for_the_end();
    umount2(mounted.target(), MntFlags::MNT_DETACH).unwrap();
    mounted.mount_again();
    let mut wrong = Vec::new();
    let left = names(&root.join("0").join(WORK_AREA).join("tmp")).unwrap();
    if !left.is_empty() {
        wrong.push(format!("left over: {left:?}"));
    }
    let found = Snapshot::take(mounted.target());
    // a kernel that gathers writes tells the time of one after it, and what was answered has that
    let cut_short = before.is_some();
    let clock = if cut_short && mounted.gathers_writes() { Clock::None } else { Clock::NotDirectories };
    let unlike_before = before.map(|before| difference_but_times(&found, before, clock));
    let unlike_after = difference_but_times(&found, after, clock);
    if unlike_before.as_ref().is_some_and(Vec::is_empty) {
        // it can be made now, and is complete then
        match (case.change)(mounted.target()) {
            Ok(()) => wrong.extend(difference(&Snapshot::take(mounted.target()), after)),
            Err(error) => wrong.push(format!("it cannot be made after the remount: {error}")),
        }
    } else if !unlike_after.is_empty() {
        wrong.push(format!("not as before: {unlike_before:#?}\nnor as after: {unlike_after:#?}"));
    }
    mounted.umount();
    wrong
}

/// What the union shows before and after the change, when nothing happens to it.
fn undisturbed(sandbox: &Sandbox, form: Form, first: Act, case: &Case) -> (Snapshot, Snapshot) {
    let (_, mounted) = mount(sandbox, form, &format!("{}-whole", case.name), case.things);
    first(mounted.target()).unwrap();
    let before = Snapshot::take(mounted.target());
    (case.change)(mounted.target()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let after = Snapshot::take(mounted.target());
    assert!(!difference(&before, &after).is_empty(), "{} changes nothing", case.name);
    (before, after)
}

/// Returns what is wrong, and how many deaths there were.
fn try_case(sandbox: &Sandbox, form: Form, first: Act, case: &Case) -> (Vec<String>, usize) {
    let (before, after) = undisturbed(sandbox, form, first, case);
    let (mut wrong, mut earlier) = (Vec::new(), Vec::new());
    for at in 1.. {
        let (root, mut mounted) = mount(sandbox, form, &format!("{}-{at}", case.name), case.things);
        let target = mounted.target().to_owned();
        first(&target).unwrap();
        let Life { result, calls, cut_short } = kill_at(mounted.pid(), at, || (case.change)(&target));
        assert!(calls.starts_with(&earlier), "{}: not the same twice: {earlier:?} {calls:?}", case.name);
        if !cut_short {
            result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
        // what was answered is on disk
        let before = Some(&before).filter(|_| cut_short);
        let lines = look_after_death(&root, &mut mounted, case, before, &after);
        if !lines.is_empty() {
            wrong.push(format!("{}, killed at the last of {calls:?}:\n{}", case.name, lines.join("\n")));
        }
        if !cut_short {
            return (wrong, at);
        }
        earlier = calls;
    }
    unreachable!("a change makes an end")
}

#[track_caller]
pub(crate) fn try_all_in(form: Form, first: Act, cases: &[Case]) {
    let Some(sandbox) = sandbox::enter_on(Medium::Tmpfs) else { return };
    let mut wrong = Vec::new();
    for case in cases {
        let (lines, deaths) = try_case(&sandbox, form, first, case);
        assert!(deaths > 1, "{}: the daemon did nothing", case.name);
        wrong.extend(lines);
    }
    assert!(wrong.is_empty(), "{} deaths end badly\n{}", wrong.len(), wrong.join("\n\n"));
}

pub(crate) fn nothing(_: &Path) -> io::Result<()> {
    Ok(())
}

pub(crate) fn append(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all_at(b"NEW", 1)
}

pub(crate) fn rename(union: &Path, from: &str, to: &str, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat_with(CWD, union.join(from), CWD, union.join(to), flags)?)
}
