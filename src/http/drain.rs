//! One signal that the node stops: readiness turns, long polls answer, streams close.

use tokio::sync::watch;

/// Turns the signal on. It never goes off again.
#[derive(Debug)]
pub struct DrainSwitch(watch::Sender<bool>);

/// Whether the node stops. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<bool>);

impl DrainSwitch {
    #[must_use]
    pub fn new() -> (Self, Drain) {
        let (switch, signal) = watch::channel(false);
        (Self(switch), Drain(signal))
    }

    /// From now on the node takes nothing new.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

impl Drain {
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the node stops (also when its switch is gone, which is the same).
    pub async fn started(&self) {
        let mut signal = self.0.clone();
        // an error means that the switch was dropped with the server
        let _ = signal.wait_for(|draining| *draining).await;
    }
}
