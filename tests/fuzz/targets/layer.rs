//! A layer of a stranger becomes a branch, by itself and over another layer. Whatever it holds, nothing outside is touched
//! and nothing is left of what is refused; what is taken is written as a layer that gives the same branch.
#![no_main]

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use fuzz::{archive, ground, seeds};
use harness::snapshot::{Exactness, Snapshot, names};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use unionfs::layer::{apply, compressed, export};
use unionfs::options::branches;

#[path = "../../support/archives.rs"]
mod archives;

use archives::{file, header, member, pax};

fuzz_target!(init: begin(), |bytes: &[u8]| {
    by_itself(bytes);
    over_another(bytes);
});
fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| { archive::mutate(data, size, most, seed) });

/// What is unpacked of a bomb.
const MOST: u64 = 8 << 20;
/// A branch with more is not written again: holes become zeros there.
const MOST_AGAIN: u64 = 1 << 20;

static GROUND: LazyLock<Ground> = LazyLock::new(|| Ground::new(ground::enter()));

struct Ground {
    around: PathBuf,
    /// What was there at the beginning.
    before: Snapshot,
}

impl Ground {
    fn new(around: PathBuf) -> Ground {
        fs::create_dir_all(around.join("in")).expect("make the ground");
        fs::create_dir_all(around.join("below/d/e")).expect("make the ground");
        for name in ["victim", "a", "b", "below/a", "below/d/f", "below/d/e/g"] {
            fs::write(around.join(name), "untouched").expect("make the ground");
        }
        std::os::unix::fs::symlink("d/e", around.join("below/l")).expect("make the ground");
        let before = Snapshot::take(&around);
        Ground { around, before }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.around.join(name)
    }

    /// The directory in which something is made has nothing in it, and nothing beside it is another one.
    fn assert_untouched(&self) {
        assert_eq!(names(&self.path("in")).expect("list the ground"), [""; 0], "something is left");
        self.before.assert_same(&Snapshot::take(&self.around), Exactness::EqualButTimes, "outside of the branch");
    }
}

fn begin() {
    LazyLock::force(&GROUND);
    let all = inputs();
    seeds::write("layer", all.iter().map(Vec::as_slice));
}

fn plain(bytes: &[u8]) -> Option<io::Take<Box<dyn Read + '_>>> {
    compressed::plain(bytes).ok().map(|plain| plain.take(MOST))
}

fn by_itself(bytes: &[u8]) {
    let Some(mut input) = plain(bytes) else { return };
    let branch = GROUND.path("in/branch");
    if apply::apply(&mut input, &branch, &|| false).is_ok() {
        if is_small(&branch) {
            assert_is_written_again(&branch);
        }
        fs::remove_dir_all(&branch).expect("remove the branch");
    }
    GROUND.assert_untouched();
}

fn over_another(bytes: &[u8]) {
    let Some(mut input) = plain(bytes) else { return };
    let holder = GROUND.path("in/holder");
    fs::create_dir(&holder).expect("make a directory for the layer");
    let below = || Some(vec![GROUND.path("below")]);
    drop(apply::unpack(&mut input, &holder, &below, &|| false));
    fs::remove_dir_all(&holder).expect("remove the layer");
    GROUND.assert_untouched();
}

/// Whether a branch can be looked at by paths, and is not large.
fn is_small(branch: &Path) -> bool {
    let mut room = MOST_AGAIN;
    let mut pending = vec![branch.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(names) = names(&directory) else { return false };
        for name in names {
            let path = directory.join(name);
            let Ok(about) = fs::symlink_metadata(&path) else { return false };
            if about.is_dir() {
                pending.push(path);
            } else {
                let Some(rest) = room.checked_sub(about.size()) else { return false };
                room = rest;
            }
        }
    }
    true
}

/// Writes a branch as a layer, and makes a branch of that; both are the same, but for whiteouts of what is there.
fn assert_is_written_again(branch: &Path) {
    let again = GROUND.path("in/again");
    let layer = layer_of(branch);
    apply::apply(&mut &layer[..], &again, &|| false).expect("a layer that was written by us is read by us");
    assert!(layer == layer_of(&again), "a layer that was unpacked and written is another one");
    let entries = |branch| Snapshot::take(branch).without(is_mark);
    entries(branch).assert_same(&entries(&again), Exactness::Equal, "the branch that was made again");
    fs::remove_dir_all(again).expect("remove the branch");
}

fn is_mark(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh."))
}

fn layer_of(branch: &Path) -> Vec<u8> {
    let mut spec = branches::parse("branch=ro+wh".as_ref()).expect("it is a branch");
    spec[0].path = branch.to_owned();
    let path = GROUND.path("in/layer");
    let out = File::create(&path).expect("make a file for the layer");
    export::export(&spec, None, out, None, &mut |left| panic!("{} is left out", left.why)).expect("write the layer");
    let layer = fs::read(&path).expect("read the layer");
    fs::remove_file(path).expect("remove the layer");
    layer
}

/// A frame of zstd without a checksum (RFC 8878, 3.1.1), of bytes as they are and of zeros after each, 128 KiB at most.
fn framed(parts: &[(&[u8], usize)]) -> Vec<u8> {
    const RAW: usize = 0;
    const REPEATED: usize = 1;
    let block = |kind: usize, length: usize| (length << 3 | kind << 1).to_le_bytes()[..3].to_vec();
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 15 << 3];
    for (bytes, zeros) in parts {
        frame.extend([block(RAW, bytes.len()), bytes.to_vec(), block(REPEATED, *zeros), vec![0]].concat());
    }
    // The last one is empty.
    frame.extend([1, 0, 0]);
    frame
}

/// `user::rwx,user:7:r--,group::r-x,mask::r-x,other::---` (`linux/posix_acl_xattr.h`).
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5, 0,
    255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

fn inputs() -> Vec<Vec<u8>> {
    let outside = GROUND.path("victim").display().to_string();
    let long = "n/".repeat(60);
    let plain = [
        archives::archive(&[]),
        archives::archive(&[
            member("d/", b'5', b"", ""),
            file("d/f", "content"),
            member("d/l", b'2', b"", "f"),
            member("h", b'1', b"", "d/f"),
            member("p", b'6', b"", ""),
            member("c", b'3', b"", ""),
            file("d/.wh.x", ""),
            file("d/.wh..wh..opq", ""),
            file(".wh.y", ""),
        ]),
        archives::archive(&[
            member("usr/lib/", b'5', b"", ""),
            member("lib", b'2', b"", "usr/lib"),
            file("lib/a", "a"),
            member("up", b'2', b"", "../../usr/.."),
            file("up/b", "b"),
            member("lib", b'2', b"", &outside),
            file("lib/g", "g"),
            member("h", b'1', b"", "lib/a"),
            file("../victim", ""),
        ]),
        archives::archive(&[
            pax(&[("path", b"a/b"), ("mtime", b"-1.5"), ("uid", b"70000"), ("gid", b"1"), ("size", b"1")]),
            file("x", "1"),
            pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")]),
            member("o/", b'5', b"", ""),
            pax(&[("linkpath", b"a/b")]),
            member("k", b'1', b"", "y"),
            member("g", b'g', b"11 path=zz\n", ""),
            file("last", "content ".repeat(100).as_str()),
        ]),
        archives::archive(&[
            pax(&[("GNU.sparse.size", b"4096"), ("GNU.sparse.map", b"0,2,1000,3")]),
            file("s", "abcde"),
            pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")]),
            member("t", b'0', &[&b"1\n5\n2\n"[..], &[0; 506], b"ab"].concat(), ""),
        ]),
        archives::archive(&[
            member("././@LongLink", b'L', format!("{long}f\0").as_bytes(), ""),
            file("cut", "x"),
            member("././@LongLink", b'K', format!("{long}f\0").as_bytes(), ""),
            member("cut", b'1', b"", "cut"),
        ]),
        // What entries of a directory would inherit.
        archives::archive(&[
            pax(&[("SCHILY.xattr.system.posix_acl_default", ACL)]),
            member("d/", b'5', b"", ""),
            file("d/f", ""),
            file("d/e/g", ""),
            pax(&[("SCHILY.xattr.system.posix_acl_access", ACL)]),
            file("d/h", ""),
        ]),
        // Links to what is below, and to what is not.
        archives::archive(&[
            member("h", b'1', b"", "d/f"),
            member("i", b'1', b"", "l/g"),
            file(".wh.a", ""),
            member("j", b'1', b"", "a"),
        ]),
        [&header(b"cut-off", b'0', 2000, b"")[..], &[b'x'; 512]].concat(),
    ];
    let zeros = framed(&[(&[&header(b"z", b'0', 200_000, b"")[..], b"begin"].concat(), 131_072), (b"middle", 70_133)]);
    let halves = [seeds::gzip(&plain[2][..512]), seeds::gzip(&plain[2][512..])].concat();
    let packed = [seeds::gzip(&plain[1]), seeds::zstd(&plain[3]), halves, zeros];
    plain.into_iter().chain(packed).collect()
}
