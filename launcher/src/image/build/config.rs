//! The configuration of an image that is being built.

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::image::changes::Change;
use crate::image::digest::Digest;
use crate::image::manifest::architecture;

/// Where commands are looked for in an image that does not say so, as docker and buildah have it.
const PATH: (&str, &str) = ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
/// What is said of the container that an image was made of, not of the image.
const OF_A_CONTAINER: [&str; 3] = ["container", "container_config", "docker_version"];

/// A configuration, as a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    whole: Map<String, Value>,
    /// What of its history is that of the image that it is built on.
    inherited: usize,
}

impl Config {
    /// Of an image without anything.
    pub(super) fn new() -> Config {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Env": [format!("{}={}", PATH.0, PATH.1)] },
            "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [],
        });
        Config { whole: config.as_object().cloned().unwrap_or_default(), inherited: 0 }
    }

    /// Of an image that something is built on.
    ///
    /// # Errors
    /// Where it is none, or asks for something that is not done here.
    pub(super) fn of(text: &[u8], layers: usize) -> Result<Config, Failure> {
        let doing = "read the configuration of the image";
        let whole = serde_json::from_slice(text).map_err(|error| Failure::because(doing, error))?;
        let mut config = Config { whole, inherited: 0 };
        if config.said("OnBuild").and_then(Value::as_array).is_some_and(|steps| !steps.is_empty()) {
            return Err(Failure::new(
                "the image asks for steps of its own (ONBUILD), which are not built here (use buildah)",
            ));
        }
        OF_A_CONTAINER.iter().for_each(|key| drop(config.whole.remove(*key)));
        // Where the history does not tell of all layers, a new step would be that of another one.
        for _ in config.told()..layers {
            config.push(json!({ "created_by": "unknown" }));
        }
        config.inherited = config.history().len();
        if config.variable("PATH").is_none() {
            config.change(&Change::variables("Env", vec![(PATH.0.to_owned(), PATH.1.to_owned())]));
        }
        Ok(config)
    }

    /// How many layers the history tells of.
    fn told(&self) -> usize {
        let makes_one = |step: &&Value| step.get("empty_layer").and_then(Value::as_bool) != Some(true);
        self.history().iter().filter(makes_one).count()
    }

    fn history(&self) -> &[Value] {
        self.whole.get("history").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn push(&mut self, step: Value) {
        append(&mut self.whole, "history", step);
    }

    fn said(&self, key: &str) -> Option<&Value> {
        self.whole.get("config")?.get(key)
    }

    /// A word that is said of how the image is run.
    pub(super) fn word(&self, key: &str) -> &str {
        self.said(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A list of words.
    pub(super) fn words(&self, key: &str) -> Vec<String> {
        let words = self.said(key).and_then(Value::as_array).into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let all = self.words("Env");
        let value =
            |text: &String| text.split_once('=').filter(|(known, _)| *known == name).map(|pair| pair.1.to_owned());
        all.iter().rev().find_map(value)
    }

    pub(super) fn change(&mut self, change: &Change) {
        let execution = self.whole.entry("config").or_insert_with(|| json!({}));
        if !execution.is_object() {
            *execution = json!({});
        }
        if let Some(execution) = execution.as_object_mut() {
            change.make(execution);
        }
    }

    pub(super) fn set_author(&mut self, author: &str) {
        self.whole.insert("author".into(), json!(author));
    }

    /// Tells of a step, and of the layer that it has made.
    pub(super) fn add(&mut self, created_by: &str, layer: Option<Digest>) {
        let mut step = json!({ "created_by": created_by });
        match layer {
            None => step["empty_layer"] = json!(true),
            Some(layer) => {
                let rootfs = self.whole.entry("rootfs").or_insert_with(|| json!({ "type": "layers" }));
                if let Some(rootfs) = rootfs.as_object_mut() {
                    append(rootfs, "diff_ids", json!(layer.to_string()));
                }
            }
        }
        self.push(step);
    }

    /// The document, with the time at which the image and its steps were made.
    pub(super) fn document(&self, created: &str) -> serde_json::Result<Vec<u8>> {
        let mut whole = self.whole.clone();
        whole.insert("created".into(), json!(created));
        let history = whole.get_mut("history").and_then(Value::as_array_mut);
        for step in history.into_iter().flatten().skip(self.inherited) {
            step["created"] = json!(created);
        }
        serde_json::to_vec(&whole)
    }
}

/// Appends to a list, which may be null or missing.
fn append(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get_mut(key) {
        Some(Value::Array(list)) => list.push(value),
        _ => drop(object.insert(key.into(), json!([value]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_taken_as_it_is_whatever_it_says() {
        let text =
            br#"{"config":{"Env":["A=1","A=2",3],"Cmd":null,"User":5},"container":"x","rootfs":{"diff_ids":null}}"#;
        let mut config = Config::of(text, 1).unwrap();
        assert_eq!((config.variable("A"), config.word("User"), config.words("Cmd").len()), (Some("2".into()), "", 0));
        config.add("RUN x", None);
        let text = String::from_utf8(config.document("then").unwrap()).unwrap();
        assert!(
            text.contains("unknown")
                && text.contains(r#""created":"then","created_by":"RUN x","empty_layer":true"#)
                && !text.contains("container\""),
            "{text}"
        );
        assert!(Config::of(br#"{"config":{"OnBuild":["RUN x"]}}"#, 0).is_err());
        assert!(Config::of(b"[]", 0).is_err());
        let odd = Config::of(br#"{"config":7,"history":{}}"#, 0).unwrap();
        assert_eq!(odd.word("User"), "");
    }
}
