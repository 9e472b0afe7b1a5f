//! The text of `storage.conf`: one line of it is changed, and all else stays as somebody wrote it.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, TableLike, Value, value};

const KEY: &str = "mount_program";
const COMMENT: &str = "# by 'runionfs setup podman'";
/// What the comment goes on with where another program was named.
const BEFORE: &str = "; before: mount_program = ";

/// A whole file for root, who has none: podman wants each of these to be said.
pub(super) const OF_ROOT: &str = "\
[storage]
driver = \"overlay\"
graphroot = \"/var/lib/containers/storage\"
runroot = \"/run/containers/storage\"
";

/// The same for another user: the places are each user's own.
pub(super) const OF_USERS: &str = "\
[storage]
driver = \"overlay\"
";

/// Why a file is left as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfError {
    #[error("it is no TOML: {0}")]
    Syntax(String),
    #[error("{0} is no table")]
    NoTable(&'static str),
    #[error(
        "the driver is {0}, and a mount program is for the driver overlay, which does not see the images of another: \
         save those that you need (podman save), say driver = \"overlay\" there, and run this again"
    )]
    Driver(String),
}

/// The text with this program.
///
/// # Errors
/// Where it is not to be understood, or a mount program has no meaning.
pub(super) fn with(text: &str, program: &str) -> Result<String, ConfError> {
    let mut document = parse(text)?;
    let storage = table(document.as_table_mut(), "storage")?;
    match storage.get("driver").map(|driver| driver.as_str().ok_or(driver)) {
        Some(Ok("overlay" | "overlay2")) => {}
        Some(Ok("")) | None => drop(storage.insert("driver", value("overlay"))),
        Some(Ok(other)) => return Err(ConfError::Driver(other.into())),
        Some(Err(other)) => return Err(ConfError::Driver(other.to_string().trim().into())),
    }
    let overlay = table(table(storage, "options")?, "overlay")?;
    let former = overlay.get(KEY).and_then(Item::as_str).map(str::to_owned);
    if former.as_deref() == Some(program) {
        return Ok(document.to_string());
    }
    let before = match (&former, comment_of(overlay)) {
        // set up once already: what was before that
        (_, Some(comment)) => comment,
        (Some(former), None) => format!("{COMMENT}{BEFORE}{}", value(former).to_string().trim()),
        (None, None) => COMMENT.into(),
    };
    let others = prefix(overlay).lines().filter(|line| !line.starts_with(COMMENT)).fold(String::new(), with_line);
    overlay.insert(KEY, value(program));
    set_prefix(overlay, &with_line(others, &before));
    Ok(document.to_string())
}

/// The text without what [`with`] did, and with what was there before; nothing where no program is named.
///
/// # Errors
/// Where it is not to be understood.
pub(super) fn without(text: &str) -> Result<Option<String>, ConfError> {
    let mut document = parse(text)?;
    let storage = table(document.as_table_mut(), "storage")?;
    let options = table(storage, "options")?;
    let overlay = table(options, "overlay")?;
    let Some(comment) = comment_of(overlay) else { return Ok(Some(text.into())) };
    let others = prefix(overlay).lines().filter(|line| !line.starts_with(COMMENT)).fold(String::new(), with_line);
    match comment.split_once(BEFORE).and_then(|(_, former)| former.parse::<Value>().ok()) {
        Some(former) => {
            overlay.insert(KEY, Item::Value(former.decorated(" ", "")));
            set_prefix(overlay, &others);
        }
        None => drop(overlay.remove(KEY)),
    }
    if overlay.is_empty() {
        options.remove("overlay");
    }
    if options.is_empty() {
        storage.remove("options");
    }
    Ok(Some(document.to_string()))
}

/// The mount program that is named: for overlay, or where older files name it, for all drivers.
pub(super) fn program_of(text: &str) -> Option<String> {
    let document = parse(text).ok()?;
    let options = document.get("storage")?.get("options")?;
    let of_overlay = options.get("overlay").and_then(|overlay| overlay.get(KEY));
    Some(of_overlay.or_else(|| options.get(KEY))?.as_str()?.to_owned())
}

/// Where images lie, if it is said for this kind of user and needs no more to be understood.
pub(super) fn store_of(text: &str, rootless: bool) -> Option<String> {
    let document = parse(text).ok()?;
    let key = if rootless { "rootless_storage_path" } else { "graphroot" };
    let said = document.get("storage")?.get(key)?.as_str()?;
    (said.starts_with('/') && !said.contains('$')).then(|| said.to_owned())
}

/// What changes, as diff(1) would write it: one place in the file, with a line around.
pub(super) fn difference(path: &Path, before: Option<&str>, after: Option<&str>) -> String {
    let lines = |text: Option<&str>| -> Vec<String> { text.unwrap_or_default().lines().map(str::to_owned).collect() };
    let (old, new) = (lines(before), lines(after));
    if before == after {
        return String::new();
    }
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - same;
    let same_end = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let path = path.display();
    let name = |text: Option<&str>| if text.is_some() { path.to_string() } else { "/dev/null".into() };
    let head = format!("--- {}\n+++ {}\n", name(before), name(after));
    let around = |line: Option<&String>| line.map(|line| format!(" {line}\n")).unwrap_or_default();
    let gone = old[same..old.len() - same_end].iter().map(|line| format!("-{line}\n"));
    let come = new[same..new.len() - same_end].iter().map(|line| format!("+{line}\n"));
    let first = around(same.checked_sub(1).and_then(|at| old.get(at)));
    let last = around(old.get(old.len() - same_end).filter(|_| same_end > 0));
    [head, first].into_iter().chain(gone).chain(come).chain([last]).collect()
}

fn parse(text: &str) -> Result<DocumentMut, ConfError> {
    let one_line = |error: toml_edit::TomlError| error.to_string().trim().replace('\n', " ");
    text.parse().map_err(|error| ConfError::Syntax(one_line(error)))
}

/// The table of that name, which is made where there is none.
fn table<'a>(parent: &'a mut dyn TableLike, name: &'static str) -> Result<&'a mut dyn TableLike, ConfError> {
    let mut fresh = Table::new();
    // one that holds nothing but others has no line of its own
    fresh.set_implicit(true);
    if let Some(Item::Value(Value::InlineTable(written))) = parent.get_mut(name) {
        // podman reads no lines and no comments between braces (TOML 1.0)
        let mut lines = std::mem::take(written).into_table();
        lines.fmt();
        parent.insert(name, Item::Table(lines));
        if let Some(mut key) = parent.key_mut(name) {
            key.fmt();
        }
    }
    let item = parent.entry(name).or_insert(Item::Table(fresh));
    item.as_table_like_mut().ok_or(ConfError::NoTable(name))
}

/// The line of ours above the key.
fn comment_of(overlay: &dyn TableLike) -> Option<String> {
    prefix(overlay).lines().find(|line| line.starts_with(COMMENT)).map(str::to_owned)
}

/// What stands above the key.
fn prefix(overlay: &dyn TableLike) -> String {
    let key = overlay.key(KEY);
    key.and_then(|key| key.leaf_decor().prefix()?.as_str()).unwrap_or_default().to_owned()
}

fn set_prefix(overlay: &mut dyn TableLike, text: &str) {
    if let Some(mut key) = overlay.key_mut(KEY) {
        key.leaf_decor_mut().set_prefix(text);
    }
}

fn with_line(text: String, line: &str) -> String {
    text + line + "\n"
}

#[cfg(test)]
mod tests;
