//! Requests over HTTP and TLS, one at a time, and what can go wrong with them.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::{fmt, fs};

use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use crate::failure::{Doing as _, Failure};

pub(super) type Answer = Response<Body>;

/// How long a connection may take to be there.
const CONNECTING: Duration = Duration::from_secs(30);
/// How long nothing may come, or go.
pub(super) const STALLED: Duration = Duration::from_secs(60);
/// Pieces in which a connection is read and written.
const PIECE: usize = 128 * 1024;
/// A request that did not come through is sent again so many times, with pauses that double.
pub(super) const AGAIN: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A server that asks for a longer pause does not get it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// As much is read of what a server says of a failure.
const LONGEST_WORDS: u64 = 64 * 1024;
const SHOWN: usize = 300;
/// Where certificates for a registry are, in a directory `HOST[:PORT]`; containers-certs.d(5).
const CERTIFICATES: [&str; 3] = ["/etc/containers/certs.d", "/usr/share/containers/certs.d", "/etc/docker/certs.d"];

/// Why there is no answer that can be used.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection was lost, or the server is busy: it may work the next time.
    Passing { reason: String, pause: Option<Duration> },
    /// The server has refused.
    Answered { status: StatusCode, words: String },
    /// It will not work the next time either.
    Lasting(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Passing { reason, .. } | Trouble::Lasting(reason) => formatter.write_str(reason),
            Trouble::Answered { status, words } if words.is_empty() => write!(formatter, "it answers {status}"),
            Trouble::Answered { words, .. } => write!(formatter, "it answers '{words}'"),
        }
    }
}

impl std::error::Error for Trouble {}

impl Trouble {
    pub(super) fn lasting(reason: impl Into<String>) -> Trouble {
        Trouble::Lasting(reason.into())
    }

    pub(super) fn passing(reason: impl Into<String>) -> Trouble {
        Trouble::Passing { reason: reason.into(), pause: None }
    }

    /// Whether the server has answered with this status.
    pub(super) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Trouble::Answered { status, .. } if *status == wanted)
    }
}

/// What a request carries.
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// So many bytes.
    Stream(&'a mut dyn Read, u64),
}

/// What requests are sent by.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
}

/// Whom to trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Whose certificate is signed by an authority.
    Verified,
    /// Anybody.
    Anybody,
}

impl Client {
    /// For a registry of this name; certificates for it are in `directory`, or in its usual places.
    pub(super) fn new(host: &str, trust: Trust, directory: Option<&Path>) -> Result<Client, Failure> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("rlaunch/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECTING))
            .timeout_per_read(Some(STALLED))
            .timeout_per_write(Some(STALLED))
            .input_buffer_size(PIECE)
            .output_buffer_size(PIECE)
            .tls_config(tls(host, trust, directory)?);
        if is_this_machine(host) {
            config = config.proxy(None);
        }
        Ok(Client { agent: config.build().into() })
    }

    /// Sends a request and waits for the answer's headers; `patience` is how long the server may think.
    pub(super) fn send(
        &self,
        method: &Method,
        target: &str,
        headers: &[(&'static str, String)],
        payload: Payload<'_>,
        patience: Duration,
    ) -> Result<Answer, Trouble> {
        let mut request = Request::builder().method(method.clone()).uri(target);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        match payload {
            Payload::None if matches!(*method, Method::GET | Method::HEAD) => self.finish(request.body(()), patience),
            Payload::None => self.finish(request.body(&[][..]), patience),
            Payload::Bytes(bytes) => self.finish(request.body(bytes), patience),
            Payload::Stream(stream, length) => {
                let request = request.header(header::CONTENT_LENGTH, length);
                self.finish(request.body(SendBody::from_reader(stream)), patience)
            }
        }
    }

    fn finish(
        &self,
        request: Result<Request<impl ureq::AsSendBody>, ureq::http::Error>,
        patience: Duration,
    ) -> Result<Answer, Trouble> {
        let request = request.map_err(|error| Trouble::Lasting(error.to_string()))?;
        let request = self.agent.configure_request(request).timeout_per_read(Some(patience)).build();
        self.agent.run(request).map_err(trouble)
    }
}

/// Whether it is this machine that answers for a name: nobody listens in between.
pub(super) fn is_this_machine(host: &str) -> bool {
    let name = host.split(':').next().unwrap_or(host);
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// What went wrong on the way.
pub(super) fn trouble(error: ureq::Error) -> Trouble {
    match error {
        // A certificate that nobody vouches for, or no TLS at all, comes as an error of input and output.
        ureq::Error::Io(error) if is_about_tls(&error) => Trouble::Lasting(error.to_string()),
        ureq::Error::Io(error) => Trouble::passing(error.to_string()),
        ureq::Error::Timeout(_) => Trouble::passing("it does not answer"),
        ureq::Error::ConnectionFailed | ureq::Error::BodyStalled => Trouble::passing("the connection was lost"),
        ureq::Error::HostNotFound => Trouble::lasting("its address is not known"),
        other => Trouble::Lasting(other.to_string()),
    }
}

fn is_about_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// Does something again as long as the trouble is passing.
pub(super) fn patiently<T>(mut act: impl FnMut() -> Result<T, Trouble>) -> Result<T, Trouble> {
    for attempt in 0..AGAIN {
        match act() {
            Err(Trouble::Passing { pause, .. }) => thread::sleep(pause.unwrap_or_else(|| pause_after(attempt))),
            result => return result,
        }
    }
    act()
}

/// How long to wait after so many attempts.
pub(super) fn pause_after(attempt: u32) -> Duration {
    FIRST_PAUSE * 2_u32.pow(attempt)
}

/// An answer that says yes; what is said otherwise is trouble.
pub(super) fn accepted(answer: Answer) -> Result<Answer, Trouble> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let pause = pause_asked_for(answer.headers());
    let words = words(answer);
    let is_passing = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
    Err(match is_passing || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        true => Trouble::Passing { reason: Trouble::Answered { status, words }.to_string(), pause },
        false => Trouble::Answered { status, words },
    })
}

fn pause_asked_for(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// The error of a registry; see the distribution specification, "Error Codes".
#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Said {
    code: String,
    message: String,
}

/// What a server says of its refusal, in a form that can be shown: it may say anything.
fn words(answer: Answer) -> String {
    let mut text = Vec::new();
    // An answer that breaks off says as much as it says.
    drop(answer.into_body().into_reader().take(LONGEST_WORDS).read_to_end(&mut text));
    let Ok(said) = serde_json::from_slice::<Errors>(&text) else { return String::new() };
    let first = said.errors.into_iter().next().unwrap_or_default();
    let whole = [first.code, first.message].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
    whole.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(SHOWN).collect()
}

fn tls(host: &str, trust: Trust, directory: Option<&Path>) -> Result<TlsConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    let usual = || CERTIFICATES.map(|place| Path::new(place).join(host)).into_iter().collect();
    let directories: Vec<PathBuf> = directory.map_or_else(usual, |path| vec![path.to_owned()]);
    let mut own = Own::default();
    for path in &directories {
        let doing = format!("read the certificates in {}", path.display());
        own.read(path, directory.is_some()).doing(&doing)?;
    }
    let config = config.client_cert(own.client()?);
    Ok(match trust {
        Trust::Anybody => config.disable_verification(true).build(),
        Trust::Verified => {
            let system = rustls_native_certs::load_native_certs().certs;
            let system = system.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
            config.root_certs(RootCerts::Specific(Arc::new(system.chain(own.authorities).collect()))).build()
        }
    })
}

/// Certificates for one registry.
#[derive(Default)]
struct Own {
    authorities: Vec<Certificate<'static>>,
    /// Of this client.
    certificates: Vec<Certificate<'static>>,
    key: Option<PrivateKey<'static>>,
}

impl Own {
    /// Reads a directory: `*.crt` are authorities, `*.cert` and `*.key` say who we are.
    fn read(&mut self, directory: &Path, must_be_there: bool) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if !must_be_there && is_missing(&error) => return Ok(()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let ending = path.extension().and_then(|ending| ending.to_str());
            if matches!(ending, Some("crt" | "cert" | "key")) {
                let text = fs::read(&path)?;
                for item in parse_pem(&text) {
                    let item = item.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
                    self.take(item, ending == Some("crt"));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, item: PemItem<'static>, is_authority: bool) {
        match item {
            PemItem::Certificate(certificate) if is_authority => self.authorities.push(certificate),
            PemItem::Certificate(certificate) => self.certificates.push(certificate),
            PemItem::PrivateKey(key) => self.key = Some(key),
            _ => {}
        }
    }

    fn client(&mut self) -> Result<Option<ClientCert>, Failure> {
        match (self.certificates.is_empty(), self.key.take()) {
            (true, None) => Ok(None),
            (false, Some(key)) => Ok(Some(ClientCert::new_with_certs(&self.certificates, key))),
            _ => Err(Failure::new("a certificate of the client and its key belong together: NAME.cert and NAME.key")),
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_its_own_names() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["localhost.evil.org", "128.0.0.1", "127.0.0.1.evil.org", "quay.io"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn only_what_passes_is_tried_again_and_not_for_ever() {
        let mut count = 0;
        let mut act = |until: u32, trouble: fn() -> Trouble| {
            count = 0;
            let result = patiently(|| {
                count += 1;
                if count > until { Ok(()) } else { Err(trouble()) }
            });
            (result.is_ok(), count)
        };
        let short = || Trouble::Passing { reason: String::new(), pause: Some(Duration::ZERO) };
        assert_eq!(act(3, short), (true, 4));
        assert_eq!(act(99, short), (false, AGAIN + 1));
        assert_eq!(act(1, || Trouble::lasting("no")), (false, 1));
    }
}
