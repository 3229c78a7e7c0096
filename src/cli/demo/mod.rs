//! `dsfs demo`: something to look at and to play with, without a server and without an account.
//!
//! A directory is the remote. What it holds is put there once, as any other tool might put it; what the
//! user commits and stages stays, however often the demo is started.

mod data;

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;

use crate::cli::Context;
use crate::cli::mount;
use crate::cli::target;
use crate::config::Config;
use crate::config::Layer;
use crate::config::remote::directory_url;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::daemon::mountpoint;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::durable;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::store::Expect;
use crate::store::ListRequest;
use crate::store::PutAttributes;
use crate::store::StoreError;

/// The mount point, in the home directory, if none is given.
const MOUNTPOINT: &str = "dsfs-demo";

/// Mount two sample datasets, without a server or an account
///
/// The remote is a directory. Starting the demo again keeps what was committed and what is staged.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs demo
  dsfs demo /tmp/look --dir /tmp/look-remote")]
pub struct DemoArgs {
    /// Where to mount [default: ~/dsfs-demo]
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    /// The directory that is the remote [default: ~/.local/share/dsfs/demo]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// The directory cannot be made; the mount cannot be made.
pub fn run(args: &DemoArgs, cx: &mut Context) -> Result<(), Failure> {
    if cx.global.names_remote() {
        return Err(Failure::new(FailureKind::Usage, "the demo has a remote of its own")
            .hint("--dir says where; `dsfs mount` mounts others"));
    }
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| dir.clone()),
        None => cx.directories()?.data.join("demo"),
    };
    let mountpoint = match (&args.mountpoint, cx.env.absolute_path("HOME")) {
        (Some(path), _) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        (None, Some(home)) => home.join(MOUNTPOINT),
        (None, None) => return Err(failure::of_config(&crate::config::ConfigError::NoHome)),
    };
    let url = directory_url(&dir);
    let config = cx.config(Layer { remote: Some(url.clone()), ..cx.global.layer() })?;
    durable::create_private_dirs(&dir)
        .map_err(|err| failure::of_directory("demo's directory", &dir, &err))?;
    remote::runtime()?.block_on(publish(&config, cx))?;
    let path = mountpoint::resolve(&mountpoint);
    let running = target::live_mounts(&config.directories, None)
        .into_iter()
        .filter(|(_, status)| !status.detached)
        .any(|(_, status)| status.mountpoint == path && status.remote_id == config.remote.remote().id());
    if running {
        cx.out.note(format!("the demo is mounted already at {}", path.display()));
    } else {
        let mut arguments: Vec<OsString> =
            vec!["mount".into(), mountpoint.into(), "--remote".into(), url.into()];
        arguments.extend(cx.global.settings_as_arguments());
        let ready = mount::start_daemon(&arguments, &config, cx)?;
        cx.out.note(format!("mounted {} at {}", ready.remote, ready.mountpoint.display()));
    }
    if !cx.out.is_quiet() {
        cx.out.line(what_next(&path));
    }
    Ok(())
}

/// Puts the sample datasets into the remote, those that are not there.
async fn publish(config: &Config, cx: &mut Context) -> Result<(), Failure> {
    let remote = remote::open(config).await?;
    remote.check_access(config).await?;
    for (name, files) in data::DATASETS {
        let name = DatasetName::parse(name).expect("a constant that is a valid name");
        let mut request = ListRequest::recursive(remote.remote.prefix.dataset(&name));
        request.keys_max = 1;
        let page = remote.store.list(&request).await.map_err(|err| failure::of_store(&err))?;
        if page.objects.is_empty() {
            publish_dataset(&remote, &name, files).await.map_err(|err| failure::of_store(&err))?;
            cx.out.note(format!("made the dataset {name}: {} files", files.len()));
        }
    }
    Ok(())
}

async fn publish_dataset(
    remote: &OpenRemote,
    name: &DatasetName,
    files: &[data::File],
) -> Result<(), StoreError> {
    for (path, content) in files {
        let path = RelPath::parse(path).expect("a constant that is a valid path");
        let key = remote.remote.prefix.key(name, &path).expect("constants that are short");
        let body = Bytes::from_static(content);
        match remote.store.put(&key, body, &Expect::Absent, &PutAttributes::default()).await {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// What to try, with an explanation in a column of its own where there is one.
fn what_next(mountpoint: &Path) -> String {
    let at = mountpoint.display();
    let lines = [
        (format!("ls -lR {at}"), ""),
        (format!("head -3 {at}/astronaut_pan/data.jsonl"), ""),
        (format!("cp -r {at}/iris {at}/mine"), "staged, on this disk only"),
        ("dsfs status".to_owned(), ""),
        ("dsfs commit mine".to_owned(), "published, all or nothing"),
        (format!("rm {at}/iris/meta.json"), "refused: what is published stays"),
        (format!("dsfs umount {at}"), "`dsfs demo` brings all of it back"),
    ];
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let line = |(command, note): &(String, &str)| match *note {
        "" => format!("\n  {command}"),
        note => format!("\n  {command:<width$}  # {note}"),
    };
    format!("Try:{}", lines.iter().map(line).collect::<String>())
}
