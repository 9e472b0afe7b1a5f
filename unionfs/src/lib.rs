//! x
pub mod control;
pub mod mount;
pub mod options;
pub mod union;
