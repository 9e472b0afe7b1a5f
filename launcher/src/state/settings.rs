//! What a container was started with, as its record keeps it: for further commands in it, and further starts.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::confine::{Recorded, Umask};
use crate::delegation;
use crate::spec::Spec;

/// What a container was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How it was asked for, of a container that can be started again.
    pub(crate) origin: Option<Origin>,
    /// The environment of its command, `NAME=VALUE`.
    pub(crate) environment: Vec<Word>,
    /// Where its command started.
    pub(crate) directory: Word,
    /// What its command may do.
    pub(crate) confinement: Recorded,
}

impl Settings {
    pub(crate) fn of(spec: &Spec, origin: Option<Origin>) -> Result<Settings, nix::errno::Errno> {
        let environment = spec.environment.iter().map(|variable| Word::from(OsStr::from_bytes(variable.to_bytes())));
        Ok(Settings {
            origin,
            environment: environment.collect(),
            directory: spec.directory.as_os_str().into(),
            confinement: Recorded::of(&spec.confinement)?,
        })
    }
}

/// How a container was asked for: all that a start depends on beside the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    words: Vec<Word>,
    environment: Vec<(Word, Word)>,
    directory: Option<Word>,
    /// Records of earlier versions have none.
    #[serde(default)]
    umask: Umask,
}

impl Origin {
    /// That of this process.
    pub(crate) fn here() -> Origin {
        let word = |text: OsString| Word::from(text.as_os_str());
        Origin {
            words: std::env::args_os().skip(1).map(word).collect(),
            environment: variables().map(|(name, value)| (word(name), word(value))).collect(),
            directory: std::env::current_dir().ok().map(|directory| word(directory.into())),
            umask: Umask::of_this_process(),
        }
    }

    /// What followed the program's name.
    pub(crate) fn words(&self) -> impl Iterator<Item = OsString> {
        self.words.iter().cloned().map(OsString::from)
    }

    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        self.environment.iter().cloned().map(|(name, value)| (name.into(), value.into())).collect()
    }

    pub(crate) fn variable(&self, name: &OsStr) -> Option<OsString> {
        let name = Word::from(name);
        self.environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone().into())
    }

    pub(crate) fn umask(&self) -> Umask {
        self.umask
    }

    /// Where it was; none, where that was gone or out of reach.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(Word::path)
    }
}

/// The caller's, without what this program has told itself.
fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name != delegation::VARIABLE)
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
