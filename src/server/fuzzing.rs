//! The files of a node's own keys from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing else builds this.

use std::path::Path;

use super::{
    key_file::KeySet,
    keys::{TokenKeysFile, held},
    s2s_keys::S2sKeys,
    sender_keys::SenderKeys,
};

/// Reads `file` as each kind of keys: as they are used, or damaged.
pub fn key_file(file: &[u8]) {
    let path = Path::new("a file");
    let _ = serde_json::from_slice::<TokenKeysFile>(file).map(|keys| held(keys, path));
    let _ = serde_json::from_slice::<S2sKeys>(file).map(|keys| keys.into_keys(path));
    let _ = serde_json::from_slice::<SenderKeys>(file).map(|keys| keys.into_keys(path));
}
