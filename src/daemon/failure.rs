//! Errors of the layers below, as what a user is told: one sentence, and what to do.

use std::io;
use std::path::Path;

use crate::commit::CommitError;
use crate::commit::Conflict;
use crate::commit::ConflictReason;
use crate::config::Config;
use crate::config::ConfigError;
use crate::config::Credentials;
use crate::config::Origin;
use crate::config::RemoteSettings;
use crate::config::S3Settings;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::publish;
use crate::name::DatasetName;
use crate::record::RecordError;
use crate::staging::Holder;
use crate::staging::StagingError;
use crate::store::StoreError;
use crate::store::s3::lacks_credentials;
use crate::transfer::TransferError;

/// A wrong setting.
#[must_use]
pub fn of_config(err: &ConfigError) -> Failure {
    let failure = Failure::new(FailureKind::Usage, err.to_string());
    match err.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The remote could not be used at all: says what was tried, and which setting to look at.
#[must_use]
pub fn of_access(err: &StoreError, config: &Config) -> Failure {
    let remote = config.remote.remote();
    let failure = Failure::new(kind_of(err), format!("cannot use {remote}: {}", reason(err)));
    match &config.remote {
        RemoteSettings::S3(s3) => match hint_for(err, s3) {
            Some(hint) => failure.hint(hint),
            None => failure,
        },
        RemoteSettings::Directory { path, .. } if matches!(err, StoreError::NoBucket { .. }) => {
            let path_shown = path.value.display();
            failure.hint(format!(
                "`mkdir -p {path_shown}`, or mount the file system that has it ({})",
                path.origin
            ))
        }
        RemoteSettings::Directory { .. } => failure,
    }
}

/// A request failed in the course of work.
#[must_use]
pub fn of_store(err: &StoreError) -> Failure {
    Failure::new(kind_of(err), err.to_string())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "hints are for some errors only")]
fn hint_for(err: &StoreError, s3: &S3Settings) -> Option<String> {
    match err {
        StoreError::NoBucket { .. } => Some(format!(
            "the bucket comes from: {}; the endpoint from: {}",
            s3.bucket.origin, s3.endpoint.origin
        )),
        StoreError::Denied { .. } => Some(whose_keys(s3)),
        err if lacks_credentials(err) => Some(whose_keys(s3)),
        StoreError::Unavailable { .. } | StoreError::Rejected { .. } => Some(match &s3.endpoint.origin {
            Origin::Default => {
                "without an endpoint, AWS itself was asked; --endpoint names another server".to_owned()
            }
            origin => format!("the endpoint comes from: {origin}; `dsfs doctor` looks closer"),
        }),
        _ => None,
    }
}

/// Where the keys come from, for who was refused with them or did not get any.
fn whose_keys(s3: &S3Settings) -> String {
    match &s3.credentials.value {
        Credentials::Keys { .. } => {
            format!("the key comes from: {}; may it list this bucket?", s3.credentials.origin)
        }
        Credentials::AwsChain { profile: Some(profile) } | Credentials::Profile { name: Some(profile), .. } => {
            format!("the keys come from the AWS profile {profile:?} ({})", s3.credentials.origin)
        }
        Credentials::Profile { name: None, .. } => {
            format!("the keys come from the AWS profile \"default\" ({})", s3.credentials.origin)
        }
        Credentials::Ecs => {
            format!("the keys come from the container's endpoint ({})", s3.credentials.origin)
        }
        Credentials::Imds { .. } => {
            format!("the keys come from the instance metadata service ({})", s3.credentials.origin)
        }
        Credentials::Anonymous => {
            format!("requests are not signed ({}); only public buckets answer them", s3.credentials.origin)
        }
        Credentials::AwsChain { profile: None } => {
            "no key was given to dsfs: set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, or their AWS_ counterparts; \
             `--credentials anonymous` for a public bucket"
                .to_owned()
        }
    }
}

/// What went wrong, without the key that a user has never seen.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others say it well themselves")]
fn reason(err: &StoreError) -> String {
    match err {
        StoreError::Denied { reason, .. } => format!("access was denied: {reason}"),
        StoreError::Rejected { reason, .. } => format!("the server refused the request: {reason}"),
        StoreError::Unavailable { reason, .. } => format!("it cannot be reached: {reason}"),
        other => other.to_string(),
    }
}

pub(super) fn kind_of(err: &StoreError) -> FailureKind {
    match err {
        StoreError::NotFound { .. } => FailureKind::NotFound,
        StoreError::AlreadyExists { .. } | StoreError::Changed { .. } | StoreError::Contended { .. } => {
            FailureKind::Conflict
        }
        StoreError::NoBucket { .. }
        | StoreError::Denied { .. }
        | StoreError::Rejected { .. }
        | StoreError::Offline { .. }
        | StoreError::Unavailable { .. } => FailureKind::Remote,
        StoreError::NoSuchUpload { .. } => FailureKind::Failed,
    }
}

/// A commit did not succeed.
#[must_use]
pub fn of_commit(err: &CommitError, name: &DatasetName) -> Failure {
    let failure = Failure::new(publish::kind_of(err), format!("{name}: {err}"));
    let resume = resume(name);
    match err {
        CommitError::NothingStaged => failure.hint("`dsfs status` shows what is staged"),
        CommitError::OpenForWriting { paths } => {
            Failure::new(failure.kind, format!("{name}: files are open for writing"))
                .details(paths)
                .hint("close them first")
        }
        CommitError::Conflict { conflicts } => {
            let being_deleted =
                |conflict: &Conflict| matches!(conflict.reason, ConflictReason::BeingDeleted { .. });
            let under_way = |conflict: &Conflict| matches!(conflict.reason, ConflictReason::Intent { .. });
            let on_purpose = |conflict: &Conflict| conflict.reason == ConflictReason::WouldReplace;
            let hint = if conflicts.iter().all(being_deleted) {
                "wait until then, or finish what was interrupted: the same command, on the machine that began it".into()
            } else if conflicts.iter().all(under_way) {
                "wait until that commit is through; if it was interrupted, whoever began it can resume or abort it, and `dsfs gc` ends it".into()
            } else if conflicts.iter().all(on_purpose) {
                format!("`dsfs commit {name} --overwrite` publishes that, if it is meant; `dsfs discard {name} PATH` forgets it")
            } else {
                "rename or discard what is staged there; published files are never overwritten".into()
            };
            Failure::new(failure.kind, format!("{name}: in the way of the commit; nothing was changed"))
                .details(conflicts)
                .hint(hint)
        }
        CommitError::Unenforced => failure.hint(
            "--allow-unenforced, if no other tool writes to this dataset meanwhile; `dsfs doctor` says what the server lacks",
        ),
        CommitError::Interrupted { source, .. }
            if matches!(**source, CommitError::Store(StoreError::Denied { .. })) =>
        {
            failure.hint(format!("the remote has to let dsfs in again (`dsfs doctor` says how it asks); then {resume}"))
        }
        CommitError::Unfinished { .. }
        | CommitError::Interrupted { .. }
        | CommitError::AlreadyCommitted { .. } => failure.hint(resume),
        CommitError::NotRestored { paths, source } => Failure::new(
            failure.kind,
            format!("{name}: rolled back, but for files that were replaced before it failed: {source}"),
        )
        .details(paths),
        CommitError::Staging(err) => of_staging(err),
        CommitError::Store(err) => of_store(err),
        CommitError::Crowded => failure.hint("try again"),
        CommitError::Record { source: RecordError::TooLong { .. }, .. } => {
            failure.hint("commit fewer files at a time")
        }
        CommitError::Record { source: RecordError::Full { .. }, .. } => {
            failure.hint("what is staged stays staged: put it into another dataset")
        }
        CommitError::UnreadableIntent { source: RecordError::UnknownVersion { .. }, .. } => {
            failure.hint("update dsfs")
        }
        CommitError::UnreadableIntent { .. } => failure.hint(format!(
            "`dsfs gc {name} --remove-unreadable` ends that commit and removes its notice, if it is older than a day"
        )),
        CommitError::Aborted { .. }
        | CommitError::NothingToResume
        | CommitError::Fenced { .. }
        | CommitError::Name(_)
        | CommitError::Record { .. }
        | CommitError::Journal(_) => failure,
    }
}

/// What to do about a commit that has begun and has not ended.
#[must_use]
pub fn resume(name: &DatasetName) -> String {
    format!("`dsfs commit {name}` goes on with it, `dsfs commit {name} --abort` undoes it")
}

/// A transfer did not succeed.
#[must_use]
pub fn of_transfer(err: &TransferError) -> Failure {
    let plain = |kind| Failure::new(kind, err.to_string());
    let goes_on = "the same command goes on where this one has stopped";
    match err {
        TransferError::InTheWay { what } => {
            let count = what.len();
            let message = format!("{count} of the targets are there already; nothing was transferred");
            Failure::new(FailureKind::Conflict, message)
                .details(what)
                .hint("--overwrite, where that is meant; or another target")
        }
        TransferError::Overtaken { keys, done } => {
            let message = "somebody else has written these meanwhile; theirs were left alone";
            if *done == 0 {
                return Failure::new(FailureKind::Conflict, message).details(keys);
            }
            let message = format!("{message}, and what else was uploaded stays (files: {done})");
            Failure::new(FailureKind::Partial, message).details(keys).hint(goes_on)
        }
        TransferError::NotFound { .. } => plain(FailureKind::NotFound),
        TransferError::Unfit { what } => {
            Failure::new(FailureKind::Failed, "keys that cannot be files; nothing was transferred")
                .details(what)
                .hint("name a single object, or a prefix without them")
        }
        TransferError::Damaged { .. } => plain(FailureKind::Failed)
            .hint("the file was not kept; if it happens again, the object itself is damaged"),
        TransferError::NoRoom { path, free_bytes, needed_bytes } => Failure::new(
            FailureKind::Failed,
            format!(
                "{} has room for {}, and the files need {}; nothing was transferred",
                path.display(),
                units::show_size(*free_bytes),
                units::show_size(*needed_bytes)
            ),
        ),
        TransferError::Cancelled { done, files } => {
            let failure = Failure::new(
                FailureKind::Cancelled,
                format!("cancelled: {done} of {files} files are complete, of the others nothing is left"),
            );
            if *done > 0 { failure.hint(goes_on) } else { failure }
        }
        TransferError::Interrupted { .. } => plain(FailureKind::Partial).hint(goes_on),
        TransferError::Store(err) => of_store(err),
        TransferError::Changed { .. } => plain(FailureKind::Failed).hint("upload when nobody writes to it"),
        TransferError::Io { .. } | TransferError::Other(_) => plain(FailureKind::Failed),
        TransferError::Name(_) => plain(FailureKind::Usage),
    }
}

/// Not everything was deleted. `before` objects were, before those that this is about.
#[must_use]
#[expect(clippy::wildcard_enum_match_arm, reason = "the others are told as any transfer's")]
pub fn of_deletion(err: &TransferError, before: u64) -> Failure {
    let goes_on = "the same command deletes what is there then";
    let others = |count: u64| match count {
        1 => "1 other object deleted".to_owned(),
        count => format!("{count} other objects deleted"),
    };
    match err {
        TransferError::Overtaken { keys, done } if done + before > 0 => {
            let deleted = others(done + before);
            let message = format!("somebody has replaced these meanwhile, they were left alone; {deleted}");
            Failure::new(FailureKind::Partial, message).details(keys).hint(goes_on)
        }
        // What a transfer says, that nothing is left of the rest, would be the opposite of the truth.
        TransferError::Cancelled { files, .. } if files + before == 0 => {
            Failure::new(FailureKind::Cancelled, "cancelled; nothing was deleted")
        }
        TransferError::Cancelled { done, files } => {
            // Requests that were under way may still be carried out.
            let (done, files) = (done + before, files + before);
            let message = format!("cancelled: {done} of {files} objects are known to be deleted");
            Failure::new(FailureKind::Cancelled, message).hint("the same command goes on with the others")
        }
        err if before > 0 => {
            let message = format!("not everything was deleted: {err}; {}", others(before));
            Failure::new(FailureKind::Partial, message).hint(goes_on)
        }
        err => of_transfer(err),
    }
}

/// The staging area refused.
#[must_use]
pub fn of_staging(err: &StagingError) -> Failure {
    match err {
        StagingError::Locked { holder } => of_holder(holder),
        StagingError::OpenForWriting { paths } => {
            Failure::new(FailureKind::Failed, "files are open for writing").details(paths).hint("close them first")
        }
        StagingError::Sealed { path } => Failure::new(FailureKind::Failed, format!("{path} is being committed"))
            .hint("`dsfs commit NAME` finishes the commit, `dsfs commit NAME --abort` undoes it"),
        StagingError::AlreadySealed { .. } => Failure::new(FailureKind::Partial, err.to_string())
            .hint("`dsfs commit NAME` finishes it, `dsfs commit NAME --abort` undoes it"),
        StagingError::Foreign { paths } => Failure::new(
            FailureKind::Failed,
            "there are things in the staging area that cannot be published (links, devices, names that are not UTF-8)",
        )
        .details(paths),
        StagingError::Io { .. } | StagingError::NothingStaged | StagingError::Damaged { .. } => {
            Failure::new(FailureKind::Failed, err.to_string())
        }
    }
}

/// Somebody else works on the staging area.
#[must_use]
pub fn of_holder(holder: &Holder) -> Failure {
    let pid = holder.pid;
    match &holder.mountpoint {
        Some(mountpoint) if holder.detached => Failure::new(
            FailureKind::Failed,
            format!(
                "this remote is in use: process {pid} serves files that are open in its mount, which was detached from {}",
                mountpoint.display()
            ),
        )
        .hint(format!("close them, or end it with `dsfs umount --lazy {}`", mountpoint.display())),
        Some(mountpoint) => Failure::new(
            FailureKind::Failed,
            format!("this remote is mounted already: at {} by process {pid}", mountpoint.display()),
        )
        .hint(format!("use that mount, or `dsfs umount {}` first", mountpoint.display())),
        None => Failure::new(
            FailureKind::Failed,
            format!("process {pid} is working on this remote's staging area"),
        )
        .hint("wait until it has ended"),
    }
}

/// There can be no control socket for a mount at `mountpoint`.
#[must_use]
pub fn of_socket(err: &io::Error, socket: &Path, mountpoint: &Path) -> Failure {
    if err.kind() != io::ErrorKind::AddrInUse {
        return of_directory("control socket", socket, err);
    }
    let at = mountpoint.display();
    Failure::new(FailureKind::Failed, format!("the daemon of another mount at {at} is still running"))
        .hint(format!("`dsfs status` says why; if files are open in what was detached there, close them, or `dsfs umount --lazy {at}`"))
}

/// A directory of ours could not be used.
#[must_use]
pub fn of_directory(what: &str, path: &Path, err: &io::Error) -> Failure {
    Failure::new(FailureKind::Failed, format!("the {what} {} cannot be used: {err}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::Layer;
    use crate::config::Selection;
    use crate::name::ObjectKey;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let mut pairs = pairs.to_vec();
        pairs.push(("HOME", "/nonexistent"));
        Config::load(Layer::default(), Selection::default(), &Environment::from_pairs(&pairs)).unwrap()
    }

    #[test]
    fn access_errors_say_what_was_tried_and_which_setting_to_look_at() {
        let config = config(&[("R2_ENDPOINT", "http://h:1"), ("R2_BUCKET", "lab")]);
        let denied = StoreError::Denied { key: "lab".into(), reason: "no such key".into() };
        let failure = of_access(&denied, &config);
        assert_eq!(failure.kind, FailureKind::Remote);
        assert_eq!(
            failure.message,
            "cannot use s3://lab/datasets/ at http://h:1: access was denied: no such key"
        );
        assert!(failure.hint.unwrap().contains("R2_ACCESS_KEY_ID"));
        let gone = of_access(&StoreError::unavailable("lab", "connection refused"), &config);
        assert!(gone.hint.unwrap().contains("environment R2_ENDPOINT"));
        let missing = of_access(&StoreError::NoBucket { bucket: "s3://lab".into() }, &config);
        assert!(missing.hint.unwrap().contains("environment R2_BUCKET"));
    }

    #[test]
    fn whoever_changed_a_published_file_is_told_how_to_publish_that() {
        let hint = |reasons: &[ConflictReason]| {
            let conflict = |reason: &ConflictReason| Conflict { path: "a".into(), reason: reason.clone() };
            let conflicts = reasons.iter().map(conflict).collect();
            of_commit(&CommitError::Conflict { conflicts }, &DatasetName::parse("run").unwrap()).hint.unwrap()
        };
        let told = hint(&[ConflictReason::WouldReplace, ConflictReason::WouldReplace]);
        assert!(told.contains("dsfs commit run --overwrite") && told.contains("dsfs discard run"), "{told}");
        // It would not help against what else is in the way.
        assert!(!hint(&[ConflictReason::WouldReplace, ConflictReason::Present]).contains("--overwrite"));
    }

    #[test]
    fn a_conflict_that_came_when_something_was_done_already_is_told_as_that() {
        let keys = vec![ObjectKey::from_listing("x/1")];
        let nothing = of_transfer(&TransferError::Overtaken { keys: keys.clone(), done: 0 });
        assert_eq!(nothing.kind, FailureKind::Conflict);
        let some = of_transfer(&TransferError::Overtaken { keys, done: 2 });
        assert_eq!(some.kind, FailureKind::Partial);
        assert!(some.message.contains("what else was uploaded stays (files: 2)"), "{some}");
    }

    #[test]
    fn whoever_holds_the_staging_area_is_named() {
        let holder = Holder { pid: 42, mountpoint: Some("/mnt/d".into()), ..Holder::default() };
        let failure = of_staging(&StagingError::Locked { holder: holder.clone() });
        assert!(failure.message.contains("/mnt/d") && failure.message.contains("42"), "{failure}");
        assert!(failure.message.contains("mounted already"), "{failure}");
        let failure = of_staging(&StagingError::Locked { holder: Holder { detached: true, ..holder } });
        assert!(
            failure.message.contains("detached from /mnt/d") && failure.message.contains("42"),
            "{failure}"
        );
    }
}
