//! What is said on standard error.

use std::fmt::Display;
use std::io::{Write as _, stderr};

/// One line for something that the container does without.
pub(crate) fn warn(text: impl Display) {
    say(format_args!("warning: {text}"));
}

/// One line.
pub(crate) fn say(text: impl Display) {
    // One write, so that lines of several processes do not mix. With standard error closed there is nobody to tell.
    drop(stderr().write_all(format!("rlaunch: {text}\n").as_bytes()));
}
