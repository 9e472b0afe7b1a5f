//! A Dockerfile as lines: directives, comments, continued lines and here-documents taken apart.
//!
//! See <https://docs.docker.com/reference/dockerfile/>, "Format", "Parser directives" and "Here-documents".

/// What is wrong in a Dockerfile, and in which line, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) line: usize,
    pub(super) why: String,
}

/// The instructions of a Dockerfile, before any of them is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines {
    /// What takes the meaning from a character, and continues a line.
    pub(super) escape: char,
    pub(super) lines: Vec<Line>,
}

/// One instruction, continued lines put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, counted from 1.
    pub(super) number: usize,
    /// In capitals.
    pub(super) word: String,
    /// What follows the word, without blanks around it.
    pub(super) rest: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heredoc {
    /// The word that ends it.
    pub(super) name: String,
    pub(super) content: String,
}

/// Takes a Dockerfile apart.
///
/// # Errors
/// Where a directive is wrong, or a here-document does not end.
pub(super) fn read(text: &str) -> Result<Lines, Wrong> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let all: Vec<&str> = text.lines().collect();
    let escape = escape(&all)?;
    let mut lines = Vec::new();
    let mut at = 0;
    while let Some(first) = all.get(at) {
        let number = at + 1;
        at += 1;
        if is_comment(first) {
            continue;
        }
        let (mut whole, mut goes_on) = without_continuation(first.trim_start(), escape);
        while goes_on {
            let Some(next) = all.get(at) else { break };
            at += 1;
            // Comments and empty lines in between are left out, as docker does.
            if !is_comment(next) && !next.trim().is_empty() {
                let (part, more) = without_continuation(next, escape);
                whole.push_str(&part);
                goes_on = more;
            }
        }
        let whole = whole.trim();
        if whole.is_empty() {
            continue;
        }
        let (word, rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
        let word = word.to_ascii_uppercase();
        let heredocs = match word.as_str() {
            "RUN" | "COPY" | "ADD" => heredocs(rest, &all, &mut at, number)?,
            _ => Vec::new(),
        };
        lines.push(Line { number, word, rest: rest.trim().to_owned(), heredocs });
    }
    Ok(Lines { escape, lines })
}

/// What the directives at the beginning say: `# escape=` alone means something here.
fn escape(all: &[&str]) -> Result<char, Wrong> {
    let mut found = None;
    for (number, line) in (1..).zip(all) {
        let Some((name, value)) = directive(line) else { break };
        match name.as_str() {
            // Which program reads the file, and what it complains about, is not for us to say.
            "syntax" | "check" => {}
            "escape" => {
                let wrong = |why: &str| Wrong { line: number, why: why.to_owned() };
                if found.is_some() {
                    return Err(wrong("the directive escape is there twice"));
                }
                found = Some(match value {
                    "\\" => '\\',
                    "`" => '`',
                    _ => return Err(wrong("the directive escape takes a backslash or a backtick")),
                });
            }
            // Any other one is a comment, behind which there are no directives.
            _ => break,
        }
    }
    Ok(found.unwrap_or('\\'))
}

/// `# NAME = VALUE`.
fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let name = name.trim();
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_name && !value.trim().is_empty()).then(|| (name.to_ascii_lowercase(), value.trim()))
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// A line without the character that continues it, and whether it was there. One that is escaped itself does not.
fn without_continuation(line: &str, escape: char) -> (String, bool) {
    let bare = line.trim_end_matches([' ', '\t']);
    match bare.strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

/// The here-documents that an instruction asks for, which follow it.
fn heredocs(rest: &str, all: &[&str], at: &mut usize, number: usize) -> Result<Vec<Heredoc>, Wrong> {
    let mut found = Vec::new();
    for (name, strips_tabs) in rest.split_whitespace().filter_map(heredoc) {
        let mut content = String::new();
        loop {
            let Some(line) = all.get(*at) else {
                return Err(Wrong { line: number, why: format!("the here-document {name} does not end") });
            };
            *at += 1;
            let line = if strips_tabs { line.trim_start_matches('\t') } else { line };
            if line == name {
                break;
            }
            content.push_str(line);
            content.push('\n');
        }
        found.push(Heredoc { name, content });
    }
    Ok(found)
}

/// The name of a here-document, and whether tabs go from its lines: `<<NAME`, `<<-NAME`, `3<<"NAME"`.
fn heredoc(word: &str) -> Option<(String, bool)> {
    let rest = word.trim_start_matches(|one: char| one.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, strips_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let quoted = |quote: char| rest.strip_prefix(quote)?.strip_suffix(quote);
    let name = quoted('"').or_else(|| quoted('\'')).unwrap_or(rest);
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    is_name.then(|| (name.to_owned(), strips_tabs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Vec<(usize, String, String)> {
        let lines = read(text).unwrap().lines;
        lines.into_iter().map(|line| (line.number, line.word, line.rest)).collect()
    }

    fn line(number: usize, word: &str, rest: &str) -> (usize, String, String) {
        (number, word.to_owned(), rest.to_owned())
    }

    #[test]
    fn lines_are_continued_and_comments_left_out() {
        let text = "\u{feff}# a comment\nfrom base \r\n\n  run a \\  \n  # not here\n\n   b \\\n\tc\nCMD x\\\\\nENV A=#b\nLAST \\";
        let expected = [
            line(2, "FROM", "base"),
            line(4, "RUN", "a    b \tc"),
            line(9, "CMD", "x\\\\"),
            line(10, "ENV", "A=#b"),
            line(11, "LAST", ""),
        ];
        assert_eq!(plain(text), expected);
    }

    #[test]
    fn directives_stand_at_the_beginning() {
        assert_eq!(read("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\nb\n").unwrap().lines[0].rest, "a b");
        assert_eq!(read("# hello\n# escape=`\n").unwrap().escape, '\\');
        assert_eq!(read("\n# escape=`\n").unwrap().escape, '\\');
        assert_eq!(read("#escape = x\n").unwrap_err().line, 1);
        assert_eq!(read("#escape=`\n#escape=\\\n").unwrap_err().line, 2);
    }

    #[test]
    fn here_documents_follow_their_instruction() {
        let lines =
            read("RUN <<EOF cat <<-'two' > x\na\n# b \\\nEOF\n\t\tc\n\ttwo\nRUN echo $((1<<2)) << x\n").unwrap().lines;
        let document = |name: &str, content: &str| Heredoc { name: name.into(), content: content.into() };
        assert_eq!(lines[0].heredocs, [document("EOF", "a\n# b \\\n"), document("two", "c\n")]);
        assert_eq!((lines.len(), lines[1].heredocs.len()), (2, 0));
        assert_eq!(read("FROM x\nCOPY <<EOF /x\na\n").unwrap_err().line, 2);
    }
}
