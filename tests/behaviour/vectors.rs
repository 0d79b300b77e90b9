//! `tests/vectors`: each file read, encoded again, compared with its named fields and with the value that it was
//! made from. `MIMID_WRITE_VECTORS=1 cargo test vectors` writes them (and the corpora of the fuzz targets) anew.

use std::{collections::BTreeSet, fs, path::Path};

use mimid::{
    crypto::{sha256, verify_with_label},
    wire::{
        self,
        client::ClientMessage,
        codec::Opaque,
        ds::{DsMessage, DsRequest},
        extensions::SignatureScheme,
        portability::{
            MigrationConfirmation, MigrationContent, MigrationInit, MigrationResponse,
            TargetMigrationComplete,
        },
    },
};
use serde_json::{Value, json};

use crate::samples::{self, Sample, describe::encode_json};

#[test]
fn every_vector_decodes_to_its_fields_and_encodes_to_its_bytes() {
    let samples = samples::all();
    if samples::writing() {
        write(&samples);
    }
    let mut expected = BTreeSet::from([
        "README.md".to_owned(),
        "mls.json".to_owned(),
        "signatures.json".to_owned(),
    ]);
    for sample in &samples {
        let file = read(&sample.name);
        let bytes = hex::decode(file["hex"].as_str().unwrap()).unwrap();
        let value = &file["value"];
        assert_eq!(
            hex::encode(encode_json(&json!({ "type": "struct", "value": value_of(value) }))),
            hex::encode(&bytes),
            "{}: an independent encoder of the fields",
            sample.name
        );
        let (node, again) =
            (sample.read)(&bytes).unwrap_or_else(|error| panic!("{}: {error}", sample.name));
        assert_eq!(hex::encode(again), hex::encode(&bytes), "{}: encoded again", sample.name);
        assert_eq!(&node.to_json()["value"], value, "{}: decoded fields", sample.name);
        assert_eq!(node, sample.node, "{}: the value that it was made from", sample.name);
        assert!(expected.insert(format!("{}.json", sample.name)), "{} twice", sample.name);
    }
    let found: BTreeSet<String> = fs::read_dir(samples::folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, expected, "the files are the samples, each once");
}

#[test]
fn every_struct_and_variant_of_the_wire_has_a_vector() {
    let mut seen = BTreeSet::new();
    for sample in samples::all() {
        collect(&sample.node.to_json(), &mut seen);
    }
    let wire = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire");
    let blocks = [
        "Opaque",
        "ShortOpaque",
        "Secret",
        "Text",
        "List",
        "Raw",
        "LengthError",
        "CountError",
        "ListError",
        "DecodeError",
        "IdError",
        "Outcome",
        // names: text on the wire
        "EventType",
        "S2SEndpoint",
        // codes that may be unknown: a uint8 on the wire
        "ComplaintReason",
    ];
    for file in fs::read_dir(wire).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for (kind, name, body) in declarations(&text) {
            if blocks.contains(&name.as_str()) {
                continue;
            }
            if kind == "struct" {
                let spec = samples::describe::spec_name(&name);
                assert!(seen.contains(&spec), "no vector holds a {spec}");
            } else {
                let is_variant = |line: &&str| {
                    line.starts_with("    ") && line.as_bytes()[4].is_ascii_uppercase()
                };
                let variants = body.lines().filter(is_variant).count();
                let spec = format!("enum {} ", select_of(&name));
                // DSStatus has "ok" beside the errors
                let ok = usize::from(name == "DsError");
                let found = seen.iter().filter(|one| one.starts_with(&spec)).count() - ok;
                assert_eq!(found, variants, "variants of {name} in vectors");
            }
        }
    }
}

#[test]
fn what_is_read_of_a_request_without_decoding_it_is_what_it_decodes_to() {
    let samples = samples::all();
    let mut names = BTreeSet::new();
    let one = samples.iter().find(|one| one.name == "ClientMessage").unwrap();
    let signed: ClientMessage = wire::decode(&one.bytes).unwrap();
    for sample in samples.iter().filter(|one| one.name.starts_with("DSMessage.")) {
        let message: DsMessage = wire::decode(&sample.bytes).unwrap();
        let body = Opaque::new(sample.bytes.clone()).unwrap();
        let bytes = wire::encode(&ClientMessage { body, ..signed.clone() });
        let body = ClientMessage::body_in(&bytes).unwrap();
        assert_eq!(body, sample.bytes, "{}", sample.name);
        assert_eq!(DsRequest::name_in(body), Some(message.request.name()), "{}", sample.name);
        names.insert(message.request.name());
        let beginnings = (0..bytes.len()).map(|end| &bytes[..end]);
        let signature = bytes.len() - wire::encode(&signed.signature).len();
        assert_eq!(
            beginnings.filter(|part| ClientMessage::body_in(part).is_some()).map(<[u8]>::len).min(),
            Some(signature),
            "{}: a body is there when all of it is",
            sample.name
        );
    }
    assert_eq!(names, BTreeSet::from(DsRequest::NAMES), "each request was read");
    assert_eq!(DsRequest::name_in(&[]), None);
    assert_eq!(DsRequest::name_in(&[0, 0, 0, 0, 1, 17]), None, "there is no such request");
    assert_eq!(DsRequest::name_in(&[0, 0, 0, 0, 1, 12]), Some("send-message"));
}

#[test]
fn every_struct_of_the_wire_is_decoded_by_a_fuzz_target() {
    for sample in samples::all() {
        assert!(
            samples::fuzz_input(&sample.name).is_some(),
            "{}: put it at the end of fuzz_targets/wire_structs.rs",
            sample.name
        );
    }
}

#[test]
fn signatures_of_the_vectors_verify_under_the_labels_of_the_protocol() {
    let keys = samples::keys();
    let samples = samples::all();
    let bytes = |name: &str| samples.iter().find(|one| one.name == name).unwrap().bytes.clone();
    let mut entries = Vec::new();
    let mut note = |label: &str, key: &str, content: &[u8], signature: &[u8]| {
        let public = keys[key].public().as_slice();
        verify_with_label(SignatureScheme::ED25519, public, label, content, signature)
            .unwrap_or_else(|_| panic!("{label} by {key}"));
        let other = if label == "UserKeyTBS" { "JoinProofTBS" } else { "UserKeyTBS" };
        assert!(
            verify_with_label(SignatureScheme::ED25519, public, other, content, signature).is_err(),
            "the label counts"
        );
        entries.push(json!({
            "label": label, "key": key, "seed": hex::encode(keys[key].to_bytes()), "public_key": hex::encode(public),
            "content": hex::encode(content), "signature": hex::encode(signature),
        }));
    };
    // the TBS structs are their structs without the 64 bytes of signature and its length at the end
    for (tbs, signed, key) in [
        ("UserKeyTBS", "UserKey", "alice_user"),
        ("JoinProofTBS", "JoinProof", "joining_code"),
        ("ClientMessageTBS", "ClientMessage", "alice_client"),
        ("ConnectionOfferTBS", "ConnectionOffer", "alice_leaf"),
        ("CommitComplaintTBS", "CommitComplaint", "bob_leaf"),
        ("S2SMessageTBS", "S2SMessage", "hub_s2s"),
    ] {
        let signed = bytes(signed);
        note(tbs, key, &bytes(tbs), &signed[signed.len() - 64..]);
    }
    let message: DsMessage = wire::decode(&bytes("DSMessage.send_message")).unwrap();
    note("DSMessageTBS", "alice_leaf", &message.to_be_signed(), message.signature.as_slice());

    // of these the signature does not stand last
    let one: MigrationResponse = wire::decode(&bytes("MigrationResponse")).unwrap();
    let (label, content) = (MigrationResponse::LABEL, one.to_be_signed());
    note(label, "target_external_sender", &content, one.signature.as_slice());
    let one: MigrationInit = wire::decode(&bytes("MigrationInit")).unwrap();
    note(MigrationInit::LABEL, "alice_leaf", &one.to_be_signed(), one.signature.as_slice());
    let one: MigrationContent = wire::decode(&bytes("MigrationContent")).unwrap();
    let content =
        MigrationContent::to_be_signed(&one.migration_response, one.group_state.as_slice());
    note(MigrationContent::LABEL, "hub_external_sender", &content, one.signature.as_slice());
    for name in ["TargetMigrationComplete.taken", "TargetMigrationComplete.refused"] {
        let one: TargetMigrationComplete = wire::decode(&bytes(name)).unwrap();
        let (label, content) = (TargetMigrationComplete::LABEL, one.to_be_signed());
        note(label, "target_external_sender", &content, one.signature.as_slice());
    }
    let one: MigrationConfirmation = wire::decode(&bytes("MigrationConfirmation")).unwrap();
    let (label, content) = (MigrationConfirmation::LABEL, one.to_be_signed());
    note(label, "hub_external_sender", &content, one.signature.as_slice());

    let input = bytes("UserKeyHashInput");
    let file = json!({
        "about": "SignWithLabel: Ed25519 over { opaque label<V> = \"MIMI 1.0 \" + label; opaque content<V> }",
        "signatures": entries,
        "user_key_hash": { "input": hex::encode(&input), "hash": hex::encode(sha256(&input)) },
    });
    let path = samples::folder().join("signatures.json");
    if samples::writing() {
        fs::write(&path, serde_json::to_string_pretty(&file).unwrap() + "\n").unwrap();
    }
    let committed: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(committed, file);
}

#[test]
fn mls_structs_keep_their_exact_bytes() {
    for (name, kind, bytes) in samples::mls_objects() {
        assert_eq!(samples::read_mls(&kind, &bytes).unwrap(), bytes, "{name}");
        if kind != "opaque" {
            let longer = [bytes.clone(), vec![0]].concat();
            assert!(samples::read_mls(&kind, &longer).is_err(), "{name} with a byte behind it");
            assert!(
                samples::read_mls(&kind, &bytes[..bytes.len() - 1]).is_err(),
                "{name} cut short"
            );
        }
    }
}

/// A vector's value is a list of fields, or the number of an enum.
fn value_of(value: &Value) -> Value {
    if value.is_array() { value.clone() } else { json!([{ "type": "uint8", "value": value }]) }
}

fn read(name: &str) -> Value {
    let path = samples::folder().join(format!("{name}.json"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The structs of a tree by name, and its enum values as `enum <enum> <name>`.
fn collect(node: &Value, seen: &mut BTreeSet<String>) {
    let kind = node["type"].as_str().unwrap_or_default();
    seen.insert(match node["meaning"].as_str() {
        Some(meaning) => format!("{kind} {meaning}"),
        None => kind.to_owned(),
    });
    match &node["value"] {
        Value::Array(items) => items.iter().for_each(|item| collect(item, seen)),
        inner @ Value::Object(_) => collect(inner, seen),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The enum in PROTOCOL.md that a Rust enum stands for.
fn select_of(rust: &str) -> &str {
    match rust {
        "DsSenderId" => "DSSenderType",
        "DsRequest" => "DSRequestType",
        "DsResponseBody" => "DSResponseType",
        "DsError" => "DSStatus",
        "DeliveryItem" => "DeliveryItemType",
        "RosterChange" => "RosterAction",
        "QueueEvent" => "QueueEventType",
        same => same,
    }
}

/// (struct or enum, name, body) of the public types in a source file.
fn declarations(text: &str) -> Vec<(&'static str, String, String)> {
    let mut found = Vec::new();
    for kind in ["struct", "enum"] {
        for (at, _) in text.match_indices(&format!("\npub {kind} ")) {
            let rest = &text[at + 1 + "pub ".len() + kind.len() + 1..];
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            let body = rest.split("\n}").next().unwrap_or_default().to_owned();
            // ids are numbers and texts: they stand in every vector
            let newtype = rest[name.len()..].starts_with('(');
            if !newtype && !matches!(name.as_str(), "Domain" | "UserUri" | "ClientUri" | "GroupId")
            {
                found.push((kind, name, body));
            }
        }
    }
    found
}

fn write(samples: &[Sample]) {
    for entry in fs::read_dir(samples::folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".json") && name != "mls.json" && name != "signatures.json" {
            fs::remove_file(path).unwrap();
        }
    }
    for sample in samples {
        let tree = sample.node.to_json();
        let kind = sample.name.split('.').next().unwrap();
        let file = json!({ "about": sample.about, "type": kind, "value": tree["value"], "hex": hex::encode(&sample.bytes) });
        let path = samples::folder().join(format!("{}.json", sample.name));
        fs::write(path, serde_json::to_string_pretty(&file).unwrap() + "\n").unwrap();
    }
    write_corpora(samples);
}

/// The vectors as starting points of the fuzz targets.
fn write_corpora(samples: &[Sample]) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for sample in samples {
        let Some((target, prefix)) = samples::fuzz_input(&sample.name) else { continue };
        let folder = fuzz.join(target);
        fs::create_dir_all(&folder).unwrap();
        let bytes: Vec<u8> = prefix.into_iter().chain(sample.bytes.iter().copied()).collect();
        fs::write(folder.join(&sample.name), bytes).unwrap();
    }
}
