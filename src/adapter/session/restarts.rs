//! Whether a CLI that ended is started again, and when.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Crashes, each so soon after the other, after which the CLI is given up.
const MAX_CRASHES: usize = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(120);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// The crashes of the last [`CRASH_WINDOW`].
    crashes: VecDeque<Instant>,
}

impl Restarts {
    /// The CLI works: an earlier crash says nothing about the next.
    pub(super) fn it_works(&mut self) {
        self.crashes.clear();
    }

    /// Counts a crash. Returns how long to wait before the next start; `None`: no more starts.
    pub(super) fn crashed(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.crashes.push_back(now);
        self.crashes.retain(|crash| now - *crash <= CRASH_WINDOW);
        let again = self.crashes.len() < MAX_CRASHES;
        again.then(|| FIRST_BACKOFF * 2_u32.pow(self.crashes.len() as u32 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_until_it_is_given_up() {
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..5).map(|_| restarts.crashed()).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(waits, [ms(200), ms(400), ms(800), ms(1600), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn crashes_that_are_long_ago_or_before_a_good_turn_do_not_count() {
        let mut restarts = Restarts::default();
        let first = restarts.crashed();
        tokio::time::advance(CRASH_WINDOW + Duration::from_secs(1)).await;
        assert_eq!(restarts.crashed(), first);
        restarts.crashed();
        restarts.it_works();
        assert_eq!(restarts.crashed(), first);
    }
}
