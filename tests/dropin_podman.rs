//! podman with this as its `mount_program`: what it imports, builds, commits and exports is what it does with the
//! kernel's overlayfs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/podman.rs"]
mod podman;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::finish;
use harness::rootless::{self, Way};
use harness::sandbox;
use podman::{Driver, Podman, STEPS, State, build, leave_hybrid, listing, prepare};

#[test]
fn each_layer_of_a_build_holds_what_overlayfs_makes_of_it() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let kernel = Podman::new(&sandbox, "kernel", Driver::Kernel);
    let ours = Podman::new(&sandbox, "ours", Driver::Ours);
    build(&kernel, "--layers");
    build(&ours, "--layers");
    let (expected, found) = (kernel.states("built"), ours.states("built"));
    assert_eq!(expected.len(), 1 + STEPS.len());
    assert_eq!(found.len(), expected.len());
    for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert_eq!(found, expected, "after layer {step}");
    }
    let last = found.last().unwrap();
    assert_eq!(last["etc/linked"], "-rw-r--r-- 33/34 30 also etc/linked");
    assert_eq!((last["root/fifo"].as_str(), last["empty"].as_str()), ("prw-r----- 0/0 0", "drwxrws--- 0/0 0"));
    assert!(!last.contains_key("opt/dir/new") && last["opt/dir"].starts_with('-'));
}

#[test]
fn a_container_starts_though_somebody_stays_in_what_was_its_mount() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    podman.call(&["import", "-q", "root.tar", "base"]);
    podman.shell(&["--name", "one"], "base", "cat /opt/written || echo first > /opt/written");
    let opt = PathBuf::from(podman.call(&["mount", "one"])).join("opt");
    let stays = fs::File::open(&opt).unwrap();
    podman.call(&["umount", "one"]);
    assert_eq!(podman.call(&["start", "-a", "one"]), "first");
    let change = rustix::fs::mkdirat(&stays, "new", rustix::fs::Mode::RWXU);
    assert_eq!(change, Err(rustix::io::Errno::ROFS));
}

#[test]
fn ordinary_users_build_run_and_commit() {
    const NAME: &str = "ordinary_users_build_run_and_commit";
    if rootless::inside().is_none() {
        let Some(_sandbox) = sandbox::enter() else { return };
        leave_hybrid();
        // in a namespace of its own below this one
        assert!(!rootless::again(Way::Fusermount, NAME));
        return;
    }
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    build(&podman, "--layers=false");
    let script = "rm /moved/deep/b; echo z > /opt/z; chown 5:6 /opt/z; mkdir -p /srv/new; ls /moved/deep";
    assert_eq!(podman.shell(&["--name", "one"], "built", script), "");
    podman.call(&["commit", "-q", "one", "two"]);
    let states = podman.states("two");
    let last = states.last().unwrap();
    assert_eq!(last["etc/linked"], "-rw-r--r-- 33/34 30 also etc/linked");
    assert_eq!((&*last["opt/z"], &*last["empty"]), ("-rw-r--r-- 5/6 2", "drwxrws--- 0/0 0"));
    assert!(!last.contains_key("moved/deep/b") && last.contains_key("moved/deep"), "{last:?}");
    assert_eq!(
        podman.shell(&["--rm"], "two", "stat -c %u:%g:%a /opt/z /tmp /etc/linked"),
        "5:6:644\n0:0:1777\n33:34:644"
    );
    mount_volumes_and_images(&podman);
    // what runs is seen from the namespace of the user, where podman has it mounted
    podman.shell(&["-d", "--name", "runs"], "two", "echo seen > /opt/seen; cat < /root/fifo");
    let script = "at=$(podman mount runs) && cat $at/opt/hello && echo && for i in 0 1 2 3 4 5 6 7 8 9; do \
                  test -s $at/opt/seen && break; sleep 1; done; cat $at/opt/seen && podman umount runs";
    let seen = podman.call(&["unshare", "sh", "-c", script]);
    assert_eq!(seen.lines().take(2).collect::<Vec<_>>(), ["hello", "seen"]);
    let masked = Podman::new(&sandbox, "masked", Driver::Masked);
    keep_owners_in_attributes(&masked, "0:0 644");
}

/// Volumes and images that are mounted in a container; what is written there changes nothing outside.
fn mount_volumes_and_images(podman: &Podman<'_>) {
    let source = podman.sandbox.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "source").unwrap();
    let volume = format!("{}:/vol:O", source.display());
    let script = "echo changed > /vol/file; rm -f /vol/gone; echo new > /vol/new; cat /vol/file";
    assert_eq!(podman.shell(&["--rm", "-v", &volume], "base", script), "changed");
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "source");
    assert!(!source.join("new").exists());
    // the lower directory is a mount of ours
    let image = "type=image,source=localhost/base,target=/image";
    assert_eq!(podman.shell(&["--rm", "--mount", image], "base", "cat /image/srv/file"), "file");
}

/// Owners and modes where a store keeps them beside the files; of `data/a` it is this.
fn keep_owners_in_attributes(podman: &Podman<'_>, of_data: &str) {
    podman.call(&["import", "-q", "root.tar", "base"]);
    let script = "stat -c '%u:%g %a' /data/a; echo x > /data/a; chown 9:9 /srv/file; stat -c %u:%g /data/a /srv/file";
    let owner = of_data.split(' ').next().unwrap();
    assert_eq!(podman.shell(&["--name", "one"], "base", script), format!("{of_data}\n{owner}\n9:9"));
    podman.call(&["commit", "-q", "one", "two"]);
    let states = podman.states("two");
    let last = states.last().unwrap();
    let slashed = owner.replace(':', "/");
    assert_eq!((&*last["data/a"], &*last["srv/file"]), (&*format!("-rw-r--r-- {slashed} 2"), "-rw-r--r-- 9/9 4"));
}

#[test]
fn containers_run_are_changed_and_committed() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    podman.call(&["import", "-q", "root.tar", "base"]);
    let script = "rm -rf /opt/dir; mkdir /opt/dir; echo z > /opt/dir/z; rm /srv/file; ln /etc/passwd /etc/p2; chown 3 /etc/p2; ls /opt/dir";
    assert_eq!(podman.shell(&["--name", "one"], "base", script), "z");
    let mut diff: Vec<String> = podman.call(&["diff", "one"]).lines().map(str::to_owned).collect();
    diff.retain(|line| !line.contains("/run") && !line.contains("/etc/mtab"));
    diff.sort();
    let expected = ["A /etc/p2", "A /opt/dir/z", "C /etc", "C /srv", "D /opt/dir/a", "D /opt/dir/sub", "D /srv/file"];
    assert!(expected.iter().all(|line| diff.iter().any(|found| found == line)), "{diff:?}");
    // into it, out of it, and into what is committed
    fs::write(sandbox.path().join("given"), "given").unwrap();
    podman.call(&["cp", "given", "one:/opt/dir/given"]);
    podman.call(&["cp", "one:/opt/dir/z", "taken"]);
    assert_eq!(fs::read_to_string(sandbox.path().join("taken")).unwrap(), "z\n");
    podman.call(&["commit", "-q", "one", "two"]);
    let seen = podman.shell(&["--rm"], "two", "cat /opt/dir/*; ls /srv; stat -c '%h %a' /etc/p2 /tmp; ls -a /opt");
    assert_eq!(seen, "givenz\n2 644\n2 1777\n.\n..\ndir");
    podman.call(&["export", "-o", "exported.tar", "one"]);
    let exported: State = listing(&sandbox.path().join("exported.tar")).into_iter().collect();
    assert!(exported.contains_key("opt/dir/given") && !exported.contains_key("srv/file"), "{exported:?}");
    assert_eq!(exported["data/a"], "-rw-r--r-- 7/8 1");
    // out of the store and back
    podman.call(&["push", "-q", "two", "oci:layout:two"]);
    podman.call(&["save", "-q", "-o", "two.tar", "two"]);
    podman.call(&["rm", "-f", "-t", "0", "one"]);
    podman.call(&["rmi", "-f", "two"]);
    podman.call(&["load", "-q", "-i", "two.tar"]);
    podman.call(&["pull", "-q", "oci:layout:two"]);
    assert_eq!(podman.shell(&["--rm"], "two", "cat /opt/dir/given"), "given");
    // one layer in the place of all
    podman.build(&["--squash-all", "-t", "flat"], "FROM localhost/two\nRUN rm /opt/dir/given\n");
    let [flat] = &podman.states("flat")[..] else { panic!("one layer") };
    assert!(flat.contains_key("opt/dir/z") && !flat.contains_key("opt/dir/given"));
}

/// All that stands below a directory, and what files hold.
fn tree(root: &Path) -> State {
    let told = finish(Command::new("find").arg(root).args(["-mindepth", "1", "-printf", "%P\t%y %m %U:%G %n %l\n"]));
    assert_eq!((told.status, &*told.stderr), (Some(0), ""));
    let entry = |line: &str| {
        let (path, about) = line.split_once('\t').unwrap();
        let content = if about.starts_with('f') { fs::read(root.join(path)).unwrap() } else { Vec::new() };
        (path.to_owned(), format!("{about} {} {:?}", content.len(), content.get(..16).unwrap_or(&content)))
    };
    told.stdout.lines().map(entry).collect()
}

#[test]
fn a_store_of_fuse_overlayfs_is_read_and_given_back() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    // both of one store
    let ours = Podman::new(&sandbox, "store", Driver::Ours);
    let ours_conf = fs::read_to_string(ours.store().join("storage.conf")).unwrap();
    let debians = Podman::new(&sandbox, "store", Driver::Debians);
    let debians_conf = fs::read_to_string(ours.store().join("storage.conf")).unwrap();
    let changed = |conf: &str, change: &dyn Fn(&Path)| {
        fs::write(ours.store().join("storage.conf"), conf).unwrap();
        let at = PathBuf::from(ours.call(&["mount", "one"]));
        change(&at);
        let seen = tree(&at);
        ours.call(&["umount", "one"]);
        seen
    };
    debians.call(&["import", "-q", "root.tar", "base"]);
    debians.call(&["create", "--name", "one", "base", "sh"]);
    let theirs = changed(&debians_conf, &|at| {
        fs::remove_dir_all(at.join("opt/dir")).unwrap();
        fs::create_dir(at.join("opt/dir")).unwrap();
        fs::write(at.join("opt/dir/z"), "z").unwrap();
        fs::remove_file(at.join("srv/file")).unwrap();
        fs::write(at.join("etc/group"), "changed").unwrap();
    });
    assert!(theirs.contains_key("opt/dir/z") && !theirs.contains_key("opt/dir/a") && !theirs.contains_key("srv/file"));
    assert_eq!(without_links(&changed(&ours_conf, &|_| {})), without_links(&theirs));
    let more = changed(&ours_conf, &|at| {
        fs::remove_dir_all(at.join("data")).unwrap();
        fs::create_dir(at.join("data")).unwrap();
        fs::write(at.join("data/new"), "new").unwrap();
        fs::remove_file(at.join("opt/dir/z")).unwrap();
        fs::write(at.join("srv/file"), "again").unwrap();
        fs::remove_file(at.join("etc/group")).unwrap();
    });
    assert!(more.contains_key("data/new") && !more.contains_key("data/a") && !more.contains_key("etc/group"));
    assert_eq!(without_links(&changed(&debians_conf, &|_| {})), without_links(&more));
    assert_eq!(without_links(&changed(&ours_conf, &|_| {})), without_links(&more));
}

/// Without the link counts of directories, of which each says what it likes.
fn without_links(tree: &State) -> State {
    let mut tree = tree.clone();
    for told in tree.values_mut().filter(|told| told.starts_with('d')) {
        let words: Vec<&str> = told.split(' ').collect();
        *told = words[..3].join(" ");
    }
    tree
}

#[test]
fn volumes_images_and_mapped_owners_are_mounted_by_it() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    podman.call(&["import", "-q", "root.tar", "base"]);
    mount_volumes_and_images(&podman);
    let mapped = ["--name", "mapped", "--uidmap", "0:200000:65536", "--gidmap", "0:300000:65536"];
    let script =
        "mkdir /made && echo x > /made/file && chown 5:6 /made/file && stat -c %u:%g /made /made/file /data/a /";
    assert_eq!(podman.shell(&mapped, "base", script), "0:0\n5:6\n7:8\n0:0");
    podman.call(&["commit", "-q", "mapped", "mapped"]);
    let states = podman.states("mapped");
    let last = states.last().unwrap();
    assert_eq!((&*last["made"], &*last["made/file"]), ("drwxr-xr-x 0/0 0", "-rw-r--r-- 5/6 2"));
    assert_eq!(last["data/a"], "-rw-r--r-- 7/8 1");
    assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o666, 0o666);
}

#[test]
fn owners_and_modes_that_a_store_keeps_in_attributes_come_out_right() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "masked", Driver::Masked);
    keep_owners_in_attributes(&podman, "7:8 644");
}
