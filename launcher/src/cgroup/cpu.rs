//! CPU time: how much of it, and what share where there is not enough.

use super::detect::{Controller, Version};
use super::limits::Limits;
use super::setting::{Place, Setting};

/// The kernel's usual period, in microseconds.
const PERIOD: u64 = 100_000;
/// The longest period.
const LONG_PERIOD: u64 = 1_000_000;
/// The kernel takes no quota below this, in microseconds.
const LEAST_QUOTA: u64 = 1_000;

/// CPU time in each period, both in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// CPU time; none without a limit.
    pub quota: Option<u64>,
    /// The period.
    pub period: u64,
}

impl Bandwidth {
    /// What the two options of the kernel's say, where one of them is given.
    pub(crate) fn of_options(period: Option<u64>, quota: Option<u64>) -> Option<Bandwidth> {
        (period.is_some() || quota.is_some()).then(|| Bandwidth { quota, period: period.unwrap_or(PERIOD) })
    }

    /// The number of CPUs that can be busy at a time.
    pub(crate) fn whole_cpus(self) -> Option<usize> {
        usize::try_from(self.quota?.div_ceil(self.period)).ok()
    }
}

/// Parses `--cpus`.
pub(crate) fn parse_cpus(text: &str) -> Result<Bandwidth, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let cpus: f64 = text.parse().ok().filter(|_| is_number).ok_or("it is not a number like 0.5")?;
    if !(0.001..=8192.0).contains(&cpus) {
        return Err("it must be between 0.001 and 8192".to_owned());
    }
    // A number in this range times a million fits many times over.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let quota = |period: u64| (cpus * period as f64).round() as u64;
    let period = if quota(PERIOD) < LEAST_QUOTA { LONG_PERIOD } else { PERIOD };
    Ok(Bandwidth { quota: Some(quota(period).max(LEAST_QUOTA)), period })
}

pub(crate) fn settings(limits: &Limits, version: Version) -> Vec<Setting> {
    let setting = |option, files| Setting::new(option, Controller::Cpu, Place::Common, files);
    let mut settings = Vec::new();
    if let Some((option, bandwidth)) = limits.bandwidth {
        let Bandwidth { quota, period } = bandwidth;
        match version {
            Version::V1 => {
                settings.push(setting(option, vec![("cpu.cfs_period_us", period.to_string())]));
                let quota = quota.map_or("-1".to_owned(), |quota| quota.to_string());
                settings.push(setting(option, vec![("cpu.cfs_quota_us", quota)]));
            }
            Version::V2 => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                settings.push(setting(option, vec![("cpu.max", format!("{quota} {period}"))]));
            }
        }
    }
    if let Some(shares) = limits.cpu_shares {
        let file = match version {
            Version::V1 => ("cpu.shares", shares.to_string()),
            Version::V2 => ("cpu.weight", weight(shares).to_string()),
        };
        settings.push(setting("--cpu-shares", vec![file]));
    }
    settings
}

/// The weight of v2 for shares of v1. Both defaults and both ends meet: 2 is 1, 1024 is 100, 262144 is 10000. The curve
/// between is what the other runtimes have agreed on; a straight line would make 39 of 1024.
fn weight(shares: u64) -> u64 {
    let logarithm = logarithm(shares.clamp(2, 262_144));
    let exponent = (logarithm * logarithm + 125.0 * logarithm) / 612.0 - 7.0 / 34.0;
    // Both ends and the default are whole, but for what the arithmetic leaves. The range of shares gives a result between 1
    // and 10000.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let weight = (power_of_ten(exponent) - 1e-9).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// As many bits of a result as count.
const BITS: u32 = 50;

/// To the base of 2, as `f64::log2` gives it. That one would be the only reason to load the mathematical library, which takes
/// longer at each start than all that is computed here.
#[allow(clippy::cast_precision_loss)]
fn logarithm(number: u64) -> f64 {
    let whole = number.ilog2();
    let mut rest = number as f64 / (1_u64 << whole) as f64;
    let mut result = f64::from(whole);
    let mut bit = 1.0;
    for _ in 0..BITS {
        bit /= 2.0;
        rest *= rest;
        if rest >= 2.0 {
            rest /= 2.0;
            result += bit;
        }
    }
    result
}

/// As `f64::powf` gives it, for exponents that are not negative.
fn power_of_ten(exponent: f64) -> f64 {
    let mut result = (0..exponent as u32).fold(1.0, |power, _| power * 10.0);
    let (mut rest, mut root) = (exponent.fract(), 10.0_f64);
    for _ in 0..BITS {
        root = root.sqrt();
        rest *= 2.0;
        if rest >= 1.0 {
            rest -= 1.0;
            result *= root;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_cpus_become_quotas() {
        for (text, quota, period) in [
            ("0.2", 20_000, 100_000),
            ("1", 100_000, 100_000),
            ("2.5", 250_000, 100_000),
            (".5", 50_000, 100_000),
            ("0.01", 1_000, 100_000),
            ("0.005", 5_000, 1_000_000),
            ("0.001", 1_000, 1_000_000),
        ] {
            assert_eq!(parse_cpus(text), Ok(Bandwidth { quota: Some(quota), period }), "{text}");
        }
        for text in ["", "0", "-1", "+1", "1e3", "nan", "inf", "1,5", "0.0001", "9000", ".", "1.2.3", " 1"] {
            assert!(parse_cpus(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_part_of_a_cpu_needs_a_whole_one() {
        for (text, expected) in [("0.2", 1), ("1", 1), ("1.01", 2), ("2", 2), ("2.5", 3), ("0.001", 1)] {
            assert_eq!(parse_cpus(text).unwrap().whole_cpus(), Some(expected), "{text}");
        }
        assert_eq!(Bandwidth::of_options(Some(5_000), None).unwrap().whole_cpus(), None);
    }

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((3..=262_144).all(|shares| weight(shares) >= weight(shares - 1)));
    }

    #[test]
    fn both_versions_are_written() {
        let limits = Limits {
            bandwidth: Some(("--cpus", Bandwidth { quota: Some(20_000), period: 100_000 })),
            cpu_shares: Some(512),
            ..Limits::default()
        };
        let files = |version| settings(&limits, version).into_iter().flat_map(|s| s.files).collect::<Vec<_>>();
        assert_eq!(
            files(Version::V1),
            [
                ("cpu.cfs_period_us", "100000".to_owned()),
                ("cpu.cfs_quota_us", "20000".to_owned()),
                ("cpu.shares", "512".to_owned())
            ]
        );
        assert_eq!(
            files(Version::V2),
            [("cpu.max", "20000 100000".to_owned()), ("cpu.weight", weight(512).to_string())]
        );
        let unlimited =
            Limits { bandwidth: Some(("--cpu-period", Bandwidth { quota: None, period: 5_000 })), ..limits };
        assert_eq!(settings(&unlimited, Version::V2)[0].files, [("cpu.max", "max 5000".to_owned())]);
        assert_eq!(settings(&unlimited, Version::V1)[1].files, [("cpu.cfs_quota_us", "-1".to_owned())]);
    }

    #[test]
    fn the_curve_is_that_of_the_mathematical_library() {
        for shares in (2..=262_144_u64).step_by(131) {
            let expected = (shares as f64).log2();
            assert!((logarithm(shares) - expected).abs() < 1e-12, "{shares}");
            let exponent = (expected * expected + 125.0 * expected) / 612.0 - 7.0 / 34.0;
            let (power, expected) = (power_of_ten(exponent.max(0.0)), 10_f64.powf(exponent));
            assert!((power / expected - 1.0).abs() < 1e-12, "{shares}");
            assert_eq!(weight(shares), (expected - 1e-9).ceil() as u64, "{shares}");
        }
    }
}
