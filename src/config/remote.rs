//! Remotes: what a user may call one, and how dsfs names it in files and in messages.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::config::Layer;
use crate::config::Secret;
use crate::name::RemotePrefix;

/// What a bare bucket holds the datasets under.
pub const DEFAULT_PREFIX: &str = "datasets/";
/// The bucket, if nobody names one.
pub const DEFAULT_BUCKET: &str = "assets";
/// R2's only region, and what most other servers take.
pub const DEFAULT_REGION: &str = "auto";
/// What AWS itself is called where a server's URL is expected.
const ENDPOINT_OF_AWS: &str = "aws";
/// Bytes of the readable half of a remote's id.
const SLUG_BYTES_MAX: usize = 40;
/// Bytes of the hash in a remote's id, before they are written in hexadecimal.
const ID_HASH_BYTES: usize = 6;

/// What `--remote` can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteUrl {
    /// `s3://bucket`, `s3://bucket/`, `s3://bucket/prefix/`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix, unless the URL has no path at all.
        prefix: Option<RemotePrefix>,
    },
    /// `file:///dir/`.
    Directory(PathBuf),
}

impl RemoteUrl {
    /// Parses a remote's URL.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            let path =
                percent_decode_str(path).decode_utf8().map_err(|_| format!("{text:?} is not UTF-8"))?;
            let path = Path::new(&*path);
            let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
            if !path.is_absolute() || climbs {
                return Err(format!("{text:?} needs an absolute path without '..': file:///dir/"));
            }
            return Ok(Self::Directory(path.components().collect()));
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(format!("{text:?} is neither s3://bucket/prefix/ nor file:///dir/"));
        };
        let (bucket, path) = rest.split_once('/').map_or((rest, None), |(bucket, path)| (bucket, Some(path)));
        check_bucket(bucket)?;
        let prefix = path.map(RemotePrefix::parse).transpose().map_err(|err| err.to_string())?;
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix })
    }
}

/// A directory as a URL: what dsfs reads as an escape is escaped.
#[must_use]
pub fn directory_url(dir: &Path) -> String {
    format!("file://{}/", dir.to_string_lossy().replace('%', "%25"))
}

/// Checks a bucket's name: what S3 allows, with the old lenient rules.
///
/// # Errors
/// A sentence.
pub fn check_bucket(bucket: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if (3..=255).contains(&bucket.len()) && bucket.chars().all(allowed) {
        Ok(())
    } else {
        Err(format!("{bucket:?} cannot be a bucket: 3 to 255 letters, digits, '.', '-' or '_'"))
    }
}

/// Parses an endpoint; `None` is AWS itself, which has to be named where a lower layer names a server.
///
/// # Errors
/// A sentence.
pub fn parse_endpoint(text: &str) -> Result<Option<String>, String> {
    if text.eq_ignore_ascii_case(ENDPOINT_OF_AWS) { Ok(None) } else { normalize_endpoint(text).map(Some) }
}

/// Brings an endpoint into its one spelling: scheme and host in lower case, no `/` at the end.
fn normalize_endpoint(text: &str) -> Result<String, String> {
    let bad = || {
        format!(
            "{text:?} cannot be an endpoint: write it like https://host or http://host:9000; {ENDPOINT_OF_AWS} is AWS itself"
        )
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
    let scheme = scheme.to_ascii_lowercase();
    let rest = rest.trim_end_matches('/');
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let odd = |c: char| c.is_whitespace() || matches!(c, '?' | '#' | '@' | '\\');
    if !matches!(&*scheme, "http" | "https") || host.is_empty() || host.starts_with(':') || rest.contains(odd)
    {
        return Err(bad());
    }
    let slash = if path.is_empty() { "" } else { "/" };
    Ok(format!("{scheme}://{}{slash}{path}", host.to_ascii_lowercase()))
}

/// How requests are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A key pair that was given to dsfs itself.
    Keys {
        /// The public half.
        access_key_id: String,
        /// The secret half.
        secret_access_key: Secret,
        /// For temporary credentials.
        session_token: Option<Secret>,
    },
    /// Whatever AWS's own tools would use: shared files, web identity, ECS, instance metadata.
    AwsChain {
        /// The profile that `AWS_PROFILE` names; `None` for their own default.
        profile: Option<String>,
    },
    /// A profile of AWS's shared files, and nothing else.
    Profile {
        /// The profile; `None` for `default`.
        name: Option<String>,
        /// Instead of `~/.aws/config`.
        config_file: Option<PathBuf>,
        /// Instead of `~/.aws/credentials`.
        credentials_file: Option<PathBuf>,
    },
    /// The container's endpoint, which `AWS_CONTAINER_CREDENTIALS_FULL_URI` or `…_RELATIVE_URI` names.
    Ecs,
    /// The instance metadata service.
    Imds {
        /// Instead of the usual address.
        endpoint: Option<String>,
    },
    /// Nobody: requests are not signed.
    Anonymous,
}

/// Where a remote is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A bucket of an S3-compatible server.
    S3 {
        /// The server; `None` for AWS itself.
        endpoint: Option<String>,
        /// The region to sign for.
        region: String,
        /// The bucket.
        bucket: String,
    },
    /// A directory of a mounted file system.
    Directory(PathBuf),
}

/// A remote: where it is, and the prefix of its datasets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Where it is.
    pub place: Place,
    /// Where in there the datasets are.
    pub prefix: RemotePrefix,
}

impl Remote {
    /// Names the store, the same for each prefix in it: what cached bytes are filed under.
    #[must_use]
    pub fn store_identity(&self) -> String {
        match &self.place {
            Place::S3 { endpoint: Some(endpoint), bucket, .. } => format!("s3 {endpoint} {bucket}"),
            Place::S3 { endpoint: None, bucket, .. } => format!("s3 aws {bucket}"),
            Place::Directory(path) => format!("file {}", path.display()),
        }
    }

    /// Names the remote as a directory of the state directory: readable, and unique by a hash of
    /// endpoint, bucket and prefix.
    #[must_use]
    pub fn id(&self) -> String {
        let readable = match &self.place {
            Place::S3 { bucket, .. } => format!("{bucket}-{}", self.prefix),
            Place::Directory(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!("{name}-{}", self.prefix)
            }
        };
        let mut slug = String::new();
        for c in
            readable.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        {
            if (c != '-' || !slug.ends_with('-')) && slug.len() < SLUG_BYTES_MAX {
                slug.push(c);
            }
        }
        let slug = slug.trim_matches('-');
        let hash = Sha256::digest(format!("{} {}", self.store_identity(), self.prefix));
        let separator = if slug.is_empty() { "" } else { "-" };
        format!("{slug}{separator}{}", HEXLOWER.encode(&hash[..ID_HASH_BYTES]))
    }

    /// A layer with the settings that name this remote, and leave nothing about that to lower layers.
    #[must_use]
    pub fn name_in(&self, layer: Layer) -> Layer {
        let prefix = if self.prefix.as_str().is_empty() { "/" } else { self.prefix.as_str() };
        let (url, endpoint, region) = match &self.place {
            Place::S3 { endpoint, region, bucket } => {
                let endpoint = endpoint.as_deref().unwrap_or(ENDPOINT_OF_AWS);
                (format!("s3://{bucket}"), Some(endpoint.to_owned()), Some(region.clone()))
            }
            Place::Directory(path) => (directory_url(path), None, None),
        };
        Layer { remote: Some(url), remote_prefix: Some(prefix.to_owned()), endpoint, region, ..layer }
    }

    /// What a mount of it is called in the mount table.
    #[must_use]
    pub fn fs_name(&self) -> String {
        match &self.place {
            Place::S3 { bucket, .. } => format!("s3://{bucket}/{}", self.prefix),
            Place::Directory(path) => format!("file://{}/{}", path.display(), self.prefix),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fs_name())?;
        match &self.place {
            Place::S3 { endpoint: Some(endpoint), .. } => write!(f, " at {endpoint}"),
            Place::S3 { endpoint: None, region, .. } if region == DEFAULT_REGION => f.write_str(" at AWS"),
            Place::S3 { endpoint: None, region, .. } => write!(f, " at AWS {region}"),
            Place::Directory(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: Option<&str>) -> RemoteUrl {
        let prefix = prefix.map(|text| RemotePrefix::parse(text).unwrap());
        RemoteUrl::S3 { bucket: bucket.into(), prefix }
    }

    #[test]
    fn urls_are_parsed() {
        let parse = |text| RemoteUrl::parse(text).unwrap_or_else(|err| panic!("{text}: {err}"));
        assert_eq!(parse("s3://assets"), s3("assets", None));
        assert_eq!(parse("s3://assets/"), s3("assets", Some("")));
        assert_eq!(parse("s3://assets/a/b"), s3("assets", Some("a/b/")));
        assert_eq!(parse("file:///nas/data/"), RemoteUrl::Directory("/nas/data".into()));
        assert_eq!(parse("file:///my%20nas/./x"), RemoteUrl::Directory("/my nas/x".into()));
        for bad in [
            "",
            "assets",
            "s3://",
            "s3://x",
            "s3://a b",
            "http://h/b",
            "file://rel",
            "file:///a/../b",
            "s3://bucket//",
        ] {
            assert!(RemoteUrl::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_directory_can_be_the_remote() {
        for dir in ["/home/u/.local/share/dsfs/demo", "/a b/c%20d", "/é/x#y?z"] {
            let url = directory_url(Path::new(dir));
            assert_eq!(RemoteUrl::parse(&url), Ok(RemoteUrl::Directory(dir.into())), "{url}");
        }
    }

    #[test]
    fn endpoints_have_one_spelling() {
        let same = |text| normalize_endpoint(text).unwrap_or_else(|err| panic!("{err}"));
        assert_eq!(same("HTTPS://Host.Example/"), "https://host.example");
        assert_eq!(same("http://127.0.0.1:9000"), "http://127.0.0.1:9000");
        assert_eq!(same("http://h/Path/"), "http://h/Path");
        for bad in
            ["", "host", "ftp://h", "http://", "http://:80", "http://u:p@h", "http://h/?a=b", "http://a b"]
        {
            assert!(normalize_endpoint(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_are_readable_and_differ_where_the_remote_does() {
        let remote = |endpoint: Option<&str>, bucket: &str, prefix: &str| Remote {
            place: Place::S3 {
                endpoint: endpoint.map(str::to_owned),
                region: "auto".into(),
                bucket: bucket.into(),
            },
            prefix: RemotePrefix::parse(prefix).unwrap(),
        };
        let a = remote(Some("https://h"), "assets", "datasets/");
        assert!(a.id().starts_with("assets-datasets-"), "{}", a.id());
        assert_eq!(a.id().len(), "assets-datasets-".len() + 12);
        let others = [
            remote(None, "assets", "datasets/"),
            remote(Some("https://h"), "assets", "data/sets/"),
            remote(Some("https://h"), "assets2", "datasets/"),
            remote(Some("https://h"), "assets", ""),
        ];
        for other in &others {
            assert_ne!(a.id(), other.id());
        }
        assert_eq!(a.store_identity(), others[1].store_identity());
        let directory =
            Remote { place: Place::Directory("/".into()), prefix: RemotePrefix::parse("").unwrap() };
        assert_eq!(directory.id().len(), 12);
    }
}
