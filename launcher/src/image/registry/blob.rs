//! Reading a blob of a registry: where the connection is lost, it goes on from there.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use ureq::BodyReader;
use ureq::http::{Method, StatusCode, header};

use super::client::{AGAIN, Answer, Trouble, pause_after};
use super::repository::{Ask, Repository};
use crate::image::digest::Digest;
use crate::image::files::Remote;
use crate::image::manifest::Descriptor;

/// With as many bytes since the last time, a lost connection is one that works.
const ENOUGH: u64 = 1 << 20;

/// The blobs of an image, by their digests.
#[derive(Debug)]
pub(super) struct Blobs {
    repository: Arc<Repository>,
    sizes: HashMap<String, u64>,
}

impl Blobs {
    /// Those that a manifest names.
    pub(super) fn new<'a>(repository: Repository, named: impl Iterator<Item = &'a Descriptor>) -> Blobs {
        let sizes = named.map(|blob| (blob.digest.to_string(), blob.size)).collect();
        Blobs { repository: Arc::new(repository), sizes }
    }
}

impl Remote for Blobs {
    fn has(&self, digest: &str) -> bool {
        self.sizes.contains_key(digest)
    }

    fn open(&self, digest: &str) -> io::Result<Box<dyn Read + Send>> {
        let size = *self.sizes.get(digest).ok_or(io::ErrorKind::NotFound)?;
        let digest = digest.parse().map_err(io::Error::other)?;
        let repository = Arc::clone(&self.repository);
        Ok(Box::new(Blob { repository, digest, size, at: 0, body: None, losses: Losses::default() }))
    }
}

/// How often a connection was lost.
#[derive(Debug, Default)]
pub(super) struct Losses {
    count: u32,
    /// How far it had come.
    at: u64,
}

impl Losses {
    /// One more. Waits; fails where that leads nowhere.
    pub(super) fn add(&mut self, at: u64, trouble: Trouble) -> Result<(), Trouble> {
        let Trouble::Passing { pause, .. } = &trouble else { return Err(trouble) };
        if at >= self.at.saturating_add(ENOUGH) {
            self.count = 0;
        }
        self.at = at;
        if self.count == AGAIN {
            return Err(trouble);
        }
        thread::sleep(pause.unwrap_or_else(|| pause_after(self.count)));
        self.count += 1;
        Ok(())
    }
}

struct Blob {
    repository: Arc<Repository>,
    digest: Digest,
    size: u64,
    at: u64,
    body: Option<BodyReader<'static>>,
    losses: Losses,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match &mut self.body {
                Some(body) => body.read(buffer),
                None => {
                    self.body = Some(self.begin().map_err(|trouble| io::Error::other(self.repository.told(trouble)))?);
                    continue;
                }
            };
            let reason = match result {
                Ok(0) if self.at < self.size && !buffer.is_empty() => "it ends too early".to_owned(),
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if self.at < self.size => error.to_string(),
                // There is all that there should be.
                Err(_) => return Ok(0),
            };
            self.body = None;
            let lost = self.losses.add(self.at, Trouble::passing(reason));
            lost.map_err(|trouble| io::Error::other(self.repository.told(trouble)))?;
        }
    }
}

impl Blob {
    /// Asks for what has not come yet.
    fn begin(&self) -> Result<BodyReader<'static>, Trouble> {
        let mut ask = Ask::new(Method::GET, self.repository.address(&format!("blobs/{}", self.digest)));
        if self.at > 0 {
            ask.headers.push(("Range", format!("bytes={}-", self.at)));
        }
        let answer =
            self.repository.ask(&ask).map_err(|trouble| match trouble.is(StatusCode::RANGE_NOT_SATISFIABLE) {
                true => {
                    Trouble::lasting(format!("{} has not the {} bytes that it is said to have", self.digest, self.size))
                }
                false => trouble,
            })?;
        let begins = first_byte(&answer);
        let mut body = answer.into_body().into_reader();
        match begins {
            Some(first) if first == self.at => {}
            // One that knows no ranges begins anew.
            Some(0) => drop(io::copy(&mut body.by_ref().take(self.at), &mut io::sink()).map_err(lost)?),
            _ => return Err(Trouble::lasting("it sends another part than it was asked for")),
        }
        Ok(body)
    }
}

fn lost(error: io::Error) -> Trouble {
    Trouble::passing(error.to_string())
}

/// Where the content of an answer begins; RFC 9110, 14.4.
fn first_byte(answer: &Answer) -> Option<u64> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    let range = answer.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
