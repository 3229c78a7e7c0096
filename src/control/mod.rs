//! The socket between a command and the daemon of a mount.
//!
//! A Unix socket in the runtime directory, which only its user can enter; named by a hash of the mount
//! point, since paths are long and socket names short. One request per connection, as one line of JSON
//! with the version of this protocol; the answers are lines too: any number of `progress`, then one
//! `done` or one `failed`.
//!
//! ```text
//! > {"version":1,"request":{"commit":{"dataset":"run_01", …}}}
//! < {"progress":{"phase":"upload","files_done":3, …}}
//! < {"done":{"committed":{ … }}}
//! ```
//!
//! An outcome that is too long for one line comes in pieces, to be put together before it is read:
//!
//! ```text
//! < {"part":{"text":"{\"done\":{…","last":false}}
//! < {"part":{"text":"…}}","last":true}}
//! ```
//!
//! # Bounds
//!
//! A line has at most [`LINE_BYTES_MAX`], an outcome [`ANSWER_BYTES_MAX`]; a daemon serves
//! [`server::CONNECTIONS_MAX`] connections, and tells further ones that it is busy; while it works it says
//! so at least every [`KEEPALIVE`], and a client that hears nothing for [`client::SILENCE_MAX`] (or
//! [`client::LOOK_PATIENCE`]) gives up. A client that goes away cancels what it asked for.
//!
//! # What this module does not know
//!
//! How requests are carried out: the daemon hands in a [`server::Handler`].

pub mod client;
pub mod history;
pub mod keep;
pub mod message;
pub mod peer;
pub mod server;
pub mod stat;

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::Digest;
use sha2::Sha256;

use crate::config::directories;

/// Of the messages; a daemon and a command of different versions do not talk.
pub const PROTOCOL_VERSION: u32 = 2;
/// So begins what a daemon says of a request in another version of the messages. Daemons of all versions do.
const OTHER_VERSION: &str = "the daemon speaks version";
/// So begins what a daemon says of a request that it does not understand. Daemons of all versions do.
const NOT_A_REQUEST: &str = "not a request of dsfs";
/// Longest line in bytes: a report that names some ten thousand paths.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// Longest outcome in bytes: the report of a commit of some millions of files.
pub const ANSWER_BYTES_MAX: usize = 1 << 30;
/// How often a daemon that works on a request shows that it is alive.
pub const KEEPALIVE: Duration = Duration::from_secs(2);
/// Bytes of the hash in a socket's name, before they are written in hexadecimal.
const NAME_HASH_BYTES: usize = 8;
const NAME_SUFFIX: &str = ".sock";
// Whoever chooses the directory has to know whether a socket's path fits.
const _: () = assert!(2 * NAME_HASH_BYTES + NAME_SUFFIX.len() == directories::SOCKET_NAME_BYTES);

/// The socket of the daemon of a mount point.
#[must_use]
pub fn socket_path(runtime: &Path, mountpoint: &Path) -> PathBuf {
    let hash = Sha256::digest(mountpoint.as_os_str().as_encoded_bytes());
    runtime.join(format!("{}{NAME_SUFFIX}", HEXLOWER.encode(&hash[..NAME_HASH_BYTES])))
}
