//! A person at a terminal: the container has one of its own, and the caller's is given back as it was.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use harness::mount::poll;
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
        let setsid = tools::find("setsid")?;
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a terminal");
        unlockpt(&master).expect("unlock it");
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).expect("open its other side");
        tcsetwinsize(&master, SIZE).expect("size it");
        let stream = || Stdio::from(slave.try_clone().expect("duplicate a descriptor"));
        let child = Command::new(setsid)
            .args(["--ctty", "--wait", RLAUNCH, "--rootfs"])
            .arg(tree.path(""))
            .args(["sh", "-c", script])
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
    let Some(mut person) = Person::run(&tree, script) else { return };
    person.expect("ready");
    person.type_in("\x03");
    person.expect("interrupted");
    person.type_in("first\nsecond\n");
    person.expect("got");
    assert_eq!(person.wait(), Some(4));
    assert_eq!(person.seen.matches("interrupted").count(), 1, "{:?}", person.seen);
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
