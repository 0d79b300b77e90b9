//! Arbitrary text as names, headers, JSON and configuration, and the frames of a WebSocket: refused, or the same when it is
//! shown and read again. The first byte says as what.
#![no_main]

use std::{fmt::Debug, str::FromStr};

use mimid::{
    client::Authorization,
    federation::{DomainPattern, discovery::ServiceHost, trace::TraceParent},
    http::{migrations::Migrations, peers},
    server::{Config, Endpoints},
    wire::{
        federation::EventType,
        ids::{ClientUri, Domain, GroupId, UserUri},
    },
};
use mimid_fuzz::{Limit, within};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    // a message about each of many mistakes, with what was probably meant
    const LIMIT: Limit = Limit { per_byte: 1024, fixed: 1 << 20, calls_per_byte: 64 };
    within(LIMIT, bytes.len(), || read(*which, bytes));
});

fn read(which: u8, bytes: &[u8]) {
    match which {
        11 => return mimid::server::fuzzing::key_file(bytes),
        12 => return mimid::federation::fuzzing::headers(bytes),
        13 => {
            let Some((piece, bytes)) = bytes.split_first() else { return };
            return mimid::http::fuzzing::frames(bytes, *piece);
        }
        _ => {}
    }
    if which == 10 {
        if let Ok(host) = ServiceHost::from_answer(bytes) {
            assert_eq!(host.authority().parse::<ServiceHost>(), Ok(host));
        }
        if let Ok(group) = GroupId::from_bytes(bytes) {
            assert_eq!(group.as_bytes(), bytes);
        }
        return;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match which {
        0 => {
            if let Ok(config) = Config::of_text(text) {
                let shown = config.show();
                let again = Config::of_text(&shown).expect("what is shown can be read");
                assert_eq!(again.show(), shown);
            }
        }
        1 => {
            let variables = text.split('\0').filter_map(|one| one.split_once('='));
            let variables =
                variables.map(|(name, value)| (format!("MIMID_{name}"), value.to_owned()));
            if let Err(error) = Config::load(None, variables) {
                assert!(!error.to_string().is_empty());
            }
        }
        2 => {
            let _ = serde_json::from_str::<Endpoints>(text);
            let _ = serde_json::from_str::<Authorization>(text);
            let _ = serde_json::from_str::<Migrations>(text);
            let _ = serde_json::from_str::<peers::Peers>(text);
            let _ = serde_json::from_str::<peers::Requeue>(text);
        }
        3 => same::<Domain>(text),
        4 => same::<UserUri>(text),
        5 => {
            same::<ClientUri>(text);
            if let Ok(client) = text.parse::<ClientUri>() {
                assert_eq!(client.user().domain(), client.domain());
            }
        }
        6 => same::<GroupId>(text),
        7 => {
            same::<DomainPattern>(text);
            let _ = text.parse::<ServiceHost>();
        }
        8 => {
            if let Some(parent) = TraceParent::parse(text) {
                assert!(TraceParent::parse(&parent.to_string()).is_some());
            }
        }
        9 => {
            let _ = EventType::parse(text);
        }
        _ => {}
    }
}

fn same<T: FromStr + ToString + PartialEq + Debug>(text: &str)
where
    T::Err: Debug,
{
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}
