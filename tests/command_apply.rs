//! `runionfs apply`: a layer becomes a branch, whole or not at all, whoever made it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::fixture::Branches;
use harness::mount::{finish, poll};
use harness::sandbox::{self, run};
use harness::snapshot::{Exactness, Snapshot, names};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

#[path = "support/applying.rs"]
mod applying;
#[path = "support/archives.rs"]
mod archives;

use applying::{apply, assert_refused, assert_silent, place};
use archives::{archive, file, member, pax};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn export(branch: &Path, layer: &Path) {
    let outcome = finish(Command::new(BIN).arg("export").arg(branch).arg("-o").arg(layer));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
}

#[test]
fn an_exported_layer_is_the_same_branch_again() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    let long = "n".repeat(255);
    branches.file("0/d/f", "content").file("0/suid", "x").mode("0/suid", 0o4755).owner(
        "0/d/f",
        1000,
        3_000_000_000_u32,
    );
    branches.whiteout("0/gone").opaque("0/d").hard_link("0/d/f", "0/same").symlink("0/link", "d/f");
    branches.dir(format!("0/{long}/{long}")).mode("0/d", 0o2770);
    fs::write(branches.at("0/.wh..wh.plnk"), "").unwrap();
    for (name, kind) in [("fifo", FileType::Fifo), ("null", FileType::CharacterDevice)] {
        let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(1, 3) };
        rustix::fs::mknodat(CWD, branches.at("0").join(name), kind, Mode::from_raw_mode(0o600), device).unwrap();
    }
    rustix::fs::lsetxattr(branches.at("0/suid"), "user.a=%", b"\0\n", XattrFlags::empty()).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::lsetxattr(branches.at("0/d/f"), "security.capability", capability, XattrFlags::empty()).unwrap();
    run(Command::new("setfacl").args(["-m", "u:1000:rwx", "-d", "-m", "g:1001:r"]).arg(branches.at("0/d")));
    run(Command::new("touch").args(["-h", "-m", "-d", "@-1.5"]).arg(branches.at("0/link")));
    run(Command::new("touch").args(["-m", "-d", "@1000000000.000000001"]).arg(branches.at("0/d")));
    let (first, second) = (branches.at("first.tar"), branches.at("second.tar"));
    export(&branches.at("0"), &first);
    // what new entries inherit where it is unpacked is no part of the layer
    run(Command::new("setfacl").args(["-d", "-m", "u:1002:rwx"]).arg(branches.at("")));
    fs::set_permissions(branches.at(""), fs::Permissions::from_mode(0o2755)).unwrap();
    assert_silent(&apply(&first, &branches.at("copy")));
    let unlike = |tree: Snapshot| tree.without(|path| path.to_string_lossy().contains(".wh."));
    unlike(Snapshot::take(&branches.at("0"))).assert_same(
        &unlike(Snapshot::take(&branches.at("copy"))),
        Exactness::Equal,
        "the branch is another",
    );
    assert_eq!(fs::symlink_metadata(branches.at("copy/.wh.gone")).unwrap().mode(), 0o100_444);
    assert!(!branches.at("copy/.wh..wh.plnk").exists());
    export(&branches.at("copy"), &second);
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
}

#[test]
fn a_whiteout_of_a_long_name_is_the_same_branch_again() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let long = "n".repeat(252);
    branches.file(format!("1/{long}"), "");
    let union = branches.mount();
    fs::remove_file(union.path(&long)).unwrap();
    let (first, second) = (union.at("first.tar"), union.at("second.tar"));
    export(&union.at("0"), &first);
    assert_silent(&apply(&first, &union.at("copy")));
    export(&union.at("copy"), &second);
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
}

#[test]
fn layers_are_read_plain_and_compressed_from_files_and_pipes() {
    let Some(sandbox) = sandbox::enter() else { return };
    let content = "some content that is repeated\n".repeat(20_000);
    let plain = archive(&[file("d/f", &content)]);
    for (tool, arguments) in
        [("cat", &[][..]), ("gzip", &["-c"]), ("zstd", &["-qc"]), ("zstd", &["-qc", "--check", "-19"])]
    {
        let name = format!("{tool}{}", arguments.len());
        let (layer, branch) = place(&sandbox, &name, &plain);
        let packed = Command::new(tool).args(arguments).stdin(fs::File::open(&layer).unwrap()).output().unwrap();
        assert!(packed.status.success());
        // in two pieces, as parallel compressors write it
        let twice = Command::new(tool).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut twice = twice.unwrap();
        twice.stdin.take().unwrap().write_all(b"behind the end").unwrap();
        let more = twice.wait_with_output().unwrap().stdout;
        fs::write(&layer, [&packed.stdout[..], &more].concat()).unwrap();
        assert_silent(&apply(&layer, &branch));
        assert_eq!(fs::read_to_string(branch.join("d/f")).unwrap(), content, "{name}");
        let piped = branch.with_file_name("piped");
        let input = fs::File::open(&layer).unwrap();
        let output = Command::new(BIN).arg("apply").arg("-").arg(&piped).stdin(input).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read_to_string(piped.join("d/f")).unwrap(), content, "{name}");
        // damaged in its middle
        let mut damaged = packed.stdout;
        let middle = damaged.len() / 2;
        if tool != "cat" {
            damaged[middle] ^= 0xFF;
            assert_refused(&sandbox, &format!("{name}-damaged"), &damaged, "");
            assert_refused(&sandbox, &format!("{name}-cut"), &damaged[..middle], "");
        }
    }
}

#[test]
fn layers_of_other_tools_are_read() {
    let Some(sandbox) = sandbox::enter() else { return };
    let source = sandbox.path().join("source");
    let long = format!("{}/{}/{}", "d".repeat(60), "e".repeat(60), "f".repeat(90));
    fs::create_dir_all(source.join(&long).parent().unwrap()).unwrap();
    fs::write(source.join(&long), "long").unwrap();
    symlink("t".repeat(300), source.join("link")).unwrap();
    fs::hard_link(source.join(&long), source.join("hard")).unwrap();
    fs::write(source.join(".wh.gone"), "").unwrap();
    for format in ["pax", "gnu", "ustar"] {
        let attribute = ("user.a", b"value");
        let (layer, branch) = (sandbox.path().join(format!("{format}.tar")), sandbox.path().join(format));
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&source).args(["--format", format]);
        if format == "pax" {
            rustix::fs::lsetxattr(source.join(&long), attribute.0, attribute.1, XattrFlags::empty()).unwrap();
            tar.arg("--xattrs");
        } else {
            // the others have no room for attributes, and the last none for these targets
            rustix::fs::removexattr(source.join(&long), attribute.0).unwrap_or_default();
        }
        if format == "ustar" {
            fs::remove_file(source.join("link")).unwrap();
            fs::remove_file(source.join("hard")).unwrap();
        }
        run(tar.arg("-cf").arg(&layer).arg("."));
        assert_silent(&apply(&layer, &branch));
        let exactness = if format == "pax" { Exactness::Equal } else { Exactness::EqualButTimes };
        let bare = |path: &Path| path.to_string_lossy().contains(".wh.");
        let (from, to) = (Snapshot::take(&source).without(bare), Snapshot::take(&branch).without(bare));
        from.assert_same(&to, exactness, format);
        assert!(branch.join(".wh.gone").is_file());
    }
}

#[test]
fn a_branch_of_aufs_in_an_archive_is_read_without_its_bookkeeping() {
    let Some(sandbox) = sandbox::enter() else { return };
    let layer = archive(&[
        member("./", b'5', b"", ""),
        file("./.wh..wh.aufs", ""),
        member("./.wh..wh.plnk/", b'5', b"", ""),
        file("./.wh..wh.plnk/11.12", "data"),
        // whiteouts are further names of one file there
        member("./.wh.gone", b'1', b"", "./.wh..wh.aufs"),
        member("./d/.wh..wh..opq", b'1', b"", "./.wh..wh.aufs"),
        file("./d/.wh..wh.f.12ab", ""),
        file("./d/f", "f"),
    ]);
    let (layer, branch) = place(&sandbox, "aufs", &layer);
    assert_silent(&apply(&layer, &branch));
    let tree = Snapshot::take(&branch);
    assert_eq!(tree.paths(), [".wh.gone", "d", "d/.wh..wh..opq", "d/f"]);
    assert_eq!(tree.entries[Path::new(".wh.gone")].nlink, 1);
}

#[test]
fn of_two_members_of_one_name_the_last_wins() {
    let Some(sandbox) = sandbox::enter() else { return };
    let layer = archive(&[
        file("a", "first"),
        file("a", "last"),
        file("b/c/d", "in the way"),
        file("b", "a file"),
        file("c", "a file"),
        file("c/d", "below").split_off(0),
    ]);
    assert_refused(&sandbox, "file-as-directory", &layer, "no directory");
    let layer = archive(&[
        file("a", "first"),
        file("a", "last"),
        member("b/", b'5', b"", ""),
        file("b/c/d", "in the way"),
        file("b", "a file"),
        file("c", "a file"),
        member("c/", b'5', b"", ""),
        file("c/d", "below"),
        member("e", b'2', b"", "a"),
        file("e", "no link any more"),
        member("f", b'1', b"", "a"),
        file("f", "no link any more"),
    ]);
    let (layer, branch) = place(&sandbox, "twice", &layer);
    assert_silent(&apply(&layer, &branch));
    let read = |name: &str| fs::read_to_string(branch.join(name)).unwrap();
    assert_eq!([read("a"), read("b"), read("c/d")], ["last", "a file", "below"]);
    assert_eq!([read("e"), read("f")], ["no link any more", "no link any more"]);
}

#[test]
fn directories_keep_the_times_they_were_given_whatever_is_made_in_them_then() {
    let Some(sandbox) = sandbox::enter() else { return };
    let timed = |name: &str, time: &str| [pax(&[("mtime", time.as_bytes())]), member(name, b'5', b"", "")].concat();
    let layer = archive(&[
        timed("./", "4000"),
        timed("d/", "1000"),
        file("d/f", "first"),
        file("children/first", ""),
        member("l", b'2', b"", "d"),
        file("l/by-a-link", ""),
        timed("d/s/", "2000"),
        file("d/s/h", ""),
        file("d/f", "replaced"),
        file("d/.wh.gone", ""),
        member("d/hard", b'1', b"", "d/s/h"),
        timed("children/", "3000"),
        file("children/last", ""),
        file("d/s/made/on/the/way", ""),
        file("top", ""),
    ]);
    let (layer, branch) = place(&sandbox, "times", &layer);
    assert_silent(&apply(&layer, &branch));
    let time = |name: &str| fs::metadata(branch.join(name)).unwrap().mtime();
    assert_eq!(["", "d", "d/s", "children"].map(time), [4000, 1000, 2000, 3000]);
    assert_eq!(fs::read_to_string(branch.join("d/f")).unwrap(), "replaced");
    assert!(["d/by-a-link", "d/.wh.gone", "d/s/made/on/the/way"].iter().all(|name| branch.join(name).exists()));
}

#[test]
fn an_acl_that_a_layer_gives_a_directory_is_not_inherited_by_what_follows() {
    let Some(sandbox) = sandbox::enter() else { return };
    let with_acl = sandbox.path().join("with-acl");
    fs::create_dir(&with_acl).unwrap();
    run(Command::new("setfacl").args(["-d", "-m", "u:1002:rwx"]).arg(&with_acl));
    let mut acl = [0; 256];
    let length = rustix::fs::getxattr(&with_acl, "system.posix_acl_default", &mut acl).unwrap();
    let bequest = pax(&[("SCHILY.xattr.system.posix_acl_default", &acl[..length])]);
    let layer = archive(&[
        file("d/before", ""),
        [bequest, member("d/", b'5', b"", "")].concat(),
        file("d/f", ""),
        member("d/s/", b'5', b"", ""),
        file("d/made/f", ""),
    ]);
    let (layer, branch) = place(&sandbox, "acl", &layer);
    assert_silent(&apply(&layer, &branch));
    let has = |name: &str, acl: &str| rustix::fs::getxattr(branch.join(name), acl, &mut [0; 256]).is_ok();
    assert!(has("d", "system.posix_acl_default"));
    for name in ["d/before", "d/f", "d/s", "d/made", "d/made/f"] {
        assert!(!has(name, "system.posix_acl_access") && !has(name, "system.posix_acl_default"), "{name}");
    }
}

#[test]
fn a_directory_with_something_in_it_is_refused_and_stays() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let layer = branches.at("layer.tar");
    fs::write(&layer, archive(&[file("f", "f")])).unwrap();
    branches.file("1/x", "x");
    let refused = apply(&layer, &branches.at("1"));
    assert_eq!((refused.status, names(&branches.at("1")).unwrap().len()), (Some(1), 1));
    assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
    for (place, why) in [("1/x", "directory"), ("nowhere/branch", "No such file"), ("mnt/../../../../../..", "")] {
        let outcome = apply(&layer, &branches.at(place));
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{place}: {outcome:?}");
        assert!(outcome.stderr.to_lowercase().contains(&why.to_lowercase()), "{place}: {}", outcome.stderr);
    }
    // in use by a mount; afterwards only its work area is left
    let mut union = branches.mount();
    let busy = apply(&union.at("layer.tar"), &union.at("0"));
    assert!(busy.status == Some(1) && busy.stderr.contains("in use"), "{busy:?}");
    union.mounted.umount();
    assert_silent(&apply(&union.at("layer.tar"), &union.at("0")));
    assert_eq!(names(&union.at("0")).unwrap(), ["f"]);
    let beside: Vec<_> = names(&union.at("")).unwrap();
    assert_eq!(beside, ["0", "1", "layer.tar", "mnt"]);
    union.mounted.mount_again();
    assert_eq!(union.list(""), ["f", "x"]);
}

#[test]
fn an_empty_directory_and_a_link_to_one_are_filled() {
    let Some(sandbox) = sandbox::enter() else { return };
    let (layer, branch) = place(&sandbox, "empty", &archive(&[file("f", "f")]));
    fs::create_dir(&branch).unwrap();
    let link = branch.with_file_name("link");
    symlink("branch", &link).unwrap();
    assert_silent(&apply(&layer, &link));
    assert_eq!(fs::read(branch.join("f")).unwrap(), b"f");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&branch).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_full_file_system_leaves_nothing() {
    let Some(sandbox) = sandbox::enter() else { return };
    let (layer, _) = place(&sandbox, "full", &archive(&[file("d/small", "x"), file("d/f", &"x".repeat(4 << 20))]));
    let small = sandbox.path().join("small");
    fs::create_dir(&small).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small));
    let outcome = apply(&layer, &small.join("branch"));
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("d/f") && outcome.stderr.contains("No space left"), "{}", outcome.stderr);
    assert!(names(&small).unwrap().is_empty());
    // the root of a file system cannot be exchanged
    fs::write(&layer, archive(&[file("f", "f")])).unwrap();
    let root = apply(&layer, &small);
    assert!(root.status == Some(1) && root.stderr.contains("mount point"), "{root:?}");
}

#[test]
fn a_user_is_told_what_only_root_can_make() {
    let Some(sandbox) = sandbox::enter() else { return };
    let (layer, branch) = place(&sandbox, "device", &archive(&[member("null", b'3', b"", "")]));
    std::os::unix::fs::chown(layer.parent().unwrap(), Some(1000), Some(1000)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", BIN, "apply"]).arg(&layer).arg(&branch);
    let outcome = finish(&mut command);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("only root"), "{}", outcome.stderr);
    assert_eq!(names(layer.parent().unwrap()).unwrap(), ["layer"]);
}

#[test]
fn a_signal_ends_it_with_nothing_left() {
    let Some(sandbox) = sandbox::enter() else { return };
    let (layer, branch) = place(&sandbox, "signal", b"");
    let mut child = Command::new(BIN)
        .arg("apply")
        .arg("-")
        .arg(&branch)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&archive(&[file("d/f", "x")])[..1024]).unwrap();
    let directory = layer.parent().unwrap();
    let begun = poll(Duration::from_secs(20), || (names(directory).unwrap().len() == 2).then_some(()));
    assert!(begun.is_some(), "nothing is unpacked");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::SIGTERM).unwrap();
    // it goes on to wait for input, and then gives up
    let more: Vec<Vec<u8>> = (0..50).map(|number| file(&format!("d/{number}"), "x")).collect();
    let noticed = poll(Duration::from_secs(20), || {
        let (Ok(()) | Err(_)) = input.write_all(&more.concat());
        child.try_wait().unwrap()
    });
    assert_eq!(noticed.expect("it goes on after a signal").code(), Some(1));
    assert_eq!(names(directory).unwrap(), ["layer"]);
}

#[test]
fn files_with_holes_are_read_in_every_form_of_gnu_tar() {
    let Some(sandbox) = sandbox::enter() else { return };
    let directory = sandbox.path().join("sparse");
    fs::create_dir(&directory).unwrap();
    // More pieces than one header has room for; one that ends in a hole; one that is nothing else; and a whole one.
    let script =
        "for at in $(seq 1 2 80); do printf \"piece $at\" | dd of=many bs=64k seek=$at conv=notrunc status=none; done
        printf x > few; truncate -s 9G few; truncate -s 3M hole; seq 10000 > whole";
    run(Command::new("sh").args(["-ec", script]).current_dir(&directory));
    for (number, format) in
        ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"].iter().enumerate()
    {
        let layer = sandbox.path().join(format!("layer-{number}"));
        let mut tar = Command::new("tar");
        tar.args(["-S", format]);
        if number > 0 {
            tar.arg("--format=posix");
        }
        run(tar.arg("-C").arg(&directory).arg("-cf").arg(&layer).arg("."));
        assert!(fs::metadata(&layer).unwrap().len() < 1 << 20, "{format}: tar has found no holes");
        let branch = sandbox.path().join(format!("branch-{number}"));
        assert_silent(&apply(&layer, &branch));
        for name in ["many", "few", "hole", "whole"] {
            let (before, after) = (directory.join(name), branch.join(name));
            assert_eq!(fs::metadata(&before).unwrap().len(), fs::metadata(&after).unwrap().len(), "{format} {name}");
            if name != "few" {
                assert!(fs::read(&before).unwrap() == fs::read(&after).unwrap(), "{format} {name}");
            }
        }
        let few = fs::metadata(branch.join("few")).unwrap();
        assert!(few.blocks() < 100, "{format}: {} blocks", few.blocks());
        let mut first = [1; 2];
        std::io::Read::read_exact(&mut fs::File::open(branch.join("few")).unwrap(), &mut first).unwrap();
        assert_eq!(first, *b"x\0", "{format}");
    }
}
