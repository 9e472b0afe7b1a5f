//! Images in registries: `pull`, `push`, `login`, `logout`; see the OCI distribution specification.
//!
//! All of it is in a program of its own, `rlaunch-registry`, that `rlaunch` executes.
//!
//! Nothing that a server says is believed: documents have a longest length, and every byte of them and of blobs is
//! verified by digests that lead back to the manifest, and to the digest that was asked for where one was. What is secret
//! goes to the registry itself and to the server of tokens that it names, over TLS, and nowhere else. Every wait ends.
//!
//! | File | Question |
//! |---|---|
//! | `pull`, `push`, `login` | the commands |
//! | `compress` | plain layers on their way out |
//! | `blob` | reading a layer, again from where a connection was lost |
//! | `repository`, `challenge`, `credentials`, `secret` | requests with the authorization that is asked for |
//! | `client` | one request, and what goes wrong |
//! | `reference`, `address` | names of images, and of places |

mod address;
mod blob;
mod challenge;
mod client;
mod compress;
mod credentials;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod login;
mod pull;
mod push;
mod reference;
mod repository;
mod secret;

pub use login::{LoginOptions, LogoutOptions};
pub use pull::{PullOptions, Wanted};
pub use push::PushOptions;
pub use repository::{Access, Reach};

pub(super) use login::{login, logout};
pub(super) use pull::run as pull;
pub(super) use push::run as push;
