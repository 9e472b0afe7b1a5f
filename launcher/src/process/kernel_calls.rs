//! System calls for which no crate has a safe form.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::confine::Instruction;

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

/// Makes this process, and all that it starts, ask a filter before each system call; seccomp(2).
pub(crate) fn install_filter(program: &[Instruction]) -> Result<(), Errno> {
    let convert =
        |one: &Instruction| libc::sock_filter { code: one.code, jt: one.then, jf: one.otherwise, k: one.operand };
    let mut instructions: Vec<libc::sock_filter> = program.iter().map(convert).collect();
    let length = u16::try_from(instructions.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: the program points to as many instructions as it says, which live until the kernel has copied them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program)) };
    match Errno::result(result) {
        // Linux before 3.17 has another call for the same.
        // SAFETY: as above.
        Err(Errno::ENOSYS) => Errno::result(unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&program))
        })
        .map(drop),
        result => result.map(drop),
    }
}

/// Runs the program in an open file; returns only with the reason why it could not.
pub(crate) fn execute_file(file: impl AsFd, arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words.iter().map(|word| CStr::as_ptr(word)).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null pointer, and what they point to lives until the call returns, if it does.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    match Errno::result(result) {
        // Linux before 3.19, or a filter around us that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => execute_by_path(&file, &arguments, &environment),
        result => result.err().unwrap_or(Errno::ENOEXEC),
    }
}

/// The same by the path that leads to what a descriptor holds. Both lists end with a null pointer.
fn execute_by_path(file: impl AsFd, arguments: &[*const libc::c_char], environment: &[*const libc::c_char]) -> Errno {
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())) else { return Errno::EINVAL };
    // SAFETY: the callers' strings, and the path, live until the call returns, if it does.
    let result = unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Errno::result(result).err().unwrap_or(Errno::ENOEXEC)
}

/// Leaves the caller's keys behind: a session keyring of this process's own; keyctl(2).
pub(crate) fn leave_keyring() -> Result<(), Errno> {
    // SAFETY: a null pointer asks for a keyring without a name.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match Errno::result(result) {
        // No keys in this kernel; or a filter around us, which keeps us from the caller's keys as well.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT) => Ok(()),
        result => result.map(drop),
    }
}
