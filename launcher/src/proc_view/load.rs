//! `/proc/loadavg`: how many want to run, on average.
//!
//! The kernel counts that for the machine alone. Nobody looks every five seconds as it does, for most containers are never
//! asked: whoever asks gets the average brought forward from the question before, by the number of those who want to run
//! now or, where nobody has asked for long, by the CPU time that was used since.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::group::Group;
use super::stat::{Uptime, Usage};

/// The kernel's three averages, in seconds.
const WINDOWS: [f64; 3] = [60.0, 300.0, 900.0];
/// A number of one moment says something about so many seconds before it.
const LONG: f64 = 60.0;
/// So many tasks are looked at; the others are taken to be like them.
const MOST_TASKS: usize = 256;
/// So long a number of tasks is the current one.
const FRESH: Duration = Duration::from_millis(100);

/// Processes and threads of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tasks {
    running: u64,
    /// Those that wait for a disk.
    pub(super) blocked: u64,
    all: u64,
    /// The number of the newest, as the container knows it.
    newest: u64,
}

/// The averages, as of the last question.
#[derive(Debug, Default)]
pub(crate) struct Load {
    averages: [f64; 3],
    /// The container's age and its CPU time then, in seconds.
    age: f64,
    used: f64,
    tasks: Option<(Instant, Tasks)>,
}

impl Load {
    /// Counts the tasks, unless that was done a moment ago.
    pub(super) fn observe(&mut self, machine: &Path, group: &Group) -> Option<Tasks> {
        if let Some((_, tasks)) = self.tasks.filter(|(when, _)| when.elapsed() < FRESH) {
            return Some(tasks);
        }
        let list = group.read("cgroup.threads").or_else(|| group.read("tasks"))?;
        let tasks = count(&list, |task, file| fs::read_to_string(machine.join("proc").join(task).join(file)).ok());
        self.tasks = Some((Instant::now(), tasks));
        Some(tasks)
    }

    /// The text for a container of this age that has used so much.
    pub(super) fn loadavg(&mut self, age: Uptime, usage: &Usage) -> String {
        let tasks = self.tasks.map(|(_, tasks)| tasks).unwrap_or_default();
        self.advance(age.seconds(), usage.seconds(), tasks);
        let [one, five, fifteen] = self.averages;
        format!("{one:.2} {five:.2} {fifteen:.2} {}/{} {}\n", tasks.running_with_asker(), tasks.all, tasks.newest)
    }

    fn advance(&mut self, age: f64, used: f64, tasks: Tasks) {
        let passed = (age - self.age).max(0.0);
        let busy = (used - self.used).max(0.0);
        let level = if passed > LONG || self.age == 0.0 { busy / passed.max(1.0) } else { tasks.active() as f64 };
        for (average, window) in self.averages.iter_mut().zip(WINDOWS) {
            let kept = (-passed / window).exp();
            *average = *average * kept + level * (1.0 - kept);
        }
        (self.age, self.used) = (age, used);
    }
}

impl Tasks {
    /// The one who asks waits for the answer, and would run if it were the kernel's. Programs know that, and leave themselves
    /// out.
    pub(super) fn running_with_asker(self) -> u64 {
        self.running + 1
    }

    fn active(self) -> u64 {
        self.running + self.blocked
    }
}

/// Counts those in the list, each by its own `stat`.
fn count(list: &str, read: impl Fn(&str, &str) -> Option<String>) -> Tasks {
    let all = list.lines().count();
    let step = all.div_ceil(MOST_TASKS).max(1);
    let looked_at = list.lines().step_by(step);
    let mut tasks = Tasks { all: all as u64, ..Tasks::default() };
    for task in looked_at {
        match read(task, "stat").as_deref().and_then(state) {
            Some('R') => tasks.running += step as u64,
            Some('D') => tasks.blocked += step as u64,
            // It has ended, or sleeps.
            _ => {}
        }
    }
    let newest = list.lines().filter_map(|task| task.parse::<u64>().ok()).max();
    let number = newest.and_then(|newest| own_number(&read(&newest.to_string(), "status")?));
    Tasks { newest: number.unwrap_or(0), ..tasks }
}

/// Behind the name, which may contain anything.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The last one is that in the innermost pid namespace.
fn own_number(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_grow_as_the_kernels_do() {
        let mut load = Load::default();
        let four = Tasks { running: 3, blocked: 1, ..Tasks::default() };
        load.advance(60.0, 60.0, Tasks::default());
        assert_eq!(load.averages.map(|average| (average * 100.0).round()), [63.0, 18.0, 6.0]);
        load.advance(61.0, 60.0, four);
        assert_eq!(load.averages.map(|average| (average * 100.0).round()), [69.0, 19.0, 7.0]);
        load.advance(61.0, 60.0, four);
        assert_eq!(load.averages.map(|average| (average * 100.0).round()), [69.0, 19.0, 7.0]);
        load.advance(7261.0, 60.0 + 3600.0, four);
        assert_eq!(load.averages.map(|average| (average * 100.0).round()), [50.0, 50.0, 50.0]);
    }

    #[test]
    fn tasks_are_counted_by_their_state() {
        let stat = |task: &str, file: &str| {
            let text = match (task, file) {
                ("10", "stat") => "10 (a) R) S) R 1 1",
                ("12", "stat") => "12 (b) D 1",
                ("13", "stat") => "13 (c) S 1",
                ("13", "status") => "Name:\tc\nNSpid:\t13\t3\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let expected = Tasks { running: 1, blocked: 1, all: 4, newest: 3 };
        assert_eq!(count("10\n12\n13\n11\n", stat), expected);
        assert_eq!(count("", stat), Tasks::default());
    }

    #[test]
    fn of_very_many_only_some_are_looked_at() {
        let list: String = (1..=10_000).map(|number| format!("{number}\n")).collect();
        let asked = std::cell::Cell::new(0);
        let tasks = count(&list, |_, _| {
            asked.set(asked.get() + 1);
            Some("1 (x) R 1".to_owned())
        });
        assert!(asked.get() <= MOST_TASKS + 1, "{}", asked.get());
        assert_eq!((tasks.all, tasks.running), (10_000, 10_000));
    }
}
