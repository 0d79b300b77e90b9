//! Reading a configuration: a key that is not in the table is refused, with the one that was probably meant. All problems
//! are reported at once, each with its place.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{Config, Given, SETTINGS, check::check};
use crate::server::setting::nearest;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Line {
        file: PathBuf,
        line: usize,
    },
    File(PathBuf),
    Variable(String),
    /// An option of the command line.
    Option(&'static str),
    Default,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Option(name) => write!(f, "option {name}"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { place, message }) in self.problems.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{place}: {message}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads `file`, where there is one, and then `variables` over it: all of the environment, of which those that
    /// begin with `MIMID_` are settings (`MIMID_CLIENT__LISTEN` is `client.listen`).
    ///
    /// # Errors
    /// Everything that is wrong, each with its place and with what is allowed.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut loading = Loading::default();
        if let Some(file) = file {
            match std::fs::read_to_string(file) {
                Ok(text) => loading.file(file, &text),
                Err(error) => loading
                    .problem(Place::File(file.to_owned()), format!("cannot be read: {error}")),
            }
        }
        let mut variables: Vec<_> = variables.into_iter().collect();
        variables.sort();
        for (name, value) in &variables {
            loading.variable(name, value);
        }
        loading.finish()
    }

    /// As [`Config::load`] of a file with `text` in it.
    #[cfg(fuzzing)]
    pub fn of_text(text: &str) -> Result<Self, ConfigError> {
        let mut loading = Loading::default();
        loading.file(Path::new("fuzz.toml"), text);
        loading.finish()
    }

    /// Every setting with its value, as a TOML file.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for row in SETTINGS {
            let (in_section, name) = row.key.split_once('.').unwrap_or(("", row.key));
            if in_section != section {
                section = in_section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            text.push_str(&format!("{name} = {}\n", (row.show)(self)));
        }
        text
    }
}

#[derive(Default)]
struct Loading {
    config: Config,
    /// Where each key was given last.
    places: HashMap<&'static str, Place>,
    problems: Vec<Problem>,
}

impl Loading {
    fn problem(&mut self, place: Place, message: String) {
        self.problems.push(Problem { place, message });
    }

    fn file(&mut self, file: &Path, text: &str) {
        let at = |offset: usize| Place::Line {
            file: file.to_owned(),
            line: text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
                + 1,
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let place = at(error.span().map_or(0, |span| span.start));
                return self.problem(place, format!("not TOML: {}", error.message()));
            }
        };
        for (name, value) in &table {
            let place = at(name.span().start);
            let (name, value) = (name.get_ref().as_ref(), value.get_ref());
            match value.as_table().filter(|_| is_section(name)) {
                Some(section) => {
                    for (inner, value) in section {
                        let key = format!("{name}.{}", inner.get_ref());
                        self.set(&key, Given::Toml(value.get_ref()), at(inner.span().start));
                    }
                }
                None => self.set(name, Given::Toml(value), place),
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str) {
        let Some(rest) = name.strip_prefix("MIMID_") else { return };
        if NOT_SETTINGS.contains(&name) {
            return;
        }
        let place = Place::Variable(name.to_owned());
        if name == REGISTRATION_TOKEN {
            let hash = hex::encode(crate::crypto::sha256(value.as_bytes()));
            return self.config.registration.token_hashes.push(hash);
        }
        let rest = rest.to_lowercase();
        let row = SETTINGS.iter().find(|row| rest == row.key.replacen('.', "__", 1));
        match row {
            Some(row) => self.set(row.key, Given::Text(value), place),
            None => {
                let names: Vec<_> = SETTINGS.iter().map(|row| variable_of(row.key)).collect();
                let near = nearest(name, names.iter().map(String::as_str)).map_or_else(
                    || "see `mimid check-config` for all settings".to_owned(),
                    |near| format!("did you mean {near}?"),
                );
                self.problem(place, format!("there is no such setting; {near}"));
            }
        }
    }

    fn set(&mut self, key: &str, given: Given<'_>, place: Place) {
        let Some(row) = SETTINGS.iter().find(|row| row.key == key) else {
            return self.unknown(key, given, place);
        };
        match (row.set)(&mut self.config, given) {
            Ok(()) => {
                self.places.insert(row.key, place);
            }
            Err(allowed) => self.problem(place, format!("{key}: {allowed}")),
        }
    }

    fn unknown(&mut self, key: &str, given: Given<'_>, place: Place) {
        if let Given::Toml(DeValue::Table(_)) = given {
            let near = nearest(key, sections())
                .map_or_else(String::new, |near| format!("; did you mean [{near}]?"));
            return self.problem(place, format!("there is no section [{key}]{near}"));
        }
        if is_section(key) {
            return self.problem(place, format!("{key} is a section: write [{key}]"));
        }
        // the same name in another section is the likeliest mistake, then a misspelling in this one
        let name = key.rsplit('.').next().unwrap_or(key);
        let elsewhere =
            SETTINGS.iter().map(|row| row.key).find(|known| known.rsplit('.').next() == Some(name));
        let near = elsewhere.or_else(|| nearest(key, SETTINGS.iter().map(|row| row.key)));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        self.problem(place, format!("there is no setting {key:?}{near}"));
    }

    /// What single values cannot show: ranges, and settings that belong together.
    fn finish(mut self) -> Result<Config, ConfigError> {
        for (key, message) in check(&self.config) {
            let place = self.places.get(key).cloned().unwrap_or(Place::Default);
            self.problem(place, format!("{key}: {message}"));
        }
        if self.problems.is_empty() {
            Ok(self.config)
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }
}

/// A SHA-256 from its hex digits.
#[must_use]
pub fn token_hash(hex_digits: &str) -> Option<[u8; 32]> {
    hex::decode(hex_digits).ok()?.try_into().ok()
}

fn sections() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter_map(|row| row.key.split_once('.').map(|(section, _)| section))
}

fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

fn variable_of(key: &str) -> String {
    format!("MIMID_{}", key.replacen('.', "__", 1).to_uppercase())
}

/// A registration token itself, for who would rather not write its hash into a file.
pub(super) const REGISTRATION_TOKEN: &str = "MIMID_REGISTRATION_TOKEN";

/// Variables of the command line that are no settings of the provider.
const NOT_SETTINGS: [&str; 2] = ["MIMID_CONFIG", "MIMID_HOME"];
