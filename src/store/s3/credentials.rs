//! Who asks: from a choice of the user to a provider of the SDK's.
//!
//! Keys that carry no expiry of their own (a profile's, a file's) are read again after
//! [`REREAD_AFTER`], so that new ones are taken up by a mount that runs for months. What expires
//! (a role's, a container's, an instance's) the SDK renews before it does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_runtime::env_config::file::EnvConfigFileKind;
use aws_runtime::env_config::file::EnvConfigFiles;

use crate::clock::Clock;
use crate::clock::SystemClock;

/// How long keys without an expiry are used before their source is read again.
const REREAD_AFTER: Duration = Duration::from_secs(60);

/// A key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Keys {
    /// The public half.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: String,
    /// For temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Keys(redacted)")
    }
}

/// Reads a key pair again: `None` leaves the last one in force.
pub type KeySource = Arc<dyn Fn() -> Option<S3Keys> + Send + Sync>;

/// Who asks.
#[derive(Clone)]
pub enum S3Credentials {
    /// A key pair, as R2 and MinIO give them out.
    Static(S3Keys),
    /// A key pair that can be read again where it came from.
    Renewed(S3Keys, KeySource),
    /// Nobody: requests are not signed. Public buckets only.
    Anonymous,
    /// What the AWS tools would use: environment, profile files, web identity, container, instance.
    DefaultChain,
    /// A profile of AWS's shared files, and nothing else.
    Profile {
        /// The profile, instead of `AWS_PROFILE` or `default`.
        name: Option<String>,
        /// Instead of `AWS_CONFIG_FILE` or `~/.aws/config`.
        config_file: Option<PathBuf>,
        /// Instead of `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`.
        credentials_file: Option<PathBuf>,
    },
    /// The container's endpoint, as the environment names it.
    Ecs,
    /// The instance metadata service (version 2).
    Imds {
        /// Its URL, instead of the usual one.
        endpoint: Option<String>,
    },
}

impl S3Credentials {
    /// A key pair that never changes.
    #[must_use]
    pub fn keys(access_key_id: &str, secret_access_key: &str) -> Self {
        Self::Static(S3Keys {
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
            session_token: None,
        })
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(_) => f.write_str("Static(redacted)"),
            Self::Renewed(..) => f.write_str("Renewed(redacted)"),
            Self::Anonymous => f.write_str("Anonymous"),
            Self::DefaultChain => f.write_str("DefaultChain"),
            Self::Profile { name, config_file, credentials_file } => {
                write!(f, "Profile({name:?}, {config_file:?}, {credentials_file:?})")
            }
            Self::Ecs => f.write_str("Ecs"),
            Self::Imds { endpoint } => write!(f, "Imds({endpoint:?})"),
        }
    }
}

/// The provider; `None` for requests that are not signed.
pub(super) fn provider(
    credentials: &S3Credentials,
    config: &ProviderConfig,
) -> Option<SharedCredentialsProvider> {
    let provider = match credentials {
        S3Credentials::Anonymous => return None,
        S3Credentials::Static(keys) => SharedCredentialsProvider::new(sdk_keys(keys)),
        S3Credentials::Ecs => {
            SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(config).build())
        }
        S3Credentials::Imds { endpoint } => {
            let mut client = imds::Client::builder().configure(config);
            if let Some(endpoint) = endpoint {
                client = match client.endpoint(endpoint) {
                    Ok(client) => client,
                    Err(err) => return Some(SharedCredentialsProvider::new(Unusable(err.to_string()))),
                };
            }
            SharedCredentialsProvider::new(
                ImdsCredentialsProvider::builder().configure(config).imds_client(client.build()).build(),
            )
        }
        S3Credentials::Renewed(..) | S3Credentials::DefaultChain | S3Credentials::Profile { .. } => {
            SharedCredentialsProvider::new(Reread {
                credentials: credentials.clone(),
                config: config.clone(),
            })
        }
    };
    Some(provider)
}

fn sdk_keys(keys: &S3Keys) -> Credentials {
    Credentials::from_keys(&keys.access_key_id, &keys.secret_access_key, keys.session_token.clone())
}

/// A provider that was misconfigured: every request says in what way.
#[derive(Debug)]
struct Unusable(String);

impl ProvideCredentials for Unusable {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::invalid_configuration(self.0.clone())))
    }
}

/// Reads files anew whenever it is asked, which the SDK's cache does when the last answer has expired.
#[derive(Debug)]
struct Reread {
    credentials: S3Credentials,
    config: ProviderConfig,
}

impl Reread {
    async fn read(&self) -> Result<Credentials, CredentialsError> {
        let mut found = match &self.credentials {
            S3Credentials::Renewed(first, source) => {
                let source = Arc::clone(source);
                let again = tokio::task::spawn_blocking(move || source()).await;
                sdk_keys(&again.ok().flatten().unwrap_or_else(|| first.clone()))
            }
            S3Credentials::Profile { name, config_file, credentials_file } => {
                let mut files = EnvConfigFiles::builder();
                files = match config_file {
                    Some(path) => files.with_file(EnvConfigFileKind::Config, path),
                    None => files.include_default_config_file(true),
                };
                files = match credentials_file {
                    Some(path) => files.with_file(EnvConfigFileKind::Credentials, path),
                    None => files.include_default_credentials_file(true),
                };
                let mut profile = ProfileFileCredentialsProvider::builder()
                    .configure(&self.config)
                    .profile_files(files.build());
                if let Some(name) = name {
                    profile = profile.profile_name(name);
                }
                profile.build().provide_credentials().await?
            }
            S3Credentials::Static(_)
            | S3Credentials::Anonymous
            | S3Credentials::DefaultChain
            | S3Credentials::Ecs
            | S3Credentials::Imds { .. } => {
                let chain = DefaultCredentialsChain::builder().configure(self.config.clone()).build().await;
                chain.provide_credentials().await?
            }
        };
        if found.expiry().is_none() {
            *found.expiry_mut() = Some(SystemClock.now() + REREAD_AFTER);
        }
        Ok(found)
    }
}

impl ProvideCredentials for Reread {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.read())
    }
}
