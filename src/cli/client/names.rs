//! What people write on the command line for users, devices, roles and codes.

use super::home::invalid;
use crate::{
    client::{Client, ClientError},
    wire::{
        extensions::Role,
        ids::{ClientUri, Domain, IdError, UserUri},
    },
};

pub(super) fn pair(given: &str) -> Result<(&str, &str), ClientError> {
    given.split_once('=').ok_or_else(|| invalid(format!("{given:?} is not of the form NAME=ROLE")))
}

pub(super) fn role_named(name: &str) -> Result<Role, ClientError> {
    match name {
        "banned" => Ok(Role::Banned),
        "member" => Ok(Role::Member),
        "moderator" => Ok(Role::Moderator),
        "admin" => Ok(Role::Admin),
        other => {
            Err(invalid(format!("{other:?} is no role; they are banned, member, moderator, admin")))
        }
    }
}

/// A user by URI, as NAME@DOMAIN, or by name at this client's own provider.
pub(super) fn user_named(client: &Client, name: &str) -> Result<UserUri, ClientError> {
    user_at(&client.member().client().domain(), name).map_err(|error| invalid(error.to_string()))
}

fn user_at(own: &Domain, name: &str) -> Result<UserUri, IdError> {
    if name.contains("://") {
        return UserUri::new(name);
    }
    match name.split_once('@') {
        Some((name, domain)) => UserUri::of(&Domain::new(domain)?, name),
        None => UserUri::of(own, name),
    }
}

pub(super) fn own_device(client: &Client, name: &str) -> Result<ClientUri, ClientError> {
    let uri = if name.contains("://") {
        ClientUri::new(name).or_else(|_| {
            // a user's URI: no device of ours
            UserUri::new(name).and_then(|user| ClientUri::of(&user, "-"))
        })
    } else {
        ClientUri::of(&client.member().client().user(), name)
    };
    uri.map_err(|error| invalid(error.to_string()))
}

/// A client of any user: its URI, or USER/DEVICE; none where `name` is of another form.
pub(super) fn client_named(client: &Client, name: &str) -> Result<Option<ClientUri>, ClientError> {
    if name.contains("://") {
        return Ok(ClientUri::new(name).ok());
    }
    let Some((user, device)) = name.split_once('/') else { return Ok(None) };
    let user = user_named(client, user)?;
    ClientUri::of(&user, device).map(Some).map_err(|error| invalid(error.to_string()))
}

pub(super) fn code_bytes(text: &str) -> Result<[u8; 32], ClientError> {
    hex::decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| invalid("a joining code is 64 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_named_at_the_own_provider_or_at_any() {
        let own = Domain::new("a.example").unwrap();
        for (name, uri) in [
            ("bob", "mimi://a.example/u/bob"),
            ("bob@b.example", "mimi://b.example/u/bob"),
            ("mimi://c.example/u/bob", "mimi://c.example/u/bob"),
        ] {
            assert_eq!(user_at(&own, name).unwrap().as_str(), uri);
        }
        for name in ["", "bob@", "@b.example", "bob@b@c", "mimi://c.example/d/bob/x"] {
            assert!(user_at(&own, name).is_err(), "{name}");
        }
    }
}
