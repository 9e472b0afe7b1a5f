//! A person at a terminal: the container has one of its own, and the caller's is given back as it was.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use harness::mount::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Tree};

/// A terminal with rlaunch at it, and what it shows.
struct Person {
    master: OwnedFd,
    slave: OwnedFd,
    child: Child,
    screen: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

const SIZE: Winsize = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };

impl Person {
    /// Types `rlaunch --rootfs TREE sh -c SCRIPT` at a new terminal.
    fn run(tree: &Tree, script: &str) -> Option<Person> {
        Person::run_with(tree, &[], script)
    }

    /// The same with options.
    fn run_with(tree: &Tree, options: &[&str], script: &str) -> Option<Person> {
        let mut words = vec![RLAUNCH.to_owned(), "--rootfs".to_owned(), tree.path("").to_str()?.to_owned()];
        words.extend(options.iter().chain(&["sh", "-c", script]).map(|word| (*word).to_owned()));
        Person::type_words(&words)
    }

    fn type_words(words: &[String]) -> Option<Person> {
        let setsid = tools::find("setsid")?;
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a terminal");
        unlockpt(&master).expect("unlock it");
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).expect("open its other side");
        tcsetwinsize(&master, SIZE).expect("size it");
        let stream = || Stdio::from(slave.try_clone().expect("duplicate a descriptor"));
        let child = Command::new(setsid)
            .args(["--ctty", "--wait"])
            .args(words)
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("start rlaunch");
        let (sender, screen) = std::sync::mpsc::channel();
        let mut reader = File::from(master.try_clone().expect("duplicate a descriptor"));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Person { master, slave, child, screen, seen: String::new() })
    }

    fn type_in(&self, text: &str) {
        File::from(self.master.try_clone().expect("duplicate a descriptor")).write_all(text.as_bytes()).expect("type");
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let Ok(bytes) = self.screen.recv_timeout(PATIENCE) else {
                panic!("the screen does not show {text:?}: {:?}", self.seen)
            };
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    #[track_caller]
    fn wait(&mut self) -> Option<i32> {
        let status = poll(PATIENCE, || self.child.try_wait().expect("wait for rlaunch"));
        for bytes in self.screen.try_iter() {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        status.unwrap_or_else(|| panic!("rlaunch does not end: {:?}", self.seen)).code()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("list its children");
    list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect()
}

#[test]
fn the_command_has_a_terminal_of_the_containers_own_with_the_size_of_the_callers() {
    let Some(tree) = Tree::new() else { return };
    let script = "tty; stty size; ls -1 /dev/pts; test -t 0 && test -t 1 && test -t 2 && echo all > /dev/tty; exit 9";
    let Some(mut person) = Person::run(&tree, script) else { return };
    assert_eq!(person.wait(), Some(9));
    person.expect("/dev/pts/0\r\n33 77\r\n0\r\nptmx\r\nall\r\n");
}

#[test]
fn a_key_that_interrupts_reaches_the_command_once() {
    let Some(tree) = Tree::new() else { return };
    let script = "trap 'echo interrupted' INT; echo ready; read line; read line; echo \"got $line\"; exit 4";
    for options in [&[] as &[&str], &["--tty=never"]] {
        let Some(mut person) = Person::run_with(&tree, options, script) else { return };
        person.expect("ready");
        person.type_in("\x03");
        person.expect("interrupted");
        person.type_in("first\nsecond\n");
        person.expect("got");
        assert_eq!(person.wait(), Some(4));
        assert_eq!(person.seen.matches("interrupted").count(), 1, "{options:?}: {:?}", person.seen);
    }
}

#[test]
fn job_control_works() {
    let Some(tree) = Tree::new() else { return };
    let Some(mut person) = Person::run(&tree, "exec sh -i") else { return };
    person.type_in("echo pro''mpt\n");
    person.expect("prompt");
    assert!(!person.seen.contains("job control"), "{}", person.seen);
    person.type_in("sh -c 'echo wai\"\"ting; exec sleep 1000'\n");
    person.expect("waiting");
    person.type_in("\x1a");
    person.expect("Stopped");
    // Some shells ask for a second word while a job is stopped.
    person.type_in("exit 6\nexit 6\n");
    assert_eq!(person.wait(), Some(6));
}

/// A container that is a job of a shell outside, with and without a terminal of its own: it is stopped, its caller has the
/// terminal as it was, and it goes on.
#[test]
fn a_container_is_a_job_as_any_other() {
    let Some(tree) = Tree::new() else { return };
    let Some(bash) = tools::find("bash") else { return };
    let root = tree.path("");
    for option in ["--tty=never", "--tty=always"] {
        let count = "echo ready; i=0; while :; do i=$((i + 1)); echo $i > /count; sleep 0.02; done";
        let script = format!(
            "{RLAUNCH} --rootfs {} {option} sh -c '{count}'; echo stopped $?; stty -a | grep -ow -e -echo -e echo; read line
             fg > /dev/null; echo ended $?",
            root.display()
        );
        let words = [bash.to_str().unwrap(), "-mc", &script].map(str::to_owned);
        let Some(mut person) = Person::type_words(&words) else { return };
        person.expect("ready");
        launch::wait_until_changed(&tree.path("count"));
        let shell = Pid::from_raw(person.child.id().cast_signed());
        match option {
            "--tty=never" => person.type_in("\x1a"),
            // Its keys are the container's.
            _ => kill(children(shell)[0], Signal::SIGTSTP).unwrap(),
        }
        person.expect("stopped 148\r\necho\r\n");
        launch::wait_until_still(&tree.path("count"));
        person.type_in("go on\n");
        launch::wait_until_changed(&tree.path("count"));
        person.type_in("\x03");
        person.expect("ended 130");
        assert_eq!(person.wait(), Some(0));
    }
}

#[test]
fn a_new_size_reaches_the_command() {
    let Some(tree) = Tree::new() else { return };
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let Some(mut person) = Person::run(&tree, script) else { return };
    person.expect("ready");
    tcsetwinsize(&person.master, Winsize { ws_row: 50, ws_col: 132, ..SIZE }).unwrap();
    person.expect("50 132");
    assert_eq!(person.wait(), Some(0));
}

#[test]
fn the_callers_terminal_is_raw_meanwhile_and_given_back() {
    let Some(tree) = Tree::new() else { return };
    let Some(mut person) = Person::run(&tree, "echo ready; read line; kill -9 $$") else { return };
    person.expect("ready");
    assert!(!tcgetattr(&person.slave).unwrap().local_modes.contains(LocalModes::ECHO));
    person.type_in("go\n");
    assert_eq!(person.wait(), Some(137));
    let modes = tcgetattr(&person.slave).unwrap().local_modes;
    assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{modes:?}");
}

#[test]
fn the_terminal_is_given_back_when_the_command_cannot_run() {
    let Some(tree) = Tree::new() else { return };
    let Some(mut person) = Person::run(&tree, "exec /missing") else { return };
    assert_eq!(person.wait(), Some(127));
    assert!(tcgetattr(&person.slave).unwrap().local_modes.contains(LocalModes::ECHO));
}

#[test]
fn the_terminal_is_given_back_whoever_is_ended() {
    let Some(tree) = Tree::new() else { return };
    for (who, signal, status) in [
        ("command", Signal::SIGKILL, 137),
        ("pid 1", Signal::SIGKILL, 137),
        ("launcher", Signal::SIGTERM, 143),
        ("launcher", Signal::SIGHUP, 129),
        ("launcher", Signal::SIGINT, 130),
        ("launcher", Signal::SIGALRM, 142),
        ("launcher", Signal::SIGUSR1, 138),
        ("launcher", Signal::SIGXCPU, 152),
        ("launcher", Signal::SIGSEGV, 139),
        ("launcher", Signal::SIGPWR, 158),
    ] {
        let Some(mut person) = Person::run(&tree, "echo ready; exec sleep 1000") else { return };
        person.expect("ready");
        let launcher = Pid::from_raw(person.child.id().cast_signed());
        let init = children(launcher)[0];
        let target = match who {
            "command" => children(init)[0],
            "pid 1" => init,
            _ => launcher,
        };
        assert!(!tcgetattr(&person.slave).unwrap().local_modes.contains(LocalModes::ECHO));
        kill(target, signal).unwrap();
        assert_eq!(person.wait(), Some(status), "{who} {signal}");
        let modes = tcgetattr(&person.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{who} {signal}: {modes:?}");
    }
}

/// A window that is closed: the command is told, and may still do something about it.
#[test]
fn a_command_whose_terminal_is_closed_ends_as_it_likes() {
    let Some(tree) = Tree::new() else { return };
    let Some(setsid) = tools::find("setsid") else { return };
    let script = "trap 'sleep 0.2; echo saved > /saved; exit 9' HUP; echo ready; while :; do sleep 0.05; done";
    let script = format!("{script} 2> /dev/null");
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let mut master = File::from(openpt(flags).unwrap());
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    let stream = || Stdio::from(slave.try_clone().unwrap());
    let mut command = Command::new(setsid);
    command.args(["--ctty", "--wait", RLAUNCH, "--rootfs"]).arg(tree.path("")).args(["sh", "-c", &script]);
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    drop((command, slave));
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("ready") {
        let mut buffer = [0; 4096];
        let count = master.read(&mut buffer).expect("hear the container");
        seen.extend_from_slice(&buffer[..count]);
    }
    drop(master);
    let status = poll(PATIENCE, || child.try_wait().unwrap()).expect("rlaunch ends");
    assert_eq!((status.code(), fs::read_to_string(tree.path("saved")).ok().as_deref()), (Some(9), Some("saved\n")));
}

#[test]
fn a_command_whose_output_nobody_takes_any_more_is_told_and_ends_as_it_likes() {
    let Some(tree) = Tree::new() else { return };
    for (script, expected) in [
        ("trap 'echo saved > /saved; exit 9' HUP; echo ready; while :; do echo more; sleep 0.05; done", 9),
        ("echo ready; exec yes", 129),
    ] {
        let mut command = tree.rlaunch();
        let mut child = command
            .args(["-t", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        output.read_exact(&mut [0; 5]).unwrap();
        drop(output);
        let status = poll(PATIENCE, || child.try_wait().unwrap()).expect("rlaunch ends");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((status.code(), &*said), (Some(expected), ""), "{script}");
    }
    assert_eq!(fs::read_to_string(tree.path("saved")).unwrap(), "saved\n");
    // A disk that is full is said, and the command goes on or ends as it likes.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = tree
        .rlaunch()
        .args(["-t", "sh", "-c", "trap 'exit 3' HUP; while :; do echo; sleep 0.05; done"])
        .stdin(Stdio::null())
        .stdout(full)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot print the container's output: No space left on device"), "{said}");
    assert_eq!(output.status.code(), Some(3), "{said}");
}

/// A pipe whose reader does not read, and a terminal that was stopped, must not keep the launcher from its work.
#[test]
fn a_launcher_whose_output_is_stuck_hears_signals() {
    let Some(tree) = Tree::new() else { return };
    for is_running in [true, false] {
        let script = if is_running { "exec yes" } else { "sleep 0.5; yes | head -n 2000" };
        let mut command = tree.rlaunch();
        let mut child =
            command.args(["-t", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        rustix::pipe::fcntl_setpipe_size(&output, 4096).unwrap();
        // Nothing comes through any more: the pipe is full.
        let is_full = || {
            let held = rustix::io::ioctl_fionread(&output).unwrap();
            thread::sleep(std::time::Duration::from_millis(300));
            (held > 0 && held == rustix::io::ioctl_fionread(&output).unwrap()).then_some(())
        };
        poll(PATIENCE, is_full).expect("the pipe is full");
        let launcher = Pid::from_raw(child.id().cast_signed());
        if is_running {
            kill(launcher, Signal::SIGTERM).unwrap();
        }
        poll(PATIENCE, || children(launcher).is_empty().then_some(())).expect("the command ends");
        // What it has printed is kept for the reader, until it is said once more.
        kill(launcher, Signal::SIGTERM).unwrap();
        let status = poll(PATIENCE, || child.try_wait().unwrap());
        if status.is_none() {
            child.kill().unwrap();
        }
        assert_eq!(status.and_then(|status| status.code()), Some(143), "{script}");
    }
}

#[test]
fn long_output_arrives_whole() {
    let Some(tree) = Tree::new() else { return };
    let Some(mut person) = Person::run(&tree, "seq 20000; echo the end") else { return };
    person.expect("the end\r\n");
    assert_eq!(person.wait(), Some(0));
    let expected: String = (1..=20000).map(|number| format!("{number}\r\n")).collect();
    assert!(person.seen.starts_with(&expected), "of {} bytes, {} came", expected.len(), person.seen.len());
}

#[test]
fn the_callers_terminal_cannot_be_reached() {
    let Some(tree) = Tree::new() else { return };
    // Every descriptor of every process in the container: none may lead to a terminal outside of its own devpts.
    let script = "for p in /proc/[0-9]*; do ls -l $p/fd 2> /dev/null; done | grep -o '/dev/pts/.*' | sort -u; exit 3";
    let Some(mut person) = Person::run(&tree, script) else { return };
    assert_eq!(person.wait(), Some(3));
    person.expect("/dev/pts/0\r\n");
    assert_eq!(person.seen, "/dev/pts/0\r\n");
}
