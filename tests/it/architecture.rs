//! The layering, as a test: it needs imports to be spelled `use crate::x::…`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Lowest first. A module may use modules before it in this list, never after.
const LAYERS: &[&str] = &[
    "name",
    "block",
    "clock",
    "failpoint",
    "durable",
    "local",
    "config",
    "observe",
    "store",
    "record",
    "log",
    "cache",
    "read",
    "staging",
    "catalog",
    "tree",
    "commit",
    "compare",
    "transfer",
    "client",
    "fs",
    "fuse",
    "control",
    "daemon",
    "cli",
];

fn rust_files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            rust_files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// Every source of a module; none, for one that is not written yet.
fn sources_of(module: &str) -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for path in [src.join(format!("{module}.rs")), src.join(module)] {
        if path.exists() {
            rust_files(&path, &mut files);
        }
    }
    files.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn modules_depend_only_on_lower_layers() {
    let mut upward = BTreeSet::new();
    for (rank, module) in LAYERS.iter().enumerate() {
        for (path, source) in sources_of(module) {
            for other in &LAYERS[rank + 1..] {
                let used = source.contains(&format!("crate::{other}::"))
                    || source.contains(&format!("crate::{other};"));
                if used {
                    upward.insert(format!("{} -> {other}", path.display()));
                }
            }
        }
    }
    assert!(upward.is_empty(), "dependencies that point upwards: {upward:#?}");
}

#[test]
fn every_module_has_its_place_in_the_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let declared: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let ranks: Vec<Option<usize>> =
        declared.iter().map(|module| LAYERS.iter().position(|layer| layer == module)).collect();
    let strangers: Vec<&&str> =
        declared.iter().zip(&ranks).filter(|(_, rank)| rank.is_none()).map(|(m, _)| m).collect();
    assert!(strangers.is_empty(), "modules without a layer: {strangers:?}");
    assert!(ranks.is_sorted(), "lib.rs declares modules in layer order: {declared:?}");
}

#[test]
fn imports_are_spelled_so_that_the_layering_can_be_seen() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for path in files {
        let source = fs::read_to_string(&path).unwrap();
        let nested = source.lines().find(|line| line.trim_start().starts_with("use crate::{"));
        assert!(nested.is_none(), "{}: {nested:?}", path.display());
    }
}
