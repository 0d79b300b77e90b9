//! `GET /v1/backup` on the ops listener: everything in the store, as it is read for `mimid backup`.
//!
//! It is the whole of what the provider keeps, so reaching the listener is not enough: whoever asks shows the key that this
//! process wrote into its data folder, for its owner alone, when it started. Who can read that can read the store itself. And it is
//! answered on this machine only, for it is not encrypted. The node writes no file anywhere: that is left to who asks.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, http::header, web};
use futures_util::stream;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};

use super::{answer::OCTET_STREAM, ops::text};
use crate::{
    actors::{Node, backup::NoCopy},
    crypto::{is_same_secret, sha256},
};

/// What is counted of backups.
#[derive(Clone)]
struct BackupMetrics {
    ended: IntCounterVec,
    last_at: Gauge,
    seconds: Gauge,
    bytes: IntGauge,
}

/// What `/v1/backup` needs.
pub struct Backups {
    key: [u8; 32],
    listens_on: IpAddr,
    metrics: BackupMetrics,
}

impl Backups {
    /// `key` is what who asks must show, `listens_on` the listener's own address.
    ///
    /// # Errors
    /// Where its metrics are registered already.
    pub fn new(
        key: &str,
        listens_on: IpAddr,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let metrics = BackupMetrics {
            ended: IntCounterVec::new(
                Opts::new("mimid_backups_total", "Backups of this running node by outcome"),
                &["outcome"],
            )?,
            last_at: Gauge::new(
                "mimid_backup_last_timestamp_seconds",
                "When the last backup of this running node was handed over whole; 0: not since it started",
            )?,
            seconds: Gauge::new("mimid_backup_last_seconds", "How long that took")?,
            bytes: IntGauge::new("mimid_backup_last_bytes", "How large it was")?,
        };
        for outcome in ["whole", "broken_off"] {
            metrics.ended.with_label_values(&[outcome]);
        }
        registry.register(Box::new(metrics.ended.clone()))?;
        registry.register(Box::new(metrics.last_at.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        Ok(Self { key: sha256(key.as_bytes()), listens_on, metrics })
    }

    fn may(&self, request: &HttpRequest) -> bool {
        let from = request.peer_addr().map(|peer| peer.ip().to_canonical());
        let is_near = from.is_some_and(|from| from.is_loopback() || from == self.listens_on);
        let shown = request.headers().get(header::AUTHORIZATION);
        let shown = shown.and_then(|shown| shown.as_bytes().strip_prefix(b"Bearer "));
        // hashed first, so that they are of one length
        is_near && shown.is_some_and(|shown| is_same_secret(&sha256(shown), &self.key))
    }

    /// Answers with the pieces of a copy, each in its frame, as they are read.
    pub fn serve(&self, request: &HttpRequest, node: &Node) -> HttpResponse {
        if !self.may(request) {
            return text(
                StatusCode::FORBIDDEN,
                "a backup is for who can read the data folder, on this machine: use `mimid backup`\n".to_owned(),
            );
        }
        let copying = match node.copy() {
            Ok(copying) => copying,
            Err(error) => {
                let status = match &error {
                    NoCopy::Busy => StatusCode::CONFLICT,
                    NoCopy::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
                };
                return text(status, format!("{error}\n"));
            }
        };
        tracing::info!("a backup is being made");
        let at_work = AtWork {
            metrics: self.metrics.clone(),
            begun: Instant::now(),
            bytes: 0,
            is_whole: false,
        };
        let body = stream::unfold((copying, at_work), |(mut copying, mut at_work)| async move {
            let frame = copying.next().await?;
            at_work.bytes += frame.bytes.len();
            if let Some(sequence) = frame.whole_at {
                at_work.whole(sequence);
            }
            Some((Ok::<_, actix_web::Error>(web::Bytes::from(frame.bytes)), (copying, at_work)))
        });
        HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, OCTET_STREAM))
            .streaming(Box::pin(body))
    }
}

/// Says how it ended, however that was.
struct AtWork {
    metrics: BackupMetrics,
    begun: Instant,
    bytes: usize,
    is_whole: bool,
}

impl AtWork {
    fn whole(&mut self, sequence: u64) {
        self.is_whole = true;
        let seconds = self.begun.elapsed().as_secs_f64();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.last_at.set(now.as_secs_f64());
        self.metrics.seconds.set(seconds);
        self.metrics.bytes.set(i64::try_from(self.bytes).unwrap_or(i64::MAX));
        tracing::info!(sequence, bytes = self.bytes, seconds, "a backup was handed over");
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let outcome = if self.is_whole { "whole" } else { "broken_off" };
        self.metrics.ended.with_label_values(&[outcome]).inc();
        if !self.is_whole {
            tracing::warn!(bytes = self.bytes, "a backup was broken off");
        }
    }
}
