//! How a bucket is asked: what is neither where the remote is nor who asks.
//!
//! The defaults of retries, concurrency and rates are those that users of other S3 clients for
//! datasets know (32 retries from 1 s up to 32 s, 32 requests at once, no limit of the rate); the
//! variables of TensorStore's driver are heard beside our own.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::config::Layer;
use crate::config::Setting;
use crate::config::layer::Source;
use crate::config::resolve::parsed;
use crate::config::units;

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_REQUEST_CONCURRENCY: usize = 32;
const DEFAULT_RETRIES: u32 = 32;
const DEFAULT_RETRY_INITIAL_DELAY: Duration = Duration::from_secs(1);
const DEFAULT_RETRY_MAX_DELAY: Duration = Duration::from_secs(32);
/// Nobody at a terminal, and no reader of a file, waits for the quarter of an hour that 32 retries may take.
const DEFAULT_RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// More, and file descriptors and ports run out before a server is busy.
const REQUEST_CONCURRENCY_MAX: usize = 1024;
const RETRIES_MAX: u32 = 1000;

/// Where a bucket's name goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Into the path with an endpoint, into the host's name at AWS.
    Auto,
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    VirtualHost,
}

impl fmt::Display for Addressing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Path => "path",
            Self::VirtualHost => "virtual-host",
        })
    }
}

/// Whether writes carry `If-None-Match` and `If-Match`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionalWrites {
    /// They do, and a probe finds out what the server makes of them.
    Auto,
    /// They do, and the server is taken to enforce them all.
    On,
    /// They do not, for servers that refuse such requests; a look before each write stands in.
    Off,
}

impl fmt::Display for ConditionalWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// What stands between this machine and the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Nothing.
    Direct,
    /// This HTTP proxy, for all requests.
    Url(String),
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("as HTTPS_PROXY and HTTP_PROXY say"),
            Self::Direct => f.write_str("none"),
            Self::Url(url) => f.write_str(&without_user(url)),
        }
    }
}

/// A proxy's URL, or what was meant to be one, without the name and password that may be in it. Whatever is
/// before the last `@` may be part of a password, as long as nobody has found it to be a URL.
fn without_user(url: &str) -> String {
    let (scheme, rest) = match url.find("://") {
        Some(at) => url.split_at(at + "://".len()),
        None => ("", url),
    };
    rest.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, host)| format!("{scheme}…@{host}"))
}

/// How requests are made.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSettings {
    /// Where the bucket's name goes.
    pub addressing: Setting<Addressing>,
    /// Sent and signed as `Host`, instead of the endpoint's.
    pub host_header: Setting<Option<String>>,
    /// Whether this side pays for the requests.
    pub requester_pays: Setting<bool>,
    /// Whether writes carry conditions.
    pub conditional_writes: Setting<ConditionalWrites>,
    /// A PEM file of certificates that are trusted beside the system's.
    pub ca_bundle: Setting<Option<PathBuf>>,
    /// What stands between.
    pub proxy: Setting<Proxy>,
    /// How long a TCP and TLS handshake may take.
    pub connect_timeout: Setting<Duration>,
    /// How long a server may be silent within one request.
    pub request_timeout: Setting<Duration>,
    /// Requests of this process under way at once.
    pub request_concurrency: Setting<usize>,
    /// How often a failed request is made again.
    pub retries: Setting<u32>,
    /// Bound of the first pause between them; it doubles from there.
    pub retry_initial_delay: Setting<Duration>,
    /// Bound of every pause.
    pub retry_max_delay: Setting<Duration>,
    /// How long attempts of one request are begun.
    pub retry_timeout: Setting<Duration>,
    /// Reads and listings begun in a second; `None` for no limit.
    pub read_rate: Setting<Option<f64>>,
    /// Writes and deletions begun in a second; `None` for no limit.
    pub write_rate: Setting<Option<f64>>,
    /// The time in which both rates double; `None` for never.
    pub rate_doubling_time: Setting<Option<Duration>>,
}

/// Resolves these settings; `sources` with the highest first.
///
/// # Errors
/// A value that cannot be, named with its origin.
pub(super) fn resolve(sources: &[Source]) -> Result<ClientSettings, ConfigError> {
    let duration = |key, field, default| parsed(sources, key, field, default, positive_duration);
    let rate = |key, field| parsed(sources, key, field, None, parse_rate);
    let ca_bundle = sources.iter().find_map(|source| {
        let path = source.layer.ca_bundle.clone()?;
        Some(Setting::new(Some(path), source.origin("ca-bundle")))
    });
    let requester_pays = sources.iter().find_map(|source| {
        let value = source.layer.requester_pays?;
        Some(Setting::new(value, source.origin("requester-pays")))
    });
    Ok(ClientSettings {
        addressing: parsed(
            sources,
            "addressing",
            |l| l.addressing.as_ref(),
            Addressing::Auto,
            parse_addressing,
        )?,
        host_header: parsed(sources, "host-header", |l| l.host_header.as_ref(), None, parse_host)?,
        requester_pays: requester_pays.unwrap_or_else(|| Setting::default_of(false)),
        conditional_writes: parsed(
            sources,
            "conditional-writes",
            |l| l.conditional_writes.as_ref(),
            ConditionalWrites::Auto,
            parse_conditional_writes,
        )?,
        ca_bundle: ca_bundle.unwrap_or_else(|| Setting::default_of(None)),
        proxy: parsed(sources, "proxy", |l| l.proxy.as_ref(), Proxy::Environment, parse_proxy)?,
        connect_timeout: duration(
            "connect-timeout",
            |l: &Layer| l.connect_timeout.as_ref(),
            DEFAULT_CONNECT_TIMEOUT,
        )?,
        request_timeout: duration(
            "request-timeout",
            |l: &Layer| l.request_timeout.as_ref(),
            DEFAULT_REQUEST_TIMEOUT,
        )?,
        request_concurrency: parsed(
            sources,
            "request-concurrency",
            |l| l.request_concurrency.as_ref(),
            DEFAULT_REQUEST_CONCURRENCY,
            |text| count(text, 1, REQUEST_CONCURRENCY_MAX),
        )?,
        retries: parsed(
            sources,
            "retries",
            |l| l.retries.as_ref(),
            DEFAULT_RETRIES,
            |text| count(text, 0, RETRIES_MAX),
        )?,
        retry_initial_delay: duration(
            "retry-initial-delay",
            |l: &Layer| l.retry_initial_delay.as_ref(),
            DEFAULT_RETRY_INITIAL_DELAY,
        )?,
        retry_max_delay: duration(
            "retry-max-delay",
            |l: &Layer| l.retry_max_delay.as_ref(),
            DEFAULT_RETRY_MAX_DELAY,
        )?,
        retry_timeout: duration(
            "retry-timeout",
            |l: &Layer| l.retry_timeout.as_ref(),
            DEFAULT_RETRY_TIMEOUT,
        )?,
        read_rate: rate("read-rate", |l: &Layer| l.read_rate.as_ref())?,
        write_rate: rate("write-rate", |l: &Layer| l.write_rate.as_ref())?,
        rate_doubling_time: parsed(
            sources,
            "rate-doubling-time",
            |l| l.rate_doubling_time.as_ref(),
            None,
            |text| if text == "0" { Ok(None) } else { positive_duration(text).map(Some) },
        )?,
    })
}

fn parse_addressing(text: &str) -> Result<Addressing, String> {
    match text {
        "auto" => Ok(Addressing::Auto),
        "path" => Ok(Addressing::Path),
        "virtual-host" => Ok(Addressing::VirtualHost),
        _ => Err(format!("{text:?} is none of auto, path, virtual-host")),
    }
}

fn parse_conditional_writes(text: &str) -> Result<ConditionalWrites, String> {
    match text {
        "auto" => Ok(ConditionalWrites::Auto),
        "on" | "true" | "1" => Ok(ConditionalWrites::On),
        "off" | "false" | "0" => Ok(ConditionalWrites::Off),
        _ => Err(format!("{text:?} is none of auto, on, off")),
    }
}

fn parse_proxy(text: &str) -> Result<Proxy, String> {
    if text == "none" {
        return Ok(Proxy::Direct);
    }
    let bad =
        || format!("{:?} is neither 'none' nor a proxy's URL like http://host:3128", without_user(text));
    let (scheme, host) = text.split_once("://").ok_or_else(bad)?;
    let ok = scheme == "http" && !host.is_empty() && !host.contains(char::is_whitespace);
    if ok { Ok(Proxy::Url(text.to_owned())) } else { Err(bad()) }
}

fn parse_host(text: &str) -> Result<Option<String>, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if !text.is_empty() && text.chars().all(allowed) {
        Ok(Some(text.to_owned()))
    } else {
        Err(format!("{text:?} cannot be a host; write it like bucket.example or bucket.example:9000"))
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = units::parse_duration(text)?;
    if duration.is_zero() { Err(format!("{text:?} is no time at all")) } else { Ok(duration) }
}

fn parse_rate(text: &str) -> Result<Option<f64>, String> {
    match text.parse::<f64>() {
        Ok(0.0) => Ok(None),
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Some(rate)),
        Ok(_) | Err(_) => Err(format!("{text:?} is not a number of requests in a second; 0 is no limit")),
    }
}

fn count<T: std::str::FromStr + PartialOrd + fmt::Display>(
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(value) if value >= least && value <= most => Ok(value),
        Ok(_) | Err(_) => Err(format!("{text:?} is not a number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::layer;

    fn of(env: &[(&str, &str)], file: &str) -> Result<ClientSettings, ConfigError> {
        let file = Source {
            layer: toml::from_str(file).unwrap(),
            kind: layer::SourceKind::File { path: "/c.toml".into(), profile: None },
        };
        resolve(&[layer::of_environment(&Environment::from_pairs(env)), file])
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let settings = of(&[], "").unwrap();
        assert_eq!(settings.request_concurrency.value, 32);
        assert_eq!(settings.retries.value, 32);
        assert_eq!(settings.retry_initial_delay.value, Duration::from_secs(1));
        assert_eq!(settings.retry_max_delay.value, Duration::from_secs(32));
        assert_eq!(settings.conditional_writes.value, ConditionalWrites::Auto);
        assert_eq!(settings.proxy.value, Proxy::Environment);
        assert_eq!((settings.read_rate.value, settings.write_rate.value), (None, None));
    }

    #[test]
    fn numbers_in_the_file_need_no_quotes() {
        let settings =
            of(&[], "request-concurrency = 4\nread-rate = 2.5\nretries = '0'\nrequester-pays = true")
                .unwrap();
        assert_eq!(settings.request_concurrency.value, 4);
        assert_eq!(settings.read_rate.value, Some(2.5));
        assert_eq!(settings.retries.value, 0);
        assert!(settings.requester_pays.value);
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let env = [
            ("TENSORSTORE_S3_REQUEST_CONCURRENCY", "4"),
            ("TENSORSTORE_S3_USE_CONDITIONAL_WRITE", "false"),
            ("TENSORSTORE_S3_RATE_LIMITER_DOUBLING_TIME", "10s"),
            ("AWS_CA_BUNDLE", "/ca.pem"),
        ];
        let file = "request-concurrency = 8\nconditional-writes = 'on'\nread-rate = 5";
        let settings = of(&env, file).unwrap();
        assert_eq!(settings.request_concurrency.value, 4);
        assert_eq!(settings.conditional_writes.value, ConditionalWrites::Off);
        assert_eq!(settings.rate_doubling_time.value, Some(Duration::from_secs(10)));
        assert_eq!(settings.ca_bundle.value, Some("/ca.pem".into()));
        assert_eq!(settings.read_rate.value, Some(5.0));
        let own = [("DSFS_REQUEST_CONCURRENCY", "2"), ("TENSORSTORE_S3_REQUEST_CONCURRENCY", "4")];
        assert_eq!(of(&own, "").unwrap().request_concurrency.value, 2);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_origin() {
        for (key, value) in [
            ("addressing", "'host'"),
            ("conditional-writes", "'sometimes'"),
            ("proxy", "'squid:3128'"),
            ("host-header", "'a b'"),
            ("connect-timeout", "'0s'"),
            ("request-concurrency", "0"),
            ("request-concurrency", "100000"),
            ("retries", "-1"),
            ("read-rate", "'fast'"),
            ("write-rate", "-2"),
            ("rate-doubling-time", "'never'"),
        ] {
            let err = of(&[], &format!("{key} = {value}")).unwrap_err().to_string();
            assert!(err.starts_with(&format!("/c.toml {key}: ")), "{err}");
        }
    }

    #[test]
    fn a_proxys_password_is_in_no_message() {
        for (bad, shown) in [
            ("https://ada:hush@squid:3128", "\"https://…@squid:3128\""),
            ("ada:hush@squid", "\"…@squid\""),
            ("http://ada:hush@hush @squid", "\"http://…@squid\""),
        ] {
            let err = of(&[], &format!("proxy = '{bad}'")).unwrap_err().to_string();
            assert!(err.contains(shown) && !err.contains("hush"), "{err}");
        }
        let good = of(&[], "proxy = 'http://ada:hush@squid:3128'").unwrap().proxy.value;
        assert_eq!(good, Proxy::Url("http://ada:hush@squid:3128".into()));
        assert_eq!(good.to_string(), "http://…@squid:3128");
    }
}
