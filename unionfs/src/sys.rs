//! System calls that no safe wrapper has. The only home of `unsafe` in this crate.
#![allow(unsafe_code)]

pub(crate) mod pages;

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::OnceLock;

use nix::unistd::{ForkResult, Pid};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::path::Arg as _;

/// Keeps reading from changing access times in a detached mount, and everything else from being changed where it is
/// to be read-only (mount_setattr(2), kernel 5.12).
///
/// # Errors
/// ENOSYS on older kernels, EPERM without CAP_SYS_ADMIN over the mount.
pub(crate) fn forbid_access_times(mount: BorrowedFd<'_>, read_only: bool) -> Result<(), Errno> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_mount_attributes(mount, libc::MOUNT_ATTR_NOATIME | read_only, libc::MOUNT_ATTR__ATIME)
}

/// Makes a detached mount read-only, or writable again (mount_setattr(2), kernel 5.12).
///
/// # Errors
/// EBUSY while something in it is open for writing; those of [`forbid_access_times`].
pub(crate) fn set_read_only(mount: BorrowedFd<'_>, read_only: bool) -> Result<(), Errno> {
    let (set, clear) = if read_only { (libc::MOUNT_ATTR_RDONLY, 0) } else { (0, libc::MOUNT_ATTR_RDONLY) };
    set_mount_attributes(mount, set, clear)
}

fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: the descriptor is open for the length of the call, the path is a constant string
    // with its zero byte, and the kernel reads `attributes` only, whose size is passed along.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    checked(result).map(drop)
}

/// Opens a descriptor on what another one is open on, in one step: whoever uses it meanwhile uses one or the other.
///
/// # Errors
/// Those of dup3(2).
pub(crate) fn replace(descriptor: BorrowedFd<'_>, other: OwnedFd) -> Result<(), Errno> {
    // SAFETY: both are open for the length of the call. The number of the first stays its owner's, and open.
    checked(unsafe { libc::dup3(other.as_raw_fd(), descriptor.as_raw_fd(), libc::O_CLOEXEC) }.into()).map(drop)
}

/// Copies a process of one thread (fork(2)); `None` in the copy. [`process::fork`](crate::process::fork)
/// sees to it that there is but one.
///
/// # Errors
/// What fork(2) answers.
pub(crate) fn fork_single() -> Result<Option<Pid>, Errno> {
    // SAFETY: the only thread is the one that makes the call, so that no lock in the copy is held by
    // somebody who is not there: the copy may do whatever this process may.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Some(child)),
        Ok(ForkResult::Child) => Ok(None),
        Err(error) => Err(Errno::from_raw_os_error(error as i32)),
    }
}

/// A descriptor of its own for what this process was given under a number.
///
/// # Errors
/// EBADF where nothing is open under it.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: fcntl(2) is told numbers only, and answers EBADF where nothing is open.
    let copy = checked(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }.into())?;
    let copy = RawFd::try_from(copy).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just opened it, so that nothing else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The same on all architectures.
const STATMOUNT: libc::c_long = 457;
/// `STATMOUNT_SB_BASIC`.
const OF_FILE_SYSTEM: u64 = 1;

/// `struct mnt_id_req` of `linux/mount.h`, as it was first.
#[repr(C)]
struct MountAsked {
    size: u32,
    spare: u32,
    mount: u64,
    wanted: u64,
}

/// The beginning of `struct statmount`.
#[repr(C)]
#[derive(Default)]
struct MountTold {
    size: u32,
    options: u32,
    told: u64,
    major: u32,
    minor: u32,
    magic: u64,
}

/// Which file system (`f_type` of statfs(2)) a mount with this unique id shows (statmount(2), Linux
/// 6.8). The file system itself is asked nothing, so that it need not be served.
///
/// # Errors
/// ENOSYS on older kernels, ENOENT for an id that no mount has.
pub(crate) fn file_system_of_mount(id: u64) -> Result<u64, Errno> {
    let asked = MountAsked { size: size_of::<MountAsked>() as u32, spare: 0, mount: id, wanted: OF_FILE_SYSTEM };
    let mut told = MountTold::default();
    // SAFETY: the kernel reads `asked`, whose size is in it, and writes no more to `told` than its size,
    // which is passed along; any bytes are a value of it.
    checked(unsafe {
        libc::syscall(STATMOUNT, &raw const asked, &raw mut told, size_of::<MountTold>(), 0 as libc::c_uint)
    })?;
    if told.told & OF_FILE_SYSTEM == 0 { Err(Errno::NOSYS) } else { Ok(told.magic) }
}

/// What a raw system call returned.
fn checked(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_errno())
}

/// Whether the kernel has a call: one that it has minds the descriptor first. A filter of system
/// calls may say anything else.
fn has(call: impl FnOnce() -> Result<usize, Errno>) -> bool {
    call() == Err(Errno::BADF)
}

/// Whether there is fchmodat2(2), since kernel 6.6.
pub(crate) fn has_chmod_at() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| has(|| raw_chmod_at(-1, c"", 0)))
}

/// Whether there is renameat2(2), since kernel 3.15.
pub(crate) fn has_rename_with_flags() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| has(raw_rename_nowhere))
}

fn raw_rename_nowhere() -> Result<usize, Errno> {
    let name = c"a".as_ptr();
    // SAFETY: the kernel reads the names up to their zero bytes, and minds the descriptors itself.
    checked(unsafe { libc::syscall(libc::SYS_renameat2, -1, name, -1, name, libc::RENAME_NOREPLACE) })
}

/// A call that older kernels lack, and filters that do not know it.
#[derive(Debug)]
pub(crate) struct Call(&'static str, libc::c_long);

/// Those that have something slower, or less, in their place. Numbers of newer ones are the same on all architectures.
pub(crate) const CALLS: [Call; 12] = [
    Call("renameat2", libc::SYS_renameat2),
    Call("memfd_create", libc::SYS_memfd_create),
    Call("execveat", libc::SYS_execveat),
    Call("copy_file_range", libc::SYS_copy_file_range),
    Call("statx", libc::SYS_statx),
    Call("open_tree", 428),
    Call("pidfd_open", 434),
    Call("clone3", 435),
    Call("close_range", 436),
    Call("openat2", 437),
    Call("mount_setattr", 442),
    Call("fchmodat2", 452),
];

impl Call {
    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        self.0
    }

    /// Whether the kernel has it, and lets this process make it.
    pub(crate) fn is_there(&self) -> bool {
        // SAFETY: none of these calls does anything with -1 for each argument: the descriptors, sizes, flags and numbers of
        // processes are refused, and no pointer of -1 can be read.
        let answer = checked(unsafe { libc::syscall(self.1, -1, -1, -1, -1, -1, -1) });
        !matches!(answer, Err(Errno::NOSYS | Errno::PERM))
    }
}

/// What tells an entry of a directory from all others of its file system, over removals and with an empty name what a
/// descriptor holds (name_to_handle_at(2)).
///
/// # Errors
/// EOPNOTSUPP where the file system has none.
pub(crate) fn file_handle(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    /// `struct file_handle` of `linux/fcntl.h` with the longest handle.
    #[repr(C)]
    struct Handle {
        length: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    name.into_with_c_str(|name| {
        let mut handle = Handle { length: 128, kind: 0, bytes: [0; 128] };
        let mut mount: libc::c_int = 0;
        // SAFETY: the kernel reads the name up to its zero byte, and writes no more to the handle than the length in it,
        // and the number of the mount.
        checked(unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw mut handle,
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        })?;
        Ok(handle.bytes.get(..handle.length as usize).unwrap_or_default().to_vec())
    })
}

/// Changes the mode of an entry of a directory, or of what a descriptor holds with an empty name. No
/// symbolic link is followed.
pub(crate) fn chmod_at(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    name.into_with_c_str(|name| raw_chmod_at(dir.as_raw_fd(), name, mode)).map(drop)
}

fn raw_chmod_at(dir: RawFd, name: &CStr, mode: u32) -> Result<usize, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: the kernel reads the name up to its zero byte, and minds the descriptor itself.
    checked(unsafe { libc::syscall(libc::SYS_fchmodat2, dir, name.as_ptr(), mode, flags) })
}

/// Numbers of system calls that are the same on all architectures.
const GETXATTRAT: libc::c_long = 464;
const LISTXATTRAT: libc::c_long = 465;

/// `struct xattr_args` of `linux/xattr.h`.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Whether there are getxattrat(2) and listxattrat(2), since kernel 6.13.
pub(crate) fn has_xattr_at() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| has(|| raw_xattr_at(-1, c"a", c"user.a", &mut [])) && has(|| raw_names_at(-1, c"a", &mut [])))
}

/// Reads an extended attribute of an entry of a directory into a buffer; its length. No symbolic link
/// is followed.
pub(crate) fn xattr_at(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
    name.into_with_c_str(|name| {
        attribute.into_with_c_str(|attribute| raw_xattr_at(dir.as_raw_fd(), name, attribute, buffer))
    })
}

fn raw_xattr_at(dir: RawFd, name: &CStr, attribute: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let mut args = XattrArgs { value: buffer.as_mut_ptr() as u64, size, flags: 0 };
    // SAFETY: the kernel reads both names up to their zero bytes and `args`, whose size is passed along,
    // and writes no more than `size` bytes to the buffer, which is as long.
    checked(unsafe {
        libc::syscall(
            GETXATTRAT,
            dir,
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw mut args,
            size_of::<XattrArgs>(),
        )
    })
}

/// Reads the names of the extended attributes of an entry of a directory; their length. No symbolic
/// link is followed.
pub(crate) fn xattr_names_at(dir: BorrowedFd<'_>, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
    name.into_with_c_str(|name| raw_names_at(dir.as_raw_fd(), name, buffer))
}

fn raw_names_at(dir: RawFd, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the kernel reads the name up to its zero byte, and writes no more to the buffer than its
    // length, which is passed along.
    checked(unsafe { libc::syscall(LISTXATTRAT, dir, name.as_ptr(), flags, buffer.as_mut_ptr(), buffer.len()) })
}

/// Gives memory that was freed back to the system (malloc_trim(3)). The C library keeps the small
/// pieces of a million forgotten inodes otherwise.
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How a thread is scheduled, as sched_setattr(2) has it (`struct sched_attr` of
/// `linux/sched/types.h`, the first version).
#[repr(C)]
#[derive(Default)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// It answers at once: its turns are short, for which it comes to its turn soon (kernel 6.12).
    Answers,
    /// It works for long, and lets those that answer go first.
    Copies,
}

/// Tells the scheduler what the calling thread is for, and the threads that it starts from now on.
/// A policy that the user chose stays.
///
/// # Errors
/// Those of sched_setattr(2).
pub(crate) fn schedule_for(work: Work) -> Result<(), Errno> {
    const TURN: u64 = 100_000;
    let size = size_of::<Scheduling>() as u32;
    let mut scheduling = Scheduling::default();
    // SAFETY: the kernel fills `scheduling`, whose size is passed along, for the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut scheduling, size, 0) };
    if got != 0 {
        return Err(last_errno());
    }
    if scheduling.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    (scheduling.policy, scheduling.runtime) = match work {
        Work::Answers => (libc::SCHED_OTHER as u32, TURN),
        Work::Copies => (libc::SCHED_BATCH as u32, 0),
    };
    scheduling.size = size;
    // SAFETY: the kernel reads `scheduling`, which says its size, for the calling thread.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const scheduling, 0) };
    if set == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Begins to write a range of a file back, without waiting for it (sync_file_range(2)).
///
/// # Errors
/// ENOSPC or EIO from the blocks that it needs, ESPIPE or EINVAL where the file has none.
pub(crate) fn begin_writeback(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<(), Errno> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return Err(Errno::INVAL) };
    // SAFETY: the descriptor is open for the length of the call, which takes numbers only.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// A part of a file that becomes the beginning of another, as FICLONERANGE has it (`struct
/// file_clone_range` of `linux/fs.h`).
#[repr(C)]
struct CloneRange {
    from: i64,
    offset: u64,
    length: u64,
    to: u64,
}

/// FICLONERANGE.
const CLONE_RANGE: u32 = opcode::write::<CloneRange>(0x94, 13);

/// Makes the first bytes of a file those of an empty one, which shares their blocks. `length` is a
/// number of whole blocks, or 0 for all.
///
/// # Errors
/// EOPNOTSUPP or EXDEV where the file systems cannot, EINVAL where these two files cannot.
pub(crate) fn clone_beginning(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> Result<(), Errno> {
    let range = CloneRange { from: from.as_raw_fd().into(), offset: 0, length, to: 0 };
    // SAFETY: the request reads a `struct file_clone_range`, which `CloneRange` is, and whose
    // descriptor is open for the length of the call.
    unsafe { ioctl(to, Setter::<CLONE_RANGE, CloneRange>::new(range)) }
}

/// Flags, project and extent sizes of a file, as FS_IOC_FSGETXATTR has them (`struct fsxattr` of
/// `linux/fs.h`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExtendedFlags {
    /// `FS_XFLAG_*`.
    pub flags: u32,
    /// Size of extents, in bytes.
    pub extent_size: u32,
    /// Number of extents; only told.
    pub extents: u32,
    /// The project that it is counted to.
    pub project: u32,
    /// Size of extents that are copied on write, in bytes.
    pub copied_extent_size: u32,
    /// Not in use.
    pub rest: [u32; 2],
}

impl ExtendedFlags {
    /// The value as the kernel passes it.
    pub fn from_bytes(bytes: &[u8; 28]) -> ExtendedFlags {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        ExtendedFlags {
            flags: word(0),
            extent_size: word(4),
            extents: word(8),
            project: word(12),
            copied_extent_size: word(16),
            rest: [word(20), word(24)],
        }
    }

    /// The value as the kernel takes it.
    pub fn to_bytes(self) -> Vec<u8> {
        let [first, second] = self.rest;
        let words = [self.flags, self.extent_size, self.extents, self.project, self.copied_extent_size, first, second];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// FS_IOC_FSGETXATTR.
pub(crate) const GET_EXTENDED_FLAGS: u32 = opcode::read::<ExtendedFlags>(b'X', 31);
/// FS_IOC_FSSETXATTR.
pub(crate) const SET_EXTENDED_FLAGS: u32 = opcode::write::<ExtendedFlags>(b'X', 32);
/// FS_IOC_GETVERSION, which says that it reads a long, and reads an int.
pub(crate) const GET_VERSION: u32 = opcode::read::<libc::c_long>(b'v', 1);

/// Asks for the extended flags of an open file or directory.
///
/// # Errors
/// ENOTTY where the file system has none.
pub(crate) fn extended_flags(file: impl AsFd) -> Result<ExtendedFlags, Errno> {
    // SAFETY: the request fills a `struct fsxattr`, which `ExtendedFlags` is.
    unsafe { ioctl(file, Getter::<GET_EXTENDED_FLAGS, ExtendedFlags>::new()) }
}

/// Sets the extended flags of an open file or directory.
///
/// # Errors
/// EPERM, ENOTTY, EOPNOTSUPP, EINVAL.
pub(crate) fn set_extended_flags(file: impl AsFd, flags: ExtendedFlags) -> Result<(), Errno> {
    // SAFETY: the request reads a `struct fsxattr`, which `ExtendedFlags` is.
    unsafe { ioctl(file, Setter::<SET_EXTENDED_FLAGS, ExtendedFlags>::new(flags)) }
}

/// Asks for the generation of an open file's inode.
///
/// # Errors
/// ENOTTY where the file system has none.
pub(crate) fn version(file: impl AsFd) -> Result<u32, Errno> {
    let mut filled = [0; size_of::<libc::c_long>() / 4];
    // SAFETY: the request fills an int, whatever its number says, and there is room for a long.
    unsafe { ioctl(file, Updater::<GET_VERSION, _>::new(&mut filled)) }?;
    Ok(filled[0])
}

/// A file that the kernel shall read and write itself (`struct fuse_backing_map` of `linux/fuse.h`).
#[repr(C)]
struct BackingMap {
    file: i32,
    flags: u32,
    padding: u64,
}

/// FUSE_DEV_IOC_BACKING_OPEN, which returns the number of the backing.
struct OpenBacking(BackingMap);

// SAFETY: the request reads a `struct fuse_backing_map`, which `BackingMap` is, and writes nothing.
unsafe impl Ioctl for OpenBacking {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<BackingMap>(229, 1)
    }

    fn as_ptr(&mut self) -> *mut libc::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut libc::c_void) -> Result<i32, Errno> {
        Ok(out)
    }
}

/// Gives the kernel a file to read and write itself, with the rights of this thread (kernel 6.9).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ELOOP for a file of a file system that is stacked too high.
pub(crate) fn open_backing(device: impl AsFd, file: BorrowedFd<'_>) -> Result<i32, Errno> {
    let map = BackingMap { file: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the implementation above describes the request.
    unsafe { ioctl(device, OpenBacking(map)) }
}

/// FUSE_DEV_IOC_BACKING_CLOSE.
const CLOSE_BACKING: u32 = opcode::write::<u32>(229, 2);

/// Ends what [`open_backing`] began. Who has the file open goes on.
///
/// # Errors
/// ENOENT for a number that is not in use.
pub(crate) fn close_backing(device: impl AsFd, backing: i32) -> Result<(), Errno> {
    // SAFETY: the request reads a `uint32_t`.
    unsafe { ioctl(device, Setter::<CLOSE_BACKING, i32>::new(backing)) }
}

/// Whether nobody has a file open for writing, or mapped from such a descriptor. `file` is open for
/// reading.
///
/// The kernel gives out a lease for reading (fcntl(2)) on just this condition; it ends at once.
///
/// # Errors
/// EACCES without CAP_LEASE over another's file, EINVAL where the file system has no leases.
pub(crate) fn has_no_writer(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let lease = |kind: i32| {
        // SAFETY: the descriptor is open for the length of the call, which takes an int.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
        let errno = || std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        if result == -1 { Err(errno()) } else { Ok(()) }
    };
    match lease(libc::F_RDLCK) {
        Err(Errno::AGAIN) => Ok(false),
        leased => {
            leased?;
            // closing the file ends it as well
            lease(libc::F_UNLCK).map(|()| true)
        }
    }
}
