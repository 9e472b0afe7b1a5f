//! One message, and how it is written: as a line of text, as JSON, and as the journal takes it.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::super::printable;

/// The words of an event.
#[derive(Debug)]
pub(super) struct Message {
    level: Level,
    text: String,
    /// What it is about, by name.
    fields: Map<String, Value>,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) pid: u32,
    /// The mount point, once it is known.
    pub(super) mountpoint: Option<&'a str>,
}

impl Message {
    pub(super) fn of(event: &Event<'_>) -> Message {
        let mut message = Message { level: *event.metadata().level(), text: String::new(), fields: Map::new() };
        event.record(&mut message);
        message
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.text = text,
            (name, value) => drop(self.fields.insert(name.to_owned(), value)),
        }
    }

    /// `LEVEL text name=value`, in one line.
    pub(super) fn to_text(&self) -> String {
        let mut line = format!("{} {}", self.level, self.text);
        for (name, value) in &self.fields {
            match value {
                Value::String(value) => line.extend([" ", name, "=", value]),
                value => line.extend([" ", name, "=", &value.to_string()]),
            }
        }
        printable(&line)
    }

    /// An object in one line.
    pub(super) fn to_json(&self, origin: Origin<'_>, now: SystemTime) -> String {
        let mut object = Map::new();
        object.insert("time".into(), rfc3339(now).into());
        object.insert("level".into(), self.level.as_str().to_ascii_lowercase().into());
        object.insert("pid".into(), origin.pid.into());
        if let Some(mountpoint) = origin.mountpoint {
            object.insert("mountpoint".into(), mountpoint.into());
        }
        object.insert("message".into(), self.text.as_str().into());
        if !self.fields.is_empty() {
            object.insert("fields".into(), self.fields.clone().into());
        }
        Value::Object(object).to_string()
    }

    /// What syslog(3) puts before a message: facility `daemon` and the severity, who says it.
    pub(super) fn to_syslog(&self, said: &str, origin: Origin<'_>) -> String {
        format!("<{}>runionfs[{}]: {said}", 3 << 3 | self.severity(), origin.pid)
    }

    /// The fields of the journal (systemd.journal-fields(7)); those of a message of ours begin with `RUNIONFS_`.
    pub(super) fn to_journal(&self, said: &str, origin: Origin<'_>) -> Vec<u8> {
        let mut fields = Vec::new();
        put(&mut fields, "MESSAGE", said);
        put(&mut fields, "PRIORITY", &self.severity().to_string());
        put(&mut fields, "SYSLOG_FACILITY", "3");
        put(&mut fields, "SYSLOG_IDENTIFIER", "runionfs");
        put(&mut fields, "SYSLOG_PID", &origin.pid.to_string());
        if let Some(mountpoint) = origin.mountpoint {
            put(&mut fields, "RUNIONFS_MOUNTPOINT", mountpoint);
        }
        for (name, value) in &self.fields {
            let name = format!("RUNIONFS_{}", name.to_ascii_uppercase().replace('.', "_"));
            match value {
                Value::String(value) => put(&mut fields, &name, value),
                value => put(&mut fields, &name, &value.to_string()),
            }
        }
        fields
    }

    fn severity(&self) -> u8 {
        match self.level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        }
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

/// A field as the journal's own protocol has it: a value of more than one line goes with its length.
fn put(fields: &mut Vec<u8>, name: &str, value: &str) {
    fields.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        fields.push(b'\n');
        fields.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        fields.push(b'=');
    }
    fields.extend_from_slice(value.as_bytes());
    fields.push(b'\n');
}

/// A moment in UTC, to the microsecond.
pub(super) fn rfc3339(moment: SystemTime) -> String {
    // a clock before 1970 is set wrong
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let mut text = format!("{year:04}-{month:02}-{day:02}T");
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // a String takes what it is given
    write!(text, "{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros()).unwrap_or_default();
    text
}

/// The date of a day, counted from 1970-01-01: years begin in March here, so that a leap day is the last of its year.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin<'static> = Origin { pid: 42, mountpoint: Some("/mnt") };

    fn message() -> Message {
        let fields = [("errno".to_owned(), Value::from("ENOSPC")), ("number".to_owned(), Value::from(7))];
        Message { level: Level::WARN, text: "a\nb \"c\"".into(), fields: fields.into_iter().collect() }
    }

    #[test]
    fn text_is_one_line() {
        assert_eq!(message().to_text(), "WARN a\\nb \"c\" errno=ENOSPC number=7");
        assert_eq!(message().to_syslog("said", ORIGIN), "<28>runionfs[42]: said");
    }

    #[test]
    fn json_is_one_line_that_holds_what_was_said() {
        let line = message().to_json(ORIGIN, SystemTime::UNIX_EPOCH);
        assert!(!line.contains('\n'));
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z", "level": "warn", "pid": 42, "mountpoint": "/mnt",
            "message": "a\nb \"c\"", "fields": { "errno": "ENOSPC", "number": 7 },
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
    }

    #[test]
    fn the_journal_gets_fields_and_lengths_of_what_has_several_lines() {
        let fields = message().to_journal("a\nb", ORIGIN);
        let mut expected = b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=4\nSYSLOG_FACILITY=3\n".to_vec();
        expected.extend_from_slice(b"SYSLOG_IDENTIFIER=runionfs\nSYSLOG_PID=42\nRUNIONFS_MOUNTPOINT=/mnt\n");
        expected.extend_from_slice(b"RUNIONFS_ERRNO=ENOSPC\nRUNIONFS_NUMBER=7\n");
        assert_eq!(fields, expected, "{}", fields.escape_ascii());
    }

    #[test]
    fn moments_are_those_of_date() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
