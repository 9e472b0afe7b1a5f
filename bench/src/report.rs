//! The results: what is written, and whether it is sound.

pub(crate) mod lines;
pub(crate) mod markdown;
pub(crate) mod merged;
mod plot;
pub(crate) mod table;

use std::error::Error;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contender::{BWRAP, Contenders, FUSE_OVERLAYFS, FUSE_OVERLAYFS_ROOTLESS, OVERLAY, RLAUNCH, ROOTLESS};
use crate::options::Options;
use crate::requests::Requests;
use crate::rounds::{Column, Row};
use crate::statistics::{Summary, ratio};
use crate::workload::Unit;

/// Everything that is told of a run; its JSON form is `results.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Its processor and memory.
    pub(crate) machine: String,
    /// How the bench was called.
    pub(crate) command: String,
    /// The release of the kernel.
    pub(crate) kernel: String,
    /// How many CPUs could be used.
    pub(crate) cpus: usize,
    /// The only CPU that was used, where there was one.
    pub(crate) pinned_to: Option<usize>,
    /// Small trees: the times mean nothing.
    pub(crate) quick: bool,
    /// Where the tops lay.
    pub(crate) top: String,
    /// Names in the order of the columns.
    pub(crate) contenders: Vec<String>,
    /// Which of them are ours.
    pub(crate) ours: Vec<String>,
    /// Names of those that were not found, with the reason.
    pub(crate) missing: Vec<(String, String)>,
    /// The table.
    pub(crate) rows: Vec<ReportRow>,
}

/// One workload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReportRow {
    /// The workload's name.
    pub(crate) name: String,
    /// Its family.
    pub(crate) family: String,
    /// What it does.
    pub(crate) about: String,
    /// What the numbers count.
    pub(crate) unit: Unit,
    /// In the order of [`Report::contenders`].
    pub(crate) cells: Vec<ReportCell>,
}

/// One workload on one contender.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ReportCell {
    /// In the order of the rounds, in the row's unit; `null` where it failed or cannot be done.
    pub(crate) samples: Vec<Option<f64>>,
    /// What is said of them.
    pub(crate) summary: Option<Summary>,
    /// The median of the ratios to overlayfs in the same round, to bubblewrap where containers are started.
    pub(crate) to_overlay: Option<f64>,
    /// The same to fuse-overlayfs 2, to the rootless one where this is ours that is rootless.
    pub(crate) to_fuse_overlayfs: Option<f64>,
    /// What went wrong.
    pub(crate) failure: Option<String>,
    /// What the daemon was asked for, once.
    pub(crate) requests: Option<Requests>,
}

impl ReportCell {
    /// Whether there is anything to say: not where a contender cannot do the work at all.
    fn is_anything(&self) -> bool {
        self.summary.is_some() || self.failure.is_some()
    }
}

impl Report {
    /// Draws the conclusions.
    pub(crate) fn new(rows: &[Row], contenders: &Contenders, options: &Options) -> Report {
        let names: Vec<String> = contenders.present.iter().map(|contender| contender.name.clone()).collect();
        let ours = contenders.present.iter().filter(|contender| contender.is_runionfs());
        Report {
            machine: machine(),
            command: command(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            pinned_to: options.pin,
            quick: options.quick,
            top: options.top.as_ref().map_or_else(|| "tmpfs".to_owned(), |top| top.display().to_string()),
            ours: ours.map(|contender| contender.name.clone()).collect(),
            missing: contenders.missing.clone(),
            rows: rows.iter().map(|row| report_row(row, &names)).collect(),
            contenders: names,
        }
    }

    /// Writes `results.md`, `results.json` and a plot for each family into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("results.md"), markdown::page(self))?;
        fs::write(folder.join("results.json"), serde_json::to_string_pretty(self)?)?;
        plot::draw(self, folder)
    }

    /// Whether everything worked on ours, and on what it is compared with. What fails on others only is their affair.
    pub(crate) fn is_sound(&self) -> bool {
        let counts = |name: &String| self.ours.contains(name) || [OVERLAY, RLAUNCH, "native"].contains(&name.as_str());
        self.rows.iter().all(|row| {
            self.contenders.iter().zip(&row.cells).all(|(name, cell)| !counts(name) || cell.failure.is_none())
        })
    }

    /// The least and the most rounds that a row had.
    fn rounds(&self) -> (usize, usize) {
        let rounds = self.rows.iter().filter_map(|row| row.cells.iter().map(|cell| cell.samples.len()).max());
        (rounds.clone().min().unwrap_or(0), rounds.max().unwrap_or(0))
    }

    /// Which CPUs, in words.
    fn cpus_used(&self) -> String {
        match self.pinned_to {
            Some(cpu) => format!("everything on CPU {cpu}"),
            None => format!("{} CPUs", self.cpus),
        }
    }

    /// The families in the order of the table.
    fn families(&self) -> Vec<&str> {
        let mut families: Vec<&str> = self.rows.iter().map(|row| row.family.as_str()).collect();
        families.dedup();
        families
    }
}

/// What the machine says of itself: `Intel(R) Xeon(R) Processor, 23 GiB`.
fn machine() -> String {
    let said = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
        line.trim_start_matches([':', ' ', '\t']).to_owned()
    };
    let kibibytes: f64 = said("/proc/meminfo", "MemTotal:").trim_end_matches(" kB").parse().unwrap_or_default();
    format!("{}, {:.0} GiB", said("/proc/cpuinfo", "model name"), kibibytes / f64::from(1 << 20))
}

/// The words that this program was given, but those that it gives itself.
fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--inside").collect();
    format!("bench {}", words.join(" ")).trim_end().to_owned()
}

fn report_row(row: &Row, names: &[String]) -> ReportRow {
    let samples = |wanted: &str| {
        let index = names.iter().position(|name| name == wanted)?;
        Some(row.columns[index].samples.clone())
    };
    let overlay = samples(if row.workload.starts.is_some() { BWRAP } else { OVERLAY });
    let fuse_overlayfs = samples(FUSE_OVERLAYFS);
    let rootless = samples(FUSE_OVERLAYFS_ROOTLESS);
    let unit = row.workload.unit();
    let cell = |(column, name): (&Column, &String)| {
        // Who is rootless has a peer that is, too.
        let peer = rootless.as_ref().filter(|_| name == ROOTLESS).or(fuse_overlayfs.as_ref());
        let known: Vec<f64> = column.samples.iter().flatten().copied().collect();
        ReportCell {
            summary: Summary::of(&known, unit.better()),
            to_overlay: overlay.as_ref().and_then(|overlay| ratio(&column.samples, overlay)),
            to_fuse_overlayfs: peer.and_then(|peer| ratio(&column.samples, peer)),
            samples: column.samples.clone(),
            failure: column.failure.clone(),
            requests: column.requests.clone(),
        }
    };
    ReportRow {
        name: row.workload.name.to_owned(),
        family: row.workload.family.to_owned(),
        about: row.workload.about.to_owned(),
        unit,
        cells: row.columns.iter().zip(names).map(cell).collect(),
    }
}
