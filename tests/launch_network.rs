//! Networks of a container's own that have a way out by pasta, looked at from inside and from outside.
//!
//! Each test has a network namespace in place of the machine's, with an interface that leads nowhere: it is the host.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use harness::mount::{Outcome, finish, is_alive, poll};
use harness::rootless::{Way, again, inside};
use harness::sandbox;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Recorded, Running, Tree, mounts, name, printed, processes_with, sh, wait_until_gone};

/// The host's address, which the container has as well.
const HOST: &str = "198.51.100.2";
/// An address behind the host's default route.
const ELSEWHERE: &str = "203.0.113.7";

/// Makes the network of this thread, and of what it starts, one of the test's own; false where the test is skipped.
fn host() -> bool {
    if tools::find("pasta").is_none() || tools::find("ip").is_none() {
        return false;
    }
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        sandbox::skip(&format!("it needs a network namespace: {errno}"));
        return false;
    }
    sh(&format!(
        "ip link set lo up; ip link add out type veth peer name in; ip link set out up; ip link set in up
         ip addr add {HOST}/24 dev out; ip addr add {ELSEWHERE}/32 dev lo; ip route add default via 198.51.100.1"
    ));
    true
}

fn prepare() -> Option<Tree> {
    let tree = Tree::new()?;
    host().then_some(tree)
}

/// What a server on this address says. It is spoken to first, and ends when it is left: pasta of 2023 may lose what a
/// server says that does neither.
#[track_caller]
fn hear(address: &str) -> String {
    let stream = TcpStream::connect(address).expect("connect to the server");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    (&stream).write_all(b"hello\n").expect("speak to the server");
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).expect("hear the server");
    line
}

/// Answers one datagram, for as long as the test runs.
fn answer_datagrams(address: &str, text: &'static str) {
    let socket = UdpSocket::bind(address).expect("a socket of the host");
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(text.as_bytes(), from).expect("answer");
        }
    });
}

/// A shell function: a server that answers one connection, once it listens. The port is told in hexadecimal as well.
const SERVE: &str = "serve() { nc -l -p $1 -e sh -c \"read hello; echo $3; cat\" & until grep -q \":$2 .* 0A \" /proc/net/tcp*; do sleep 0.02; done; }";

#[test]
fn published_ports_lead_into_the_container_and_no_others() {
    let Some(tree) = prepare() else { return };
    let published = ["--net=pasta", "-p", "127.0.0.1:8080:80", "-p8082-8083:90-91"];
    let script = format!(
        "{SERVE}; ip -4 -o addr show dev out | awk '{{print $4}}'; ip route | head -n 1; cat /sys/class/net/lo/flags
         serve 80 0050 one; one=$!; serve 91 005B two; two=$!; serve 100 0064 closed; echo ready; wait $one $two; exit 3"
    );
    let mut running = Running::begin(tree.rlaunch().args(published).args(["sh", "-c", &script]));
    assert_eq!(running.line(), format!("{HOST}/24"));
    assert_eq!(running.line().trim(), "default via 198.51.100.1 dev out");
    assert_eq!(running.line(), "0x9");
    assert_eq!(running.line(), "ready");
    // Of all addresses, that of the option; of all ports, those of the options.
    assert!(TcpStream::connect((HOST, 8080)).is_err());
    assert!(TcpStream::connect(("127.0.0.1", 100)).is_err());
    assert_eq!(hear("127.0.0.1:8080"), "one\n");
    assert_eq!(hear(&format!("{HOST}:8083")), "two\n");
    assert_eq!(running.wait().0, Some(3));
    assert!(TcpStream::connect(("127.0.0.1", 8080)).is_err());
}

#[test]
fn datagrams_reach_a_published_port_and_are_answered() {
    let Some(_tree) = prepare() else { return };
    let server = "use IO::Socket::INET; $| = 1;
        my $socket = IO::Socket::INET->new(Proto => 'udp', LocalAddr => '0.0.0.0', LocalPort => 5001) or die;
        print qq(ready\n); while (defined $socket->recv(my $text, 64)) { $socket->send(qq(heard $text)) }";
    let mut command = Command::new(RLAUNCH);
    command.args(["--no-submounts", "--net=pasta", "-p", "5000:5001/udp", "perl", "-e", server]);
    let running = Running::start(&mut command);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let answer = poll(PATIENCE, || {
        let mut bytes = [0; 64];
        socket.send_to(b"you", "127.0.0.1:5000").unwrap();
        socket.recv(&mut bytes).ok().map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned())
    });
    assert_eq!(answer.as_deref(), Some("heard you"));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait(), (Some(143), String::new()));
}

#[test]
fn the_container_reaches_others_but_nothing_on_the_hosts_loopback_interface() {
    let Some(tree) = prepare() else { return };
    let outside = TcpListener::bind((ELSEWHERE, 7000)).unwrap();
    let private = TcpListener::bind("127.0.0.1:7001").unwrap();
    private.set_nonblocking(true).unwrap();
    let (tell, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in outside.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            tell.send(stream.get_ref().peer_addr().unwrap().ip().to_string()).unwrap();
            stream.read_line(&mut String::new()).unwrap();
            stream.get_mut().write_all(b"from outside\n").unwrap();
            // The other end goes with the container.
            drop(std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    let script = format!(
        "(echo hello; sleep 1) | timeout 10 nc {ELSEWHERE} 7000; for address in 127.0.0.1 198.51.100.1 {HOST}; do
         timeout 2 nc -w 1 $address 7001 < /dev/null 2> /dev/null && echo reached $address; done; true"
    );
    let outcome = finish(tree.rlaunch().args(["--net=pasta", "sh", "-c", &script]));
    assert_eq!(printed(outcome), "from outside\n");
    assert_eq!(hear.try_recv().as_deref(), Ok(ELSEWHERE));
    assert!(private.accept().is_err(), "somebody has reached the host's loopback interface");
}

#[test]
fn name_servers_on_the_hosts_loopback_interface_are_asked_through_pasta() {
    let Some(tree) = prepare() else { return };
    let resolver = tree.beside("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
    mount(Some(&resolver), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    answer_datagrams("127.0.0.53:53", "an answer");
    let script = "cat /etc/resolv.conf; perl -e 'use IO::Socket::INET; use IO::Select;
        my $socket = IO::Socket::INET->new(Proto => q(udp), PeerAddr => q(169.254.1.1), PeerPort => 53) or die;
        for (1 .. 20) { $socket->send(q(who)); last if IO::Select->new($socket)->can_read(1) }
        $socket->recv(my $text, 64); print $text'";
    let mut command = Command::new(RLAUNCH);
    let outcome = finish(command.args(["--no-submounts", "--net=pasta", "sh", "-c", script]));
    assert_eq!(printed(outcome), "nameserver 169.254.1.1\noptions edns0\nan answer");
    // A root of its own shows them where it has the file, and a server that was asked for is left as it is.
    fs::write(tree.path("etc/resolv.conf"), "").unwrap();
    let look = |options: &[&str]| printed(finish(tree.rlaunch().args(options).args(["cat", "/etc/resolv.conf"])));
    assert_eq!(look(&["--net=pasta"]), "nameserver 169.254.1.1\noptions edns0\n");
    assert_eq!(look(&["--net=host"]), "nameserver 127.0.0.53\noptions edns0\n");
    assert_eq!(look(&["--net=pasta", "--dns=192.0.2.1"]), "nameserver 192.0.2.1\n");
}

/// The launcher's helper, and pasta, which is its child.
#[track_caller]
fn pasta(running: &Running) -> [Pid; 2] {
    let helper = running.children().into_iter().find(|pid| name(*pid) == "rlaunch: pasta").expect("the helper");
    let list = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).expect("its children");
    let pids: Vec<Pid> = list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect();
    assert_eq!(pids.len(), 1, "{list}");
    [helper, pids[0]]
}

fn nothing_stays() {
    let Some(tree) = prepare_here() else { return };
    for (victim, status) in [("launcher", None), ("init", Some(137)), ("command", Some(0))] {
        let mut command = tree.rlaunch();
        let script = "mkfifo /go; echo ready; read line < /go; rm /go";
        let running = Running::start(command.args(["--net=pasta", "-p", "8080:80", "sh", "-c", script]));
        let (processes, init) = (pasta(&running), running.init());
        assert!(TcpStream::connect("127.0.0.1:8080").is_ok(), "{victim}");
        match victim {
            "launcher" => kill(running.pid(), Signal::SIGKILL).expect("kill it"),
            "init" => kill(init, Signal::SIGKILL).expect("kill it"),
            _ => fs::write(tree.path("go"), "go\n").expect("let it go on"),
        }
        assert_eq!(running.wait().0, status, "{victim}");
        wait_until_gone(&[processes[0], processes[1], init]);
        let closed = poll(PATIENCE, || TcpStream::connect("127.0.0.1:8080").is_err().then_some(()));
        assert!(closed.is_some(), "{victim}: the port is still open");
        if victim != "command" {
            fs::remove_file(tree.path("go")).expect("remove what it has left");
        }
    }
}

/// The network is inherited by those who run the test again.
fn prepare_here() -> Option<Tree> {
    if inside().is_some() { Tree::new() } else { prepare() }
}

#[test]
fn whoever_is_killed_nothing_of_pasta_stays() {
    nothing_stays();
}

#[test]
fn a_container_that_loses_pasta_goes_on_and_is_told() {
    let Some(tree) = prepare() else { return };
    for victim in [0, 1] {
        let complaints = tree.beside("complaints");
        let mut command = tree.rlaunch();
        command.stderr(fs::File::create(&complaints).unwrap());
        let script = "mkfifo /go; echo ready; read line < /go; rm /go; exit 4";
        let running = Running::start(command.args(["--net=pasta", "sh", "-c", script]));
        let processes = pasta(&running);
        kill(processes[victim], Signal::SIGKILL).unwrap();
        // The helper, whom the launcher has not waited for yet, is no longer alive.
        wait_until_gone(&processes);
        fs::write(tree.path("go"), "go\n").unwrap();
        assert_eq!(running.wait().0, Some(4));
        let told = fs::read_to_string(&complaints).unwrap();
        let expected = ["", "rlaunch: warning: pasta has ended, so the container has no network any more\n"][victim];
        assert_eq!(told, expected);
    }
}

#[track_caller]
fn refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

#[test]
fn a_network_that_cannot_be_had_is_an_error_that_says_what_to_do() {
    let Some(tree) = prepare() else { return };
    let pasta = |options: &[&str]| finish(tree.rlaunch().args(["--net=pasta"]).args(options).arg("true"));
    refused(&finish(tree.rlaunch().args(["-p", "80", "true"])), &["--publish", "add --net pasta"]);
    refused(&finish(tree.rlaunch().args(["--net=none", "-p", "80", "true"])), &["add --net pasta"]);
    let _taken = TcpListener::bind("0.0.0.0:8080").unwrap();
    refused(&pasta(&["-p", "8080:80"]), &["cannot start pasta", "8080:80", "the port is in use"]);
    let mut command = tree.rlaunch();
    let outcome = finish(command.args(["--net=pasta", "/bin/true"]).env("PATH", "/nowhere"));
    refused(&outcome, &["not installed", "Debian's package passt"]);
    sh("ip route del default");
    let outcome = pasta(&[]);
    // Newer ones do without a way out.
    if outcome.status != Some(0) {
        refused(&outcome, &["cannot start pasta", "default route"]);
    }
    for ports in ["0", "80/sctp", "8000-8001:80"] {
        let outcome = pasta(&["-p", ports]);
        assert_eq!(outcome.status, Some(125), "{outcome:?}");
    }
}

#[test]
fn a_pasta_that_never_gets_ready_is_given_up_and_ended() {
    let Some(tree) = prepare() else { return };
    let (pasta, path) = (tree.beside("pasta"), tree.beside("").display().to_string());
    let word = format!("{}.{}", 1000, std::process::id());
    fs::write(&pasta, format!("#!/bin/sh\nexec /bin/sleep {word}\n")).unwrap();
    fs::set_permissions(&pasta, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = tree.rlaunch();
    refused(&finish(command.args(["--net=pasta", "/bin/true"]).env("PATH", path)), &["does not get ready"]);
    assert_eq!(processes_with(&word), []);
}

#[test]
fn a_start_that_fails_before_its_union_is_there_leaves_nothing() {
    let Some(tree) = prepare() else { return };
    fs::create_dir(tree.beside("top")).unwrap();
    let branches = format!("{}=rw:{}=ro+wh", tree.beside("top").display(), tree.path("").display());
    let mut command = Command::new(RLAUNCH);
    command.args(["--net=pasta", "--branches", &branches, "/bin/true"]).env("PATH", "/nowhere");
    refused(&finish(&mut command), &["not installed"]);
    assert!(!mounts().contains("fuse.rlaunch"));
}

#[test]
fn a_further_command_has_the_same_network() {
    let Some(tree) = prepare().map(Recorded::over) else { return };
    let start = ["-d", "--name=netted", "--net=pasta", "sh", "-c", "sleep 1000"];
    assert_eq!(printed(finish(tree.rlaunch().args(start))), "netted\n");
    let mut exec = Command::new(RLAUNCH);
    let text = printed(finish(exec.args(["exec", "netted", "sh", "-c", "ip -4 -o addr show dev out"])));
    assert!(text.contains(HOST), "{text}");
    printed(finish(Command::new(RLAUNCH).args(["rm", "--force", "netted"])));
}

#[test]
fn users_have_networks_too() {
    const THIS: &str = "users_have_networks_too";
    if inside().is_none() && !host() || !again(Way::Fusermount, THIS) {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let script = format!("{SERVE}; serve 80 0050 hello; echo ready; wait");
    let running = Running::start(tree.rlaunch().args(["--net=pasta", "-p", "8080:80", "sh", "-c", &script]));
    let processes = pasta(&running);
    assert_eq!(hear("127.0.0.1:8080"), "hello\n");
    assert_eq!(running.wait().0, Some(0));
    assert!(processes.iter().all(|pid| !is_alive(*pid)));
    // Ports of the system are not a user's.
    refused(&finish(tree.rlaunch().args(["--net=pasta", "-p", "80", "true"])), &["needs privileges"]);
    nothing_stays();
}
