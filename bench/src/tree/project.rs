//! Trees that real programs work in.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::{Scale, write};

/// `files.tar` of everything in `source`.
pub(super) fn archive(root: &Path, source: &Path) -> io::Result<()> {
    run(Command::new("tar").arg("-cf").arg(root.join("files.tar")).arg("-C").arg(source).arg("."))
}

/// A repository with the branches `old` and `new`, which differ in every tenth file; `old` is checked out.
pub(super) fn git(root: &Path, scale: Scale) -> io::Result<()> {
    run(git_in(root).args(["init", "--quiet", "--initial-branch=old"]))?;
    for file in 0..scale.of(4000, 200) {
        write(&root.join(source_name(file)), format!("line {file}\n").repeat(50).as_bytes())?;
    }
    commit(root)?;
    run(git_in(root).args(["checkout", "--quiet", "-b", "new"]))?;
    for file in (0..scale.of(4000, 200)).step_by(10) {
        write(&root.join(source_name(file)), format!("other line {file}\n").repeat(50).as_bytes())?;
    }
    commit(root)?;
    run(git_in(root).args(["checkout", "--quiet", "old"]))
}

fn source_name(file: usize) -> String {
    format!("part{:03}/source{file:04}.txt", file / 20)
}

fn commit(root: &Path) -> io::Result<()> {
    run(git_in(root).args(["add", "--all"]))?;
    run(git_in(root).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]).args([
        "commit",
        "--quiet",
        "--message=files",
    ]))
}

/// Git that heeds no configuration but the repository's, and leaves nothing running behind it.
pub(crate) fn git_in(root: &Path) -> Command {
    let mut command = Command::new("git");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command.arg("-C").arg(root).args(["-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "safe.directory=*"]);
    command
}

/// Sources of C that include headers of their own and of the system, and a Makefile.
pub(super) fn c_sources(root: &Path, scale: Scale) -> io::Result<()> {
    let count = scale.of(60, 4);
    let mut main = String::from("#include <stdio.h>\n");
    let mut calls = String::new();
    for unit in 0..count {
        let body = format!(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"unit{unit}.h\"\n\
             int unit{unit}(int x) {{ char b[64]; snprintf(b, sizeof b, \"%d\", x + {unit}); return atoi(b); }}\n"
        );
        write(&root.join(format!("unit{unit}.c")), body.as_bytes())?;
        write(&root.join(format!("unit{unit}.h")), format!("int unit{unit}(int x);\n").as_bytes())?;
        writeln!(main, "#include \"unit{unit}.h\"").map_err(io::Error::other)?;
        writeln!(calls, "    sum += unit{unit}(1);").map_err(io::Error::other)?;
    }
    let main = format!("{main}int main(void) {{\n    int sum = 0;\n{calls}    printf(\"%d\\n\", sum);\n}}\n");
    write(&root.join("main.c"), main.as_bytes())?;
    let rules = "program: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n%.o: %.c\n\t$(CC) -O1 -c -o $@ $<\n";
    write(&root.join("Makefile"), rules.as_bytes())
}

/// A package for cargo without dependencies.
pub(super) fn rust_sources(root: &Path, scale: Scale) -> io::Result<()> {
    let package = "[package]\nname = \"program\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    write(&root.join("Cargo.toml"), package.as_bytes())?;
    let count = scale.of(40, 4);
    let mut main = String::new();
    for module in 0..count {
        let body = format!(
            "use std::collections::BTreeMap;\npub fn run(x: u64) -> String {{\n    let mut map = BTreeMap::new();\n    \
             for i in 0..x {{ map.insert(i * {module}, format!(\"{{i}}\")); }}\n    format!(\"{{map:?}}\")\n}}\n"
        );
        write(&root.join(format!("src/module{module}.rs")), body.as_bytes())?;
        writeln!(main, "mod module{module};").map_err(io::Error::other)?;
    }
    main.push_str("fn main() {\n");
    for module in 0..count {
        writeln!(main, "    println!(\"{{}}\", module{module}::run(3));").map_err(io::Error::other)?;
    }
    main.push_str("}\n");
    write(&root.join("src/main.rs"), main.as_bytes())
}

/// What a Python program imports that does a bit of everything.
pub(crate) const IMPORTS: &str =
    "import argparse, asyncio, csv, email, http.client, json, logging, tarfile, unittest, xml.dom.minidom";

/// The standard library where Python looks for it below PYTHONHOME, with the byte code of what is imported.
pub(super) fn python(root: &Path) -> io::Result<()> {
    let source = python_says("import sysconfig; print(sysconfig.get_path('stdlib'))")?;
    let version = python_says("import sys; print('python%d.%d' % sys.version_info[:2])")?;
    let library = root.join("lib").join(version);
    fs::create_dir_all(&library)?;
    let mut copy = Command::new("tar");
    copy.args([
        "-c",
        "--exclude=test",
        "--exclude=tests",
        "--exclude=./site-packages",
        "--exclude=./config-*",
        "-C",
        &source,
        ".",
    ]);
    let mut reader = copy.stdout(std::process::Stdio::piped()).spawn()?;
    let output = reader.stdout.take().ok_or_else(|| io::Error::other("tar has no output"))?;
    run(Command::new("tar").arg("-x").arg("-C").arg(&library).stdin(output))?;
    if !reader.wait()?.success() {
        return Err(io::Error::other("tar cannot read Python's standard library"));
    }
    let program = python_says("import sys; print(sys.executable)")?;
    run(Command::new(program).env("PYTHONHOME", root).args(["-S", "-c", IMPORTS]))
}

/// What a line of Python prints.
pub(crate) fn python_says(line: &str) -> io::Result<String> {
    let output = Command::new("python3").args(["-c", line]).output().map_err(|error| named("python3", error))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("python3 fails: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command to its end; anything but success is an error with its name.
pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| named(&name, error))?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{name}: {status}"))) }
}

fn named(program: &str, error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(format!("{program} is not installed (see bench/setup)")),
        kind => io::Error::new(kind, format!("{program}: {error}")),
    }
}
