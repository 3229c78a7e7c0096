//! From layers of text to one [`Config`]: the pure half of this module.

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
    let endpoint = parsed(
        sources,
        "endpoint",
        |l| l.endpoint.as_ref(),
        None,
        |text| remote::normalize_endpoint(text).map(Some),
    )?;
    let region = parsed(
        sources,
        "region",
        |l| l.region.as_ref(),
        remote::DEFAULT_REGION.to_owned(),
        |text| Ok(text.to_owned()),
    )?;
    Ok(RemoteSettings::S3(Box::new(S3Settings {
        bucket,
        endpoint,
        region,
        prefix,
        credentials: credentials(sources)?,
        client: client_settings(sources)?,
    })))
}

/// As [`client::resolve`], once it is known that there is an endpoint for what needs one.
fn client_settings(sources: &[Source]) -> Result<ClientSettings, ConfigError> {
    let settings = client::resolve(sources)?;
    let has_endpoint = sources.iter().any(|source| source.layer.endpoint.is_some());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::Origin;
    use crate::config::Place;
    use crate::config::Secret;
    use crate::config::layer;

    struct Given<'a> {
        flags: &'a [(&'a str, &'a str)],
        env: &'a [(&'a str, &'a str)],
        file: &'a str,
    }

    const NOTHING: Given<'_> = Given { flags: &[], env: &[], file: "" };

    fn resolved(given: &Given<'_>) -> Result<Config, ConfigError> {
        let mut flags = Layer::default();
        for (key, value) in given.flags {
            let value = Some((*value).to_owned());
            match *key {
                "remote" => flags.remote = value,
                "bucket" => flags.bucket = value,
                "endpoint" => flags.endpoint = value,
                "region" => flags.region = value,
                "remote-prefix" => flags.remote_prefix = value,
                "cache-limit" => flags.cache_limit = value,
                other => panic!("{other}"),
            }
        }
        let mut sources = vec![
            Source { layer: flags, kind: SourceKind::Flags },
            layer::of_environment(&Environment::from_pairs(given.env)),
        ];
        let layer = toml::from_str(given.file).unwrap();
        sources.push(Source { layer, kind: SourceKind::File { path: "/c.toml".into(), profile: None } });
        let directories = Directories::find(&Environment::from_pairs(&[("HOME", "/home/u")]), 7).unwrap();
        resolve(&sources, Setting::default_of("/c.toml".into()), true, None, directories)
    }

    fn remote_of(given: &Given<'_>) -> String {
        resolved(given).unwrap_or_else(|err| panic!("{err}")).remote.remote().to_string()
    }

    #[test]
    fn precedence_is_flag_environment_file_default() {
        let region = |given: &Given<'_>| match resolved(given).unwrap().remote {
            RemoteSettings::S3(s3) => (s3.region.value, s3.region.origin.to_string()),
            RemoteSettings::Directory { .. } => panic!("is a bucket"),
        };
        let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
        let file = "region = 'f'";
        let env = [("AWS_DEFAULT_REGION", "d"), ("AWS_REGION", "a"), ("R2_REGION_NAME", "r")];
        let flags = [("region", "flag")];
        assert_eq!(region(&NOTHING), pair("auto", "default"));
        assert_eq!(region(&Given { file, ..NOTHING }), pair("f", "/c.toml region"));
        assert_eq!(
            region(&Given { file, env: &env[..1], ..NOTHING }),
            pair("d", "environment AWS_DEFAULT_REGION")
        );
        assert_eq!(region(&Given { file, env: &env[..2], ..NOTHING }), pair("a", "environment AWS_REGION"));
        assert_eq!(region(&Given { file, env: &env, ..NOTHING }), pair("r", "environment R2_REGION_NAME"));
        assert_eq!(region(&Given { file, env: &env, flags: &flags }), pair("flag", "flag --region"));
    }

    #[test]
    fn endpoints_of_the_environment_are_taken_in_order() {
        let endpoint = |env: &[(&str, &str)]| match resolved(&Given { env, ..NOTHING }).unwrap().remote {
            RemoteSettings::S3(s3) => s3.endpoint.value.unwrap_or_default(),
            RemoteSettings::Directory { .. } => panic!("is a bucket"),
        };
        let env =
            [("AWS_ENDPOINT_URL", "http://c"), ("R2_ENDPOINT_URL", "http://b"), ("R2_ENDPOINT", "http://a")];
        assert_eq!(endpoint(&env), "http://a");
        assert_eq!(endpoint(&env[..2]), "http://b");
        assert_eq!(endpoint(&env[..1]), "http://c");
        assert_eq!(endpoint(&[("R2_ENDPOINT", "")]), "", "empty counts as unset");
    }

    #[test]
    fn remotes_are_put_together_from_all_layers() {
        let e = ("endpoint", "http://h");
        let cases: [(Given<'_>, &str); 9] = [
            (Given { flags: &[e], ..NOTHING }, "s3://assets/datasets/ at http://h"),
            (
                Given { flags: &[e], env: &[("R2_BUCKET", "lab")], file: "bucket = 'file'" },
                "s3://lab/datasets/ at http://h",
            ),
            (
                Given { flags: &[e, ("bucket", "mine")], env: &[("R2_BUCKET", "lab")], ..NOTHING },
                "s3://mine/datasets/ at http://h",
            ),
            (
                Given { flags: &[e, ("remote", "s3://mine")], file: "remote-prefix = 'x/'", ..NOTHING },
                "s3://mine/datasets/ at http://h",
            ),
            (Given { flags: &[e, ("remote", "s3://mine/")], ..NOTHING }, "s3://mine/ at http://h"),
            (Given { flags: &[e, ("remote-prefix", "/")], ..NOTHING }, "s3://assets/ at http://h"),
            (
                Given { flags: &[e, ("bucket", "mine")], file: "remote = 's3://lab/x/'", ..NOTHING },
                "s3://mine/x/ at http://h",
            ),
            (
                Given {
                    flags: &[("remote", "file:///nas")],
                    env: &[("R2_ENDPOINT", "http://h"), ("R2_BUCKET", "lab")],
                    file: "remote-prefix = 'x'",
                },
                "file:///nas/",
            ),
            (
                Given { flags: &[("remote-prefix", "y")], file: "remote = 'file:///nas'", ..NOTHING },
                "file:///nas/y/",
            ),
        ];
        for (given, expected) in &cases {
            assert_eq!(remote_of(given), *expected, "{:?} {:?} {:?}", given.flags, given.env, given.file);
        }
    }

    #[test]
    fn contradictions_within_a_layer_name_both_settings() {
        let error = |given: &Given<'_>| resolved(given).unwrap_err().to_string();
        let url = ("remote", "s3://lab/x/");
        for (other, value) in [("bucket", "lab"), ("remote-prefix", "x/")] {
            let text = error(&Given { flags: &[url, (other, value)], ..NOTHING });
            assert!(text.contains("--remote") && text.contains(&format!("--{other}")), "{text}");
        }
        let file = "remote = 'file:///nas'\nendpoint = 'http://h'";
        assert!(error(&Given { file, ..NOTHING }).contains("/c.toml endpoint"));
        let across =
            error(&Given { flags: &[("endpoint", "http://h")], file: "remote = 'file:///nas'", ..NOTHING });
        assert!(across.contains("--endpoint") && across.contains("/c.toml remote"), "{across}");
        // A bare bucket leaves the prefix open.
        let given = Given {
            flags: &[("remote", "s3://lab"), ("remote-prefix", "x/"), ("endpoint", "http://h")],
            ..NOTHING
        };
        assert_eq!(remote_of(&given), "s3://lab/x/ at http://h");
    }

    #[test]
    fn bad_values_name_their_origin() {
        let error = |given: &Given<'_>| resolved(given).unwrap_err().to_string();
        assert!(
            error(&Given { flags: &[("cache-limit", "much")], ..NOTHING })
                .starts_with("flag --cache-limit: ")
        );
        assert!(
            error(&Given { file: "memory-limit = '1KiB'", ..NOTHING }).starts_with("/c.toml memory-limit: ")
        );
        assert!(
            error(&Given { env: &[("R2_ENDPOINT", "host")], ..NOTHING })
                .starts_with("environment R2_ENDPOINT: ")
        );
        assert!(error(&Given { file: "cache-dir = 'here'", ..NOTHING }).contains("absolute"));
        assert!(
            error(&Given { flags: &[("remote-prefix", "a//b")], ..NOTHING })
                .starts_with("flag --remote-prefix")
        );
    }

    #[test]
    fn keys_come_from_the_highest_layer_that_has_some_and_are_never_printed() {
        let credentials = |given: &Given<'_>| match resolved(given).unwrap().remote {
            RemoteSettings::S3(s3) => s3.credentials,
            RemoteSettings::Directory { .. } => panic!("is a bucket"),
        };
        let file = "access-key-id = 'f'\nsecret-access-key = 'hush'";
        let env = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "hush")];
        let of_file = credentials(&Given { file, ..NOTHING });
        let keys = Credentials::Keys {
            access_key_id: "f".into(),
            secret_access_key: Secret::new("hush".into()),
            session_token: None,
        };
        assert_eq!(of_file.value, keys);
        assert!(!format!("{of_file:?}").contains("hush"));
        assert_eq!(
            credentials(&Given { file, env: &env, ..NOTHING }).origin,
            Origin::Environment("AWS_ACCESS_KEY_ID")
        );
        assert_eq!(credentials(&NOTHING).value, Credentials::AwsChain { profile: None });
        let half = [("R2_ACCESS_KEY_ID", "r")];
        assert!(matches!(resolved(&Given { env: &half, ..NOTHING }), Err(ConfigError::HalfKey { .. })));
        // A directory asks for no keys.
        assert!(resolved(&Given { env: &half, flags: &[("remote", "file:///nas")], ..NOTHING }).is_ok());
    }

    #[test]
    fn without_an_endpoint_only_a_bucket_that_was_named_is_looked_for_at_aws() {
        let remote = |given: &Given<'_>| resolved(given).unwrap().remote;
        assert!(matches!(remote(&NOTHING).check_reachable_in_principle(), Err(ConfigError::NoEndpoint)));
        for flags in [&[("region", "eu-central-1")], &[("bucket", "lab")]] {
            let aws = remote(&Given { flags, ..NOTHING });
            assert!(aws.check_reachable_in_principle().is_ok());
            assert!(matches!(aws.remote().place, Place::S3 { endpoint: None, .. }));
        }
    }

    #[test]
    fn the_kind_of_credentials_can_be_chosen() {
        let of = |env: &[(&str, &str)], file| match resolved(&Given { env, file, ..NOTHING })?.remote {
            RemoteSettings::S3(s3) => Ok::<_, ConfigError>(s3.credentials.value),
            RemoteSettings::Directory { .. } => panic!("is a bucket"),
        };
        let keys = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s")];
        assert_eq!(of(&keys, "credentials = 'anonymous'").unwrap(), Credentials::Anonymous);
        assert!(matches!(of(&keys, "credentials = 'environment'").unwrap(), Credentials::Keys { .. }));
        let of_file = "credentials = 'environment'\naccess-key-id = 'f'\nsecret-access-key = 'g'";
        assert!(of(&[], of_file).unwrap_err().to_string().contains("AWS_ACCESS_KEY_ID"));
        assert_eq!(of(&keys, "credentials = 'ecs'").unwrap(), Credentials::Ecs);
        let imds = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://h")];
        let endpoint = Some("http://h".to_owned());
        assert_eq!(of(&imds, "credentials = 'imds'").unwrap(), Credentials::Imds { endpoint });
        let profile = |name: Option<&str>, file: Option<&str>| Credentials::Profile {
            name: name.map(str::to_owned),
            config_file: None,
            credentials_file: file.map(Into::into),
        };
        assert_eq!(of(&[], "aws-profile = 'lab'").unwrap(), profile(Some("lab"), None));
        assert_eq!(of(&[], "aws-credentials-file = '/k'").unwrap(), profile(None, Some("/k")));
        let both = [("AWS_PROFILE", "lab"), ("AWS_SHARED_CREDENTIALS_FILE", "/k")];
        assert_eq!(of(&both, "credentials = 'profile'").unwrap(), profile(Some("lab"), Some("/k")));
        assert_eq!(of(&both, "").unwrap(), Credentials::AwsChain { profile: Some("lab".into()) });
        assert!(of(&[], "credentials = 'magic'").unwrap_err().to_string().contains("anonymous"));
        let here = std::path::absolute("k").unwrap();
        assert_eq!(of(&[], "aws-credentials-file = 'k'").unwrap(), profile(None, here.to_str()));
        assert!(of(&[], "host-header = 'h'").unwrap_err().to_string().contains("endpoint"));
    }
}
