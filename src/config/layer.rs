//! One layer of settings as somebody wrote them: the flags, the environment, or a table of the file.
//!
//! Values are still text here; `resolve` parses them, once it is known which of them counts, so that
//! an error can say where the bad one came from.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Deserializer;

use crate::config::ConfigError;
use crate::config::Environment;
use crate::config::Origin;
use crate::config::Secret;

/// Settings of one source. The field names are the keys of `config.toml` and, behind `--`, the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Layer {
    /// `s3://bucket/prefix/` or `file:///dir/`.
    pub remote: Option<String>,
    /// The bucket.
    pub bucket: Option<String>,
    /// The server's URL.
    pub endpoint: Option<String>,
    /// The region to sign for.
    pub region: Option<String>,
    /// What all keys begin with.
    pub remote_prefix: Option<String>,
    /// The public half of the key pair (not a flag).
    pub access_key_id: Option<String>,
    /// The secret half (not a flag: others could see it).
    pub secret_access_key: Option<Secret>,
    /// For temporary credentials (not a flag).
    pub session_token: Option<Secret>,
    /// Where credentials come from: `auto`, `anonymous`, `environment`, `profile`, `ecs` or `imds`.
    pub credentials: Option<String>,
    /// A profile of AWS's own files, for the credentials.
    pub aws_profile: Option<String>,
    /// AWS's file of profiles, instead of `~/.aws/config`.
    pub aws_config_file: Option<PathBuf>,
    /// AWS's file of keys, instead of `~/.aws/credentials`.
    pub aws_credentials_file: Option<PathBuf>,
    /// The URL of the instance metadata service.
    pub imds_endpoint: Option<String>,
    /// `auto`, `path` or `virtual-host`.
    pub addressing: Option<String>,
    /// Sent and signed as `Host`.
    pub host_header: Option<String>,
    /// Whether this side pays for the requests.
    pub requester_pays: Option<bool>,
    /// `auto`, `on` or `off`.
    #[serde(default, deserialize_with = "text")]
    pub conditional_writes: Option<String>,
    /// Certificates to trust beside the system's.
    pub ca_bundle: Option<PathBuf>,
    /// An HTTP proxy's URL, or `none`.
    pub proxy: Option<String>,
    /// How long a TCP and TLS handshake may take.
    pub connect_timeout: Option<String>,
    /// How long a server may be silent.
    pub request_timeout: Option<String>,
    /// Requests under way at once.
    #[serde(default, deserialize_with = "text")]
    pub request_concurrency: Option<String>,
    /// How often a failed request is made again.
    #[serde(default, deserialize_with = "text")]
    pub retries: Option<String>,
    /// Bound of the first pause.
    pub retry_initial_delay: Option<String>,
    /// Bound of every pause.
    pub retry_max_delay: Option<String>,
    /// How long all attempts together may take.
    pub retry_timeout: Option<String>,
    /// Reads begun in a second.
    #[serde(default, deserialize_with = "text")]
    pub read_rate: Option<String>,
    /// Writes begun in a second.
    #[serde(default, deserialize_with = "text")]
    pub write_rate: Option<String>,
    /// The time in which the rates double.
    #[serde(default, deserialize_with = "text")]
    pub rate_doubling_time: Option<String>,
    /// Where cached blocks go.
    pub cache_dir: Option<PathBuf>,
    /// How much of them to keep.
    pub cache_limit: Option<String>,
    /// Where staged files go.
    pub state_dir: Option<PathBuf>,
    /// How much file data may be in memory.
    pub memory_limit: Option<String>,
    /// How long a read waits for the remote.
    pub read_timeout: Option<String>,
    /// How long a listing counts as the truth.
    pub list_ttl: Option<String>,
    /// Mount without a way to write.
    pub read_only: Option<bool>,
    /// Let other users in.
    pub allow_other: Option<bool>,
    /// Let published files be staged for replacement.
    pub allow_replace: Option<bool>,
    /// The profile in force if nobody names one (top of the file only).
    pub default_profile: Option<String>,
    /// Further tables by name: `[profile.NAME]` (top of the file only).
    pub profile: Option<BTreeMap<String, Layer>>,
}

impl Layer {
    /// Whether there is anything in it that others must not read, be it in force or not.
    fn holds_secret(&self) -> bool {
        let has_user = |proxy: &String| proxy.contains('@');
        self.secret_access_key.is_some()
            || self.session_token.is_some()
            || self.proxy.as_ref().is_some_and(has_user)
            || self.profile.iter().flatten().any(|(_, table)| table.holds_secret())
    }
}

/// Takes text, and numbers and switches as the text that they would be: nobody quotes `retries = 5`.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "text or a number")]
    enum Scalar {
        Text(String),
        Whole(i64),
        Fraction(f64),
        Switch(bool),
    }
    Scalar::deserialize(deserializer).map(|scalar| {
        Some(match scalar {
            Scalar::Text(text) => text,
            Scalar::Whole(number) => number.to_string(),
            Scalar::Fraction(number) => number.to_string(),
            Scalar::Switch(switch) => switch.to_string(),
        })
    })
}

/// The flags that choose among files and profiles, before any setting is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `--config FILE`.
    pub file: Option<PathBuf>,
    /// `--profile NAME`.
    pub profile: Option<String>,
    /// Nothing else chooses: where these are not given, neither do `DSFS_CONFIG` and `DSFS_PROFILE`.
    pub is_final: bool,
}

/// A layer and who wrote it.
#[derive(Clone, Debug)]
pub struct Source {
    /// The settings.
    pub layer: Layer,
    /// Who wrote them.
    pub kind: SourceKind,
}

/// Who wrote a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// The command line.
    Flags,
    /// The environment, and which variable gave which key.
    Environment(BTreeMap<&'static str, &'static str>),
    /// The file, or a profile's table in it.
    File {
        /// The file.
        path: PathBuf,
        /// The table.
        profile: Option<String>,
    },
}

impl Source {
    /// Where the value of `key` of this layer came from.
    #[must_use]
    pub fn origin(&self, key: &'static str) -> Origin {
        match &self.kind {
            SourceKind::Flags => Origin::Flag(flag_of(key)),
            SourceKind::Environment(names) => Origin::Environment(names.get(key).copied().unwrap_or(key)),
            SourceKind::File { path, profile } => {
                Origin::File { path: path.as_path().into(), profile: profile.as_deref().map(Into::into), key }
            }
        }
    }
}

/// A key as a flag.
fn flag_of(key: &'static str) -> &'static str {
    match key {
        "remote" => "--remote",
        "bucket" => "--bucket",
        "endpoint" => "--endpoint",
        "region" => "--region",
        "remote-prefix" => "--remote-prefix",
        "cache-dir" => "--cache-dir",
        "cache-limit" => "--cache-limit",
        "state-dir" => "--state-dir",
        "memory-limit" => "--memory-limit",
        "read-timeout" => "--read-timeout",
        "list-ttl" => "--list-ttl",
        "read-only" => "--read-only",
        "allow-other" => "--allow-other",
        "allow-replace" => "--allow-replace",
        "credentials" => "--credentials",
        "aws-profile" => "--aws-profile",
        "aws-config-file" => "--aws-config-file",
        "aws-credentials-file" => "--aws-credentials-file",
        "imds-endpoint" => "--imds-endpoint",
        "addressing" => "--addressing",
        "host-header" => "--host-header",
        "requester-pays" => "--requester-pays",
        "conditional-writes" => "--conditional-writes",
        "ca-bundle" => "--ca-bundle",
        "proxy" => "--proxy",
        "connect-timeout" => "--connect-timeout",
        "request-timeout" => "--request-timeout",
        "request-concurrency" => "--request-concurrency",
        "retries" => "--retries",
        "retry-initial-delay" => "--retry-initial-delay",
        "retry-max-delay" => "--retry-max-delay",
        "retry-timeout" => "--retry-timeout",
        "read-rate" => "--read-rate",
        "write-rate" => "--write-rate",
        "rate-doubling-time" => "--rate-doubling-time",
        other => other,
    }
}

/// Which variables give which setting; the first that is set counts.
const VARIABLES: &[(&str, &[&str])] = &[
    ("remote", &["DSFS_REMOTE"]),
    ("bucket", &["R2_BUCKET"]),
    ("endpoint", &["R2_ENDPOINT", "R2_ENDPOINT_URL", "AWS_ENDPOINT_URL"]),
    ("region", &["R2_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"]),
    ("remote-prefix", &["DSFS_REMOTE_PREFIX"]),
    ("credentials", &["DSFS_CREDENTIALS"]),
    ("aws-profile", &["AWS_PROFILE"]),
    ("aws-config-file", &["AWS_CONFIG_FILE"]),
    ("aws-credentials-file", &["AWS_SHARED_CREDENTIALS_FILE"]),
    ("imds-endpoint", &["AWS_EC2_METADATA_SERVICE_ENDPOINT"]),
    ("addressing", &["DSFS_ADDRESSING"]),
    ("host-header", &["DSFS_HOST_HEADER"]),
    ("conditional-writes", &["DSFS_CONDITIONAL_WRITES", "TENSORSTORE_S3_USE_CONDITIONAL_WRITE"]),
    ("ca-bundle", &["DSFS_CA_BUNDLE", "AWS_CA_BUNDLE"]),
    ("proxy", &["DSFS_PROXY"]),
    ("connect-timeout", &["DSFS_CONNECT_TIMEOUT"]),
    ("request-timeout", &["DSFS_REQUEST_TIMEOUT"]),
    ("request-concurrency", &["DSFS_REQUEST_CONCURRENCY", "TENSORSTORE_S3_REQUEST_CONCURRENCY"]),
    ("retries", &["DSFS_RETRIES"]),
    ("retry-initial-delay", &["DSFS_RETRY_INITIAL_DELAY"]),
    ("retry-max-delay", &["DSFS_RETRY_MAX_DELAY"]),
    ("retry-timeout", &["DSFS_RETRY_TIMEOUT"]),
    ("read-rate", &["DSFS_READ_RATE"]),
    ("write-rate", &["DSFS_WRITE_RATE"]),
    ("rate-doubling-time", &["DSFS_RATE_DOUBLING_TIME", "TENSORSTORE_S3_RATE_LIMITER_DOUBLING_TIME"]),
    ("cache-dir", &["DSFS_CACHE_DIR"]),
    ("cache-limit", &["DSFS_CACHE_LIMIT"]),
    ("state-dir", &["DSFS_STATE_DIR"]),
    ("memory-limit", &["DSFS_MEMORY_LIMIT"]),
    ("read-timeout", &["DSFS_READ_TIMEOUT"]),
    ("list-ttl", &["DSFS_LIST_TTL"]),
];

/// A key pair: the variable of the id, of the secret, of the session token.
type KeyFamily = (&'static str, &'static str, Option<&'static str>);
/// The key and its secret are taken from one family, never mixed.
const KEY_FAMILIES: [KeyFamily; 2] = [
    ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", None),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", Some("AWS_SESSION_TOKEN")),
];

/// The environment as a layer.
#[must_use]
pub fn of_environment(env: &Environment) -> Source {
    let mut names = BTreeMap::new();
    let mut values = BTreeMap::new();
    for (key, variables) in VARIABLES {
        if let Some((value, Origin::Environment(name))) = env.first(variables) {
            names.insert(*key, name);
            values.insert(*key, value);
        }
    }
    let mut take = |key: &str| values.remove(key);
    let mut layer = Layer {
        remote: take("remote"),
        bucket: take("bucket"),
        endpoint: take("endpoint"),
        region: take("region"),
        remote_prefix: take("remote-prefix"),
        credentials: take("credentials"),
        aws_profile: take("aws-profile"),
        aws_config_file: take("aws-config-file").map(PathBuf::from),
        aws_credentials_file: take("aws-credentials-file").map(PathBuf::from),
        imds_endpoint: take("imds-endpoint"),
        addressing: take("addressing"),
        host_header: take("host-header"),
        conditional_writes: take("conditional-writes"),
        ca_bundle: take("ca-bundle").map(PathBuf::from),
        proxy: take("proxy"),
        connect_timeout: take("connect-timeout"),
        request_timeout: take("request-timeout"),
        request_concurrency: take("request-concurrency"),
        retries: take("retries"),
        retry_initial_delay: take("retry-initial-delay"),
        retry_max_delay: take("retry-max-delay"),
        retry_timeout: take("retry-timeout"),
        read_rate: take("read-rate"),
        write_rate: take("write-rate"),
        rate_doubling_time: take("rate-doubling-time"),
        cache_dir: take("cache-dir").map(PathBuf::from),
        cache_limit: take("cache-limit"),
        state_dir: take("state-dir").map(PathBuf::from),
        memory_limit: take("memory-limit"),
        read_timeout: take("read-timeout"),
        list_ttl: take("list-ttl"),
        ..Layer::default()
    };
    // The first family of which anything is set; if that is half a pair, it is an error later on.
    let family = KEY_FAMILIES.into_iter().find(|(id, secret, _)| env.get(id).or(env.get(secret)).is_some());
    if let Some((id, secret, token)) = family {
        let secret_value = |name: &'static str| env.get(name).map(|value| Secret::new(value.to_owned()));
        layer.access_key_id = env.get(id).map(str::to_owned);
        layer.secret_access_key = secret_value(secret);
        layer.session_token = token.and_then(secret_value);
        names.insert("access-key-id", id);
        names.insert("secret-access-key", secret);
    }
    Source { layer, kind: SourceKind::Environment(names) }
}

/// What the configuration file adds.
#[derive(Clone, Debug, Default)]
pub struct FileLayers {
    /// The profile's table, if one is in force, and the top of the file.
    pub sources: Vec<Source>,
    /// The profile in force, and who chose it.
    pub profile: Option<(String, Origin)>,
    /// Whether a secret is anywhere in the file.
    holds_secret: bool,
}

/// Reads the configuration file; the layers in force, the profile's before the top of the file.
/// A missing file is no layer, unless the user named it.
///
/// # Errors
/// A file that cannot be read, is not TOML, holds an unknown key, or secrets that others can read; a
/// profile that is not in it.
pub fn of_file(
    path: &Path,
    must_exist: bool,
    profile: Option<(String, Origin)>,
) -> Result<FileLayers, ConfigError> {
    let unreadable = |source: io::Error| ConfigError::Unreadable { path: path.into(), source: source.into() };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound && !must_exist => match profile {
            Some((name, origin)) => {
                return Err(ConfigError::NoProfile { name, origin, path: path.into(), known: Vec::new() });
            }
            None => return Ok(FileLayers::default()),
        },
        Err(err) => return Err(unreadable(err)),
    };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    let layers = parse_file(path, &text, profile)?;
    if layers.holds_secret && mode & 0o077 != 0 {
        return Err(ConfigError::SecretsReadable { path: path.into(), mode: mode & 0o7777 });
    }
    Ok(layers)
}

/// The key pair that a file, or a profile's table in it, holds by now; for keys that were renewed there.
///
/// # Errors
/// As [`of_file`].
pub fn keys_of_file(
    path: &Path,
    profile: Option<&str>,
) -> Result<Option<(String, Secret, Option<Secret>)>, ConfigError> {
    let profile = profile.map(|name| (name.to_owned(), Origin::Default));
    let layers = of_file(path, true, profile)?;
    Ok(layers.sources.into_iter().find_map(|source| {
        let layer = source.layer;
        Some((layer.access_key_id?, layer.secret_access_key?, layer.session_token))
    }))
}

/// The pure half of [`of_file`].
fn parse_file(path: &Path, text: &str, profile: Option<(String, Origin)>) -> Result<FileLayers, ConfigError> {
    let malformed = |line: usize, reason: String| ConfigError::Malformed { path: path.into(), line, reason };
    let mut top: Layer = toml::from_str(text).map_err(|err| {
        let at = err.span().map_or(0, |span| span.start);
        // Only the message: the error's Display quotes the line, which may hold a secret.
        malformed(1 + text[..at.min(text.len())].matches('\n').count(), err.message().to_owned())
    })?;
    let holds_secret = top.holds_secret();
    let mut tables = top.profile.take().unwrap_or_default();
    for (name, table) in &tables {
        if table.profile.is_some() || table.default_profile.is_some() {
            let heading = format!("[profile.{name}");
            let line = text.lines().position(|line| line.trim_start().starts_with(&heading)).unwrap_or(0) + 1;
            return Err(malformed(line, format!("profile {name:?} holds a further profile")));
        }
    }
    let of_default = top
        .default_profile
        .take()
        .map(|name| (name, Origin::File { path: path.into(), profile: None, key: "default-profile" }));
    let chosen = profile.or(of_default);
    let source = |layer, profile| Source { layer, kind: SourceKind::File { path: path.into(), profile } };
    let mut sources = Vec::new();
    if let Some((name, origin)) = &chosen {
        let Some(table) = tables.remove(name) else {
            let known = tables.into_keys().collect();
            return Err(ConfigError::NoProfile {
                name: name.clone(),
                origin: origin.clone(),
                path: path.into(),
                known,
            });
        };
        sources.push(source(table, Some(name.clone())));
    }
    sources.push(source(top, None));
    Ok(FileLayers { sources, profile: chosen, holds_secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, profile: Option<&str>) -> Result<Vec<Source>, ConfigError> {
        let profile = profile.map(|name| (name.to_owned(), Origin::Flag("--profile")));
        parse_file(Path::new("/c.toml"), text, profile).map(|layers| layers.sources)
    }

    #[test]
    fn a_profile_comes_before_the_top_of_the_file() {
        let text = "bucket = 'top'\nregion = 'eu'\n[profile.lab]\nbucket = 'lab'\n";
        let sources = parse(text, Some("lab")).unwrap();
        assert_eq!(sources[0].layer.bucket.as_deref(), Some("lab"));
        assert_eq!(sources[0].origin("bucket").to_string(), "/c.toml [profile.lab] bucket");
        assert_eq!(sources[1].layer.region.as_deref(), Some("eu"));
        assert_eq!(parse(text, None).unwrap().len(), 1);
    }

    #[test]
    fn the_file_can_choose_its_own_profile() {
        let text = "default-profile = 'lab'\n[profile.lab]\nbucket = 'lab'\n[profile.two]\nbucket = 'two'\n";
        assert_eq!(parse(text, None).unwrap()[0].layer.bucket.as_deref(), Some("lab"));
        assert_eq!(parse(text, Some("two")).unwrap()[0].layer.bucket.as_deref(), Some("two"));
    }

    #[test]
    fn secrets_are_for_nobody_else_wherever_in_the_file_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let read = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            of_file(&path, true, None)
        };
        let keys = "access-key-id = 'k'\nsecret-access-key = 's'\n";
        let in_force = keys.to_owned();
        let in_another = format!("bucket = 'b'\n[profile.lab]\n{keys}");
        let of_proxy = "proxy = 'http://ada:hush@squid:3128'\n".to_owned();
        for text in [in_force, in_another, of_proxy] {
            read(&text, 0o600).unwrap();
            let err = read(&text, 0o644).unwrap_err();
            assert!(matches!(err, ConfigError::SecretsReadable { mode: 0o644, .. }), "{text}: {err}");
        }
        read("bucket = 'b'\nproxy = 'http://squid:3128'\n", 0o644).unwrap();
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = |text: &str, profile| parse(text, profile).unwrap_err().to_string();
        let unknown = error("bucket = 'b'\n\n[profile.lab]\nbukcet = 'c'\n", None);
        assert!(unknown.starts_with("/c.toml:4: unknown field `bukcet`"), "{unknown}");
        assert!(error("bucket = \n", None).starts_with("/c.toml:1: "));
        assert!(error("[profile.a.profile.b]\nbucket = 'x'\n", None).contains("further profile"));
        let missing = error("[profile.lab]\n[profile.two]\n", Some("lap"));
        assert!(missing.contains("no profile \"lap\""), "{missing}");
        let secret = error("secret-access-key = 1234567890\n", None);
        assert!(!secret.contains("34567"), "{secret}");
    }

    #[test]
    fn keys_come_in_pairs_of_one_family() {
        let layer = |pairs: &[(&str, &str)]| of_environment(&Environment::from_pairs(pairs)).layer;
        let r2 = [("R2_ACCESS_KEY_ID", "r"), ("R2_SECRET_ACCESS_KEY", "s")];
        let aws = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "t"), ("AWS_SESSION_TOKEN", "u")];
        let both = layer(&[r2.as_slice(), aws.as_slice()].concat());
        assert_eq!(both.access_key_id.as_deref(), Some("r"));
        assert_eq!(both.session_token, None, "the token belongs to the other pair");
        let of_aws = layer(&aws);
        assert_eq!(of_aws.access_key_id.as_deref(), Some("a"));
        assert_eq!(of_aws.session_token.as_ref().map(Secret::expose), Some("u"));
        let half = layer(&[&r2[..1], &aws[..]].concat());
        assert_eq!(half.secret_access_key, None, "the secret belongs to the other pair");
        let empty = layer(&[[("R2_ACCESS_KEY_ID", "")].as_slice(), aws.as_slice()].concat());
        assert_eq!(empty.access_key_id.as_deref(), Some("a"), "empty counts as unset");
    }
}
