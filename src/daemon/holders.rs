//! Who keeps a mount busy: what `fuser -m` would say, which is not installed everywhere.
//!
//! Looks at each process's working directory, root, executable, open files and mappings, by their paths
//! alone: a stat of a file on a mount that hangs would hang this too.

use std::fmt;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Processes that are named at most.
pub const HOLDERS_MAX: usize = 20;

/// A process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyProcess {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// What it does there.
    pub how: Hold,
    /// The path that it holds.
    pub path: PathBuf,
}

/// In what way a process keeps a mount busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is its working directory.
    WorkingDirectory,
    /// It is its root directory.
    Root,
    /// It runs from there.
    Executable,
    /// It has it open.
    OpenFile,
    /// It has it in its memory.
    Mapping,
}

impl fmt::Display for BusyProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            Hold::WorkingDirectory => "is in",
            Hold::Root => "has as root",
            Hold::Executable => "runs from",
            Hold::OpenFile => "has open",
            Hold::Mapping => "has mapped",
        };
        write!(f, "{} (pid {}) {how} {}", self.name, self.pid, self.path.display())
    }
}

/// The processes that keep a mount busy, as far as this user may look; each once.
#[must_use]
pub fn holders(mountpoint: &Path) -> Vec<BusyProcess> {
    holders_in(Path::new("/proc"), mountpoint, std::process::id())
}

fn holders_in(proc: &Path, mountpoint: &Path, except: u32) -> Vec<BusyProcess> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<BusyProcess> =
        pids.filter(|pid| *pid != except).filter_map(|pid| hold_of(proc, pid, mountpoint)).collect();
    found.sort_by_key(|process| process.pid);
    found.truncate(HOLDERS_MAX);
    found
}

/// In what way, if any, a process is there.
fn hold_of(proc: &Path, pid: u32, mountpoint: &Path) -> Option<BusyProcess> {
    let dir = proc.join(pid.to_string());
    let link = |name: &str| fs::read_link(dir.join(name)).ok().filter(|path| path.starts_with(mountpoint));
    let open = || {
        let files = fs::read_dir(dir.join("fd")).ok()?;
        files
            .flatten()
            .find_map(|file| fs::read_link(file.path()).ok().filter(|path| path.starts_with(mountpoint)))
    };
    let mapped = || mapped_below(&fs::read_to_string(dir.join("maps")).ok()?, mountpoint);
    let (how, path) = link("cwd")
        .map(|path| (Hold::WorkingDirectory, path))
        .or_else(|| link("root").map(|path| (Hold::Root, path)))
        .or_else(|| link("exe").map(|path| (Hold::Executable, path)))
        .or_else(|| open().map(|path| (Hold::OpenFile, path)))
        .or_else(|| mapped().map(|path| (Hold::Mapping, path)))?;
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    Some(BusyProcess { pid, name: name.trim_end().to_owned(), how, path })
}

/// The first file below `mountpoint` in a table of mappings.
fn mapped_below(maps: &str, mountpoint: &Path) -> Option<PathBuf> {
    let path = |line: &str| {
        // address perms offset dev inode path: the path is whatever follows five fields.
        let at = line.find(" /").map(|at| at + 1)?;
        let path = line[at..].strip_suffix(" (deleted)").unwrap_or(&line[at..]);
        Path::new(path).starts_with(mountpoint).then(|| PathBuf::from(path))
    };
    maps.lines().find_map(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn mappings_are_read() {
        let maps = "7f00-7f01 r--p 00000000 fe:00 123  /usr/lib/x.so\n\
                    7f02-7f03 r--s 00000000 00:34 77                 /mnt/data sets/a b.bin (deleted)\n\
                    7f04-7f05 rw-p 00000000 00:00 0                  [heap]\n";
        assert_eq!(mapped_below(maps, Path::new("/mnt/data sets")), Some("/mnt/data sets/a b.bin".into()));
        assert_eq!(mapped_below(maps, Path::new("/mnt/data")), None);
    }

    #[test]
    fn each_kind_of_hold_is_found_in_a_proc_of_our_own_making() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, link: &str, target: &str| {
            let dir = proc.path().join(pid.to_string());
            fs::create_dir_all(dir.join("fd")).unwrap();
            fs::write(dir.join("comm"), format!("p{pid}\n")).unwrap();
            symlink(target, dir.join(link)).unwrap();
        };
        process(10, "cwd", "/mnt/d");
        process(11, "fd/3", "/mnt/d/x/file");
        process(12, "fd/3", "/mnt/dd/file");
        process(13, "exe", "/mnt/d/prog");
        process(14, "cwd", "/mnt/d/self");
        fs::create_dir(proc.path().join("sys")).unwrap();
        let found = holders_in(proc.path(), Path::new("/mnt/d"), 14);
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        let expected = [
            "p10 (pid 10) is in /mnt/d",
            "p11 (pid 11) has open /mnt/d/x/file",
            "p13 (pid 13) runs from /mnt/d/prog",
        ];
        assert_eq!(shown, expected);
    }
}
