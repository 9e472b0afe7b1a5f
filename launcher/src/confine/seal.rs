//! Our own program, out of reach of what runs in a container (CVE-2019-5736).
//!
//! A container can make us run `/proc/self/exe`, which is this very program, open it and, as root, write to it: the next
//! start would run what it wrote. So before anything else this program becomes one that is run through a mount of its own that
//! is read-only: in place, where the kernel allows that, and else by running itself again, from a sealed copy in memory where
//! there are no such mounts.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc::MOUNT_ATTR_RDONLY;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::{FsFlags, fstatvfs, statvfs};
use nix::unistd::{AccessFlags, access};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::failure::{Doing as _, Failure, errno_of};
use crate::process::{image, kernel_calls as kernel};
use crate::rootless::is_root;

/// What this process runs.
pub(crate) const PROGRAM: &str = "/proc/self/exe";

const SEALS: SealFlag =
    SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Returns once this program is out of reach: in this run, or in a new one with the same arguments.
pub(crate) fn ensure() -> Result<(), Failure> {
    let program = File::open(PROGRAM).doing("open this program itself")?;
    if is_out_of_reach(&program).doing("look at this program itself")? {
        return Ok(());
    }
    // Linux before 5.12 has no such mounts, and an ordinary user may make none.
    if let Ok(file) = read_only_mount() {
        // It takes a privilege, and a kernel that does no more than it has to.
        if image::run_from(&file).is_ok() {
            return Ok(());
        }
        let errno = run_again(&file, None);
        return Err(Failure::because("run this program again, read-only", errno.desc()));
    }
    let copy = sealed_copy(&program).or_else(|_| nameless_copy(&program)).doing("copy this program")?;
    Err(Failure::because("run this program again, from a copy", run_again(&copy, None).desc()))
}

/// Runs this program once more from an open file, as it was called or under another name; returns only with the reason why
/// that could not be.
pub(crate) fn run_again(file: impl AsFd, name: Option<&str>) -> Errno {
    let name = name.map(OsString::from).or_else(|| std::env::args_os().next());
    let arguments = words(name.into_iter().chain(std::env::args_os().skip(1)));
    kernel::execute_file(file, &arguments, &words(std::env::vars_os().map(assignment)))
}

fn is_out_of_reach(program: &File) -> Result<bool, Errno> {
    if fstatvfs(program)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    // A file without a name goes with those who run it, so nobody runs what was written to it: a copy in memory or on disk.
    if program.metadata().map_err(|error| errno_of(&error))?.nlink() == 0 {
        return Ok(true);
    }
    // EINVAL: not a file in memory.
    let seals = fcntl(program, FcntlArg::F_GET_SEALS).unwrap_or(0);
    if SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE) {
        return Ok(true);
    }
    // Who may neither write to it nor change its mode has nothing that a container of theirs could use.
    let owner = program.metadata().map_err(|error| errno_of(&error))?.uid();
    let user = nix::unistd::geteuid();
    Ok(!is_root() && owner != user.as_raw() && access(PROGRAM, AccessFlags::W_OK).is_err())
}

/// The program through a mount that is attached nowhere; it lasts for as long as somebody runs it.
fn read_only_mount() -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, PROGRAM, flags)?;
    kernel::set_mount_attributes(&mount, MOUNT_ATTR_RDONLY)?;
    open_again(&mount)
}

fn sealed_copy(program: &File) -> io::Result<File> {
    let copy = memfd_create(c"rlaunch", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(copy);
    copy_to(program, &mut file)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    // A file that is open for writing cannot be run.
    open_again(&file)
}

/// A copy on disk whose name is gone already, where there are no files in memory (before Linux 3.17) or none that may be
/// run.
fn nameless_copy(program: &File) -> io::Result<File> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_default();
    let places = ["/run", "/dev/shm", "/tmp", "/var/tmp"].map(Path::new);
    let places = std::iter::once(Path::new(&runtime)).chain(places).filter(|place| place.is_absolute());
    let mut result = Err(io::ErrorKind::NotFound.into());
    for place in places {
        result = copy_in(place, program);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn copy_in(place: &Path, program: &File) -> io::Result<File> {
    if statvfs(place)?.flags().contains(FsFlags::ST_NOEXEC) {
        return Err(Errno::EACCES.into());
    }
    let path = place.join(format!(".rlaunch-program-{}", std::process::id()));
    let mut file = File::options().write(true).create_new(true).mode(0o500).open(&path)?;
    let copied = copy_to(program, &mut file).and_then(|()| open_again(&file));
    std::fs::remove_file(&path)?;
    copied
}

fn copy_to(program: &File, to: &mut File) -> io::Result<()> {
    let mut program = program.try_clone()?;
    program.rewind()?;
    io::copy(&mut program, to).map(drop)
}

/// The same file through the same mount, to read it.
fn open_again(file: &impl AsRawFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn assignment((mut name, value): (OsString, OsString)) -> OsString {
    name.push("=");
    name.push(value);
    name
}

fn words(texts: impl Iterator<Item = OsString>) -> Vec<CString> {
    // What the kernel gave us has no zero bytes.
    texts.filter_map(|text| CString::new(text.into_vec()).ok()).collect()
}
