//! What is printed of images: `ls`, `inspect`, `history`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::digest::Digest;
use super::store::{Image, Store};
use crate::failure::Failure;

/// Columns of a table, each as wide as what is in it.
fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What a line of a table can show of a text of somebody else's.
fn shown(text: &str, longest: usize) -> String {
    let plain: String = text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    match plain.chars().count() > longest {
        true => plain.chars().take(longest - 1).chain(['…']).collect(),
        false => plain,
    }
}

/// A length in decimal units, as docker prints it.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// The length of an image's plain layers.
fn size_of(store: &Store, image: &Image) -> u64 {
    image.manifest.layers.iter().filter_map(|layer| store.diff(layer.digest)).map(|diff| diff.size).sum()
}

/// All images by their names.
fn sorted(store: &Store) -> Result<Vec<Image>, Failure> {
    let mut images = store.images()?;
    images.sort_by(|one, other| one.name().cmp(&other.name()));
    Ok(images)
}

/// The ids of all, each once.
pub(crate) fn ids(store: &Store) -> Result<String, Failure> {
    let mut ids: Vec<Digest> = Vec::new();
    for image in sorted(store)? {
        if !ids.contains(&image.id()) {
            ids.push(image.id());
        }
    }
    Ok(ids.iter().map(|id| format!("{id}\n")).collect())
}

/// What a table has, for programs.
pub(crate) fn list_in_json(store: &Store) -> Result<String, Failure> {
    let line = |image: &Image| {
        json!({
            "Name": image.name(),
            "Id": image.id(),
            "Digest": image.descriptor.digest,
            "Created": image.config.created,
            "Size": size_of(store, image),
        })
    };
    let lines: Vec<Value> = sorted(store)?.iter().map(line).collect();
    let text = serde_json::to_string_pretty(&lines).map_err(|error| Failure::because("print", error))?;
    Ok(text + "\n")
}

pub(crate) fn list(store: &Store) -> Result<String, Failure> {
    let mut rows = vec![["NAME", "ID", "CREATED", "SIZE"].map(str::to_owned).to_vec()];
    for image in sorted(store)? {
        let created = image.config.created.as_deref().map(|time| shown(time, 20)).unwrap_or_default();
        let name = image.name().unwrap_or("<none>").to_owned();
        rows.push(vec![name, image.id().short(), created, size(size_of(store, &image))]);
    }
    Ok(table(&rows))
}

/// As `docker image inspect`, as far as there is something to say.
pub(crate) fn inspect(store: &Store, words: &[String]) -> Result<String, Failure> {
    let mut list = Vec::new();
    for word in words {
        list.push(details(store, &store.find(word)?)?);
    }
    let text = serde_json::to_string_pretty(&list).map_err(|error| Failure::because("print", error))?;
    Ok(text + "\n")
}

fn details(store: &Store, image: &Image) -> Result<Value, Failure> {
    let config: Value =
        serde_json::from_slice(&image.config_text).map_err(|error| Failure::because("read a configuration", error))?;
    let names: Vec<String> = store
        .entries()?
        .iter()
        .filter(|entry| entry.digest == image.descriptor.digest)
        .filter_map(|entry| entry.name().map(str::to_owned))
        .collect();
    let diff_ids = &image.config.rootfs.diff_ids;
    let layer = |(layer, diff_id): (&super::manifest::Descriptor, &Digest)| {
        json!({
            "Digest": layer.digest,
            "DiffId": diff_id,
            "MediaType": layer.media_type,
            "Size": layer.size,
            "Path": store.layer(*diff_id).branch.display().to_string(),
        })
    };
    Ok(json!({
        "Id": image.id(),
        "RepoTags": names,
        "Digest": image.descriptor.digest,
        "Created": image.config.created,
        "Author": image.config.author,
        "Architecture": image.config.architecture,
        "Os": image.config.os,
        "Config": config.get("config"),
        "RootFS": { "Type": "layers", "Layers": diff_ids },
        "Size": size_of(store, image),
        "Layers": image.manifest.layers.iter().zip(diff_ids).map(layer).collect::<Vec<_>>(),
    }))
}

/// What an image was made by, the last step first.
pub(crate) fn history(store: &Store, word: &str) -> Result<String, Failure> {
    let image = store.find(word)?;
    let sizes: BTreeMap<Digest, u64> = image
        .manifest
        .layers
        .iter()
        .filter_map(|layer| store.diff(layer.digest))
        .map(|diff| (diff.diff_id, diff.size))
        .collect();
    let mut layers = image.config.rootfs.diff_ids.iter();
    let mut rows = Vec::new();
    for step in &image.config.history {
        let length = if step.empty_layer { None } else { layers.next().and_then(|layer| sizes.get(layer)) };
        let text =
            |text: &Option<String>, longest| text.as_deref().map(|text| shown(text, longest)).unwrap_or_default();
        let length = size(length.copied().unwrap_or(0));
        rows.push(vec![text(&step.created, 20), length, text(&step.created_by, 60), text(&step.comment, 40)]);
    }
    // A history need not name all layers.
    for layer in layers {
        let length = size(sizes.get(layer).copied().unwrap_or(0));
        rows.push(vec![String::new(), length, String::new(), String::new()]);
    }
    rows.push(["CREATED", "SIZE", "CREATED BY", "COMMENT"].map(str::to_owned).to_vec());
    rows.reverse();
    Ok(table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_printed_in_decimal_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (204_000_000, "204.0 MB"),
            (1_500_000_000, "1.5 GB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn a_table_shows_nothing_that_a_terminal_would_obey() {
        assert_eq!(shown("a\u{1b}[31m\nb", 20), "a [31m b");
        assert_eq!(shown("abcdef", 4), "abc…");
        assert_eq!(table(&[vec!["a".into(), "b".into()], vec!["ccc".into(), String::new()]]), "a    b\nccc\n");
    }
}
