//! What the command line asks for.

use std::path::PathBuf;

use clap::Parser;

use crate::readme::Part;

/// Measures runionfs beside its peers: interleaved rounds of the same work on each
///
/// Needs root. Everything is mounted in a mount namespace of its own. The results go to standard output and, as
/// Markdown, JSON and SVG plots, into a folder.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Options {
    /// Only these workloads: names, the beginnings of names, or families (see --list)
    #[arg(long, value_name = "W[,W]...", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Only these contenders, and runionfs where none of ours is among them: native, overlay, runionfs,
    /// runionfs-no-passthrough, runionfs-rootless, fuse-overlayfs, fuse-overlayfs-rootless, fuse-overlayfs-1,
    /// unionfs-fuse, mergerfs; rlaunch, bwrap, crun, unshare, which start containers; and umoci, which takes images in
    #[arg(long, value_name = "C[,C]...", value_delimiter = ',')]
    pub(crate) against: Option<Vec<String>>,
    /// One more way to mount runionfs, with these mount options; may be given several times
    #[arg(long, value_name = "NAME=OPTION[,OPTION]...")]
    pub(crate) variant: Vec<String>,
    /// Rounds that count; one more comes first and does not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Instead of a number of rounds, how long all may take: cheap rows get more rounds, 3 at least, 9 at most
    #[arg(long, value_name = "N", conflicts_with_all = ["rounds", "quick"])]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) minutes: Option<u64>,
    /// Make README's tables and plots: all the runs that it takes, or only these parts
    #[arg(long, value_name = "PART[,PART]...", value_delimiter = ',', num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "quiet,1cpu,modes", conflicts_with_all = ["rounds", "minutes", "only", "against", "pin"])]
    pub(crate) readme: Vec<Part>,
    /// Make README's tables and plots of the results.json of these runs; what a later one has counts
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "readme")]
    pub(crate) merge: Vec<PathBuf>,
    /// Where README's tables and plots go [default: bench, with --quick where the other results go]
    #[arg(long, value_name = "DIR")]
    pub(crate) table: Option<PathBuf>,
    /// Small trees and one round, to see that everything works; its times mean nothing
    #[arg(long, conflicts_with = "rounds")]
    pub(crate) quick: bool,
    /// Run everything, the daemons too, on this one CPU (0 where none is named)
    #[arg(long, value_name = "CPU", num_args = 0..=1, default_missing_value = "0")]
    pub(crate) pin: Option<usize>,
    /// Seconds after which a measurement is given up and its mount aborted [default: 300, with --quick 20]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Where the lower trees are made and kept for the next run
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/runionfs-bench")]
    pub(crate) store: PathBuf,
    /// Where the tops lie, instead of on a tmpfs
    #[arg(long, value_name = "DIR")]
    pub(crate) top: Option<PathBuf>,
    /// Where results.md, results.json and the plots go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) output: PathBuf,
    /// Say what there is to measure, and do nothing
    #[arg(long)]
    pub(crate) list: bool,
    /// This is the process inside the namespaces
    #[arg(long, hide = true)]
    pub(crate) inside: bool,
    /// This is the process inside a user namespace, for this workload
    #[arg(long, hide = true)]
    pub(crate) cell: Vec<String>,
    /// For this contender
    #[arg(long, hide = true, default_value = "")]
    pub(crate) contender: String,
    /// And it counts requests
    #[arg(long, hide = true)]
    pub(crate) count: bool,
}

impl Options {
    /// Where README's tables and plots go.
    pub(crate) fn table(&self) -> PathBuf {
        let usual = || if self.quick { self.output.clone() } else { PathBuf::from("bench") };
        self.table.clone().unwrap_or_else(usual)
    }

    /// Seconds that one measurement may take.
    pub(crate) fn timeout(&self) -> u64 {
        self.timeout.unwrap_or(if self.quick { 20 } else { 300 })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn pin_without_a_number_is_the_first_cpu() {
        assert_eq!(Options::parse_from(["bench", "--pin"]).pin, Some(0));
        assert_eq!(Options::parse_from(["bench", "--pin", "1"]).pin, Some(1));
        assert_eq!(Options::parse_from(["bench"]).pin, None);
    }

    #[test]
    fn readme_is_made_of_all_parts_or_of_some() {
        assert_eq!(Options::parse_from(["bench", "--readme"]).readme, [Part::Quiet, Part::OneCpu, Part::Modes]);
        assert_eq!(Options::parse_from(["bench", "--readme=1cpu"]).readme, [Part::OneCpu]);
        assert_eq!(Options::parse_from(["bench"]).readme, []);
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let options = Options::parse_from(["bench", "--only", "stat,find-warm", "--against", "overlay"]);
        assert_eq!(options.only, ["stat", "find-warm"]);
        assert_eq!(options.against, Some(vec!["overlay".to_owned()]));
    }
}
