//! What systemd is told of a provider by sd_notify(3): that it is up, that it is alive, that it stops. Where nobody asks
//! (`NOTIFY_SOCKET`, `WATCHDOG_USEC`) nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service manager that started this process, if one did.
#[derive(Debug)]
pub struct Supervisor {
    watchdog: Option<Interval>,
}

impl Supervisor {
    /// As the environment says. To be called within a tokio runtime.
    #[must_use]
    pub fn of_environment() -> Self {
        let watchdog = sd_notify::watchdog_enabled().map(|limit| {
            // more often than sd_watchdog_enabled(3) has it: what has gone on by the third look is not killed.
            // Never shorter than tokio takes
            let mut due = interval((limit / 4).max(Duration::from_millis(1)));
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            due
        });
        Self { watchdog }
    }

    /// Everything is bound and serves.
    pub fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// It was told to stop; what is in flight ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Returns when it is time to look, and to say [`Self::alive`] where all is well; never, where nobody watches.
    pub async fn is_due(&mut self) {
        match &mut self.watchdog {
            Some(due) => {
                due.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Who does not say this in time is killed and started again.
    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told how this node is");
    }
}
