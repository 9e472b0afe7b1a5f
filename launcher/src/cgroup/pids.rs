//! The number of processes and threads.

use super::detect::Controller;
use super::limits::Limits;
use super::setting::{Place, Setting};

/// The same file on v1 and v2. Our own init counts as well.
pub(crate) fn settings(limits: &Limits) -> Vec<Setting> {
    let setting = |most: u64| {
        Setting::new("--pids-limit", Controller::Pids, Place::Container, vec![("pids.max", most.to_string())])
    };
    limits.pids.map(setting).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_limited_and_the_daemon_is_not() {
        assert_eq!(settings(&Limits::default()), []);
        let settings = settings(&Limits { pids: Some(20), ..Limits::default() });
        assert_eq!(settings.len(), 1);
        assert_eq!(settings[0].place, Place::Container);
        assert_eq!(settings[0].files, [("pids.max", "20".to_owned())]);
    }
}
