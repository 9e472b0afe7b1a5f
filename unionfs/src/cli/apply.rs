//! `runionfs apply`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use unionfs::layer::{apply, compressed};

use super::{ApplyArgs, Failure, daemon, log, signals};

pub(super) fn run(args: &ApplyArgs) -> Result<(), Failure> {
    log::start(&log::LogArgs::default())?;
    daemon::prepare()?;
    let asked = Arc::new(Interrupt(AtomicBool::new(false)));
    signals::block()?;
    signals::watch(Arc::clone(&asked))?;
    let layer = Path::new(&args.layer);
    let failed = |error| format!("cannot read {}: {error}", layer.display());
    let input: Box<dyn Read> = if layer == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(layer).map_err(failed)?)
    };
    let mut plain = compressed::plain(input).map_err(failed)?;
    Ok(apply::apply(&mut plain, Path::new(&args.branch), &|| asked.0.load(Ordering::Relaxed))?)
}

/// Whether a signal has asked to end: what was unpacked is then removed first.
struct Interrupt(AtomicBool);

impl signals::Ending for Interrupt {
    fn ask(&self) -> bool {
        self.0.store(true, Ordering::Relaxed);
        true
    }

    fn force(&self) -> ! {
        exit(1)
    }
}
