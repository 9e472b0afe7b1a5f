//! Single system calls in a container: a small static program that makes the call it is told to.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::mount::finish;
use nix::errno::Errno;

use crate::tools;

/// `call NUMBER ARGUMENT...`: an argument is a number, or a text after a colon. Prints the error number, 0 for none.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(int count, char **words) {
    long a[6] = {0};
    for (int i = 2; i < count && i < 8; i++)
        a[i - 2] = words[i][0] == ':' ? (long)(words[i] + 1) : strtoll(words[i], 0, 0);
    long result = syscall(strtol(words[1], 0, 0), a[0], a[1], a[2], a[3], a[4], a[5]);
    printf("%d\n", result < 0 ? errno : 0);
    return 0;
}
"#;

/// Builds the program as `bin/call` in a root directory; `None` where the test is skipped.
pub(crate) fn install(root: &Path) -> Option<()> {
    let compiler = tools::find("gcc")?;
    let source = root.join("call.c");
    fs::write(&source, SOURCE).expect("write call.c");
    let target = root.join("bin/call");
    let outcome = finish(Command::new(compiler).args(["-static", "-O1", "-o"]).arg(target).arg(&source));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    fs::remove_file(&source).expect("remove call.c");
    Some(())
}

/// What the program printed.
#[track_caller]
pub(crate) fn result(printed: &str) -> Result<(), Errno> {
    match printed.trim().parse().unwrap_or_else(|_| panic!("no number: {printed:?}")) {
        0 => Ok(()),
        number => Err(Errno::from_raw(number)),
    }
}
