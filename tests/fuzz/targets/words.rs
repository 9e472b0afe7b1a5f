//! What is asked for on a command line: no text makes a panic, what is understood is printed and read as the same again, and
//! paths come out as they went in, whatever is in them.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use fuzz::seeds;
use libfuzzer_sys::fuzz_target;
use unionfs::options::ids::Ids;
use unionfs::options::{Access, BranchSpec, Overlay, Words, branches, overlay, words};

fuzz_target!(init: begin(), |bytes: &[u8]| {
    text(bytes);
    let mut paths: Vec<&[u8]> = bytes.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    // /./a is the path /a, and no path is given twice.
    paths.sort_unstable_by_key(|path| Path::new(OsStr::from_bytes(path)));
    paths.dedup_by_key(|path| Path::new(OsStr::from_bytes(path)));
    if !paths.is_empty() {
        as_branches(&paths);
        as_layers(&paths);
    }
});

/// Any text.
fn text(bytes: &[u8]) {
    let argument = OsStr::from_bytes(bytes);
    if let Ok(read) = branches::parse(argument) {
        assert_eq!(branches::parse(&branches::print(&read)), Ok(read));
    }
    if let Ok(ids) = Ids::parse(bytes) {
        assert_eq!(Ids::parse(ids.print().unwrap_or_default().as_bytes()), Ok(ids.clone()));
        for id in [0, 1, 1000, 65_534, u32::MAX - 1] {
            assert!(ids.kept(id).is_none_or(|kept| ids.shown(kept) == id), "{ids:?} shows {id} as another one");
        }
    }
    let mut asked = Words::default();
    if asked.add(argument).is_ok() {
        assert_is_printed(&asked);
    }
    let mut asked = Overlay::default();
    if asked.add(argument).is_ok() {
        drop((asked.check(), asked.flags()));
        let directories = asked.lower.iter().chain(&asked.upper).chain(&asked.words.options.workdir);
        let is_path = |path: &PathBuf| !path.as_os_str().is_empty() && !path.as_os_str().as_bytes().contains(&0);
        assert!(directories.into_iter().all(is_path), "{asked:?}");
        assert!(asked.words.branches.is_none(), "branches beside layers: {asked:?}");
        assert!(asked.lower.is_empty() || overlay::is_overlay(argument), "{asked:?}");
    }
}

/// The options are the same where they are read as they are printed; ids have words that overlayfs's callers know only.
fn assert_is_printed(asked: &Words) {
    let mut again = Words::default();
    for word in words::print(&asked.options) {
        let (name, value) = match word.as_bytes().iter().position(|byte| *byte == b'=') {
            Some(at) => (&word.as_bytes()[..at], Some(&word.as_bytes()[at + 1..])),
            None => (word.as_bytes(), None),
        };
        again.add_one(name, value).expect("what is printed is read");
    }
    assert_eq!(again.options, asked.options);
}

/// Paths as branches, with every form of access.
fn as_branches(paths: &[&[u8]]) {
    let spec = |(number, path): (usize, &&[u8])| BranchSpec {
        path: PathBuf::from(OsStr::from_bytes(path)),
        access: [Access::ReadWrite, Access::ReadOnly, Access::RealReadOnly][number % 3],
        whiteouts: number % 3 > 0 && number % 2 == 0,
        overlay: false,
        init: false,
        nolwh: number % 6 == 3,
    };
    let specs: Vec<BranchSpec> = paths.iter().enumerate().map(spec).collect();
    assert_eq!(branches::parse(&branches::print(&specs)), Ok(specs));
}

/// Paths as layers, escaped as podman and containerd do it; the last two are those that are written.
fn as_layers(paths: &[&[u8]]) {
    let joined: Vec<Vec<u8>> = paths.iter().map(|path| escaped(path)).collect();
    let (first, last) = (&joined[0], &joined[joined.len() - 1]);
    let argument = [b"lowerdir=", &joined.join(&b':')[..], b",upperdir=", first, b",ro,workdir=", last].concat();
    let mut read = Overlay::default();
    read.add(&OsString::from_vec(argument)).expect("paths are taken");
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    assert_eq!(read.lower, paths.iter().map(|bytes| path(bytes)).collect::<Vec<_>>());
    assert_eq!(read.upper, Some(path(paths[0])));
    assert_eq!(read.words.options.workdir, Some(path(paths[paths.len() - 1])));
    assert!(read.unknown.is_empty() && read.labels.is_empty(), "{read:?}");
}

fn escaped(path: &[u8]) -> Vec<u8> {
    path.iter()
        .flat_map(|byte| match byte {
            b',' | b':' | b'"' | b'\\' => vec![b'\\', *byte],
            byte => vec![*byte],
        })
        .collect()
}

fn begin() {
    let table: Vec<Vec<u8>> = words::WORDS.iter().map(|word| word.usage().into_bytes()).collect();
    let all: [&[u8]; 10] = [
        b"br=top=rw:img=ro+wh:base=rr,udba=reval,dirren=off,threads=4,workdir=/w",
        b"top=rw+nolwh:a\\:b=ro+wh+ovl:init=ro+wh+init",
        b"lowerdir=/g/l/A:/g/l/B,upperdir=/g/c/diff,workdir=/g/c/work,volatile,uidmapping=:0:200000:65536,xattr_permissions=2",
        b"lowerdir=\"/a,b:/c\",upperdir=\"/a\\\"b\",context=\"u:o:t:s0:c1,c2\",timeout=0.5,squash_to_uid=7,fsync=0,threaded=1",
        b"/a:b\0/c,d\0/e=f\0g\\\0h\"i",
        b"0:1000:1:1:100000:65536",
        b"whiteout=overlay,fsname=a\\,b,subtype=,passthrough=off,writeback=off,open=none,share=on,x-a=b,append:/b,prepend:/c",
        b"sloppy,nosuchword=1,remount,ro,noatime,dev,suid,strictatime,nosymfollow",
        b"squash_to_root,squash_to_gid=4294967294,plugins=,metacopy=on,xino=off,br=/x",
        b"lowerdir=/a:/b\\,c,upperdir=u",
    ];
    seeds::write("words", all.into_iter().chain([&table.join(&b',')[..]]));
}
