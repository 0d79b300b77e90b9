//! What a client keeps and what its peers send it, from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing
//! else builds this.

use openmls_sqlite_storage::Codec as _;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Member,
    content::Content,
    home::{Cbor, LiftedGroup, Stored},
    identity::StoredKey,
    records::{AnswerRecord, Contact, Event, FeedRecord, GroupRecord, Pending, Request},
};
use crate::{crypto::SigningKey, wire::ids::RequestId};

/// Decodes what another member made up. What decodes comes with a check that it is the same once it is written and read
/// again, which panics where it is not.
pub fn content(record: &[u8]) -> Option<impl FnOnce()> {
    let content = Content::decode(record).ok()?;
    Some(move || {
        let again = content.encode();
        assert_eq!(Content::decode(&again).map(|content| content.encode()).ok(), Some(again));
    })
}

/// Decodes `record` as the `which`-th kind, from 1. What decodes is the same once it is written and read again.
///
/// # Panics
/// Where it is not.
pub fn record(which: u8, record: &[u8]) {
    match which {
        1 => same::<GroupRecord>(record),
        2 => same::<Pending>(record),
        3 => same::<FeedRecord>(record),
        4 => same::<Event>(record),
        5 => same::<Contact>(record),
        6 => same::<Request>(record),
        7 => same::<AnswerRecord>(record),
        8 => same::<StoredKey>(record),
        9 => same::<LiftedGroup>(record),
        10 => {
            let _ = Stored::from_slice::<openmls::treesync::RatchetTreeIn>(record);
        }
        _ => {}
    }
}

fn same<T: Serialize + DeserializeOwned>(record: &[u8]) {
    let Ok(value) = Cbor::from_slice::<T>(record) else { return };
    let again = Cbor::to_vec(&value).expect("it was decoded");
    let value: T = Cbor::from_slice(&again).expect("it was encoded");
    assert_eq!(Cbor::to_vec(&value).ok(), Some(again));
}

impl Member {
    /// What signs a request that was built.
    pub fn signer_of(&self, request: RequestId) -> Option<SigningKey> {
        let (_, pending) = self.find_pending(request).ok()??;
        pending.built?.signer.open().ok()
    }
}
