//! The results: what is written, and whether it is sound.

pub(crate) mod markdown;
mod plot;

use std::error::Error;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::contender::{Contenders, FUSE_OVERLAYFS, FUSE_OVERLAYFS_ROOTLESS, OVERLAY, ROOTLESS};
use crate::options::Options;
use crate::requests::Requests;
use crate::rounds::{Column, Row};
use crate::statistics::{Summary, ratio};
use crate::workload::Unit;

/// Everything that is told of a run; its JSON form is `results.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The release of the kernel.
    pub(crate) kernel: String,
    /// How many CPUs could be used.
    pub(crate) cpus: usize,
    /// The only CPU that was used, where there was one.
    pub(crate) pinned_to: Option<usize>,
    /// Rounds that count.
    pub(crate) rounds: u32,
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
#[derive(Debug, Serialize)]
pub(crate) struct ReportRow {
    /// The workload's name.
    pub(crate) name: &'static str,
    /// Its family.
    pub(crate) family: &'static str,
    /// What it does.
    pub(crate) about: &'static str,
    /// What the numbers count.
    pub(crate) unit: Unit,
    /// In the order of [`Report::contenders`].
    pub(crate) cells: Vec<ReportCell>,
}

/// One workload on one contender.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ReportCell {
    /// In the order of the rounds, in the row's unit; `null` where it failed or cannot be done.
    pub(crate) samples: Vec<Option<f64>>,
    /// What is said of them.
    pub(crate) summary: Option<Summary>,
    /// The median of the ratios to overlayfs in the same round.
    pub(crate) to_overlay: Option<f64>,
    /// The same to fuse-overlayfs 2, to the rootless one where this is ours that is rootless.
    pub(crate) to_fuse_overlayfs: Option<f64>,
    /// What went wrong.
    pub(crate) failure: Option<String>,
    /// What the daemon was asked for, once.
    pub(crate) requests: Option<Requests>,
}

impl Report {
    /// Draws the conclusions.
    pub(crate) fn new(rows: &[Row], contenders: &Contenders, options: &Options) -> Report {
        let names: Vec<String> = contenders.present.iter().map(|contender| contender.name.clone()).collect();
        let ours = contenders.present.iter().filter(|contender| contender.is_runionfs());
        Report {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            pinned_to: options.pin,
            rounds: options.rounds(),
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
        let counts = |name: &String| self.ours.contains(name) || name == OVERLAY || name == "native";
        self.rows.iter().all(|row| {
            self.contenders.iter().zip(&row.cells).all(|(name, cell)| !counts(name) || cell.failure.is_none())
        })
    }

    /// The families in the order of the table.
    fn families(&self) -> Vec<&'static str> {
        let mut families: Vec<&'static str> = self.rows.iter().map(|row| row.family).collect();
        families.dedup();
        families
    }
}

fn report_row(row: &Row, names: &[String]) -> ReportRow {
    let samples = |wanted: &str| {
        let index = names.iter().position(|name| name == wanted)?;
        Some(row.columns[index].samples.clone())
    };
    let overlay = samples(OVERLAY);
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
        name: row.workload.name,
        family: row.workload.family,
        about: row.workload.about,
        unit,
        cells: row.columns.iter().zip(names).map(cell).collect(),
    }
}
