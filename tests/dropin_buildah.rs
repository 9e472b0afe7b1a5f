//! buildah with this as its `mount_program`, and what goes to a registry and comes back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/podman.rs"]
mod podman;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tools.rs"]
mod tools;

use std::fs;

use harness::rootless::{self, Way};
use harness::sandbox::{self, Sandbox};
use podman::{Driver, Podman, STEPS, leave_hybrid, prepare};
use registry::Registry;

/// What is done in one working container, one after the other.
const CHANGES: &[&str] = &[
    "rm -rf /opt/dir && mkdir /opt/dir && echo new > /opt/dir/new",
    "rm /srv/file && mv /data /moved && echo more >> /etc/group && chown 5:6 /etc/group",
    "ln /etc/passwd /etc/linked && chown 33:34 /etc/linked && mkfifo -m 640 /root/fifo && chmod 3770 /tmp",
    "cp /bin/busybox /opt/tool && setcap cap_net_raw+ep /opt/tool && rm -rf /empty && mkdir -m 2750 /empty",
];

/// In a namespace that needs no control group and no network.
const CHROOT: [&str; 2] = ["--isolation", "chroot"];

/// What is made: by a file, a layer for each step, and by commands.
const IMAGES: [&str; 2] = ["localhost/built", "localhost/last"];

/// Imports the root, and builds both.
fn build(podman: &Podman<'_>) {
    podman.call(&["import", "-q", "root.tar", "base"]);
    let file = format!("FROM localhost/base\n{}\n", STEPS.join("\n"));
    let context = podman.sandbox.path().join("context");
    fs::write(context.join("Containerfile"), file).unwrap();
    let build = ["build", "-q", "--pull-never", "--layers", "-t", "built"];
    podman.buildah(&[&build[..], &CHROOT, &[context.to_str().unwrap()]].concat());
    let container = podman.buildah(&["from", "--pull-never", "localhost/base"]);
    for change in CHANGES {
        podman.buildah(&[&["run"][..], &CHROOT, &[&container, "--", "sh", "-c", change]].concat());
    }
    podman.buildah(&["copy", "-q", &container, "context/hello", "/opt/dir/hello"]);
    podman.buildah(&["config", "--cmd", "/opt/dir/hello", &container]);
    podman.buildah(&["commit", "-q", "--rm", &container, "localhost/last"]);
}

/// Whatever a store holds after builds is what it holds with the kernel's overlayfs.
fn compare(sandbox: &Sandbox) {
    let kernel = Podman::new(sandbox, "kernel", Driver::Kernel);
    let ours = Podman::new(sandbox, "ours", Driver::Ours);
    build(&kernel);
    build(&ours);
    for image in IMAGES {
        let (expected, found) = (kernel.states(image), ours.states(image));
        assert_eq!(found.len(), expected.len(), "{image}");
        for (layer, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert_eq!(found, expected, "{image} after layer {layer}");
        }
    }
    let last = ours.states("localhost/last").pop().unwrap();
    assert_eq!(last["opt/tool"].split(' ').next_back(), Some("security.capability"), "{}", last["opt/tool"]);
    assert_eq!((&*last["root/fifo"], &*last["tmp"]), ("prw-r----- 0/0 0", "drwxrws--T 0/0 0"));
    assert!(!last.contains_key("opt/dir/sub") && last.contains_key("opt/dir/hello") && !last.contains_key("data"));
    travel(&ours);
}

/// An image goes out of the store in every way, and comes back as it was.
fn travel(podman: &Podman<'_>) {
    let place = podman.sandbox.path();
    let Some(registry) = Registry::start(&place.join("registry"), "", "") else { return };
    let expected = podman.states("localhost/last");
    let remote = format!("docker://{}/some/last:1", registry.host);
    for (to, options) in [
        ("oci:layout:last".to_owned(), &[][..]),
        ("docker-archive:last.tar".to_owned(), &[]),
        (remote, &["--tls-verify=false"]),
    ] {
        podman.buildah(&[&["push", "-q"][..], options, &["localhost/last", &to]].concat());
        podman.call(&["rmi", "-f", "localhost/last"]);
        let id = podman.buildah(&[&["pull", "-q"][..], options, &[&to]].concat());
        podman.buildah(&["tag", &id, "localhost/last"]);
        assert_eq!(podman.states("localhost/last"), expected, "{to}");
    }
}

#[test]
fn what_buildah_makes_is_what_it_makes_with_overlayfs() {
    let Some(sandbox) = sandbox::enter() else { return };
    if prepare(&sandbox) {
        compare(&sandbox);
    }
}

#[test]
fn what_an_ordinary_user_makes_is_the_same_too() {
    const NAME: &str = "what_an_ordinary_user_makes_is_the_same_too";
    if rootless::inside().is_none() {
        let Some(_sandbox) = sandbox::enter() else { return };
        leave_hybrid();
        assert!(!rootless::again(Way::Fusermount, NAME));
        return;
    }
    let Some(sandbox) = sandbox::enter() else { return };
    if prepare(&sandbox) {
        compare(&sandbox);
    }
}
