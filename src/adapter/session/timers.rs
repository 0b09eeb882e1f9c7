//! When the session acts by itself: each time has a name, and is cleared where its reason ends.

use std::time::Duration;

use tokio::time::Instant;

/// After this a CLI that was told to stop its turn is restarted.
pub(super) const INTERRUPT_TIME: Duration = Duration::from_secs(10);
/// By then the CLI has begun to answer an input that it was given, or it is restarted.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(60);
/// When something is tried again that the disk did not take.
const DISK_RETRY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Timers {
    /// The translator wants to be called.
    wake_at: Option<Instant>,
    interrupt_by: Option<Instant>,
    /// When an input that is in flight must have become a turn.
    answer_by: Option<Instant>,
    /// Requests that wait for an answer, and until when.
    deadlines: Vec<(String, Instant)>,
    retry_at: Option<Instant>,
    /// When something last happened.
    active: Instant,
    idle_timeout: Duration,
}

/// What has run out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expired {
    pub(super) interrupt: bool,
    pub(super) answer: bool,
    /// Requests that nobody answered in time.
    pub(super) requests: Vec<String>,
}

impl Timers {
    pub(super) fn new(idle_timeout: Duration) -> Timers {
        Timers {
            wake_at: None,
            interrupt_by: None,
            answer_by: None,
            deadlines: Vec::new(),
            retry_at: None,
            active: Instant::now(),
            idle_timeout,
        }
    }

    pub(super) fn something_happened(&mut self) {
        self.active = Instant::now();
    }

    pub(super) fn is_idle_too_long(&self) -> bool {
        self.active.elapsed() >= self.idle_timeout
    }

    pub(super) fn wake_after(&mut self, time: Duration) {
        self.wake_at = Some(Instant::now() + time);
    }

    /// The CLI was told to stop its turn.
    pub(super) fn interrupted(&mut self) {
        self.interrupt_by
            .get_or_insert(Instant::now() + INTERRUPT_TIME);
    }

    pub(super) fn is_interrupting(&self) -> bool {
        self.interrupt_by.is_some()
    }

    /// An input was given to the CLI, which must begin a turn for it.
    pub(super) fn expect_a_turn(&mut self) {
        self.answer_by = Some(Instant::now() + ANSWER_TIME);
    }

    pub(super) fn turn_began(&mut self) {
        self.answer_by = None;
    }

    /// `another`: an input is in flight that did not join the turn, and begins another.
    pub(super) fn turn_ended(&mut self, another: bool) {
        (self.interrupt_by, self.wake_at) = (None, None);
        self.deadlines.clear();
        self.something_happened();
        self.answer_by = another.then(|| Instant::now() + ANSWER_TIME);
    }

    pub(super) fn expect_an_answer(&mut self, request_id: String, time: Duration) {
        self.deadlines.push((request_id, Instant::now() + time));
    }

    pub(super) fn answered(&mut self, request_id: &str) {
        self.deadlines.retain(|(id, _)| id != request_id);
    }

    /// The disk did not take what had to be noted before an input is given to the CLI.
    pub(super) fn wait_for_the_disk(&mut self) {
        self.answer_by = None;
        self.retry_at = Some(Instant::now() + DISK_RETRY);
    }

    pub(super) fn waits_for_the_disk(&self) -> bool {
        self.retry_at.is_some()
    }

    /// The CLI is gone: nothing is expected of it.
    pub(super) fn clear(&mut self) {
        let (active, idle_timeout) = (self.active, self.idle_timeout);
        *self = Timers {
            active,
            ..Timers::new(idle_timeout)
        };
    }

    /// The next time at which something runs out. `idle`: the session ends when nothing happens.
    pub(super) fn next(&self, idle: bool) -> Option<Instant> {
        let times = self.wake_at.into_iter();
        times
            .chain(self.interrupt_by)
            .chain(self.answer_by)
            .chain(self.deadlines.iter().map(|d| d.1))
            .chain(self.retry_at)
            .chain(idle.then(|| self.active + self.idle_timeout))
            .min()
    }

    /// Whether the translator is to be called now. Asked before [`Timers::take_expired`]: what the
    /// translator does then may end or begin a turn, and with it the other times.
    pub(super) fn take_wake(&mut self) -> bool {
        let due = self.wake_at.is_some_and(|at| at <= Instant::now());
        due && self.wake_at.take().is_some()
    }

    /// Takes what else has run out by now.
    pub(super) fn take_expired(&mut self) -> Expired {
        let now = Instant::now();
        let past = |at: &mut Option<Instant>| at.is_some_and(|t| t <= now) && at.take().is_some();
        past(&mut self.retry_at);
        let late = self.deadlines.extract_if(.., |d| d.1 <= now);
        let requests = late.map(|(id, _)| id).collect();
        Expired {
            interrupt: past(&mut self.interrupt_by),
            answer: past(&mut self.answer_by),
            requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn what_runs_out_first_is_next_and_is_taken_once() {
        let mut timers = Timers::new(HOUR);
        assert_eq!(timers.next(false), None);
        timers.wake_after(Duration::from_secs(1));
        timers.interrupted();
        timers.expect_an_answer("per_1".into(), Duration::from_secs(5));
        assert_eq!(
            timers.next(true),
            Some(Instant::now() + Duration::from_secs(1))
        );
        assert_eq!(timers.take_expired(), Expired::default());
        tokio::time::advance(Duration::from_secs(6)).await;
        let expired = timers.take_expired();
        assert!(timers.take_wake() && !timers.take_wake());
        assert!(!expired.interrupt && expired.requests == ["per_1"]);
        assert_eq!(timers.take_expired(), Expired::default());
        tokio::time::advance(INTERRUPT_TIME).await;
        assert!(timers.take_expired().interrupt && !timers.is_interrupting());
    }

    #[tokio::test(start_paused = true)]
    async fn an_interrupt_that_is_repeated_does_not_move_its_end() {
        let mut timers = Timers::new(HOUR);
        timers.interrupted();
        tokio::time::advance(INTERRUPT_TIME / 2).await;
        timers.interrupted();
        assert_eq!(
            timers.next(false),
            Some(Instant::now() + INTERRUPT_TIME / 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_what_was_expected_within_it() {
        let mut timers = Timers::new(HOUR);
        timers.expect_a_turn();
        timers.turn_began();
        timers.interrupted();
        timers.expect_an_answer("per_1".into(), Duration::from_secs(5));
        timers.turn_ended(false);
        assert_eq!(timers.next(false), None);
        timers.turn_ended(true);
        assert_eq!(timers.next(false), Some(Instant::now() + ANSWER_TIME));
        timers.wait_for_the_disk();
        assert!(timers.waits_for_the_disk());
        assert_eq!(timers.next(false), Some(Instant::now() + DISK_RETRY));
        timers.clear();
        assert_eq!(timers.next(false), None);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_counted_from_what_happened_last() {
        let mut timers = Timers::new(HOUR);
        tokio::time::advance(HOUR / 2).await;
        timers.something_happened();
        assert_eq!(timers.next(true), Some(Instant::now() + HOUR));
        tokio::time::advance(HOUR / 2).await;
        assert!(!timers.is_idle_too_long());
        tokio::time::advance(HOUR / 2).await;
        assert!(timers.is_idle_too_long());
    }
}
