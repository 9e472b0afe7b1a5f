//! What an image asks for beside its files: volumes, ports, and a signal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{Way, again};
use nix::sched::{CloneFlags, unshare};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::Images;
use launch::{PATIENCE, RLAUNCH, Running, Tree, printed, sh};

/// `base:1`, which asks for volumes: one with content, one that is a link, one that is not there, one that cannot be.
const CONFIG: &str = r#"{"Cmd":["sh"],"Volumes":{"/data":{},"/data/inner":{},"/linked":{},"/none/yet":{}}}"#;

fn base() -> Option<Images> {
    let images = Images::new()?;
    sh(&format!(
        "cd {}; mkdir -p data/inner real; echo one > data/one; ln data/one data/two; chown 3:4 data/one; chmod 4755 data/one; ln -s one data/link
        chown 5:6 data; chmod 1770 data; touch -d @1000 data; echo i > data/inner/i; echo r > real/r; ln -s real linked; setfattr -n user.x -v y data/one",
        images.tree.path("").display()
    ));
    let hidden = images.layer(&[("data/three", "3"), ("real/.wh.gone", "")]);
    images.docker("base", CONFIG, &[images.base(), hidden]);
    images.print(&["import", "base"]);
    Some(images)
}

fn rlaunch(words: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).args(words))
}

const LOOK: &str = "stat -c '%n %A %u:%g %h' /data/one /data/two /data/inner; stat -c '%n %A %u:%g' /data; readlink /data/link
    cat /data/three /data/inner/i /linked/r; ls -A /none/yet; ls -A /data; grep -c -E ' /(data|data/inner|real|none/yet) ' /proc/self/mountinfo";
/// The directory itself is that of the layer on top, which has it, too.
const SEEN: &str = "/data/one -rwsr-xr-x 3:4 2\n/data/two -rwsr-xr-x 3:4 2\n/data/inner drwxr-xr-x 0:0 2\n/data drwxr-xr-x 0:0\none\n\
    3i\nr\ninner\nlink\none\nthree\ntwo\n4\n";

#[test]
fn volumes_of_an_image_begin_with_its_content_and_go_with_the_container() {
    let Some(images) = base() else { return };
    assert_eq!(images.run(&["base:1", "sh", "-c", LOOK]), SEEN);
    // They are written also where the root is not, and each container has its own.
    let write = "echo new > /data/new; rm /data/three; echo x > /none/yet/x; echo no 2>/dev/null > /no || echo kept";
    assert_eq!(images.run(&["base:1", "--read-only", "sh", "-c", write]), "kept\n");
    assert_eq!(images.run(&["base:1", "sh", "-c", "cat /data/three; ls /none/yet"]), "3");
    // Nothing is left of them.
    let left =
        finish(Command::new("find").args(["/var/lib/rlaunch", "/var/tmp", "-maxdepth", "3", "-name", "volume%*"]));
    assert_eq!(left.stdout, "");
    // What was asked for counts, and a volume in what was asked for is in it.
    let own = images.tree.beside("own").display().to_string();
    fs::create_dir(&own).unwrap();
    let given = format!("{own}:/data");
    images.run(&[
        "base:1",
        "-v",
        &given,
        "sh",
        "-c",
        "echo mine > /data/mine; echo in > /data/inner/in; ls /data/inner",
    ]);
    assert!(Path::new(&own).join("mine").exists() && !Path::new(&own).join("inner/in").exists());
    assert_eq!(images.run(&["base:1", "--tmpfs", "/none/yet", "stat", "-f", "-c", "%T", "/none/yet"]), "tmpfs\n");
    // In memory all that is written is one.
    assert_eq!(
        images.run(&["base:1", "--tmpfs-top=16m", "sh", "-c", "echo m > /data/m; cat /data/m /data/three"]),
        "m\n3"
    );
}

#[test]
fn volumes_of_a_container_that_is_kept_stay_and_are_in_no_commit() {
    let Some(images) = base() else { return };
    let script = "echo x >> /data/count; echo y > /top; wc -l < /data/count; ls /data/inner; rm -f /data/inner/i";
    let first = rlaunch(&["--name", "keeps", "--image", "base:1", "sh", "-c", script]);
    assert_eq!((first.status, first.stdout.as_str()), (Some(0), "1\ni\n"), "{first:?}");
    let second = rlaunch(&["start", "--attach", "keeps"]);
    assert_eq!((second.status, second.stdout.as_str()), (Some(0), "2\n"), "{second:?}");
    printed(rlaunch(&["commit", "keeps", "made"]));
    assert_eq!(images.run(&["made", "sh", "-c", "cat /top; ls /data"]), "y\ninner\nlink\none\nthree\ntwo\n");
    assert_eq!(rlaunch(&["rm", "-v", "keeps"]).status, Some(0));
    let left = finish(Command::new("find").args(["/var/lib/rlaunch", "-maxdepth", "4", "-name", "volume%*"]));
    assert_eq!(left.stdout, "");
    // A directory that is kept has them as well.
    let kept = images.tree.beside("kept").display().to_string();
    images.run(&["base:1", "--keep", &kept, "sh", "-c", "echo k > /data/k"]);
    assert_eq!(images.run(&["base:1", "--keep", &kept, "sh", "-c", "cat /data/k"]), "k\n");
    assert!(Path::new(&kept).join("volume%data/k").exists());
}

#[test]
fn a_volume_that_cannot_be_is_told() {
    let Some(images) = Images::new() else { return };
    images.docker(
        "odd",
        r#"{"Cmd":["true"],"Volumes":{"/":{},"relative":{},"/a/../b":{},"/proc/x":{},"/etc/passwd":{}}}"#,
        &[images.base()],
    );
    images.print(&["import", "odd"]);
    let odd = rlaunch(&["--image", "odd:1", "true"]);
    assert!(odd.status.is_some_and(|status| status != 0), "nothing is mounted in /proc or on a file: {odd:?}");
    assert_eq!(odd.stderr.matches("asks for a volume that cannot be").count(), 3, "{odd:?}");
}

#[test]
fn all_ports_that_an_image_exposes_are_published_where_there_is_room() {
    if tools::find("pasta").is_none() || tools::find("ip").is_none() {
        return;
    }
    let Some(images) = Images::new() else { return };
    images.docker("ports", r#"{"Cmd":["sh"],"ExposedPorts":{"80/tcp":{},"90-91":{},"53/udp":{}}}"#, &[images.base()]);
    images.print(&["import", "ports"]);
    let alone = rlaunch(&["-P", "--image", "ports:1", "true"]);
    assert!(alone.status == Some(125) && alone.stderr.contains("add --net pasta"), "{alone:?}");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    sh("ip link set lo up; ip link add out type veth peer name in; ip link set out up; ip link set in up
        ip addr add 198.51.100.2/24 dev out; ip route add default via 198.51.100.1");
    let said = images.tree.beside("said");
    let serve = "nc -l -p 91 -e sh -c 'read hello; echo heard $hello; cat' & until grep -q ':005B .* 0A ' /proc/net/tcp*; do sleep 0.02; done; echo ready; wait";
    let mut command = Command::new(RLAUNCH);
    command.args(["--net=pasta", "--publish-all", "--image", "ports:1", "sh", "-c", serve]);
    let running = Running::start(command.stderr(fs::File::create(&said).unwrap()));
    let said = fs::read_to_string(said).unwrap();
    let ports: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("rlaunch: note: ")).collect();
    assert_eq!(ports.len(), 4, "{said}");
    let line = ports.iter().find(|line| line.ends_with(":91")).unwrap();
    let port: u16 = line.strip_prefix("90-91 is published: ").unwrap().strip_suffix(":91").unwrap().parse().unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(b"me\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    assert_eq!(answer, "heard me\n");
    drop(stream);
    assert_eq!(running.wait().0, Some(0));
}

#[test]
fn a_signal_without_a_name_asks_a_container_to_end() {
    let Some(images) = Images::new() else { return };
    // As systemd is asked.
    images.docker("stops", r#"{"Cmd":["sh"],"StopSignal":"SIGRTMIN+3"}"#, &[images.base()]);
    images.print(&["import", "stops"]);
    let script =
        "trap 'echo heard; exit 3' 37; trap 'echo other' 38; trap '' TERM; echo ready; while :; do sleep 0.1; done";
    for first in ["--init", "--no-init"] {
        let mut command = Command::new(RLAUNCH);
        let mut running =
            Running::start(command.args([first, "--name", "stops", "--rm", "--image", "stops:1", "sh", "-c", script]));
        assert_eq!(rlaunch(&["kill", "-s", "RTMIN+4", "stops"]).status, Some(0));
        assert_eq!(running.line(), "other", "{first}");
        let outcome = rlaunch(&["stop", "stops"]);
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        assert_eq!(running.wait(), (Some(3), "heard\n".to_owned()), "{first}");
    }
    // Whoever is ended by one has ended.
    for (script, status) in [("kill -40 $$", 168), ("sleep 1000 & kill -40 $!; wait $!; echo $?", 0)] {
        let outcome = rlaunch(&["--image", "stops:1", "sh", "-c", script]);
        assert_eq!(outcome.status, Some(status), "{outcome:?}");
        assert_eq!(outcome.stdout, if status == 0 { "168\n" } else { "" }, "{outcome:?}");
    }
    assert!(rlaunch(&["kill", "-s", "RTMIN+99", "stops"]).stderr.contains("'RTMIN+99' is no signal"));
}

#[test]
fn an_ordinary_user_has_volumes() {
    if !again(Way::Fusermount, "an_ordinary_user_has_volumes") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    sh(&format!(
        "mkdir -p {0}/data; echo one > {0}/data/one; chmod 750 {0}/data; mkdir {1}",
        tree.path("").display(),
        tree.beside("context").display()
    ));
    fs::write(tree.beside("context/Dockerfile"), "FROM tree\nVOLUME /data\n").unwrap();
    for path in [None, Some("/usr/lib")] {
        drop(fs::remove_dir_all(tree.beside("data")));
        let run = |words: &[&str]| {
            let mut command = Command::new(RLAUNCH);
            command.args(words).current_dir(tree.beside("")).env("XDG_DATA_HOME", tree.beside("data"));
            if let Some(path) = path {
                command.env("PATH", path);
            }
            let outcome = finish(&mut command);
            assert_eq!(outcome.status, Some(0), "{words:?}: {outcome:?}");
            outcome.stdout
        };
        run(&["image", "import", "tree"]);
        run(&["image", "build", "-q", "-t", "made", "context"]);
        let script =
            "echo x >> /data/x; cat /data/one /data/x; stat -c '%A %u' /data; grep -c ' /data ' /proc/self/mountinfo";
        assert_eq!(
            run(&["--rm", "--name", "gone", "--image", "made", "sh", "-c", script]),
            "one\nx\ndrwxr-x--- 0\n1\n"
        );
        assert_eq!(run(&["--name", "stays", "--image", "made", "sh", "-c", script]), "one\nx\ndrwxr-x--- 0\n1\n");
        assert_eq!(run(&["start", "--attach", "stays"]), "one\nx\nx\ndrwxr-x--- 0\n1\n");
        run(&["rm", "stays"]);
    }
}
