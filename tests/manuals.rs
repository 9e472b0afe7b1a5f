//! What comes with the programs: manual pages that render without a warning, and completions that shells understand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::sandbox::skip;

const RLAUNCH: &str = env!("CARGO_BIN_EXE_rlaunch");
const MAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../man");

fn runionfs() -> PathBuf {
    Path::new(RLAUNCH).with_file_name("runionfs")
}

/// Whether the tools are there; a test without them is skipped, and fails in CI.
fn has(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &&&str| std::env::split_paths(&path).any(|directory| directory.join(tool).exists());
    let missing: Vec<_> = tools.iter().filter(|tool| !is_there(tool)).collect();
    if !missing.is_empty() {
        skip(&format!("not installed: {missing:?} (tests/setup)"));
    }
    missing.is_empty()
}

/// The pages as they are installed, `man1/PAGE.1` and so on.
fn installed() -> (tempfile::TempDir, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let mut pages = Vec::new();
    for page in fs::read_dir(MAN).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        let page = format!("man{}/{page}", page.rsplit('.').next().unwrap());
        let target = root.path().join(&page);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(Path::new(MAN).join(Path::new(&page).file_name().unwrap()), target).unwrap();
        pages.push(page);
    }
    pages.sort();
    (root, pages)
}

#[test]
fn manual_pages_render_without_a_warning() {
    if !has(&["mandoc", "groff"]) {
        return;
    }
    let (root, pages) = installed();
    assert!(pages.len() >= 5, "{pages:?}");
    for page in &pages {
        // that a page stands for another is meant, and "fragile" to mandoc
        let is_link = fs::read_to_string(root.path().join(page)).unwrap().starts_with(".so ");
        let lint = finish(Command::new("mandoc").args(["-T", "lint", "-W", "warning", page]).current_dir(root.path()));
        assert!(is_link || lint.stdout.is_empty() && lint.status == Some(0), "{page}: {lint:?}");
        let groff = ["-ww", "-man", "-Tutf8", "-P-cbou", page];
        let shown = finish(Command::new("groff").args(groff).current_dir(root.path()));
        assert_eq!((shown.status, &*shown.stderr), (Some(0), ""), "{page}");
        assert!(shown.stdout.contains("NAME"), "{page} shows nothing");
    }
}

/// A word like `rlaunch-image(1)`, where pages refer to each other.
fn references(text: &str) -> BTreeSet<String> {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices('(') {
        let before = text[..at].chars().rev().take_while(|c| name(*c)).count();
        let section = text[at + 1..].chars().next().filter(char::is_ascii_digit);
        if let (1.., Some(section), Some(')')) = (before, section, text[at + 1..].chars().nth(1)) {
            found.insert(format!("{}.{section}", &text[at - before..at]));
        }
    }
    found
}

#[test]
fn pages_refer_to_pages_that_are_there() {
    if !has(&["groff"]) {
        return;
    }
    let (root, pages) = installed();
    let names: BTreeSet<&str> = pages.iter().filter_map(|page| page.split('/').nth(1)).collect();
    for page in &pages {
        let shown = finish(Command::new("groff").args(["-man", "-Tascii", "-P-cbou", page]).current_dir(root.path()));
        for reference in references(&shown.stdout) {
            let ours = reference.starts_with("runionfs") || reference.starts_with("rlaunch");
            assert!(!ours || names.contains(&*reference), "{page} refers to {reference}");
        }
    }
}

/// A directory with the completions, and programs in place of ours that list what the test says.
struct Shells {
    directory: tempfile::TempDir,
}

impl Shells {
    fn new() -> Shells {
        let directory = tempfile::tempdir().unwrap();
        for (program, path) in [("rlaunch", PathBuf::from(RLAUNCH)), ("runionfs", runionfs())] {
            for shell in ["bash", "zsh", "fish"] {
                let script = finish(Command::new(&path).args(["completions", shell]));
                assert_eq!((script.status, &*script.stderr), (Some(0), ""), "{program} {shell}");
                fs::write(directory.path().join(format!("{program}.{shell}")), script.stdout).unwrap();
            }
        }
        let shells = Shells { directory };
        let lists =
            "#!/bin/sh\necho NAME STATUS\nif [ $1 = image ]; then echo debian:12; else echo box-1; echo box-2; fi\n";
        shells.program("rlaunch", lists);
        shells
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        fs::create_dir_all(self.at("bin")).unwrap();
        let path = self.at("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, shell: &str, words: &[&str]) -> Outcome {
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        let outcome = finish(
            Command::new(shell).args(words).env("PATH", path).env("HOME", self.directory.path()).current_dir("/"),
        );
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{shell} {words:?}: {}", outcome.stdout);
        outcome
    }

    /// What a shell offers for the last word of a line.
    fn offers(&self, shell: &str, line: &str) -> BTreeSet<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let program = words[0];
        let script = self.at(&format!("{program}.{shell}")).display().to_string();
        let said = match shell {
            "bash" => {
                let last = words.len() - 1;
                let (word, before) = (words[last], words[last - 1]);
                let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
                let code = format!(
                    "source {script}; COMP_WORDS=({}); COMP_CWORD={last}; _{program}_with_names {program} '{word}' '{before}'; \
                     printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                    quoted.join(" ")
                );
                self.run("bash", &["--norc", "-c", &code])
            }
            _ => self.run("fish", &["--no-config", "-c", &format!("source {script}; complete -C '{line}'")]),
        };
        let word = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
        said.stdout.lines().map(word).filter(|word| !word.is_empty()).collect()
    }
}

#[test]
fn shells_complete_commands_options_and_names() {
    if !has(&["bash", "fish", "awk"]) {
        return;
    }
    let shells = Shells::new();
    assert!(shells.offers("bash", "runionfs completions fi").contains("fish"));
    for shell in ["bash", "fish"] {
        let offers = |line: &str| shells.offers(shell, line);
        assert!(!offers("rlaunch sto").contains("inspect"), "{shell}");
        for (line, expected) in [
            ("rlaunch insp", "inspect"),
            ("rlaunch image impo", "import"),
            ("rlaunch --rootf", "--rootfs"),
            ("rlaunch --net no", "none"),
            ("rlaunch --net none --pid pri", "private"),
            ("rlaunch run --rootf", "--rootfs"),
            ("rlaunch stop --tim", "--time"),
            ("rlaunch stop box-1", "box-1"),
            ("rlaunch image tag debi", "debian:12"),
            ("runionfs um", "umount"),
            ("runionfs mount --log-lev", "--log-level"),
            ("runionfs stats --prom", "--prometheus"),
        ] {
            assert!(offers(line).contains(expected), "{shell} for {line}: {:?}", offers(line));
        }
        let names = offers("rlaunch stop ");
        assert!(names.contains("box-1") && names.contains("box-2"), "{shell}: {names:?}");
        assert!(!names.iter().any(|name| name == "NAME" || name.starts_with('<')), "{shell}: {names:?}");
    }
}

#[test]
fn each_shell_reads_its_script() {
    if !has(&["bash", "zsh", "fish"]) {
        return;
    }
    let shells = Shells::new();
    for program in ["rlaunch", "runionfs"] {
        for shell in ["bash", "zsh", "fish"] {
            let script = shells.at(&format!("{program}.{shell}")).display().to_string();
            assert_eq!(shells.run(shell, &["-n", &script]).stdout, "", "{script}");
        }
        fs::copy(shells.at(&format!("{program}.zsh")), shells.at(&format!("_{program}"))).unwrap();
    }
    // found and loaded as zsh does it
    let code = format!(
        "fpath=({} $fpath); autoload -U compinit; compinit -D -u; print $_comps[rlaunch] $_comps[runionfs]; \
         autoload +X _rlaunch _runionfs && print loaded",
        shells.directory.path().display()
    );
    assert_eq!(shells.run("zsh", &["-f", "-c", &code]).stdout, "_rlaunch _runionfs\nloaded\n");
}

#[test]
fn a_shell_that_is_not_known_is_wrong_usage() {
    for program in [PathBuf::from(RLAUNCH), runionfs()] {
        let outcome = finish(Command::new(&program).args(["completions", "tcsh"]));
        assert!(outcome.status.is_some_and(|status| status != 0) && outcome.stdout.is_empty(), "{outcome:?}");
        assert!(outcome.stderr.contains("bash, zsh, fish"), "{outcome:?}");
    }
}
