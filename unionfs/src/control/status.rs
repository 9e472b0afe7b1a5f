//! What a daemon says of itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

/// Bytes in JSON: a string where they are UTF-8, else the list of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Bytes that are UTF-8.
    Utf8(String),
    /// Bytes that are not.
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Text {
        match text.to_str() {
            Some(utf8) => Text::Utf8(utf8.into()),
            None => Text::Bytes(text.as_bytes().to_vec()),
        }
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> OsString {
        match text {
            Text::Utf8(utf8) => utf8.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes),
        }
    }
}

impl Text {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Text::Utf8(utf8) => utf8.as_bytes(),
            Text::Bytes(bytes) => bytes,
        }
    }
}

/// What `runionfs show` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the daemon.
    pub version: String,
    /// Its process id, in its own pid namespace.
    pub pid: u32,
    /// Where it mounted.
    pub mountpoint: Text,
    /// The branches as `PATH=ATTRIBUTES`, top first.
    pub branches: Vec<Text>,
    /// The options that shape the union, as words of `-o`.
    pub options: Vec<Text>,
    /// What was negotiated with the kernel.
    pub features: Vec<String>,
    /// How often the kernel asked for what, by the names of `linux/fuse.h`.
    pub requests: Vec<(String, u64)>,
}

impl Status {
    /// The status as one line of JSON.
    pub fn to_line(&self) -> io::Result<Vec<u8>> {
        super::to_line(self)
    }

    /// Reads what [`Status::to_line`] wrote.
    pub fn from_line(line: &[u8]) -> io::Result<Status> {
        Ok(serde_json::from_slice(line)?)
    }

    /// The status as AuFS shows its branches (`br0 PATH=ATTRIBUTES`), and the rest below.
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut line = |key: &str, value: &[u8]| {
            text.extend_from_slice(key.as_bytes());
            text.push(b' ');
            text.extend_from_slice(value);
            text.push(b'\n');
        };
        for (branch, index) in self.branches.iter().zip(0..) {
            line(&format!("br{index}"), branch.as_bytes());
        }
        line("mountpoint", self.mountpoint.as_bytes());
        line("pid", self.pid.to_string().as_bytes());
        line("version", self.version.as_bytes());
        for option in &self.options {
            line("option", option.as_bytes());
        }
        for feature in &self.features {
            line("feature", feature.as_bytes());
        }
        for (name, count) in &self.requests {
            line("requests", format!("{name} {count}").as_bytes());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            version: "1.2.3".into(),
            pid: 42,
            mountpoint: OsStr::new("/mnt").into(),
            branches: vec![OsStr::new("/top=rw").into(), OsStr::from_bytes(b"/\xff\n=ro+wh").into()],
            options: vec![OsStr::new("udba=none").into()],
            features: vec!["posix_acl".into()],
            requests: vec![("LOOKUP".into(), 7)],
        }
    }

    #[test]
    fn bytes_survive_the_line() {
        let line = status().to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Status::from_line(&line).unwrap(), status());
        assert_eq!(OsString::from(status().branches[1].clone()), OsString::from_vec(b"/\xff\n=ro+wh".to_vec()));
    }

    #[test]
    fn the_text_is_that_of_aufs() {
        let text = Status { branches: vec![OsStr::new("/top=rw").into(), OsStr::new("/low=ro+wh").into()], ..status() };
        assert_eq!(
            String::from_utf8(text.to_text()).unwrap(),
            "br0 /top=rw\nbr1 /low=ro+wh\nmountpoint /mnt\npid 42\nversion 1.2.3\noption udba=none\nfeature posix_acl\nrequests LOOKUP 7\n"
        );
    }
}
