//! Who the user is for a registry, as podman, skopeo and docker keep it: containers-auth.json(5), and docker's
//! `config.json`, with the helper programs that it names.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::failure::{Doing as _, Failure};
use crate::rootless;

/// Under which name docker keeps what belongs to its own registry.
const DOCKERS_OWN: &str = "https://index.docker.io/v1/";
/// With this name a helper says that the secret is a token.
const TOKEN: &str = "<token>";
const PROGRAM_PREFIX: &str = "docker-credential-";

/// What proves who the user is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        name: String,
        password: String,
    },
    /// A token that others are given for.
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials")
    }
}

impl Credentials {
    /// `NAME:PASSWORD`; the password may be missing.
    pub(crate) fn read(text: &str) -> (String, Option<String>) {
        match text.split_once(':') {
            Some((name, password)) => (name.to_owned(), Some(password.to_owned())),
            None => (text.to_owned(), None),
        }
    }

    /// The header for `Basic`; RFC 7617.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password { name, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
            }
            Credentials::Identity(_) => None,
        }
    }
}

/// A file as they have it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: Map<String, Value>,
    cred_helpers: Map<String, Value>,
    creds_store: Option<String>,
}

/// What a helper program answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What is known of the user for a place `HOST/PATH`. The first file that knows something says it.
pub(crate) fn find(place: &str, given: Option<&Path>) -> Result<Option<Credentials>, Failure> {
    for path in given.map_or_else(places, |path| vec![path.to_owned()]) {
        let doing = format!("read {}", path.display());
        let text = match fs::read(&path) {
            // One that was named may be missing too, as for podman: there are public images.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            // In a namespace of the user's, the folder of the machine's root is closed.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && given.is_none() => continue,
            text => text.doing(&doing)?,
        };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let file: AuthFile = serde_json::from_slice(&text).map_err(|error| Failure::because(&doing, error))?;
        if let Some(found) = file.find(place).map_err(|reason| Failure::because(&doing, reason))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The file that `login` writes.
pub(crate) fn usual_file() -> Result<PathBuf, Failure> {
    let doing = "find the file of credentials";
    if let Some(path) = std::env::var_os("REGISTRY_AUTH_FILE").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    Ok(running(rootless::user().doing(doing)?))
}

/// Where such files are, in the order of containers-auth.json(5).
fn places() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("REGISTRY_AUTH_FILE").filter(|path| !path.is_empty()) {
        return vec![path.into()];
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = variable("HOME");
    let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
    let runs = rootless::user().ok().map(running);
    let config = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    let places = [
        runs,
        config.map(|config| config.join("containers/auth.json")),
        docker.map(|docker| docker.join("config.json")),
    ];
    places.into_iter().flatten().collect()
}

/// The file that is gone with the user's session; root has one, too, where it has logged in.
fn running(user: u32) -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(folder) => folder.join("containers/auth.json"),
        None => format!("/run/containers/{user}/auth.json").into(),
    }
}

impl AuthFile {
    fn find(&self, place: &str) -> Result<Option<Credentials>, String> {
        // The longest name first: HOST/a/b, HOST/a, HOST.
        let names: Vec<&str> = place.match_indices('/').map(|(at, _)| &place[..at]).chain([place]).rev().collect();
        for name in &names {
            if let Some(helper) = self.cred_helpers.get(*name).and_then(Value::as_str) {
                return ask(helper, name);
            }
            if let Some(entry) = self.auths.iter().find_map(|(key, entry)| (bare(key) == *name).then_some(entry))
                && let Some(found) = decoded(entry)?
            {
                return Ok(Some(found));
            }
        }
        let host = names.last().copied().unwrap_or(place);
        match self.creds_store.as_deref().filter(|helper| !helper.is_empty()) {
            Some(helper) => ask(helper, if host == "docker.io" { DOCKERS_OWN } else { host }),
            None => Ok(None),
        }
    }
}

/// The name of a registry without what docker puts around it.
fn bare(key: &str) -> &str {
    let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let name = ["/v1/", "/v1", "/v2/", "/v2", "/"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    if name == "index.docker.io" { "docker.io" } else { name }
}

/// An entry of `auths`. An empty one only says that a helper knows more.
fn decoded(entry: &Value) -> Result<Option<Credentials>, String> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::Identity(token.to_owned())));
    }
    let Some(auth) = text("auth") else { return Ok(None) };
    let wrong = || "an entry's 'auth' is no name and password in Base64".to_owned();
    let plain = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    let (name, password) = plain.split_once(':').ok_or_else(wrong)?;
    // docker fills some up with zeros.
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Credentials::Password { name: name.to_owned(), password }))
}

/// Asks a helper program; see docker's "Credential helper protocol".
fn ask(helper: &str, server: &str) -> Result<Option<Credentials>, String> {
    if helper.contains('/') {
        return Err(format!("'{}' is no name of a helper", helper.escape_debug()));
    }
    let program = format!("{PROGRAM_PREFIX}{helper}");
    let failed = |error: io::Error| format!("{program}: {error}");
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(server.as_bytes()) {
            // It need not listen; what it answers tells.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stdout);
        return match words.contains("credentials not found") {
            true => Ok(None),
            false => Err(format!("{program}: {}", words.trim().escape_debug())),
        };
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| format!("{program}: {error}"))?;
    Ok(Some(match answer.username == TOKEN {
        true => Credentials::Identity(answer.secret),
        false => Credentials::Password { name: answer.username, password: answer.secret },
    }))
}

/// Keeps a name and a password for a registry.
pub(crate) fn keep(path: &Path, host: &str, name: &str, password: &str) -> Result<(), Failure> {
    change(path, |auths| {
        forget_in(auths, host);
        auths.insert(host.to_owned(), json!({ "auth": STANDARD.encode(format!("{name}:{password}")) }));
    })
}

/// Forgets what is kept for a registry, or for all; whether there was something.
pub(crate) fn forget(path: &Path, host: Option<&str>) -> Result<bool, Failure> {
    if !path.exists() {
        return Ok(false);
    }
    let mut had = 0;
    change(path, |auths| {
        let before = auths.len();
        match host {
            Some(host) => forget_in(auths, host),
            None => auths.clear(),
        }
        had = before - auths.len();
    })?;
    Ok(had > 0)
}

fn forget_in(auths: &mut Map<String, Value>, host: &str) {
    auths.retain(|key, _| bare(key) != host);
}

/// Changes a file, which keeps whatever else it says; nobody but the user can read it.
fn change(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), Failure> {
    let doing = format!("write {}", path.display());
    let path = &std::path::absolute(path).doing(&doing)?;
    let mut file: Map<String, Value> = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
        Ok(text) if text.trim_ascii().is_empty() => Map::new(),
        text => serde_json::from_slice(&text.doing(&doing)?).map_err(|error| Failure::because(&doing, error))?,
    };
    let auths = file.entry("auths").or_insert_with(|| json!({}));
    change(auths.as_object_mut().ok_or_else(|| Failure::because(&doing, "its 'auths' is no object"))?);
    let text = serde_json::to_vec_pretty(&file).map_err(|error| Failure::because(&doing, error))?;
    write(path, &text).doing(&doing)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.exists() {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Where it is a link, what it leads to is written.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let permissions = fs::Permissions::from_mode(0o600);
    let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(path.parent().unwrap_or(folder))?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> AuthFile {
        serde_json::from_str(text).unwrap()
    }

    fn password(name: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { name: name.into(), password: password.into() })
    }

    #[test]
    fn the_longest_name_says_who_the_user_is() {
        let auth = |text: &str| format!("{{\"auth\":\"{}\"}}", STANDARD.encode(text));
        let file = file(&format!(
            r#"{{"auths":{{"h:5000":{},"h:5000/a/b":{},"https://index.docker.io/v1/":{},"q.io":{{"identitytoken":"t"}},"e.io":{{}}}}}}"#,
            auth("one:1"),
            auth("two:2:3"),
            auth("three:3\0\0"),
        ));
        for (place, expected) in [
            ("h:5000/a", password("one", "1")),
            ("h:5000/a/b", password("two", "2:3")),
            ("h:5000/a/b/c", password("two", "2:3")),
            ("h:5000", password("one", "1")),
            ("docker.io/library/x", password("three", "3")),
            ("q.io/x", Some(Credentials::Identity("t".into()))),
            ("e.io/x", None),
            ("h/a", None),
        ] {
            assert_eq!(file.find(place).unwrap(), expected, "{place}");
        }
    }

    #[test]
    fn what_is_no_entry_is_told() {
        for entry in [r#"{"auth":"???"}"#, r#"{"auth":"YQ=="}"#] {
            assert!(file(&format!(r#"{{"auths":{{"h.x":{entry}}}}}"#)).find("h.x/a").is_err(), "{entry}");
        }
        assert!(file(r#"{"credsStore":"../../bin/sh"}"#).find("h.x/a").is_err());
    }

    #[test]
    fn a_file_keeps_what_else_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/auth.json");
        keep(&path, "h.x", "me", "secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, r#"{"auths":{"https://h.x/v1/":{"auth":"YTpi"},"o.x":{}},"psFormat":"x"}"#).unwrap();
        keep(&path, "h.x", "me", "s:e").unwrap();
        assert_eq!(find("h.x/a", Some(&path)).unwrap(), password("me", "s:e"));
        assert!(forget(&path, Some("h.x")).unwrap() && !forget(&path, Some("h.x")).unwrap());
        assert_eq!(
            fs::read_to_string(&path).unwrap().replace([' ', '\n'], ""),
            r#"{"auths":{"o.x":{}},"psFormat":"x"}"#
        );
    }
}
