//! What the fuzz targets (`tests/fuzz`) reach of Dockerfiles; with the feature `fuzzing` only.

use super::expand::Expansion;
use super::ignore::{self, Ignored};
use super::{instruction, lines, plan};

/// What a Dockerfile comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// How many stages it has.
    pub stages: usize,
    /// Which of them are built, in this order.
    pub wanted: Vec<usize>,
    /// The lines of their instructions, counted from 1.
    pub lines: Vec<usize>,
}

/// Reads a Dockerfile, and plans to build it.
///
/// # Errors
/// The line in which something is wrong, counted from 1, and what it is.
pub fn dockerfile(text: &str) -> Result<Dockerfile, (usize, String)> {
    let wrong = |wrong: lines::Wrong| (wrong.line, wrong.why);
    let read = lines::read(text).map_err(wrong)?;
    let instructions = instruction::parse(&read).map_err(wrong)?;
    let lines = instructions.iter().map(|instruction| instruction.line).collect();
    let plan = plan::plan(instructions, read.escape, &Vec::new(), None).map_err(wrong)?;
    Ok(Dockerfile { stages: plan.stages.len(), wanted: plan.wanted, lines })
}

/// Replaces variables in a text, each by its name: as one word, and as several.
///
/// # Errors
/// Where something is not closed, or not known.
pub fn expand(text: &str, escape: char) -> Result<(String, Vec<String>), String> {
    let expansion = Expansion { escape, lookup: &|name| Some(name.to_owned()) };
    Ok((expansion.word(text)?, expansion.words(text)?))
}

/// Whether a `.dockerignore` leaves a path out; the path is cleaned first.
///
/// # Errors
/// Where a line is no pattern.
pub fn leaves_out(text: &[u8], path: &[u8]) -> Result<bool, String> {
    Ignored::read(text).map(|ignored| ignored.matches(&ignore::clean(path)))
}
