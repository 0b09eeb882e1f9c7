//! Tickets: what a page that cannot send headers presents instead of its token.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::sync::lock;
use crate::base::token::Token;

pub const TICKET_TIME: Duration = Duration::from_secs(60);
const MAX_TICKETS: usize = 1024;

/// One-minute tickets, since `EventSource` sends no headers.
#[derive(Debug, Default)]
pub struct Tickets(Mutex<VecDeque<(String, Instant)>>);

impl Tickets {
    pub(crate) fn issue(&self) -> Result<String, getrandom::Error> {
        let ticket = Token::draw()?;
        let mut tickets = lock(&self.0);
        while tickets.len() >= MAX_TICKETS
            || tickets
                .front()
                .is_some_and(|(_, until)| *until < Instant::now())
        {
            tickets.pop_front();
        }
        tickets.push_back((ticket.clone(), Instant::now() + TICKET_TIME));
        Ok(ticket)
    }

    /// Random and short-lived: which of them it is may show in the time that this takes.
    pub(crate) fn admits(&self, presented: &str) -> bool {
        let tickets = lock(&self.0);
        tickets
            .iter()
            .any(|(ticket, until)| ticket == presented && *until >= Instant::now())
    }
}
