//! `dsfs url`: URLs that anybody can use for a while.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::catalog::Catalog;
use crate::cli::Context;
use crate::cli::bulk::Session;
use crate::cli::target;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::daemon::remote;
use crate::name::DatasetName;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::store::StoreError;

/// The longest that a signature lives: S3's rule.
const EXPIRES_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Print URLs by which anybody can read a file, or all files of a dataset, for a while
///
/// Whoever has the URL needs no key. One that is made with --put writes a file where nothing is, and only
/// with the header `If-None-Match: *`, so that it can never overwrite.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs url run_07/data.jsonl
  dsfs url run_07 --expires 7d --json
  curl -T notes.txt -H 'If-None-Match: *' \"$(dsfs url run_07/notes.txt --put)\"")]
pub struct UrlArgs {
    /// The file, or the whole dataset
    #[arg(value_name = "NAME[/PATH]")]
    what: String,
    /// How long it can be used, a week at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = lifetime)]
    expires: Duration,
    /// For writing, not for reading
    #[arg(long)]
    put: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    key: ObjectKey,
    method: &'static str,
    url: String,
    /// What the request must have, so that the server takes the signature.
    headers: Vec<(&'static str, &'static str)>,
    expires_in_seconds: u64,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let expires = units::parse_duration(text)?;
    if (Duration::from_secs(1)..=EXPIRES_MAX).contains(&expires) {
        Ok(expires)
    } else {
        Err(format!("{text:?} is not between one second and a week"))
    }
}

/// Runs the command.
///
/// # Errors
/// There is no such file; the remote cannot sign.
pub fn run(args: &UrlArgs, cx: &mut Context) -> Result<(), Failure> {
    let usage = |err: crate::name::NameError| Failure::new(FailureKind::Usage, err.to_string());
    let (name, path) =
        args.what.split_once('/').map_or((&*args.what, None), |(name, path)| (name, Some(path)));
    let name = DatasetName::parse(name).map_err(usage)?;
    let path = path.map(RelPath::parse).transpose().map_err(usage)?;
    let config = target::config(cx.global.layer(), cx)?;
    let rows = remote::runtime()?.block_on(async {
        let session = Session::open(&config).await?;
        session.unless_cancelled(sign(args, &name, path.as_ref(), &session)).await
    })?;
    if args.json {
        cx.out.json(&rows);
        return Ok(());
    }
    for row in &rows {
        cx.out.line(&row.url);
    }
    if args.put {
        cx.out.note("send the header `If-None-Match: *` with it");
    }
    Ok(())
}

async fn sign(
    args: &UrlArgs,
    name: &DatasetName,
    path: Option<&RelPath>,
    session: &Session,
) -> Result<Vec<Row>, Failure> {
    let remote = &session.remote;
    let Some(bucket) = remote.bucket() else {
        let message = format!("{} is a directory, and has no URLs", remote.remote);
        return Err(Failure::new(FailureKind::Usage, message).hint("URLs are for buckets"));
    };
    let unusable = |err: StoreError| failure::of_access(&err, &session.config);
    let mut rows = Vec::new();
    for key in keys(args, name, path, session).await? {
        let (method, headers, url) = if args.put {
            ("PUT", vec![("If-None-Match", "*")], bucket.presign_put(&key, args.expires).await)
        } else {
            ("GET", Vec::new(), bucket.presign_get(&key, args.expires).await)
        };
        let url = url.map_err(unusable)?;
        rows.push(Row { key, method, url, headers, expires_in_seconds: args.expires.as_secs() });
    }
    Ok(rows)
}

/// What is to be signed: a file that is there, one that is not yet, or all that a mount would show.
async fn keys(
    args: &UrlArgs,
    name: &DatasetName,
    path: Option<&RelPath>,
    session: &Session,
) -> Result<Vec<ObjectKey>, Failure> {
    let remote = &session.remote;
    let prefix = &remote.remote.prefix;
    let missing = || {
        let message = format!("there is no {} in {}", args.what, remote.remote);
        Failure::new(FailureKind::NotFound, message)
    };
    match path {
        None if args.put => Err(Failure::new(FailureKind::Usage, "--put is for a single file")
            .hint(format!("dsfs url {name}/PATH --put"))),
        Some(path) => {
            let key = prefix.key(name, path);
            let key = key.map_err(|err| Failure::new(FailureKind::Usage, err.to_string()))?;
            if !args.put {
                match remote.store.head(&key).await {
                    Ok(_) => {}
                    Err(StoreError::NotFound { .. }) => return Err(missing()),
                    Err(err) => return Err(failure::of_access(&err, &session.config)),
                }
            }
            Ok(vec![key])
        }
        None => {
            let catalog = Catalog::new(remote.store.clone(), prefix.clone(), Duration::ZERO);
            let whole = catalog.contents(name).await;
            let whole = whole.map_err(|err| failure::of_access(&err, &session.config))?;
            if whole.files.is_empty() {
                return Err(missing());
            }
            Ok(whole.files.into_values().map(|whole| whole.file.key).collect())
        }
    }
}
