//! Files of a mount with `--allow-replace` that are opened by their names while commits replace them.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::common::home::Home;

const ROUNDS: usize = 60;

fn version(number: usize) -> String {
    format!("version {number}\n").repeat(1 + number % 7 * 1000)
}

/// What is read of one version: all of it, or that it is there no more.
fn rest_of(mut file: File, what: &str) -> Option<String> {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) => Some(text),
        Err(err) if Errno::from_io_error(&err) == Some(Errno::STALE) => None,
        Err(err) => panic!("{what}: {err}"),
    }
}

/// Opens a file by its name again and again. Returns how often.
fn reader(path: PathBuf, stop: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut opened = 0;
        while !stop.load(Ordering::Relaxed) {
            let file = File::open(&path).unwrap_or_else(|err| panic!("open number {opened}: {err}"));
            fs::metadata(&path).unwrap_or_else(|err| panic!("stat number {opened}: {err}"));
            rest_of(file, "the reader"); // of any version, and half of one that is being written
            opened += 1;
        }
        opened
    })
}

/// Replaces what is there in one of the ways in which programs do, under which it always has its name.
fn replace(path: &Path, number: usize) -> io::Result<()> {
    if number.is_multiple_of(3) {
        let new = path.with_extension("new");
        fs::write(&new, version(number))?;
        return fs::rename(&new, path);
    }
    fs::write(path, version(number))
}

fn mounted() -> Home {
    let home = Home::new();
    let said = home.run(&["mount", "mnt", "--allow-replace", "--remote", &home.remote()]);
    assert_eq!(said.code, 0, "{}", said.err);
    fs::create_dir(home.path("mnt/run")).unwrap();
    fs::write(home.path("mnt/run/a"), version(0)).unwrap();
    assert_eq!(home.run(&["commit", "run"]).code, 0);
    home
}

/// The moment after a commit is the one to look at.
#[test]
fn who_opens_a_file_by_its_name_finds_it_whatever_is_committed() {
    let home = mounted();
    let path = home.path("mnt/run/a");
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2).map(|_| reader(path.clone(), &stop)).collect();
    for number in 1..=ROUNDS {
        let before = File::open(&path).unwrap_or_else(|err| panic!("{number}: {err}"));
        replace(&path, number).unwrap_or_else(|err| panic!("{number}: {err}"));
        let staged = File::open(&path).unwrap_or_else(|err| panic!("{number}: {err}"));
        let said = home.run(&["commit", "run", "--overwrite"]);
        assert_eq!(said.code, 0, "{number}: {}", said.err);
        let after = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{number}: {err}"));
        assert!(after == version(number), "{number}: {after:.20}");
        for (file, what, expected) in [(before, "before", number - 1), (staged, "staged", number)] {
            if let Some(text) = rest_of(file, what) {
                assert!(text == version(expected), "{number}, {what}: {text:.20}");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let opened: Vec<usize> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    assert!(opened.iter().all(|times| *times > ROUNDS), "{opened:?}");
}

/// As an editor that saves again, at once: what it finds is still the inode of the staged file, as long as
/// the kernel was not told better.
#[test]
fn who_writes_to_a_file_again_just_after_its_commit_can() {
    let home = mounted();
    let path = home.path("mnt/run/a");
    for number in 1..=ROUNDS {
        replace(&path, number).unwrap_or_else(|err| panic!("{number}: {err}"));
        let said = home.run(&["commit", "run", "--overwrite"]);
        assert_eq!(said.code, 0, "{number}: {}", said.err);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), version(ROUNDS));
}
