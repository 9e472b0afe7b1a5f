//! Images: they get into the store in every form, run, and leave it; nothing half-made is ever in it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::mount::finish;

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE, sha256};
use launch::{RLAUNCH, Running, sh};

const PLAIN: &str = r#"{"Cmd":["sh"]}"#;

#[test]
fn layers_are_branches_and_what_they_hide_is_hidden() {
    let Some(images) = Images::new() else { return };
    let second = images.layer(&[("srv/a", "lower"), ("srv/b", "lower"), ("dir/x", ""), ("dir/y", "")]);
    let third = images.layer(&[("srv/a", "upper"), ("srv/.wh.b", ""), ("dir/.wh..wh..opq", ""), ("dir/z", "")]);
    // One layer may be there twice.
    images.docker("stack", PLAIN, &[images.base(), second.clone(), third.clone(), second, third]);
    images.print(&["import", "stack"]);
    let script = "cat /srv/a; ls -A /srv /dir; echo new > /srv/a; rm /srv/a; ls /srv";
    assert_eq!(images.run(&["stack:1", "sh", "-c", script]), "upper/dir:\nz\n\n/srv:\na\n");
    // What a container writes is its own.
    assert_eq!(images.run(&["stack:1", "cat", "/srv/a"]), "upper");
    assert_eq!(fs::read_dir(Path::new(STORE).join("layers")).unwrap().count(), 3);
}

#[test]
fn every_form_is_read_and_written_and_comes_back_the_same() {
    let Some(images) = Images::new() else { return };
    images.docker("first", r#"{"Cmd":["cat","/etc/motd"]}"#, &[images.base(), images.layer(&[("etc/motd", "hello")])]);
    let id = images.print(&["import", "first"]).split_whitespace().nth(1).unwrap().to_owned();
    for (form, output) in [("oci", "one"), ("oci-archive", "one.tar"), ("docker-archive", "docker.tar")] {
        images.print(&["export", "first:1", "--format", form, "-o", output]);
        let again = format!("again-{output}");
        // Into an empty store, so that all of it comes from there.
        images.print(&["rm", "first:1"]);
        assert_eq!(images.held(), [] as [std::path::PathBuf; 0], "{form}");
        assert_eq!(images.print(&["import", output]), format!("first:1 {id}\n"), "{form}");
        images.print(&["export", "first:1", "--format", form, "-o", &again]);
        let at = |name: &str| images.tree.beside(name).display().to_string();
        sh(&format!("diff -r {} {}", at(output), at(&again)));
        assert_eq!(images.run(&["first:1"]), "hello", "{form}");
    }
    // Compressed as a whole, and as a stream.
    sh(&format!(
        "gzip {0}; zstd -q --rm {1}",
        images.tree.beside("docker.tar").display(),
        images.tree.beside("one.tar").display()
    ));
    for name in ["docker.tar.gz", "one.tar.zst"] {
        assert_eq!(images.print(&["import", name]), format!("first:1 {id}\n"));
    }
}

#[test]
fn a_root_file_system_becomes_an_image_of_one_layer() {
    let Some(images) = Images::new() else { return };
    sh(&format!(
        "cd {}; mkdir etc/opt; chmod 2750 etc/opt; chown 3:5 etc/opt; ln etc/passwd etc/passwd2; touch -d @1000 etc/passwd; tar -czf ../packed.tar.gz .",
        images.tree.path("").display()
    ));
    assert!(images.print(&["import", "tree"]).starts_with("tree:latest sha256:"));
    assert!(images.print(&["import", "packed.tar.gz", "--name", "other:2"]).starts_with("other:2 sha256:"));
    for name in ["tree", "other:2"] {
        let script = "stat -c '%a %u %g' /etc/opt; stat -c '%h %Y' /etc/passwd; busybox true";
        assert_eq!(images.run(&[name, "sh", "-c", script]), "2750 3 5\n2 1000\n");
        // Nothing says what to run.
        let outcome = finish(Command::new(RLAUNCH).args(["--image", name]));
        assert_eq!(outcome.status, Some(125), "{outcome:?}");
        assert!(outcome.stderr.contains("does not say what to run (give a command)"), "{outcome:?}");
    }
}

#[test]
fn an_archive_of_any_form_may_come_on_standard_input() {
    let Some(images) = Images::new() else { return };
    images.docker("first", r#"{"Cmd":["cat","/etc/motd"]}"#, &[images.base(), images.layer(&[("etc/motd", "hello")])]);
    images.print(&["import", "first"]);
    let script = |script: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -o pipefail; {script}")]).env("R", RLAUNCH);
        finish(command.current_dir(images.tree.beside("")))
    };
    for form in ["oci-archive", "docker-archive"] {
        for filter in ["cat", "gzip", "zstd -q"] {
            let pipe =
                format!("$R image export first:1 --format {form} -o - | {filter} | $R image import --name second -");
            let outcome = script(&pipe);
            assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{form} {filter}");
            assert_eq!(images.run(&["second"]), "hello", "{form} {filter}");
        }
    }
    // A root file system has no name of its own.
    let outcome = script("tar -cz -C tree . | $R image import -");
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert!(outcome.stdout.starts_with("sha256:"), "{outcome:?}");
    let held = images.held();
    for (pipe, reason) in [
        ("$R image import - < /dev/null", "cannot read standard input: nothing comes"),
        ("head -c 9999 /dev/urandom | $R image import -", "cannot import standard input: "),
        ("tar -c -C tree . | head -c 99999 | $R image import -", "cannot import standard input: "),
    ] {
        let outcome = script(pipe);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{pipe}: {outcome:?}");
        assert!(outcome.stderr.contains(reason), "{pipe}: {outcome:?}");
        assert_eq!(images.held(), held, "{pipe}");
    }
}

#[test]
fn the_image_says_how_a_command_is_run_where_the_options_do_not() {
    let Some(images) = Images::new() else { return };
    sh(&format!("echo 'web:x:33:34::/home/web:/bin/sh' >> {}", images.tree.path("etc/passwd").display()));
    let config = r#"{"Env":["A=image","B=image"],"Entrypoint":["sh","-c"],"Cmd":["id -u; id -g; pwd; echo $A $B $HOME"],
        "User":"web","WorkingDir":"srv/made","StopSignal":"SIGINT","Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}}}"#;
    images.docker("says", config, &[images.base()]);
    images.docker("shell", r#"{"Cmd":["/bin/sh","-c","echo shell form"]}"#, &[images.base()]);
    images.print(&["import", "says"]);
    images.print(&["import", "shell"]);
    assert_eq!(images.run(&["says:1"]), "33\n34\n/srv/made\nimage image /home/web\n");
    assert_eq!(images.run(&["says:1", "-e", "B=own", "-w", "/", "echo $A $B; pwd"]), "image own\n/\n");
    assert_eq!(images.run(&["says:1", "--entrypoint", "echo", "$A"]), "$A\n");
    assert_eq!(images.run(&["says:1", "--entrypoint", "", "-u", "0", "id", "-u"]), "0\n");
    assert_eq!(images.run(&["says:1", "hostname"]), "says\n");
    assert_eq!(images.run(&["shell:1"]), "shell form\n");
    let details = images.print(&["inspect", "says:1"]);
    for word in ["\"StopSignal\": \"SIGINT\"", "\"/data\": {}", "\"80/tcp\": {}", "\"Type\": \"layers\""] {
        assert!(details.contains(word), "{word}: {details}");
    }
}

#[test]
fn what_is_written_over_an_image_can_be_kept() {
    let Some(images) = Images::new() else { return };
    images.docker("base", PLAIN, &[images.base()]);
    images.print(&["import", "base"]);
    let kept = images.tree.beside("kept").display().to_string();
    images.run(&["base:1", "--keep", &kept, "sh", "-c", "echo kept > /etc/kept; rm /etc/passwd"]);
    let look = "cat /etc/kept; test -e /etc/passwd || echo gone; echo own >> /etc/hosts";
    assert_eq!(images.run(&["base:1", "--keep", &kept, "sh", "-c", look]), "kept\ngone\n");
    // What is the container's own lies in a branch between the two.
    let top = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.join("etc").exists());
    let mut written: Vec<_> =
        fs::read_dir(top.unwrap().join("etc")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    written.sort();
    assert_eq!(written, [".wh.passwd", "kept"]);
    let memory = ["base:1", "--tmpfs-top=16m", "sh", "-c", "echo x > /x; ls /etc/passwd; cat /etc/hostname"];
    assert_eq!(images.run(&memory), "/etc/passwd\nbase\n");
}

#[test]
fn images_have_names_and_ids_and_go_when_nobody_needs_them() {
    let Some(images) = Images::new() else { return };
    let base = images.base();
    images.docker("one", PLAIN, std::slice::from_ref(&base));
    images.docker("two", PLAIN, &[base, images.layer(&[("srv/two", "2")])]);
    images.print(&["import", "one"]);
    let two = images.print(&["import", "two"]);
    let id = two.split("sha256:").nth(1).unwrap().trim();
    images.print(&["tag", "two:1", "localhost/second"]);
    // A short name, and the beginning of an id, are enough.
    for word in ["second", &id[..12], &format!("sha256:{id}")] {
        assert_eq!(images.run(&[word, "cat", "/srv/two"]), "2", "{word}");
    }
    let list = images.print(&["ls"]);
    let names: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["NAME", "localhost/second:latest", "one:1", "two:1"]);
    assert!(images.print(&["history", "two:1"]).contains("2024-05-06T07:08:09Z"));
    let several = images.image(&["rm", id]);
    assert!(several.status == Some(125) && several.stderr.contains("several names"), "{several:?}");
    // A name that another image gets is lost; the image stays without one.
    images.print(&["tag", "one:1", "two:1"]);
    images.print(&["tag", "one:1", "second"]);
    images.print(&["tag", "one:1", "localhost/second"]);
    assert!(images.print(&["ls"]).contains("<none>"));
    assert_eq!(images.run(&[id, "cat", "/srv/two"]), "2");
    images.print(&["rm", id]);
    assert_eq!(images.run(&["two:1", "sh", "-c", "test -e /srv || echo none"]), "none\n");
    images.print(&["rm", "one:1", "two:1", "second", "localhost/second"]);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
    for words in [&["rm", "one:1"][..], &["inspect", "one:1"], &["export", "one:1", "-o", "x"], &["tag", "one:1", "x"]]
    {
        let outcome = images.image(words);
        assert_eq!(outcome.stderr, "rlaunch: there is no image one:1 (see rlaunch image ls)\n");
        assert_eq!(outcome.status, Some(125));
    }
}

#[test]
fn the_layers_of_a_container_that_runs_stay() {
    let Some(images) = Images::new() else { return };
    images.docker("used", PLAIN, &[images.base()]);
    images.print(&["import", "used"]);
    let mut command = Command::new(RLAUNCH);
    command.args(["--image", "used:1", "sh", "-c", "mkfifo /f; echo ready; read x < /f; cat /etc/passwd"]);
    let running = Running::start(&mut command);
    let refused = images.image(&["rm", "used:1"]);
    assert!(refused.status == Some(125) && refused.stderr.contains("a container uses the image"), "{refused:?}");
    images.print(&["rm", "--force", "used:1"]);
    assert_eq!(images.print(&["gc"]), "removed 0 layers and 0 blobs of 0 B; 1 more layers are in use\n");
    let init = running.init();
    fs::write(format!("/proc/{init}/root/f"), "\n").unwrap();
    assert_eq!(running.wait(), (Some(0), "root:x:0:0:root:/root:/bin/sh\n".to_owned()));
    assert!(images.print(&["gc"]).starts_with("removed 1 layers"));
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn the_image_of_a_container_that_runs_stays_even_if_another_one_has_its_layers() {
    let Some(images) = Images::new() else { return };
    images.docker("used", PLAIN, &[images.base()]);
    images.docker("other", PLAIN, &[images.base(), images.layer(&[("etc/a", "a")])]);
    images.print(&["import", "used"]);
    images.print(&["import", "other"]);
    let mut command = Command::new(RLAUNCH);
    command.args(["--rm", "--name", "uses", "--image", "used:1", "sh", "-c", "echo ready; exec sleep 1000"]);
    let running = Running::start(&mut command);
    let refused = images.image(&["rm", "used:1"]);
    assert!(refused.status == Some(125) && refused.stderr.contains("a container uses the image"), "{refused:?}");
    let commit = finish(Command::new(RLAUNCH).args(["commit", "uses", "made:1"]));
    assert_eq!(commit.status, Some(0), "{commit:?}");
    assert_eq!(finish(Command::new(RLAUNCH).args(["rm", "--force", "uses"])).status, Some(0));
    drop(running);
    images.print(&["rm", "used:1", "other:1", "made:1"]);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn what_is_not_what_it_is_said_to_be_is_refused_and_leaves_nothing() {
    let Some(images) = Images::new() else { return };
    let layer = images.layer(&[("etc/a", "a"), ("etc/b", "b")]);
    let cases: [(&str, &str, &str); 6] = [
        ("another", "printf x >> 0.tar", "its content is not sha256:"),
        ("cut", "truncate -s 700 0.tar", "read layer 1: the archive is cut off"),
        ("gone", "rm 0.tar", "read layer 1, 0.tar: No such file or directory"),
        ("no-tar", "head -c 5000 /dev/urandom > 0.tar", "read layer 1: it is no tar archive"),
        ("outside", "sed -i 's|0.tar|../../etc/passwd|' manifest.json", "leads out of the directory"),
        ("numbers", "sed -i 's|\"0.tar\"|\"0.tar\",\"0.tar\"|' manifest.json", "2 layers, its configuration 1"),
    ];
    for (name, damage, reason) in cases {
        let directory = images.docker(name, PLAIN, std::slice::from_ref(&layer));
        sh(&format!("cd {}; {damage}", directory.display()));
        let outcome = images.image(&["import", name]);
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{name}: {outcome:?}");
        assert!(outcome.stderr.contains(reason), "{name}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{name}: {outcome:?}");
        assert_eq!(images.held(), [] as [std::path::PathBuf; 0], "{name}");
    }
    for (words, reason) in [
        (&["import", "missing"][..], "No such file or directory"),
        (&["import", "tree", "--format", "oci"], "not in the form"),
        (&["import", "tree", "--name", "../x"], "is no name of an image"),
        (&["import", "/dev/null"], "cut off"),
    ] {
        let outcome = images.image(words);
        assert_eq!(outcome.status, Some(125), "{words:?}: {outcome:?}");
        assert!(outcome.stderr.contains(reason), "{words:?}: {outcome:?}");
        assert_eq!(images.held(), [] as [std::path::PathBuf; 0], "{words:?}");
    }
}

#[test]
fn blobs_that_do_not_match_their_digests_are_refused() {
    let Some(images) = Images::new() else { return };
    images.docker("good", PLAIN, &[images.base()]);
    images.print(&["import", "good"]);
    images.print(&["export", "good:1", "--format", "oci", "-o", "layout"]);
    images.print(&["rm", "good:1"]);
    let blobs = images.tree.beside("layout/blobs/sha256");
    for entry in fs::read_dir(&blobs).unwrap() {
        let path = entry.unwrap().path();
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        // Somewhere in the middle, where a layer has the content of a file and a document a letter.
        damaged[whole.len() / 2] ^= 1;
        for bytes in [damaged, [&*whole, &[0]].concat(), whole[..whole.len() - 1].to_vec()] {
            fs::write(&path, bytes).unwrap();
            let outcome = images.image(&["import", "layout"]);
            assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{path:?}: {outcome:?}");
            assert_eq!(images.held(), [] as [std::path::PathBuf; 0], "{path:?}");
        }
        fs::write(&path, whole).unwrap();
    }
    images.print(&["import", "layout"]);
    // What is damaged in the store is not handed on.
    let blob = fs::read_dir(Path::new(STORE).join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let largest = blob.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    sh(&format!("printf x | dd of={} bs=1 seek=100000 conv=notrunc status=none", largest.display()));
    let outcome = images.image(&["export", "good:1", "-o", "x.tar"]);
    assert!(outcome.status == Some(125) && outcome.stderr.contains("damaged"), "{outcome:?}");
    assert!(!images.tree.beside("x.tar").exists());
}

/// What scripts do with it: `rlaunch image rm $(rlaunch image ls -q)`.
#[test]
fn programs_are_told_which_images_there_are() {
    let Some(images) = Images::new() else { return };
    assert_eq!((images.print(&["ls", "-q"]), images.print(&["ls", "--json"])), (String::new(), "[]\n".to_owned()));
    images.docker("one", "{}", &[images.base()]);
    images.docker("two", r#"{"User":"2"}"#, &[images.base()]);
    let id = |name: &str| images.print(&["import", name]).split_whitespace().nth(1).unwrap().to_owned();
    let (one, two) = (id("one"), id("two"));
    images.print(&["tag", "one:1", "three:1"]);
    images.print(&["tag", "one:1", "two:1"]);
    let list: serde_json::Value = serde_json::from_str(&images.print(&["ls", "--json"])).unwrap();
    let told: Vec<_> =
        list.as_array().unwrap().iter().map(|line| (line["Name"].as_str(), line["Id"].as_str())).collect();
    let expected = [(None, &two), (Some("one:1"), &one), (Some("three:1"), &one), (Some("two:1"), &one)];
    assert_eq!(told, expected.map(|(name, id)| (name, Some(id.as_str()))));
    assert_eq!((&list[0]["Created"], list[0]["Size"].as_u64() > Some(10_000)), (&"2024-05-06T07:08:09Z".into(), true));
    assert_eq!(images.print(&["list", "--quiet"]), format!("{two}\n{one}\n"));
    assert_eq!(images.print(&["rm", "--force", &two, &one]), "");
    assert_eq!(images.print(&["ls", "-q"]), "");
}

/// A disk that fails must not make the store useless.
#[test]
fn what_is_damaged_is_named_and_can_be_removed_or_brought_again() {
    let Some(images) = Images::new() else { return };
    for name in ["good", "bad"] {
        images.docker(
            name,
            &format!(r#"{{"User":"{}"}}"#, name.len()),
            &[images.base(), images.layer(&[("name", name)])],
        );
        images.print(&["import", name]);
    }
    let details: serde_json::Value = serde_json::from_str(&images.print(&["inspect", "bad:1"])).unwrap();
    let blob = |digest: &serde_json::Value| Path::new(STORE).join("blobs/sha256").join(&digest.as_str().unwrap()[7..]);
    let (config, layer) = (blob(&details[0]["Id"]), blob(&details[0]["Layers"][1]["Digest"]));
    let whole = fs::read(&config).unwrap();
    let damage = |path: &Path, more: &[u8]| fs::write(path, [&fs::read(path).unwrap()[1..], more].concat()).unwrap();
    for bring in [true, false] {
        damage(&config, b"x");
        let outcome = images.image(&["ls"]);
        assert!(
            outcome.stderr.contains("the image bad:1: ") && outcome.stderr.contains("remove it by its name"),
            "{outcome:?}"
        );
        match bring {
            true => drop(images.print(&["import", "bad"])),
            false => assert_eq!(images.print(&["rm", "bad:1"]), ""),
        }
        assert_eq!(images.print(&["ls"]).contains("bad:1"), bring);
        assert!(!bring || fs::read(&config).unwrap() == whole);
    }
    images.print(&["import", "bad"]);
    damage(&layer, b"");
    let export = ["export", "-o", "out.tar", "bad:1"];
    assert_eq!(images.image(&export).status, Some(125));
    images.print(&["import", "bad"]);
    images.print(&export);
    assert_eq!(images.run(&["good:1", "cat", "name"]), "good");
}

#[test]
fn whoever_is_killed_the_store_is_whole() {
    let Some(images) = Images::new() else { return };
    let filler = |seed: usize| images.layer(&[("srv/large", &format!("{seed:8}").repeat(100_000)), ("srv/x", "x")]);
    images.docker("killed", PLAIN, &[images.base(), filler(1), filler(2)]);
    let mut interrupted = 0;
    for step in 0..12 {
        let mut command = Command::new(RLAUNCH);
        command.args(["image", if step % 4 == 3 { "rm" } else { "import" }]);
        command.arg(if step % 4 == 3 { "killed:1" } else { "killed" }).current_dir(images.tree.beside(""));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 9));
        child.kill().unwrap();
        interrupted += usize::from(!child.wait().unwrap().success());
        if step % 4 == 3 {
            // What was left is removed by somebody who is killed as well.
            let mut gc = Command::new(RLAUNCH).args(["image", "gc"]).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(step * 2));
            gc.kill().unwrap();
            gc.wait().unwrap();
        }
        // Whatever the list has is whole.
        let list = images.print(&["ls"]);
        if list.contains("killed:1") {
            assert_eq!(images.run(&["killed:1", "cat", "/srv/x"]), "x");
            images.print(&["export", "killed:1", "-o", "whole.tar"]);
        }
        assert_eq!(fs::read_dir(Path::new(STORE).join("tmp")).unwrap().count(), 0, "after {step}");
    }
    assert!(interrupted > 0, "nothing was interrupted");
    images.print(&["import", "killed"]);
    images.print(&["rm", "killed:1"]);
    images.print(&["gc"]);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn the_store_is_an_image_layout_that_nobody_else_enters() {
    let Some(images) = Images::new() else { return };
    images.docker("one", PLAIN, &[images.base()]);
    images.print(&["import", "one"]);
    assert_eq!(fs::metadata(STORE).unwrap().mode() & 0o7777, 0o700);
    for entry in fs::read_dir(Path::new(STORE).join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), sha256(&path));
    }
    assert_eq!(fs::read_to_string(Path::new(STORE).join("oci-layout")).unwrap(), r#"{"imageLayoutVersion":"1.0.0"}"#);
    // The store can be imported from, as any layout.
    assert!(images.print(&["import", STORE, "--ref", "one:1", "--name", "copy"]).starts_with("copy:latest sha256:"));
}

#[test]
fn memory_is_bounded_whatever_a_layer_holds() {
    let Some(images) = Images::new() else { return };
    // 160 MB of zeros are less than 1 MB as they come.
    let script = "mkdir bomb; cd bomb; truncate -s 160M zeros; tar -cf - zeros | gzip -1 > ../bomb.tar.gz";
    sh(&format!("cd {}; {script}", images.tree.beside("").display()));
    let mut command = Command::new(RLAUNCH);
    command.args(["image", "import", "bomb.tar.gz"]).current_dir(images.tree.beside(""));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!((1..100 << 10).contains(&peak), "{peak} KiB");
}

#[test]
fn the_signal_that_the_image_names_asks_a_container_to_end() {
    let Some(images) = Images::new() else { return };
    let script = "trap 'echo interrupted; exit 3' INT; trap '' TERM; echo ready; while :; do sleep 0.1; done";
    images.docker("stops", r#"{"Cmd":["sh"],"StopSignal":"SIGINT"}"#, &[images.base()]);
    images.docker("odd", r#"{"Cmd":["true"],"StopSignal":"SIGODD"}"#, &[images.base()]);
    images.print(&["import", "stops"]);
    images.print(&["import", "odd"]);
    let mut command = Command::new(RLAUNCH);
    let running = Running::start(command.args(["--name", "stops", "--rm", "--image", "stops:1", "sh", "-c", script]));
    let outcome = finish(Command::new(RLAUNCH).args(["stop", "stops"]));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert_eq!(running.wait(), (Some(3), "interrupted\n".to_owned()));
    let outcome = finish(Command::new(RLAUNCH).args(["--image", "odd:1"]));
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(0), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("stopped by SIGODD, which is not known"), "{outcome:?}");
}

#[test]
fn a_container_on_an_image_is_started_again_with_what_it_has_written() {
    let Some(images) = Images::new() else { return };
    images.docker("again", PLAIN, &[images.base()]);
    images.print(&["import", "again"]);
    let script = "echo x >> /etc/written; wc -l < /etc/written";
    let mut command = Command::new(RLAUNCH);
    command.args(["--name", "again", "--image", "again:1", "sh", "-c", script]);
    assert_eq!(finish(&mut command).stdout, "1\n");
    let outcome = finish(Command::new(RLAUNCH).args(["start", "--attach", "again"]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "2\n"), "{outcome:?}");
    assert_eq!(finish(Command::new(RLAUNCH).args(["rm", "again"])).status, Some(0));
}
