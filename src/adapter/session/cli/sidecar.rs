//! Waiting for the sidecar, without which the CLI cannot work.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapter::config::ports::read_key;
use crate::adapter::session::Session;
use crate::adapter::session::running::CliExit;
use crate::adapter::transport::CliHttpClient;
use crate::adapter::trouble::Component;
use crate::event::{ErrorCode, ErrorEvent, StageState};

/// One try to reach the sidecar: one that has little CPU takes its time.
pub(super) const SIDECAR_TIME: Duration = Duration::from_secs(5);

/// Between two tries: at first, and in the end.
pub(super) const SIDECAR_EVERY: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(5));

/// How often it is said that the sidecar is waited for.
pub(super) const SIDECAR_STAGE: Duration = Duration::from_secs(60);

impl Session {
    /// A CLI without its provider would only fail, each in its own way. The sidecar may come later
    /// than the agent: it is waited for without end.
    pub(super) async fn wait_for_sidecar(&mut self) -> Result<(), CliExit> {
        let (since, address) = (
            Instant::now(),
            self.config.sidecar.trim_start_matches("http://").to_owned(),
        );
        let (mut told, mut refused, mut every) = (None::<Instant>, false, SIDECAR_EVERY.0);
        loop {
            self.read_key_again();
            let http = CliHttpClient {
                address: address.clone(),
                authorization: format!("Bearer {}", self.config.key),
            };
            let why = match http.ask("HEAD", "/", None, SIDECAR_TIME).await {
                Ok((200, _)) => break,
                Ok((401, _)) => {
                    if !std::mem::replace(&mut refused, true) {
                        self.stream.emit(self.wrong_token(&address));
                    }
                    every = SIDECAR_EVERY.1;
                    "it refuses this session's token".to_owned()
                }
                Ok((status, _)) => format!("it answers with status {status}"),
                Err(why) => why,
            };
            let why = format!("the sidecar at {address} is waited for: {why}");
            self.troubles.set(Component::Sidecar, &why);
            if told.is_none_or(|at| at.elapsed() >= SIDECAR_STAGE) {
                told = Some(Instant::now());
                self.stage("sidecar", StageState::Started, since, Some(why.clone()))
                    .await;
            }
            if self
                .config
                .sidecar_patience
                .is_some_and(|patience| since.elapsed() > patience)
            {
                let why = format!(
                    "{why}\nhint: start `outrigger sidecar`, or name another address in `--sidecar` or `sidecar.url`"
                );
                return Err(CliExit::Crashed {
                    why,
                    status: None,
                    stderr: String::new(),
                    was_ready: false,
                });
            }
            if let Some(end) = self.pause(every, "starting").await {
                self.troubles.clear(Component::Sidecar);
                return Err(CliExit::Ended(end));
            }
            every = (every * 2).min(SIDECAR_EVERY.1);
        }
        self.troubles.clear(Component::Sidecar);
        if told.is_some() {
            self.stage("sidecar", StageState::Done, since, None).await;
        }
        Ok(())
    }

    pub(super) fn wrong_token(&self, address: &str) -> ErrorEvent {
        let hint = match &self.config.key_file {
            Some(file) => format!(
                "`{}` must hold the token of the sidecar's `tokenFile`",
                file.display()
            ),
            None => "name the file that holds it in `sidecar.tokenFile` of adapter.yaml".to_owned(),
        };
        ErrorEvent::new(
            ErrorCode::Auth,
            format!("the sidecar at {address} refuses this session's token\nhint: {hint}"),
        )
    }

    /// The token may have been renewed since.
    pub(super) fn read_key_again(&mut self) {
        let Some(file) = &self.config.key_file else {
            return;
        };
        match read_key(file) {
            Ok(key) => self.config.key = key,
            Err(e) => tracing::warn!("the session's token stays as it was: {e}"),
        }
    }
}
