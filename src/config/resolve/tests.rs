//! Tests of how layers of settings become one configuration.

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
        error(&Given { flags: &[("cache-limit", "much")], ..NOTHING }).starts_with("flag --cache-limit: ")
    );
    assert!(error(&Given { file: "memory-limit = '1KiB'", ..NOTHING }).starts_with("/c.toml memory-limit: "));
    assert!(
        error(&Given { env: &[("R2_ENDPOINT", "host")], ..NOTHING }).starts_with("environment R2_ENDPOINT: ")
    );
    assert!(error(&Given { file: "cache-dir = 'here'", ..NOTHING }).contains("absolute"));
    assert!(
        error(&Given { flags: &[("remote-prefix", "a//b")], ..NOTHING }).starts_with("flag --remote-prefix")
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
    let region = [("AWS_REGION", "eu-central-1")];
    let only_a_region = remote(&Given { env: &region, ..NOTHING });
    assert!(matches!(only_a_region.check_reachable_in_principle(), Err(ConfigError::NoEndpoint)));
    let aws = remote(&Given { flags: &[("bucket", "lab")], env: &region, ..NOTHING });
    assert!(aws.check_reachable_in_principle().is_ok());
    assert!(matches!(aws.remote().place, Place::S3 { endpoint: None, .. }));
}

#[test]
fn aws_can_be_named_where_the_environment_names_a_server() {
    let env = [("R2_ENDPOINT", "https://h")];
    let flags = [("remote", "s3://lab/x/"), ("endpoint", "aws")];
    assert_eq!(remote_of(&Given { flags: &flags, env: &env, ..NOTHING }), "s3://lab/x/ at AWS");
    assert_eq!(remote_of(&Given { flags: &flags[..1], env: &env, ..NOTHING }), "s3://lab/x/ at https://h");
    let refused = resolved(&Given { flags: &[("endpoint", "none")], ..NOTHING }).unwrap_err();
    assert!(refused.to_string().contains("aws is AWS itself"), "{refused}");
    let unnamed = resolved(&Given { flags: &flags[1..], env: &env, ..NOTHING }).unwrap();
    assert!(matches!(unnamed.remote.check_reachable_in_principle(), Err(ConfigError::NoEndpoint)));
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

#[test]
fn what_names_a_remote_is_complete_whatever_else_is_set() {
    let e = ("endpoint", "http://h");
    let remotes: [&[(&str, &str)]; 6] = [
        &[e],
        &[e, ("remote", "s3://mine/")],
        &[("remote", "s3://mine/x/"), ("region", "eu-central-1")],
        &[("remote", "file:///nas/100%25"), ("remote-prefix", "y")],
        &[("remote", "file:///nas/a b")],
        &[("remote", "file:///")],
    ];
    let env = [
        ("R2_BUCKET", "lab"),
        ("R2_ENDPOINT", "https://other"),
        ("AWS_REGION", "us-east-1"),
        ("DSFS_REMOTE_PREFIX", "other/"),
    ];
    for flags in remotes {
        let remote = resolved(&Given { flags, ..NOTHING }).unwrap().remote.remote();
        let layer = remote.name_in(Layer::default());
        let sources = [
            Source { layer, kind: SourceKind::Flags },
            layer::of_environment(&Environment::from_pairs(&env)),
        ];
        assert_eq!(remote_settings(&sources).unwrap().remote(), remote);
    }
}
