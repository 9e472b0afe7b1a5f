//! System calls that no safe wrapper has. The only home of `unsafe` in this crate.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Makes a detached mount read-only and keeps reading from changing access times
/// (mount_setattr(2), kernel 5.12).
///
/// # Errors
/// ENOSYS on older kernels, EPERM without CAP_SYS_ADMIN over the mount.
pub(crate) fn set_mount_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns_fd: 0,
    };
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
    if result == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
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
