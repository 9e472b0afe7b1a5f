//! What layers say is what a container sees, whoever unpacks them, and whatever they hold.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{Way, again};
use harness::sandbox::run;

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, Tree, sh};

const PLAIN: &str = r#"{"Cmd":["sh"]}"#;

/// A member of an archive without content.
fn member(name: &str, kind: tar::EntryType, target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    // As it is: set_path would refuse what is hostile.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(0);
    for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime] {
        set(&mut header, 0);
    }
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

#[test]
fn a_hard_link_to_a_layer_below_is_a_copy_of_what_is_there() {
    let Some(images) = Images::new() else { return };
    let link = |name, target| member(name, tar::EntryType::Link, target);
    let below = images.layer(&[("srv/a", "lower"), ("srv/b", "lower"), ("srv/gone", "")]);
    let above = images.layer(&[("srv/a", "upper"), ("srv/.wh.gone", "")]);
    let links = archive(&[link("srv/first", "srv/a"), link("srv/second", "srv/b"), link("etc/users", "etc/passwd")]);
    images.docker("links", PLAIN, &[images.base(), below.clone(), above.clone(), links]);
    images.print(&["import", "links"]);
    assert_eq!(images.run(&["links:1", "sh", "-c", "cat /srv/first /srv/second; wc -l < /etc/users"]), "upperlower1\n");
    for (name, target) in [("hidden", "srv/gone"), ("nothing", "srv/missing"), ("directory", "srv"), ("out", "../x")] {
        let links = archive(&[link("x", target)]);
        images.docker(name, PLAIN, &[images.base(), below.clone(), above.clone(), links]);
        let outcome = images.image(&["import", name]);
        assert_eq!(outcome.status, Some(125), "{name}: {outcome:?}");
        assert!(outcome.stderr.contains("read layer 4: x is refused: it is a hard link to"), "{name}: {outcome:?}");
    }
}

#[test]
fn a_hostile_layer_reaches_nothing_outside_and_leaves_nothing() {
    let Some(images) = Images::new() else { return };
    let victim = images.tree.beside("victim");
    fs::create_dir(&victim).unwrap();
    let out = victim.to_str().unwrap();
    let (link, file, hard) = (tar::EntryType::Symlink, tar::EntryType::Regular, tar::EntryType::Link);
    let mut huge = tar::Header::new_ustar();
    huge.set_path("huge").unwrap();
    huge.set_mode(0o644);
    huge.set_size(1 << 32);
    huge.set_cksum();
    let cases: [(&str, Vec<Vec<u8>>); 8] = [
        ("dots", vec![member("../../../../../../../../../../../../../etc/x", file, "")]),
        ("dots-inside", vec![member("a/../../x", file, "")]),
        ("through-loop", vec![member("l", link, "l"), member("l/x", file, "")]),
        ("hard-link-out", vec![member("x", hard, "../../../../../etc/passwd")]),
        ("hard-link-by-link", vec![member("l", link, "/etc"), member("x", hard, "l/passwd")]),
        ("reserved", vec![member(".wh...", file, "")]),
        ("whiteout-dir", vec![member(".wh.x/y", file, "")]),
        ("huge", vec![huge.as_bytes().to_vec()]),
    ];
    let before = images.held();
    for (name, members) in cases {
        images.docker(name, PLAIN, &[images.base(), archive(&members)]);
        let outcome = images.image(&["import", name]);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{name}: {outcome:?}");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{name}");
        assert_eq!(images.held(), before, "{name}");
    }
    // An absolute name is one from the root of the layer.
    let absolute = vec![member(&format!("{out}/x"), file, "")];
    // A link leads to where it leads in a container.
    let through_link = vec![member("l", link, out), member("l/x", file, "")];
    let through_relative = vec![member("l", link, &format!("../../../..{out}")), member("l/x", file, "")];
    for (name, members) in
        [("absolute", absolute), ("through-link", through_link), ("through-relative", through_relative)]
    {
        images.docker(name, PLAIN, &[images.base(), archive(&members)]);
        images.print(&["import", name]);
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        assert_eq!(images.run(&[&format!("{name}:1"), "ls", out]), "x\n");
    }
}

/// The layers of an image of busybox and odd entries, as an ordinary user's.
const ODD: &str = "mkdir -p odd/srv; cd odd/srv; echo x > file; ln -s file link; mkdir own; mkfifo fifo; tar -cf ../../odd.tar --owner=33 --group=34 --mode=u+s -C .. .";
const LOOK: &str = "cd /srv; stat -c '%n %F %u %g %a' device fifo file link own; id -u";

/// As root of the machine sees it.
const SEEN: &str = "device character special file 0 0 644\nfifo fifo 33 34 4644\nfile regular file 33 34 4644\nlink symbolic link 33 34 777\nown directory 33 34 4755\n0\n";

fn as_user(way: Option<&str>, tree: &Tree, words: &[&str]) -> Outcome {
    let mut command = Command::new(RLAUNCH);
    command.args(words).current_dir(tree.beside("")).env("XDG_DATA_HOME", tree.beside("data"));
    if let Some(path) = way {
        command.env("PATH", path);
    }
    finish(&mut command)
}

#[test]
fn an_ordinary_user_sees_owners_and_devices() {
    if !again(Way::Fusermount, "an_ordinary_user_sees_owners_and_devices") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    sh(&format!("cd {}; {ODD}", tree.beside("").display()));
    run(Command::new("tar").arg("-C").arg(tree.path("")).arg("-cf").arg(tree.beside("base.tar")).arg("."));
    let odd = fs::read(tree.beside("odd.tar")).unwrap();
    let end = odd.len() - odd.iter().rev().take_while(|byte| **byte == 0).count();
    let members = [odd[..end.next_multiple_of(512)].to_vec(), member("srv/device", tar::EntryType::Char, "")];
    fs::write(tree.beside("odd.tar"), archive(&members)).unwrap();
    write_image(&tree, "user", &["base.tar", "odd.tar"]);
    // Who is alone sees nobody else's files there either: the owners are kept, and shown as root.
    for (way, data, seen) in
        [(None, "ranges", SEEN.to_owned()), (Some("/usr/lib"), "alone", SEEN.replace("33 34", "0 0"))]
    {
        drop(fs::remove_dir_all(tree.beside("data")));
        let imported = as_user(way, &tree, &["image", "import", "user"]);
        assert_eq!(imported.status, Some(0), "{data}: {imported:?}");
        let outcome = as_user(way, &tree, &["run", "--image", "user:1", "sh", "-c", LOOK]);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), seen.as_str()), "{data}: {outcome:?}");
        let removed = as_user(way, &tree, &["image", "rm", "user:1"]);
        assert_eq!(removed.status, Some(0), "{data}: {removed:?}");
        assert_eq!(fs::read_dir(tree.beside("data/rlaunch/images/layers")).unwrap().count(), 0, "{data}");
    }
}

/// Writes what `docker save` would.
fn write_image(tree: &Tree, name: &str, layers: &[&str]) {
    let directory = tree.beside(name);
    fs::create_dir(&directory).unwrap();
    let quoted = |words: Vec<String>| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(",");
    let digests = layers.iter().map(|layer| format!("sha256:{}", images::sha256(&tree.beside(layer)))).collect();
    for layer in layers {
        fs::rename(tree.beside(layer), directory.join(layer)).unwrap();
    }
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#, quoted(digests));
    fs::write(directory.join("config.json"), config).unwrap();
    let layers = quoted(layers.iter().map(|layer| (*layer).to_owned()).collect());
    let list = format!(r#"[{{"Config":"config.json","RepoTags":["{name}:1"],"Layers":[{layers}]}}]"#);
    fs::write(directory.join("manifest.json"), list).unwrap();
}

#[test]
fn an_unpacked_layer_is_as_its_archive_says() {
    let Some(images) = Images::new() else { return };
    let script = "mkdir -p a/deep; cd a; chmod 1777 .; echo 1 > deep/1; chmod 4711 deep/1; chown 7:8 deep/1; touch -d @1234567890.5 deep/1
        setfattr -n user.x -v y deep/1; setcap cap_net_raw+ep deep/1 2>/dev/null || true; ln deep/1 second; ln -s deep/1 link; mkfifo fifo; mknod null c 1 3
        chmod 2750 deep; chown 5:6 deep; touch -d @1000 deep; long=$(printf 'n%.0s' $(seq 200)); mkdir -p $long/$long; echo long > $long/$long/$long; touch -d @2000 .";
    sh(&format!("cd {}; {script}", images.tree.beside("").display()));
    let at = |name: &str| -> PathBuf { images.tree.beside(name) };
    run(Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(at("a"))
        .arg("-czf")
        .arg(at("a.tar.gz"))
        .arg("."));
    images.print(&["import", "a.tar.gz"]);
    let layer = fs::read_dir(Path::new(STORE).join("layers")).unwrap().next().unwrap().unwrap().path().join("layer");
    let look = "find . -printf '%P %y %m %U %G %s %T@ %n %l\\n' | sed -E 's/^([^ ]* d [^ ]* [^ ]* [^ ]*) [0-9]+/\\1/' | sort; getfattr -R -d -m - . | sort; cat ./n*/n*/n* second";
    let seen = |path: &Path| finish(Command::new("sh").args(["-c", look]).current_dir(path)).stdout;
    assert_eq!(seen(&layer), seen(&at("a")));
}
