//! The status page of the ops listener: one page that shows `/metrics`, `/readyz` and `/v1/peers` as they change. It is in the
//! binary, asks nobody but this listener, and the node keeps nothing for it.

use actix_web::{HttpResponse, Route, guard, http::header, web};

const PAGE: &str = include_str!("status/page.html");
const STYLE: &str = include_str!("status/style.css");
const SCRIPT: &str = include_str!("status/script.js");

/// Nothing but this listener's own files; nobody may show the page inside of another.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `/`, `/status.css`, `/status.js`.
pub fn routes(config: &mut web::ServiceConfig) {
    let files = [
        ("/", "text/html; charset=utf-8", PAGE),
        ("/status.css", "text/css; charset=utf-8", STYLE),
        ("/status.js", "text/javascript; charset=utf-8", SCRIPT),
    ];
    for (path, kind, file) in files {
        config.route(path, shown().to(move || async move { answer(kind, file) }));
    }
}

/// What one looks at: GET, and HEAD, whose answer has no body.
pub(super) fn shown() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn answer(kind: &'static str, file: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, kind))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(file)
}
