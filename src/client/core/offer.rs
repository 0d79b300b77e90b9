//! First contact: an offer to connect, sealed to one client of the user it is for. PROTOCOL.md §5.

use openmls::prelude::{self as mls, OpenMlsCrypto, OpenMlsProvider};
use openmls_traits::{storage::StorageProvider, types::HpkeCiphertext};

use super::{CoreError, Event, Kind, Member, records::Request};
use crate::{
    policy,
    wire::{
        codec::{List, Opaque, Raw, Secret, append_vector, decode, encode},
        extensions::{CLIENT_QUEUE_CONFIG, KeyPackageClass, KeyPackageQueue},
        ids::{ClientUri, Domain, GroupId, KeyPackageRef, Timestamp, UserUri},
        key_packages::{ConnectionOffer, ConnectionOfferTbs, ConnectionRequest, SealedOffer},
        mls::KeyPackage,
    },
};

/// What an offer offers, and to whom.
#[derive(Clone)]
pub struct OfferTarget {
    pub recipient: UserUri,
    pub group: GroupId,
    pub hub: Domain,
    /// The seed of a joining code that the group's policy lists.
    pub join_code: [u8; 32],
    /// One of the sender's consent tokens.
    pub consent_token: [u8; 32],
}

impl Member {
    /// Seals an offer to each of the recipient's clients whose connection KeyPackage is at hand.
    ///
    /// # Errors
    /// [`CoreError::Mls`] for a KeyPackage that is not valid, [`CoreError::NothingToDo`] where none is left
    pub fn offer(
        &self,
        target: &OfferTarget,
        key_packages: &[KeyPackage],
    ) -> Result<ConnectionRequest, CoreError> {
        let mut offers = Vec::new();
        for key_package in key_packages {
            let key_package = self.open_key_package(key_package.as_slice())?;
            let client = policy::leaf::client_of(key_package.leaf_node().credential())
                .map_err(CoreError::mls)?;
            if client.user() != target.recipient {
                return Err(CoreError::Invalid(
                    "the provider answered with a KeyPackage of another user",
                ));
            }
            let queue = own_queue_of(&key_package, &client)?;
            if queue.class != KeyPackageClass::Connection {
                return Err(CoreError::Invalid(
                    "the provider answered with a KeyPackage that is not for connecting",
                ));
            }
            offers.push(self.seal(target, &key_package, queue)?);
        }
        if offers.is_empty() {
            return Err(CoreError::NothingToDo("the user has no client that can be reached"));
        }
        let offers =
            List::new(offers).map_err(|_| CoreError::Invalid("the user has too many clients"))?;
        Ok(ConnectionRequest { offers })
    }

    fn seal(
        &self,
        target: &OfferTarget,
        key_package: &mls::KeyPackage,
        queue: KeyPackageQueue,
    ) -> Result<SealedOffer, CoreError> {
        let suite = key_package.ciphersuite();
        let signer = self.identity.leaf_key(suite)?;
        let tbs = ConnectionOfferTbs {
            sender_user: self.identity.client.user(),
            recipient_user: target.recipient.clone(),
            group_id: target.group.clone(),
            hub_domain: target.hub.clone(),
            join_code: secret(target.join_code)?,
            consent_token: secret(target.consent_token)?,
            credential: Raw::of(&self.identity.credential()),
            user_key: self.identity.vouch(signer.public())?,
            leaf_key: signer.public().clone(),
        };
        let signature = signer.sign_with_label("ConnectionOfferTBS", &encode(&tbs))?;
        let offer = ConnectionOffer {
            sender_user: tbs.sender_user,
            recipient_user: tbs.recipient_user,
            group_id: tbs.group_id,
            hub_domain: tbs.hub_domain,
            join_code: tbs.join_code,
            consent_token: tbs.consent_token,
            credential: tbs.credential,
            user_key: tbs.user_key,
            leaf_key: tbs.leaf_key,
            signature,
        };
        let reference =
            key_package.hash_ref(self.home.crypto()).map_err(CoreError::mls)?.as_slice().to_vec();
        let sealed = self
            .home
            .crypto()
            .hpke_seal(
                suite.hpke_config(),
                key_package.hpke_init_key().as_slice(),
                &encrypt_context(&reference),
                &[],
                &encode(&offer),
            )
            .map_err(CoreError::mls)?;
        Ok(SealedOffer {
            client_queue_information: queue.config.queue_token,
            key_package_ref: KeyPackageRef(bounded(reference)?),
            kem_output: bounded(sealed.kem_output.as_slice().to_vec())?,
            ciphertext: bounded(sealed.ciphertext.as_slice().to_vec())?,
        })
    }

    /// Takes in a connection request. One that does not open or verify leaves an event and nothing else.
    pub(super) fn offered(
        &self,
        sender_domain: &Domain,
        sealed: &SealedOffer,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        match self.unseal(sender_domain, sealed) {
            Ok(offer) => {
                let request = Request {
                    from: offer.sender_user.clone(),
                    group: offer.group_id,
                    hub: offer.hub_domain,
                    join_code: offer
                        .join_code
                        .as_slice()
                        .try_into()
                        .map_err(|_| CoreError::Invalid("a code has 32 bytes"))?,
                    their_token: offer.consent_token.as_slice().to_vec(),
                    received_at: now,
                };
                self.home.put(Kind::Request, request.from.as_str().as_bytes(), &request)?;
                self.push(&Event::ConnectionRequested { from: request.from })
            }
            Err(CoreError::Store(error)) => Err(CoreError::Store(error)),
            Err(error) => self.push(&Event::Misbehaviour {
                what: format!("a connection request from {sender_domain}: {error}"),
            }),
        }
    }

    fn unseal(
        &self,
        sender_domain: &Domain,
        sealed: &SealedOffer,
    ) -> Result<ConnectionOffer, CoreError> {
        let provider = self.home.provider();
        let reference = sealed.key_package_ref.0.as_slice();
        // the stored reference has the TLS form of an opaque vector
        let mut encoded = Vec::new();
        append_vector(&mut encoded, reference);
        let reference_in_store: mls::KeyPackageRef =
            tls_codec::DeserializeBytes::tls_deserialize_exact_bytes(&encoded)
                .map_err(CoreError::mls)?;
        let bundle: mls::KeyPackageBundle = provider
            .storage()
            .key_package(&reference_in_store)?
            .ok_or(CoreError::Invalid("it is for a KeyPackage that this client does not have"))?;
        let queue = queue_of(bundle.key_package())
            .filter(|queue| queue.class == KeyPackageClass::Connection);
        if queue.is_none() {
            return Err(CoreError::Invalid("it is for a KeyPackage that is not for connecting"));
        }
        let suite = bundle.key_package().ciphersuite();
        let plain = self
            .home
            .crypto()
            .hpke_open(
                suite.hpke_config(),
                &HpkeCiphertext {
                    kem_output: sealed.kem_output.as_slice().into(),
                    ciphertext: sealed.ciphertext.as_slice().into(),
                },
                bundle.init_private_key(),
                &encrypt_context(reference),
                &[],
            )
            .map_err(CoreError::mls)?;
        let offer: ConnectionOffer = decode(&plain)?;
        self.verify(sender_domain, &offer, suite)?;
        if !bundle.key_package().last_resort() {
            provider.storage().delete_key_package(&reference_in_store)?;
        }
        Ok(offer)
    }

    fn verify(
        &self,
        sender_domain: &Domain,
        offer: &ConnectionOffer,
        suite: mls::Ciphersuite,
    ) -> Result<(), CoreError> {
        let tbs = ConnectionOfferTbs {
            sender_user: offer.sender_user.clone(),
            recipient_user: offer.recipient_user.clone(),
            group_id: offer.group_id.clone(),
            hub_domain: offer.hub_domain.clone(),
            join_code: offer.join_code.clone(),
            consent_token: offer.consent_token.clone(),
            credential: offer.credential.clone(),
            user_key: offer.user_key.clone(),
            leaf_key: offer.leaf_key.clone(),
        };
        crate::crypto::verify_with_label(
            policy::leaf::scheme_of(suite),
            offer.leaf_key.as_slice(),
            "ConnectionOfferTBS",
            &encode(&tbs),
            offer.signature.as_slice(),
        )
        .map_err(CoreError::mls)?;
        policy::leaf::verify_user_key(&offer.user_key, &offer.leaf_key, &offer.credential)
            .map_err(CoreError::mls)?;
        let client = policy::leaf::client_of(&offer.credential.parse()?).map_err(CoreError::mls)?;
        if client.user() != offer.sender_user || offer.sender_user.domain() != *sender_domain {
            return Err(CoreError::Invalid("its sender is not who it says"));
        }
        if offer.recipient_user != self.identity.client.user() {
            return Err(CoreError::Invalid("it is for another user"));
        }
        Ok(())
    }
}

pub(super) fn queue_of(key_package: &mls::KeyPackage) -> Option<KeyPackageQueue> {
    decode(&key_package.extensions().unknown(CLIENT_QUEUE_CONFIG)?.0).ok()
}

/// The queue that a KeyPackage of `client` names: it is at that client's provider, and nowhere else.
pub(super) fn own_queue_of(
    key_package: &mls::KeyPackage,
    client: &ClientUri,
) -> Result<KeyPackageQueue, CoreError> {
    let queue = queue_of(key_package)
        .ok_or(CoreError::Invalid("a KeyPackage says nothing of its queue"))?;
    if queue.config.domain != client.domain() {
        return Err(CoreError::Invalid("a KeyPackage names a queue that is not its client's"));
    }
    Ok(queue)
}

/// RFC 9420 §5.1.3 `EncryptContext`.
fn encrypt_context(reference: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_vector(&mut bytes, b"MLS 1.0 MimiConnectionOffer");
    append_vector(&mut bytes, reference);
    bytes
}

fn bounded<const MAX: usize, const MIN: usize>(
    bytes: Vec<u8>,
) -> Result<Opaque<MAX, MIN>, CoreError> {
    Opaque::new(bytes).map_err(|_| CoreError::Invalid("a value is too long"))
}

fn secret<const MIN: usize>(bytes: [u8; 32]) -> Result<Secret<32, MIN>, CoreError> {
    Secret::new(bytes).map_err(|_| CoreError::Invalid("a value is too long"))
}
