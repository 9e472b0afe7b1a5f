//! The manual page says what the command says.

use clap::CommandFactory;
use unionfs::options::words;

use super::Cli;

/// The page without the escapes that stand for plain characters.
fn page() -> String {
    include_str!("../../../man/runionfs.8").replace("\\-", "-").replace("\\e", "\\")
}

/// The text from one heading to the next of its kind.
fn section<'a>(page: &'a str, macro_name: &str, title: &str) -> &'a str {
    let heading = format!("\n{macro_name} {title}\n");
    let start = page.find(&heading).unwrap_or_else(|| panic!("no section {title}")) + heading.len();
    let rest = &page[start..];
    let end = [rest.find("\n.SS "), rest.find("\n.SH ")].into_iter().flatten().min();
    &rest[..end.unwrap_or(rest.len())]
}

/// The words in the first lines of the items of a section.
fn items(section: &str) -> Vec<String> {
    let heads = section.split(".TP\n").skip(1).filter_map(|item| item.lines().next());
    let words = heads.flat_map(|head| head.split([' ', ',', '"']).skip(1).map(str::to_owned));
    words.filter(|word| !word.is_empty()).collect()
}

/// All commands that do something, by all their words.
fn commands() -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        match command.has_subcommands() {
            true => found
                .extend(command.get_subcommands().map(|below| (format!("{name} {}", below.get_name()), below.clone()))),
            false => found.push((name.to_owned(), command.clone())),
        }
    }
    found
}

#[test]
fn every_option_of_every_command_is_in_the_manual() {
    let page = page();
    for (name, command) in commands() {
        let said = items(section(&page, ".SS", &name));
        let mut known = Vec::new();
        for option in command.get_opts().filter(|option| !option.is_hide_set()) {
            known.extend(option.get_short().map(|short| format!("-{short}")));
            known.extend(option.get_long().map(|long| format!("--{long}")));
        }
        let said: Vec<_> = said.into_iter().filter(|word| word.starts_with('-')).collect();
        assert_eq!(said, known, "{name}");
    }
}

#[test]
fn every_mount_option_is_in_the_manual_and_no_other() {
    let page = page();
    let said = items(section(&page, ".SH", "MOUNT OPTIONS"));
    let known: Vec<_> = words::WORDS.iter().map(words::Word::usage).collect();
    assert_eq!(said, known);
}

#[test]
fn the_version_is_the_same() {
    assert!(page().contains(&format!("\"runionfs {}\"", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn every_mark_and_attribute_is_in_the_manual_of_branches() {
    use unionfs::union::name::{OPAQUE, RECORD, RECORDS, WORK_AREA};
    let page = include_str!("../../../man/runionfs-branches.5").replace("\\-", "-");
    for mark in [OPAQUE, RECORD, RECORDS, WORK_AREA] {
        let mark = String::from_utf8_lossy(mark);
        assert!(page.contains(&format!(".B {mark}\n")), "no {mark}");
    }
    let help = super::BRANCHES_HELP;
    let attributes = help.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    for attribute in attributes {
        let heads = [format!(".B {attribute}\n"), format!(".BR {attribute} ")];
        assert!(heads.iter().any(|head| page.contains(head)), "no {attribute}");
    }
}
