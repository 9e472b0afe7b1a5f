//! RUN: a command in a container of its own, which this program is started for once more.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};

use unionfs::options::branches;

use super::layer::Top;
use crate::confine::seal::PROGRAM;
use crate::failure::{Doing as _, Failure, SIGNAL_BASE};
use crate::process;

/// The host name in it.
const HOSTNAME: &str = "build";

/// What is run.
pub(super) struct Running {
    pub(super) words: Vec<String>,
    /// `NAME=VALUE`.
    pub(super) variables: Vec<String>,
    pub(super) user: String,
    pub(super) directory: String,
    /// As `--net` takes it.
    pub(super) network: String,
    pub(super) is_quiet: bool,
    /// How many descriptors it may have: two limits.
    pub(super) descriptors: (u64, u64),
}

impl Running {
    /// All that it depends on.
    pub(super) fn key(&self) -> Vec<u8> {
        let settings = [&self.user, &self.directory, &self.network];
        // A zero byte is in no word of a program.
        let text = |words: &mut dyn Iterator<Item = &String>| words.map(|word| format!("{word}\0")).collect::<String>();
        let lists = [text(&mut self.words.iter()), text(&mut self.variables.iter()), text(&mut settings.into_iter())];
        lists.iter().flat_map(|list| format!("{}:{list}", list.len()).into_bytes()).collect()
    }

    /// Runs it to its end, and returns its exit status. It ends with this process.
    pub(super) fn run(&self, top: &Top<'_>) -> Result<u8, Failure> {
        let doing = format!("run {}", self.words.first().map_or("a command", |word| word));
        let mut command = Command::new(PROGRAM);
        // An ordinary user's namespace is known by the name of the program.
        command.arg0(std::env::args_os().next().unwrap_or_default());
        command.args([
            "run",
            "--tty=never",
            "--hostname",
            HOSTNAME,
            "--net",
            &self.network,
            "--workdir",
            &self.directory,
        ]);
        command.arg("--branches").arg(branches::print(&top.branches()));
        // In one word each, for a value may begin as an option does.
        if !self.user.is_empty() {
            command.arg(format!("--user={}", self.user));
        }
        // One without a value would be that of this process.
        for variable in self.variables.iter().filter(|variable| variable.contains('=')) {
            command.arg(format!("--env={variable}"));
        }
        command.arg("--").args(self.words.iter().map(OsString::from)).stdin(Stdio::null());
        if self.is_quiet {
            let output = File::create(top.aside()).doing(&doing)?;
            command.stdout(output.try_clone().doing(&doing)?).stderr(output);
        }
        process::end_with_this_process(&mut command, self.descriptors);
        let status = command.status().doing(&doing)?;
        let ended = status.signal().map(|signal| u8::try_from(signal).unwrap_or(0).saturating_add(SIGNAL_BASE));
        let status = status.code().and_then(|code| u8::try_from(code).ok()).or(ended).unwrap_or(u8::MAX);
        if status != 0 && self.is_quiet {
            let mut output = File::open(top.aside()).doing(&doing)?;
            std::io::copy(&mut output, &mut std::io::stderr()).doing("tell what the command has said")?;
        }
        Ok(status)
    }
}
