//! Which providers a list means: one by its name, or all below a name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::wire::ids::{Domain, IdError};

/// `a.example` is that domain and nothing else, `*.a.example` is everything below it and not itself, `*` is all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DomainPattern {
    Any,
    Exact(Domain),
    Below(Domain),
}

impl DomainPattern {
    #[must_use]
    pub fn matches(&self, domain: &Domain) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == domain,
            Self::Below(parent) => domain
                .as_str()
                .strip_suffix(parent.as_str())
                .is_some_and(|sub| sub.len() > 1 && sub.ends_with('.')),
        }
    }
}

impl FromStr for DomainPattern {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("*.") {
            _ if text == "*" => Ok(Self::Any),
            Some(parent) => Domain::new(parent).map(Self::Below),
            None => Domain::new(text).map(Self::Exact),
        }
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(domain) => write!(f, "{domain}"),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_labels_only() {
        let table = [
            ("a.example", "a.example", true),
            ("a.example", "x.a.example", false),
            ("*.a.example", "x.a.example", true),
            ("*.a.example", "x.y.a.example", true),
            ("*.a.example", "a.example", false),
            ("*.a.example", "xa.example", false),
            ("*", "anything.example", true),
        ];
        for (pattern, domain, wanted) in table {
            let parsed: DomainPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&Domain::new(domain).unwrap()), wanted, "{pattern} {domain}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for bad in ["", "*.", "**", "A.example", "*.*.example", "a..b", ".a"] {
            assert!(bad.parse::<DomainPattern>().is_err(), "{bad}");
        }
    }
}
