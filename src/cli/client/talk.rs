//! What is said and heard, and requests that have no answer yet.

use serde_json::{Value, json};

use super::{
    catch_up,
    home::invalid,
    show::{Out, asks, describe, event_group, operation_words},
};
use crate::{
    client::{
        Client, ClientError,
        core::{Answer, Content, Event, Operation},
    },
    wire::ids::RequestId,
};

/// The message is kept before anything else is done: a provider that is down does not lose it.
pub(super) async fn send(
    client: &Client,
    group: &str,
    text: &str,
    out: &Out,
) -> Result<(), ClientError> {
    let content = Content::text(text).encode();
    let operation = Operation::Send { content };
    let begun = client.find_group(group).and_then(|view| client.begin(&view.id, operation.clone()));
    let outcome = match begun {
        Ok(request) => client.finish(request).await?,
        Err(_) => {
            // it may be a group that this client has just been added to
            catch_up(client).await?;
            let group = client.find_group(group)?.id;
            client.operate(&group, operation).await?
        }
    };
    out.done(&outcome, "sent");
    Ok(())
}

pub(super) async fn resume(
    client: &Client,
    drop: Option<&str>,
    out: &Out,
) -> Result<(), ClientError> {
    if let Some(id) = drop {
        let pending = client.member().pending()?;
        let fits = |request: &RequestId| !id.is_empty() && hex::encode(request.0).starts_with(id);
        let mut found = pending.iter().filter(|(request, ..)| fits(request));
        let (Some((request, ..)), None) = (found.next(), found.next()) else {
            return Err(invalid(format!("not one request has an id that begins with {id:?}")));
        };
        let dropped = Answer::GivenUp("the request was dropped by `resume --drop`".to_owned());
        client.member().give_up_for_another(*request, dropped)?;
        let id = hex::encode(request.0);
        out.say(json!({ "dropped": id }), format!("request {id} is given up"));
        return Ok(());
    }
    let resumed = client.resume().await;
    let mut was_refused = false;
    if let Ok(refused) = &resumed {
        was_refused = !refused.is_empty();
        for (operation, why) in refused {
            let what = operation_words(operation);
            out.say(
                json!({ "refused": what, "why": why.to_string() }),
                format!("{what} was refused: {why}"),
            );
        }
    }
    let left = client.member().pending()?;
    for (request, group, operation) in &left {
        let (id, what) = (hex::encode(request.0), operation_words(operation));
        let line = format!("{}  {what} in {group}", id.get(..8).unwrap_or(&id));
        out.say(json!({ "request": id, "group": group, "what": what }), line);
    }
    let mut line = format!("{} requests have no answer", left.len());
    if left.is_empty() && resumed.is_ok() {
        out.say(json!({ "unanswered": 0 }), line);
        return if was_refused { Err(invalid("not everything was accepted")) } else { Ok(()) };
    }
    if out.json {
        out.say(json!({ "unanswered": left.len() }), "");
    }
    if let Err(error) = resumed {
        line = format!("{line}: {error}");
    }
    Err(invalid(line))
}

pub(super) async fn receive(
    client: &Client,
    follow: bool,
    wait: u32,
    out: &Out,
) -> Result<(), ClientError> {
    let shown: u64 = client.member().setting(SHOWN)?.unwrap_or_default();
    let show = |number: u64, event: &Event| {
        let group = event_group(event).and_then(|id| client.member().group(id).ok());
        let line = if let Event::ConnectionRequested { from } = event
            && !asks(client, from)
        {
            format!("{from} asked to connect")
        } else {
            describe(event, group.as_ref(), &|user| client.short_name(user))
        };
        let mut value = json!(event);
        value["number"] = json!(number);
        if let Value::Object(fields) = &mut value {
            // what it shows is in `text`; the rest is for programs that read MIMI content
            if let Some(content) = fields.remove("content").as_ref().and_then(Value::as_array) {
                let bytes: Vec<u8> = content
                    .iter()
                    .filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                    .collect();
                fields.insert("content".to_owned(), json!(hex::encode(bytes)));
            }
        }
        out.say(value, line);
        let _ = client.member().set(SHOWN, &number);
        true
    };
    if follow {
        return client.follow(shown, show).await;
    }
    let received = client.receive(wait.saturating_mul(1000)).await;
    let events = client.member().events(shown, usize::MAX)?;
    if events.is_empty() && !out.json {
        out.say(Value::Null, "nothing new");
    }
    for (number, event) in &events {
        show(*number, event);
    }
    if let Some((last, _)) = events.last() {
        client.member().forget_events(last.saturating_sub(EVENTS_KEPT))?;
    }
    received.map(|_| ())
}

/// Events that are kept after they were shown.
const EVENTS_KEPT: u64 = 10_000;

/// The number of the last event that was shown.
const SHOWN: &str = "shown";
