//! Registries for tests: Debian's, and one that misbehaves as a test says.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::tools;

/// Debian's registry on this machine, for one test.
pub(crate) struct Registry {
    child: Child,
    /// Its name, with its port.
    pub(crate) host: String,
}

impl Registry {
    /// With its files in a directory, and what else its configuration says of `auth` or `tls`. `None` where the test is
    /// skipped.
    pub(crate) fn start(directory: &Path, auth: &str, tls: &str) -> Option<Registry> {
        let program = tools::find("docker-registry")?;
        let port = TcpListener::bind("127.0.0.1:0").expect("find a port").local_addr().expect("find a port").port();
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\n{auth}\nhttp:\n  addr: 127.0.0.1:{port}\n{tls}\n",
            directory.display()
        );
        fs::create_dir_all(directory).expect("make a place for the registry");
        let file = directory.join("config.yml");
        fs::write(&file, text).expect("write the registry's configuration");
        let log = fs::File::create(directory.join("log")).expect("make the registry's log");
        let mut command = Command::new(program);
        command.arg("serve").arg(file).stdout(log.try_clone().expect("share the log")).stderr(log);
        let registry =
            Registry { child: command.spawn().expect("start the registry"), host: format!("localhost:{port}") };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().expect("end the registry");
        self.child.wait().expect("end the registry");
    }
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The first byte that is asked for.
    pub(crate) fn first_byte(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// So many bytes of the body are sent, and the connection is closed then.
    pub(crate) cut: Option<usize>,
    /// The body is sent again and again.
    pub(crate) is_endless: bool,
    /// Nothing more comes, and the connection stays open.
    pub(crate) stalls: bool,
}

impl Answered {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Answered {
        Answered { status, body: body.into(), ..Answered::default() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Answered {
        self.headers.push((name, value.into()));
        self
    }
}

/// A server that answers as a test says, and remembers what it was asked.
pub(crate) struct Server {
    pub(crate) host: String,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Its threads end with the test.
    pub(crate) fn start(answer: impl Fn(&Asked) -> Answered + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let host = format!("127.0.0.1:{}", listener.local_addr().expect("listen").port());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&log));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                thread::spawn(move || serve(&stream.expect("a connection"), &*answer, &seen));
            }
        });
        Server { host, log }
    }

    /// What it was asked, in order: `GET /path`.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().expect("no server panics").clone()
    }

    /// How often it was asked for a path that contains a word.
    pub(crate) fn count(&self, method: &str, word: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method && asked.path.contains(word)).count()
    }
}

fn serve(stream: &TcpStream, answer: &dyn Fn(&Asked) -> Answered, log: &Mutex<Vec<Asked>>) {
    let Some(asked) = read(stream) else { return };
    log.lock().expect("no server panics").push(asked.clone());
    let answered = answer(&asked);
    // Who asked may have gone away.
    drop(write(stream, &asked, &answered));
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        match line.trim().split_once(": ") {
            Some((key, value)) => headers.push((key.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let mut asked = Asked { method, path, headers, body: Vec::new() };
    let length: u64 = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    // A test may want to lose the connection in the middle of what is sent.
    let length = asked.header("x-test-most").and_then(|most| most.parse().ok()).unwrap_or(length).min(length);
    input.take(length).read_to_end(&mut asked.body).ok()?;
    Some(asked)
}

fn write(mut stream: &TcpStream, asked: &Asked, answered: &Answered) -> std::io::Result<()> {
    if answered.status == 0 {
        return Ok(());
    }
    let mut head = format!("HTTP/1.1 {} Test\r\nConnection: close\r\n", answered.status);
    for (name, value) in &answered.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !answered.is_endless {
        head.push_str(&format!("Content-Length: {}\r\n", answered.body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if asked.method != "HEAD" {
        stream.write_all(&answered.body[..answered.cut.unwrap_or(answered.body.len())])?;
    }
    if answered.is_endless {
        loop {
            stream.write_all(&answered.body)?;
        }
    }
    if answered.stalls {
        thread::sleep(Duration::from_secs(100));
    }
    Ok(())
}
