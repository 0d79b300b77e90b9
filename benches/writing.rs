//! Application messages of a real client, made fast: the first to a group as the client library makes it, the others of its shape
//! with another content, request id and signature. A hub cannot tell, and an openmls client would write the secrets of a whole
//! group of 5,000 for each.

use mimid::{
    client::{
        Client,
        core::{Content, Operation, SUITES},
    },
    crypto,
    wire::{
        codec::ShortOpaque,
        decode,
        ds::{
            Accepted, DsMessage, DsRequest, DsResponse, DsResponseBody, Outcome, ProtocolVersion,
        },
        encode,
        ids::{GroupId, RequestId, Sequence},
    },
};

use crate::support::synth::system_now;

/// A message to `group`, made as if the hub had taken it.
pub fn first(client: &Client, group: &GroupId) -> DsMessage {
    let content = Content::text("a message of ordinary length, as people send them").encode();
    let client = client.member();
    let epoch = client.group(group).unwrap().epoch.unwrap();
    let request = client.begin(group, Operation::Send { content }).unwrap();
    let now = system_now();
    let message = client.outbound(request, now).unwrap().message;
    let group_sequence = Sequence(1_000_000);
    let accepted = Accepted { group_sequence, accepted_at: now, epoch };
    let outcome = Outcome::Ok(DsResponseBody::Accepted(accepted));
    let response = DsResponse { version: ProtocolVersion::MIMI10, outcome };
    client.settle(request, &response, now).unwrap();
    message
}

/// Another message of the one that wrote `message`, of the same shape.
pub fn again(client: &Client, message: &DsMessage) -> DsMessage {
    let mut next = message.clone();
    let DsRequest::SendMessage(send) = &mut next.request else { panic!("{message:?}") };
    // the last bytes are ciphertext
    let mut bytes = encode(&send.application_message);
    let end = bytes.len() - 32;
    bytes[end..].copy_from_slice(&crypto::random::<32>());
    send.application_message = decode(&bytes).unwrap();
    next.context.timestamp = system_now();
    next.context.request_id = RequestId(crypto::random());
    let member = client.member();
    let key = member.identity().leaf_key(SUITES[0]).unwrap();
    let signature = key.sign_with_label("DSMessageTBS", &next.to_be_signed()).unwrap();
    next.signature = ShortOpaque::new(signature.as_slice()).unwrap();
    next
}
