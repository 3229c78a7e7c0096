//! The demo's files, as they are in `demo/` of the source: generated data, see the README there.

/// A file of a dataset: its path in it, and its content.
pub type File = (&'static str, &'static [u8]);

macro_rules! files {
    ($dataset:literal: $($path:literal),* $(,)?) => {
        &[$((
            $path,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/", $dataset, "/", $path)),
        )),*]
    };
}

/// The datasets. The file that says that a dataset is complete is its last.
pub const DATASETS: &[(&str, &[File])] = &[
    (
        "astronaut_pan",
        files!["astronaut_pan":
            "frames/000000.png",
            "frames/000001.png",
            "frames/000002.png",
            "frames/000003.png",
            "frames/000004.png",
            "frames/000005.png",
            "frames/000006.png",
            "frames/000007.png",
            "frames/000008.png",
            "frames/000009.png",
            "frames/000010.png",
            "frames/000011.png",
            "frames/000012.png",
            "frames/000013.png",
            "frames/000014.png",
            "frames/000015.png",
            "meta.json",
            "data.jsonl",
        ],
    ),
    (
        "iris",
        files!["iris":
            "data/train/iris.csv",
            "data/val/iris.csv",
            "meta.json",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn walk(dir: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_file_of_the_source_is_in_the_program() {
        for (name, files) in DATASETS {
            let mut found = BTreeSet::new();
            walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(name), "", &mut found);
            let listed: BTreeSet<String> = files.iter().map(|(path, _)| (*path).to_owned()).collect();
            assert_eq!(found, listed);
            assert!(matches!(files.last().unwrap().0, "data.jsonl" | "meta.json"));
        }
        let total: usize =
            DATASETS.iter().flat_map(|(_, files)| *files).map(|(_, content)| content.len()).sum();
        assert!(total < 600_000, "{total}");
    }
}
