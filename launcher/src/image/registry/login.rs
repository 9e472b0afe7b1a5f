//! `rlaunch image login` and `logout`.

use std::path::PathBuf;

use clap::Args;

use super::credentials::{self, Credentials};
use super::reference::parse_host;
use super::repository::{Reach, Repository};
use super::secret;
use crate::failure::Failure;

/// Who logs in.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LoginOptions {
    /// The name; without it, it is asked for
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password, which every user of this machine can see there; better without it, then it is asked for
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    reach: Reach,
    /// The registry: HOST[:PORT]; without it, docker.io
    #[arg(default_value = "docker.io")]
    registry: String,
}

/// Who logs out.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LogoutOptions {
    /// Forget all registries
    #[arg(short, long, conflicts_with = "registry")]
    all: bool,
    /// The file of credentials
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// The registry: HOST[:PORT]; without it, docker.io
    #[arg(default_value = "docker.io")]
    registry: String,
}

/// Sees whether the registry takes a name and a password, and keeps them then.
pub(crate) fn login(options: &LoginOptions) -> Result<String, Failure> {
    let host = parse_host(&options.registry)?;
    let doing = format!("log in to {host}");
    let name = options.username.clone().map_or_else(|| secret::ask_openly("Name: "), Ok)?;
    let password = match &options.password {
        Some(password) => password.clone(),
        None if options.password_stdin => secret::standard_input()?,
        None => secret::ask(&format!("Password for {name}: "))?,
    };
    if name.is_empty() || name.contains(':') || password.is_empty() {
        return Err(Failure::because(&doing, "a name without colons and a password are needed"));
    }
    let credentials = Credentials::Password { name: name.clone(), password: password.clone() };
    let mut registry = Repository::new(&host, &options.reach, Some(credentials))?;
    let result = registry.greet().and_then(|()| registry.is_welcome());
    result.map_err(|trouble| Failure::because(&doing, registry.told(trouble)))?;
    let file = options.reach.authfile.clone().map_or_else(credentials::usual_file, Ok)?;
    credentials::keep(&file, &host, &name, &password)?;
    Ok(format!("logged in to {host} as {name}\n"))
}

/// Forgets what is kept.
pub(crate) fn logout(options: &LogoutOptions) -> Result<String, Failure> {
    let file = options.authfile.clone().map_or_else(credentials::usual_file, Ok)?;
    if options.all {
        credentials::forget(&file, None)?;
        return Ok("logged out everywhere\n".into());
    }
    let host = parse_host(&options.registry)?;
    let had = credentials::forget(&file, Some(&host))?;
    let is_left = credentials::find(&host, options.authfile.as_deref())?.is_some();
    match (had, is_left) {
        (_, true) => Err(Failure::because(&format!("log out of {host}"), "another file has credentials as well")
            .remedy("see ~/.docker/config.json, or the tool that has logged in")),
        (true, false) => Ok(format!("logged out of {host}\n")),
        (false, false) => Err(Failure::new(format!("nobody is logged in to {host}"))),
    }
}
