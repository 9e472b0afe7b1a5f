//! Others read what we write, and we read what they write: skopeo, umoci, podman and buildah.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::mount::finish;
use harness::sandbox::run;

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, sh};

const CONFIG: &str = r#"{"Env":["A=b"],"Cmd":["sh","-c","echo $A; cat /etc/motd"]}"#;

/// An image of three layers in the store, called `ours:1`; one hides what the first has.
fn ours() -> Option<Images> {
    let images = Images::new()?;
    let second = images.layer(&[("etc/motd", "hello"), ("etc/.wh.passwd", ""), ("srv/old/x", "")]);
    let third = images.layer(&[("srv/old/.wh..wh..opq", ""), ("srv/old/y", "y")]);
    images.docker("ours", CONFIG, &[images.base(), second, third]);
    images.print(&["import", "ours"]);
    Some(images)
}

/// Runs a script in the test's directory, and returns what it prints.
#[track_caller]
fn output(images: &Images, script: &str) -> String {
    let outcome = finish(Command::new("sh").args(["-ec", script]).current_dir(images.tree.beside("")));
    assert_eq!(outcome.status, Some(0), "{script}: {outcome:?}");
    outcome.stdout
}

/// Every entry of a tree, with type, mode, owner, length of files, target and content; the root's name is not told.
fn seen(tree: &Path) -> String {
    let look = "find . -mindepth 1 \\( -path ./dev -o -path ./proc -o -path ./sys -o -path ./run \\) -prune -o -printf '%P %y %m %U %G %l\\n' | sort; find . -type f ! -path './dev/*' | sort | xargs sha256sum";
    finish(Command::new("sh").args(["-c", look]).current_dir(tree)).stdout
}

#[test]
fn skopeo_reads_all_forms_that_are_written() {
    if tools::find("skopeo").is_none() {
        return;
    }
    let Some(images) = ours() else { return };
    images.print(&["export", "ours:1", "--format", "oci", "-o", "layout"]);
    images.print(&["export", "ours:1", "-o", "layout.tar"]);
    images.print(&["export", "ours:1", "--format", "docker-archive", "-o", "docker.tar"]);
    let config = output(&images, "skopeo inspect --config --raw oci:layout:ours:1");
    for name in ["oci-archive:layout.tar", "docker-archive:docker.tar:ours:1", &format!("oci:{STORE}:ours:1")] {
        assert_eq!(output(&images, &format!("skopeo inspect --config --raw {name}")), config, "{name}");
        // It checks every digest on the way.
        output(&images, &format!("rm -rf copy; skopeo copy -q {name} dir:copy"));
    }
}

#[test]
fn what_skopeo_writes_is_read_in_every_compression() {
    if tools::find("skopeo").is_none() {
        return;
    }
    let Some(images) = ours() else { return };
    images.print(&["export", "ours:1", "--format", "oci", "-o", "layout"]);
    let expected = images.run(&["ours:1"]);
    for (number, to) in [
        "dir:copy",
        "--dest-compress --dest-compress-format=gzip dir:copy",
        "--dest-compress --dest-compress-format=zstd oci:copy:new",
        "--format=v2s2 --dest-compress dir:copy",
        "docker-archive:copy:theirs:2",
        "oci-archive:copy:theirs:2",
    ]
    .iter()
    .enumerate()
    {
        let options: Vec<_> = to.split(' ').collect();
        let (target, options) = options.split_last().unwrap();
        output(&images, &format!("rm -rf copy; skopeo copy -q {} oci:layout:ours:1 {target}", options.join(" ")));
        let name = format!("copy-{number}:1");
        images.print(&["import", "copy", "--name", &name]);
        assert_eq!(images.run(&[&name]), expected, "{to}");
    }
    // However they are compressed, the layers are the same ones, and there once.
    assert_eq!(fs::read_dir(Path::new(STORE).join("layers")).unwrap().count(), 3);
}

#[test]
fn a_container_sees_what_umoci_unpacks() {
    if tools::find("umoci").is_none() {
        return;
    }
    let Some(images) = ours() else { return };
    images.print(&["export", "ours:1", "--format", "oci", "-o", "layout"]);
    // Layers of umoci itself, with what it does to hide something.
    output(
        &images,
        "umoci tag --image layout:ours:1 base; umoci unpack --image layout:base bundle
        cd bundle/rootfs; rm etc/motd; rm -r srv/old; mkdir srv/old; echo new > srv/old/new; chown 7:9 srv/old; ln bin/busybox bin/second; chmod 1770 srv; cd ../..
        umoci repack --refresh-bundle --image layout:base bundle; umoci config --image layout:base --config.cmd true
        umoci unpack --image layout:base unpacked",
    );
    images.print(&["import", "layout", "--ref", "base", "--name", "umoci"]);
    let copy = images.tree.beside("copied");
    fs::create_dir(&copy).unwrap();
    let script = "cd /; tar -cf - bin etc srv | tar -C /copy -xf -";
    let volume = format!("{}:/copy", copy.display());
    run(Command::new(RLAUNCH).args(["--image", "umoci", "-v", &volume, "sh", "-c", script]));
    let theirs = images.tree.beside("unpacked/rootfs");
    // What is the container's own.
    sh(&format!("cd {}/etc; rm -f hosts hostname resolv.conf mtab", copy.display()));
    assert_eq!(seen(&copy), seen(&theirs));
}

#[test]
fn podman_and_buildah_take_and_give_images() {
    if tools::find("podman").is_none() || tools::find("buildah").is_none() {
        return;
    }
    let Some(images) = ours() else { return };
    let options = "--root=$PWD/storage --runroot=$PWD/runroot --storage-driver=vfs";
    images.print(&["export", "ours:1", "--format", "docker-archive", "-o", "docker.tar"]);
    images.print(&["export", "ours:1", "-o", "oci.tar"]);
    let id = images.print(&["inspect", "ours:1"]);
    let id = id.lines().find_map(|line| line.trim().strip_prefix("\"Id\": \"sha256:")).unwrap()[..64].to_owned();
    for archive in ["docker.tar", "oci.tar"] {
        let script =
            format!("podman {options} load -q -i {archive} >&2; podman {options} images -q --no-trunc | head -1");
        assert_eq!(output(&images, &script).trim(), format!("sha256:{id}"), "{archive}");
    }
    let save = format!(
        "podman {options} save -q --format docker-archive -o saved.tar {id}; podman {options} save -q --format oci-dir -o saved {id}"
    );
    output(&images, &save);
    output(
        &images,
        &format!(
            "buildah {options} push -q {id} oci:pushed:1; buildah {options} push -q {id} docker-archive:pushed.tar:theirs:1"
        ),
    );
    for (number, path) in ["saved.tar", "saved", "pushed", "pushed.tar"].iter().enumerate() {
        let name = format!("back-{number}");
        images.print(&["import", path, "--name", &name]);
        assert_eq!(images.run(&[&name]), "b\nhello", "{path}");
    }
}
