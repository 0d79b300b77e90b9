//! Where a client keeps everything: one SQLite database, for what openmls stores and for our own records, so
//! that every step is one transaction.
//!
//! Here: opening, transactions, records by kind and key, and lifting one group's MLS state in and out (an
//! external commit is built beside the state that it may replace). Not here: what the records mean.
//! A database in memory is the same thing without a file; tests, benches and load drivers use it.

use std::{path::Path, time::Duration};

use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use openmls_traits::OpenMlsProvider;
use rusqlite::{Connection, OptionalExtension, params, types::Value};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::CoreError;
use crate::{crypto::MlsCrypto, wire::ids::GroupId};

/// The version of our own tables and encodings. openmls migrates its own tables.
const SCHEMA_VERSION: i64 = 3;

/// How our records are stored, and openmls' values but for [`Stored`]'s exceptions: self-describing, which one of
/// openmls' needs.
#[derive(Debug, Default)]
pub struct Cbor;

/// How openmls' values are stored. Those that grow with the group are read at every step, and would be mostly the names
/// of fields and two bytes for each byte of a key: they are in postcard, behind a byte that CBOR begins nothing with.
#[derive(Debug, Default)]
pub struct Stored;

/// The tree, and the secrets of messages with the leaves of past epochs.
const IN_POSTCARD: [&str; 2] = ["::TreeSync", "::MessageSecretsStore"];
/// How deep lists in lists go, in what is stored. For each of them serde takes up to 1 MiB where a record that is damaged says
/// that it is long.
const DEPTH_MAX: usize = 32;
/// CBOR's "break", which only ends something.
const POSTCARD: u8 = 0xFF;

impl Codec for Stored {
    type Error = CborError;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CborError> {
        // whichever way it is written it is read: a name that changes costs time and nothing else
        let name = std::any::type_name::<T>();
        if !IN_POSTCARD.iter().any(|it| name.ends_with(it)) {
            return Cbor::to_vec(value);
        }
        let mut bytes = postcard::to_stdvec(value).map_err(|error| CborError(error.to_string()))?;
        bytes.insert(0, POSTCARD);
        Ok(bytes)
    }

    fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CborError> {
        match bytes {
            [POSTCARD, value @ ..] => {
                postcard::from_bytes(value).map_err(|error| CborError(error.to_string()))
            }
            _ => Cbor::from_slice(bytes),
        }
    }
}

/// A value that could not be stored or read back.
#[derive(Debug, thiserror::Error)]
#[error("a stored value does not encode or decode: {0}")]
pub struct CborError(String);

impl Codec for Cbor {
    type Error = CborError;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CborError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).map_err(|error| CborError(error.to_string()))?;
        Ok(bytes)
    }

    fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CborError> {
        ciborium::de::from_reader_with_recursion_limit(bytes, DEPTH_MAX)
            .map_err(|error| CborError(error.to_string()))
    }
}

/// What openmls works with: our cryptography over the home's database.
pub(super) struct Provider<'a> {
    crypto: &'a MlsCrypto,
    storage: SqliteStorageProvider<Stored, &'a Connection>,
}

impl<'a> OpenMlsProvider for Provider<'a> {
    type CryptoProvider = MlsCrypto;
    type RandProvider = MlsCrypto;
    type StorageProvider = SqliteStorageProvider<Stored, &'a Connection>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &MlsCrypto {
        self.crypto
    }

    fn rand(&self) -> &MlsCrypto {
        self.crypto
    }
}

/// The kinds of records; the numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Identity = 1,
    Group = 2,
    Pending = 3,
    Feed = 4,
    Event = 5,
    Token = 6,
    Contact = 7,
    Request = 8,
    Setting = 9,
    Answer = 10,
    Doubt = 11,
    Behind = 12,
    Look = 13,
}

/// A client's database.
pub struct Home {
    connection: Connection,
    crypto: MlsCrypto,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Home")
    }
}

impl Home {
    /// Opens the database at `path`, or makes it there. Several processes may have it open: each step is one
    /// transaction and nothing is kept between steps.
    ///
    /// # Errors
    /// [`CoreError::File`], [`CoreError::Store`], [`CoreError::NewerHome`]
    pub fn open(path: &Path) -> Result<Self, CoreError> {
        use std::os::unix::fs::OpenOptionsExt;
        // It holds private keys; SQLite gives its other files the same mode. One that is there is not opened:
        // closing it would drop the locks that another connection of this process has on it.
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        if let Err(error) = made
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error.into());
        }
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(20))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Self::with(connection)
    }

    /// A database that ends with the process.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn in_memory() -> Result<Self, CoreError> {
        Self::with(Connection::open_in_memory()?)
    }

    /// What is in it, in a database of its own in memory: for fuzz targets, which begin many times with the same.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    #[cfg(fuzzing)]
    pub(super) fn copy(&self) -> Result<Self, CoreError> {
        let copy = Connection::open_in_memory()?;
        copy.execute_batch("BEGIN")?;
        let mut schema = self.connection.prepare(
            "SELECT type, name, sql FROM sqlite_schema
             WHERE sql IS NOT NULL AND name NOT GLOB 'sqlite_*' ORDER BY type DESC",
        )?;
        let mut made = schema.query([])?;
        while let Some(row) = made.next()? {
            let (kind, name, sql): (String, String, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            copy.execute_batch(&sql)?;
            if kind != "table" {
                continue;
            }
            let mut rows = self.connection.prepare(&format!("SELECT * FROM \"{name}\""))?;
            let columns = rows.column_count();
            let places = vec!["?"; columns].join(", ");
            let mut put = copy.prepare(&format!("INSERT INTO \"{name}\" VALUES ({places})"))?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let values: Result<Vec<Value>, _> = (0..columns).map(|at| row.get(at)).collect();
                put.execute(rusqlite::params_from_iter(values?))?;
            }
        }
        copy.execute_batch(&format!("PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"))?;
        Ok(Self { connection: copy, crypto: MlsCrypto::default() })
    }

    fn with(mut connection: Connection) -> Result<Self, CoreError> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(CoreError::NewerHome(version));
        }
        if version < SCHEMA_VERSION {
            SqliteStorageProvider::<Stored, &mut Connection>::new(&mut connection)
                .run_migrations()
                .map_err(|error| CoreError::Migration(error.to_string()))?;
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 CREATE TABLE IF NOT EXISTS mimid_record (
                     kind INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
                 ) WITHOUT ROWID;
                 PRAGMA user_version = {SCHEMA_VERSION};
                 COMMIT;"
            ))?;
        }
        Ok(Self { connection, crypto: MlsCrypto::default() })
    }

    pub(super) fn provider(&self) -> Provider<'_> {
        Provider { crypto: &self.crypto, storage: SqliteStorageProvider::new(&self.connection) }
    }

    pub(super) fn crypto(&self) -> &MlsCrypto {
        &self.crypto
    }

    /// Runs `step` as one transaction: all of it is durable when this returns `Ok`, none of it otherwise.
    pub(super) fn step<T>(
        &self,
        step: impl FnOnce() -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        match step() {
            Ok(value) => match self.connection.execute_batch("COMMIT") {
                Ok(()) => Ok(value),
                Err(error) => {
                    let _ = self.connection.execute_batch("ROLLBACK");
                    Err(error.into())
                }
            },
            Err(error) => {
                let _ = self.connection.execute_batch("ROLLBACK");
                Err(error)
            }
        }
    }

    /// Runs `trial` inside a step; where it fails, what it wrote is undone and the step goes on.
    pub(super) fn attempt<T, E: From<CoreError>>(
        &self,
        trial: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let run = |sql: &str| self.connection.execute_batch(sql).map_err(CoreError::from);
        run("SAVEPOINT trial")?;
        match trial() {
            Ok(value) => {
                run("RELEASE trial")?;
                Ok(value)
            }
            Err(error) => {
                run("ROLLBACK TO trial; RELEASE trial")?;
                Err(error)
            }
        }
    }

    pub(super) fn put<T: Serialize>(
        &self,
        kind: Kind,
        key: &[u8],
        value: &T,
    ) -> Result<(), CoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO mimid_record (kind, key, value) VALUES (?1, ?2, ?3)
                 ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
            )?
            .execute(params![kind as u8, key, Cbor::to_vec(value)?])?;
        Ok(())
    }

    pub(super) fn find<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &[u8],
    ) -> Result<Option<T>, CoreError> {
        let bytes: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT value FROM mimid_record WHERE kind = ?1 AND key = ?2")?
            .query_row(params![kind as u8, key], |row| row.get(0))
            .optional()?;
        Ok(bytes.map(|bytes| Cbor::from_slice(&bytes)).transpose()?)
    }

    pub(super) fn remove(&self, kind: Kind, key: &[u8]) -> Result<(), CoreError> {
        self.connection
            .prepare_cached("DELETE FROM mimid_record WHERE kind = ?1 AND key = ?2")?
            .execute(params![kind as u8, key])?;
        Ok(())
    }

    pub(super) fn remove_until(&self, kind: Kind, last: &[u8]) -> Result<(), CoreError> {
        self.connection
            .prepare_cached("DELETE FROM mimid_record WHERE kind = ?1 AND key <= ?2")?
            .execute(params![kind as u8, last])?;
        Ok(())
    }

    /// All records of `kind` whose key is greater than `after`, in the order of their keys.
    pub(super) fn list<T: DeserializeOwned>(
        &self,
        kind: Kind,
        after: &[u8],
        max: usize,
    ) -> Result<Vec<(Vec<u8>, T)>, CoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT key, value FROM mimid_record WHERE kind = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
        )?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![kind as u8, after, max], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?))
        })?;
        let mut found = Vec::new();
        for row in rows {
            let (key, value) = row?;
            found.push((key, Cbor::from_slice(&value)?));
        }
        Ok(found)
    }

    /// The number behind the greatest key of `kind`, whose keys are big-endian numbers; 1 where there is none.
    pub(super) fn next_number(&self, kind: Kind) -> Result<u64, CoreError> {
        let last: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT max(key) FROM mimid_record WHERE kind = ?1")?
            .query_row(params![kind as u8], |row| row.get(0))?;
        let last = last.and_then(|key| <[u8; 8]>::try_from(key).ok()).map_or(0, u64::from_be_bytes);
        Ok(last + 1)
    }

    /// Takes one group's MLS state out of the database.
    pub(super) fn lift(&self, group: &GroupId) -> Result<LiftedGroup, CoreError> {
        let key = group_key(group)?;
        let mut tables = Vec::new();
        for (table, columns) in GROUP_TABLES {
            let mut statement = self
                .connection
                .prepare(&format!("SELECT {columns} FROM {table} WHERE group_id = ?1"))?;
            let width = statement.column_count();
            let rows = statement.query_map(params![key], |row| {
                (0..width).map(|column| row.get::<_, Value>(column).map(Cell::from)).collect()
            })?;
            tables.push(rows.collect::<Result<Vec<Vec<Cell>>, _>>()?);
            self.connection
                .execute(&format!("DELETE FROM {table} WHERE group_id = ?1"), params![key])?;
        }
        Ok(LiftedGroup(tables))
    }

    /// Puts a lifted state in the place of what there is of that group.
    pub(super) fn drop_in(&self, group: &GroupId, lifted: &LiftedGroup) -> Result<(), CoreError> {
        self.lift(group)?;
        for ((table, columns), rows) in GROUP_TABLES.iter().zip(&lifted.0) {
            let marks = vec!["?"; columns.split(',').count()].join(", ");
            let mut statement = self
                .connection
                .prepare(&format!("INSERT INTO {table} ({columns}) VALUES ({marks})"))?;
            for row in rows {
                statement.execute(rusqlite::params_from_iter(row.iter().map(Value::from)))?;
            }
        }
        Ok(())
    }
}

/// openmls' tables that have a row per group, and their columns.
const GROUP_TABLES: [(&str, &str); 4] = [
    ("openmls_group_data", "provider_version, group_id, data_type, group_data"),
    ("openmls_epoch_keys_pairs", "provider_version, group_id, epoch_id, leaf_index, key_pairs"),
    ("openmls_proposals", "provider_version, group_id, proposal_ref, proposal"),
    ("openmls_own_leaf_nodes", "provider_version, group_id, leaf_node"),
];

fn group_key(group: &GroupId) -> Result<Vec<u8>, CoreError> {
    Ok(Cbor::to_vec(&openmls::prelude::GroupId::from_slice(group.as_bytes()))?)
}

/// One group's MLS state outside of the tables.
#[derive(Serialize, Deserialize)]
pub(super) struct LiftedGroup(Vec<Vec<Vec<Cell>>>);

#[derive(Serialize, Deserialize)]
enum Cell {
    Number(i64),
    Text(String),
    Bytes(#[serde(with = "bytes")] Vec<u8>),
    Nothing,
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Integer(number) => Self::Number(number),
            Value::Text(text) => Self::Text(text),
            Value::Blob(bytes) => Self::Bytes(bytes),
            Value::Null | Value::Real(_) => Self::Nothing,
        }
    }
}

impl From<&Cell> for Value {
    fn from(cell: &Cell) -> Self {
        match cell {
            Cell::Number(number) => Self::Integer(*number),
            Cell::Text(text) => Self::Text(text.clone()),
            Cell::Bytes(bytes) => Self::Blob(bytes.clone()),
            Cell::Nothing => Self::Null,
        }
    }
}

/// Bytes as one CBOR byte string instead of a list of numbers: `#[serde(with = "bytes")]`.
pub(super) mod bytes {
    use serde::{
        Deserializer, Serializer,
        de::{Error, Visitor},
    };

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_lists_in_lists_without_end_is_refused() {
        // a map of one entry, whose key is such a map, and so on
        let nested = |depth: usize| [vec![0xa1; depth], vec![0; depth + 1]].concat();
        let read = |depth| Cbor::from_slice::<ciborium::Value>(&nested(depth));
        assert!(read(DEPTH_MAX - 1).is_ok());
        let error = read(DEPTH_MAX + 1).unwrap_err();
        assert!(error.to_string().contains("RecursionLimitExceeded"), "{error}");
    }
}
