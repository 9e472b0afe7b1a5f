//! README says nothing that is not so: the tests it names exist, and the options are those of the commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const RUNIONFS: &str = env!("CARGO_BIN_EXE_runionfs");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    fs::read_to_string(repository().join("README.md")).expect("read README.md")
}

/// What stands between backquotes, line by line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The part of README under a heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(heading).unwrap_or_else(|| panic!("README has no section {heading:?}"));
    let end = rest.find("\n#").unwrap_or(rest.len());
    rest.get(..end).unwrap_or(rest)
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let readme = readme();
    let rows = section(&readme, "## What it promises").lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut count = 0;
    for row in rows {
        let name = quoted(row).find(|name| name.contains("::"));
        let (file, test) = name.and_then(|name| name.split_once("::")).unwrap_or_else(|| panic!("no test: {row}"));
        let path = repository().join("tests").join(file).with_extension("rs");
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // some are made by a macro, of lines that begin with their names
        let is_there = [format!("fn {test}("), format!("    {test}: ")].iter().any(|test| source.contains(test));
        assert!(is_there, "there is no test {test} in {file}");
        count += 1;
    }
    assert!(count > 30, "only {count} promises found");
}

#[test]
fn the_options_of_mount_are_those_that_its_help_names() {
    let output = Command::new(RUNIONFS).args(["mount", "--help"]).output().expect("runionfs mount --help");
    let help = String::from_utf8(output.stdout).expect("help is text");
    let names = |text: &str| text.split(['=', '|', '[']).next().unwrap_or_default().to_owned();
    let in_help: BTreeSet<String> =
        help.split(|c: char| c.is_whitespace() || c == ',').map(names).filter(|word| !word.is_empty()).collect();
    let readme = readme();
    let in_readme: BTreeSet<String> = section(&readme, "### runionfs mount")
        .lines()
        .chain(section(&readme, "### Branches").lines())
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(quoted)
        .map(names)
        .collect();
    assert!(in_readme.len() > 15, "{in_readme:?}");
    let unknown: Vec<_> = in_readme.difference(&in_help).collect();
    assert!(unknown.is_empty(), "README names what the help does not: {unknown:?}");
    let own = ["br", "dirs", "append", "prepend", "udba", "volatile", "workdir", "threads", "fsname", "allow_other"];
    let untold: Vec<_> = own.iter().filter(|name| !in_readme.contains(**name)).collect();
    assert!(untold.is_empty(), "README does not name {untold:?}");
}

#[test]
fn the_commands_it_names_are_those_of_the_binary() {
    let output = Command::new(RUNIONFS).arg("--help").output().expect("runionfs --help");
    let help = String::from_utf8(output.stdout).expect("help is text");
    let readme = readme();
    let table = section(&readme, "### runionfs umount, show, ");
    let (_, listed) = help.split_once("Commands:\n").expect("the help lists commands");
    let listed = listed.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let commands: Vec<&str> = listed.filter(|command| !["mount", "help"].contains(command)).collect();
    assert!(commands.contains(&"umount") && commands.contains(&"stats"), "{commands:?}");
    for command in commands {
        assert!(table.contains(&format!("`runionfs {command} ")), "README does not name {command}");
    }
}

#[test]
fn the_scripts_it_names_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    for script in ["tests/setup", "tests/run", "tests/peers", ".ci/run"] {
        let mode = fs::metadata(repository().join(script)).expect(script).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} cannot be executed");
    }
    let readme = readme();
    let commands = ["tests/setup && tests/run", "cargo run --release -p launcher --bin rlaunch -- sh"];
    assert!(commands.iter().all(|command| readme.lines().any(|line| line == *command)));
}
