//! The MLS structs inside the vectors: made once by openmls from the fixed signature keys of [`super::keys`], then
//! kept as hex in `tests/vectors/mls.json`. HPKE keys and secrets in them were random and are gone.

use std::collections::BTreeMap;

use mimid::{
    crypto::{MlsProvider, SigningKey, user_key_hash},
    wire::{
        encode,
        extensions::{
            CLIENT_QUEUE_CONFIG, GROUP_POLICY, GroupPolicy, KeyPackageClass, KeyPackageQueue,
            USER_KEY, UserKey, UserKeyTbs,
        },
        mls::Credential,
    },
};
use openmls::prelude::{self as mls, ExtensionType, ProposalType};
use openmls_memory_storage::MemoryStorage;

use super::{client, group_id, keys, policy};

const SUITE: mls::Ciphersuite = mls::Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

type Builder<'a> = mls::CommitBuilder<'a, mls::Initial, &'a mut mls::MlsGroup>;
type Provider = MlsProvider<MemoryStorage>;

/// Name → (type, bytes).
pub fn make() -> BTreeMap<&'static str, (&'static str, Vec<u8>)> {
    let mut made = BTreeMap::new();
    let (alice, bob, carol) =
        (Member::new("alice", "phone"), Member::new("bob", "laptop"), Member::new("carol", "desk"));

    let mut group = alice.create_group();
    made.insert("alice_credential", ("Credential", bytes(&alice.credential().credential)));
    made.insert("carol_credential", ("Credential", bytes(&carol.credential().credential)));
    made.insert("required_capabilities", ("RequiredCapabilities", bytes(&required())));
    made.insert("hub_sender", ("ExternalSender", bytes(&hub_sender())));
    made.insert(
        "alice_key_package",
        ("KeyPackage", bytes(alice.key_package(KeyPackageClass::Group, false).key_package())),
    );
    let bob_key_package = bob.key_package(KeyPackageClass::Group, false);
    made.insert("bob_key_package", ("KeyPackage", bytes(bob_key_package.key_package())));
    made.insert(
        "bob_last_resort_key_package",
        ("KeyPackage", bytes(bob.key_package(KeyPackageClass::Group, true).key_package())),
    );
    made.insert(
        "bob_connection_key_package",
        ("KeyPackage", bytes(bob.key_package(KeyPackageClass::Connection, false).key_package())),
    );
    let reference = bob_key_package.key_package().hash_ref(&alice.provider.crypto).unwrap();
    made.insert("bob_key_package_ref", ("opaque", reference.as_slice().to_vec()));
    made.insert("group_info_0", ("GroupInfo", group_info(&group, &alice)));
    made.insert("ratchet_tree_0", ("ratchet_tree", bytes(&group.export_ratchet_tree())));

    // epoch 0 → 1: alice adds bob
    let bundle = commit(&mut group, &alice, |builder| {
        builder.propose_adds([bob_key_package.key_package().clone()])
    });
    made.insert("commit_add", ("MLSMessage", bytes(bundle.commit())));
    made.insert("welcome", ("MLSMessage", bytes(&bundle.to_welcome_msg().unwrap())));
    partial(&mut made, "commit_add", &bundle);
    group.merge_pending_commit(&alice.provider).unwrap();
    made.insert("group_info_1", ("GroupInfo", group_info(&group, &alice)));
    made.insert("ratchet_tree_1", ("ratchet_tree", bytes(&group.export_ratchet_tree())));

    let message = group.create_message(&alice.provider, &alice.leaf, b"hello, bob").unwrap();
    made.insert("application_message", ("MLSMessage", bytes(&message)));

    let joined = mls::StagedWelcome::new_from_welcome(
        &bob.provider,
        &mls::MlsGroupJoinConfig::builder()
            .wire_format_policy(mls::MIXED_PLAINTEXT_WIRE_FORMAT_POLICY)
            .build(),
        bundle.welcome().unwrap().clone(),
        Some(group.export_ratchet_tree().into()),
    );
    let mut bobs = joined.unwrap().into_group(&bob.provider).unwrap();
    let leave = bobs.leave_group_via_self_remove(&bob.provider, &bob.leaf).unwrap();
    made.insert("self_remove_proposal", ("MLSMessage", bytes(&leave)));
    let (remove, _) = group
        .propose_remove_member(&alice.provider, &alice.leaf, mls::LeafNodeIndex::new(1))
        .unwrap();
    made.insert("remove_proposal", ("MLSMessage", bytes(&remove)));
    group.clear_pending_proposals(&alice.provider.storage).unwrap();

    // three ways on from epoch 1
    for (name, removals) in
        [("commit_update", vec![]), ("commit_remove", vec![mls::LeafNodeIndex::new(1)])]
    {
        let bundle = commit(&mut group, &alice, |builder| {
            builder.propose_removals(removals).force_self_update(true)
        });
        made.insert(name, ("MLSMessage", bytes(bundle.commit())));
        partial(&mut made, name, &bundle);
        group.clear_pending_commit(&alice.provider.storage).unwrap();
    }
    let info = group.export_group_info(&alice.provider.crypto, &alice.leaf, false).unwrap();
    let info = mimid::wire::decode(&bytes(&info)[4..]).unwrap();
    let (_, bundle) = mls::MlsGroup::external_commit_builder()
        .with_ratchet_tree(group.export_ratchet_tree().into())
        .with_aad(encode(&super::join_proof()))
        .build_group(&carol.provider, info, carol.credential())
        .unwrap()
        .leaf_node_parameters(
            mls::LeafNodeParameters::builder()
                .with_capabilities(capabilities())
                .with_extensions(carol.leaf_extensions())
                .build(),
        )
        .load_psks(&carol.provider.storage)
        .unwrap()
        .create_group_info(true)
        .use_ratchet_tree_extension(false)
        .build(&carol.provider.crypto, &carol.provider.crypto, &carol.leaf, |_| true)
        .unwrap()
        .finalize(&carol.provider)
        .unwrap();
    made.insert("external_commit", ("MLSMessage", bytes(bundle.commit())));
    partial(&mut made, "external_commit", &bundle);
    made
}

struct Member {
    name: &'static str,
    device: &'static str,
    provider: Provider,
    leaf: SigningKey,
    user: SigningKey,
}

impl Member {
    fn new(name: &'static str, device: &'static str) -> Self {
        let keys = keys();
        let (leaf, user) =
            (keys[&format!("{name}_leaf")].clone(), keys[&format!("{name}_user")].clone());
        Self { name, device, provider: Provider::new(MemoryStorage::default()), leaf, user }
    }

    fn credential(&self) -> mls::CredentialWithKey {
        let uri = client(self.name, self.device);
        mls::CredentialWithKey {
            credential: mls::BasicCredential::new(uri.as_str().into()).into(),
            signature_key: self.leaf.public().as_slice().into(),
        }
    }

    fn leaf_extensions(&self) -> mls::Extensions<mls::LeafNode> {
        let user_key = encode(&user_key(
            &self.user,
            &self.leaf,
            &Credential::of(&self.credential().credential),
        ));
        mls::Extensions::single(unknown(USER_KEY, user_key)).unwrap()
    }

    fn key_package(&self, class: KeyPackageClass, last_resort: bool) -> mls::KeyPackageBundle {
        let config = KeyPackageQueue { class, config: super::queue_config(self.name) };
        let mut builder = mls::KeyPackage::builder()
            .leaf_node_capabilities(capabilities())
            .leaf_node_extensions(self.leaf_extensions())
            .key_package_extensions(
                mls::Extensions::single(unknown(CLIENT_QUEUE_CONFIG, encode(&config))).unwrap(),
            );
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        builder.build(SUITE, &self.provider, &self.leaf, self.credential()).unwrap()
    }

    fn create_group(&self) -> mls::MlsGroup {
        let policy: GroupPolicy = policy(&user_key_hash(self.user.scheme(), self.user.public()));
        let extensions = mls::Extensions::from_vec(vec![
            mls::Extension::RequiredCapabilities(required()),
            mls::Extension::ExternalSenders(vec![hub_sender()]),
            unknown(GROUP_POLICY, encode(&policy)),
        ])
        .unwrap();
        mls::MlsGroup::builder()
            .ciphersuite(SUITE)
            .with_group_id(mls::GroupId::from_slice(group_id().as_bytes()))
            .with_wire_format_policy(mls::MIXED_PLAINTEXT_WIRE_FORMAT_POLICY)
            .use_ratchet_tree_extension(false)
            .with_group_context_extensions(extensions)
            .with_capabilities(capabilities())
            .with_leaf_node_extensions(self.leaf_extensions())
            .unwrap()
            .build(&self.provider, &self.leaf, self.credential())
            .unwrap()
    }
}

/// What a user's key says of a leaf. PROTOCOL.md §1.
pub fn user_key(user: &SigningKey, leaf: &SigningKey, credential: &Credential) -> UserKey {
    let tbs = UserKeyTbs {
        scheme: user.scheme(),
        user_public_key: user.public().clone(),
        leaf_key: leaf.public().clone(),
        credential: credential.clone(),
    };
    UserKey {
        scheme: user.scheme(),
        user_public_key: user.public().clone(),
        signature: user.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap(),
    }
}

fn commit(
    group: &mut mls::MlsGroup,
    member: &Member,
    propose: impl for<'a> FnOnce(Builder<'a>) -> Builder<'a>,
) -> mls::CommitMessageBundle {
    propose(group.commit_builder())
        .load_psks(&member.provider.storage)
        .unwrap()
        .create_group_info(true)
        .use_ratchet_tree_extension(false)
        .build(&member.provider.crypto, &member.provider.crypto, &member.leaf, |_| true)
        .unwrap()
        .stage_commit(&member.provider)
        .unwrap()
}

fn partial(
    made: &mut BTreeMap<&'static str, (&'static str, Vec<u8>)>,
    name: &'static str,
    bundle: &mls::CommitMessageBundle,
) {
    let info = bundle.group_info().unwrap();
    let external_pub =
        info.extensions().iter().find(|one| one.extension_type() == ExtensionType::ExternalPub);
    let leak =
        |suffix: &str| -> &'static str { Box::leak(format!("{name}_{suffix}").into_boxed_str()) };
    made.insert(leak("external_pub"), ("Extension", bytes(external_pub.unwrap())));
    made.insert(leak("group_info_signature"), ("opaque", signature(info.signature())));
}

/// openmls keeps the signature's bytes to itself: they are what it encodes as.
fn signature(signature: &mls::Signature) -> Vec<u8> {
    mimid::wire::decode::<mimid::wire::extensions::Signature>(&bytes(signature)).unwrap().into_vec()
}

fn group_info(group: &mls::MlsGroup, member: &Member) -> Vec<u8> {
    let message = group.export_group_info(&member.provider.crypto, &member.leaf, false).unwrap();
    // MLSMessage { version, wire_format, GroupInfo }: two bytes each before it
    bytes(&message)[4..].to_vec()
}

fn capabilities() -> mls::Capabilities {
    mls::Capabilities::builder()
        .ciphersuites(vec![SUITE])
        .extensions(vec![
            ExtensionType::LastResort,
            ExtensionType::Unknown(USER_KEY),
            ExtensionType::Unknown(CLIENT_QUEUE_CONFIG),
            ExtensionType::Unknown(GROUP_POLICY),
        ])
        .proposals(vec![ProposalType::SelfRemove])
        .build()
}

fn required() -> mls::RequiredCapabilitiesExtension {
    mls::RequiredCapabilitiesExtension::new(
        &[ExtensionType::Unknown(USER_KEY), ExtensionType::Unknown(GROUP_POLICY)],
        &[ProposalType::SelfRemove],
        &[mls::CredentialType::Basic],
    )
}

fn hub_sender() -> mls::ExternalSender {
    let key = keys()["hub_external_sender"].public().as_slice().to_vec();
    mls::ExternalSender::new(key.into(), mls::BasicCredential::new(b"a.example".to_vec()).into())
}

fn unknown(code: u16, value: Vec<u8>) -> mls::Extension {
    mls::Extension::Unknown(code, mls::UnknownExtension(value))
}

fn bytes(value: &impl tls_codec::Serialize) -> Vec<u8> {
    value.tls_serialize_detached().unwrap()
}
