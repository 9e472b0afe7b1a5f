//! Times as documents of images have them; see RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::Failure;

const EPOCH: &str = "SOURCE_DATE_EPOCH";
const DAY: i64 = 86_400;

/// The present, or what SOURCE_DATE_EPOCH takes for it (<https://reproducible-builds.org/specs/source-date-epoch/>).
pub(crate) fn now() -> String {
    print(epoch().unwrap_or_else(|| {
        // A clock before 1970 is as wrong as that.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs().cast_signed())
    }))
}

/// SOURCE_DATE_EPOCH, where it is set.
pub(crate) fn epoch() -> Option<i64> {
    std::env::var(EPOCH).ok()?.parse().ok()
}

/// Looks at SOURCE_DATE_EPOCH, before anything is made.
///
/// # Errors
/// Where it is no time: whoever has set it relies on that.
pub(crate) fn check() -> Result<(), Failure> {
    let said = std::env::var_os(EPOCH).filter(|said| !said.is_empty());
    match said.filter(|_| epoch().is_none()) {
        Some(said) => Err(Failure::new(format!("{EPOCH}={}: it is no number of seconds", said.display()))),
        None => Ok(()),
    }
}

/// Seconds since 1970 as a date and a time in UTC.
pub(crate) fn print(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day, counted from 1970. Years begin in March here, so that leap days come last; there are 400 of them in
/// 146,097 days.
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + later, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_date_does() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(print(seconds), text);
        }
    }
}
