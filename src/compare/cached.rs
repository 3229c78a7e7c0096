//! The cache against a snapshot: every cached file whole, every other block by its checksum.

use std::ops::ControlFlow;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use sha2::Digest;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use crate::cache::BlockCache;
use crate::cache::VersionId;
use crate::compare::Watch;
use crate::compare::hashers;
use crate::compare::verify::BadFile;
use crate::compare::verify::CacheCounts;
use crate::compare::verify::Place;
use crate::compare::verify::Problem;
use crate::compare::verify::Verify;
use crate::compare::verify::extent;
use crate::compare::verify::keyed;
use crate::name::ObjectKey;
use crate::record::ContentId;
use crate::record::Entry;
use crate::record::Snapshot;

/// What was found of one file.
enum Verdict {
    Absent,
    Partial { bytes: u64 },
    Right,
    Bad(BadFile),
}

/// Looks at all that the cache has of a snapshot; what is wrong is dropped, and fetched again by the next
/// reader.
pub(super) async fn verify(
    verify: &Verify,
    cache: &Arc<BlockCache>,
    identity: &str,
    snapshot: &Snapshot,
    bad: &mut Vec<BadFile>,
) -> CacheCounts {
    let (files, bytes) = extent(snapshot.entries.values());
    verify.watch.phase("cache", files, bytes);
    let given_up = CancellationToken::new();
    let _guard = given_up.clone().drop_guard(); // whoever does not wait any more stops the reading
    let looking = keyed(verify, snapshot).into_iter().map(|(key, entry)| {
        let (cache, watch, given_up) = (Arc::clone(cache), Arc::clone(&verify.watch), given_up.clone());
        let identity = identity.to_owned();
        async move {
            let size_bytes = entry.size_bytes;
            let look = move || look(&cache, &identity, &key, &entry, &*watch, &given_up);
            (size_bytes, tokio::task::spawn_blocking(look).await)
        }
    });
    let mut looking = stream::iter(looking).buffered(hashers());
    let mut counts = CacheCounts::default();
    while let Some((size_bytes, verdict)) = looking.next().await {
        match verdict {
            Ok(Verdict::Right) => {
                counts.whole_files += 1;
                counts.whole_bytes += size_bytes;
            }
            Ok(Verdict::Partial { bytes }) => {
                counts.partial_files += 1;
                counts.partial_bytes += bytes;
            }
            Ok(Verdict::Bad(file)) => bad.push(file),
            Ok(Verdict::Absent) => counts.absent_files += 1,
            Err(err) => std::panic::resume_unwind(err.into_panic()), // never cancelled: it has begun
        }
        verify.watch.file_done();
    }
    counts
}

fn look(
    cache: &Arc<BlockCache>,
    identity: &str,
    key: &ObjectKey,
    entry: &Entry,
    watch: &dyn Watch,
    given_up: &CancellationToken,
) -> Verdict {
    let cached = cache.entry(&VersionId::new(identity, key, &entry.etag), entry.size_bytes);
    let mut hasher = Sha256::new();
    let mut seen = 0;
    let audit = cached.audit(&mut |block| {
        hasher.update(block);
        seen += block.len() as u64;
        watch.looked_at(block.len() as u64);
        if given_up.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    watch.looked_at(entry.size_bytes - seen); // what is not cached needs no time
    let problem = |problem, detail: String| {
        Verdict::Bad(BadFile {
            path: entry.path.clone(),
            etag: entry.etag.clone(),
            place: Place::Cache,
            problem,
            detail,
        })
    };
    if audit.damaged_blocks > 0 {
        let blocks = if audit.damaged_blocks == 1 { "block" } else { "blocks" };
        let detail = format!("{} {blocks} did not fit the checksum, dropped", audit.damaged_blocks);
        return problem(Problem::Damaged, detail);
    }
    if audit.whole {
        let cid = ContentId::from_sha256(hasher.finalize().into());
        if cid != entry.cid {
            cached.remove_false();
            return problem(Problem::WrongContent, format!("the content is {cid}, dropped"));
        }
        return Verdict::Right;
    }
    if audit.is_empty() { Verdict::Absent } else { Verdict::Partial { bytes: audit.sound_bytes } }
}
