//! What people do all day.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Job, Place, Workload};
use crate::tree::Tree;
use crate::tree::project::{IMPORTS, git_in, python_says, run};

const FAMILY: &str = "real";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("tar-x", "extract 22,000 entries from an archive outside", Tree::Empty, extract)
        .creates()
        .reads_from(Tree::Archive)
        .of(FAMILY),
    Workload::timed("cp-a", "cp -a of 22,000 entries from outside", Tree::Empty, copy_in)
        .creates()
        .reads_from(Tree::Files)
        .of(FAMILY),
    Workload::timed("rm-rf", "remove the 22,000 entries that were just extracted", Tree::Empty, remove_extracted)
        .creates()
        .reads_from(Tree::Archive)
        .of(FAMILY),
    Workload::timed("cp-a-lower", "cp -a of 22,000 lower entries within the mount", Tree::Files, copy_within)
        .changes()
        .of(FAMILY),
    Workload::timed("rm-rf-lower", "remove 22,000 lower entries", Tree::Files, remove_lower).changes().of(FAMILY),
    Workload::timed("git-status-cold", "git status in 4,000 lower files, fresh mount", Tree::Git, git_status)
        .changes()
        .of(FAMILY),
    Workload::timed("git-status", "the same again", Tree::Git, git_status).changes().warm().of(FAMILY),
    Workload::timed("git-checkout", "switch to a branch that changes 400 of 4,000 files", Tree::Git, git_checkout)
        .changes()
        .of(FAMILY),
    Workload::timed("c-build", "make -j2 of 61 C files", Tree::CSources, make).changes().of(FAMILY),
    Workload::timed("rust-build", "cargo build of a program of 41 files", Tree::RustSources, cargo)
        .changes()
        .of(FAMILY),
    Workload::timed("sqlite", "1,000 transactions of one insert each", Tree::Empty, sqlite).creates().of(FAMILY),
    Workload::timed("python", "start Python 20 times, with 10 modules", Tree::Python, python).warm().of(FAMILY),
];

/// A job that runs a command once.
fn once(mut command: Command) -> Job<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Box::new(move || run(&mut command))
}

fn tar(place: &Place<'_>, target: &str) -> io::Result<Command> {
    let target = place.root.join(target);
    std::fs::create_dir(&target)?;
    let mut command = Command::new("tar");
    command.arg("-xf").arg(place.assets.join("files.tar")).arg("-C").arg(target);
    Ok(command)
}

fn extract(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(once(tar(place, "out")?))
}

fn remove_extracted(place: &Place<'_>) -> io::Result<Job<()>> {
    run(&mut tar(place, "out")?)?;
    Ok(remove(vec![place.root.join("out")]))
}

fn remove(paths: Vec<PathBuf>) -> Job<()> {
    let mut command = Command::new("rm");
    command.arg("-r").args(paths);
    once(command)
}

fn copy_in(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(place.assets).arg(place.root.join("copy"));
    Ok(once(command))
}

fn copy_within(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = Command::new("sh");
    command.arg("-c").arg("mkdir copy && cp -a d* links copy").current_dir(place.root);
    Ok(once(command))
}

fn remove_lower(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = Command::new("sh");
    command.arg("-c").arg("rm -r d* links").current_dir(place.root);
    Ok(once(command))
}

fn git_status(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = git_in(place.root);
    command.args(["status", "--short"]);
    Ok(once(command))
}

fn git_checkout(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = git_in(place.root);
    command.args(["checkout", "--quiet", "new"]);
    Ok(once(command))
}

fn make(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = Command::new("make");
    command.arg("--silent").arg("-j2").arg("-C").arg(place.root);
    Ok(once(command))
}

fn cargo(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = Command::new("cargo");
    // The bench itself may have been started by cargo.
    for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    command.args(["build", "--quiet", "--offline", "--manifest-path"]).arg(place.root.join("Cargo.toml"));
    Ok(once(command))
}

fn sqlite(place: &Place<'_>) -> io::Result<Job<()>> {
    let insert = "begin; insert into t(v) values(randomblob(100)); commit;\n";
    let script = insert.repeat(place.scale.of(1000, 50));
    let database = place.root.join("database");
    run(Command::new("sqlite3").arg(&database).arg("create table t(id integer primary key, v blob)"))?;
    let mut command = Command::new("sqlite3");
    command.arg(&database).arg(script);
    Ok(once(command))
}

fn python(place: &Place<'_>) -> io::Result<Job<()>> {
    // The one that PATH names may be a script that looks for the right one.
    let program = python_says("import sys; print(sys.executable)")?;
    let root = place.root.to_owned();
    let times = place.scale.of(20, 2);
    Ok(Box::new(move || {
        (0..times).try_for_each(|_| {
            run(Command::new(&program).env("PYTHONHOME", &root).args(["-S", "-B", "-c", IMPORTS]).stdin(Stdio::null()))
        })
    }))
}
