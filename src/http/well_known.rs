//! `GET /.well-known/mimi/ds-domain`: where this provider's federation listener is, as text. PROTOCOL.md §4, Discovery.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, http::header, web};

use super::metrics::HttpMetrics;

/// The path, as TR has it.
pub const DS_DOMAIN: &str = "/.well-known/mimi/ds-domain";

/// What is said, and for how long it may be remembered. Clones say the same.
#[derive(Debug, Clone)]
pub struct DsDomain {
    /// A host and perhaps a port; none until the listener that it names is bound.
    name: Arc<OnceLock<String>>,
    cached: Duration,
}

impl DsDomain {
    #[must_use]
    pub fn new(cached: Duration) -> Self {
        Self { name: Arc::default(), cached }
    }

    /// From now on `name` is what is said. It is said once.
    pub fn tell(&self, name: String) {
        self.name.get_or_init(|| name);
    }

    fn answer(&self) -> HttpResponse {
        let Some(name) = self.name.get() else {
            return HttpResponse::ServiceUnavailable().finish();
        };
        HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
            .insert_header((header::CACHE_CONTROL, format!("max-age={}", self.cached.as_secs())))
            .body(name.clone())
    }
}

/// Adds the path to a listener.
pub fn routes(
    routes: &mut web::ServiceConfig,
    listener: &'static str,
    said: &DsDomain,
    metrics: &HttpMetrics,
) {
    let (said, metrics) = (said.clone(), metrics.clone());
    let answer = move || {
        let (said, metrics) = (said.clone(), metrics.clone());
        async move {
            let started = Instant::now();
            let response = said.answer();
            let http = response.status().as_u16();
            metrics.answered(listener, DS_DOMAIN, http, started.elapsed());
            response
        }
    };
    let head = answer.clone();
    routes.service(
        web::resource(DS_DOMAIN)
            .route(web::get().to(answer))
            .route(web::head().to(head))
            .default_service(web::to(|| async {
                HttpResponse::MethodNotAllowed()
                    .insert_header((header::ALLOW, "GET, HEAD"))
                    .finish()
            })),
    );
}
