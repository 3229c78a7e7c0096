//! `dsfs config`: each setting, its value, and who said so.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::config::ClientSettings;
use crate::config::Config;
use crate::config::Credentials;
use crate::config::Origin;
use crate::config::RemoteSettings;
use crate::config::Setting;
use crate::config::units;
use crate::control::message::Failure;

/// Show each setting, its value, and where it comes from
///
/// A setting comes from a flag, else from the environment, else from the profile in force and then the
/// top of ~/.config/dsfs/config.toml, else it has its default. Secrets are never shown.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs config
  dsfs config --profile lab --json

A configuration file:
  default-profile = \"lab\"
  cache-limit = \"200GiB\"

  [profile.lab]
  remote = \"s3://assets/datasets/\"
  endpoint = \"https://ACCOUNT.r2.cloudflarestorage.com\"")]
pub struct ConfigArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One line of the answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    setting: &'static str,
    value: String,
    origin: String,
}

impl Row {
    fn new<T>(setting: &'static str, of: &Setting<T>, show: impl Fn(&T) -> String) -> Self {
        Self { setting, value: show(&of.value), origin: of.origin.to_string() }
    }
}

/// Runs the command.
///
/// # Errors
/// Settings that contradict each other or cannot be.
pub fn run(args: &ConfigArgs, cx: &mut Context) -> Result<(), Failure> {
    let config = cx.config(cx.global.layer())?;
    let rows = rows(&config);
    if args.json {
        cx.out.json(&rows);
    } else {
        let cells = |row: Row| vec![row.setting.to_owned(), row.value, row.origin];
        cx.out.table(&rows.into_iter().map(cells).collect::<Vec<_>>());
    }
    Ok(())
}

fn rows(config: &Config) -> Vec<Row> {
    let missing = if config.file_present { "" } else { " (not there)" };
    let mut rows = vec![Row::new("config", &config.file, |path| format!("{}{missing}", path.display()))];
    rows.extend(config.profile.as_ref().map(|profile| Row::new("profile", profile, Clone::clone)));
    match &config.remote {
        RemoteSettings::S3(s3) => {
            rows.push(Row::new("bucket", &s3.bucket, Clone::clone));
            rows.push(Row::new("endpoint", &s3.endpoint, |endpoint| {
                endpoint.clone().unwrap_or_else(|| "AWS".to_owned())
            }));
            rows.push(Row::new("region", &s3.region, Clone::clone));
            rows.push(Row::new("remote-prefix", &s3.prefix, |prefix| shown_prefix(prefix.as_str())));
            rows.push(Row::new("credentials", &s3.credentials, credentials));
            rows.extend(client_rows(&s3.client));
        }
        RemoteSettings::Directory { path, prefix } => {
            rows.push(Row::new("remote", path, |path| format!("file://{}", path.display())));
            rows.push(Row::new("remote-prefix", prefix, |prefix| shown_prefix(prefix.as_str())));
        }
    }
    rows.extend([
        Row::new("cache-dir", &config.cache_dir, |path| path.display().to_string()),
        Row::new("cache-limit", &config.cache_limit_bytes, |bytes| units::show_size(*bytes)),
        Row::new("memory-limit", &config.memory_limit_bytes, |bytes| units::show_size(*bytes)),
        Row::new("state-dir", &config.state_dir, |path| path.display().to_string()),
        Row {
            setting: "staging",
            value: config.remote_state_dir().display().to_string(),
            origin: "from the remote's name".to_owned(),
        },
        Row::new("read-timeout", &config.read_timeout, |timeout| units::show_duration(*timeout)),
        Row::new("list-ttl", &config.list_ttl, |ttl| units::show_duration(*ttl)),
        Row::new("read-only", &config.read_only, yes_or_no),
        Row::new("allow-other", &config.allow_other, yes_or_no),
        Row::new("allow-replace", &config.allow_replace, yes_or_no),
    ]);
    rows
}

fn client_rows(client: &ClientSettings) -> Vec<Row> {
    let duration = |value: &Duration| units::show_duration(*value);
    let rate = |value: &Option<f64>| value.map_or("no limit".to_owned(), |rate| format!("{rate}/s"));
    let none = || "none".to_owned();
    vec![
        Row::new("addressing", &client.addressing, ToString::to_string),
        Row::new("host-header", &client.host_header, |host| {
            host.clone().unwrap_or_else(|| "the endpoint's".into())
        }),
        Row::new("requester-pays", &client.requester_pays, yes_or_no),
        Row::new("conditional-writes", &client.conditional_writes, ToString::to_string),
        Row::new("ca-bundle", &client.ca_bundle, |path| {
            path.as_ref().map_or_else(none, |path| path.display().to_string())
        }),
        Row::new("proxy", &client.proxy, ToString::to_string),
        Row::new("connect-timeout", &client.connect_timeout, duration),
        Row::new("request-timeout", &client.request_timeout, duration),
        Row::new("request-concurrency", &client.request_concurrency, ToString::to_string),
        Row::new("retries", &client.retries, ToString::to_string),
        Row::new("retry-initial-delay", &client.retry_initial_delay, duration),
        Row::new("retry-max-delay", &client.retry_max_delay, duration),
        Row::new("retry-timeout", &client.retry_timeout, duration),
        Row::new("read-rate", &client.read_rate, rate),
        Row::new("write-rate", &client.write_rate, rate),
        Row::new("rate-doubling-time", &client.rate_doubling_time, |time| {
            time.map_or("never".to_owned(), units::show_duration)
        }),
    ]
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "a row shows a value through a reference")]
fn yes_or_no(value: &bool) -> String {
    if *value { "yes" } else { "no" }.to_owned()
}

fn shown_prefix(prefix: &str) -> String {
    if prefix.is_empty() { "/".to_owned() } else { prefix.to_owned() }
}

/// Names the key without its secret; of the key itself only so much that it can be recognised.
fn credentials(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Keys { access_key_id, session_token, .. } => {
            let token = if session_token.is_some() { ", with a session token" } else { "" };
            format!("key {}{token}", recognisable(access_key_id))
        }
        Credentials::AwsChain { profile: Some(profile) } => format!("AWS profile {profile}"),
        Credentials::AwsChain { profile: None } => "whatever AWS's own tools would use".to_owned(),
        Credentials::Profile { name, config_file, credentials_file } => {
            let mut text = format!("AWS profile {}", name.as_deref().unwrap_or("default"));
            for file in [config_file, credentials_file].into_iter().flatten() {
                text.push_str(&format!(" of {}", file.display()));
            }
            text
        }
        Credentials::Ecs => "the container's endpoint".to_owned(),
        Credentials::Imds { endpoint: None } => "the instance metadata service".to_owned(),
        Credentials::Imds { endpoint: Some(endpoint) } => {
            format!("the instance metadata service at {endpoint}")
        }
        Credentials::Anonymous => "none: requests are not signed".to_owned(),
    }
}

/// The last four characters of a key, if it is long enough that these say little.
fn recognisable(key: &str) -> String {
    const SHOWN: usize = 4;
    const LONG_ENOUGH: usize = 16;
    match key.char_indices().nth_back(SHOWN - 1) {
        Some((at, _)) if key.chars().count() >= LONG_ENOUGH => format!("…{}", &key[at..]),
        _ => "…".to_owned(),
    }
}

/// What a doctor says about where credentials come from.
#[must_use]
pub fn describe_credentials(setting: &Setting<Credentials>) -> String {
    let shown = credentials(&setting.value);
    if setting.origin == Origin::Default { shown } else { format!("{shown} ({})", setting.origin) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::Layer;
    use crate::config::Selection;

    #[test]
    fn every_value_has_its_origin_and_no_secret_is_among_them() {
        let env = Environment::from_pairs(&[
            ("HOME", "/nonexistent"),
            ("R2_ACCESS_KEY_ID", "0123456789abcdefWXYZ"),
            ("R2_SECRET_ACCESS_KEY", "hush-hush"),
            ("R2_ENDPOINT", "https://h"),
            ("DSFS_PROXY", "http://ada:hush@squid:3128"),
        ]);
        let flags = Layer { bucket: Some("mine".into()), ..Layer::default() };
        let config = Config::load(flags, Selection::default(), &env).unwrap();
        let rows = rows(&config);
        let row = |name: &str| {
            let row = rows.iter().find(|row| row.setting == name).unwrap();
            (row.value.as_str(), row.origin.as_str())
        };
        assert_eq!(row("bucket"), ("mine", "flag --bucket"));
        assert_eq!(row("endpoint"), ("https://h", "environment R2_ENDPOINT"));
        assert_eq!(row("remote-prefix"), ("datasets/", "default"));
        assert_eq!(row("credentials"), ("key …WXYZ", "environment R2_ACCESS_KEY_ID"));
        assert_eq!(row("cache-limit"), ("20 GiB", "default"));
        assert_eq!(row("proxy"), ("http://…@squid:3128", "environment DSFS_PROXY"));
        let all = serde_json::to_string(&rows).unwrap();
        assert!(!all.contains("hush") && !all.contains("0123456789"), "{all}");
    }
}
