//! A Dockerfile and a `.dockerignore` are read, or refused by a line that is there.
#![no_main]

use fuzz::seeds;
use launcher::fuzzing::{dockerfile, expand, leaves_out};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    plan(&text);
    for escape in ['\\', '`'] {
        if let (Ok((word, _)), false) = (expand(&text, escape), text.contains(['$', '\'', '"', escape])) {
            assert_eq!(word, text, "what means nothing was replaced");
        }
    }
    // A path, and behind it the patterns.
    let (path, patterns) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    ignore(patterns, path);
});

fn plan(text: &str) {
    let last = text.lines().count().max(1);
    match dockerfile(text) {
        Ok(read) => {
            assert!(read.wanted.is_sorted() && read.wanted.last().is_some_and(|last| *last < read.stages));
            assert!(read.lines.is_sorted() && read.lines.iter().all(|line| (1..=last).contains(line)));
        }
        Err((line, why)) => assert!((1..=last).contains(&line) && !why.is_empty(), "line {line} of {last}: {why}"),
    }
}

/// The last pattern that is about a path says what becomes of it.
fn ignore(patterns: &[u8], path: &[u8]) {
    if leaves_out(patterns, path).is_err() || leaves_out(b"**", path) != Ok(true) {
        return;
    }
    assert_eq!(leaves_out(&[patterns, b"\n**"].concat(), path), Ok(true));
    assert_eq!(leaves_out(&[patterns, b"\n!**"].concat(), path), Ok(false));
    assert_eq!(leaves_out(&[patterns, b"\n#x\n\n  "].concat(), path), leaves_out(patterns, path));
}

fn begin() {
    let all: [&[u8]; 8] = [
        b"# syntax=x\n# escape=`\nFROM --platform=linux/amd64 base:1 AS one\nRUN a `\n b\n",
        b"ARG TAG=1\nFROM base:${TAG:-2} AS one\nFROM scratch\nCOPY --from=one --chown=1:2 --chmod=644 /a /b/\nADD x.tar /\n",
        b"FROM one\nRUN <<EOF cat <<-'two' > x\na\nEOF\n\tb\n\ttwo\nRUN [\"a\", \"b\"]\nRUN --network=none x\n",
        b"FROM a\nENV A=1 B=\"x y\" C=${A:+d}\nLABEL a=b\nWORKDIR /x\nUSER 1:2\nSTOPSIGNAL 9\nMAINTAINER m\nSHELL [\"sh\"]\n",
        b"FROM a\nEXPOSE 80/tcp $P\nVOLUME [\"/a\"] /b\nCMD x\nENTRYPOINT [\"y\"]\nHEALTHCHECK --interval=1m30s CMD z\nENV old value\n",
        b"FROM a\nHEALTHCHECK NONE\nONBUILD RUN x\nRUN --mount=type=cache x\nADD https://h/x /\nCOPY a\\ b \"c d\" e/\n",
        b"a/b/keep\n# comment\n/node_modules/\n*.md\n!README*.md\na/**/z\n**/*.go\n[a-c]x\n[^]]\\*\ntemp?\n!b/keep\n.\n",
        b"${G:-${E:-$A}}'$A'\"$A\\\"\\$\\a\"${A:?no}$1$@`$x",
    ];
    seeds::write("dockerfile", all);
}
