//! Log lines: structured, one per event, to stderr, for people or as JSON. No payloads, ever.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, fmt, reload::Handle};

use super::config::{Log, LogFormat};

/// Starts logging for the whole process. A second call changes nothing.
///
/// # Errors
/// Where the level is none.
pub fn start(log: &Log) -> Result<(), String> {
    let builder = fmt().with_env_filter(filter(&log.level)?).with_writer(std::io::stderr);
    // who started logging first keeps it, and its level
    match log.format {
        LogFormat::Human => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_target(false);
            let builder = builder.with_filter_reloading();
            let set = setter(builder.reload_handle());
            if builder.try_init().is_ok() {
                let _ = SET_LEVEL.set(set);
            }
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let set = setter(builder.reload_handle());
            if builder.try_init().is_ok() {
                let _ = SET_LEVEL.set(set);
            }
        }
    }
    Ok(())
}

/// From now on what `level` lets through is said. Where somebody else started logging nothing changes.
///
/// # Errors
/// Where the level is none.
pub fn set_level(level: &str) -> Result<(), String> {
    let filter = filter(level)?;
    SET_LEVEL.get().map_or(Ok(()), |set| set(filter))
}

type SetLevel = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();

fn setter<S: 'static>(handle: Handle<EnvFilter, S>) -> SetLevel {
    Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
}

/// The filter for a level (mimid's own; of libraries only what is wrong) or for directives (`info,mimid::http=debug`).
///
/// # Errors
/// What is allowed.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    let allowed = "a level (error, warn, info, debug, trace, off) or directives such as \"info,mimid::http=debug\"";
    // EnvFilter takes a misspelled level for the name of a module: words alone must be levels
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word.trim()));
    if level.split(',').any(|part| !part.contains('=') && !is_level(part)) {
        return Err(format!("{level:?} is not {allowed}"));
    }
    let own = match level.trim().to_ascii_lowercase() {
        word if ["info", "debug", "trace"].contains(&word.as_str()) => format!("warn,mimid={word}"),
        _ => level.to_owned(),
    };
    EnvFilter::builder().parse(own).map_err(|error| format!("{level:?} is not {allowed}: {error}"))
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_with_what_is_allowed() {
        for good in ["info", "WARN", "off", "info,mimid::http=debug", "mimid=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,", "mimid=loud", "debug mimid"] {
            assert!(filter(bad).unwrap_err().contains("debug"), "{bad}");
        }
    }

    #[test]
    fn a_level_is_for_what_mimid_says_and_directives_are_for_all() {
        assert_eq!(filter("Info").unwrap().to_string(), "mimid=info,warn");
        assert_eq!(filter("error").unwrap().to_string(), "error");
        assert_eq!(filter("info,mimid=trace").unwrap().to_string(), "mimid=trace,info");
    }
}
