//! The translation of decisions into classic BPF; linux/filter.h, linux/seccomp.h.

use super::{Answer, Comparison, Condition, Decision};

/// One instruction, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    /// How many instructions to skip if the comparison holds, and if not.
    pub(crate) then: u8,
    pub(crate) otherwise: u8,
    pub(crate) operand: u32,
}

/// BPF_MAXINSNS
pub(super) const LONGEST: usize = 4096;

// BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|{BPF_JA, BPF_JEQ, BPF_JGT, BPF_JGE}|BPF_K, BPF_RET|BPF_K
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const SKIP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_GREATER: u16 = 0x25;
pub(super) const IF_AT_LEAST: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

// Where struct seccomp_data has the number, the architecture and the arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, then: 0, otherwise: 0, operand }
}

fn answer(answer: Answer) -> Instruction {
    let value = match answer {
        Answer::KillProcess => 0x8000_0000,
        Answer::KillThread => 0,
        Answer::Trap(data) => 0x0003_0000 | u32::from(data),
        Answer::Errno(number) => 0x0005_0000 | u32::from(number),
        Answer::Trace(data) => 0x7ff0_0000 | u32::from(data),
        Answer::Log => 0x7ffc_0000,
        Answer::Allow => 0x7fff_0000,
    };
    plain(RETURN, value)
}

/// The program for several architectures, each with its mark; programs of another get `foreign`.
pub(super) fn program(family: &[(u32, super::Decisions<'_>)], foreign: Answer) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, ARCHITECTURE)];
    for (mark, decisions) in family {
        let mut body = Vec::new();
        search(decisions, &mut body);
        body.push(plain(LOAD, NUMBER));
        body.reverse();
        program.push(Instruction { code: IF_EQUAL, then: 1, otherwise: 0, operand: *mark });
        program.push(plain(SKIP, length(&body)));
        program.extend(body);
    }
    program.push(answer(foreign));
    program
}

/// Finds the decision for the number that is loaded, by halves. Written from its end, so that it is known how far to skip.
fn search(decisions: &[(u32, Decision<'_>)], backwards: &mut Vec<Instruction>) {
    let (below, above) = decisions.split_at(decisions.len() / 2);
    let Some((first_above, decision)) = above.first() else { return };
    if below.is_empty() {
        backwards.extend(decide(decision).into_iter().rev());
        return;
    }
    search(above, backwards);
    let end = backwards.len();
    search(below, backwards);
    let length = backwards.len() - end;
    match u8::try_from(length) {
        Ok(then) => {
            backwards.push(Instruction { code: IF_AT_LEAST, then, otherwise: 0, operand: *first_above });
        }
        // One that is longer than the kernel takes is refused before it gets there.
        Err(_) => backwards.extend([
            plain(SKIP, u32::try_from(length).unwrap_or(u32::MAX)),
            Instruction { code: IF_AT_LEAST, then: 0, otherwise: 1, operand: *first_above },
        ]),
    }
}

fn decide(decision: &Decision<'_>) -> Vec<Instruction> {
    let exceptions = decision.exceptions.iter();
    let mut program: Vec<_> = exceptions.flat_map(|(conditions, answer)| exception(conditions, *answer)).collect();
    program.push(answer(decision.otherwise));
    program
}

/// Where a comparison leads.
#[derive(Clone, Copy)]
enum Target {
    /// To the next instruction.
    Next,
    /// The condition holds: to the next condition.
    Holds,
    /// It does not: behind this exception.
    Fails,
}

fn exception(conditions: &[Condition], then: Answer) -> Vec<Instruction> {
    let parts: Vec<Vec<(Instruction, [Target; 2])>> = conditions.iter().map(condition).collect();
    let total: usize = parts.iter().map(Vec::len).sum();
    let mut program: Vec<Instruction> = Vec::with_capacity(total + 1);
    for part in parts {
        let end = program.len() + part.len();
        for (mut instruction, targets) in part {
            let next = program.len() + 1;
            let distance = |target| match target {
                Target::Next => 0,
                Target::Holds => end - next,
                Target::Fails => total + 1 - next,
            };
            // Six conditions of seven instructions are all there can be, so this fits; see `oci`.
            let [holds, fails] = targets.map(|target| u8::try_from(distance(target)).unwrap_or(u8::MAX));
            (instruction.then, instruction.otherwise) = (holds, fails);
            program.push(instruction);
        }
    }
    program.push(answer(then));
    program
}

/// Compares the upper half of an argument, then, where that leaves it open, the lower one.
fn condition(condition: &Condition) -> Vec<(Instruction, [Target; 2])> {
    use Target::{Fails, Holds, Next};
    let at = ARGUMENTS + 8 * u32::from(condition.argument);
    let (mask_upper, mask_lower) = halves(condition.mask);
    let (value_upper, value_lower) = halves(condition.value & condition.mask);
    let (holds, fails) = match condition.comparison {
        Comparison::Equal | Comparison::Greater | Comparison::GreaterOrEqual => (Holds, Fails),
        Comparison::NotEqual | Comparison::LessOrEqual | Comparison::Less => (Fails, Holds),
    };
    let mut steps = vec![(plain(LOAD, at + 4), [Next, Next]), (plain(AND, mask_upper), [Next, Next])];
    let last = match condition.comparison {
        Comparison::Equal | Comparison::NotEqual => IF_EQUAL,
        Comparison::Greater | Comparison::LessOrEqual => IF_GREATER,
        Comparison::GreaterOrEqual | Comparison::Less => IF_AT_LEAST,
    };
    if last != IF_EQUAL {
        steps.push((plain(IF_GREATER, value_upper), [holds, Next]));
    }
    steps.push((plain(IF_EQUAL, value_upper), [Next, fails]));
    steps.extend([(plain(LOAD, at), [Next, Next]), (plain(AND, mask_lower), [Next, Next])]);
    steps.push((plain(last, value_lower), [holds, fails]));
    steps
}

/// The upper and the lower 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

fn length(program: &[Instruction]) -> u32 {
    // One that is longer than the kernel takes is refused before it gets there.
    u32::try_from(program.len()).unwrap_or(u32::MAX)
}
