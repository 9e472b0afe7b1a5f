//! The power goes: what was synchronised is there, every name is before or after a change, and the union goes on.
//!
//! The top, or the whole union, lies on a disk that remembers every write and flush ([`harness::disk`]). One caller changes the union at
//! random and synchronises a file or directory now and then, while somebody else has the disk written back at odd
//! moments. Then the disk is cut at random places of its log, what it held is mounted, and the union over it is compared
//! with what the caller did ([`harness::history`]). `RUNIONFS_CUTS` sets how often on each file system,
//! `RUNIONFS_CUT_SEED` repeats a run (but for what the threads do in which order).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::disk::{Disk, Format, unmount};
use harness::fixture::Branches;
use harness::history::{History, Moments};
use harness::model::{self, Clock};
use harness::mount::Mounted;
use harness::ops::{Act, Allocate, Caller, Op, Present, work_and_syncs};
use harness::rootless;
use harness::sandbox::{self, Medium, run};
use harness::snapshot::{Snapshot, WORK_AREA, names};
use harness::tree::{Layout, layouts};
use harness::trial::{Ground, number};
use harness::world::Access;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");
/// How many operations one caller does, and how often the disk is cut after it.
const LENGTH: usize = 400;
const CUTS_OF_A_LOAD: u32 = 10;

/// Which branches lie on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDisk {
    Top,
    /// All of them, so that a copy may share the blocks of its original.
    All,
}

/// A union whose top lies on a disk.
struct Load {
    ground: Ground,
    disk: Disk,
    /// How many branches lie on it.
    branches: usize,
    mounted: Mounted,
}

impl Load {
    fn begin(parent: &Path, name: &str, format: Format, on_disk: OnDisk, layout: &Layout) -> Load {
        let ground = Ground::new(parent, name, layout).expect("write the branches");
        let disk = Disk::new(&ground.at("disk"), format);
        let branches = if on_disk == OnDisk::All { layout.branches.len() } else { 1 };
        for branch in (0..branches).map(|branch| branch.to_string()) {
            run(Command::new("cp").arg("-a").arg(ground.at(&branch)).arg(disk.root()));
        }
        put_all(&disk.root(), &ground, branches);
        sync(&disk.root());
        let mounted = ground.mount(BINARY);
        Load { ground, disk, branches, mounted }
    }

    /// Does the operations in the union and in the plain directory, and notes when.
    fn work(&mut self, acts: &[Act]) -> History {
        let plain_root = self.ground.write_plain().expect("write the plain directory");
        let mut history = History::begin(&plain_root);
        let (mut union, mut plain) = (Caller::new(self.mounted.target()), Caller::new(&plain_root));
        let (done, over, synced) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
        let disk = &self.disk;
        thread::scope(|scope| {
            scope.spawn(|| {
                // as the kernel does it by itself, only more often
                for (turn, pause) in [3, 17, 1, 40, 8].into_iter().cycle().enumerate() {
                    thread::sleep(Duration::from_millis(pause));
                    if over.load(Ordering::Acquire) {
                        return;
                    }
                    let step = done.load(Ordering::Acquire);
                    if turn % 16 == 15 {
                        sync(&disk.root())
                    } else {
                        sync_names(&disk.root())
                    }
                    synced.lock().expect("nobody panics").push((step, disk.position()));
                }
            });
            let _over = Over(&over);
            for act in acts.iter().filter(|act| !zeroes(act)) {
                let act = &Present::of(&plain_root).resolve(act);
                let begun = disk.position();
                let answer = union.act(act);
                let moments = Moments { begun, answered: disk.position() };
                assert_eq!(answer, plain.act(act), "{act:?}, while the power was on");
                history.note(act, moments, answer.is_ok());
                done.store(history.last(), Ordering::Release);
            }
        });
        for (step, position) in synced.into_inner().expect("nobody panics") {
            history.all_synced(step, position);
        }
        history
    }

    /// Ends it as a crash would.
    fn end(&mut self) {
        self.mounted.kill9();
        umount2(self.mounted.target(), MntFlags::MNT_DETACH).expect("take the dead mount away");
        take_all(&self.ground, self.branches);
        self.disk.stop();
    }

    /// Mounts what the disk held at a moment, and the union over it, and says what is wrong.
    fn cut(&mut self, history: &History, moment: usize, chance: &mut TestRng) -> Result<(usize, usize), String> {
        let (image, root) = (self.ground.at("cut.img"), self.ground.at("cut"));
        self.disk.cut(moment, &image, chance);
        fs::create_dir_all(&root).expect("make a mount point");
        self.disk.mount_cut(&image, &root);
        put_all(&root, &self.ground, self.branches);
        self.mounted.mount_again();
        let outcome = self.look(history, moment);
        self.mounted.umount();
        take_all(&self.ground, self.branches);
        unmount(&root);
        outcome
    }

    /// Mounts what the disk held at a moment, with nothing of what it had in its cache, and says where.
    fn cut_bare(&mut self, moment: usize) -> PathBuf {
        let (image, root) = (self.ground.at("cut.img"), self.ground.at("cut"));
        let mut nothing_kept = TestRng::from_seed(RngAlgorithm::ChaCha, &[0; 32]);
        self.disk.cut(moment, &image, &mut nothing_kept);
        fs::create_dir(&root).expect("make a mount point");
        self.disk.mount_cut(&image, &root);
        root
    }

    fn look(&mut self, history: &History, moment: usize) -> Result<(usize, usize), String> {
        let left = names(&self.ground.at("0").join(WORK_AREA).join("tmp")).map_err(|error| error.to_string())?;
        if !left.is_empty() {
            return Err(format!("left over in the work area: {left:?}"));
        }
        let outcome = history.check(moment, self.mounted.target())?;
        let found = self.mounted.check();
        if !found.is_empty() {
            return Err(format!("runionfs check finds\n{found}"));
        }
        let before = Snapshot::take(self.mounted.target());
        self.mounted.remount();
        let lines = model::difference(&Snapshot::take(self.mounted.target()), &before, Clock::All);
        if !lines.is_empty() {
            return Err(format!("a remount changed it:\n{}", lines.join("\n")));
        }
        remove_all(self.mounted.target())?;
        self.mounted.remount();
        match names(self.mounted.target()) {
            Ok(left) if left.is_empty() => Ok(outcome),
            left => Err(format!("all was removed, but a remount shows {left:?}")),
        }
    }
}

/// The plain directory is on tmpfs, which cannot do it.
fn zeroes(act: &Act) -> bool {
    matches!(act.op, Op::Allocate { manner: Allocate::ZeroRange, .. })
}

/// Tells the other thread that there is nothing to do any more, even when this one panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a power cut left must not be in the way of what comes then.
fn remove_all(union: &Path) -> Result<(), String> {
    for name in names(union).map_err(|error| error.to_string())? {
        let path = union.join(name);
        let directory = fs::symlink_metadata(&path).is_ok_and(|entry| entry.is_dir());
        let removed = if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Lays the first branches as a disk holds them over those of the ground.
fn put_all(root: &Path, ground: &Ground, branches: usize) {
    (0..branches).map(|branch| branch.to_string()).for_each(|branch| put(&root.join(&branch), &ground.at(&branch)));
}

fn take_all(ground: &Ground, branches: usize) {
    (0..branches).for_each(|branch| unmount(&ground.at(branch.to_string())));
}

/// Lays a directory over another.
fn put(directory: &Path, over: &Path) {
    mount(Some(directory), over, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind a directory");
}

fn sync(place: &Path) {
    let directory = fs::File::open(place).expect("open a directory of the disk");
    rustix::fs::syncfs(directory).expect("synchronise a disk");
}

/// Makes all names and attributes durable, but no contents: the journal keeps the order, and this comes last.
fn sync_names(root: &Path) {
    let path = root.join("last");
    let file = fs::File::create_new(&path).expect("create a file on the disk");
    file.sync_all().expect("fsync");
    fs::remove_file(path).expect("remove it");
}

/// A layout of which the topmost branch alone is written.
fn one_top() -> impl Strategy<Value = Layout> {
    layouts().prop_map(|mut layout| {
        for (index, access) in layout.branches.iter_mut().enumerate() {
            *access = match (index, *access) {
                (0, _) => Access::Writable,
                (_, Access::Writable) => Access::Whiteouts,
                (_, access) => access,
            };
        }
        layout
    })
}

fn try_on(format: Format, on_disk: OnDisk, cuts: u32) {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(1_200)) else { return };
    let cuts = number("RUNIONFS_CUTS", cuts);
    let seed: Vec<u8> = number("RUNIONFS_CUT_SEED", 1).to_le_bytes().iter().cycle().take(32).copied().collect();
    let mut chance = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner =
        TestRunner::new_with_rng(ProptestConfig::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let values = (one_top(), prop::collection::vec(work_and_syncs(), LENGTH));
    let (mut wrong, mut cut) = (Vec::new(), 0);
    for round in 0..cuts.div_ceil(CUTS_OF_A_LOAD) {
        let (layout, acts) = values.new_tree(&mut runner).expect("a value").current();
        let mut load = Load::begin(sandbox.path(), &round.to_string(), format, on_disk, &layout);
        let first = load.disk.position();
        let history = load.work(&acts);
        let last = load.disk.position();
        load.end();
        let span = last - first;
        assert!(span > 20, "the load hardly reached the disk");
        let many = CUTS_OF_A_LOAD.min(cuts - cut);
        let mut moments: Vec<usize> = (0..many).map(|_| first + chance.next_u32() as usize % (span + 1)).collect();
        moments.sort_unstable();
        for moment in moments {
            cut += 1;
            match load.cut(&history, moment, &mut chance) {
                Ok((step, of)) => println!(
                    "{format:?} {round} at {moment} of {first}..{last}: step {step} of {}, {of} possible",
                    history.last()
                ),
                Err(text) => {
                    wrong.push(format!("load {round}, cut at {moment} of {first}..{last}:\n{text}\nof {layout:?}"))
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cuts} cuts end badly\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn power_is_cut_under_ext4() {
    try_on(Format::Ext4, OnDisk::Top, 60);
}

#[test]
fn power_is_cut_under_xfs() {
    try_on(Format::Xfs, OnDisk::Top, 60);
}

#[test]
fn power_is_cut_under_xfs_where_copies_share_blocks() {
    try_on(Format::Xfs, OnDisk::All, 30);
}

#[test]
fn a_copy_that_shares_blocks_is_never_there_without_them() {
    const SIZE: usize = 8 << 20;
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(300)) else { return };
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 4096 + at) as u8).collect();
    let layout =
        Layout { branches: vec![Access::Writable, Access::Whiteouts], opaque_roots: vec![false; 2], things: vec![] };
    let mut load = Load::begin(sandbox.path(), "ground", Format::Xfs, OnDisk::All, &layout);
    // not synchronised: it is for the copy-up to wait for it, or for the disk's own order
    fs::write(load.ground.at("1/low"), &content).expect("write a file below");
    let free = || rustix::fs::statfs(load.disk.root()).expect("ask for room").f_bfree;
    let (first, before) = (load.disk.position(), free());
    fs::set_permissions(load.mounted.target().join("low"), fs::Permissions::from_mode(0o600)).expect("copy it up");
    sync_names(&load.disk.root());
    let taken = before.saturating_sub(free());
    let last = load.disk.position();
    load.end();
    assert!(taken < 256, "it takes {taken} blocks: nothing was shared");
    let (image, root) = (load.ground.at("cut.img"), load.ground.at("cut"));
    fs::create_dir(&root).expect("make a mount point");
    let mut chance = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut copied = 0;
    for moment in (first..=last).chain([last; 3]) {
        load.disk.cut(moment, &image, &mut chance);
        load.disk.mount_cut(&image, &root);
        match fs::read(root.join("0/low")) {
            Ok(found) => {
                assert!(found == content, "cut at {moment} of {first}..{last}: {} bytes of it", found.len());
                copied += 1;
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "cut at {moment}"),
        }
        unmount(&root);
    }
    assert!(copied > 0, "the name reaches the disk in the end");
}

#[test]
fn an_fsync_by_a_descriptor_for_reading_reaches_the_disk() {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(120)) else { return };
    let layout =
        Layout { branches: vec![Access::Writable, Access::Whiteouts], opaque_roots: vec![false; 2], things: vec![] };
    for format in [Format::Ext4, Format::Xfs] {
        let mut load = Load::begin(sandbox.path(), &format!("{format:?}"), format, OnDisk::Top, &layout);
        let path = load.mounted.target().join("file");
        fs::write(&path, "content").expect("write a file");
        // as sync(1) does it
        fs::File::open(&path).expect("open it").sync_all().expect("fsync");
        let moment = load.disk.position();
        load.end();
        let root = load.cut_bare(moment);
        assert_eq!(fs::read_to_string(root.join("0/file")).expect("read it"), "content", "{format:?}");
        unmount(&root);
    }
}

/// Its whiteout is a file that says which name it hides.
#[test]
fn a_long_name_that_was_removed_does_not_come_back() {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(120)) else { return };
    let layout =
        Layout { branches: vec![Access::Writable, Access::Whiteouts], opaque_roots: vec![false; 2], things: vec![] };
    let name = "n".repeat(255);
    for format in [Format::Ext4, Format::Xfs] {
        let mut load = Load::begin(sandbox.path(), &format!("{format:?}"), format, OnDisk::Top, &layout);
        fs::write(load.ground.at("1").join(&name), "below").expect("write a file below");
        let path = load.mounted.target().join(&name);
        fs::write(&path, "above").expect("write a file");
        sync(&load.disk.root());
        fs::remove_file(&path).expect("remove it");
        sync_names(&load.disk.root());
        let moment = load.disk.position();
        load.end();
        let root = load.cut_bare(moment);
        put_all(&root, &load.ground, load.branches);
        load.mounted.mount_again();
        assert_eq!(names(load.mounted.target()).expect("list the union"), [""; 0], "{format:?}");
        load.mounted.umount();
        take_all(&load.ground, load.branches);
        unmount(&root);
    }
}

/// An ordinary user cannot give a link away, so whose it is lies beside it, in the work area.
#[test]
fn a_copy_is_never_there_without_the_owner_that_is_kept_of_it() {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(120)) else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let place = sandbox.path().to_owned();
    let mut disk = Disk::new(&place.join("disk"), Format::Ext4);
    fs::create_dir(disk.root().join("0")).expect("make a directory");
    rootless::give(&disk.root().join("0"));
    let branches = Branches::inside(sandbox, BINARY, &["rw", "ro+wh"]);
    put(&disk.root().join("0"), &branches.at("0"));
    rootless::give(&branches.at("mnt"));
    branches.symlink("1/link", "target");
    lchown(branches.at("1/link"), Some(11), Some(12)).expect("give it to somebody");
    let mut union = branches.mount();
    sync(&disk.root());
    fs::rename(union.path("link"), union.path("mine")).expect("copy it up");
    sync_names(&disk.root());
    let moment = disk.position();
    union.mounted.kill9();
    umount2(union.mounted.target(), MntFlags::MNT_DETACH).expect("take the dead mount away");
    unmount(&union.at("0"));
    disk.stop();
    let (image, root) = (place.join("cut.img"), place.join("cut"));
    let mut nothing_kept = TestRng::from_seed(RngAlgorithm::ChaCha, &[0; 32]);
    disk.cut(moment, &image, &mut nothing_kept);
    fs::create_dir(&root).expect("make a mount point");
    disk.mount_cut(&image, &root);
    put(&root.join("0"), &union.at("0"));
    union.mounted.mount_again();
    let link = union.stat("mine");
    assert_eq!((link.uid(), link.gid()), (11, 12));
    union.mounted.umount();
}
