//! `rlaunch image pull`.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use ureq::http::{HeaderMap, Method, StatusCode, header};

use super::blob::Blobs;
use super::client::Trouble;
use super::reference::{Reference, Version};
use super::repository::{Access, Ask, Repository};
use crate::failure::Failure;
use crate::image::digest::Digest;
use crate::image::files::Files;
use crate::image::import;
use crate::image::manifest::{
    self, Config, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, INDEX, Index, MANIFEST, Manifest, Platform,
};
use crate::image::progress::Progress;
use crate::image::source::{self, Parts};
use crate::image::store::Store;
use crate::message::warn;

/// The distribution specification lets registries refuse longer ones.
const LONGEST: u64 = 4 << 20;
/// One index may lead to another, but not for long.
const DEEPEST: usize = 3;

/// What is pulled.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PullOptions {
    #[command(flatten)]
    access: Access,
    /// For which machine, where there are several; without it, for this one
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Wanted>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// The image: [HOST[:PORT]/]NAME[:TAG] or NAME@sha256:DIGEST
    image: String,
}

/// A machine for which an image is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        let words: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match words.as_slice() {
            [architecture] => ("linux", *architecture, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => return Err("it is OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64".into()),
        };
        if words.iter().any(|word| word.is_empty()) {
            return Err("it is OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64".into());
        }
        // As uname has them.
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Wanted { os: os.into(), architecture: architecture.into(), variant: variant.map(str::to_owned) })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(formatter, "/{variant}"))
    }
}

impl Wanted {
    fn here() -> Wanted {
        Wanted { os: "linux".into(), architecture: manifest::architecture().into(), variant: None }
    }

    /// Whether an image of a platform is one. Without a variant, any will do.
    fn is(&self, platform: &Platform) -> bool {
        let variant = self.variant.as_ref();
        self.os == platform.os
            && self.architecture == platform.architecture
            && variant.is_none_or(|variant| platform.variant.as_ref() == Some(variant))
    }
}

/// Pulls; what is printed: the name and the id.
pub(crate) fn run(options: &PullOptions) -> Result<String, Failure> {
    let reference = Reference::parse(&options.image)?;
    let doing = format!("pull {}", reference.name());
    let store = Store::open()?;
    let told = |failure: Failure| failure.within(&doing);
    let repository = Repository::open(&reference, &options.access, "pull", &[]).map_err(told)?;
    let here = Wanted::here();
    let wanted = options.platform.as_ref().unwrap_or(&here);
    let (manifest, text) = chosen(&repository, &reference.version, wanted).map_err(told)?;
    let blobs = Blobs::new(repository, manifest.layers.iter().chain([&manifest.config]));
    let files = Files::Registry(Box::new(blobs));
    let parts = source::of_manifest(&files, manifest, text, |digest| digest.to_string(), &doing)?;
    see_platform(&parts, wanted, &reference);
    let progress = Progress::new(options.quiet);
    import::one(&store, &files, &parts, &[reference.name()], &doing, &progress)
}

/// Says so where an image that is there alone is for another machine.
fn see_platform(parts: &Parts, wanted: &Wanted, reference: &Reference) {
    let config = parts.config.as_deref().and_then(|text| serde_json::from_slice::<Config>(text).ok());
    let Some(Config { os, architecture, .. }) = config else { return };
    if !architecture.is_empty() && (os.as_str(), architecture.as_str()) != (&wanted.os, &wanted.architecture) {
        let (os, architecture) = (os.escape_debug(), architecture.escape_debug());
        warn(format_args!("{} is for {os}/{architecture}, not for {wanted}", reference.name()));
    }
}

/// The manifest of the image that is wanted, verified.
fn chosen(repository: &Repository, version: &Version, wanted: &Wanted) -> Result<(Manifest, Vec<u8>), Failure> {
    let (headers, mut text) = fetch(repository, &version.word()).map_err(|trouble| repository.told(trouble))?;
    let digest = Digest::of(&text);
    let said = match version {
        Version::Digest(digest) => Some(*digest),
        Version::Tag(_) => said_digest(&headers),
    };
    check(digest, said)?;
    let mut media_type = content_type(&headers);
    for _ in 0..DEEPEST {
        let Some(index) = as_index(&text, &media_type)? else {
            let manifest = parse::<Manifest>(&text)?;
            return Ok((manifest, text));
        };
        let found = choose(&index, wanted)?;
        let (headers, inner) =
            fetch(repository, &found.digest.to_string()).map_err(|trouble| repository.told(trouble))?;
        check(Digest::of(&inner), Some(found.digest))?;
        (text, media_type) = (inner, content_type(&headers));
    }
    Err(Failure::new("its indexes lead from one to the next"))
}

fn fetch(repository: &Repository, word: &str) -> Result<(HeaderMap, Vec<u8>), Trouble> {
    let mut ask = Ask::new(Method::GET, repository.address(&format!("manifests/{word}")));
    ask.headers.push(("Accept", [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ")));
    repository.document(&ask, LONGEST).map_err(|trouble| match trouble.is(StatusCode::NOT_FOUND) {
        true => Trouble::lasting(format!("there is no such image ({trouble})")),
        false => trouble,
    })
}

fn check(found: Digest, said: Option<Digest>) -> Result<(), Failure> {
    match said {
        Some(said) if said != found => Err(Failure::new(format!("the manifest is not {said}, but {found}"))),
        _ => Ok(()),
    }
}

fn said_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("Docker-Content-Digest")?.to_str().ok()?.parse().ok()
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::because("read the manifest", error))
}

/// What is common to all of these documents.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// The document as a list of images, if it is one. It says itself what it is; where it does not, the header does.
fn as_index(text: &[u8], media_type: &str) -> Result<Option<Index>, Failure> {
    let kind: Kind = parse(text)?;
    if kind.schema_version != 2 {
        let failure = Failure::new("the image is in docker's form of before 2016, schema 1, which is not read");
        return Err(failure.remedy("skopeo copy --format v2s2 changes it"));
    }
    let media_type = kind.media_type.as_deref().unwrap_or(media_type);
    let is_index = [INDEX, DOCKER_LIST].contains(&media_type) || kind.manifests.is_some();
    if is_index { parse(text).map(Some) } else { Ok(None) }
}

fn choose<'a>(index: &'a Index, wanted: &Wanted) -> Result<&'a Descriptor, Failure> {
    let is_one = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| wanted.is(platform));
    let is_silent = |entry: &&Descriptor| entry.platform.is_none();
    let found = index.manifests.iter().find(is_one).or_else(|| index.manifests.iter().find(is_silent));
    found.ok_or_else(|| {
        let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref()).map(printed);
        let there: Vec<String> = platforms.filter(|text| !text.contains("unknown")).take(20).collect();
        Failure::new(format!("there is no image for {wanted}"))
            .remedy(&format!("--platform with one of {}", there.join(", ")))
    })
}

fn printed(platform: &Platform) -> String {
    let variant = platform.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os, platform.architecture).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
        let manifests = platforms.iter().enumerate().map(|(number, (os, architecture, variant))| {
            let digest = Digest::of(&[number as u8]);
            let variant = variant.map(str::to_owned);
            let platform = Some(Platform { os: (*os).into(), architecture: (*architecture).into(), variant });
            Descriptor { platform, ..Descriptor::new(MANIFEST, digest, 1) }
        });
        Index::new(manifests.collect())
    }

    #[test]
    fn a_platform_is_chosen_or_those_that_are_there_are_named() {
        let index = index(&[
            ("windows", "amd64", None),
            ("linux", "arm", Some("v6")),
            ("linux", "arm", Some("v7")),
            ("linux", "amd64", None),
            ("unknown", "unknown", None),
        ]);
        for (wanted, number) in [("linux/amd64", 3), ("x86_64", 3), ("linux/arm", 1), ("linux/arm/v7", 2)] {
            let found = choose(&index, &wanted.parse().unwrap()).unwrap();
            assert_eq!(found.digest, Digest::of(&[number]), "{wanted}");
        }
        let failure = choose(&index, &"linux/s390x".parse().unwrap()).unwrap_err().to_string();
        assert!(failure.contains("linux/arm/v7, linux/amd64)") && !failure.contains("unknown"), "{failure}");
        for text in ["", "linux/", "a/b/c/d"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_document_says_what_it_is() {
        let list = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(as_index(list, "").unwrap().is_some());
        assert!(as_index(br#"{"schemaVersion":2,"config":{}}"#, MANIFEST).unwrap().is_none());
        assert!(as_index(br#"{"schemaVersion":1}"#, "").unwrap_err().to_string().contains("schema 1"));
        assert!(as_index(b"<html>", "text/html").is_err());
    }
}
