//! Work that takes long, off the event loops: a copy-up must stall nobody but the users of its
//! file, and there are as few as two event loops.
//!
//! Jobs have a key, an inode number. Jobs of one key run one after another in the order in which
//! they came; jobs of different keys run beside each other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::sys;

type Job = Box<dyn FnOnce() + Send>;

/// More files than this are not copied up at one time.
const MOST: usize = 64;
/// A worker without work ends after this time.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct State {
    /// Jobs by key; a key is here as long as a job of it waits or runs.
    waiting: HashMap<u64, VecDeque<Job>>,
    /// Keys with a job to run.
    ready: VecDeque<u64>,
    workers: usize,
    idle: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// Threads that come and go with the work.
#[derive(Default, Clone)]
pub(crate) struct Pool(Arc<Shared>);

impl Pool {
    /// Runs a job after those of the same key.
    pub(crate) fn submit(&self, key: u64, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        if let Some(queue) = state.waiting.get_mut(&key) {
            queue.push_back(Box::new(job));
            return;
        }
        state.waiting.insert(key, VecDeque::from([Box::new(job) as Job]));
        state.ready.push_back(key);
        if state.ready.len() <= state.idle {
            self.0.wake.notify_one();
        } else if state.workers < MOST {
            state.workers += 1;
            drop(state);
            self.start_worker();
        }
    }

    fn start_worker(&self) {
        let shared = Arc::clone(&self.0);
        let started = std::thread::Builder::new().name("copy-up".to_owned()).spawn(move || shared.work());
        if let Err(error) = started {
            tracing::warn!(%error, "starting a worker; the job runs here");
            self.0.state.lock().workers -= 1;
            while let Some(key) = self.0.take_ready() {
                self.0.run(key);
            }
        }
    }
}

impl Shared {
    fn take_ready(&self) -> Option<u64> {
        self.state.lock().ready.pop_front()
    }

    fn work(&self) {
        if let Err(errno) = sys::schedule_for(sys::Work::Copies) {
            tracing::debug!(%errno, "letting others go first");
        }
        loop {
            let mut state = self.state.lock();
            let Some(key) = state.ready.pop_front() else {
                state.idle += 1;
                let timed_out = self.wake.wait_for(&mut state, PATIENCE).timed_out();
                state.idle -= 1;
                if timed_out && state.ready.is_empty() {
                    state.workers -= 1;
                    return;
                }
                continue;
            };
            drop(state);
            self.run(key);
        }
    }

    fn run(&self, key: u64) {
        let job = self.state.lock().waiting.get_mut(&key).and_then(VecDeque::pop_front);
        if let Some(job) = job
            && std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err()
        {
            tracing::error!("a request failed inside the file system; it was answered with EIO");
        }
        let mut state = self.state.lock();
        if state.waiting.get(&key).is_some_and(VecDeque::is_empty) {
            state.waiting.remove(&key);
        } else {
            state.ready.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn jobs_of_one_key_run_in_order_and_others_do_not_wait() {
        let pool = Pool::default();
        let (release, blocked) = channel::<()>();
        let (send, receive) = channel();
        let first = send.clone();
        pool.submit(1, move || {
            blocked.recv().expect("the test releases it");
            first.send("first of 1").expect("the test listens");
        });
        let second = send.clone();
        pool.submit(1, move || second.send("second of 1").expect("the test listens"));
        pool.submit(2, move || send.send("of 2").expect("the test listens"));
        assert_eq!(receive.recv(), Ok("of 2"));
        release.send(()).expect("the job listens");
        assert_eq!(receive.recv(), Ok("first of 1"));
        assert_eq!(receive.recv(), Ok("second of 1"));
    }

    #[test]
    fn a_panic_ends_one_job_only() {
        let pool = Pool::default();
        let (send, receive) = channel();
        pool.submit(1, || panic!("on purpose"));
        pool.submit(1, move || send.send(7).expect("the test listens"));
        assert_eq!(receive.recv(), Ok(7));
    }
}
