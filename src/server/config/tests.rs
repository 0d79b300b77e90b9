//! What is refused, what is shown, and that the examples say what is true.

use std::{path::Path, time::Duration};

use super::{load::REGISTRATION_TOKEN, *};
use crate::rate::Quota;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mimid.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(
        Some(&file),
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<(String, String)> {
    load(text, variables)
        .unwrap_err()
        .problems
        .into_iter()
        .map(|problem| {
            let place = match problem.place {
                Place::Line { line, .. } => format!("line {line}"),
                Place::Variable(name) => name,
                place @ (Place::File(_) | Place::Option(_) | Place::Default) => place.to_string(),
            };
            (place, problem.message)
        })
        .collect()
}

#[test]
fn what_is_shown_reads_as_the_same_configuration() {
    let config = Config::default();
    assert_eq!(load(&config.show(), &[]).unwrap(), config);
    let mut other = config;
    other.domain = Domain::new("a.example").unwrap();
    other.client.certificate = Some("a \"quoted\" \\ path".into());
    other.client.key = Some("key.pem".into());
    other.limits.poll_max = Duration::from_millis(1500);
    other.federation.listen = Some(([127, 0, 0, 1], 7443).into());
    other.federation.domain_name = Some("mimi.a.example:7443".parse().unwrap());
    other.federation.certificate = Some("f.pem".into());
    other.federation.key = Some("f-key.pem".into());
    let host = "[::1]:7444".parse().unwrap();
    other.federation.overrides.insert(Domain::new("b.example").unwrap(), host);
    other.federation.roots = vec!["b/certificate.pem".into()];
    other.federation.deny = vec!["c.example".parse().unwrap(), "*.d.example".parse().unwrap()];
    other.federation.allow_private_addresses = true;
    other.registration.token_hashes = vec!["ab".repeat(32)];
    assert_eq!(load(&other.show(), &[]).unwrap(), other);
}

#[test]
fn the_example_is_the_default_and_shows_every_setting() {
    let text = include_str!("../../../config/single.toml");
    assert_eq!(load(text, &[]).unwrap(), Config::default());
    let uncommented: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("#: ").or((!line.starts_with('#')).then_some(line)))
        .map(|line| format!("{line}\n"))
        .collect();
    let all = load(&uncommented, &[]).unwrap();
    assert_eq!(all, Config::default(), "what is commented out says the default too");
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in uncommented.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((name, _)) = line.split_once(" = ") {
            keys.push(format!("{section}{name}"));
        }
    }
    assert_eq!(keys, SETTINGS.iter().map(|row| row.key).collect::<Vec<_>>());
}

#[test]
fn variables_stand_over_the_file() {
    let config = load(
        "domain = \"a.example\"\n[client]\nlisten = \"127.0.0.1:1\"\n",
        &[
            ("MIMID_CLIENT__LISTEN", "127.0.0.1:2"),
            ("MIMID_LIMITS__POLL_MAX", "5s"),
            ("OTHER", "x"),
        ],
    )
    .unwrap();
    assert_eq!(config.domain.as_str(), "a.example");
    assert_eq!(config.client.listen.port(), 2);
    assert_eq!(config.limits.poll_max, Duration::from_secs(5));
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
    let found = problems(
        "domian = \"a.example\"\n\n[client]\nlisen = \"127.0.0.1:1\"\n[opps]\nlisten = \"127.0.0.1:1\"\n",
        &[("MIMID_CLIENT__LISEN", "x")],
    );
    let expected = [
        ("MIMID_CLIENT__LISEN", "did you mean MIMID_CLIENT__LISTEN?"),
        ("line 1", "did you mean \"domain\"?"),
        ("line 4", "did you mean \"client.listen\"?"),
        ("line 5", "did you mean [ops]?"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (place, hint) in expected {
        let problem = found.iter().find(|(at, _)| at == place);
        assert!(problem.is_some_and(|(_, message)| message.contains(hint)), "{found:?}");
    }
}

#[test]
fn all_problems_are_told_at_once_each_with_what_is_allowed() {
    let found = problems(
        "domain = \"UPPER.example\"\n[store]\nengine = \"slet\"\ncache = 5\n[limits]\nworkers = 0\nbody_timeout = \"1w\"\n",
        &[],
    );
    let message = |line: &str| {
        found.iter().find(|(place, _)| place == line).map(|(_, message)| message.as_str()).unwrap()
    };
    assert!(message("line 1").contains("lower case"));
    assert!(message("line 3").contains("one of sled, fjall, memory; did you mean \"sled\"?"));
    assert!(message("line 4").contains("\"64MiB\""));
    assert!(message("line 6").contains("from 1 to 1024"));
    assert!(message("line 7").contains("\"30s\""));
}

#[test]
fn what_a_group_may_be_reaches_the_groups_and_is_bounded() {
    let text = "[groups]\npending_max = 7\napplication_bytes_max = \"2KiB\"\nhandshake_bytes_max = \"32KiB\"\n\
        ciphersuites = [3, 1]\nstrict_after = \"never\"\ndelete_after = \"2h\"\n\
         complaint_wait = \"45s\"\n\
        [queues]\nconnection_offers_per_hour = 9\n";
    let config = load(text, &[("MIMID_GROUPS__CIPHERSUITES", "2, 3")]).unwrap();
    let settings = config.group_options().settings;
    assert_eq!((settings.pending_max, settings.application_bytes_max), (7, 2048));
    assert_eq!((settings.handshake_bytes_max, settings.ciphersuites), (32 * 1024, vec![2, 3]));
    assert_eq!((settings.strict_after_ms, settings.delete_after_ms), (None, 7_200_000));
    assert_eq!(settings.complaint_wait_ms, 45_000);
    assert_eq!(config.node_limits().connection_offers_per_hour, 9);

    let text = "[groups]\nciphersuites = [1, 9]\napplication_bytes_max = \"1GiB\"\ndelete_after = \"1s\"\n";
    let found = problems(text, &[("MIMID_GROUPS__PENDING_MAX", "0")]);
    let places: Vec<_> = found.iter().map(|(place, _)| place.as_str()).collect();
    for place in ["line 2", "line 3", "line 4", "MIMID_GROUPS__PENDING_MAX"] {
        assert!(places.contains(&place), "{found:?}");
    }
    assert!(problems("[groups]\nciphersuites = [\"x\"]\n", &[])[0].1.contains("numbers"));
}

#[test]
fn what_belongs_together_is_checked_together() {
    let found = problems("[client]\nkey = \"k.pem\"\n[registration]\nmode = \"token\"\n", &[]);
    assert!(found.iter().any(|(place, text)| place == "line 2" && text.contains("together")));
    assert!(
        found.iter().any(|(place, text)| place == "line 4" && text.contains("at least one token"))
    );
    let config =
        load("[registration]\nmode = \"token\"\n", &[(REGISTRATION_TOKEN, "abc")]).unwrap();
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(config.registration.token_hashes, [hash]);
    let found = problems("[registration]\ntoken_hashes = [\"abc\"]\n", &[]);
    assert!(found[0].1.contains("64 digits"));
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_said_so() {
    let missing = Config::load(Some(Path::new("/nonexistent/mimid.toml")), []).unwrap_err();
    assert!(missing.to_string().starts_with("/nonexistent/mimid.toml: cannot be read"));
    let found = problems("domain = \"a.example\"\n[client\n", &[]);
    assert_eq!(found[0].0, "line 2");
    assert!(found[0].1.starts_with("not TOML"));
}

#[test]
fn where_other_providers_are_reads_from_a_table_of_its_own_or_inline_or_a_variable() {
    let own = "[federation]\nlisten = \"127.0.0.1:0\"\n[federation.overrides]\n\"b.example\" = \"localhost:1\"\n";
    let inline =
        "[federation]\nlisten = \"127.0.0.1:0\"\noverrides = { \"b.example\" = \"localhost:1\" }\n";
    let variables = [
        ("MIMID_FEDERATION__LISTEN", "127.0.0.1:0"),
        ("MIMID_FEDERATION__OVERRIDES", "b.example=localhost:1"),
        ("MIMID_FEDERATION__ALLOW_PRIVATE_ADDRESSES", "false"),
    ];
    let config = load(own, &[]).unwrap();
    assert_eq!(config, load(inline, &[]).unwrap());
    assert_eq!(config, load("", &variables).unwrap());
    let b = Domain::new("b.example").unwrap();
    assert_eq!(config.federation.overrides[&b].to_string(), "localhost:1");
}

#[test]
fn a_federation_that_cannot_be_is_refused_with_what_is_wrong() {
    let text = "domain = \"a.example\"\n[federation]\nkey = \"k.pem\"\nallow = [\"b.*\"]\n\
        overrides = { \"a.example\" = \"localhost:1\" }\nbackoff_min = \"10m\"\nallow_private_adresses = true\n\
        relay_timeout = \"1ms\"\nbatch_bytes_max = \"1GiB\"\n[rates]\npeer_per_second = -1\n";
    let found = problems(text, &[]);
    for (line, hint) in [
        ("line 3", "together"),
        ("line 4", "\"b.*\" is not a domain"),
        ("line 5", "this provider itself"),
        ("line 6", "federation.backoff_max"),
        ("line 7", "did you mean \"federation.allow_private_addresses\"?"),
        ("line 8", "from \"100ms\""),
        ("line 9", "from \"16KiB\" to \"4MiB\""),
        ("line 11", "whole number"),
    ] {
        let told = found.iter().any(|(at, message)| at == line && message.contains(hint));
        assert!(told, "{line} {hint}: {found:?}");
    }
    let wrong =
        problems("[federation]\noverrides = { b = 5 }\ndomain_name = \"a.example:0\"\n", &[]);
    for hint in ["in quotes, not an integer", "\"127.0.0.1:7443\""] {
        assert!(wrong.iter().any(|(_, message)| message.contains(hint)), "{wrong:?}");
    }
}

#[test]
fn each_rate_is_of_whom_it_says() {
    let text = "[rates]\naddress_per_second = 1\naddress_burst = 2\npeer_per_second = 3\npeer_burst = 4\n\
        group_per_second = 5\ngroup_burst = 6\nmember_per_second = 7\nmember_burst = 8\n";
    let config = load(text, &[]).unwrap();
    let quota = |per_second, burst| Quota { per_second, burst };
    let federation = config.federation_limits();
    assert_eq!(config.client_limits().requests_per_address, quota(1, 2));
    assert_eq!(federation.shared.requests_per_address, quota(1, 2));
    assert_eq!(federation.requests_per_peer, quota(3, 4));
    let rates = config.group_options().rates;
    assert_eq!((rates.group, rates.member), (quota(5, 6), quota(7, 8)));
}

#[test]
fn the_two_example_providers_find_and_trust_each_other() {
    let load = |text: &str| load(text, &[]).unwrap();
    let a = load(include_str!("../../../config/federation-a.toml"));
    let b = load(include_str!("../../../config/federation-b.toml"));
    assert_ne!(a.domain, b.domain);
    for (one, other) in [(&a, &b), (&b, &a)] {
        let host = &one.federation.overrides[&other.domain];
        let listen = other.federation.listen.unwrap();
        assert_eq!(host.to_string(), format!("localhost:{}", listen.port()));
        assert_eq!(one.federation.roots, [other.data_dir.join("certificate.pem")]);
        assert!(one.federation.allow_private_addresses);
    }
    let ports = [&a, &b].map(|config| {
        [config.client.listen, config.ops.listen, config.federation.listen.unwrap()]
            .map(|address| address.port())
    });
    let all: std::collections::BTreeSet<u16> = ports.concat().into_iter().collect();
    assert_eq!(all.len(), 6, "both run on one machine");
}

#[test]
fn the_example_for_load_tests_lets_one_address_ask_for_what_thousands_would() {
    let config = load(include_str!("../../../config/load.toml"), &[]).unwrap();
    let none = config.client_limits().requests_per_address;
    assert_eq!(none.per_second, 0, "no limit");
    let rates = config.group_options().rates;
    assert_eq!((rates.group.per_second, rates.member.per_second), (0, 0));
    assert_eq!(config.federation_limits().requests_per_peer.per_second, 0);
}
