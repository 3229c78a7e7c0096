//! Whole commits over a server that misbehaves on command: whatever it answers, at whichever request, a
//! commit is complete and exact, or it has changed nothing and can be resumed or undone.
//!
//! The store's own part in that is in `s3`; here the commit stands on top, with the real client between.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dsfs::clock::SystemClock;
use dsfs::commit;
use dsfs::commit::CommitContext;
use dsfs::commit::CommitError;
use dsfs::commit::CommitOptions;
use dsfs::commit::CommitReport;
use dsfs::commit::NoProgress;
use dsfs::name::DatasetName;
use dsfs::name::RelPath;
use dsfs::name::RemotePrefix;
use dsfs::record::Author;
use dsfs::record::CommitRecord;
use dsfs::record::Outcome;
use dsfs::staging::Holder;
use dsfs::staging::Staging;
use dsfs::store::PART_BYTES_MIN;
use dsfs::store::StoreError;
use dsfs::store::fault::Operation;
use dsfs::store::guarantee::Guarantee;
use dsfs::store::retry::RetryOptions;
use dsfs::store::retry::RetryingStore;
use dsfs::store::s3::S3Options;
use dsfs::store::s3::S3Store;
use tempfile::TempDir;

use crate::common::double::Double;
use crate::common::double::HttpFault;
use crate::common::double::Recorded;

const ATTEMPTS_MAX: usize = 3;
const FOREIGN: &str = "datasets/run/foreign";
/// One of each kind: the big one goes up as an upload, of one part.
const FILES: &[(&str, &[u8])] =
    &[("data.jsonl", b"{}"), ("frames/1.png", b"one"), ("frames/big.bin", &[7; 2500]), ("nothing", b"")];

fn name() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

/// A server, and a machine that has something staged.
struct Lab {
    server: Double,
    root: TempDir,
    staging: Option<Staging>,
}

impl Lab {
    fn new() -> Self {
        let server = Double::start();
        server.put_out_of_band(FOREIGN, b"foreign");
        let root = tempfile::tempdir().unwrap();
        let staging = Some(Staging::open(root.path(), &Holder::default()).unwrap());
        Self { server, root, staging }
    }

    fn with(files: &[(&str, &[u8])]) -> Self {
        let lab = Self::new();
        for (path, content) in files {
            let dataset = lab.staging().create_dataset(&name()).unwrap();
            let file = dataset.create_file(&RelPath::parse(path).unwrap(), 0o644).unwrap();
            (&*file).write_all(content).unwrap();
        }
        lab
    }

    fn staging(&self) -> &Staging {
        self.staging.as_ref().unwrap()
    }

    /// The process is gone, and another one takes over.
    fn restart(&mut self) {
        self.staging = None;
        self.staging = Some(Staging::open(self.root.path(), &Holder::default()).unwrap());
    }

    async fn context(&self) -> CommitContext {
        let request_timeout = Duration::from_millis(200);
        let store = S3Store::new(&S3Options { request_timeout, ..self.server.options() });
        let retries = RetryOptions {
            attempts_max: ATTEMPTS_MAX as u32,
            backoff_base: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            ..RetryOptions::default()
        };
        CommitContext {
            store: Arc::new(RetryingStore::new(Arc::new(store), retries)),
            prefix: RemotePrefix::parse("datasets").unwrap(),
            staging: self.staging().create_dataset(&name()).unwrap(),
            cache: None,
            published: None,
            clock: Arc::new(SystemClock),
            author: Author { user: "ann".into(), host: "lab".into() },
            // Anything over 1000 bytes goes up in parts: of the least size, but in parts.
            options: CommitOptions { part_bytes: 1000, workers: 1, ..CommitOptions::default() },
            guarantee: Guarantee::Enforced,
            progress: Arc::new(NoProgress),
        }
    }

    async fn commit(&self) -> Result<CommitReport, CommitError> {
        commit::commit(&self.context().await).await
    }

    async fn resume(&self) -> Result<CommitReport, CommitError> {
        commit::resume(&self.context().await).await
    }

    /// What is in the bucket, without dsfs's own state.
    fn published(&self) -> BTreeMap<String, Bytes> {
        let keys = self.server.keys().into_iter().filter(|key| key.starts_with("datasets/"));
        keys.map(|key| (key.clone(), self.server.object(&key).unwrap().0)).collect()
    }

    fn expect_committed(&self, files: &[(&str, &[u8])], what: &str) {
        let mut expected: BTreeMap<String, Bytes> = files
            .iter()
            .map(|(path, content)| (format!("datasets/run/{path}"), Bytes::copy_from_slice(content)))
            .collect();
        expected.insert(FOREIGN.into(), Bytes::from_static(b"foreign"));
        assert!(self.published() == expected, "{what}: {:?}", self.published().keys());
        assert_eq!(self.commits(), 1, "{what}");
        assert!(self.staging().dataset(&name()).is_none_or(|dataset| dataset.sealed().is_none()), "{what}");
    }

    fn expect_untouched(&self, what: &str) {
        assert_eq!(self.published().into_keys().collect::<Vec<_>>(), [FOREIGN], "{what}");
        assert_eq!(self.commits(), 0, "{what}");
    }

    /// How many commits the log has; the end of one that failed may be there as well.
    fn commits(&self) -> usize {
        let records = self.server.keys().into_iter().filter(|key| key.starts_with(".dsfs/datasets/log/"));
        let decoded = records.map(|key| CommitRecord::decode(&self.server.object(&key).unwrap().0).unwrap());
        decoded.filter(|record| record.outcome == Outcome::Commit).count()
    }

    fn parts(&self) -> Vec<u32> {
        self.server.requests().iter().filter_map(Recorded::part).collect()
    }
}

async fn requests_of_a_commit() -> usize {
    let lab = Lab::with(FILES);
    lab.commit().await.unwrap();
    lab.expect_committed(FILES, "without a fault");
    lab.server.requests().len()
}

/// The fault at every request of a commit, once, and so often that the client gives the request up.
async fn at_every_request(fault: HttpFault) {
    // Each silence takes its time.
    let often: &[usize] = if matches!(fault, HttpFault::LostInSilence) { &[1] } else { &[1, ATTEMPTS_MAX] };
    for at in 0..requests_of_a_commit().await {
        for &times in often {
            let what = format!("{fault:?} at request {at}, {times} times");
            let lab = Lab::with(FILES);
            lab.server.spell(at..at + times, fault.clone());
            let outcome = lab.commit().await;
            lab.server.end_spell();
            match outcome {
                Ok(report) => assert!(report.seq.is_some(), "{what}"),
                Err(CommitError::Interrupted { .. }) => {
                    let again = lab.commit().await;
                    assert!(matches!(again, Err(CommitError::Unfinished { .. })), "{what}: {again:?}");
                    match lab.resume().await {
                        Ok(_) => {}
                        // It was refused, and the refusal met the fault as well.
                        Err(CommitError::Aborted { .. }) => {
                            lab.expect_untouched(&what);
                            lab.commit().await.unwrap_or_else(|err| panic!("{what}: {err}"));
                        }
                        Err(err) => panic!("{what}: {err}"),
                    }
                }
                Err(err) => {
                    lab.expect_untouched(&format!("{what}: {err}"));
                    lab.commit().await.unwrap_or_else(|err| panic!("{what}: {err}"));
                }
            }
            lab.expect_committed(FILES, &what);
            if matches!(fault, HttpFault::Page(..)) {
                assert_eq!(lab.server.open_uploads(), 0, "{what}: nothing was carried out unheard");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_at_any_request() {
    at_every_request(HttpFault::Status(503, "SlowDown")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contended_key_at_any_request() {
    at_every_request(HttpFault::Status(409, "ConditionalRequestConflict")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_is_said_not_to_hold_at_any_request() {
    at_every_request(HttpFault::Status(412, "PreconditionFailed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_before_any_request_is_carried_out() {
    at_every_request(HttpFault::Reset).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_after_any_request_was_carried_out() {
    at_every_request(HttpFault::LostReply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_after_any_request_was_carried_out() {
    at_every_request(HttpFault::LostInSilence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_200_with_an_error_in_it_at_any_request() {
    at_every_request(HttpFault::OkWithError("InternalError")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_says_not_found_at_any_request() {
    at_every_request(HttpFault::Page(404, None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_sends_a_page_at_any_request() {
    at_every_request(HttpFault::Page(200, None)).await;
}

/// From any request on, every request fails in the same way, until that is mended.
async fn refused_from_any_request_on(fault: HttpFault, is_right: fn(&StoreError) -> bool, says: &str) {
    let mut said = 0;
    for at in 0..requests_of_a_commit().await {
        let what = format!("{fault:?} from request {at} on");
        let lab = Lab::with(FILES);
        lab.server.spell(at..usize::MAX, fault.clone());
        let err = match lab.commit().await {
            Err(err) => err,
            Ok(_) => {
                // Only the notice could not be withdrawn any more: the log is read behind it.
                lab.expect_committed(FILES, &what);
                continue;
            }
        };
        lab.server.end_spell();
        said += u32::from(err.to_string().contains(says));
        if !matches!(err, CommitError::Interrupted { .. }) {
            assert!(matches!(&err, CommitError::Store(err) if is_right(err)), "{what}: {err}");
            lab.expect_untouched(&what);
            lab.commit().await.unwrap_or_else(|err| panic!("{what}: {err}"));
        } else if at % 2 == 0 {
            lab.resume().await.unwrap_or_else(|err| panic!("{what}: {err}"));
        } else {
            match commit::abort(&lab.context().await).await {
                Ok(()) => {
                    lab.expect_untouched(&what);
                    assert_eq!(lab.server.open_uploads(), 0, "{what}");
                    continue;
                }
                Err(CommitError::AlreadyCommitted { .. }) => drop(lab.resume().await.unwrap()),
                Err(err) => panic!("{what}: {err}"),
            }
        }
        lab.expect_committed(FILES, &what);
    }
    // The answer to a HEAD has no body to say it in.
    assert!(said > 10, "{said} failures said {says:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_on_the_way() {
    let fault = HttpFault::Status(400, "ExpiredToken");
    let is_right = |err: &StoreError| matches!(err, StoreError::Denied { .. });
    refused_from_any_request_on(fault, is_right, "ExpiredToken").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_from_some_moment_on() {
    let fault = HttpFault::Status(403, "RequestTimeTooSkewed");
    let is_right = |err: &StoreError| matches!(err, StoreError::Denied { .. });
    refused_from_any_request_on(fault, is_right, "the clock of this machine is wrong").await;
}

/// What was sent stays, however long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_says_not_found_from_some_moment_on() {
    let is_right = |err: &StoreError| matches!(err, StoreError::Unavailable { .. });
    refused_from_any_request_on(HttpFault::Page(404, None), is_right, "no answer of an S3 server").await;
}

/// The bucket itself, for everybody: its name was changed, or that of another endpoint is in the settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_gone_from_some_moment_on() {
    let is_right = |err: &StoreError| matches!(err, StoreError::NoBucket { .. });
    refused_from_any_request_on(HttpFault::Status(404, "NoSuchBucket"), is_right, "does not exist").await;
}

/// Two parts.
fn large() -> Vec<u8> {
    (0..PART_BYTES_MIN as usize + 3).map(|at| (at % 251) as u8).collect()
}

/// When in a commit of these files the first request of this kind comes.
async fn first(operation: Operation, files: &[(&str, &[u8])]) -> usize {
    let lab = Lab::with(files);
    lab.commit().await.unwrap();
    lab.server.requests().iter().position(|request| request.operation == Some(operation)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_in_a_part_costs_that_part() {
    let content = large();
    let files: &[(&str, &[u8])] = &[("big", &content)];
    let mut lab = Lab::with(files);
    lab.server.script(Operation::PutPart, HttpFault::Reset);
    lab.commit().await.unwrap();
    assert_eq!(lab.parts(), [1, 1, 2]);
    lab.expect_committed(files, "once");

    // So often that the commit gives up; then it goes on with the part that is missing.
    let second = first(Operation::PutPart, files).await + 1;
    lab = Lab::with(files);
    lab.server.spell(second..usize::MAX, HttpFault::Reset);
    let interrupted = lab.commit().await.unwrap_err();
    assert!(matches!(interrupted, CommitError::Interrupted { .. }), "{interrupted}");
    lab.expect_untouched("interrupted");
    lab.server.end_spell();
    lab.server.forget_requests();
    lab.restart();
    lab.resume().await.unwrap();
    assert_eq!(lab.parts(), [2]);
    lab.expect_committed(files, "resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_completed_unheard_is_not_sent_again() {
    let content = large();
    let files: &[(&str, &[u8])] = &[("big", &content)];
    // Asked again, the server knows no such upload.
    let lab = Lab::with(files);
    lab.server.script(Operation::CompleteMultipart, HttpFault::LostReply);
    lab.commit().await.unwrap();
    assert_eq!(lab.parts(), [1, 2]);
    lab.expect_committed(files, "asked again");

    // Whoever asked is gone with the answer.
    let complete = first(Operation::CompleteMultipart, files).await;
    let mut lab = Lab::with(files);
    lab.server.script(Operation::CompleteMultipart, HttpFault::LostReply);
    lab.server.spell(complete + 1..usize::MAX, HttpFault::Reset);
    let interrupted = lab.commit().await.unwrap_err();
    assert!(matches!(interrupted, CommitError::Interrupted { .. }), "{interrupted}");
    lab.server.end_spell();
    lab.restart();
    lab.resume().await.unwrap();
    assert_eq!(lab.parts(), [1, 2]);
    lab.expect_committed(files, "resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_really_gone_is_sent_again() {
    let content = large();
    let files: &[(&str, &[u8])] = &[("big", &content)];
    for (operation, after, sent) in
        [(Operation::PutPart, 1, &[1, 2, 1, 2][..]), (Operation::CompleteMultipart, 0, &[1, 2][..])]
    {
        let at = first(operation, files).await + after;
        let mut lab = Lab::with(files);
        lab.server.spell(at..usize::MAX, HttpFault::Reset);
        let interrupted = lab.commit().await.unwrap_err();
        assert!(matches!(interrupted, CommitError::Interrupted { .. }), "{interrupted}");
        lab.server.end_spell();
        lab.server.forget_uploads();
        lab.server.forget_requests();
        lab.restart();
        lab.resume().await.unwrap_or_else(|err| panic!("{operation:?}: {err}"));
        let parts = lab.parts();
        // The one that met the end of the upload, then all of them.
        assert_eq!(parts[parts.len() - 2..], [1, 2], "{operation:?}");
        assert!(parts.len() <= sent.len(), "{operation:?}: {parts:?}");
        lab.expect_committed(files, &format!("{operation:?}"));
        assert_eq!(lab.server.open_uploads(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_met_another_writer_is_sent_anew() {
    let content = large();
    let files: &[(&str, &[u8])] = &[("big", &content)];
    let lab = Lab::with(files);
    lab.server.script(Operation::CompleteMultipart, HttpFault::Status(409, "ConditionalRequestConflict"));
    lab.commit().await.unwrap();
    assert_eq!(lab.parts(), [1, 2, 1, 2], "S3 gives the upload up with this answer");
    lab.expect_committed(files, "once");
    assert_eq!(lab.server.open_uploads(), 0);
}

/// As the probe grades such a server: what is there is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_misnames_what_it_has_completed_does_not_get_that_into_the_log() {
    let lab = Lab::with(FILES);
    lab.server.switches().misname_completed.store(true, Ordering::SeqCst);
    let options = CommitOptions { allow_unenforced: true, ..lab.context().await.options };
    let ctx = CommitContext { guarantee: Guarantee::BestEffort, options, ..lab.context().await };
    let report = commit::commit(&ctx).await.unwrap();
    for file in &report.published {
        let key = ctx.prefix.key(&name(), &file.path).unwrap();
        assert_eq!(ctx.store.head(&key).await.unwrap().etag, file.etag, "{}", file.path);
    }
    lab.expect_committed(FILES, "looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_put_there_is_named_and_stays() {
    let lab = Lab::with(FILES);
    lab.server.put_out_of_band("datasets/run/frames/1.png", b"theirs");
    match lab.commit().await {
        Err(CommitError::Conflict { conflicts }) => {
            assert_eq!(conflicts[0].to_string(), "frames/1.png is published already, with another content");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(lab.server.count(Operation::Put), 0);
    assert_eq!(lab.published()["datasets/run/frames/1.png"], "theirs");
}
