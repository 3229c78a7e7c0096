//! What a remote enforces, probed once per endpoint and bucket and remembered with its date.
//!
//! Servers are replaced and updated, so what is remembered is shown with its date, and `dsfs doctor`
//! probes again.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::daemon::remote::OpenRemote;
use crate::durable;
use crate::store::StoreError;
use crate::store::guarantee;
use crate::store::guarantee::Guarantee;
use crate::store::guarantee::ProbeReport;

/// Bytes of the hash in a file's name, before they are written in hexadecimal.
const NAME_HASH_BYTES: usize = 8;

/// A grade and when it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The store it is about: a hash cannot be read back.
    pub store: String,
    /// The grade.
    pub guarantee: Guarantee,
    /// When it was probed, as RFC 3339; `None` if the user said so.
    pub probed: Option<String>,
}

impl Remembered {
    /// For people: `enforced (probed 2026-11-21)`.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.probed {
            Some(probed) => {
                let date = probed.split('T').next().unwrap_or_default();
                format!("{} (probed {date})", self.guarantee)
            }
            None => format!("{} (as conditional-writes says)", self.guarantee),
        }
    }
}

/// What the user says of a remote, else what is remembered of it.
#[must_use]
pub fn known(remote: &OpenRemote, state_dir: &Path) -> Option<Remembered> {
    let store = remote.remote.store_identity();
    match remote.assumed_guarantee {
        Some(guarantee) => Some(Remembered { store, guarantee, probed: None }),
        None => recall(state_dir, &store),
    }
}

/// What is remembered of a store.
fn recall(state_dir: &Path, identity: &str) -> Option<Remembered> {
    let remembered: Remembered =
        serde_json::from_slice(&fs::read(file_of(state_dir, identity)).ok()?).ok()?;
    (remembered.store == identity).then_some(remembered)
}

/// Probes a remote now, and remembers the answer.
///
/// # Errors
/// The remote cannot be probed: nothing is known then, and nothing remembered is changed.
pub async fn probe(remote: &OpenRemote, state_dir: &Path) -> Result<(Remembered, ProbeReport), StoreError> {
    let report = guarantee::probe(&*remote.store, &remote.remote.prefix).await?;
    let remembered = Remembered {
        store: remote.remote.store_identity(),
        guarantee: report.guarantee,
        probed: Some(timestamp(SystemClock.now())),
    };
    if remote.assumed_guarantee.is_some() {
        return Ok((remembered, report)); // found in a way that another setting may not go
    }
    if let Err(err) = remember(state_dir, &remembered) {
        tracing::warn!("what the remote enforces cannot be remembered: {err}");
    }
    Ok((remembered, report))
}

/// What is known, else what a probe finds.
///
/// # Errors
/// As [`probe`].
pub async fn known_or_probed(remote: &OpenRemote, state_dir: &Path) -> Result<Remembered, StoreError> {
    match known(remote, state_dir) {
        Some(known) => Ok(known),
        None => probe(remote, state_dir).await.map(|(remembered, _)| remembered),
    }
}

/// A time as RFC 3339, to the second.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let second =
        Timestamp::try_from(time).ok().and_then(|time| Timestamp::from_second(time.as_second()).ok());
    second.unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

fn remember(state_dir: &Path, remembered: &Remembered) -> io::Result<()> {
    let path = file_of(state_dir, &remembered.store);
    durable::create_private_dirs(path.parent().unwrap_or(state_dir))?;
    durable::replace(&path, &serde_json::to_vec_pretty(remembered)?)
}

fn file_of(state_dir: &Path, identity: &str) -> PathBuf {
    let hash = Sha256::digest(identity);
    state_dir.join("guarantees").join(format!("{}.json", HEXLOWER.encode(&hash[..NAME_HASH_BYTES])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probed_is_remembered_for_that_store_only() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered {
            store: "s3 http://h b".into(),
            guarantee: Guarantee::SinglePut,
            probed: Some(timestamp(SystemTime::UNIX_EPOCH)),
        };
        remember(dir.path(), &remembered).unwrap();
        assert_eq!(recall(dir.path(), "s3 http://h b"), Some(remembered.clone()));
        assert_eq!(recall(dir.path(), "s3 http://h c"), None);
        assert_eq!(remembered.describe(), "single-put (probed 1970-01-01)");
    }
}
