//! Who may register, and what for. PROTOCOL.md §3 ("A client and its own provider"), §7.
//!
//! Pure. Deliberately absent: the signature of the message that a registration comes in, and where accounts are kept.

use crate::{
    crypto,
    policy::leaf::{client_of, verify_user_key},
    store::records::{Account, Device},
    wire::{
        client::Register,
        extensions::SignatureScheme,
        ids::{ClientUri, Domain, Timestamp},
    },
};

/// Who may open an account. A further device of a user is authorised by the user's key, whatever this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Anyone.
    Open,
    /// Who brings a token that the operator gave out: SHA-256 hashes of those.
    Token(Vec<[u8; 32]>),
    /// Nobody.
    Closed,
}

/// Why a registration is refused. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this provider registers users of {0} only")]
    ForeignUser(Domain),
    #[error("a device name is letters, digits, '.', '_', '~' and '-'")]
    BadName,
    #[error("the message is sent as another client than the one that it registers: {0}")]
    OtherClient(ClientUri),
    #[error(
        "signature scheme {0:#06x} is not supported for a client's key; use 0x0807 (Ed25519) or 0x0403 (ECDSA P-256)"
    )]
    Scheme(u16),
    #[error("the credential must be a basic one whose identity is {0}")]
    Credential(ClientUri),
    #[error("the user key does not vouch for this client_key and credential")]
    UserKey,
    #[error("this provider takes no new users")]
    Closed,
    #[error("registration here takes a token from the operator, and this is none")]
    Token,
    #[error(
        "this user is registered with another user key: authorise the device with the key on record"
    )]
    AnotherUserKey,
    #[error("this user's account was deleted; its name is not given again")]
    UserGone,
    #[error("this device was deleted; its name is not given again")]
    DeviceGone,
    #[error("this device is registered with another key or credential; take another device name")]
    DeviceTaken,
    #[error("a user may have {0} devices; delete one first")]
    TooManyDevices(usize),
}

/// A registration whose form and signatures are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub client: ClientUri,
    register: Register,
}

/// What a registration changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It was registered before, with the same keys: the same answer again.
    Repeated,
    NewUser {
        account: Account,
        device: Device,
    },
    /// `account` replaces the one on record.
    NewDevice {
        account: Account,
        device: Device,
    },
}

impl Registration {
    /// Registration by any of `tokens`.
    pub fn by_tokens<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self::Token(tokens.into_iter().map(|token| crypto::sha256(token.as_ref())).collect())
    }

    fn admits(&self, token: &[u8]) -> Result<(), Refusal> {
        match self {
            Self::Open => Ok(()),
            Self::Token(tokens) => {
                // all of them, whichever it is
                let hash = crypto::sha256(token);
                let known = tokens.iter().filter(|it| crypto::is_same_secret(&**it, &hash)).count();
                if known > 0 { Ok(()) } else { Err(Refusal::Token) }
            }
            Self::Closed => Err(Refusal::Closed),
        }
    }
}

/// Checks what needs no record: names, credential, and that the user key vouches for the client. `sender` is who
/// the message says it is from; that it is signed by `client_key` is checked with the message.
///
/// # Errors
/// [`Refusal`]
pub fn check(domain: &Domain, sender: &ClientUri, register: Register) -> Result<Claim, Refusal> {
    if &register.user.domain() != domain {
        return Err(Refusal::ForeignUser(domain.clone()));
    }
    let client =
        ClientUri::of(&register.user, register.device.as_str()).map_err(|_| Refusal::BadName)?;
    if &client != sender {
        return Err(Refusal::OtherClient(client));
    }
    if !SCHEMES.contains(&register.scheme) {
        return Err(Refusal::Scheme(register.scheme.0));
    }
    let named = register.credential.parse().ok().and_then(|parsed| client_of(&parsed).ok());
    if named.as_ref() != Some(&client) {
        return Err(Refusal::Credential(client));
    }
    verify_user_key(&register.user_key, &register.client_key, &register.credential)
        .map_err(|_| Refusal::UserKey)?;
    Ok(Claim { client, register })
}

/// Decides about `claim` given what is on record. `queue` is the new device's queue id.
///
/// # Errors
/// [`Refusal`]
pub fn decide(
    claim: &Claim,
    registration: &Registration,
    account: Option<&Account>,
    device: Option<&Device>,
    devices_max: usize,
    queue: [u8; 16],
    now: Timestamp,
) -> Result<Decision, Refusal> {
    let Claim { client, register } = claim;
    let new = Device {
        key_scheme: register.scheme.0,
        key: register.client_key.as_slice().to_vec(),
        credential: register.credential.as_slice().to_vec(),
        queue,
        created_at: now,
        deleted_at: None,
    };
    let Some(account) = account else {
        registration.admits(register.token.as_slice())?;
        let account = Account {
            revision: 1,
            user_key_scheme: register.user_key.scheme.0,
            user_key: register.user_key.user_public_key.as_slice().to_vec(),
            created_at: now,
            deleted_at: None,
            devices: vec![client.clone()],
        };
        return Ok(Decision::NewUser { account, device: new });
    };
    if account.deleted_at.is_some() {
        return Err(Refusal::UserGone);
    }
    let key_on_record = (account.user_key_scheme, account.user_key.as_slice());
    let key = (register.user_key.scheme.0, register.user_key.user_public_key.as_slice());
    if key != key_on_record {
        return Err(Refusal::AnotherUserKey);
    }
    if let Some(device) = device {
        let same = |a: &Device, b: &Device| {
            (a.key_scheme, &a.key, &a.credential) == (b.key_scheme, &b.key, &b.credential)
        };
        return match device.deleted_at {
            Some(_) => Err(Refusal::DeviceGone),
            None if same(device, &new) => Ok(Decision::Repeated),
            None => Err(Refusal::DeviceTaken),
        };
    }
    if account.devices.len() >= devices_max {
        return Err(Refusal::TooManyDevices(devices_max));
    }
    let mut account = account.clone();
    account.revision += 1;
    account.devices.push(client.clone());
    Ok(Decision::NewDevice { account, device: new })
}

/// Schemes of a client's own key.
const SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ED25519, SignatureScheme::ECDSA_SECP256R1_SHA256];

#[cfg(test)]
#[allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]
mod tests {
    use openmls::prelude::BasicCredential;

    use super::*;
    use crate::{
        crypto::SigningKey,
        wire::{
            codec::{Opaque, Raw, Secret, Text, encode},
            extensions::{UserKey, UserKeyTbs},
            ids::UserUri,
            mls::Credential,
        },
    };

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn domain() -> Domain {
        Domain::new("a.example").unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::generate(SignatureScheme::ED25519).unwrap()
    }

    fn credential(identity: &str) -> Credential {
        let basic = BasicCredential::new(identity.as_bytes().to_vec());
        Raw::of(&openmls::prelude::Credential::from(basic))
    }

    fn client(device: &str) -> ClientUri {
        ClientUri::new(format!("mimi://a.example/d/alice/{device}")).unwrap()
    }

    fn register(user_key: &SigningKey, client_key: &SigningKey, device: &str) -> Register {
        let credential = credential(client(device).as_str());
        let tbs = UserKeyTbs {
            scheme: user_key.scheme(),
            user_public_key: user_key.public().clone(),
            leaf_key: client_key.public().clone(),
            credential: credential.clone(),
        };
        Register {
            user: UserUri::of(&domain(), "alice").unwrap(),
            device: Text::new(device).unwrap(),
            credential,
            user_key: UserKey {
                scheme: user_key.scheme(),
                user_public_key: user_key.public().clone(),
                signature: user_key.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap(),
            },
            scheme: client_key.scheme(),
            client_key: client_key.public().clone(),
            token: Secret::default(),
            csr: Opaque::default(),
        }
    }

    fn claim(user_key: &SigningKey, client_key: &SigningKey, device: &str) -> Claim {
        check(&domain(), &client(device), register(user_key, client_key, device)).unwrap()
    }

    fn opened(claim: &Claim) -> (Account, Device) {
        match decide(claim, &Registration::Open, None, None, 9, [1; 16], NOW).unwrap() {
            Decision::NewUser { account, device } => (account, device),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn user_of_another_provider_is_refused() {
        let other = Domain::new("b.example").unwrap();
        let refused = check(&other, &client("phone"), register(&key(), &key(), "phone"));
        assert_eq!(refused, Err(Refusal::ForeignUser(other)));
    }

    #[test]
    fn message_must_come_from_the_client_that_it_registers() {
        let refused = check(&domain(), &client("laptop"), register(&key(), &key(), "phone"));
        assert_eq!(refused, Err(Refusal::OtherClient(client("phone"))));
    }

    #[test]
    fn device_name_that_cannot_stand_in_a_uri_is_refused() {
        let mut request = register(&key(), &key(), "phone");
        request.device = Text::new("my/phone").unwrap();
        assert_eq!(check(&domain(), &client("phone"), request), Err(Refusal::BadName));
    }

    #[test]
    fn scheme_that_we_do_not_verify_is_refused() {
        let mut request = register(&key(), &key(), "phone");
        request.scheme = SignatureScheme(0x0804);
        assert_eq!(check(&domain(), &client("phone"), request), Err(Refusal::Scheme(0x0804)));
    }

    #[test]
    fn credential_must_name_the_client() {
        let mut request = register(&key(), &key(), "phone");
        request.credential = credential(client("laptop").as_str());
        let refused = check(&domain(), &client("phone"), request);
        assert_eq!(refused, Err(Refusal::Credential(client("phone"))));
    }

    #[test]
    fn user_key_must_vouch_for_this_client_key() {
        let mut request = register(&key(), &key(), "phone");
        request.client_key = key().public().clone();
        assert_eq!(check(&domain(), &client("phone"), request), Err(Refusal::UserKey));
    }

    #[test]
    fn first_device_opens_the_account_and_its_repeat_changes_nothing() {
        let claim = claim(&key(), &key(), "phone");
        let (account, device) = opened(&claim);
        assert_eq!((account.devices.as_slice(), account.revision), (&[client("phone")][..], 1));
        let again = |registration| {
            decide(&claim, &registration, Some(&account), Some(&device), 9, [2; 16], NOW)
        };
        assert_eq!(again(Registration::Open), Ok(Decision::Repeated));
        assert_eq!(again(Registration::Closed), Ok(Decision::Repeated));
    }

    #[test]
    fn registration_mode_decides_about_new_users_only() {
        let user_key = key();
        let phone = claim(&user_key, &key(), "phone");
        let decide_new = |claim: &Claim, registration: &Registration| {
            decide(claim, registration, None, None, 9, [1; 16], NOW)
        };
        assert_eq!(decide_new(&phone, &Registration::Closed), Err(Refusal::Closed));
        let by_token = Registration::by_tokens(["let-me-in"]);
        assert_eq!(decide_new(&phone, &by_token), Err(Refusal::Token));
        let mut with_token = phone.clone();
        with_token.register.token = Secret::new(*b"let-me-in").unwrap();
        assert!(decide_new(&with_token, &by_token).is_ok());

        let (account, _) = opened(&phone);
        let laptop = claim(&user_key, &key(), "laptop");
        match decide(&laptop, &Registration::Closed, Some(&account), None, 9, [2; 16], NOW) {
            Ok(Decision::NewDevice { account, .. }) => {
                assert_eq!(account.devices, [client("phone"), client("laptop")]);
                assert_eq!(account.revision, 2);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn further_device_needs_the_user_key_on_record() {
        let (account, _) = opened(&claim(&key(), &key(), "phone"));
        let stranger = claim(&key(), &key(), "laptop");
        let refused = decide(&stranger, &Registration::Open, Some(&account), None, 9, [2; 16], NOW);
        assert_eq!(refused, Err(Refusal::AnotherUserKey));
    }

    #[test]
    fn names_of_the_deleted_are_not_given_again() {
        let (user_key, client_key) = (key(), key());
        let claim = claim(&user_key, &client_key, "phone");
        let (account, device) = opened(&claim);
        let gone_device = Device { deleted_at: Some(NOW), ..device.clone() };
        let decide = |account: &Account, device: &Device| {
            decide(&claim, &Registration::Open, Some(account), Some(device), 9, [2; 16], NOW)
        };
        assert_eq!(decide(&account, &gone_device), Err(Refusal::DeviceGone));
        let gone = Account { deleted_at: Some(NOW), ..account };
        assert_eq!(decide(&gone, &device), Err(Refusal::UserGone));
    }

    #[test]
    fn device_is_not_taken_over_with_another_key() {
        let user_key = key();
        let (account, device) = opened(&claim(&user_key, &key(), "phone"));
        let other = claim(&user_key, &key(), "phone");
        let refused =
            decide(&other, &Registration::Open, Some(&account), Some(&device), 9, [2; 16], NOW);
        assert_eq!(refused, Err(Refusal::DeviceTaken));
    }

    #[test]
    fn devices_are_limited() {
        let user_key = key();
        let (account, _) = opened(&claim(&user_key, &key(), "phone"));
        let laptop = claim(&user_key, &key(), "laptop");
        let refused = decide(&laptop, &Registration::Open, Some(&account), None, 1, [2; 16], NOW);
        assert_eq!(refused, Err(Refusal::TooManyDevices(1)));
    }
}
