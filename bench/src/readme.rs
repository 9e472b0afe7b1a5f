//! The runs that the tables of the project's README are made of.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::contender::{
    BWRAP, CRUN, FUSE_OVERLAYFS, FUSE_OVERLAYFS_ROOTLESS, NO_PASSTHROUGH, OVERLAY, RLAUNCH, ROOTLESS, RUNIONFS, UNSHARE,
};
use crate::options::Options;
use crate::report::lines::{DATA, LAUNCH, Line, MODES, TIMES};
use crate::report::merged::Merged;
use crate::report::table;

/// One run that the tables are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Everything but the other modes, as a user has it.
    Quiet,
    /// The times again, on one CPU.
    #[value(name = "1cpu")]
    OneCpu,
    /// Without passthrough, and rootless.
    Modes,
}

/// All of them, in the order in which they are merged.
const PARTS: [Part; 3] = [Part::Quiet, Part::OneCpu, Part::Modes];

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Quiet => "quiet",
            Part::OneCpu => "1cpu",
            Part::Modes => "modes",
        }
    }

    fn rows(self) -> Vec<&'static str> {
        let times = TIMES.iter().flat_map(|(_, _, lines)| lines.iter());
        let lines: Vec<&Line> = match self {
            Part::Quiet => times.chain(DATA).chain(LAUNCH).collect(),
            Part::OneCpu => times.collect(),
            Part::Modes => MODES.iter().collect(),
        };
        lines.into_iter().map(|line| line.row).collect()
    }

    fn contenders(self) -> &'static [&'static str] {
        match self {
            Part::Quiet => &[OVERLAY, RUNIONFS, FUSE_OVERLAYFS, RLAUNCH, BWRAP, CRUN, UNSHARE],
            Part::OneCpu => &[OVERLAY, RUNIONFS, FUSE_OVERLAYFS],
            Part::Modes => &[OVERLAY, NO_PASSTHROUGH, ROOTLESS, FUSE_OVERLAYFS_ROOTLESS],
        }
    }

    /// How long it may take.
    fn minutes(self) -> u64 {
        match self {
            Part::Quiet => 11,
            Part::OneCpu => 6,
            Part::Modes => 7,
        }
    }

    fn folder(self, options: &Options) -> PathBuf {
        options.output.join(self.name())
    }

    fn results(self, options: &Options) -> PathBuf {
        self.folder(options).join("results.json")
    }

    /// What this program is told to make this run.
    fn arguments(self, options: &Options) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            ["--only", &self.rows().join(","), "--against", &self.contenders().join(",")].map(OsString::from).into();
        if self == Part::OneCpu {
            words.push("--pin".into());
        }
        if options.quick {
            words.push("--quick".into());
        } else {
            words.extend(["--minutes".into(), self.minutes().to_string().into()]);
        }
        let mut path = |word: &str, path: &Path| words.extend([word.into(), path.as_os_str().to_owned()]);
        path("--output", &self.folder(options));
        path("--store", &options.store);
        options.top.iter().for_each(|top| path("--top", top));
        options.timeout.iter().for_each(|seconds| words.extend(["--timeout".into(), seconds.to_string().into()]));
        words
    }
}

/// Makes these runs, and the tables of them and of those that were made before.
pub(crate) fn make(parts: &[Part], options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let minutes: u64 = parts.iter().map(|part| part.minutes()).sum();
    if !options.quick {
        eprintln!("bench: this takes about {minutes} minutes, and more where lower trees have to be made");
    }
    let mut sound = true;
    for part in parts {
        eprintln!("bench: {}: {}", part.name(), part.rows().join(", "));
        // A part that was made before must not be taken for this one.
        match std::fs::remove_file(part.results(options)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // Each run is a process of its own: a pid namespace ends with its first process.
        let status = Command::new(std::env::current_exe()?).args(part.arguments(options)).status()?;
        sound &= status.success();
    }
    let files: Vec<PathBuf> =
        PARTS.map(|part| part.results(options)).into_iter().filter(|file| file.is_file()).collect();
    merge(&files, options)?;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the tables of runs that were made before.
pub(crate) fn merge(files: &[PathBuf], options: &Options) -> Result<(), Box<dyn Error>> {
    let folder = options.table();
    table::write(&Merged::read(files)?, &folder)?;
    eprintln!("bench: {} and plots beside it", folder.join("table.md").display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::workload;

    #[test]
    fn every_line_is_a_workload() {
        for part in PARTS {
            for row in part.rows() {
                let found = workload::select(&[row.to_owned()]).unwrap();
                assert_eq!(found.iter().map(|workload| workload.name).collect::<Vec<_>>(), [row]);
            }
        }
    }

    #[test]
    fn a_part_is_a_command_that_can_be_given_by_hand() {
        let options = Options::parse_from(["bench", "--readme", "--store", "/s"]);
        let words = Part::OneCpu.arguments(&options);
        let told = Options::try_parse_from(std::iter::once("bench".into()).chain(words)).unwrap();
        assert_eq!(told.pin, Some(0));
        assert_eq!(told.store, Path::new("/s"));
        assert_eq!(told.output, Path::new("target/bench/1cpu"));
        assert!(told.minutes.is_some() && !told.quick);
    }

    #[test]
    fn all_parts_end_within_25_minutes() {
        assert!(PARTS.iter().map(|part| part.minutes()).sum::<u64>() <= 25);
    }
}
