//! Completions of a command line in bash, zsh and fish: what clap knows of it, and names that only the machine knows.
//!
//! An argument is completed by names if its help begins with the words that are given for them, so that a new subcommand
//! that takes "The container" is completed as the others are.

use clap::{Arg, Command, ValueEnum};
use clap_complete::Shell as Generator;

/// A shell that can be taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Names that are asked for when they are needed.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// How the help of an argument begins that takes one of them.
    pub help: &'static str,
    /// What lists them, one a line, in any shell; it holds no single quotation mark.
    pub list: &'static str,
}

/// The script that teaches a shell the command line.
pub fn script(shell: Shell, mut command: Command, names: &[Names]) -> String {
    let program = command.get_name().to_owned();
    let mut generate = |generator: Generator| {
        let mut generated = Vec::new();
        clap_complete::generate(generator, &mut command, &program, &mut generated);
        without_hidden(String::from_utf8_lossy(&generated).into_owned(), &command)
    };
    match shell {
        Shell::Bash => bash(&program, &generate(Generator::Bash), &takers(&command, names)),
        Shell::Zsh => zsh(&program, &generate(Generator::Zsh), names),
        Shell::Fish => fish(&program, &generate(Generator::Fish), &takers(&command, names)),
    }
}

/// clap's scripts offer what `--help` does not tell.
fn without_hidden(generated: String, command: &Command) -> String {
    let below = command.get_subcommands().fold(generated, without_hidden);
    let hidden = command.get_arguments().filter(|argument| argument.is_hide_set()).filter_map(Arg::get_long);
    hidden.fold(below, |text, name| {
        let begins = [format!("'--{name}["), format!("'--{name}=")];
        let holds = [format!(" -l {name} "), format!(" -l {name}\n")];
        let in_zsh = |line: &str| begins.iter().any(|words| line.starts_with(words));
        let in_fish = |line: &str| line.starts_with("complete ") && holds.iter().any(|words| line.contains(words));
        // a word among others in bash, a line in the others
        let text = text.replace(&format!(" --{name} "), " ");
        text.split_inclusive('\n').filter(|line| !in_zsh(line) && !in_fish(line)).collect()
    })
}

/// The subcommands that take names, as words, and what lists those.
fn takers(command: &Command, names: &[Names]) -> Vec<(Vec<String>, &'static str)> {
    let mut found = Vec::new();
    let mut waiting = vec![(Vec::new(), command)];
    while let Some((path, command)) = waiting.pop() {
        let takes = |names: &&Names| command.get_positionals().any(|argument| is_named(argument, names));
        found.extend(names.iter().filter(takes).map(|names| (path.clone(), names.list)));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            let path = |word: &str| path.iter().cloned().chain([word.to_owned()]).collect();
            waiting.extend(below.get_name_and_visible_aliases().iter().map(|word| (path(word), below)));
        }
    }
    found.sort();
    found
}

fn is_named(argument: &Arg, names: &Names) -> bool {
    argument.get_help().is_some_and(|help| help.to_string().starts_with(names.help))
}

/// clap offers options and `<NAME>` where a name is due; without them the shell's own offer is due, files.
fn bash(program: &str, generated: &str, taken: &[(Vec<String>, &str)]) -> String {
    let (function, _) = generated.split_once("\nif [[ \"${BASH_VERSINFO").unwrap_or((generated, ""));
    let cases: String =
        taken.iter().map(|(path, list)| format!("        \"{}\") names='{list}' ;;\n", path.join(" "))).collect();
    let depth = taken.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    let tries: Vec<String> = (1..=depth).map(|words| format!("\"${{COMP_WORDS[*]:1:{words}}}\"")).collect();
    format!(
        r#"{function}
_{program}_names() {{
    case "$1" in
{cases}        *) return 1 ;;
    esac
}}

_{program}_with_names() {{
    _{program} "$@"
    local cur="${{COMP_WORDS[COMP_CWORD]}}" word words names= kept=()
    for word in "${{COMPREPLY[@]}}"; do
        [[ $word == [\<\[]* || $word == -* && $cur != -* ]] || kept+=("$word")
    done
    if [[ $cur != -* ]]; then
        for words in {tries}; do
            _{program}_names "$words" && mapfile -t -O "${{#kept[@]}}" kept < <(compgen -W "$(eval "$names" 2>/dev/null)" -- "$cur")
        done
    fi
    COMPREPLY=("${{kept[@]}}")
}}
complete -F _{program}_with_names -o bashdefault -o default {program}
"#,
        tries = tries.join(" "),
    )
}

/// A line for each argument, which ends with what completes it.
fn zsh(program: &str, generated: &str, names: &[Names]) -> String {
    let mut lines: Vec<String> = generated.lines().map(str::to_owned).collect();
    let mut functions = String::new();
    for (index, names) in names.iter().enumerate() {
        let function = format!("_{program}_names_{index}");
        let marker = format!(" -- {}", names.help);
        for line in lines.iter_mut().filter(|line| line.contains(&marker)) {
            for general in [":_default'", ":_files'"] {
                *line = line.replace(general, &format!(":{function}'"));
            }
        }
        let list = names.list;
        functions += &format!(
            "{function}() {{\n    local -a names\n    names=(${{(f)\"$({list} 2>/dev/null)\"}})\n    compadd -a names\n    _files\n}}\n"
        );
    }
    let head = lines.iter().position(|line| line.starts_with("#compdef")).map_or(0, |line| line + 1);
    lines.insert(head, functions);
    lines.join("\n") + "\n"
}

fn fish(program: &str, generated: &str, taken: &[(Vec<String>, &str)]) -> String {
    // what is typed is not parsed yet where the value of an option is due: that is no reason to complete nothing
    let mut script = generated.replace("2>/dev/null\n    or return\n", "2>/dev/null\n    or return 0\n");
    for (path, list) in taken {
        let seen: Vec<String> = path.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        script += &format!("complete -c {program} -n \"{}\" -a '({list} 2>/dev/null)'\n", seen.join("; and "));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let named = Arg::new("NAME").help("The thing to take");
        let taking = |name: &'static str| Command::new(name).arg(named.clone());
        let other = Command::new("other").arg(Arg::new("FILE").help("A file"));
        Command::new("program")
            .subcommand(taking("take"))
            .subcommand(other)
            .subcommand(Command::new("in").subcommand(taking("it")))
    }

    const NAMES: Names = Names { help: "The thing", list: "list things" };

    #[test]
    fn who_takes_names_is_told_by_the_help() {
        let taken = takers(&command(), &[NAMES]);
        let paths: Vec<String> = taken.iter().map(|(path, _)| path.join(" ")).collect();
        assert_eq!(paths, ["in it", "take"]);
    }

    #[test]
    fn what_is_hidden_is_not_offered() {
        let secret = Arg::new("secret").long("secret").hide(true);
        let command = command().subcommand(Command::new("sub").arg(secret).arg(Arg::new("plain").long("plain")));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, command.clone(), &[]);
            let offered = script.lines().filter(|line| line.contains("opts=") || shell != Shell::Bash);
            assert!(offered.clone().any(|line| line.contains("plain")), "{shell:?}: {script}");
            assert!(!offered.clone().any(|line| line.contains("secret")), "{shell:?}: {script}");
        }
    }

    #[test]
    fn each_script_asks_for_the_names() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, command(), &[NAMES]);
            assert!(script.contains("list things"), "{shell:?}: {script}");
        }
    }
}
