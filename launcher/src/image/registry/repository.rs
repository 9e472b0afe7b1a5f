//! One path of a registry: requests to it with the authorization that it asks for, and redirections.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, StatusCode, header};

use super::address::{encode, is_of, origin, resolve, with_query};
use super::challenge::Challenge;
use super::client::{Answer, Client, Payload, STALLED, Trouble, Trust, accepted, is_this_machine, patiently};
use super::credentials::{self, Credentials};
use super::reference::{self, Reference};
use super::secret;
use crate::failure::Failure;

const MOST_REDIRECTIONS: usize = 10;
/// As long as a token lives whose server does not say; see the token specification.
const TOKEN_LIVES: u64 = 60;
/// A token is not used up to its last moment.
const MARGIN: Duration = Duration::from_secs(10);
const LONGEST_TOKEN: u64 = 1 << 20;

/// How a registry is reached, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Access {
    /// Name and password for the registry; without a password, it is asked for
    #[arg(long, value_name = "NAME[:PASSWORD]")]
    creds: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// How a registry is reached.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Reach {
    /// A file of credentials, as podman login and docker login write it
    #[arg(long, value_name = "FILE")]
    pub(super) authfile: Option<PathBuf>,
    /// A directory of certificates: *.crt of authorities, *.cert and *.key of this client
    #[arg(long, value_name = "DIR")]
    pub(super) cert_dir: Option<PathBuf>,
    /// Whether the registry must prove who it is; false takes any certificate, and plain HTTP; only a registry on this
    /// machine need not without it
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) tls_verify: Option<bool>,
}

impl Reach {
    fn trust(&self, host: &str) -> Trust {
        let is_ours = is_this_machine(host) && self.cert_dir.is_none();
        match self.tls_verify {
            Some(true) => Trust::Verified,
            None if !is_ours => Trust::Verified,
            _ => Trust::Anybody,
        }
    }
}

impl Access {
    /// What was given, or is known, for a place `HOST/PATH`.
    fn credentials(&self, place: &str) -> Result<Option<Credentials>, Failure> {
        let Some(given) = &self.creds else { return credentials::find(place, self.reach.authfile.as_deref()) };
        let (name, password) = Credentials::read(given);
        let password = password.map_or_else(|| secret::ask(&format!("Password for {name}: ")), Ok)?;
        Ok(Some(Credentials::Password { name, password }))
    }
}

/// A path of a registry, reached.
#[derive(Debug)]
pub(crate) struct Repository {
    client: Client,
    trust: Trust,
    host: String,
    /// Scheme and machine.
    origin: String,
    path: String,
    /// What is going to be done, in the words of token servers.
    scopes: Vec<String>,
    credentials: Option<Credentials>,
    grant: Mutex<Grant>,
}

/// What has been asked for, and given.
#[derive(Debug, Default)]
struct Grant {
    challenge: Option<Challenge>,
    /// The header, and when it ends.
    header: Option<(String, Option<Instant>)>,
}

/// A request that can be sent again.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<&'a [u8]>,
    /// How long the server may think.
    pub(super) patience: Duration,
}

impl Ask<'_> {
    pub(super) fn new(method: Method, target: String) -> Ask<'static> {
        Ask { method, target, headers: Vec::new(), body: None, patience: STALLED }
    }

    fn payload(&self) -> Payload<'_> {
        self.body.map_or(Payload::None, Payload::Bytes)
    }
}

/// What a token server gives.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Repository {
    /// Reaches the registry of an image, to do `actions` (`pull` or `pull,push`) there, and to pull from other paths.
    pub(super) fn open(
        reference: &Reference,
        access: &Access,
        actions: &str,
        others: &[String],
    ) -> Result<Repository, Failure> {
        let scope = |path: &str, actions: &str| format!("repository:{path}:{actions}");
        let own = [scope(&reference.path, actions)];
        let scopes = own.into_iter().chain(others.iter().map(|path| scope(path, "pull"))).collect();
        let credentials = access.credentials(&reference.place())?;
        let mut repository = Repository::new(&reference.host, &access.reach, credentials)?;
        (repository.path, repository.scopes) = (reference.path.clone(), scopes);
        repository.greet().map_err(|trouble| repository.told(trouble))?;
        Ok(repository)
    }

    /// A registry alone, for who only wants to know whether it takes these credentials.
    pub(super) fn new(host: &str, reach: &Reach, credentials: Option<Credentials>) -> Result<Repository, Failure> {
        let trust = reach.trust(host);
        let client = Client::new(host, trust, reach.cert_dir.as_deref())?;
        let (origin, host) = (format!("https://{}", reference::server(host)), host.to_owned());
        let (path, scopes, grant) = (String::new(), Vec::new(), Mutex::default());
        Ok(Repository { client, trust, host, origin, path, scopes, credentials, grant })
    }

    /// Finds out how it is reached, and what it asks for.
    pub(super) fn greet(&mut self) -> Result<(), Trouble> {
        let server = reference::server(&self.host);
        let (secure, plain) = (format!("https://{server}"), format!("http://{server}"));
        let (origin, challenge) = patiently(|| match self.greeting(&secure) {
            // There may be no TLS at all.
            Err(first) if self.trust == Trust::Anybody => match self.greeting(&plain) {
                // A server with TLS says that it does not understand the other.
                Err(Trouble::Answered { .. }) => Err(first),
                Err(second) => Err(second),
                Ok(challenge) => Ok((plain.clone(), challenge)),
            },
            result => result.map(|challenge| (secure.clone(), challenge)),
        })?;
        self.origin = origin;
        self.grant().challenge = challenge;
        Ok(())
    }

    /// What a registry asks for at this place.
    fn greeting(&self, origin: &str) -> Result<Option<Challenge>, Trouble> {
        let answer = self.client.send(&Method::GET, &format!("{origin}/v2/"), &[], Payload::None, STALLED)?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => Ok(challenge(&answer)),
            StatusCode::NOT_FOUND => Err(Trouble::lasting("it has no registry's interface of version 2")),
            // That this is closed says nothing of the images.
            StatusCode::FORBIDDEN => Ok(None),
            _ => accepted(answer).map(|_| None),
        }
    }

    /// Whether the credentials are taken.
    pub(super) fn is_welcome(&self) -> Result<(), Trouble> {
        self.ask(&Ask::new(Method::GET, format!("{}/v2/", self.origin))).map(drop)
    }

    /// The address of something of this path.
    pub(super) fn address(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.origin, self.path)
    }

    /// What is told of a failure, with its remedy where there is one.
    pub(super) fn told(&self, trouble: Trouble) -> Failure {
        let failure = Failure::new(format!("the registry {}: {trouble}", self.host));
        let is_shut = trouble.is(StatusCode::UNAUTHORIZED) || trouble.is(StatusCode::FORBIDDEN);
        match (is_shut, &self.credentials) {
            (true, None) => failure.remedy(&format!("if the name is right: rlaunch image login {}", self.host)),
            (true, Some(_)) => failure.remedy("see the name, and the credentials that were used"),
            _ if trouble.to_string().contains("certificate") => {
                failure.remedy("give the authority's with --cert-dir, or --tls-verify=false to trust anybody")
            }
            _ => failure,
        }
    }

    /// Asks until there is an answer that says yes, following where it leads.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        patiently(|| accepted(self.follow(ask)?))
    }

    /// Asks for a document, which is read to its end and has at most so many bytes.
    pub(super) fn document(&self, ask: &Ask<'_>, most: u64) -> Result<(HeaderMap, Vec<u8>), Trouble> {
        patiently(|| {
            let (head, body) = accepted(self.follow(ask)?)?.into_parts();
            let mut text = Vec::new();
            let read = body.into_reader().take(most + 1).read_to_end(&mut text);
            read.map_err(|error| Trouble::passing(error.to_string()))?;
            match text.len() as u64 > most {
                true => Err(Trouble::lasting(format!("it sends more than the {most} bytes of a document"))),
                false => Ok((head.headers, text)),
            }
        })
    }

    fn follow(&self, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        let mut target = ask.target.clone();
        for _ in 0..MOST_REDIRECTIONS {
            let mut answer = self.authorized(ask, &target, || ask.payload())?;
            let follows = matches!(ask.method, Method::GET | Method::HEAD) && answer.status().is_redirection();
            if !follows {
                return Ok(answer);
            }
            target = self.location(&target, &answer)?;
            // What is said beside it is not of interest, and read so that the connection can be used again.
            drop(std::io::copy(&mut answer.body_mut().as_reader().take(LONGEST_TOKEN), &mut std::io::sink()));
        }
        Err(Trouble::lasting("it leads from one place to the next"))
    }

    /// Where an answer leads. What came over TLS does not lead out of it.
    pub(super) fn location(&self, from: &str, answer: &Answer) -> Result<String, Trouble> {
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| resolve(from, location));
        let target = target.ok_or_else(|| Trouble::lasting("it leads to no address that can be followed"))?;
        match self.trust == Trust::Verified && target.starts_with("http://") {
            true => Err(Trouble::lasting("it leads to a place without TLS")),
            false => Ok(target),
        }
    }

    /// Sends a stream once, with authorization; trouble is passing where a new one has to be asked for.
    pub(super) fn send(&self, ask: &Ask<'_>, payload: Payload<'_>) -> Result<Answer, Trouble> {
        let answer =
            self.client.send(&ask.method, &ask.target, &self.headers(ask, &ask.target)?, payload, ask.patience)?;
        if answer.status() == StatusCode::UNAUTHORIZED && is_of(&ask.target, &self.origin) && self.renew(&answer) {
            return Err(Trouble::passing("it asks for a new token"));
        }
        accepted(answer)
    }

    /// Sends a request, and once more where the answer asks for another authorization.
    fn authorized<'a>(
        &self,
        ask: &Ask<'_>,
        target: &str,
        payload: impl Fn() -> Payload<'a>,
    ) -> Result<Answer, Trouble> {
        let once = || self.client.send(&ask.method, target, &self.headers(ask, target)?, payload(), ask.patience);
        let answer = once()?;
        match answer.status() == StatusCode::UNAUTHORIZED && is_of(target, &self.origin) && self.renew(&answer) {
            true => once(),
            false => Ok(answer),
        }
    }

    /// The headers of a request; what is secret goes to the registry alone.
    fn headers(&self, ask: &Ask<'_>, target: &str) -> Result<Vec<(&'static str, String)>, Trouble> {
        let mut headers = ask.headers.clone();
        if is_of(target, &self.origin) {
            headers.extend(self.authorization()?.map(|value| ("Authorization", value)));
        }
        Ok(headers)
    }

    fn grant(&self) -> std::sync::MutexGuard<'_, Grant> {
        // It is whole at any moment.
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new challenge in the place of what was given for an older one; whether that is of use.
    fn renew(&self, answer: &Answer) -> bool {
        let Some(challenge) = challenge(answer) else { return false };
        let is_of_use = challenge != Challenge::Basic || self.credentials.is_some();
        *self.grant() = Grant { challenge: Some(challenge), header: None };
        is_of_use
    }

    /// What was asked for. Others wait while a token is fetched, for they need the same one.
    fn authorization(&self) -> Result<Option<String>, Trouble> {
        let mut grant = self.grant();
        if let Some((header, until)) = &grant.header
            && until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(Some(header.clone()));
        }
        let (header, until) = match &grant.challenge {
            None => return Ok(None),
            Some(Challenge::Basic) => match self.credentials.as_ref().and_then(Credentials::basic) {
                Some(header) => (header, None),
                None => return Ok(None),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let (token, lives) = self.token(realm, service.as_deref(), scope.as_deref())?;
                let until = Instant::now().checked_add(lives.saturating_sub(MARGIN));
                (format!("Bearer {token}"), until)
            }
        };
        grant.header = Some((header.clone(), until));
        Ok(Some(header))
    }

    /// Asks a token server.
    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<(String, Duration), Trouble> {
        let place = origin(realm).ok_or_else(|| Trouble::lasting("it names no server of tokens that can be asked"))?;
        if self.trust == Trust::Verified && place.starts_with("http://") {
            return Err(Trouble::lasting("its server of tokens is without TLS"));
        }
        let mut scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        scopes.extend(scope.filter(|scope| !scopes.contains(scope)));
        let answer =
            patiently(|| accepted(self.ask_for_token(realm, service, &scopes)?)).map_err(|trouble| match trouble {
                Trouble::Passing { reason, pause } => Trouble::Passing { reason: format!("{place}: {reason}"), pause },
                other => other,
            })?;
        let mut text = Vec::new();
        let read = answer.into_body().into_reader().take(LONGEST_TOKEN).read_to_end(&mut text);
        read.map_err(|error| Trouble::passing(format!("{place}: {error}")))?;
        let token: Option<Token> = serde_json::from_slice(&text).ok();
        let lives = Duration::from_secs(token.as_ref().and_then(|token| token.expires_in).unwrap_or(TOKEN_LIVES));
        let token = token.and_then(|token| token.token.or(token.access_token));
        // It becomes a header.
        let token = token.filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        token.map(|token| (token, lives)).ok_or_else(|| Trouble::lasting(format!("{place} gives no token")))
    }

    fn ask_for_token(&self, realm: &str, service: Option<&str>, scopes: &[&str]) -> Result<Answer, Trouble> {
        if let Some(Credentials::Identity(token)) = &self.credentials {
            let fields = [
                ("grant_type", "refresh_token"),
                ("client_id", "rlaunch"),
                ("service", service.unwrap_or_default()),
                ("scope", &scopes.join(" ")),
                ("refresh_token", token),
            ];
            let form = fields.map(|(key, value)| format!("{key}={}", encode(value))).join("&");
            let headers = [("Content-Type", "application/x-www-form-urlencoded".to_owned())];
            return self.client.send(&Method::POST, realm, &headers, Payload::Bytes(form.as_bytes()), STALLED);
        }
        let mut target = realm.to_owned();
        for (key, value) in
            service.map(|service| ("service", service)).into_iter().chain(scopes.iter().map(|scope| ("scope", *scope)))
        {
            target = with_query(&target, key, value);
        }
        let basic = self.credentials.as_ref().and_then(Credentials::basic);
        let headers: Vec<_> = basic.map(|value| ("Authorization", value)).into_iter().collect();
        self.client.send(&Method::GET, &target, &headers, Payload::None, STALLED)
    }
}

fn challenge(answer: &Answer) -> Option<Challenge> {
    let headers = answer.headers().get_all(header::WWW_AUTHENTICATE);
    Challenge::read(headers.iter().filter_map(|value| value.to_str().ok()))
}
