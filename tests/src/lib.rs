//! The test harness: everything that the integration tests share.
//!
//! A test gets a private mount namespace and a directory of its own from [`sandbox`], fills branches there with
//! [`fixture`], drives the real binary through [`mount`], and looks at whole trees as values with [`snapshot`].
//!
//! Invariants that every test may rely on:
//!
//! - What a test mounts is seen by nobody else and is gone when its [`sandbox::Sandbox`] is dropped.
//! - No test hangs: a watchdog aborts its FUSE connections and, when that does not help, the process.
//! - A test that cannot run says why; where `CI=true`, that is a failure.
#![deny(unsafe_code)]

pub mod disk;
pub mod fixture;
pub mod history;
pub mod kill_at;
pub mod mapping;
pub mod model;
pub mod mount;
pub mod old_kernel;
pub mod ops;
pub mod overlay;
pub mod rootless;
pub mod sandbox;
pub mod snapshot;
pub mod tree;
pub mod trial;
pub mod user_namespace;
pub mod world;

mod errno;

pub use errno::{Errno, ErrnoOf};
