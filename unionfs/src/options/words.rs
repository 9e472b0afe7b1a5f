//! The words after `-o`: one table of all that is known, and its reader.
//!
//! Words are separated by commas; `\,` is a comma in a value. Every other escape is left as it
//! is, for the branch string has escapes of its own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::mount::MsFlags;

use super::ids::Ids;
use super::{Dirren, Keeping, Opens, Options, Share, Udba, Whiteout, Wish};

/// More event loops than this only cost memory.
const MOST_THREADS: usize = 256;

/// Why a `-o` word is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// A word that is not in the table.
    #[error("unknown option '{0}' (see 'runionfs mount --help')")]
    Unknown(String),
    /// A word that needs a value, without one.
    #[error("option '{word}' needs a value: {word}={value}")]
    NoValue {
        /// The word.
        word: &'static str,
        /// What its value is.
        value: &'static str,
    },
    /// A word that takes no value, with one.
    #[error("option '{0}' takes no value")]
    NeedlessValue(&'static str),
    /// A value that the word does not take.
    #[error("option '{word}={given}': {expected}")]
    BadValue {
        /// The word.
        word: &'static str,
        /// The value.
        given: String,
        /// What is expected.
        expected: String,
    },
}

/// What all `-o` words together say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The branch string of `br=`, `append:` and `prepend:`.
    pub branches: Option<OsString>,
    /// What shapes the union.
    pub options: Options,
    /// Flags of the mount, as mount(2) takes them.
    pub flags: MsFlags,
    /// Whether other users may use the mount; it is always so when root mounts.
    pub allow_other: bool,
    /// Whether the flags are meant for the union that is mounted there already.
    pub remount: bool,
    /// Whether a missing branch is no failure where mount(8) asks.
    pub nofail: bool,
    /// Whether unknown words are ignored, as mount(8) has it with `-s`.
    pub sloppy: bool,
}

impl Default for Words {
    fn default() -> Self {
        Words {
            branches: None,
            options: Options::default(),
            flags: MsFlags::empty(),
            allow_other: false,
            remount: false,
            nofail: false,
            sloppy: false,
        }
    }
}

/// What a word does.
#[derive(Debug, Clone, Copy)]
enum Effect {
    /// Names the branches.
    Branches,
    /// Adds branches below.
    Append,
    /// Adds branches on top.
    Prepend,
    /// Chooses how direct changes are noticed.
    Udba,
    /// Says whether directories with content below are renamed.
    Dirren,
    /// The opposite of it.
    NoDirren,
    /// Chooses the form in which whiteouts are written.
    Whiteout,
    /// No fsync.
    Volatile,
    /// Says where the work area is.
    Workdir,
    /// Says how many event loops there are.
    Threads,
    /// Says whether the kernel reads and writes files itself.
    Passthrough,
    /// Says whether the kernel gathers writes.
    Writeback,
    /// Says how files of a union that nobody writes are opened.
    Open,
    /// Says whether pages of such a union are shared.
    Share,
    /// Says what `/proc/mounts` shows.
    Fsname,
    /// Says what it shows as the type.
    Subtype,
    /// Lets other users in.
    AllowOther,
    /// Sets flags of the mount.
    Set(MsFlags),
    /// Clears flags of the mount.
    Clear(MsFlags),
    /// Changes the flags of a mount that is there.
    Remount,
    /// Lets branches be missing.
    Nofail,
    /// Changes nothing: it is so anyway, or of no meaning here.
    Accepted,
}

/// A word that is known after `-o`.
#[derive(Debug, Clone, Copy)]
pub struct Word {
    /// The word.
    pub name: &'static str,
    /// What its value is, where it takes one.
    pub value: Option<&'static str>,
    /// What it does, in one line.
    pub help: &'static str,
    effect: Effect,
}

const fn word(name: &'static str, value: Option<&'static str>, effect: Effect, help: &'static str) -> Word {
    Word { name, value, help, effect }
}

const SO_ANYWAY: &str = "accepted, it is always so";
const REPEATED: &str = "accepted, mount(8) repeats it at a remount";
const NO_MEANING: &str = "accepted, has no meaning here";
const FSTAB: &str = "accepted, it is for mount(8)";

/// All words, in the order of the help text.
pub const WORDS: &[Word] = &[
    word("br", Some("BRANCHES"), Effect::Branches, "the branches, the top first; also br:BRANCHES"),
    word("dirs", Some("BRANCHES"), Effect::Branches, "the same"),
    word("append", Some("BRANCHES"), Effect::Append, "more branches, below the others; also append:BRANCHES"),
    word("prepend", Some("BRANCHES"), Effect::Prepend, "more branches, above the others; also prepend:BRANCHES"),
    word(
        "udba",
        Some("none|reval"),
        Effect::Udba,
        "how direct changes to branches are noticed: not at all, or after 1 s",
    ),
    word("dirren", Some("on|off"), Effect::Dirren, "rename directories with content below; off: EXDEV (default on)"),
    word("nodirren", None, Effect::NoDirren, "the same as dirren=off"),
    word(
        "whiteout",
        Some("wh|overlay"),
        Effect::Whiteout,
        "how whiteouts are written: as .wh. files, or as overlayfs does, to be read by it later",
    ),
    word("volatile", None, Effect::Volatile, "never wait for the disk; a top in use at a crash is refused afterwards"),
    word("workdir", Some("DIR"), Effect::Workdir, "where the top branch's work area lies, on its file system"),
    word(
        "threads",
        Some("N"),
        Effect::Threads,
        "number of threads that take requests; twice the number of CPUs by default, 4 to 16",
    ),
    word(
        "passthrough",
        Some("auto|off"),
        Effect::Passthrough,
        "let the kernel read and write files of the top itself where it can: as root, from kernel 6.9 (default auto)",
    ),
    word(
        "writeback",
        Some("auto|off"),
        Effect::Writeback,
        "let the kernel gather writes to files that it does not write itself; not with udba=reval (default auto)",
    ),
    word(
        "open",
        Some("auto|message|none"),
        Effect::Open,
        "ask the daemon at each open of a file, or not where no branch is writable (default auto: not, but with share=on)",
    ),
    word(
        "share",
        Some("auto|on|off"),
        Effect::Share,
        "where no branch is writable, let mounts share the pages of files; needs what passthrough needs (default auto: with open=message)",
    ),
    word("fsname", Some("NAME"), Effect::Fsname, "what /proc/mounts shows as the source; the branches by default"),
    word(
        "subtype",
        Some("NAME"),
        Effect::Subtype,
        "what it shows as the type, after 'fuse.'; plain fuse where that is empty (default runionfs)",
    ),
    word("ro", None, Effect::Set(MsFlags::MS_RDONLY), "mount read-only"),
    word("rw", None, Effect::Clear(MsFlags::MS_RDONLY), "mount writable"),
    word("noatime", None, Effect::Set(MsFlags::MS_NOATIME), "do not update access times"),
    word("atime", None, Effect::Clear(MsFlags::MS_NOATIME), "update access times"),
    word("nodiratime", None, Effect::Set(MsFlags::MS_NODIRATIME), "do not update access times of directories"),
    word("diratime", None, Effect::Clear(MsFlags::MS_NODIRATIME), "update access times of directories"),
    word("relatime", None, Effect::Set(MsFlags::MS_RELATIME), "update access times only when they are old"),
    word("norelatime", None, Effect::Clear(MsFlags::MS_RELATIME), "do not set relatime"),
    word("strictatime", None, Effect::Set(MsFlags::MS_STRICTATIME), "update access times at every access"),
    word("nodev", None, Effect::Set(MsFlags::MS_NODEV), "device files do nothing"),
    word("dev", None, Effect::Clear(MsFlags::MS_NODEV), "device files work (default as root)"),
    word("nosuid", None, Effect::Set(MsFlags::MS_NOSUID), "set-user-id bits and file capabilities do nothing"),
    word(
        "suid",
        None,
        Effect::Clear(MsFlags::MS_NOSUID),
        "set-user-id bits and file capabilities work (default as root)",
    ),
    word("noexec", None, Effect::Set(MsFlags::MS_NOEXEC), "nothing can be executed"),
    word("exec", None, Effect::Clear(MsFlags::MS_NOEXEC), "programs can be executed"),
    word("sync", None, Effect::Set(MsFlags::MS_SYNCHRONOUS), "every write waits for the disk"),
    word("async", None, Effect::Clear(MsFlags::MS_SYNCHRONOUS), "writes do not wait for the disk"),
    word("dirsync", None, Effect::Set(MsFlags::MS_DIRSYNC), "every change of a directory waits for the disk"),
    word("nosymfollow", None, Effect::Set(NO_SYMLINKS), "symbolic links are not followed (from kernel 5.10)"),
    word("symfollow", None, Effect::Clear(NO_SYMLINKS), "symbolic links are followed"),
    word("remount", None, Effect::Remount, "change these flags of a union that is mounted; its branches stay"),
    word("allow_other", None, Effect::AllowOther, "let other users use the mount (always so as root)"),
    word("default_permissions", None, Effect::Accepted, SO_ANYWAY),
    word("nonempty", None, Effect::Accepted, SO_ANYWAY),
    word("dirperm1", None, Effect::Accepted, SO_ANYWAY),
    word("plink", None, Effect::Accepted, SO_ANYWAY),
    word("acl", None, Effect::Accepted, SO_ANYWAY),
    word("user_id", Some("N"), Effect::Accepted, REPEATED),
    word("group_id", Some("N"), Effect::Accepted, REPEATED),
    word("dio", None, Effect::Accepted, NO_MEANING),
    word("nodio", None, Effect::Accepted, NO_MEANING),
    word("xino", Some("FILE"), Effect::Accepted, NO_MEANING),
    word("noxino", None, Effect::Accepted, NO_MEANING),
    word("si", Some("ID"), Effect::Accepted, NO_MEANING),
    word("lazytime", None, Effect::Accepted, NO_MEANING),
    word("nolazytime", None, Effect::Accepted, NO_MEANING),
    word("silent", None, Effect::Accepted, NO_MEANING),
    word("loud", None, Effect::Accepted, NO_MEANING),
    word("iversion", None, Effect::Accepted, NO_MEANING),
    word("noiversion", None, Effect::Accepted, NO_MEANING),
    word("mand", None, Effect::Accepted, NO_MEANING),
    word("nomand", None, Effect::Accepted, NO_MEANING),
    word("warn_perm", None, Effect::Accepted, NO_MEANING),
    word("nowarn_perm", None, Effect::Accepted, NO_MEANING),
    word("defaults", None, Effect::Accepted, FSTAB),
    word("auto", None, Effect::Accepted, FSTAB),
    word("noauto", None, Effect::Accepted, FSTAB),
    word("user", None, Effect::Accepted, FSTAB),
    word("nouser", None, Effect::Accepted, FSTAB),
    word("users", None, Effect::Accepted, FSTAB),
    word(
        "nofail",
        None,
        Effect::Nofail,
        "for mount(8): a branch that is missing is no failure, and nothing is mounted",
    ),
    word("_netdev", None, Effect::Accepted, FSTAB),
    word("comment", Some("TEXT"), Effect::Accepted, FSTAB),
];

/// The table as a text for `--help`.
pub fn help() -> String {
    let lines = WORDS.chunk_by(|a, b| a.help == b.help).map(|group| {
        let names: Vec<String> = group.iter().map(Word::usage).collect();
        let names = names.join(", ");
        let gap = if names.len() > 22 { format!("\n{:24}", "") } else { String::new() };
        format!("  {names:<22}{gap} {}", group[0].help)
    });
    let title = String::from("Options after -o, separated by commas (\\, is a comma in a value):");
    [title].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

/// The options as words, each as it stands after `-o` but for the escapes of commas.
pub fn print(options: &Options) -> Vec<OsString> {
    let udba = match options.udba {
        Udba::None => "udba=none",
        Udba::Reval => "udba=reval",
    };
    // what is always so needs no word
    let whiteout = (options.whiteout == Whiteout::Overlay).then(|| "whiteout=overlay".into());
    let with = |word: &str, value: &OsStr| OsString::from_vec([word.as_bytes(), b"=", value.as_bytes()].concat());
    [
        Some(OsString::from(udba)),
        (options.dirren == Dirren::Off).then(|| "dirren=off".into()),
        whiteout,
        options.volatile.then(|| "volatile".into()),
        options.workdir.as_ref().map(|dir| with("workdir", dir.as_os_str())),
        options.threads.map(|threads| format!("threads={threads}").into()),
        (options.passthrough == Wish::Off).then(|| "passthrough=off".into()),
        (options.writeback == Wish::Off).then(|| "writeback=off".into()),
        open_word(options.open).map(Into::into),
        share_word(options.share).map(Into::into),
        options.fsname.as_ref().map(|name| with("fsname", name)),
        options.subtype.as_ref().map(|name| with("subtype", name)),
    ]
    .into_iter()
    .chain(owner_words(options))
    .flatten()
    .collect()
}

/// The words of fuse-overlayfs that say how owners are shown and kept.
fn owner_words(options: &Options) -> [Option<OsString>; 3] {
    let ids = |mapping: &str, squash: &str, ids: &Ids| match (ids.squashed_to(), ids.print()) {
        (Some(all), _) => Some(format!("{squash}={all}").into()),
        (None, ranges) => ranges.map(|ranges| format!("{mapping}={ranges}").into()),
    };
    [
        ids("uidmapping", "squash_to_uid", &options.ids.users),
        ids("gidmapping", "squash_to_gid", &options.ids.groups),
        match options.keeping {
            Keeping::Refused => None,
            Keeping::Privileged => Some("xattr_permissions=1".into()),
            Keeping::Owners => Some("xattr_permissions=2".into()),
        },
    ]
}

impl Word {
    /// The word with its value: `udba=none|reval`.
    pub fn usage(&self) -> String {
        match self.value {
            Some(value) => format!("{}={value}", self.name),
            None => self.name.to_string(),
        }
    }
}

impl Words {
    /// Reads one `-o` argument on top of what was said before; later words win.
    pub fn add(&mut self, argument: &OsStr) -> Result<(), WordsError> {
        split(argument.as_bytes()).iter().filter(|word| !word.is_empty()).try_for_each(|word| self.add_word(word))
    }

    fn add_word(&mut self, text: &[u8]) -> Result<(), WordsError> {
        let (name, value) = cut(text);
        match self.add_one(name, value) {
            Err(WordsError::Unknown(_)) if self.sloppy => Ok(()),
            read => read,
        }
    }

    /// Reads one word that was taken apart already.
    ///
    /// # Errors
    /// [`WordsError::Unknown`] for a word that is not in the table, and those of its value.
    pub fn add_one(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<(), WordsError> {
        // comments for mount(8), which notes who has mounted and which program is to unmount, and for systemd, with any value
        let is_note = value.is_some() && matches!(name, b"user" | b"helper" | b"uhelper");
        if name.starts_with(b"x-") || name.starts_with(b"X-") || is_note {
            return Ok(());
        }
        let Some(word) = WORDS.iter().find(|word| word.name.as_bytes() == name) else {
            return Err(WordsError::Unknown(lossy(name)));
        };
        match (word.value, value) {
            // as AuFS has it
            (Some(_), None) if matches!(word.effect, Effect::Dirren) => self.apply(word, b"on"),
            (Some(expected), None) => Err(WordsError::NoValue { word: word.name, value: expected }),
            (None, Some(_)) => Err(WordsError::NeedlessValue(word.name)),
            _ => self.apply(word, value.unwrap_or_default()),
        }
    }

    fn apply(&mut self, word: &Word, value: &[u8]) -> Result<(), WordsError> {
        let text = || OsString::from_vec(value.to_vec());
        match word.effect {
            Effect::Branches => self.branches = Some(text()),
            Effect::Append => self.branches = Some(joined(self.branches.take(), text())),
            Effect::Prepend => self.branches = Some(joined(Some(text()), self.branches.take().unwrap_or_default())),
            Effect::Udba => self.options.udba = udba(word, value)?,
            Effect::Dirren => self.options.dirren = dirren(word, value)?,
            Effect::NoDirren => self.options.dirren = Dirren::Off,
            Effect::Whiteout => self.options.whiteout = whiteout(word, value)?,
            Effect::Volatile => self.options.volatile = true,
            Effect::Workdir => self.options.workdir = Some(directory(word, value)?),
            Effect::Threads => self.options.threads = Some(threads(word, value)?),
            Effect::Passthrough => self.options.passthrough = wish(word, value)?,
            Effect::Writeback => self.options.writeback = wish(word, value)?,
            Effect::Open => self.options.open = opens(word, value)?,
            Effect::Share => self.options.share = share(word, value)?,
            Effect::Fsname => self.options.fsname = Some(text()),
            Effect::Subtype => self.options.subtype = Some(text()),
            Effect::AllowOther => self.allow_other = true,
            Effect::Set(flags) => {
                if flags.intersects(ATIME) {
                    self.flags.remove(ATIME);
                }
                self.flags.insert(flags);
            }
            Effect::Clear(flags) => self.flags.remove(flags),
            Effect::Remount => self.remount = true,
            Effect::Nofail => self.nofail = true,
            Effect::Accepted => {}
        }
        Ok(())
    }
}

fn dirren(word: &Word, value: &[u8]) -> Result<Dirren, WordsError> {
    match value {
        b"on" => Ok(Dirren::On),
        b"off" => Ok(Dirren::Off),
        _ => Err(WordsError::BadValue { word: word.name, given: lossy(value), expected: "on or off".into() }),
    }
}

/// `MS_NOSYMFOLLOW` of `linux/mount.h`.
const NO_SYMLINKS: MsFlags = MsFlags::from_bits_retain(256);

/// Of these the kernel takes one.
const ATIME: MsFlags = MsFlags::MS_NOATIME.union(MsFlags::MS_RELATIME).union(MsFlags::MS_STRICTATIME);

/// Cuts at the commas that are not escaped, and takes the escape from the others.
fn split(argument: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut bytes = argument.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' => words.push(std::mem::take(&mut word)),
            b'\\' => match bytes.next() {
                Some(b',') => word.push(b','),
                other => word.extend([b'\\'].into_iter().chain(other)),
            },
            _ => word.push(byte),
        }
    }
    words.push(word);
    words
}

/// A word and its value: at the first `=`, or after `br:` and the like, which AuFS writes so.
fn cut(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    for prefix in [&b"br:"[..], b"append:", b"prepend:"] {
        if let Some(value) = text.strip_prefix(prefix) {
            return (&prefix[..prefix.len() - 1], Some(value));
        }
    }
    match text.iter().position(|byte| *byte == b'=') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn joined(above: Option<OsString>, below: OsString) -> OsString {
    let mut parts = above.unwrap_or_default().into_vec();
    if !parts.is_empty() && !below.is_empty() {
        parts.push(b':');
    }
    parts.extend(below.into_vec());
    OsString::from_vec(parts)
}

fn udba(word: &Word, value: &[u8]) -> Result<Udba, WordsError> {
    match value {
        b"none" => Ok(Udba::None),
        b"reval" => Ok(Udba::Reval),
        _ => Err(bad_value(word, value, "none and reval are known")),
    }
}

fn whiteout(word: &Word, value: &[u8]) -> Result<Whiteout, WordsError> {
    match value {
        b"wh" => Ok(Whiteout::Wh),
        b"overlay" => Ok(Whiteout::Overlay),
        _ => Err(bad_value(word, value, "wh and overlay are known")),
    }
}

/// What is not the default, as a word.
fn open_word(opens: Opens) -> Option<&'static str> {
    match opens {
        Opens::Auto => None,
        Opens::Message => Some("open=message"),
        Opens::None => Some("open=none"),
    }
}

fn share_word(share: Share) -> Option<&'static str> {
    match share {
        Share::Auto => None,
        Share::On => Some("share=on"),
        Share::Off => Some("share=off"),
    }
}

fn opens(word: &Word, value: &[u8]) -> Result<Opens, WordsError> {
    match value {
        b"auto" => Ok(Opens::Auto),
        b"message" => Ok(Opens::Message),
        b"none" => Ok(Opens::None),
        _ => Err(bad_value(word, value, "auto, message and none are known")),
    }
}

fn share(word: &Word, value: &[u8]) -> Result<Share, WordsError> {
    match value {
        b"auto" => Ok(Share::Auto),
        b"on" => Ok(Share::On),
        b"off" => Ok(Share::Off),
        _ => Err(bad_value(word, value, "auto, on and off are known")),
    }
}

fn wish(word: &Word, value: &[u8]) -> Result<Wish, WordsError> {
    match value {
        b"auto" => Ok(Wish::Auto),
        b"off" => Ok(Wish::Off),
        _ => Err(bad_value(word, value, "auto and off are known")),
    }
}

fn directory(word: &Word, value: &[u8]) -> Result<PathBuf, WordsError> {
    if value.is_empty() {
        return Err(bad_value(word, value, "a directory is expected"));
    }
    Ok(PathBuf::from(OsStr::from_bytes(value)))
}

fn threads(word: &Word, value: &[u8]) -> Result<usize, WordsError> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=MOST_THREADS).contains(number))
        .ok_or_else(|| bad_value(word, value, &format!("a number from 1 to {MOST_THREADS} is expected")))
}

fn bad_value(word: &Word, value: &[u8], expected: &str) -> WordsError {
    WordsError::BadValue { word: word.name, given: lossy(value), expected: expected.into() }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
