//! From layers of text to one [`Config`]: the pure half of this module.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use crate::config::ClientSettings;
use crate::config::Config;
use crate::config::ConfigError;
use crate::config::Credentials;
use crate::config::Directories;
use crate::config::Layer;
use crate::config::RemoteSettings;
use crate::config::S3Settings;
use crate::config::Setting;
use crate::config::client;
use crate::config::layer::Source;
use crate::config::layer::SourceKind;
use crate::config::remote;
use crate::config::remote::RemoteUrl;
use crate::config::units;
use crate::name::RemotePrefix;

const DEFAULT_CACHE_LIMIT_BYTES: u64 = 20 << 30;
const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 256 << 20;
const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_LIST_TTL: Duration = Duration::from_secs(60);
/// Less than this and a single prefetch window would not fit.
const MEMORY_LIMIT_BYTES_MIN: u64 = 16 << 20;
/// Shorter, and a healthy server far away would be called dead.
const READ_TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Resolves all settings; `sources` with the highest first.
pub(super) fn resolve(
    sources: &[Source],
    file: Setting<PathBuf>,
    file_present: bool,
    profile: Option<Setting<String>>,
    directories: Directories,
) -> Result<Config, ConfigError> {
    let size = |key, field: fn(&Layer) -> Option<&String>, default, least| {
        parsed(sources, key, field, default, |text| {
            let bytes = units::parse_size(text)?;
            if bytes >= least {
                Ok(bytes)
            } else {
                Err(format!("{text:?} is less than {}", units::show_size(least)))
            }
        })
    };
    let switch = |key, field: fn(&Layer) -> Option<bool>| {
        let given =
            sources.iter().find_map(|s| field(&s.layer).map(|value| Setting::new(value, s.origin(key))));
        given.unwrap_or_else(|| Setting::default_of(false))
    };
    Ok(Config {
        file,
        file_present,
        profile,
        remote: remote_settings(sources)?,
        cache_dir: directory(sources, "cache-dir", |l| l.cache_dir.as_ref(), &directories.cache)?,
        cache_limit_bytes: size("cache-limit", |l| l.cache_limit.as_ref(), DEFAULT_CACHE_LIMIT_BYTES, 0)?,
        state_dir: directory(sources, "state-dir", |l| l.state_dir.as_ref(), &directories.state)?,
        memory_limit_bytes: size(
            "memory-limit",
            |l| l.memory_limit.as_ref(),
            DEFAULT_MEMORY_LIMIT_BYTES,
            MEMORY_LIMIT_BYTES_MIN,
        )?,
        list_ttl: parsed(
            sources,
            "list-ttl",
            |l| l.list_ttl.as_ref(),
            DEFAULT_LIST_TTL,
            units::parse_duration,
        )?,
        read_timeout: parsed(
            sources,
            "read-timeout",
            |l| l.read_timeout.as_ref(),
            DEFAULT_READ_TIMEOUT,
            |text| {
                let timeout = units::parse_duration(text)?;
                if timeout >= READ_TIMEOUT_MIN {
                    Ok(timeout)
                } else {
                    Err(format!("{text:?} is less than 100ms"))
                }
            },
        )?,
        read_only: switch("read-only", |l| l.read_only),
        allow_other: switch("allow-other", |l| l.allow_other),
        allow_replace: switch("allow-replace", |l| l.allow_replace),
        user: format!("uid {}", rustix::process::getuid().as_raw()),
        directories,
    })
}

/// The highest layer's text for a key, parsed.
pub(super) fn parsed<T>(
    sources: &[Source],
    key: &'static str,
    field: fn(&Layer) -> Option<&String>,
    default: T,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Setting<T>, ConfigError> {
    let Some((text, source)) = sources.iter().find_map(|s| field(&s.layer).map(|text| (text, s))) else {
        return Ok(Setting::default_of(default));
    };
    let origin = source.origin(key);
    match parse(text) {
        Ok(value) => Ok(Setting::new(value, origin)),
        Err(reason) => Err(ConfigError::BadValue { origin, reason }),
    }
}

/// A directory. The daemon does not run where the user typed the command, so it has to be absolute.
fn directory(
    sources: &[Source],
    key: &'static str,
    field: fn(&Layer) -> Option<&PathBuf>,
    default: &std::path::Path,
) -> Result<Setting<PathBuf>, ConfigError> {
    let Some((path, source)) = sources.iter().find_map(|s| field(&s.layer).map(|path| (path, s))) else {
        return Ok(Setting::default_of(default.to_owned()));
    };
    let origin = source.origin(key);
    if path.is_absolute() {
        Ok(Setting::new(path.clone(), origin))
    } else {
        Err(ConfigError::BadValue { origin, reason: format!("{} is not an absolute path", path.display()) })
    }
}

/// What one layer says about where the remote is.
enum Where {
    Bucket(Setting<String>),
    Directory(Setting<PathBuf>),
}

/// One layer with its URL taken apart.
struct Named {
    place: Option<Where>,
    prefix: Option<Setting<RemotePrefix>>,
    /// The place came as a URL, which names all of a remote: lower layers' prefixes belong to others.
    whole: bool,
}

fn named(source: &Source) -> Result<Named, ConfigError> {
    let layer = &source.layer;
    let conflict = |second, why| {
        Err(ConfigError::Conflict {
            first: Box::new(source.origin("remote")),
            second: source.origin(second),
            why,
        })
    };
    let bad = |key| move |reason: String| ConfigError::BadValue { origin: source.origin(key), reason };
    let prefix = layer
        .remote_prefix
        .as_ref()
        .map(|text| {
            let text = if text == "/" { "" } else { text };
            RemotePrefix::parse(text).map(|prefix| Setting::new(prefix, source.origin("remote-prefix")))
        })
        .transpose()
        .map_err(|err| bad("remote-prefix")(err.to_string()))?;
    let Some(url) = &layer.remote else {
        let place = match &layer.bucket {
            Some(bucket) => {
                remote::check_bucket(bucket).map_err(bad("bucket"))?;
                Some(Where::Bucket(Setting::new(bucket.clone(), source.origin("bucket"))))
            }
            None => None,
        };
        return Ok(Named { place, prefix, whole: false });
    };
    if layer.bucket.is_some() {
        return conflict("bucket", "the URL names the place already");
    }
    let origin = source.origin("remote");
    match RemoteUrl::parse(url).map_err(bad("remote"))? {
        RemoteUrl::S3 { prefix: Some(_), .. } if prefix.is_some() => {
            conflict("remote-prefix", "the URL names the prefix already")
        }
        RemoteUrl::S3 { bucket, prefix: of_url } => {
            let of_url = of_url.map(|value| Setting::new(value, origin.clone()));
            let place = Some(Where::Bucket(Setting::new(bucket, origin)));
            Ok(Named { place, prefix: of_url.or(prefix), whole: true })
        }
        // In the environment the two may have come from different people.
        RemoteUrl::Directory(_)
            if layer.endpoint.is_some() && !matches!(source.kind, SourceKind::Environment(_)) =>
        {
            conflict("endpoint", "a directory has no endpoint")
        }
        RemoteUrl::Directory(path) => {
            Ok(Named { place: Some(Where::Directory(Setting::new(path, origin))), prefix, whole: true })
        }
    }
}

fn remote_settings(sources: &[Source]) -> Result<RemoteSettings, ConfigError> {
    let mut place = None;
    let mut prefix = None;
    for source in sources {
        let named = named(source)?;
        prefix = prefix.or(named.prefix);
        if named.place.is_some() && place.is_none() {
            place = named.place;
        }
        if named.whole {
            break;
        }
    }
    let prefix_or = |text| {
        prefix.unwrap_or_else(|| {
            Setting::default_of(RemotePrefix::parse(text).expect("a constant that is a valid prefix"))
        })
    };
    match place {
        Some(Where::Directory(path)) => {
            let flags = sources.first().filter(|source| source.kind == SourceKind::Flags);
            if let Some(flags) = flags.filter(|flags| flags.layer.endpoint.is_some()) {
                return Err(ConfigError::Conflict {
                    first: Box::new(flags.origin("endpoint")),
                    second: path.origin,
                    why: "a directory has no endpoint",
                });
            }
            Ok(RemoteSettings::Directory { path, prefix: prefix_or("") })
        }
        Some(Where::Bucket(bucket)) => s3_settings(sources, bucket, prefix_or(remote::DEFAULT_PREFIX)),
        None => {
            let bucket = Setting::default_of(remote::DEFAULT_BUCKET.to_owned());
            s3_settings(sources, bucket, prefix_or(remote::DEFAULT_PREFIX))
        }
    }
}

fn s3_settings(
    sources: &[Source],
    bucket: Setting<String>,
    prefix: Setting<RemotePrefix>,
) -> Result<RemoteSettings, ConfigError> {
    let endpoint = parsed(sources, "endpoint", |l| l.endpoint.as_ref(), None, remote::parse_endpoint)?;
    let region = parsed(
        sources,
        "region",
        |l| l.region.as_ref(),
        remote::DEFAULT_REGION.to_owned(),
        |text| Ok(text.to_owned()),
    )?;
    let client = client_settings(sources, endpoint.value.is_some())?;
    Ok(RemoteSettings::S3(Box::new(S3Settings {
        bucket,
        endpoint,
        region,
        prefix,
        credentials: credentials(sources)?,
        client,
    })))
}

/// As [`client::resolve`], once it is known that there is an endpoint for what needs one.
fn client_settings(sources: &[Source], has_endpoint: bool) -> Result<ClientSettings, ConfigError> {
    let settings = client::resolve(sources)?;
    if settings.host_header.value.is_some() && !has_endpoint {
        let reason = "AWS itself takes no other host; set an endpoint, or leave this out".to_owned();
        return Err(ConfigError::BadValue { origin: settings.host_header.origin, reason });
    }
    Ok(settings)
}

/// Who asks: as `credentials` says, or by what is there.
fn credentials(sources: &[Source]) -> Result<Setting<Credentials>, ConfigError> {
    let kind = sources.iter().find_map(|source| Some((source.layer.credentials.as_deref()?, source)));
    let Some((kind, source)) = kind else { return found_credentials(sources) };
    let origin = source.origin("credentials");
    let bad = |origin, reason: &str| Err(ConfigError::BadValue { origin, reason: reason.to_owned() });
    match kind {
        "auto" => found_credentials(sources),
        "anonymous" => Ok(Setting::new(Credentials::Anonymous, origin)),
        "environment" => {
            for source in sources.iter().filter(|s| matches!(s.kind, SourceKind::Environment(_))) {
                if let Some(keys) = keys_of(source)? {
                    return Ok(keys);
                }
            }
            bad(origin, "neither R2_ACCESS_KEY_ID nor AWS_ACCESS_KEY_ID is set")
        }
        "profile" => Ok(Setting::new(profile(sources), origin)),
        "ecs" => Ok(Setting::new(Credentials::Ecs, origin)),
        "imds" => {
            let endpoint = sources.iter().find_map(|source| source.layer.imds_endpoint.clone());
            Ok(Setting::new(Credentials::Imds { endpoint }, origin))
        }
        other => Err(ConfigError::BadValue {
            origin,
            reason: format!("{other:?} is none of auto, anonymous, environment, profile, ecs, imds"),
        }),
    }
}

/// The highest layer that says anything decides: its key pair, its profile of AWS's files, or such a file.
/// Else AWS's own chain. The environment's `AWS_PROFILE` and files are left to that chain, which goes on
/// where the profile holds no keys.
fn found_credentials(sources: &[Source]) -> Result<Setting<Credentials>, ConfigError> {
    for source in sources {
        if let Some(keys) = keys_of(source)? {
            return Ok(keys);
        }
        let layer = &source.layer;
        let of_environment = matches!(source.kind, SourceKind::Environment(_));
        if let Some(name) = &layer.aws_profile {
            let credentials = if of_environment {
                Credentials::AwsChain { profile: Some(name.clone()) }
            } else {
                profile(sources)
            };
            return Ok(Setting::new(credentials, source.origin("aws-profile")));
        }
        for (key, file) in [
            ("aws-credentials-file", &layer.aws_credentials_file),
            ("aws-config-file", &layer.aws_config_file),
        ] {
            if file.is_some() && !of_environment {
                return Ok(Setting::new(profile(sources), source.origin(key)));
            }
        }
    }
    Ok(Setting::default_of(Credentials::AwsChain { profile: None }))
}

/// The key pair of one layer.
fn keys_of(source: &Source) -> Result<Option<Setting<Credentials>>, ConfigError> {
    let layer = &source.layer;
    let half = |present, missing| Err(ConfigError::HalfKey { present: source.origin(present), missing });
    match (&layer.access_key_id, &layer.secret_access_key) {
        (Some(id), Some(secret)) => {
            let keys = Credentials::Keys {
                access_key_id: id.clone(),
                secret_access_key: secret.clone(),
                session_token: layer.session_token.clone(),
            };
            Ok(Some(Setting::new(keys, source.origin("access-key-id"))))
        }
        (Some(_), None) => half("access-key-id", "its secret access key"),
        (None, Some(_)) => half("secret-access-key", "its access key id"),
        (None, None) => Ok(None),
    }
}

/// A profile of AWS's files, each part from the highest layer that names it. A daemon reads the files again
/// when it is somewhere else.
fn profile(sources: &[Source]) -> Credentials {
    let file = |of: fn(&Layer) -> Option<&PathBuf>| {
        let path = sources.iter().find_map(|source| of(&source.layer))?;
        Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    };
    Credentials::Profile {
        name: sources.iter().find_map(|source| source.layer.aws_profile.clone()),
        config_file: file(|layer| layer.aws_config_file.as_ref()),
        credentials_file: file(|layer| layer.aws_credentials_file.as_ref()),
    }
}
