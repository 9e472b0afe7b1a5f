//! The list of devices as v2 takes it: a program in the kernel's BPF, which is asked whenever a device of the cgroup's
//! processes is opened or a node made, and answers 1 for yes; linux/bpf.h, `struct bpf_cgroup_dev_ctx`.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::devices::{DeviceKind, DeviceRule};
use super::directory::Directory;
use crate::failure::errno_of;
use crate::process::bpf;

/// One instruction, as the kernel has it; see the kernel's Documentation/bpf/standardization/instruction-set.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper one.
    registers: u8,
    /// How many instructions to skip, or where to load from.
    offset: i16,
    operand: i32,
}

// BPF_LDX|BPF_MEM|BPF_W, BPF_ALU|{BPF_AND, BPF_RSH}|BPF_K, BPF_ALU|BPF_MOV|{BPF_X, BPF_K}, BPF_JMP|BPF_JNE|BPF_K,
// BPF_JMP|BPF_EXIT
const LOAD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbc;
const SET: u8 = 0xb4;
const IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// The kernel passes a pointer to what is asked in register 1, and takes the answer from register 0.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const REST: u8 = 6;

// What is done is in the upper half of the first word, the kind in the lower one.
const ACCESS_AND_KIND: i16 = 0;
const MAJOR_AT: i16 = 4;
const MINOR_AT: i16 = 8;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, operand: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, operand }
}

const fn answer(yes: bool) -> [Instruction; 2] {
    [instruction(SET, ANSWER, 0, 0, yes as i32), instruction(EXIT, 0, 0, 0, 0)]
}

/// The program that allows what one of the rules allows, and nothing else.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, KIND, QUESTION, ACCESS_AND_KIND, 0),
        instruction(COPY, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD, MAJOR, QUESTION, MAJOR_AT, 0),
        instruction(LOAD, MINOR, QUESTION, MINOR_AT, 0),
    ];
    program.extend(rules.iter().flat_map(allow));
    program.extend(answer(false));
    program
}

/// Answers yes, or goes on with what follows.
fn allow(rule: &DeviceRule) -> Vec<Instruction> {
    let kind = if rule.kind == DeviceKind::Block { BLOCK } else { CHARACTER };
    // Numbers of devices have 12 and 20 bits: see linux/kdev_t.h. A larger one is no device's.
    let number = |number: Option<u64>| number.map(|number| i32::try_from(number).unwrap_or(i32::MAX));
    let mut tests = vec![instruction(IF_NOT_EQUAL, KIND, 0, 0, kind)];
    tests.extend(number(rule.major).map(|major| instruction(IF_NOT_EQUAL, MAJOR, 0, 0, major)));
    tests.extend(number(rule.minor).map(|minor| instruction(IF_NOT_EQUAL, MINOR, 0, 0, minor)));
    let allowed = [(rule.access.make, MAKE), (rule.access.read, READ), (rule.access.write, WRITE)];
    let refused = allowed.into_iter().filter(|(is_allowed, _)| !is_allowed).fold(0, |all, (_, bit)| all | bit);
    if refused != 0 {
        // Nothing of what is not allowed may be asked for.
        tests.push(instruction(COPY, REST, ACCESS, 0, 0));
        tests.push(instruction(AND, REST, 0, 0, refused));
        tests.push(instruction(IF_NOT_EQUAL, REST, 0, 0, 0));
    }
    tests.extend(answer(true));
    let length = tests.len();
    for (at, test) in tests.iter_mut().enumerate().filter(|(_, test)| test.code == IF_NOT_EQUAL) {
        // To the instruction after the last one. There are fewer than ten.
        test.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
    }
    tests
}

/// What a cgroup's processes may do with devices. In force as long as the cgroup is there.
#[derive(Debug)]
pub(crate) struct DeviceFilter {
    cgroup: OwnedFd,
    rules: Vec<DeviceRule>,
    program: OwnedFd,
}

impl DeviceFilter {
    /// Enforces the rules for a cgroup of v2; none where this kernel, or this user, cannot.
    pub(crate) fn attach(cgroup: &Directory, rules: &[DeviceRule]) -> Result<Option<DeviceFilter>, Errno> {
        let cgroup = cgroup.as_fd().try_clone_to_owned().map_err(|error| errno_of(&error))?;
        match attach(&cgroup, rules) {
            Ok(program) => Ok(Some(DeviceFilter { cgroup, rules: rules.to_vec(), program })),
            // Not the right to; and kernels without the call, or without programs for devices.
            Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EINVAL | Errno::E2BIG) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Allows something more, while nobody is in the cgroup yet.
    pub(crate) fn allow(&mut self, rule: DeviceRule) -> Result<(), Errno> {
        self.rules.push(rule);
        let wider = attach(&self.cgroup, &self.rules)?;
        // All that are attached have to agree.
        bpf::detach_device_program(&self.cgroup, &self.program)?;
        self.program = wider;
        Ok(())
    }
}

fn attach(cgroup: &OwnedFd, rules: &[DeviceRule]) -> Result<OwnedFd, Errno> {
    let program = bpf::load_device_program(&program(rules))?;
    bpf::attach_device_program(cgroup, &program)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::super::devices::DeviceAccess;
    use super::*;

    /// What the kernel would do.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> i32 {
        let mut registers = [0_i32; 7];
        let mut at = 0;
        loop {
            let Instruction { code, registers: names, offset, operand } = program[at];
            let (to, from) = (usize::from(names & 0xf), usize::from(names >> 4));
            at += 1;
            match code {
                LOAD => registers[to] = [access << 16 | kind, major, minor][usize::try_from(offset).unwrap() / 4],
                COPY => registers[to] = registers[from],
                AND => registers[to] &= operand,
                SHIFT_RIGHT => registers[to] >>= operand,
                SET => registers[to] = operand,
                IF_NOT_EQUAL if registers[to] != operand => at += usize::try_from(offset).unwrap(),
                IF_NOT_EQUAL => {}
                EXIT => return registers[0],
                _ => panic!("{code}"),
            }
        }
    }

    #[test]
    fn what_one_rule_allows_is_allowed() {
        let access = |read, write, make| DeviceAccess { read, write, make };
        let rule = |kind, major, minor, access| DeviceRule { kind, major, minor, access };
        let rules = [
            rule(DeviceKind::Character, None, None, access(false, false, true)),
            rule(DeviceKind::Character, Some(1), Some(3), DeviceAccess::ALL),
            rule(DeviceKind::Character, Some(136), None, access(true, true, false)),
            rule(DeviceKind::Block, Some(8), Some(0), access(true, false, false)),
        ];
        let program = program(&rules);
        for (kind, access, major, minor, expected) in [
            (CHARACTER, READ, 1, 3, 1),
            (CHARACTER, READ | WRITE, 1, 3, 1),
            (CHARACTER, READ | WRITE | MAKE, 1, 3, 1),
            (CHARACTER, READ, 1, 4, 0),
            (CHARACTER, READ, 2, 3, 0),
            (BLOCK, READ, 1, 3, 0),
            (CHARACTER, MAKE, 10, 229, 1),
            (CHARACTER, MAKE | READ, 10, 229, 0),
            (CHARACTER, WRITE, 136, 7, 1),
            (BLOCK, READ, 8, 0, 1),
            (BLOCK, READ | WRITE, 8, 0, 0),
            (BLOCK, WRITE, 8, 0, 0),
            (BLOCK, MAKE, 8, 0, 0),
            (BLOCK, READ, 8, 1, 0),
        ] {
            assert_eq!(run(&program, kind, access, major, minor), expected, "{kind} {access} {major}:{minor}");
        }
        assert_eq!(run(&super::program(&[]), CHARACTER, READ, 1, 3), 0);
    }
}
