//! Layers of strangers: whatever they hold, nothing outside of the branch is reached, nothing is left of what is refused,
//! and there is one line that says why.
//!
//! `RUNIONFS_LAYER_CASES` sets how many layers are made up and damaged; they are unpacked in this process, so that a panic
//! is seen as one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::MetadataExt as _;

use harness::sandbox;
use harness::snapshot::{Exactness, Snapshot, names};
use harness::trial::{number, try_many};
use proptest::prelude::*;
use unionfs::layer::{apply, compressed};

#[path = "support/applying.rs"]
mod applying;
#[path = "support/archives.rs"]
mod archives;

use applying::{apply, assert_refused, assert_silent, place};
use archives::{archive, file, header, member, pax, sized, sum};

#[test]
fn a_hostile_layer_is_refused_and_reaches_nothing_outside() {
    let Some(sandbox) = sandbox::enter() else { return };
    let outside = sandbox.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let before = Snapshot::take(&outside);
    let to_outside = outside.display().to_string();
    let huge = |size: u64| {
        let mut block = header(b"huge", b'0', 0, b"");
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
        sum(&mut block);
        block.to_vec()
    };
    let mut negative = header(b"negative", b'0', 0, b"");
    negative[124..136].fill(0xFF);
    sum(&mut negative);
    let mut no_sum = header(b"x", b'0', 0, b"");
    no_sum[0] = b'y';
    let long_pax = |length: usize| member("x", b'x', &vec![b'1'; length], "");
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("up", vec![file("../outside/new", "")], "'..'"),
        ("up-inside", vec![file("a/../../outside/new", "")], "'..'"),
        ("up-alone", vec![member("..", b'5', b"", "")], "'..'"),
        ("file-parent", vec![file("l", ""), file("l/new", "")], "no directory"),
        ("link-to-file", vec![file("f", ""), member("l", b'2', b"", "f"), file("l/new", "")], "no directory"),
        ("link-to-itself", vec![member("l", b'2', b"", "l"), file("l/new", "")], "too many symbolic links"),
        ("link-to-mark", vec![member("l", b'2', b"", ".wh.x"), file("l/new", "")], "what no layer has"),
        ("hard-link-up", vec![member("h", b'1', b"", "../outside/victim")], "hard link"),
        ("hard-link-absolute", vec![member("h", b'1', b"", &format!("{to_outside}/victim"))], "not in the layer"),
        (
            "hard-link-through",
            vec![member("l", b'2', b"", &to_outside), member("h", b'1', b"", "l/victim")],
            "not in the layer",
        ),
        ("hard-link-dir", vec![member("d", b'5', b"", ""), member("h", b'1', b"", "d")], "to a directory"),
        ("hard-link-mark", vec![file(".wh.a", ""), member("h", b'1', b"", ".wh.a")], "no entry of the layer"),
        ("hard-link-nothing", vec![member("h", b'1', b"", "nothing")], "not in the layer"),
        ("hard-link-empty", vec![member("h", b'1', b"", "")], "target is missing"),
        ("whiteout-dir", vec![member(".wh.d", b'5', b"", "")], "regular file"),
        ("in-whiteout", vec![file(".wh.d/f", "")], "whiteout"),
        ("whiteout-of-nothing", vec![file(".wh.", "")], "kept for whiteouts"),
        ("whiteout-of-dots", vec![file("d/.wh...", "")], "kept for whiteouts"),
        ("root-as-file", vec![file("./", "").split_off(0), member(".", b'0', b"", "")], "directory"),
        ("huge", vec![huge(u64::MAX >> 1)], "cut off"),
        ("larger", vec![huge(u64::MAX)], ""),
        ("negative", vec![negative.to_vec()], ""),
        ("no-sum", vec![no_sum.to_vec()], "no tar archive"),
        ("garbage", vec![vec![b'x'; 4096]], "no tar archive"),
        ("long-pax", vec![long_pax(17 << 20), file("x", "")], "too long"),
        ("many-pax", vec![long_pax(9 << 20), long_pax(9 << 20), file("x", "")], ""),
        ("bad-pax", vec![long_pax(100), file("x", "")], "cannot be read"),
        ("bad-number", vec![member("x", b'x', b"9 uid=-1\n", ""), file("x", "")], "no number"),
        ("large-id", vec![member("x", b'x', b"18 uid=4294967296\n", ""), file("x", "")], "no number"),
        ("zero-in-name", vec![member("x", b'x', b"12 path=a\0b\n", ""), file("x", "")], "zero byte"),
        ("sparse", vec![member("s", b'S', b"", "")], "holes cannot be read"),
        ("pax-sparse", vec![member("x", b'x', b"22 GNU.sparse.major=1\n", ""), file("x", "")], "holes cannot be read"),
        ("unknown-type", vec![member("m", b'M', b"", "")], "'M'"),
    ];
    for (name, members, why) in cases {
        assert_refused(&sandbox, name, &archive(&members), why);
    }
    // these are harmless: they stay in the layer
    let layer = archive(&[
        file("/absolute/f", "f"),
        file("//a//./b/", "").split_off(0),
        member("l", b'2', b"", &format!("{to_outside}/victim")),
        file("l", "replaces the link"),
        member("h", b'2', b"", &to_outside),
        member("hh", b'1', b"", "h"),
        member("self", b'0', b"s", ""),
        member("self", b'1', b"", "self"),
    ]);
    let (layer, branch) = place(&sandbox, "harmless", &layer);
    assert_silent(&apply(&layer, &branch));
    assert_eq!(Snapshot::take(&branch).paths(), ["a", "a/b", "absolute", "absolute/f", "h", "hh", "l", "self"]);
    assert!(fs::symlink_metadata(branch.join("hh")).unwrap().is_symlink());
    before.assert_same(&Snapshot::take(&outside), Exactness::Untouched, "a layer reached outside of its branch");
}

#[test]
fn links_of_a_layer_lead_to_where_they_led_when_it_was_made() {
    let Some(sandbox) = sandbox::enter() else { return };
    let outside = sandbox.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = archive(&[
        member("usr/lib/", b'5', b"", ""),
        member("lib", b'2', b"", "usr/lib"),
        file("lib/a", "a"),
        file("lib/deep/b", "b"),
        file("usr/lib/.wh.c", ""),
        file("lib/.wh.d", ""),
        member("absolute", b'2', b"", "/usr/lib/deep/.."),
        file("absolute/e", "e"),
        member("usr/up", b'2', b"", "../../../../../var"),
        file("usr/up/f", "f"),
        member("h", b'1', b"", "lib/a"),
        // what it leads to from then on
        member("lib", b'2', b"", "usr/up"),
        file("lib/g", "g"),
        member("out", b'2', b"", outside.to_str().unwrap()),
        file("out/h", "h"),
    ]);
    let (layer, branch) = place(&sandbox, "links", &layer);
    assert_silent(&apply(&layer, &branch));
    for (path, content) in
        [("usr/lib/a", "a"), ("usr/lib/deep/b", "b"), ("usr/lib/e", "e"), ("var/f", "f"), ("var/g", "g")]
    {
        assert_eq!(fs::read_to_string(branch.join(path)).unwrap(), content, "{path}");
    }
    assert_eq!(fs::metadata(branch.join("h")).unwrap().ino(), fs::metadata(branch.join("usr/lib/a")).unwrap().ino());
    assert!(branch.join("usr/lib/.wh.c").exists() && branch.join("usr/lib/.wh.d").exists());
    assert!(branch.join(outside.strip_prefix("/").unwrap()).join("h").exists());
    assert!(names(&outside).unwrap().is_empty());
    for link in ["lib", "absolute", "usr/up", "out"] {
        assert!(fs::symlink_metadata(branch.join(link)).unwrap().is_symlink(), "{link}");
    }
}

#[test]
fn a_stranger_does_not_say_what_a_union_does_with_an_entry() {
    let Some(sandbox) = sandbox::enter() else { return };
    let names = ["trusted.runionfs.redirect", "user.containers.override_stat", "user.mine"];
    let layer = archive(&names.map(|name| {
        [pax(&[(&format!("SCHILY.xattr.{name}"), b"value")]), member(&format!("{name}/"), b'5', b"", "")].concat()
    }));
    let (layer, branch) = place(&sandbox, "attributes", &layer);
    assert_silent(&apply(&layer, &branch));
    for name in names {
        let found = rustix::fs::lgetxattr(branch.join(name), name, &mut [0; 64][..]);
        assert_eq!(found.is_ok(), name == "user.mine", "{name}");
    }
}

#[test]
fn a_layer_that_is_cut_off_anywhere_leaves_nothing() {
    let Some(sandbox) = sandbox::enter() else { return };
    let whole = archive(&[
        member("d/", b'5', b"", ""),
        member("x", b'x', b"30 mtime=1000000000.000000001\n", ""),
        file("d/f", &"content ".repeat(200)),
        file("g", ""),
    ]);
    for length in (0..whole.len()).step_by(256) {
        if length > whole.len() - 1024 + 511 {
            break;
        }
        assert_refused(&sandbox, &format!("cut-{length}"), &whole[..length], "cut off");
    }
}

/// Compressed in these ways by us: members of gzip and frames of zstd one after the other, each of a part.
fn in_parts(plain: &[u8], form: Form, parts: usize) -> Vec<u8> {
    let size = plain.len().div_ceil(parts).max(1);
    let packed = |part: &[u8]| match form {
        Form::Plain => part.to_vec(),
        Form::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        }
        Form::Zstd => ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest),
    };
    plain.chunks(size).flat_map(packed).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstd,
}

#[test]
fn layers_in_several_parts_are_read_to_the_end_and_what_follows_them_is_no_harm() {
    let Some(sandbox) = sandbox::enter() else { return };
    let plain = archive(&[file("a", &"content ".repeat(20_000)), file("b", "b")]);
    for form in [Form::Gzip, Form::Zstd] {
        let (layer, branch) = place(&sandbox, &format!("{form:?}"), &in_parts(&plain, form, 7));
        assert_silent(&apply(&layer, &branch));
        assert_eq!(fs::read(branch.join("b")).unwrap(), b"b");
    }
    // gzip(1) ignores zeros behind what it has packed, and complains of anything else
    let garbage = [in_parts(&plain, Form::Gzip, 1), b"garbage".to_vec()].concat();
    assert_refused(&sandbox, "garbage", &garbage, "");
}

#[test]
fn a_layer_that_needs_much_memory_to_be_read_is_refused() {
    let Some(sandbox) = sandbox::enter() else { return };
    // a frame with a window of 2^(10 + exponent) bytes, of one raw block that is the last (RFC 8878, 3.1.1)
    let frame = |exponent: u8| {
        let content = archive(&[file("f", "f")]);
        let block = (u32::try_from(content.len()).unwrap() << 3 | 1).to_le_bytes();
        [&[0x28, 0xB5, 0x2F, 0xFD, 0, exponent << 3], &block[..3], &content].concat()
    };
    let (layer, branch) = place(&sandbox, "usual", &frame(15));
    assert_silent(&apply(&layer, &branch));
    for exponent in [16, 17, 21, 31] {
        assert_refused(&sandbox, &format!("window-{exponent}"), &frame(exponent), "");
    }
    assert_refused(&sandbox, "larger", &frame(17), "needs 128 MiB of memory, more than 32");
}

#[test]
fn sizes_and_pieces_that_cannot_be_are_refused() {
    let Some(sandbox) = sandbox::enter() else { return };
    let sparse = |records: &[(&str, &[u8])], content: &[u8]| vec![pax(records), member("s", b'0', content, "")];
    let mut largest = [0xFF; 12];
    largest[0] = 0x80;
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("base-256", vec![sized("huge", largest)]),
        ("minus-one", vec![sized("huge", [0xFF; 12])]),
        ("no-digits", vec![sized("huge", *b"           \0")].into_iter().chain([vec![0; 512]]).collect()),
        ("not-octal", vec![sized("huge", *b"99999999999\0")]),
        ("sign", vec![sized("huge", *b"-0000000001\0")]),
        ("pax-size", vec![pax(&[("size", b"18446744073709551615")]), file("f", "")]),
        ("pax-size-sign", vec![pax(&[("size", b"-1")]), file("f", "")]),
        ("pax-size-more", vec![pax(&[("size", b"18446744073709551616")]), file("f", "")]),
        ("mtime", vec![pax(&[("mtime", b"99999999999999999999")]), file("f", "")]),
        ("map-back", sparse(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,1,0,1")], b"ab")),
        ("map-over", sparse(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"18446744073709551615,2")], b"ab")),
        ("map-odd", sparse(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"1,2,3")], b"ab")),
        ("map-long", sparse(&[("GNU.sparse.size", b"1"), ("GNU.sparse.map", b"0,2")], b"ab")),
        ("real-size", sparse(&[("GNU.sparse.size", b"9223372036854775808"), ("GNU.sparse.map", b"0,2")], b"ab")),
        ("count", sparse(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")], b"99999999999\n")),
        (
            "name-up",
            sparse(&[("GNU.sparse.name", b"../s"), ("GNU.sparse.size", b"2"), ("GNU.sparse.map", b"0,2")], b"ab"),
        ),
        ("long-name", vec![member("././@LongLink", b'L', &vec![b'n'; 17 << 20], ""), file("f", "")]),
        ("name-up-long", vec![member("././@LongLink", b'L', b"../../up\0", ""), file("f", "")]),
        ("nobody", vec![pax(&[("uid", b"4294967295")]), file("f", "")]),
        ("global-name", vec![member("g", b'g', b"zz", "")]),
    ];
    for (name, members) in cases {
        let members = if name == "global-name" { [members, vec![file("../f", "")]].concat() } else { members };
        assert_refused(&sandbox, name, &archive(&members), "");
    }
    // a file may be as large as a file can be, as long as it is holes
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.map", b"0,2")];
    let (layer, branch) = place(&sandbox, "holes", &archive(&sparse(&records, b"ab")));
    assert_silent(&apply(&layer, &branch));
    assert_eq!(fs::metadata(branch.join("s")).unwrap().len(), 1 << 40);
}

/// Names that lead somewhere else, or mean something.
fn name() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "d",
        "..",
        ".",
        "",
        "victim",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        ".wh..wh.runionfs",
        ".wh.",
        ".wh..",
        ".wh...",
        "\n",
        "ü",
    ]);
    prop::collection::vec(parts, 1..4).prop_map(|parts| parts.join("/"))
}

/// A member of any kind, some with extended headers.
fn any_member() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(b"0000011222345567SLKxgV\0".to_vec());
    let content = prop::collection::vec(any::<u8>(), 0..600);
    let records = prop::option::of(prop::sample::select(vec![
        vec![("path", &b"../out"[..])],
        vec![("path", b"a/b"), ("linkpath", b"../../victim")],
        vec![("size", b"0")],
        vec![("size", b"100000")],
        vec![("uid", b"4294967295"), ("gid", b"1")],
        vec![("mtime", b"-1.5")],
        vec![("SCHILY.xattr.user.a", b"1")],
        vec![("SCHILY.xattr.trusted.overlay.opaque", b"y")],
        vec![("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"4096")],
        vec![("GNU.sparse.size", b"4096"), ("GNU.sparse.map", b"0,10,1000,10")],
    ]));
    (name(), kinds, content, name(), records).prop_map(|(name, kind, content, link, records)| {
        let has_content = matches!(kind, b'0' | b'7' | b'S' | b'L' | b'K' | b'x' | b'g' | b'\0');
        let content = if has_content { content } else { Vec::new() };
        let content = if kind == b'L' || kind == b'K' { name.clone().into_bytes() } else { content };
        let extended = records.map(|records| pax(&records)).unwrap_or_default();
        [extended, member(&name, kind, &content, &link)].concat()
    })
}

/// Something that happens to an archive on its way.
#[derive(Debug, Clone)]
enum Damage {
    /// A byte is another one.
    Byte(prop::sample::Index, u8),
    /// A field of a header is another one, and its checksum is right.
    Field(prop::sample::Index, prop::sample::Index, u8),
    /// The rest is missing.
    Cut(prop::sample::Index),
    /// A block is there twice.
    Twice(prop::sample::Index),
    /// A block is missing.
    Lost(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (at(), at(), any::<u8>()).prop_map(|(block, at, byte)| Damage::Field(block, at, byte)),
        (at(), at(), prop::sample::select(b"\0 07\x80\xFF".to_vec()))
            .prop_map(|(block, at, byte)| Damage::Field(block, at, byte)),
        at().prop_map(Damage::Cut),
        at().prop_map(Damage::Twice),
        at().prop_map(Damage::Lost),
    ]
}

impl Damage {
    fn to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.len() < 512 {
            return bytes;
        }
        let block = |at: &prop::sample::Index| at.index(bytes.len() / 512) * 512;
        match self {
            Damage::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Field(at, field, byte) => {
                let start = block(at);
                let header: &mut [u8; 512] = (&mut bytes[start..start + 512]).try_into().unwrap();
                header[field.index(512)] = *byte;
                sum(header);
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Twice(at) => {
                let start = block(at);
                let copy = bytes[start..start + 512].to_vec();
                bytes.splice(start..start, copy);
            }
            Damage::Lost(at) => {
                let start = block(at);
                drop(bytes.drain(start..start + 512));
            }
        }
        bytes
    }
}

/// An archive that somebody has made up, and what happened to it before and after it was compressed.
fn layer() -> impl Strategy<Value = Vec<u8>> {
    let form = prop_oneof![4 => Just(Form::Plain), 1 => Just(Form::Gzip), 1 => Just(Form::Zstd)];
    let damages = || prop::collection::vec(damage(), 0..3);
    (prop::collection::vec(any_member(), 1..8), damages(), form, 1..3_usize, damages()).prop_map(
        |(members, before, form, parts, after)| {
            let plain = before.iter().fold(archive(&members), |bytes, damage| damage.to(bytes));
            let packed = in_parts(&plain, form, parts);
            if form == Form::Plain { packed } else { after.iter().fold(packed, |bytes, damage| damage.to(bytes)) }
        },
    )
}

#[test]
fn whatever_a_layer_holds_it_stays_in_its_branch_and_is_there_whole_or_not_at_all() {
    let Some(sandbox) = sandbox::enter() else { return };
    let around = sandbox.path().join("around");
    fs::create_dir_all(around.join("in")).unwrap();
    for name in ["victim", "a", "b"] {
        fs::write(around.join(name), "untouched").unwrap();
    }
    let before = Snapshot::take(&around);
    let (whole, refused) = (Cell::new(0_u32), Cell::new(0_u32));
    try_many(number("RUNIONFS_LAYER_CASES", 1_500), &layer(), |bytes| {
        let branch = around.join("in/branch");
        let plain = compressed::plain(&bytes[..]);
        let result = plain.map_err(|error| error.to_string()).and_then(|mut plain: Box<dyn Read>| {
            apply::apply(&mut plain, &branch, &|| false).map_err(|error| error.to_string())
        });
        let left = names(&around.join("in")).unwrap();
        match &result {
            Ok(()) => {
                whole.set(whole.get() + 1);
                prop_assert_eq!(left, ["branch"]);
                fs::remove_dir_all(&branch).unwrap();
            }
            Err(why) => {
                refused.set(refused.get() + 1);
                prop_assert!(left.is_empty(), "left: {:?} by {}", left, why);
                prop_assert!(!why.is_empty());
            }
        }
        let after = Snapshot::take(&around);
        prop_assert!(after.paths() == before.paths(), "outside: {:?}", after.paths());
        Ok(())
    });
    before.assert_same(&Snapshot::take(&around), Exactness::EqualButTimes, "a layer reached outside of its branch");
    assert!(whole.get() > 20 && refused.get() > 20, "{} whole, {} refused", whole.get(), refused.get());
}
