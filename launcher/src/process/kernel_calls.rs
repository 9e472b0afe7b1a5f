//! System calls for which no crate has a safe form.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Switches the loopback interface of this network namespace on; see netdevice(7).
pub(crate) fn bring_up_loopback() -> Result<(), Errno> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq consists of integers and bytes, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo\0") {
        *to = from.cast_signed() as libc::c_char;
    }
    // The kernel gives the address along with this.
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request takes a pointer to an ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }).map(drop)
}

/// Sets attributes (`MOUNT_ATTR_…`) on a mount and on all that are below it; ENOSYS before Linux 5.12.
pub(crate) fn set_mount_attributes(mount: impl AsFd, attributes: u64) -> Result<(), Errno> {
    let values = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a string that ends with zero, and the attributes are as long as is said and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const values,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}
