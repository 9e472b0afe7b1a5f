//! The threads that take requests, and how they wait.
//!
//! On a machine with an idle processor most of a round trip is spent on waking that up for the
//! daemon: it took 44 us asleep, and 9 us with a reader that goes on looking for the next request
//! for a moment (`bench`, row `round-trip`). So a reader **polls** before it sleeps, as long as
//! that was worth it lately, and lets others run meanwhile where they want to.
//!
//! As few readers as possible are **active**: one, and more only while requests wait for them.
//! At most one sleeps in the kernel, where each request would wake it, even one that another
//! reader takes. A **watch** sees to it that a reader in a long request, on a slow disk, does not
//! keep the others waiting. Threads are started when they are called and none is there: most mounts never need
//! more than one, and to start some takes as long as mounting does.
//!
//! A reader whose requests have been large, or their answers, gives the memory back when none was for a while, even if
//! small ones come. One that was not called again in that time ends. So a mount that is used little takes little, be it one
//! of a hundred.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::device::Device;
use super::{LONGEST_ANSWER, LONGEST_REQUEST};
use crate::sys::pages::Pages;

/// So long a reader polls at most, and this is what it begins with.
const LONGEST: Duration = Duration::from_micros(100);
const SHORTEST: Duration = Duration::from_micros(25);
/// A sleep shorter than this would better have been polling.
const NAP: Duration = Duration::from_micros(200);
/// After so many polls another thread is let run, for nothing if none wants to.
const YIELD_EVERY: u32 = 8;
/// Whoever was away for longer than this at a yield shares its processor.
const CROWDED: Duration = Duration::from_micros(2);
/// After so many requests that were waiting already, another reader helps.
const BACKLOG: u32 = 16;
/// After so many times that another reader was waiting, too, a reader leaves.
const SURPLUS: u32 = 4;
/// How often the watch looks, and after how many looks at nothing it sleeps.
const LOOK: Duration = Duration::from_millis(1);
const LOOKS_AT_NOTHING: u32 = 20;
/// What was not needed for so long is given back.
const KEPT: Duration = Duration::from_secs(2);

/// What all readers share.
#[derive(Debug)]
pub(super) struct Readers {
    device: Arc<Device>,
    most: usize,
    /// Readers that take part, and how many of these wait for a request.
    active: AtomicUsize,
    waiting: AtomicUsize,
    /// Counts requests.
    taken: AtomicU64,
    crew: Mutex<Crew>,
    called: Condvar,
    watch: Mutex<()>,
    watch_sleeps: AtomicBool,
    watch_called: Condvar,
    ended: AtomicBool,
    failure: Mutex<Option<Errno>>,
}

/// The threads of readers.
#[derive(Debug)]
struct Crew {
    /// So many may become active.
    calls: usize,
    /// So many wait for a call.
    idle: usize,
    /// So many there are.
    threads: usize,
}

/// Who takes part, and how one more is started.
#[derive(Clone, Copy)]
struct Team<'scope, 'env> {
    readers: &'env Readers,
    scope: &'scope Scope<'scope, 'env>,
    handle: &'env Handle<'env>,
}

/// Serves a request, with room for the answer.
type Handle<'a> = dyn Fn(&[u8], &mut Pages) + Sync + 'a;

/// One reader.
#[derive(Debug)]
struct Reader {
    request: Pages,
    answer: Pages,
    /// How long it polls.
    patience: Duration,
    crowded: bool,
    /// When it is looked at what large requests have left.
    looks_at: Option<Instant>,
    /// Requests in a row that were waiting.
    backlog: u32,
    /// Times in a row that another reader waited, too.
    surplus: u32,
}

enum Next {
    Request(usize),
    /// There are others.
    Leave,
    Ended,
}

impl Readers {
    pub(super) fn new(device: Arc<Device>, most: usize) -> Readers {
        Readers {
            device,
            most,
            active: AtomicUsize::new(1),
            waiting: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            crew: Mutex::new(Crew { calls: 1, idle: 0, threads: 1 }),
            called: Condvar::new(),
            watch: Mutex::new(()),
            watch_sleeps: AtomicBool::new(false),
            watch_called: Condvar::new(),
            ended: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Passes each request to `handle`, until the mount is gone.
    ///
    /// # Errors
    /// What reading the device answers.
    pub(super) fn run(&self, handle: &Handle<'_>) -> io::Result<()> {
        let first = Reader::new()?;
        std::thread::scope(|scope| {
            let team = Team { readers: self, scope, handle };
            let watch = std::thread::Builder::new().name("watch".to_owned());
            if let Err(error) = watch.spawn_scoped(scope, move || self.look_after(team)) {
                tracing::warn!(%error, "starting the watch over readers");
            }
            self.take_part(team, first);
        });
        self.failure.lock().take().map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// Active as often as it is called.
    fn take_part(&self, team: Team<'_, '_>, mut reader: Reader) {
        while self.wait_for_call() {
            loop {
                match self.next(team, &mut reader) {
                    Next::Request(length) => {
                        let Reader { request, answer, .. } = &mut reader;
                        let request = &request.all()[..length];
                        if catch_unwind(AssertUnwindSafe(|| (team.handle)(request, answer))).is_err() {
                            tracing::error!("a request failed inside the file system; it was answered with EIO");
                        }
                    }
                    Next::Leave => break,
                    Next::Ended => return self.end(),
                }
            }
        }
    }

    /// Whether there was a call, before the mount was gone and before it took too long.
    fn wait_for_call(&self) -> bool {
        let mut crew = self.crew.lock();
        crew.idle += 1;
        let mut in_vain = false;
        while crew.calls == 0 && !self.has_ended() && !in_vain {
            in_vain = self.called.wait_for(&mut crew, KEPT).timed_out();
        }
        crew.idle -= 1;
        let is_called = crew.calls > 0;
        crew.calls -= usize::from(is_called);
        crew.threads -= usize::from(!is_called);
        is_called && !self.has_ended()
    }

    /// Makes one more reader active, if there may be one; whether a thread is to be started for it.
    fn call(&self) -> bool {
        let more = |active| (active < self.most).then_some(active + 1);
        if self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return false;
        }
        let mut crew = self.crew.lock();
        crew.calls += 1;
        self.called.notify_one();
        // where all threads are there, one is on its way to wait for a call
        let start = crew.calls > crew.idle && crew.threads < self.most;
        crew.threads += usize::from(start);
        start
    }

    /// No thread could be started for a call.
    fn take_back_call(&self) {
        let mut crew = self.crew.lock();
        crew.threads -= 1;
        // unless another one, which was idle again, has answered it
        if crew.calls > 0 {
            crew.calls -= 1;
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn end(&self) {
        let crew = self.crew.lock();
        self.ended.store(true, Ordering::Relaxed);
        drop(crew);
        self.called.notify_all();
        self.call_watch();
    }

    fn next(&self, team: Team<'_, '_>, reader: &mut Reader) -> Next {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let first = self.try_read(reader);
        if let Some(next) = first {
            reader.backlog += 1;
            let alone = self.waiting.load(Ordering::Relaxed) == 0;
            if reader.backlog >= BACKLOG && alone {
                reader.backlog = 0;
                team.call();
            }
            return next;
        }
        reader.backlog = 0;
        reader.surplus = if self.waiting.load(Ordering::Relaxed) > 1 { reader.surplus + 1 } else { 0 };
        if reader.surplus >= SURPLUS && self.leave() {
            reader.surplus = 0;
            return Next::Leave;
        }
        if let Some(next) = self.poll(reader) {
            return next;
        }
        if self.leave() { Next::Leave } else { self.sleep(reader) }
    }

    /// A request that is there already.
    fn try_read(&self, reader: &mut Reader) -> Option<Next> {
        let next = match self.device.read(reader.request.all()) {
            Ok(0) => Next::Ended,
            Ok(length) => {
                reader.request.note(length);
                Next::Request(length)
            }
            // nothing; a signal; who asked was killed meanwhile
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => return None,
            Err(Errno::NODEV | Errno::CONNABORTED) => Next::Ended,
            Err(errno) => {
                *self.failure.lock() = Some(errno);
                Next::Ended
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::Relaxed);
        if self.watch_sleeps.load(Ordering::SeqCst) {
            self.call_watch();
        }
        Some(next)
    }

    /// Looks for a request again and again for a while.
    fn poll(&self, reader: &mut Reader) -> Option<Next> {
        if reader.patience.is_zero() {
            return None;
        }
        let begun = Instant::now();
        let mut turn = 0u32;
        loop {
            if let Some(next) = self.try_read(reader) {
                return Some(next);
            }
            let now = Instant::now();
            if now - begun >= reader.patience {
                // in vain, so the next time it is shorter, and not at all in the end
                reader.patience = Some(reader.patience / 2).filter(|half| *half >= SHORTEST).unwrap_or_default();
                return None;
            }
            turn += 1;
            if reader.crowded || turn.is_multiple_of(YIELD_EVERY) {
                std::thread::yield_now();
                reader.crowded = now.elapsed() > CROWDED;
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Ends to wait, unless nobody else does.
    fn leave(&self) -> bool {
        let fewer = |waiting| (waiting > 1).then(|| waiting - 1);
        let left = self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok();
        if left {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
        left
    }

    /// Sleeps until there is a request.
    fn sleep(&self, reader: &mut Reader) -> Next {
        let begun = Instant::now();
        let mut now = begun;
        loop {
            if !self.device.wait(reader.give_back(now)) {
                now = Instant::now();
                continue;
            }
            let Some(next) = self.try_read(reader) else { continue };
            if begun.elapsed() < NAP {
                reader.patience = (reader.patience * 2).clamp(SHORTEST, LONGEST);
            }
            return next;
        }
    }

    fn call_watch(&self) {
        let watch = self.watch.lock();
        self.watch_sleeps.store(false, Ordering::SeqCst);
        drop(watch);
        self.watch_called.notify_one();
    }

    /// Calls another reader when all active ones have been busy with the same requests for a while.
    fn look_after(&self, team: Team<'_, '_>) {
        let (mut before, mut quiet) = (0, 0);
        while !self.has_ended() {
            let taken = self.taken.load(Ordering::Relaxed);
            let busy = self.waiting.load(Ordering::SeqCst) == 0;
            if busy && taken == before {
                team.call();
            }
            quiet = if busy || taken != before { 0 } else { quiet + 1 };
            before = taken;
            if quiet < LOOKS_AT_NOTHING {
                std::thread::sleep(LOOK);
            } else {
                self.watch_sleep();
                quiet = 0;
            }
        }
    }

    /// Sleeps until a request is taken.
    fn watch_sleep(&self) {
        let mut watch = self.watch.lock();
        self.watch_sleeps.store(true, Ordering::SeqCst);
        // who takes one from now on sees that the watch sleeps; who took one just before is seen here
        while self.watch_sleeps.load(Ordering::Relaxed) && self.waiting.load(Ordering::SeqCst) > 0 && !self.has_ended()
        {
            self.watch_called.wait(&mut watch);
        }
        self.watch_sleeps.store(false, Ordering::Relaxed);
    }
}

impl Team<'_, '_> {
    /// Makes one more reader active, if there may be one.
    fn call(self) {
        if !self.readers.call() {
            return;
        }
        if let Err(error) = self.start() {
            tracing::warn!(%error, "starting a reader; there are others");
            self.readers.take_back_call();
        }
    }

    fn start(self) -> io::Result<()> {
        let (thread, reader) = (std::thread::Builder::new().name("reader".to_owned()), Reader::new()?);
        thread.spawn_scoped(self.scope, move || self.readers.take_part(self, reader)).map(drop)
    }
}

impl Reader {
    fn new() -> io::Result<Reader> {
        let (request, answer) = (Pages::new(LONGEST_REQUEST)?, Pages::new(LONGEST_ANSWER)?);
        let (patience, looks_at) = (Duration::ZERO, None);
        Ok(Reader { request, answer, patience, crowded: false, looks_at, backlog: 0, surplus: 0 })
    }

    /// Gives back what large requests took, if that is due; else how long it may sleep until it is.
    fn give_back(&mut self, now: Instant) -> Option<Duration> {
        if !self.request.are_many() && !self.answer.are_many() {
            return None;
        }
        match self.looks_at {
            Some(then) if now < then => return Some(then - now),
            looked => {
                let were_large = [&mut self.request, &mut self.answer].map(Pages::were_many_lately).contains(&true);
                if looked.is_none() || were_large {
                    self.looks_at = Some(now + KEPT);
                    return Some(KEPT);
                }
            }
        }
        self.looks_at = None;
        if let Err(errno) = self.request.give_back().and_then(|()| self.answer.give_back()) {
            tracing::debug!(%errno, "giving memory back");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::mpsc::channel;

    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    use super::*;

    /// What behaves like the device: whole messages, and the kernel's end of it.
    fn device() -> (Arc<Device>, OwnedFd) {
        let (ours, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Device::new(ours).unwrap(), kernel)
    }

    #[test]
    fn each_request_is_taken_once() {
        let (device, kernel) = device();
        let (seen, all) = channel();
        let sender = std::thread::spawn(move || {
            for number in 0..2000u32 {
                send(&kernel, &number.to_ne_bytes(), SendFlags::empty()).unwrap();
            }
        });
        let seen = Mutex::new(seen);
        let handle = |request: &[u8], _: &mut Pages| {
            seen.lock().send(u32::from_ne_bytes(*request.first_chunk().unwrap())).unwrap()
        };
        Readers::new(device, 4).run(&handle).unwrap();
        sender.join().unwrap();
        drop(seen);
        let mut taken: Vec<u32> = all.iter().collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..2000).collect::<Vec<_>>());
    }

    #[test]
    fn a_request_that_takes_long_keeps_nobody_waiting() {
        let (device, kernel) = device();
        let ((release, blocked), (seen, others)) = (channel::<()>(), channel());
        let (blocked, seen) = (Mutex::new(blocked), Mutex::new(seen));
        let caller = std::thread::spawn(move || {
            send(&kernel, b"long", SendFlags::empty()).unwrap();
            send(&kernel, b"short", SendFlags::empty()).unwrap();
            // only another reader can have taken it
            let taken: Vec<u8> = others.recv().unwrap();
            release.send(()).unwrap();
            taken
        });
        let handle = |request: &[u8], _: &mut Pages| match request {
            b"long" => blocked.lock().recv().unwrap(),
            other => seen.lock().send(other.to_vec()).unwrap(),
        };
        Readers::new(device, 2).run(&handle).unwrap();
        assert_eq!(caller.join().unwrap(), b"short");
    }

    #[test]
    fn readers_are_started_as_they_are_needed_and_no_more_than_there_may_be() {
        let (device, kernel) = device();
        let ((release, blocked), (enter, entered)) = (channel::<()>(), channel());
        let (blocked, enter) = (Mutex::new(blocked), Mutex::new(enter));
        let caller = std::thread::spawn(move || {
            for _ in 0..9 {
                send(&kernel, b"long", SendFlags::empty()).unwrap();
            }
            let at_once = entered.iter().take(3).max();
            (0..9).for_each(|_| release.send(()).unwrap());
            entered.iter().take(6).max().max(at_once)
        });
        let inside = AtomicUsize::new(0);
        let handle = |_: &[u8], _: &mut Pages| {
            let now = inside.fetch_add(1, Ordering::Relaxed) + 1;
            enter.lock().send(now).unwrap();
            blocked.lock().recv().unwrap();
            inside.fetch_sub(1, Ordering::Relaxed);
        };
        Readers::new(device, 3).run(&handle).unwrap();
        assert_eq!(caller.join().unwrap(), Some(3));
    }

    #[test]
    fn a_panic_ends_one_request_only() {
        let (device, kernel) = device();
        send(&kernel, b"bad", SendFlags::empty()).unwrap();
        send(&kernel, b"good", SendFlags::empty()).unwrap();
        drop(kernel);
        let good = AtomicU64::new(0);
        let handle = |request: &[u8], _: &mut Pages| {
            assert_eq!(request, b"good", "on purpose");
            good.fetch_add(1, Ordering::Relaxed);
        };
        Readers::new(device, 1).run(&handle).unwrap();
        assert_eq!(good.load(Ordering::Relaxed), 1);
    }
}
