//! How one setting is read and shown: durations as `30s`, sizes as `64MiB`, choices by name.
//!
//! A value comes from TOML or from an environment variable; both are parsed by the same code, and an error says what is
//! allowed.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use toml::de::DeValue;

use crate::{
    federation::{DomainPattern, discovery::ServiceHost},
    wire::ids::Domain,
};

/// What somebody wrote.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

/// A type that a setting can have.
pub trait Setting: Sized {
    /// # Errors
    /// What is allowed, for people.
    fn read(given: Given<'_>) -> Result<Self, String>;
    /// As it stands in a TOML file.
    fn show(&self) -> String;
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// For what is held in memory.
    #[must_use]
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Given<'_> {
    /// Nothing between quotes.
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Toml(value) => value.as_str() == Some(""),
        }
    }

    fn text(&self, allowed: &str) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok((*text).to_owned()),
            Self::Toml(value) => value
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("{allowed}, in quotes, not {}", article(value.type_str()))),
        }
    }
}

fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

macro_rules! texts {
    ($($type:ty: $allowed:literal;)*) => {$(
        impl Setting for $type {
            fn read(given: Given<'_>) -> Result<Self, String> {
                let text = given.text($allowed)?;
                text.parse().map_err(|_| format!("{text:?} is not {}", $allowed))
            }
            fn show(&self) -> String {
                quoted(&self.to_string())
            }
        }
    )*};
}

texts! {
    Domain: "a domain in lower case, e.g. \"a.example\"";
    SocketAddr: "an address and a port, e.g. \"127.0.0.1:8443\" (port 0: any free one)";
    ServiceHost: "a host and perhaps a port, e.g. \"mimi.a.example\" or \"127.0.0.1:7443\"";
}

/// An empty text is nothing.
macro_rules! optional {
    ($($type:ty),*) => {$(
        impl Setting for Option<$type> {
            fn read(given: Given<'_>) -> Result<Self, String> {
                if given.is_empty() { Ok(None) } else { <$type>::read(given).map(Some) }
            }
            fn show(&self) -> String {
                self.as_ref().map_or_else(|| quoted(""), Setting::show)
            }
        }
    )*};
}

optional!(PathBuf, SocketAddr, ServiceHost);

impl Setting for bool {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let allowed = "true or false";
        match given {
            Given::Text(text) => text.parse().map_err(|_| format!("{text:?} is not {allowed}")),
            Given::Toml(value) => value
                .as_bool()
                .ok_or_else(|| format!("{allowed}, not {}", article(value.type_str()))),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for PathBuf {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let text = given.text("a path")?;
        if text.is_empty() { Err("a path cannot be empty".to_owned()) } else { Ok(text.into()) }
    }
    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for String {
    fn read(given: Given<'_>) -> Result<Self, String> {
        given.text("a text")
    }
    fn show(&self) -> String {
        quoted(self)
    }
}

impl Setting for Vec<String> {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let allowed = "a list of texts, e.g. [\"a\", \"b\"]";
        match given {
            Given::Text(text) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(str::to_owned)
                .collect()),
            Given::Toml(value) => value
                .as_array()
                .ok_or_else(|| format!("{allowed}, not {}", article(value.type_str())))?
                .iter()
                .map(|item| {
                    item.get_ref().as_str().map(str::to_owned).ok_or_else(|| allowed.to_owned())
                })
                .collect(),
        }
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
    }
}

impl Setting for Vec<DomainPattern> {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let read = |text: String| {
            text.parse().map_err(|_| {
                format!(
                    "{text:?} is not a domain in lower case, nor \"*.\" and one for all below it"
                )
            })
        };
        Vec::<String>::read(given)?.into_iter().map(read).collect()
    }
    fn show(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().show()
    }
}

impl Setting for Vec<PathBuf> {
    fn read(given: Given<'_>) -> Result<Self, String> {
        Ok(Vec::<String>::read(given)?.into_iter().map(PathBuf::from).collect())
    }
    fn show(&self) -> String {
        self.iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>().show()
    }
}

/// A table in TOML, `a.example=host:port, …` in a variable.
impl Setting for BTreeMap<Domain, ServiceHost> {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let allowed = "a table of domains and hosts, e.g. { \"b.example\" = \"127.0.0.1:7443\" }";
        let entry = |domain: &str, host: Given<'_>| {
            Ok((Domain::read(Given::Text(domain.trim()))?, ServiceHost::read(host)?))
        };
        match given {
            Given::Text(text) => text
                .split(',')
                .filter(|item| !item.trim().is_empty())
                .map(|item| {
                    let (domain, host) =
                        item.split_once('=').ok_or("it is domain=host:port, …, in a variable")?;
                    entry(domain, Given::Text(host.trim()))
                })
                .collect(),
            Given::Toml(value) => value
                .as_table()
                .ok_or_else(|| format!("{allowed}, not {}", article(value.type_str())))?
                .iter()
                .map(|(domain, host)| entry(domain.get_ref(), Given::Toml(host.get_ref())))
                .collect(),
        }
    }
    fn show(&self) -> String {
        let entries: Vec<_> = self
            .iter()
            .map(|(domain, host)| format!("{} = {}", quoted(domain.as_str()), host.show()))
            .collect();
        if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
    }
}

impl Setting for Vec<u16> {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let allowed = "a list of whole numbers, e.g. [1, 2]";
        let number =
            |text: &str| text.parse().map_err(|_| format!("{text:?} does not stand in {allowed}"));
        match given {
            Given::Text(text) => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(number).collect()
            }
            Given::Toml(value) => value
                .as_array()
                .ok_or_else(|| format!("{allowed}, not {}", article(value.type_str())))?
                .iter()
                .map(|item| match item.get_ref().as_integer() {
                    Some(item) if item.radix() == 10 => number(item.as_str()),
                    _ => Err(allowed.to_owned()),
                })
                .collect(),
        }
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(u16::to_string).collect::<Vec<_>>().join(", "))
    }
}

fn integer(given: Given<'_>) -> Result<u64, String> {
    let allowed = "a whole number, e.g. 1000";
    let text = match given {
        Given::Text(text) => text.to_owned(),
        Given::Toml(value) => match value.as_integer() {
            Some(number) if number.radix() == 10 => number.as_str().to_owned(),
            _ => return Err(format!("{allowed}, not {}", article(value.type_str()))),
        },
    };
    text.replace('_', "").parse().map_err(|_| format!("{text:?} is not {allowed}"))
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn read(given: Given<'_>) -> Result<Self, String> {
                let number = integer(given)?;
                Self::try_from(number).map_err(|_| format!("{number} is more than {}", Self::MAX))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

integers!(u32, usize);

const TIMES: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 4] =
    [("B", 1), ("KiB", 1024), ("MiB", 1024 * 1024), ("GiB", 1024 * 1024 * 1024)];

impl Setting for Duration {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let allowed = "a duration, e.g. \"250ms\", \"30s\", \"5m\", \"12h\" or \"90d\"";
        let text = given.text(allowed)?;
        with_unit(&text, &TIMES)
            .map(Self::from_millis)
            .ok_or_else(|| format!("{text:?} is not {allowed}"))
    }
    fn show(&self) -> String {
        show_unit(u64::try_from(self.as_millis()).unwrap_or(u64::MAX), &TIMES)
    }
}

/// "never" is none.
impl Setting for Option<Duration> {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let never = match given {
            Given::Text(text) => text == NEVER,
            Given::Toml(value) => value.as_str() == Some(NEVER),
        };
        if never {
            return Ok(None);
        }
        Duration::read(given).map(Some).map_err(|error| format!("{error}, or \"{NEVER}\""))
    }
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| quoted(NEVER), Setting::show)
    }
}

const NEVER: &str = "never";

impl Setting for Bytes {
    fn read(given: Given<'_>) -> Result<Self, String> {
        let allowed = "a size, e.g. \"512KiB\", \"64MiB\" or \"1GiB\"";
        let text = given.text(allowed)?;
        with_unit(&text, &SIZES).map(Self).ok_or_else(|| format!("{text:?} is not {allowed}"))
    }
    fn show(&self) -> String {
        show_unit(self.0, &SIZES)
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn show_unit(value: u64, units: &[(&str, u64)]) -> String {
    let largest =
        units.iter().rev().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    let (name, factor) = largest.unwrap_or(&units[0]);
    quoted(&format!("{}{name}", value / factor))
}

/// A setting that is one of a few words.
macro_rules! choice {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($(#[$variant_doc])* $variant),+ }
        impl $crate::server::setting::Setting for $type {
            fn read(given: $crate::server::setting::Given<'_>) -> Result<Self, String> {
                let names: &[&str] = &[$($name),+];
                let text = $crate::server::setting::word(given, names)?;
                $(if text == $name { return Ok(Self::$variant); })+
                Err($crate::server::setting::not_one_of(&text, names))
            }
            fn show(&self) -> String {
                match self { $(Self::$variant => format!("{:?}", $name)),+ }
            }
        }
    };
}
pub(super) use choice;

pub fn word(given: Given<'_>, names: &[&str]) -> Result<String, String> {
    given.text(&format!("one of {}", names.join(", ")))
}

pub fn not_one_of(text: &str, names: &[&str]) -> String {
    let near = nearest(text, names.iter().copied())
        .map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
    format!("{text:?} is not one of {}{near}", names.join(", "))
}

/// The name that `text` was probably meant to be.
pub fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(text, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_what_they_show() {
        for (text, ms) in [
            ("\"250ms\"", 250),
            ("\"90s\"", 90_000),
            ("\"2m\"", 120_000),
            ("\"90d\"", 7_776_000_000),
        ] {
            let read = Duration::read(Given::Text(text.trim_matches('"'))).unwrap();
            assert_eq!((read, read.show().as_str()), (Duration::from_millis(ms), text));
        }
        assert_eq!(Option::<Duration>::read(Given::Text("never")).unwrap(), None);
        assert_eq!(None::<Duration>.show(), "\"never\"");
        assert!(Option::<Duration>::read(Given::Text("nie")).unwrap_err().ends_with("\"never\""));
        assert_eq!(Bytes::read(Given::Text("64MiB")).unwrap(), Bytes(64 << 20));
        assert_eq!(Bytes(1536).show(), "\"1536B\"");
        assert_eq!(Bytes(0).show(), "\"0B\"");
        for wrong in ["", "5", "s", "5 weeks", "-1s", "99999999999999999999d", "1.5h"] {
            assert!(Duration::read(Given::Text(wrong)).unwrap_err().contains("e.g."), "{wrong}");
        }
    }

    #[test]
    fn where_providers_are_reads_what_it_shows() {
        let text = "b.example = localhost:1,c.example=[::1]:2";
        let read = BTreeMap::<Domain, ServiceHost>::read(Given::Text(text)).unwrap();
        assert_eq!(read.show(), r#"{ "b.example" = "localhost:1", "c.example" = "[::1]:2" }"#);
        assert!(BTreeMap::<Domain, ServiceHost>::read(Given::Text("b.example")).is_err());
    }

    #[test]
    fn a_number_that_does_not_fit_says_how_much_does() {
        assert_eq!(u32::read(Given::Text("5_000")).unwrap(), 5000);
        assert!(u32::read(Given::Text("5000000000")).unwrap_err().contains("4294967295"));
        assert!(u32::read(Given::Text("-1")).unwrap_err().contains("whole number"));
    }
}
