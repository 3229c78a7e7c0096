//! Settings: from flags, environment and `config.toml` to one validated [`Config`].
//!
//! Precedence, highest first: flag, environment, the profile's table of `config.toml`, the top of
//! `config.toml`, default. Each resolved value keeps its [`Origin`], which `dsfs config` shows and error
//! messages name. Secrets are of a type that cannot be printed.
//!
//! This is the only module that reads the environment, and it does so once. It knows no command, no
//! store and no mount; the pure half ([`resolve`]) is a function of its arguments.
//!
//! # Which remote
//!
//! `remote` is a URL that names all of it; `bucket`, `endpoint`, `region` and `remote-prefix` name one
//! thing each. Within one layer `remote` and a setting that it already holds contradict each other, and
//! that is an error. Across layers the higher one wins; a URL hides bucket and prefix of the layers below.

pub mod client;
pub mod directories;
pub mod environment;
pub mod layer;
pub mod remote;
mod resolve;
pub mod setting;
pub mod units;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use crate::config::client::ClientSettings;
pub use crate::config::directories::Directories;
pub use crate::config::environment::Environment;
pub use crate::config::layer::Layer;
pub use crate::config::layer::Selection;
pub use crate::config::remote::Credentials;
pub use crate::config::remote::Place;
pub use crate::config::remote::Remote;
pub use crate::config::setting::Origin;
pub use crate::config::setting::Secret;
pub use crate::config::setting::Setting;
use crate::name::RemotePrefix;

/// Disk space that the cache leaves free, in bytes: staging on the same disk needs room.
pub const CACHE_RESERVE_BYTES: u64 = 1 << 30;

/// Everything that can be set, resolved and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The configuration file that was looked for, and whether it was there.
    pub file: Setting<PathBuf>,
    /// Whether that file exists.
    pub file_present: bool,
    /// The profile in force.
    pub profile: Option<Setting<String>>,
    /// Where the remote is.
    pub remote: RemoteSettings,
    /// Where cached blocks go.
    pub cache_dir: Setting<PathBuf>,
    /// How much of them to keep, in bytes.
    pub cache_limit_bytes: Setting<u64>,
    /// Where staged files go.
    pub state_dir: Setting<PathBuf>,
    /// How much file data may be in memory, in bytes.
    pub memory_limit_bytes: Setting<u64>,
    /// How long a read waits for the remote.
    pub read_timeout: Setting<Duration>,
    /// How long a listing counts as the truth, before the remote is asked again.
    pub list_ttl: Setting<Duration>,
    /// Mount without a way to write.
    pub read_only: Setting<bool>,
    /// Let other users in.
    pub allow_other: Setting<bool>,
    /// Let published files be staged for replacement.
    pub allow_replace: Setting<bool>,
    /// The user's name, for commit records.
    pub user: String,
    /// The base directories.
    pub directories: Directories,
}

/// The settings of a remote; a directory has no endpoint, region or credentials.
#[derive(Clone, Debug, PartialEq)]
pub enum RemoteSettings {
    /// A bucket.
    S3(Box<S3Settings>),
    /// A directory.
    Directory {
        /// The directory.
        path: Setting<PathBuf>,
        /// Where in it the datasets are.
        prefix: Setting<RemotePrefix>,
    },
}

/// The settings of a bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: Setting<String>,
    /// The server; `None` for AWS itself.
    pub endpoint: Setting<Option<String>>,
    /// The region to sign for; `auto` at AWS itself is found out from the bucket.
    pub region: Setting<String>,
    /// What all keys begin with.
    pub prefix: Setting<RemotePrefix>,
    /// How requests are signed.
    pub credentials: Setting<Credentials>,
    /// How requests are made.
    pub client: ClientSettings,
}

impl RemoteSettings {
    /// The remote without the origins.
    #[must_use]
    pub fn remote(&self) -> Remote {
        match self {
            Self::S3(s3) => Remote {
                place: Place::S3 {
                    endpoint: s3.endpoint.value.clone(),
                    region: s3.region.value.clone(),
                    bucket: s3.bucket.value.clone(),
                },
                prefix: s3.prefix.value.clone(),
            },
            Self::Directory { path, prefix } => {
                Remote { place: Place::Directory(path.value.clone()), prefix: prefix.value.clone() }
            }
        }
    }
}

impl RemoteSettings {
    /// Checks what only a request would tell otherwise: that something can be connected to. A bucket that
    /// nobody named is not looked for at AWS, where the name belongs to a stranger, in whatever region.
    ///
    /// # Errors
    /// [`ConfigError::NoEndpoint`].
    pub fn check_reachable_in_principle(&self) -> Result<(), ConfigError> {
        match self {
            Self::S3(s3) if s3.endpoint.value.is_none() && s3.bucket.origin == Origin::Default => {
                Err(ConfigError::NoEndpoint)
            }
            Self::S3(_) | Self::Directory { .. } => Ok(()),
        }
    }
}

impl Config {
    /// Resolves the settings of this process.
    ///
    /// # Errors
    /// Whatever the user got wrong; see [`ConfigError`].
    pub fn load(flags: Layer, selection: Selection, env: &Environment) -> Result<Self, ConfigError> {
        let directories = Directories::find(env, rustix::process::getuid().as_raw())?;
        let by_environment = |name| if selection.is_final { None } else { env.first(&[name]) };
        let named = selection.file.map(|path| (path, Origin::Flag("--config")));
        let named = named
            .or_else(|| by_environment("DSFS_CONFIG").map(|(path, origin)| (PathBuf::from(path), origin)));
        let must_exist = named.is_some();
        let (path, origin) =
            named.unwrap_or_else(|| (directories.config.join("config.toml"), Origin::Default));
        // A daemon reads its keys again when it is somewhere else.
        let path = std::path::absolute(&path).unwrap_or(path);
        let profile = selection.profile.map(|name| (name, Origin::Flag("--profile")));
        let profile = profile.or_else(|| by_environment("DSFS_PROFILE"));
        let file = layer::of_file(&path, must_exist, profile)?;
        let mut sources =
            vec![layer::Source { layer: flags, kind: layer::SourceKind::Flags }, layer::of_environment(env)];
        let file_present = !file.sources.is_empty();
        sources.extend(file.sources);
        let profile = file.profile.map(|(name, origin)| Setting::new(name, origin));
        let config =
            resolve::resolve(&sources, Setting::new(path, origin), file_present, profile, directories)?;
        let user = env.get("USER").or(env.get("LOGNAME")).map(str::to_owned);
        Ok(Self { user: user.unwrap_or(config.user), ..config })
    }

    /// The directory of this remote's staging area, journals and log file.
    #[must_use]
    pub fn remote_state_dir(&self) -> PathBuf {
        self.state_dir.value.join(self.remote.remote().id())
    }
}

/// What a user got wrong about the settings.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    /// No directory can be found without it.
    #[error("the home directory is not known")]
    NoHome,
    /// The configuration file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The configuration file says something that dsfs does not understand.
    #[error("{}:{line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The configuration file holds a secret and everybody can read it.
    #[error("{} holds a secret, and its mode {mode:04o} lets others read it", path.display())]
    SecretsReadable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A profile was asked for that the file does not have.
    #[error("{} has no profile {name:?} ({origin})", path.display())]
    NoProfile {
        /// The profile.
        name: String,
        /// Who asked for it.
        origin: Origin,
        /// The file.
        path: Arc<Path>,
        /// The profiles that it has.
        known: Vec<String>,
    },
    /// One half of a key pair.
    #[error("{present} is set without {missing}")]
    HalfKey {
        /// The half that is there.
        present: Origin,
        /// The name of the other.
        missing: &'static str,
    },
    /// Two settings of one layer say different things about the same.
    #[error("{first} and {second} contradict each other: {why}")]
    Conflict {
        /// One.
        first: Box<Origin>,
        /// The other.
        second: Origin,
        /// In what way.
        why: &'static str,
    },
    /// A value that cannot be.
    #[error("{origin}: {reason}")]
    BadValue {
        /// Where it came from.
        origin: Origin,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to connect to.
    #[error("neither an endpoint nor a bucket is set")]
    NoEndpoint,
}

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoHome => Some("set HOME".into()),
            Self::SecretsReadable { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::NoProfile { known, .. } if known.is_empty() => {
                Some("add a table [profile.NAME] to that file".into())
            }
            Self::NoProfile { known, .. } => Some(format!("it has: {}", known.join(", "))),
            Self::HalfKey { missing, .. } => Some(format!("set {missing} in the same place, or neither")),
            Self::Conflict { .. } => Some("give only one of them".into()),
            Self::NoEndpoint => Some(
                "--endpoint https://ACCOUNT.r2.cloudflarestorage.com (or your server's URL), --bucket alone for AWS, \
                 or --remote file:///dir/ for a directory; `dsfs demo` needs none of them"
                    .into(),
            ),
            Self::Unreadable { .. } | Self::Malformed { .. } | Self::BadValue { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_named_from_here_is_found_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lab.toml");
        crate::durable::replace(&file, b"access-key-id = 'k'\nsecret-access-key = 's'\n").unwrap();
        let up = std::env::current_dir().unwrap().components().skip(1).map(|_| "../").collect::<String>();
        let relative = PathBuf::from(up).join(file.strip_prefix("/").unwrap());
        assert!(relative.is_relative() && relative.exists());
        let by_flag = Selection { file: Some(relative.clone()), ..Selection::default() };
        let home = ("HOME", "/nonexistent");
        let by_name = Environment::from_pairs(&[home, ("DSFS_CONFIG", relative.to_str().unwrap())]);
        for (selection, env) in [(by_flag, Environment::from_pairs(&[home])), (Selection::default(), by_name)]
        {
            let config = Config::load(Layer::default(), selection, &env).unwrap();
            assert!(config.file.value.is_absolute(), "{}", config.file.value.display());
            let RemoteSettings::S3(s3) = config.remote else { panic!("is a bucket") };
            let Origin::File { path, .. } = s3.credentials.origin else { panic!("are in the file") };
            assert!(path.is_absolute(), "{}", path.display());
        }
    }
}
