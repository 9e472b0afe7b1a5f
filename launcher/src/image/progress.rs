//! How far something has come: bars on standard error, where that is a terminal.

use std::io::{self, IsTerminal as _, Read};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const STYLE: &str = "{prefix:12} {wide_bar} {binary_bytes:>11} of {binary_total_bytes:>11}";
const STYLE_WITHOUT_END: &str = "{prefix:12} {spinner} {binary_bytes:>11}";

/// The bars of one command, or none.
#[derive(Debug)]
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

/// The bar of one layer, or none.
#[derive(Debug, Clone)]
pub(crate) struct Bar(Option<ProgressBar>);

impl Progress {
    /// Nothing is shown.
    pub(crate) fn none() -> Progress {
        Progress { bars: None }
    }

    /// Nothing is shown if `quiet`, or if nobody sees it.
    pub(crate) fn new(quiet: bool) -> Progress {
        let is_seen = !quiet && io::stderr().is_terminal();
        Progress { bars: is_seen.then(MultiProgress::new) }
    }

    /// One more bar, of so many bytes where that is known.
    pub(crate) fn bar(&self, what: &str, total: Option<u64>) -> Bar {
        Bar(self.bars.as_ref().map(|bars| {
            let (bar, style) = match total {
                Some(total) => (ProgressBar::new(total), STYLE),
                None => (ProgressBar::no_length(), STYLE_WITHOUT_END),
            };
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            bars.add(bar.with_style(style).with_prefix(what.to_owned()))
        }))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bars) = &self.bars {
            // What comes of it all is printed next, where they were. A terminal that is gone shows nothing any more.
            drop(bars.clear());
        }
    }
}

impl Bar {
    /// So many bytes have passed.
    pub(crate) fn reached(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    /// All of it has.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish();
        }
    }

    /// A reader whose bytes are counted.
    pub(crate) fn count<R: Read>(self, input: R) -> Counted<R> {
        Counted { input, at: 0, bar: self }
    }
}

/// A reader whose bytes are counted.
pub(crate) struct Counted<R> {
    input: R,
    at: u64,
    bar: Bar,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.at += read as u64;
        match read {
            0 if !buffer.is_empty() => self.bar.finish(),
            _ => self.bar.reached(self.at),
        }
        Ok(read)
    }
}
