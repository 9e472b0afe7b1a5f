use nix::libc;

use super::*;

/// Runs a program as the kernel does; struct seccomp_data is read word by word.
fn run(program: &[Instruction], mark: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = vec![number, mark, 0, 0];
    data.extend(arguments.iter().flat_map(|argument| [*argument as u32, (argument >> 32) as u32]));
    let (mut value, mut at) = (0, 0);
    loop {
        let instruction = program[at];
        at += 1;
        let skip = |holds| usize::from(if holds { instruction.then } else { instruction.otherwise });
        match instruction.code {
            bpf::LOAD => value = data[instruction.operand as usize / 4],
            bpf::AND => value &= instruction.operand,
            bpf::SKIP => at += instruction.operand as usize,
            bpf::IF_EQUAL => at += skip(value == instruction.operand),
            bpf::IF_GREATER => at += skip(value > instruction.operand),
            bpf::IF_AT_LEAST => at += skip(value >= instruction.operand),
            bpf::RETURN => return instruction.operand,
            code => panic!("instruction {code:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const NONE: [u64; 6] = [0; 6];

fn native(filter: &Filter, name: &str, arguments: [u64; 6]) -> u32 {
    let number = table::number(name, Architecture::NATIVE).unwrap();
    run(&filter.program, Architecture::NATIVE.mark(), number, arguments)
}

#[test]
fn the_search_by_halves_finds_what_a_search_one_by_one_finds() {
    for capabilities in [Capabilities::NONE, Capabilities::docker(), Capabilities::ALL] {
        let profile = default::profile(capabilities);
        let filter = Filter::of(&profile);
        for architecture in Architecture::FAMILY {
            for number in 0..=table::NEWEST + 100 {
                let named = |rule: &&Rule| {
                    let numbers = rule.names.iter().filter_map(|name| table::number(name, *architecture));
                    numbers.into_iter().any(|known| known == number)
                };
                let Some(rule) = profile.rules.iter().find(named) else {
                    let expected = if number > table::NEWEST { MISSING } else { REFUSE };
                    assert_eq!(run(&filter.program, architecture.mark(), number, NONE), expected, "{number}");
                    continue;
                };
                if rule.conditions.is_empty() {
                    let expected = if rule.answer == ENOSYS { MISSING } else { ALLOW };
                    assert_eq!(run(&filter.program, architecture.mark(), number, NONE), expected, "{number}");
                }
            }
        }
    }
}

#[test]
fn a_program_is_short_enough_for_the_kernel_and_for_a_fast_start() {
    let program = Filter::docker(Capabilities::docker(), [Exception::Terminal, Exception::Owners]).program;
    assert!(program.len() < 800, "{}", program.len());
}

#[test]
fn what_leads_out_of_a_container_is_refused_and_what_is_new_is_missing() {
    let filter = Filter::docker(Capabilities::docker(), []);
    for name in [
        "mount",
        "umount2",
        "pivot_root",
        "unshare",
        "setns",
        "open_by_handle_at",
        "bpf",
        "perf_event_open",
        "init_module",
        "finit_module",
        "kexec_load",
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "userfaultfd",
        "settimeofday",
        "clock_settime",
        "reboot",
        "swapon",
        "syslog",
        "open_tree",
        "move_mount",
        "fsopen",
        "mount_setattr",
        "fanotify_init",
        "process_madvise",
        "pidfd_getfd",
        "kcmp",
        "acct",
        "quotactl",
    ] {
        assert_eq!(native(&filter, name, NONE), REFUSE, "{name}");
    }
    assert_eq!(native(&filter, "clone3", NONE), MISSING);
    assert_eq!(native(&filter, "chroot", NONE), ALLOW);
    let mark = Architecture::NATIVE.mark();
    assert_eq!(run(&filter.program, mark, u32::MAX, NONE), MISSING);
}

#[test]
fn capabilities_open_their_calls() {
    let filter = |name| Filter::docker(Capabilities::named(name), []);
    for (capability, call) in
        [("SYS_ADMIN", "mount"), ("SYS_ADMIN", "clone3"), ("SYS_TIME", "clock_settime"), ("BPF", "bpf")]
    {
        assert_eq!(native(&filter(capability), call, NONE), ALLOW, "{capability} {call}");
    }
    assert_eq!(native(&filter("KILL"), "chroot", NONE), REFUSE);
}

#[test]
fn arguments_are_looked_at() {
    let filter = Filter::docker(Capabilities::docker(), [Exception::Terminal]);
    let with = |name, index: usize, value: u64| {
        let mut arguments = NONE;
        arguments[index] = value;
        native(&filter, name, arguments)
    };
    for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWCGROUP] {
        assert_eq!(with("clone", 0, flag as u64 | 17), REFUSE, "{flag:#x}");
    }
    assert_eq!(with("clone", 0, libc::CLONE_VM as u64 | 17), ALLOW);
    assert_eq!(with("personality", 0, 8), ALLOW);
    assert_eq!(with("personality", 0, 0x40_0000), REFUSE, "ADDR_NO_RANDOMIZE is refused, as by docker");
    assert_eq!(with("socket", 0, libc::AF_VSOCK as u64), REFUSE);
    assert_eq!(with("socket", 0, libc::AF_VSOCK as u64 | 1 << 32), REFUSE, "the kernel reads 32 bits");
    assert_eq!(with("socket", 0, libc::AF_INET as u64), ALLOW);
    assert_eq!(with("ioctl", 1, libc::TIOCSTI), REFUSE);
    assert_eq!(with("ioctl", 1, libc::TIOCSTI | 1 << 32), REFUSE, "the kernel reads 32 bits");
    assert_eq!(with("ioctl", 1, libc::TIOCGWINSZ), ALLOW);
}

#[test]
fn comparisons_are_of_64_bits() {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let big = 5 << 32;
    for (comparison, holds) in [
        (Equal, [false, false, true, false, false]),
        (NotEqual, [true, true, false, true, true]),
        (Less, [true, true, false, false, false]),
        (LessOrEqual, [true, true, true, false, false]),
        (Greater, [false, false, false, true, true]),
        (GreaterOrEqual, [false, false, true, true, true]),
    ] {
        let condition = Condition { argument: 3, mask: u64::MAX, comparison, value: big + 7 };
        let rule = Rule { names: vec!["read".into()], conditions: vec![condition], answer: Answer::Allow };
        let filter = Filter::of(&Profile { rules: vec![rule], otherwise: EPERM, newer: ENOSYS });
        for (value, holds) in [7, big + 6, big + 7, big + 8, (6 << 32) + 1].into_iter().zip(holds) {
            let expected = if holds { ALLOW } else { REFUSE };
            assert_eq!(native(&filter, "read", [9, 9, 9, value, 9, 9]), expected, "{comparison:?} {value:#x}");
        }
    }
}

#[test]
fn rules_are_tried_in_order_and_all_conditions_of_one_must_hold() {
    let condition = |argument, value| Condition { argument, mask: 0xff, comparison: Comparison::Equal, value };
    let rule = |conditions, number| Rule { names: vec!["read".into()], conditions, answer: Answer::Errno(number) };
    let rules = vec![
        rule(vec![condition(0, 1), condition(5, 2)], 10),
        rule(vec![condition(0, 1)], 11),
        rule(Vec::new(), 12),
        rule(vec![condition(1, 1)], 13),
    ];
    let filter = Filter::of(&Profile { rules, otherwise: EPERM, newer: ENOSYS });
    for (first, last, number) in [(1, 2, 10), (0xf01, 0xf02, 10), (1, 3, 11), (2, 2, 12)] {
        let expected = libc::SECCOMP_RET_ERRNO | number;
        assert_eq!(native(&filter, "read", [first, 1, 0, 0, 0, last]), expected, "{first} {last}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn programs_of_other_architectures_get_their_own_numbers_or_nothing() {
    let filter = Filter::docker(Capabilities::docker(), []);
    let i386 = |number| run(&filter.program, Architecture::I386.mark(), number, NONE);
    assert_eq!(i386(3), ALLOW, "read");
    assert_eq!(i386(21), REFUSE, "mount");
    assert_eq!(run(&filter.program, Architecture::X86_64.mark(), 0x4000_0000, NONE), MISSING, "x32");
    assert_eq!(run(&filter.program, Architecture::Aarch64.mark(), 63, NONE), MISSING, "read of another machine");
}

#[test]
fn where_nobody_else_is_there_files_are_given_away_without_effect() {
    let (alone, usual) =
        (Filter::docker(Capabilities::docker(), [Exception::Owners]), Filter::docker(Capabilities::docker(), []));
    let (done, unchanged) = (libc::SECCOMP_RET_ERRNO, u64::from(u32::MAX));
    for (owner, group, answer) in [
        (0, 0, ALLOW),
        (unchanged, 0, ALLOW),
        (unchanged, unchanged, ALLOW),
        (u64::MAX, u64::MAX, ALLOW),
        (33, 0, done),
        (0, 8, done),
        (unchanged, 8, done),
        (33, unchanged, done),
        (1 << 32, 8, done),
    ] {
        for (call, arguments) in [("fchown", [3, owner, group, 0, 0, 0]), ("fchownat", [3, 7, owner, group, 0, 0])] {
            assert_eq!(native(&alone, call, arguments), answer, "{call} {owner} {group}");
            assert_eq!(native(&usual, call, arguments), ALLOW, "{call} {owner} {group}");
        }
    }
}

#[test]
fn who_only_reads_may_neither_write_files_nor_anything_else() {
    let filter = Filter::reading();
    for name in ["read", "writev", "exit_group", "close", "ppoll", "mmap", "clock_gettime"] {
        assert_eq!(native(&filter, name, NONE), ALLOW, "{name}");
    }
    for name in ["execve", "clone", "mount", "ptrace", "socket", "kill", "unlinkat", "ioctl", "setns", "bpf", "openat2"]
    {
        assert_eq!(native(&filter, name, NONE), REFUSE, "{name}");
    }
    let open = |flags: i32| native(&filter, "openat", [0, 0, flags.cast_unsigned().into(), 0, 0, 0]);
    assert_eq!(open(libc::O_RDONLY | libc::O_CLOEXEC), ALLOW);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_CREAT, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(open(flags), REFUSE, "{flags:#o}");
    }
}
