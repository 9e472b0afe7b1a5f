//! x
pub mod options;
pub mod union;
