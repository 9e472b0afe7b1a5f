//! Programs in the kernel's BPF that decide about devices; bpf(2).

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use crate::cgroup::device_filter::Instruction;

// linux/bpf.h: BPF_PROG_LOAD, BPF_PROG_ATTACH, BPF_PROG_DETACH
const LOAD: libc::c_int = 5;
const ATTACH: libc::c_int = 8;
const DETACH: libc::c_int = 9;
/// BPF_PROG_TYPE_CGROUP_DEVICE
const TYPE: u32 = 15;
/// BPF_CGROUP_DEVICE
const POINT: u32 = 6;
/// BPF_F_ALLOW_MULTI: beside those of the cgroups around it, and of others below it.
const BESIDE_OTHERS: u32 = 2;

/// The beginning of `union bpf_attr` as BPF_PROG_LOAD reads it. The kernel takes the rest for zeros.
#[repr(C)]
struct Program {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The same as BPF_PROG_ATTACH and BPF_PROG_DETACH read it.
#[repr(C)]
struct Attachment {
    target: RawFd,
    program: RawFd,
    point: u32,
    flags: u32,
}

/// Gives a program to the kernel, which makes sure that it ends and reads nothing that it may not.
pub(crate) fn load_device_program(instructions: &[Instruction]) -> Result<OwnedFd, Errno> {
    let program = Program {
        kind: TYPE,
        count: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
    };
    // SAFETY: the attributes are as long as is said; they point to as many instructions as they say, and to a string that
    // ends with zero, and all of it outlives the call.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const program, size_of::<Program>()) };
    let descriptor = RawFd::try_from(Errno::result(descriptor)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Asks a program from now on about each device that the processes of a cgroup of v2 use.
pub(crate) fn attach_device_program(cgroup: &impl AsFd, program: &OwnedFd) -> Result<(), Errno> {
    attachment(ATTACH, cgroup, program, BESIDE_OTHERS)
}

/// Asks it no more.
pub(crate) fn detach_device_program(cgroup: &impl AsFd, program: &OwnedFd) -> Result<(), Errno> {
    attachment(DETACH, cgroup, program, 0)
}

fn attachment(command: libc::c_int, cgroup: &impl AsFd, program: &OwnedFd, flags: u32) -> Result<(), Errno> {
    let (target, program) = (cgroup.as_fd().as_raw_fd(), program.as_raw_fd());
    let attachment = Attachment { target, program, point: POINT, flags };
    // SAFETY: the attributes are as long as is said and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attachment, size_of::<Attachment>()) };
    Errno::result(result).map(drop)
}
