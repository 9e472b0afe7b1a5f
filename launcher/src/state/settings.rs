//! What a container was started with, as its record keeps it: for further commands in it.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::confine::Recorded;
use crate::spec::Spec;

/// What a container was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The environment of its command, `NAME=VALUE`.
    pub(crate) environment: Vec<Word>,
    /// Where its command started.
    pub(crate) directory: Word,
    /// What its command may do.
    pub(crate) confinement: Recorded,
}

impl Settings {
    pub(crate) fn of(spec: &Spec) -> Result<Settings, nix::errno::Errno> {
        let environment = spec.environment.iter().map(|variable| Word::from(OsStr::from_bytes(variable.to_bytes())));
        Ok(Settings {
            environment: environment.collect(),
            directory: spec.directory.as_os_str().into(),
            confinement: Recorded::of(&spec.confinement)?,
        })
    }
}

/// Bytes that are mostly text, and so are kept as text where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Word {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Word {
    fn from(word: &OsStr) -> Word {
        word.to_str().map_or_else(|| Word::Bytes(word.as_bytes().to_vec()), |text| Word::Text(text.to_owned()))
    }
}

impl From<Word> for OsString {
    fn from(word: Word) -> OsString {
        match word {
            Word::Text(text) => text.into(),
            Word::Bytes(bytes) => OsString::from_vec(bytes),
        }
    }
}

impl Word {
    pub(crate) fn path(&self) -> PathBuf {
        OsString::from(self.clone()).into()
    }

    /// As a word for a program; none, where a record that was changed by hand holds a zero byte.
    pub(crate) fn c_string(&self) -> Option<CString> {
        CString::new(OsString::from(self.clone()).into_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_byte_by_byte() {
        for word in [&b"A=1"[..], "Ä=ü".as_bytes(), b"A=\xff\n", b""] {
            let word = OsStr::from_bytes(word);
            let text = serde_json::to_string(&Word::from(word)).unwrap();
            let read: Word = serde_json::from_str(&text).unwrap();
            assert_eq!(OsString::from(read), word, "{text}");
        }
    }
}
