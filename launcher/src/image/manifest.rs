//! The documents of images, as far as something here depends on what they say: manifests and indexes of the OCI image
//! specification and of docker, which differ in names only, and the configuration.
//!
//! A configuration is kept byte by byte, for its digest is the image's id; these types only read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Media types of the OCI image specification, "Media Types".
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// docker's words for a manifest and for a list of them.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Annotations that say what an image is called.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// A document that is longer is not read; registries and others take no longer ones either.
pub(crate) const LONGEST: u64 = 4 << 20;
/// An image with more layers is none that anybody runs.
pub(crate) const MOST_LAYERS: usize = 500;

/// What a document says of another blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// docker's archives do without.
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

/// What a manifest of an index is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new(), platform: None }
    }

    /// Of bytes that are here.
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// What the image is called, where it is a layout's that says so.
    pub(crate) fn name(&self) -> Option<&str> {
        [CONTAINERD_NAME, REF_NAME].iter().find_map(|key| self.annotations.get(*key)).map(String::as_str)
    }

    pub(crate) fn named(self, name: &str) -> Descriptor {
        Descriptor { annotations: BTreeMap::from([(REF_NAME.to_owned(), name.to_owned())]), ..self }
    }

    pub(crate) fn is_index(&self) -> bool {
        [INDEX, DOCKER_LIST].contains(&&*self.media_type)
    }

    /// Whether it is for this machine. One that says nothing is.
    fn is_for(&self, architecture: &str) -> bool {
        self.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture)
    }
}

/// A list of images: `index.json` of a layout, or one image for several machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    pub(crate) manifests: Vec<Descriptor>,
}

impl Index {
    pub(crate) fn new(manifests: Vec<Descriptor>) -> Index {
        Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests }
    }

    /// The one for this machine.
    pub(crate) fn here(&self) -> Option<&Descriptor> {
        self.manifests.iter().find(|manifest| manifest.is_for(architecture()))
    }
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Manifest {
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        let (schema_version, media_type) = (2, MANIFEST.to_owned());
        Manifest { schema_version, media_type, config, layers, annotations: BTreeMap::new() }
    }

    /// The same with other layers.
    pub(crate) fn with_layers(self, layers: Vec<Descriptor>) -> Manifest {
        Manifest { media_type: MANIFEST.to_owned(), layers, ..self }
    }

    /// The words of docker in those of OCI; nothing where it is OCI's already, or something else.
    pub(crate) fn translated(&self) -> Option<Manifest> {
        let translate = |layer: &Descriptor| Descriptor { media_type: oci_layer(&layer.media_type), ..layer.clone() };
        (self.media_type == DOCKER_MANIFEST).then(|| {
            let config = Descriptor { media_type: CONFIG.to_owned(), ..self.config.clone() };
            Manifest::new(config, self.layers.iter().map(translate).collect())
        })
    }
}

fn oci_layer(docker: &str) -> String {
    let word = match docker.rsplit(['.', '+']).next() {
        Some("gzip") => "+gzip",
        Some("zstd") => "+zstd",
        _ => "",
    };
    format!("{LAYER}{word}")
}

/// What a configuration says that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) created: Option<String>,
    pub(crate) author: Option<String>,
    pub(crate) architecture: String,
    pub(crate) os: String,
    pub(crate) config: Option<Execution>,
    pub(crate) rootfs: RootFs,
    #[serde(deserialize_with = "or_default")]
    pub(crate) history: Vec<History>,
}

/// How a command of the image is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Execution {
    #[serde(deserialize_with = "or_default")]
    pub(crate) user: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) stop_signal: String,
    /// Paths, of which only the keys mean something.
    #[serde(deserialize_with = "or_default")]
    pub(crate) volumes: BTreeMap<String, serde_json::Value>,
    /// Ports as `80/tcp`, the same.
    #[serde(deserialize_with = "or_default")]
    pub(crate) exposed_ports: BTreeMap<String, serde_json::Value>,
}

/// The layers, the lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    #[serde(deserialize_with = "or_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

/// How one step of a build came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    pub(crate) created: Option<String>,
    pub(crate) created_by: Option<String>,
    pub(crate) comment: Option<String>,
    /// Whether it made no layer.
    #[serde(deserialize_with = "or_default")]
    pub(crate) empty_layer: bool,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The machine's name in Go's words, as the specification has it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_nulls_and_less_than_all() {
        let text = r#"{"config":{"Env":null,"Cmd":["sh"],"User":"1:2","Labels":null},"rootfs":{"diff_ids":null},"history":null}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        let execution = config.config.unwrap();
        assert_eq!((execution.cmd, execution.user, execution.env), (vec!["sh".into()], "1:2".into(), Vec::new()));
        assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
    }

    #[test]
    fn words_of_docker_become_those_of_oci() {
        for (docker, oci) in [
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
            ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ] {
            assert_eq!(oci_layer(docker), oci);
        }
    }

    #[test]
    fn an_index_has_one_for_this_machine() {
        let digest = Digest::of(b"");
        let other = Platform { architecture: "s390x".into(), os: "linux".into(), variant: None };
        let own = Platform { architecture: architecture().into(), ..other.clone() };
        let descriptor = |platform| Descriptor { platform, ..Descriptor::new(MANIFEST, digest, 0) };
        let index = Index::new(vec![descriptor(Some(other.clone())), descriptor(Some(own.clone()))]);
        assert_eq!(index.here().unwrap().platform, Some(own));
        assert_eq!(Index::new(vec![descriptor(Some(other))]).here(), None);
    }
}
