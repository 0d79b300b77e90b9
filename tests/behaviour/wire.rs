//! Decoding of what anybody may send: it never panics, takes nothing that it would not write, and believes no length.

use mimid::wire::{
    self, DecodeError,
    client::{ClientMessage, Consent, Dequeue, Flag},
    codec::{List, Opaque, ShortOpaque, Text},
    ds::{DsMessage, DsResponse, ProtocolVersion},
    extensions::{GroupPolicy, JoinPolicy, KeyPackageClass, Role},
    ids::{ClientUri, Domain, GroupId, UserUri},
    key_packages::KeyPackageStatus,
    queueing::{DeliverBatchRequest, FeedAck, QueueEntry, QueueingServiceResponse},
};
use proptest::{prelude::*, sample::Index};

use crate::samples::{self, Sample};

thread_local! {
    static SAMPLES: Vec<Sample> = samples::all();
}

fn sample(index: Index) -> (String, Vec<u8>, samples::Read) {
    SAMPLES.with(|samples| {
        let one = index.get(samples);
        (one.name.clone(), one.bytes.clone(), one.read)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_decode_to_nothing_or_to_what_encodes_to_them(
        which: Index,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (name, _, read) = sample(which);
        if let Ok((_, again)) = read(&bytes) {
            prop_assert_eq!(again, bytes, "{}", name);
        }
    }

    #[test]
    fn mutated_values_decode_to_nothing_or_to_what_encodes_to_them(
        which: Index,
        edits in prop::collection::vec((any::<Index>(), any::<u8>(), 0u8..4), 1..6),
    ) {
        let (name, mut bytes, read) = sample(which);
        for (at, byte, edit) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => {
                    bytes.remove(at);
                }
            }
        }
        if let Ok((_, again)) = read(&bytes) {
            prop_assert_eq!(again, bytes, "{}", name);
        }
    }

    #[test]
    fn values_cut_short_or_followed_by_anything_are_refused(
        which: Index,
        cut: Index,
        tail in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let (name, bytes, read) = sample(which);
        prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err(), "{} cut short", name);
        let longer = [bytes, tail].concat();
        prop_assert!(read(&longer).is_err(), "{} with a tail", name);
    }

    #[test]
    fn bounded_vectors_hold_what_they_are_given_and_no_more(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let opaque = Opaque::<300, 2>::new(bytes.clone());
        prop_assert_eq!(opaque.is_ok(), (2..=300).contains(&bytes.len()));
        if let Ok(opaque) = opaque {
            prop_assert_eq!(wire::decode::<Opaque<300, 2>>(&wire::encode(&opaque)), Ok(opaque));
        } else {
            let unbounded = Opaque::<1000>::new(bytes.clone()).unwrap();
            prop_assert!(wire::decode::<Opaque<300, 2>>(&wire::encode(&unbounded)).is_err());
        }
        let short = ShortOpaque::new(bytes.clone());
        prop_assert_eq!(short.is_ok(), bytes.len() <= 255);
        if let Ok(short) = short {
            prop_assert_eq!(wire::decode::<ShortOpaque>(&wire::encode(&short)), Ok(short));
        }
    }

    #[test]
    fn text_is_utf8_and_truncates_between_characters(text in "\\PC{0,80}") {
        let bounded = Text::<40>::truncated(&text);
        prop_assert!(text.starts_with(bounded.as_str()) && bounded.as_str().len() <= 40);
        prop_assert!(text.len() <= 40 || bounded.as_str().len() > 36, "as much as fits");
        prop_assert_eq!(wire::decode::<Text<40>>(&wire::encode(&bounded)), Ok(bounded));
    }

    #[test]
    fn identifiers_keep_every_byte_or_are_refused(text in "(mimi://)?[a-zA-Z0-9.%:/~_-]{0,60}") {
        if let Ok(user) = UserUri::new(text.as_str()) {
            prop_assert_eq!(UserUri::of(&user.domain(), user.name()).unwrap(), user);
        }
        if let Ok(client) = ClientUri::new(text.as_str()) {
            prop_assert_eq!(ClientUri::of(&client.user(), client.device()).unwrap(), client);
        }
        if let Ok(group) = GroupId::new(text.as_str()) {
            let start = format!("mimi://{}/g/", group.domain());
            prop_assert!(text.starts_with(&start));
        }
        if let Ok(domain) = Domain::new(text.as_str()) {
            prop_assert_eq!(domain.as_str(), text.to_ascii_lowercase());
        }
    }

    #[test]
    fn acknowledgements_and_versions_round_trip(
        acks in prop::collection::vec((any::<u64>(), any::<u64>()), 0..40), max: u32, wait_ms: u32, version: u16,
    ) {
        let acks = acks.into_iter().map(|(feed, sequence)| FeedAck { feed: wire::ids::FeedId(feed), sequence: wire::ids::Sequence(sequence) });
        let dequeue = Dequeue { acks: List::new(acks.collect()).unwrap(), max, wait_ms };
        prop_assert_eq!(wire::decode::<Dequeue>(&wire::encode(&dequeue)), Ok(dequeue));
        let version = ProtocolVersion(version);
        prop_assert_eq!(wire::decode::<ProtocolVersion>(&wire::encode(&version)), Ok(version));
    }
}

#[test]
fn every_single_bit_of_every_vector_counts() {
    // as far as the wire goes: a flipped bit is refused, or is another value
    for sample in samples::all() {
        for at in 0..sample.bytes.len().min(400) {
            for bit in [0, 3, 6, 7] {
                let mut bytes = sample.bytes.clone();
                bytes[at] ^= 1 << bit;
                if let Ok((node, again)) = (sample.read)(&bytes) {
                    assert_eq!(again, bytes, "{} at {at}", sample.name);
                    assert_ne!(node, sample.node, "{} at {at}", sample.name);
                }
            }
        }
    }
}

#[test]
fn unknown_enum_values_are_refused() {
    fn values<T: tls_codec::DeserializeBytes>() -> Vec<u8> {
        (0..=255).filter(|code| wire::decode::<T>(&[*code]).is_ok()).collect()
    }
    assert_eq!(values::<Role>(), [0, 1, 2, 3]);
    assert_eq!(values::<JoinPolicy>(), [0, 1, 2, 3]);
    assert_eq!(values::<KeyPackageClass>(), [0, 1]);
    assert_eq!(values::<Flag>(), [0, 1]);
    assert_eq!(values::<KeyPackageStatus>(), [0, 1, 2, 3]);
    assert_eq!(values::<QueueingServiceResponse>(), [0, 1, 2, 3]);

    // selects: the code of each vector that has one, replaced by every value that the protocol does not know
    for (name, at, known) in [
        ("DSMessage.send_message", 0, 3),
        ("DSResponse.malformed", 2, 21),
        ("ClientResponse.ok", 0, 21),
        ("DeliverBatchRequest.feed", 2, 3),
    ] {
        let sample = samples::all().into_iter().find(|one| one.name == name).unwrap();
        for code in known..=255 {
            let mut bytes = sample.bytes.clone();
            bytes[at] = code;
            assert!((sample.read)(&bytes).is_err(), "{name} with {code} at {at}");
        }
    }
}

#[test]
fn lengths_that_are_not_minimal_are_refused() {
    // RFC 9420 §2.1.2: 2 bytes "ab" with a length of one, two and four bytes
    let body = *b"ab";
    let with = |prefix: &[u8]| [prefix, &body].concat();
    assert_eq!(wire::decode::<Opaque<9>>(&with(&[2])), Ok(Opaque::new(body).unwrap()));
    for prefix in [&[0x40, 2][..], &[0x80, 0, 0, 2], &[0xc0, 0, 0, 0, 0, 0, 0, 2]] {
        assert!(wire::decode::<Opaque<9>>(&with(prefix)).is_err(), "{prefix:x?}");
        assert!(wire::decode::<Text<9>>(&with(prefix)).is_err(), "{prefix:x?}");
        assert!(wire::decode::<List<u8, 9>>(&with(prefix)).is_err(), "{prefix:x?}");
        let domain = [prefix, b"ab"].concat();
        assert!(wire::decode::<Domain>(&domain).is_err(), "{prefix:x?}");
    }
}

#[test]
fn a_declared_length_beyond_the_limit_is_refused_before_anything_else() {
    // the text says which check it was: the limit, not the end of the input
    let refused =
        |error: DecodeError| assert!(error.to_string().contains("are allowed"), "{error}");
    refused(wire::decode::<Opaque<255>>(&[0xbf, 0xff, 0xff, 0xff]).unwrap_err());
    refused(wire::decode::<Text<255>>(&[0xbf, 0xff, 0xff, 0xff]).unwrap_err());
    refused(wire::decode::<List<FeedAck, 4096>>(&[0xbf, 0xff, 0xff, 0xff]).unwrap_err());
    refused(wire::decode::<Consent>(&[0xbf, 0xff, 0xff, 0xff, 0]).unwrap_err());
    refused(wire::decode::<DeliverBatchRequest>(&[0xbf, 0xff, 0xff, 0xff, 0]).unwrap_err());
    refused(wire::decode::<GroupPolicy>(&[0xbf, 0xff, 0xff, 0xff, 0]).unwrap_err());
    // within the limit and absent: the end of the input, and no allocation of what was announced
    assert!(wire::decode::<DeliverBatchRequest>(&[0x80, 0x3f, 0xff, 0xff]).is_err());
}

#[test]
fn booleans_and_options_are_zero_or_one() {
    let sample =
        samples::all().into_iter().find(|one| one.name == "GroupKeyPackageRequest.any").unwrap();
    assert_eq!(sample.bytes.last(), Some(&0), "the optional at its end");
    for code in 2..=255 {
        let mut bytes = sample.bytes.clone();
        *bytes.last_mut().unwrap() = code;
        assert!((sample.read)(&bytes).is_err());
    }
}

#[test]
fn identifiers_refuse_what_looks_like_another_name() {
    for bad in [
        "mimi://A.example/u/alice",
        "mimi://a.example/u/alice/",
        "mimi://a.example//u/alice",
        "mimi://a.example/u/al%69ce",
        "mimi://a.example/u/..",
        "mimi://a.example/u/",
        "mimi://a.example:443/u/alice",
        "mimi://-a.example/u/alice",
        "mimi://a..example/u/alice",
        "mimi://u@a.example/u/alice",
        "mimi://a.example/u/alicé",
        "MIMI://a.example/u/alice",
        "mimi://a.example/u/alice?x",
        "mimi://a.example/u/alice#x",
        "mimi://a.example/d/alice/phone",
    ] {
        assert!(UserUri::new(bad).is_err(), "{bad}");
    }
    assert!(GroupId::new("mimi://a.example/g/short").is_err(), "128 random bits do not fit");
    assert!(GroupId::new(format!("mimi://a.example/g/{}", "x".repeat(240))).is_err(), "too long");
    assert!(ClientUri::new("mimi://a.example/d/alice").is_err());
    assert!(
        wire::decode::<UserUri>(&wire::encode(&Text::<512>::new("mimi://a.example/u/..").unwrap()))
            .is_err()
    );
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    assert!(wire::decode::<Text<9>>(&[2, 0xc3, 0x28]).is_err());
    assert!(wire::decode::<Text<9>>(&[2, 0xc3, 0xa9]).is_ok());
}

#[test]
fn the_fuzz_corpus_is_the_vectors() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut targets = std::collections::BTreeSet::new();
    for sample in samples::all() {
        let Some((target, prefix)) = samples::fuzz_input(&sample.name) else { continue };
        let bytes = std::fs::read(folder.join(target).join(&sample.name)).unwrap();
        assert_eq!(bytes, [prefix, sample.bytes].concat(), "{target}/{}", sample.name);
        targets.insert(target);
    }
    assert_eq!(targets.len(), 6, "{targets:?}");
    // and each target's type is the one that the name says
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    wire::decode::<DsMessage>(&read("ds_message/DSMessage.propose")).unwrap();
    wire::decode::<ClientMessage>(&read("client_message/ClientMessage")).unwrap();
    wire::decode::<QueueEntry>(&read("queue_entry/QueueEntry.gap")).unwrap();
    wire::decode::<DeliverBatchRequest>(&read("deliver_batch/DeliverBatchRequest.feed")).unwrap();
    wire::decode::<DsResponse>(&read("wire_structs/DSResponse.accepted")[1..]).unwrap();
}
