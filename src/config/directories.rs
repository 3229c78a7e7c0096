//! Where dsfs keeps its files: the XDG directories.
//!
//! | directory | holds | default |
//! | --- | --- | --- |
//! | config | `config.toml` | `~/.config/dsfs` |
//! | cache | blocks and listings: may be deleted at any time | `~/.cache/dsfs` |
//! | state | staged files, journals, logs: never deleted by anybody but the user | `~/.local/state/dsfs` |
//! | data | the demo's remote | `~/.local/share/dsfs` |
//! | runtime | control sockets | `$XDG_RUNTIME_DIR/dsfs` |

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::config::Environment;
use crate::durable;

/// Bytes of the name of a control socket.
pub const SOCKET_NAME_BYTES: usize = 21;
/// Bytes that the path of a socket may have: the kernel's `sun_path`, without the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The base directories of one user, each already with dsfs's own name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Of `config.toml`.
    pub config: PathBuf,
    /// Of the block cache.
    pub cache: PathBuf,
    /// Of the staging areas.
    pub state: PathBuf,
    /// Of the demo.
    pub data: PathBuf,
    /// Where control sockets may be, the preferred place first. Which one a daemon took depends on its
    /// environment, so whoever looks for its socket looks in all of them.
    pub runtime: Vec<PathBuf>,
}

impl Directories {
    /// Follows the XDG variables; relative ones are ignored, as their specification asks.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`] if neither they nor the home directory are known.
    pub fn find(env: &Environment, uid: u32) -> Result<Self, ConfigError> {
        let home = env.absolute_path("HOME");
        let base = |variable: &str, below_home: &str| {
            env.absolute_path(variable)
                .or_else(|| home.as_ref().map(|home| home.join(below_home)))
                .map(|base| base.join("dsfs"))
                .ok_or(ConfigError::NoHome)
        };
        let state = base("XDG_STATE_HOME", ".local/state")?;
        let mut runtime: Vec<PathBuf> =
            env.absolute_path("XDG_RUNTIME_DIR").map(|dir| dir.join("dsfs")).into_iter().collect();
        runtime.push(PathBuf::from(format!("/run/user/{uid}/dsfs")));
        if uid == 0 {
            runtime.push(PathBuf::from("/run/dsfs"));
        }
        runtime.push(state.join("run"));
        runtime.dedup();
        Ok(Self {
            config: base("XDG_CONFIG_HOME", ".config")?,
            cache: base("XDG_CACHE_HOME", ".cache")?,
            data: base("XDG_DATA_HOME", ".local/share")?,
            state,
            runtime,
        })
    }

    /// Makes the first runtime directory that can be made private to this user, and that sockets fit into.
    ///
    /// # Errors
    /// The last candidate's: it is the state directory's, which has to be writable anyway. Its path may be
    /// too long.
    pub fn prepare_runtime(&self, uid: u32) -> io::Result<PathBuf> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for dir in &self.runtime {
            match check_length(dir).and_then(|()| prepare_private(dir, uid)) {
                Ok(()) => return Ok(dir.clone()),
                Err(err) => last = io::Error::new(err.kind(), format!("{}: {err}", dir.display())),
            }
        }
        Err(last)
    }
}

/// Refuses a directory whose sockets nobody could bind or connect to.
fn check_length(dir: &Path) -> io::Result<()> {
    let bytes = dir.as_os_str().len() + "/".len() + SOCKET_NAME_BYTES;
    if bytes <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "the path of a socket there would have {bytes} bytes, of {SOCKET_PATH_BYTES_MAX} that it may have; \
             set XDG_RUNTIME_DIR to a directory of yours with a shorter path"
        ),
    ))
}

/// Makes a directory of ours, unless it is there, and refuses one that others own or can enter.
///
/// The directory above it is made only below a home directory: `/run/user/1000` is not ours to make.
fn prepare_private(dir: &Path, uid: u32) -> io::Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    if parent.starts_with("/run") && !parent.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    durable::create_private_dirs(dir)?;
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != uid {
        return Err(io::Error::other("is not a directory of this user"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "mode {:04o} lets others in; it has to be 0700",
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn xdg_variables_win_over_the_home_directory_and_relative_ones_do_not_count() {
        let env = Environment::from_pairs(&[
            ("HOME", "/home/u"),
            ("XDG_CACHE_HOME", "/big/cache"),
            ("XDG_STATE_HOME", "relative"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        ]);
        let dirs = Directories::find(&env, 7).expect("home is known");
        assert_eq!(dirs.config, Path::new("/home/u/.config/dsfs"));
        assert_eq!(dirs.cache, Path::new("/big/cache/dsfs"));
        assert_eq!(dirs.state, Path::new("/home/u/.local/state/dsfs"));
        assert_eq!(dirs.data, Path::new("/home/u/.local/share/dsfs"));
        let runtime = ["/run/user/7/dsfs", "/home/u/.local/state/dsfs/run"].map(PathBuf::from);
        assert_eq!(dirs.runtime, runtime);
    }

    #[test]
    fn without_a_home_directory_there_is_an_error() {
        assert!(matches!(Directories::find(&Environment::default(), 7), Err(ConfigError::NoHome)));
    }

    #[test]
    fn a_runtime_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(prepare_private(&open, uid).is_err());
        assert!(prepare_private(&dir.path().join("new/deep"), uid).is_ok());
        assert!(prepare_private(&dir.path().join("new"), uid + 1).is_err());
    }

    #[test]
    fn a_runtime_directory_that_no_socket_fits_into_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let (long, short) = (dir.path().join("x".repeat(90)), dir.path().join("run"));
        let home = Environment::from_pairs(&[("HOME", "/home/u")]);
        let of = |runtime: &[&Path]| {
            let runtime = runtime.iter().map(|dir| dir.to_path_buf()).collect();
            Directories { runtime, ..Directories::find(&home, uid).unwrap() }
        };
        assert_eq!(of(&[&long, &short]).prepare_runtime(uid).unwrap(), short);
        let err = of(&[&long]).prepare_runtime(uid).unwrap_err();
        assert!(err.to_string().contains("XDG_RUNTIME_DIR"), "{err}");
        assert!(!long.exists());
    }
}
