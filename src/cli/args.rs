//! Flags that several commands share.

use std::ffi::OsString;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use clap::ArgAction;
use clap::Args;

use crate::cli::client::ClientArgs;
use crate::config::Layer;
use crate::config::Selection;

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// The remote: s3://BUCKET, s3://BUCKET/PREFIX/ or file:///DIR/
    #[arg(long, value_name = "URL", global = true, help_heading = "Remote")]
    pub remote: Option<String>,
    /// The bucket
    #[arg(short, long, value_name = "NAME", global = true, help_heading = "Remote")]
    pub bucket: Option<String>,
    /// The server's URL; 'aws' for AWS itself
    #[arg(short, long, value_name = "URL", global = true, help_heading = "Remote")]
    pub endpoint: Option<String>,
    /// The region to sign for
    #[arg(long, value_name = "NAME", global = true, help_heading = "Remote")]
    pub region: Option<String>,
    /// What the keys of all datasets begin with; '/' for nothing
    #[arg(long, value_name = "PREFIX", global = true, help_heading = "Remote")]
    pub remote_prefix: Option<String>,
    /// A profile of the configuration file
    #[arg(long, value_name = "NAME", global = true, help_heading = "Settings")]
    pub profile: Option<String>,
    /// The configuration file, instead of ~/.config/dsfs/config.toml
    #[arg(long, value_name = "FILE", global = true, help_heading = "Settings")]
    pub config: Option<PathBuf>,
    /// Where cached blocks go
    #[arg(long, value_name = "DIR", global = true, help_heading = "Settings")]
    pub cache_dir: Option<PathBuf>,
    /// Where staged files go
    #[arg(long, value_name = "DIR", global = true, help_heading = "Settings")]
    pub state_dir: Option<PathBuf>,
    /// Say more; twice for everything, each request included
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Settings")]
    pub verbose: u8,
    /// Say nothing but errors and what was asked for
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Settings")]
    pub quiet: bool,
    /// How the bucket is asked, and by whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

impl GlobalArgs {
    /// The settings among the flags. Directories are made absolute here, where the user is.
    #[must_use]
    pub fn layer(&self) -> Layer {
        Layer {
            // `dsfs dataset list --remote` has the flag without a URL.
            remote: self.remote.clone().filter(|url| !url.is_empty()),
            bucket: self.bucket.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            remote_prefix: self.remote_prefix.clone(),
            cache_dir: self.cache_dir.as_deref().map(absolute),
            state_dir: self.state_dir.as_deref().map(absolute),
            ..self.client.layer()
        }
    }

    /// The flags that are no remote's, for a command that starts another.
    #[must_use]
    pub fn settings_as_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let layer = self.layer();
        for (flag, dir) in [("--cache-dir", layer.cache_dir), ("--state-dir", layer.state_dir)] {
            if let Some(dir) = dir {
                arguments.extend([flag.into(), dir.into()]);
            }
        }
        arguments.extend((0..self.verbose).map(|_| "-v".into()));
        arguments.extend(self.quiet.then(|| "--quiet".into()));
        arguments
    }

    /// The flags that choose file and profile.
    #[must_use]
    pub fn selection(&self) -> Selection {
        Selection { file: self.config.clone(), profile: self.profile.clone(), is_final: false }
    }

    /// Whether the flags name a remote, in whatever way.
    #[must_use]
    pub fn names_remote(&self) -> bool {
        let layer = self.layer();
        let given = [&layer.remote, &layer.bucket, &layer.endpoint, &layer.region, &layer.remote_prefix];
        given.into_iter().any(Option::is_some) || self.profile.is_some() || self.config.is_some()
    }
}

/// A path as it is from here. What is above here is named without a way through here, over which a mount may come
/// to lie.
pub(super) fn absolute(path: &Path) -> PathBuf {
    let Ok(mut here) = std::env::current_dir() else { return path.to_owned() };
    let mut below = path.components();
    while let Some(Component::CurDir | Component::ParentDir) = below.clone().next() {
        if below.next() == Some(Component::ParentDir) {
            here.pop(); // which is what `..` means, since there are no symbolic links in it
        }
    }
    here.join(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_is_named_without_a_way_through_here() {
        let here = std::env::current_dir().unwrap();
        let above = here.parent().unwrap();
        for (given, expected) in [
            ("/a/../b", PathBuf::from("/a/../b")),
            ("a/../b", here.join("a/../b")),
            ("./a", here.join("a")),
            ("..", above.to_owned()),
            ("./.././../a", above.parent().unwrap().join("a")),
        ] {
            assert_eq!(absolute(Path::new(given)), expected, "{given}");
        }
    }
}
