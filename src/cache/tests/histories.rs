//! Random histories of reads, restarts and damage: no wrong byte is ever read.

use proptest::prelude::*;

use super::*;

/// What happens to the cache in the property test.
#[derive(Clone, Debug)]
enum Event {
    Read {
        object: usize,
        at: u64,
        len: u64,
    },
    Restart,
    Evict {
        object: usize,
    },
    FlipBit {
        file: usize,
        at: u64,
    },
    Truncate {
        file: usize,
        at: u64,
    },
    Swap {
        one: usize,
        other: usize,
    },
    Zero {
        file: usize,
        at: u64,
    },
    /// The object is another version from now on.
    Replace {
        object: usize,
    },
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..4_usize, any::<u64>(), 1..400_000_u64).prop_map(|(object, at, len)| Event::Read { object, at, len }),
        1 => Just(Event::Restart),
        1 => (0..4_usize).prop_map(|object| Event::Evict { object }),
        2 => (any::<usize>(), any::<u64>()).prop_map(|(file, at)| Event::FlipBit { file, at }),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(file, at)| Event::Truncate { file, at }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Event::Swap { one, other }),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(file, at)| Event::Zero { file, at }),
        1 => (0..4_usize).prop_map(|object| Event::Replace { object }),
    ]
}

const SIZES: [u64; 4] = [900, BLOCK_BYTES, 3 * BLOCK_BYTES + 100, 9 * BLOCK_BYTES];

/// A block that this process has checked may be damaged behind its back: the model of damage is
/// a damaged disk before a start, so damage is followed by one.
fn damage(dir: &Path, event: &Event) {
    let all: Vec<PathBuf> = ["data", "map", "one"].iter().flat_map(|suffix| files(dir, suffix)).collect();
    if all.is_empty() {
        return;
    }
    let pick = |n: usize| &all[n % all.len()];
    let place = |path: &Path, at: u64| at % fs::metadata(path).unwrap().len().max(1);
    match event {
        Event::FlipBit { file, at } if fs::metadata(pick(*file)).unwrap().len() > 0 => {
            flip(pick(*file), place(pick(*file), *at), (*at >> 61) as u8);
        }
        Event::Truncate { file, at } => {
            let path = pick(*file);
            OpenOptions::new().write(true).open(path).unwrap().set_len(place(path, *at)).unwrap();
        }
        Event::Zero { file, at } => {
            let path = pick(*file);
            let len = fs::metadata(path).unwrap().len();
            let at = place(path, *at);
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&vec![0; (len - at).min(70_000) as usize], at).unwrap();
        }
        Event::Swap { one, other } if pick(*one) != pick(*other) => {
            let aside = dir.join("aside");
            rustix::fs::rename(pick(*one), &aside).unwrap();
            rustix::fs::rename(pick(*other), pick(*one)).unwrap();
            rustix::fs::rename(&aside, pick(*other)).unwrap();
        }
        Event::FlipBit { .. }
        | Event::Swap { .. }
        | Event::Read { .. }
        | Event::Restart
        | Event::Evict { .. }
        | Event::Replace { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_to_the_disk_no_wrong_byte_is_read(events in proptest::collection::vec(events(), 1..60)) {
        let dir = TempDir::new().unwrap();
        let mut cache = open(dir.path());
        let mut versions = [0_u32; 4];
        for event in &events {
            match event {
                Event::Read { object, at, len } => {
                    let name = format!("{object}.{}", versions[*object]);
                    let size = SIZES[*object];
                    let whole = content(&name, size);
                    let bytes = block::clip(at % size, *len, size);
                    let entry = cache.entry(&id(&name), size);
                    let expected = &whole[bytes.start as usize..bytes.end as usize];
                    match read(&entry, bytes.clone()) {
                        Some(read) => prop_assert!(read == *expected, "wrong bytes of {name}"),
                        None => store(&entry, &whole, block::covering(&bytes)),
                    }
                    prop_assert!(read(&entry, bytes.clone()).is_some_and(|read| read == *expected), "stored, and not there");
                    if let Some(mapped) = entry.mapped(&bytes, Pages::Keep) {
                        prop_assert!(mapped == *expected, "wrong mapped bytes of {name}");
                    }
                }
                Event::Restart => cache = open(dir.path()),
                Event::Evict { object } => {
                    let name = format!("{object}.{}", versions[*object]);
                    cache.paths.remove_version(&id(&name)).unwrap();
                }
                Event::Replace { object } => versions[*object] += 1,
                Event::FlipBit { .. } | Event::Truncate { .. } | Event::Swap { .. } | Event::Zero { .. } => {
                    damage(dir.path(), event);
                    cache = open(dir.path());
                }
            }
        }
    }
}
