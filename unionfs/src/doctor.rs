//! What this kernel and this user can do, what each thing gives, and what to change where it is missing.
//!
//! Everything is tried, not guessed from versions, and leaves nothing behind: a mount in a process with a mount namespace
//! of its own that ends at once, and files without a name.
//!
//! | file | about |
//! |---|---|
//! | `fuse` | the device, who may mount it, and what the kernel offers |
//! | `users` | user namespaces, and the helpers of ordinary users |
//! | `machine` | control groups, limits, other programs, system calls |
//! | `directory` | the file systems of directories that may become branches |
//! | `child` | a process that tries something and ends |

mod child;
mod directory;
mod fuse;
mod machine;
mod users;

use std::io;
use std::path::Path;

use serde::Serialize;

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It could not be tried.
    Unknown,
}

impl State {
    fn of(there: bool) -> State {
        if there { State::Yes } else { State::No }
    }

    fn word(self) -> &'static str {
        match self {
            State::Yes => "yes",
            State::No => "no",
            State::Unknown => "unknown",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What it belongs to: `unions`, `users`, `containers`, or a directory.
    pub group: String,
    /// What was looked at.
    pub feature: String,
    /// Whether it is there.
    pub state: State,
    /// What was found, more exactly; may be empty.
    pub found: String,
    /// What it gives.
    pub gives: String,
    /// What to do, in a sentence.
    pub change: String,
}

impl Row {
    fn new(group: &str, feature: impl Into<String>, state: State) -> Row {
        let change = if state == State::Yes { "nothing" } else { "" };
        Row {
            group: group.to_owned(),
            feature: feature.into(),
            state,
            found: String::new(),
            gives: String::new(),
            change: change.to_owned(),
        }
    }

    fn found(mut self, found: impl Into<String>) -> Row {
        self.found = found.into();
        self
    }

    fn gives(mut self, gives: &str) -> Row {
        gives.clone_into(&mut self.gives);
        self
    }

    /// What to do where it is not there.
    fn or(mut self, change: impl Into<String>) -> Row {
        if self.state != State::Yes {
            self.change = change.into();
        }
        self
    }
}

/// All that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether this user can mount unions here.
    pub unions: bool,
    /// One for each thing.
    pub rows: Vec<Row>,
}

/// Looks at this machine, and at directories that may become branches.
///
/// # Errors
/// Of a directory that is none, or cannot be opened.
pub fn examine(directories: &[&Path]) -> io::Result<Report> {
    let fuse = fuse::Found::look();
    let mut rows = fuse.rows();
    rows.extend(users::rows(&fuse));
    rows.extend(machine::rows());
    for path in directories {
        let name =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot look at {}: {error}", path.display()));
        rows.extend(directory::rows(path).map_err(name)?);
    }
    Ok(Report { unions: fuse.mounts(), rows })
}

impl Report {
    /// As a table to read.
    pub fn to_text(&self) -> String {
        const HEAD: [&str; 4] = ["FEATURE", "STATE", "WHAT IT GIVES", "WHAT TO CHANGE"];
        let cells = |row: &Row| {
            let state = row.state.word();
            let state = if row.found.is_empty() { state.to_owned() } else { format!("{state}: {}", row.found) };
            [row.feature.clone(), state, row.gives.clone(), row.change.clone()]
        };
        let lines: Vec<_> = self.rows.iter().map(|row| (&row.group, cells(row))).collect();
        let widths: [usize; 4] = std::array::from_fn(|column| {
            let longest = lines.iter().map(|(_, line)| line[column].chars().count()).max().unwrap_or(0);
            longest.max(HEAD[column].len())
        });
        let mut text = laid_out(&HEAD.map(str::to_owned), widths);
        let mut group: Option<&String> = None;
        for (name, line) in &lines {
            if group != Some(name) {
                text += &format!("\n{name}\n");
                group = Some(name);
            }
            text += &laid_out(line, widths);
        }
        let can = if self.unions { "can" } else { "cannot" };
        text + &format!("\nThis user {can} mount unions here.\n")
    }

    /// As JSON, in a line.
    ///
    /// # Errors
    /// Never, but that is serde's to say.
    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

fn laid_out(cells: &[String; 4], widths: [usize; 4]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
    let line = padded.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_says_what_to_do() {
        let yes = Row::new("unions", "a", State::Yes).gives("b").or("c");
        let no = Row::new("unions", "longer", State::No).found("gone").gives("b").or("bring it back");
        assert_eq!((&*yes.change, &*no.change), ("nothing", "bring it back"));
        let text = Report { unions: false, rows: vec![yes, no] }.to_text();
        let expected = "FEATURE  STATE     WHAT IT GIVES  WHAT TO CHANGE\n\nunions\n\
                        a        yes       b              nothing\n\
                        longer   no: gone  b              bring it back\n\n\
                        This user cannot mount unions here.\n";
        assert_eq!(text, expected);
    }
}
