//! Who may do what, as a table: roles × rights × ranks, join policies, codes, and what a policy must be.

use super::*;
use crate::{
    crypto::SigningKey,
    wire::{
        extensions::{JoinCode, SignatureScheme},
        ids::{ClientUri, Domain, Timestamp},
    },
};

const ROLES: [Role; 4] = [Role::Banned, Role::Member, Role::Moderator, Role::Admin];

fn hash(name: &str) -> UserKeyHash {
    UserKeyHash(Opaque::new(crate::crypto::sha256(name.as_bytes())).unwrap())
}

fn identity(client: &str) -> LeafIdentity {
    let uri = ClientUri::new(format!("mimi://a.example/d/{client}")).unwrap();
    LeafIdentity {
        user: hash(uri.user().name()),
        client: uri,
        signature_key: client.as_bytes().to_vec(),
        credential_type: 1,
        print: crate::crypto::sha256(client.as_bytes()),
    }
}

/// Leaves 0, 1, 2, … in the order of `clients`.
fn roster(clients: &[&str]) -> Roster {
    let leaves = clients.iter().enumerate();
    Roster::of(leaves.map(|(at, it)| (LeafIndex(u32::try_from(at).unwrap()), identity(it))))
        .unwrap()
}

fn group() -> GroupId {
    GroupId::of(&Domain::new("a.example").unwrap(), [1; 16])
}

/// The default policy of alice's group, with roles.
fn policy(roles: &[(&str, Role)]) -> GroupPolicy {
    let mut policy = default_policy(&hash("alice"));
    for (user, role) in roles {
        set_role(&mut policy, &hash(user), *role).unwrap();
    }
    policy
}

fn by(leaf: u32, what: What) -> Act {
    Act { author: Author::Leaf(LeafIndex(leaf)), what }
}

fn add(client: &str) -> What {
    What::Add(Box::new(identity(client)))
}

fn remove(leaf: u32) -> What {
    What::Remove(LeafIndex(leaf))
}

fn becomes(policy: GroupPolicy) -> What {
    What::Policy(Box::new(policy))
}

const CLIENTS: [&str; 4] = ["alice/phone", "bob/phone", "carol/phone", "bob/laptop"];
const BOB: u32 = 1;
const CAROL: u32 = 2;

fn judged(policy: &GroupPolicy, acts: &[Act]) -> Result<(), Denied> {
    judge(policy, &roster(&CLIENTS), &group(), None, acts)
}

#[test]
fn right_takes_the_role_that_the_policy_says() {
    for needed in [Role::Member, Role::Moderator, Role::Admin] {
        for role in ROLES {
            let mut policy = policy(&[("bob", role)]);
            (policy.may_add, policy.may_remove, policy.may_update) = (needed, needed, needed);
            let adds = judged(&policy, &[by(BOB, add("dave/phone"))]);
            assert_eq!(adds.is_ok(), role >= needed, "{role:?} adds where {needed:?} may");
            let removes = judged(&policy, &[by(BOB, remove(CAROL))]);
            // carol is a member: removing her takes a higher role than hers as well
            assert_eq!(removes.is_ok(), role >= needed && role > Role::Member);
            let mut new = policy.clone();
            new.members_max = 7;
            let updates = judged(&policy, &[by(BOB, becomes(new))]);
            assert_eq!(updates.is_ok(), role >= needed);
        }
    }
}

#[test]
fn nobody_removes_who_has_its_own_role_or_a_higher_one_but_an_admin() {
    for remover in [Role::Member, Role::Moderator, Role::Admin] {
        for removed in ROLES {
            let mut policy = policy(&[("bob", remover), ("carol", removed)]);
            policy.may_remove = Role::Member;
            let judged = judged(&policy, &[by(BOB, remove(CAROL))]);
            let may = remover == Role::Admin || remover > removed;
            assert_eq!(judged.is_ok(), may, "{remover:?} removes {removed:?}");
        }
    }
}

#[test]
fn own_clients_are_added_and_removed_whatever_the_policy() {
    let mut policy = policy(&[]);
    (policy.may_add, policy.may_remove) = (Role::Admin, Role::Admin);
    assert_eq!(judged(&policy, &[by(BOB, add("bob/tablet")), by(BOB, remove(3))]), Ok(()));
    set_role(&mut policy, &hash("bob"), Role::Banned).unwrap();
    for what in [add("bob/tablet"), remove(3), What::Update(LeafIndex(BOB))] {
        assert_eq!(judged(&policy, &[by(BOB, what)]), Err(Denied::Banned));
    }
    for what in [What::Leave(LeafIndex(BOB)), remove(BOB)] {
        assert_eq!(judged(&policy, &[by(BOB, what)]), Ok(()));
    }
}

#[test]
fn banned_user_is_not_added_and_does_not_commit() {
    let policy = policy(&[("dave", Role::Banned), ("bob", Role::Banned)]);
    assert_eq!(judged(&policy, &[by(0, add("dave/phone"))]), Err(Denied::AddsBanned));
    let roster = roster(&CLIENTS);
    let commit = judge(&policy, &roster, &group(), Some(LeafIndex(BOB)), &[]);
    assert_eq!(commit, Err(Denied::Banned));
    let resync = Act {
        author: Author::Newcomer { proof: None },
        what: What::Resync(Box::new(identity("bob/phone"))),
    };
    assert_eq!(judged(&policy, &[resync]), Err(Denied::Banned));
}

#[test]
fn member_updates_and_leaves_for_itself_only() {
    for what in [What::Update(LeafIndex(CAROL)), What::Leave(LeafIndex(CAROL))] {
        assert_eq!(judged(&policy(&[]), &[by(BOB, what)]), Err(Denied::NotItself));
    }
    let nobody = by(9, What::Leave(LeafIndex(9)));
    assert_eq!(judged(&policy(&[]), &[nobody]), Err(Denied::NoSuchLeaf(LeafIndex(9))));
}

#[test]
fn role_is_given_up_to_ones_own_and_taken_from_below_it() {
    for giver in [Role::Member, Role::Moderator, Role::Admin] {
        for was in ROLES {
            for is in ROLES {
                let mut old = policy(&[("bob", giver), ("carol", was)]);
                old.may_update = Role::Member;
                let mut new = old.clone();
                set_role(&mut new, &hash("carol"), is).unwrap();
                let judged = judged(&old, &[by(BOB, becomes(new))]);
                let may = was == is || (is <= giver && (was < giver || giver == Role::Admin));
                assert_eq!(judged.is_ok(), may, "{giver:?} makes {was:?} {is:?}");
            }
        }
    }
}

#[test]
fn threshold_moves_only_between_roles_up_to_ones_own() {
    let mut old = policy(&[("bob", Role::Moderator)]);
    old.may_update = Role::Moderator;
    let with = |change: fn(&mut GroupPolicy)| {
        let mut new = old.clone();
        change(&mut new);
        judged(&old, &[by(BOB, becomes(new))])
    };
    assert_eq!(with(|policy| policy.may_add = Role::Moderator), Ok(()));
    assert_eq!(with(|policy| policy.may_add = Role::Admin), Err(Denied::Threshold));
    assert_eq!(with(|policy| policy.may_delete = Role::Member), Err(Denied::Threshold));
}

#[test]
fn group_keeps_an_admin() {
    let old = policy(&[]);
    for what in [What::Leave(LeafIndex(0)), remove(0)] {
        assert_eq!(judged(&old, &[by(0, what)]), Err(Denied::NoAdminLeft));
    }
    let mut without = old.clone();
    set_role(&mut without, &hash("alice"), Role::Member).unwrap();
    assert_eq!(judged(&old, &[by(0, becomes(without.clone()))]), Err(Denied::NoAdminLeft));
    // an admin who is not in the group is none
    set_role(&mut without, &hash("zoe"), Role::Admin).unwrap();
    assert_eq!(judged(&old, &[by(0, becomes(without.clone()))]), Err(Denied::NoAdminLeft));
    set_role(&mut without, &hash("bob"), Role::Admin).unwrap();
    assert_eq!(judged(&old, &[by(0, becomes(without.clone()))]), Ok(()));
    let both = [by(0, becomes(without)), by(0, What::Leave(LeafIndex(0)))];
    assert_eq!(judged(&old, &both), Ok(()));
    // what the hub removes is nobody's doing, in whatever order it comes
    let hub = Act { author: Author::Hub, what: remove(0) };
    assert_eq!(judged(&old, std::slice::from_ref(&hub)), Ok(()));
    let two = policy(&[("bob", Role::Admin)]);
    let bob_leaves = [by(BOB, What::Leave(LeafIndex(BOB))), by(3, What::Leave(LeafIndex(3)))];
    let all: Vec<Act> = bob_leaves.into_iter().chain([hub]).collect();
    assert_eq!(judged(&two, &all), Ok(()));
    assert!(!an_admin_stays(&two, &roster(&CLIENTS), &all));
}

#[test]
fn who_may_delete_removes_everyone_and_only_everyone() {
    let mut old = policy(&[]);
    old.may_delete = Role::Member;
    let roster = roster(&CLIENTS);
    let everyone = [by(BOB, remove(0)), by(BOB, remove(2)), by(BOB, remove(3))];
    let judged = |acts: &[Act]| judge(&old, &roster, &group(), Some(LeafIndex(BOB)), acts);
    assert_eq!(judged(&everyone), Ok(()));
    assert!(judged(&everyone[..2]).is_err());
    old.may_delete = Role::Admin;
    assert!(judge(&old, &roster, &group(), Some(LeafIndex(BOB)), &everyone).is_err());
}

#[test]
fn members_max_bounds_growth_and_not_what_there_is() {
    let mut policy = policy(&[]);
    policy.members_max = 4;
    let full = judged(&policy, &[by(0, add("dave/phone"))]);
    assert_eq!(full, Err(Denied::TooManyMembers { max: 4, would_be: 5 }));
    assert_eq!(judged(&policy, &[by(0, add("dave/phone")), by(0, remove(CAROL))]), Ok(()));
    let mut smaller = policy.clone();
    smaller.members_max = 1;
    assert_eq!(judged(&policy, &[by(0, becomes(smaller))]), Ok(()));
}

#[test]
fn hub_removes_and_replaces_its_key_and_nothing_else() {
    let hub = |what| judged(&policy(&[]), &[Act { author: Author::Hub, what }]);
    assert_eq!(hub(remove(CAROL)), Ok(()));
    assert_eq!(hub(What::HubKey), Ok(()));
    assert_eq!(hub(add("dave/phone")), Err(Denied::NotTheHubs));
    assert_eq!(hub(becomes(policy(&[]))), Err(Denied::NotTheHubs));
}

#[test]
fn join_policy_includes_those_before_it() {
    let code = SigningKey::from_seed([5; 32]).unwrap();
    let other = SigningKey::from_seed([6; 32]).unwrap();
    let key = |client: &str| Opaque::new(client.as_bytes()).unwrap();
    let prove = |code: &SigningKey, group: &GroupId, user: &str, client: &str| {
        let tbs = JoinProofTbs {
            group_id: group.clone(),
            user_key_hash: hash(user),
            leaf_key: key(client),
        };
        let signature = code.sign_with_label("JoinProofTBS", &encode(&tbs)).unwrap();
        JoinProof { public_key: code.public().clone(), signature }
    };
    let good = prove(&code, &group(), "dave", "dave/phone");
    let elsewhere = GroupId::of(&Domain::new("a.example").unwrap(), [2; 16]);
    let bad = [
        prove(&other, &group(), "dave", "dave/phone"),
        prove(&code, &elsewhere, "dave", "dave/phone"),
        prove(&code, &group(), "erin", "dave/phone"),
        prove(&code, &group(), "dave", "dave/laptop"),
    ];
    for join in [JoinPolicy::Closed, JoinPolicy::OwnClients, JoinPolicy::Code, JoinPolicy::Open] {
        let mut policy = policy(&[("mallory", Role::Banned)]);
        policy.join = join;
        let listed = JoinCode {
            scheme: SignatureScheme::ED25519,
            public_key: code.public().clone(),
            expires_at: Timestamp(u64::MAX),
        };
        policy.codes = List::new(vec![listed]).unwrap();
        let joins = |client: &str, proof: Option<&JoinProof>| {
            let what = What::Join(Box::new(identity(client)));
            judged(&policy, &[Act { author: Author::Newcomer { proof: proof.cloned() }, what }])
        };
        assert_eq!(joins("bob/tablet", None).is_ok(), join >= JoinPolicy::OwnClients);
        assert_eq!(joins("dave/phone", None).is_ok(), join == JoinPolicy::Open);
        assert_eq!(joins("dave/phone", Some(&good)).is_ok(), join >= JoinPolicy::Code);
        for proof in &bad {
            assert_eq!(joins("dave/phone", Some(proof)).is_ok(), join == JoinPolicy::Open);
        }
        assert_eq!(joins("mallory/phone", None), Err(Denied::Banned));
    }
}

#[test]
fn set_role_keeps_the_list_sorted_and_lists_no_members() {
    let mut policy = policy(&[]);
    for (index, name) in ["f", "b", "e", "a", "d", "c"].into_iter().enumerate() {
        set_role(&mut policy, &hash(name), ROLES[index % 2 * 2]).unwrap();
        assert_eq!(check_form(&policy), Ok(()));
        assert_eq!(role_of(&policy, &hash(name)), ROLES[index % 2 * 2]);
    }
    set_role(&mut policy, &hash("e"), Role::Admin).unwrap();
    assert_eq!(role_of(&policy, &hash("e")), Role::Admin);
    set_role(&mut policy, &hash("e"), Role::Member).unwrap();
    assert_eq!(policy.roles.len(), 6);
    assert!(policy.roles.iter().all(|entry| entry.role != Role::Member));
    assert_eq!(role_of(&policy, &hash("nobody")), Role::Member);
}

#[test]
fn malformed_policy_is_refused_whoever_sets_it() {
    let good = policy(&[("bob", Role::Moderator), ("carol", Role::Banned)]);
    let bad: [fn(&mut GroupPolicy); 5] = [
        |policy| {
            let mut roles = policy.roles.to_vec();
            roles.reverse();
            policy.roles = List::new(roles).unwrap();
        },
        |policy| {
            let mut roles = policy.roles.to_vec();
            roles.insert(0, roles[0].clone());
            policy.roles = List::new(roles).unwrap();
        },
        |policy| policy.may_send = Role::Banned,
        |policy| policy.credential_types = List::default(),
        |policy| policy.members_max = 0,
    ];
    assert_eq!(check_form(&good), Ok(()));
    for spoil in bad {
        let mut spoiled = good.clone();
        spoil(&mut spoiled);
        assert!(matches!(check_form(&spoiled), Err(Denied::BadPolicy(_))));
        assert!(judged(&good, &[by(0, becomes(spoiled))]).is_err());
    }
    // nor one that locks its own members out
    let mut x509 = good.clone();
    x509.credential_types = List::new(vec![2]).unwrap();
    let refused = judged(&good, &[by(0, becomes(x509))]);
    assert!(matches!(refused, Err(Denied::BadPolicy(_))), "{refused:?}");
}

#[test]
fn credential_of_another_type_than_basic_names_no_client() {
    let x509 = openmls::prelude::Credential::new(
        openmls::prelude::CredentialType::X509,
        b"mimi://a.example/d/alice/phone".to_vec(),
    );
    assert_eq!(leaf::client_of(&x509), Err(leaf::LeafProblem::CredentialType(2)));
}

#[test]
fn second_change_of_the_group_s_context_waits_for_the_next_epoch_whoever_makes_it() {
    use super::{
        change::{Act, Author, What},
        pending::{PendingProblem, place},
    };
    let policy = || What::Policy(Box::new(default_policy(&hash("alice"))));
    let by = |leaf, what| Act { author: Author::Leaf(LeafIndex(leaf)), what };
    let hub = || Act { author: Author::Hub, what: What::HubKey };
    let stands = by(1, policy());
    assert_eq!(place(&[], &stands, 3, 10), Ok(vec![]));
    for new in [by(2, policy()), hub()] {
        assert_eq!(place(&[&stands], &new, 3, 10), Err(PendingProblem::ContextPending));
    }
    assert_eq!(place(&[&hub()], &stands, 3, 10), Err(PendingProblem::ContextPending));
    let elsewhere = by(2, What::Update(LeafIndex(2)));
    assert_eq!(place(&[&stands], &elsewhere, 3, 10), Ok(vec![]));
}

#[test]
fn judging_takes_time_that_grows_with_what_is_judged() {
    crate::growth::grows_with("admins who are gone, and clients who come", 100, |n| {
        let mut policy = default_policy(&hash("nobody"));
        let gone =
            (0..n).map(|n| RoleEntry { user_key_hash: hash(&n.to_string()), role: Role::Admin });
        let carol = RoleEntry { user_key_hash: hash("carol"), role: Role::Moderator };
        let mut roles: Vec<_> = gone.chain([carol]).collect();
        roles.sort_by(|a, b| a.user_key_hash.cmp(&b.user_key_hash));
        policy.roles = List::new(roles).unwrap();
        (policy.may_add, policy.may_remove) = (Role::Member, Role::Member);
        let adds = (0..n).map(|n| by(CAROL, add(&format!("new-{n}/phone"))));
        let acts: Vec<Act> = adds.chain([by(CAROL, remove(BOB))]).collect();
        let roster = roster(&CLIENTS);
        move || {
            let judged = judge(&policy, &roster, &group(), Some(LeafIndex(CAROL)), &acts);
            // there was none before, either
            assert_eq!(judged, Ok(()));
        }
    });
}
