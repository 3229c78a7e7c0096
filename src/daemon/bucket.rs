//! From the settings of a bucket to the options of its client.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::config::Credentials;
use crate::config::Origin;
use crate::config::S3Settings;
use crate::config::client::Addressing;
use crate::config::client::ConditionalWrites;
use crate::config::client::Proxy;
use crate::config::layer;
use crate::config::remote::DEFAULT_REGION;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::store::guarantee::Guarantee;
use crate::store::rate::RateOptions;
use crate::store::retry::RetryOptions;
use crate::store::s3::CaBundle;
use crate::store::s3::KeySource;
use crate::store::s3::S3Credentials;
use crate::store::s3::S3Keys;
use crate::store::s3::S3Options;
use crate::store::s3::S3Proxy;

/// How the bucket is reached.
///
/// # Errors
/// The CA bundle cannot be read, or is none.
pub fn client_options(settings: &S3Settings) -> Result<S3Options, Failure> {
    let client = &settings.client;
    let endpoint = settings.endpoint.value.as_deref();
    let ca_bundle = match &client.ca_bundle.value {
        Some(path) => Some(ca_bundle(path, &client.ca_bundle.origin)?),
        None => None,
    };
    Ok(S3Options {
        find_region: endpoint.is_none() && settings.region.value == DEFAULT_REGION,
        path_style: match client.addressing.value {
            Addressing::Auto => None,
            Addressing::Path => Some(true),
            Addressing::VirtualHost => Some(false),
        },
        host_header: client.host_header.value.clone(),
        requester_pays: client.requester_pays.value,
        conditional_writes: client.conditional_writes.value != ConditionalWrites::Off,
        ca_bundle,
        proxy: match &client.proxy.value {
            Proxy::Environment => S3Proxy::Environment,
            Proxy::Direct => S3Proxy::Direct,
            Proxy::Url(url) => S3Proxy::Url(url.clone()),
        },
        connect_timeout: client.connect_timeout.value,
        request_timeout: client.request_timeout.value,
        ..S3Options::new(&settings.bucket.value, endpoint, &settings.region.value, credentials(settings))
    })
}

/// How often, how many at once and how fast the bucket is asked.
#[must_use]
pub fn retry_options(settings: &S3Settings) -> RetryOptions {
    let client = &settings.client;
    RetryOptions {
        attempts_max: client.retries.value.saturating_add(1),
        backoff_base: client.retry_initial_delay.value,
        backoff_max: client.retry_max_delay.value,
        attempt_timeout: client.request_timeout.value,
        deadline: client.retry_timeout.value,
        requests_max: client.request_concurrency.value,
        rate: RateOptions {
            reads_per_second: client.read_rate.value,
            writes_per_second: client.write_rate.value,
            doubling_time: client.rate_doubling_time.value,
        },
    }
}

/// What the user says that the server enforces; `None` leaves it to the probe.
#[must_use]
pub fn assumed_guarantee(settings: &S3Settings) -> Option<Guarantee> {
    match settings.client.conditional_writes.value {
        ConditionalWrites::Auto => None,
        ConditionalWrites::On => Some(Guarantee::Enforced),
        ConditionalWrites::Off => Some(Guarantee::BestEffort),
    }
}

fn ca_bundle(path: &Path, origin: &Origin) -> Result<CaBundle, Failure> {
    let failure = |reason: String| {
        Failure::new(FailureKind::Usage, format!("the CA bundle {} {reason}", path.display()))
            .hint(format!("it comes from: {origin}"))
    };
    let pem = fs::read(path).map_err(|err| failure(format!("cannot be read: {err}")))?;
    CaBundle::parse(&pem).map_err(failure)
}

fn credentials(settings: &S3Settings) -> S3Credentials {
    match &settings.credentials.value {
        Credentials::Keys { access_key_id, secret_access_key, session_token } => {
            let keys = S3Keys {
                access_key_id: access_key_id.clone(),
                secret_access_key: secret_access_key.expose().to_owned(),
                session_token: session_token.as_ref().map(|token| token.expose().to_owned()),
            };
            match &settings.credentials.origin {
                Origin::File { path, profile, .. } => {
                    S3Credentials::Renewed(keys, source_of_file(Arc::clone(path), profile.clone()))
                }
                Origin::Flag(_) | Origin::Environment(_) | Origin::Default => S3Credentials::Static(keys),
            }
        }
        Credentials::AwsChain { .. } => S3Credentials::DefaultChain,
        Credentials::Profile { name, config_file, credentials_file } => S3Credentials::Profile {
            name: name.clone(),
            config_file: config_file.clone(),
            credentials_file: credentials_file.clone(),
        },
        Credentials::Ecs => S3Credentials::Ecs,
        Credentials::Imds { endpoint } => S3Credentials::Imds { endpoint: endpoint.clone() },
        Credentials::Anonymous => S3Credentials::Anonymous,
    }
}

/// Reads the keys of the configuration file again; what is being edited just now changes nothing.
fn source_of_file(path: Arc<Path>, profile: Option<Arc<str>>) -> KeySource {
    Arc::new(move || match layer::keys_of_file(&path, profile.as_deref()) {
        Ok(keys) => keys.map(|(access_key_id, secret, token)| S3Keys {
            access_key_id,
            secret_access_key: secret.expose().to_owned(),
            session_token: token.map(|token| token.expose().to_owned()),
        }),
        Err(err) => {
            tracing::warn!("the keys of {} cannot be read again: {err}", path.display());
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::config::Environment;
    use crate::config::Layer;
    use crate::config::RemoteSettings;
    use crate::config::Selection;

    fn settings(flags: Layer, env: &[(&str, &str)]) -> S3Settings {
        let env = Environment::from_pairs(&[&[("HOME", "/nonexistent")], env].concat());
        match Config::load(flags, Selection::default(), &env).unwrap().remote {
            RemoteSettings::S3(s3) => *s3,
            RemoteSettings::Directory { .. } => panic!("is a bucket"),
        }
    }

    #[test]
    fn what_was_set_is_what_is_used() {
        let flags = Layer {
            retries: Some("4".into()),
            retry_max_delay: Some("3s".into()),
            read_rate: Some("5".into()),
            request_timeout: Some("7s".into()),
            conditional_writes: Some("off".into()),
            bucket: Some("lab".into()),
            ..Layer::default()
        };
        let settings = settings(flags, &[("TENSORSTORE_S3_REQUEST_CONCURRENCY", "4")]);
        let retry = retry_options(&settings);
        assert_eq!((retry.attempts_max, retry.requests_max), (5, 4), "the first attempt is no retry");
        assert_eq!(retry.backoff_max, Duration::from_secs(3));
        assert_eq!(retry.rate.reads_per_second, Some(5.0));
        let client = client_options(&settings).unwrap();
        assert!(client.find_region, "no endpoint, no region");
        assert!(!client.conditional_writes);
        assert_eq!(client.request_timeout, Duration::from_secs(7));
        assert_eq!(assumed_guarantee(&settings), Some(Guarantee::BestEffort));
    }

    #[test]
    fn keys_of_a_file_are_read_again_where_they_came_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let write = |secret: &str| {
            let text = format!("[profile.lab]\naccess-key-id = 'k'\nsecret-access-key = '{secret}'\n");
            crate::durable::replace(&path, text.as_bytes()).unwrap();
        };
        write("old");
        let source = source_of_file(path.as_path().into(), Some("lab".into()));
        assert_eq!(source().unwrap().secret_access_key, "old");
        write("new");
        assert_eq!(source().unwrap().secret_access_key, "new");
        fs::write(&path, "[profile.lab\n").unwrap();
        assert!(source().is_none(), "half a file is no reason to lose the keys");
    }
}
