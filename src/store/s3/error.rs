//! What an S3 server's answer means for the caller.
//!
//! Sorted by HTTP status first, since servers agree on statuses more than on codes; a code
//! decides only where one status means several things (404, 400, and 200 with an error in
//! its body). [`classify`] is pure, so that the table can be tested as a table.
//!
//! Not every answer is the server's: while it restarts, a proxy in front of it says "not found" in its
//! place, or sends a page. S3 has a code for what is not there, or at least names the request; what has
//! neither says nothing of objects, and is asked again.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::http::Headers;

use crate::name::ObjectKey;
use crate::store::Expect;
use crate::store::StoreError;

/// Statuses that promise nothing about the next attempt, beside the 5xx.
const TRANSIENT_STATUSES: &[u16] = &[408, 419, 429, 440];
/// Codes that are transient whatever their status; `Throttling…` is matched as a prefix.
const TRANSIENT_CODES: &[&str] = &[
    "InternalError",
    "SlowDown",
    "ServiceUnavailable",
    "RequestTimeout",
    "RequestTimeoutException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "BandwidthLimitExceeded",
    // What arrived is not what was sent: nothing was stored, and sending it again may do.
    "BadDigest",
    "IncompleteBody",
];
/// Of these, the ones that ask for fewer requests.
const THROTTLING_CODES: &[&str] =
    &["SlowDown", "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded"];
/// Codes that speak of credentials, which some servers send with status 400.
const CREDENTIAL_CODES: &[&str] = &[
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "Unauthorized",
];

/// What is said of an answer that is not the server's.
pub(super) const NOT_S3: &str = "no answer of an S3 server; a proxy's in its place, or the endpoint is wrong";
/// How much of an answer is looked at to tell whether it is a page, in bytes.
const PAGE_HEAD_BYTES: usize = 1024;

/// Whether an answer has S3's name for the request, which proxies pass on and do not make up. Some servers
/// leave it out.
pub(super) fn names_request(headers: &Headers) -> bool {
    headers.contains_key("x-amz-request-id")
}

/// Whether the body of an answer that says yes is one that S3 never sends: its own are empty, or XML.
pub(super) fn is_page(body: &[u8]) -> bool {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    let head = body.get(..PAGE_HEAD_BYTES).unwrap_or(body);
    let is_xml = matches!(head, [b'<', b'?' | b'a'..=b'z' | b'A'..=b'Z', ..]);
    let is_html = || head.windows(5).any(|text| text.eq_ignore_ascii_case(b"<html"));
    !head.is_empty() && (!is_xml || is_html())
}

/// Somebody has answered who is not the server.
#[derive(Debug, thiserror::Error)]
#[error("{}", NOT_S3)]
pub(super) struct ForeignAnswer;

/// The error of a [`ForeignAnswer`]: as if nobody had answered.
pub(super) fn foreign(key: impl fmt::Display, reason: impl fmt::Display) -> StoreError {
    StoreError::not_from_the_server(key, reason, ForeignAnswer)
}

/// Whether somebody has answered in the server's place: it may be away, or somewhere else.
#[must_use]
pub fn is_foreign(err: &StoreError) -> bool {
    let StoreError::Unavailable { source: Some(source), .. } = err else { return false };
    find_cause::<ForeignAnswer>(&**source).is_some()
}

/// What a request was about, so that its failure can say so.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// The bucket itself.
    Bucket,
    /// Reading, or anything else without a condition of ours.
    Read(&'a ObjectKey),
    /// A write, with what it expected.
    Write(&'a ObjectKey, &'a Expect),
    /// A step of a multipart upload other than completing it.
    Upload(&'a ObjectKey),
}

impl<'a> Subject<'a> {
    fn key(self) -> Option<&'a ObjectKey> {
        match self {
            Self::Bucket => None,
            Self::Read(key) | Self::Write(key, _) | Self::Upload(key) => Some(key),
        }
    }

    /// The key, or the bucket, for a message.
    pub(super) fn describe(self, bucket: &str) -> String {
        self.key().map_or_else(|| format!("bucket {bucket}"), ToString::to_string)
    }
}

/// An error answer, reduced to what decides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The error code; HEAD answers have none.
    pub code: &'a str,
    /// The server's sentence.
    pub message: &'a str,
    /// `x-amz-bucket-region`, where the bucket really is.
    pub region: Option<&'a str>,
    /// As [`names_request`] says: it is S3's, even without a code.
    pub names_request: bool,
}

impl Answer<'_> {
    /// Whether the server has too many requests. A 503 without a word may be a proxy's, for the same reason.
    fn throttles(&self) -> bool {
        matches!(self.status, 429 | 503)
            || THROTTLING_CODES.contains(&self.code)
            || self.code.starts_with("Throttling")
    }

    /// Whether this "not found" says nothing of S3's objects.
    fn is_foreign(&self) -> bool {
        self.status == 404 && self.code.is_empty() && !self.names_request
    }

    fn reason(&self) -> String {
        let mut reason = match (self.code, self.message) {
            ("", "") => format!("HTTP {}", self.status),
            ("", message) => format!("{message} (HTTP {})", self.status),
            (code, "") => format!("{code} (HTTP {})", self.status),
            (code, message) => format!("{code}: {message} (HTTP {})", self.status),
        };
        if self.is_foreign() {
            reason.push_str("; ");
            reason.push_str(NOT_S3);
        }
        if self.code == "RequestTimeTooSkewed" {
            reason.push_str("; the clock of this machine is wrong");
        }
        if let Some(region) = self.region.filter(|_| matches!(self.status, 301 | 307 | 400)) {
            reason.push_str("; the bucket is in region ");
            reason.push_str(region);
        }
        reason
    }
}

/// Sorts an error answer by what the caller does next.
pub(super) fn classify(bucket: &str, subject: Subject<'_>, answer: &Answer<'_>) -> StoreError {
    let name = || subject.describe(bucket);
    let denied = || StoreError::Denied { key: name(), reason: answer.reason() };
    let rejected = || StoreError::Rejected { key: name(), reason: answer.reason() };
    let unavailable = || StoreError::Unavailable {
        key: name(),
        reason: answer.reason(),
        throttled: answer.throttles(),
        source: None,
    };
    match (answer.status, answer.code) {
        (_, "NoSuchBucket") => StoreError::NoBucket { bucket: bucket.to_owned() },
        _ if answer.is_foreign() => foreign(name(), answer.reason()),
        (404, code) => not_found(bucket, subject, code),
        (_, "NoSuchUpload") => not_found(bucket, subject, answer.code),
        (412, _) | (_, "PreconditionFailed") => conflict(subject).unwrap_or_else(rejected),
        (409, _) | (_, "ConditionalRequestConflict" | "OperationAborted") => match subject.key() {
            Some(key) => StoreError::Contended { key: key.clone() },
            None => unavailable(),
        },
        (401 | 403, _) => denied(),
        (_, code) if CREDENTIAL_CODES.contains(&code) => denied(),
        (_, code) if TRANSIENT_CODES.contains(&code) || code.starts_with("Throttling") => unavailable(),
        (status, _) if TRANSIENT_STATUSES.contains(&status) => unavailable(),
        (501, _) => rejected(),
        (500.., _) => unavailable(),
        // A yes that cannot be read: who said so, and whether it was done, is not known.
        (200..300, "") if matches!(subject, Subject::Write(..) | Subject::Upload(_)) => unavailable(),
        _ => rejected(),
    }
}

fn not_found(bucket: &str, subject: Subject<'_>, code: &str) -> StoreError {
    match subject {
        Subject::Bucket => StoreError::NoBucket { bucket: bucket.to_owned() },
        Subject::Read(key) => StoreError::NotFound { key: key.clone() },
        Subject::Upload(key) => StoreError::NoSuchUpload { key: key.clone() },
        Subject::Write(key, _) if code == "NoSuchUpload" => StoreError::NoSuchUpload { key: key.clone() },
        // AWS answers If-Match on an absent key so.
        Subject::Write(key, Expect::Version(_)) => StoreError::Changed { key: key.clone() },
        Subject::Write(key, Expect::Absent) => StoreError::NotFound { key: key.clone() },
    }
}

/// A failed precondition.
fn conflict(subject: Subject<'_>) -> Option<StoreError> {
    match subject {
        Subject::Write(key, Expect::Absent) => Some(StoreError::AlreadyExists { key: key.clone() }),
        Subject::Write(key, Expect::Version(_)) | Subject::Read(key) => {
            Some(StoreError::Changed { key: key.clone() })
        }
        Subject::Bucket | Subject::Upload(_) => None,
    }
}

/// Sorts whatever the SDK came back with.
pub(super) fn from_sdk<E>(bucket: &str, subject: Subject<'_>, err: SdkError<E, HttpResponse>) -> StoreError
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    if let SdkError::ServiceError(service) = &err {
        let raw = service.raw();
        let status = raw.status();
        // An answer that says yes and cannot be read: only the SDK knows what is wrong with it.
        let unread = if status.is_success() { chain(service.err()) } else { String::new() };
        // Where there is no body, the SDK makes a code of the status.
        let is_silent = raw.body().bytes().is_none_or(<[u8]>::is_empty);
        let answer = Answer {
            status: status.as_u16(),
            code: service.err().code().filter(|_| !is_silent).unwrap_or_default(),
            message: service.err().message().unwrap_or(&unread),
            region: raw.headers().get("x-amz-bucket-region"),
            names_request: names_request(raw.headers()),
        };
        return classify(bucket, subject, &answer);
    }
    let key = subject.describe(bucket);
    if find_cause::<ForeignAnswer>(&err).is_some() {
        return foreign(key, NOT_S3);
    }
    match find_cause::<CredentialsError>(&err) {
        Some(CredentialsError::CredentialsNotLoaded(_)) => {
            return StoreError::Denied { key, reason: "no credentials were found".to_owned() };
        }
        Some(credentials @ CredentialsError::InvalidConfiguration(_)) => {
            return StoreError::Denied { key, reason: chain(credentials) };
        }
        // Who gives them out was asked and did not, which without a network is no wonder: nobody was
        // asked who could refuse.
        Some(credentials) => {
            let words = chain(credentials);
            let words = words.trim_end(); // a program's, perhaps
            let reason = format!("no credentials could be had, for want of a network or a login: {words}");
            return StoreError::Unavailable { key, reason, throttled: false, source: Some(Arc::new(err)) };
        }
        None => {}
    }
    if matches!(err, SdkError::ConstructionFailure(_)) {
        return StoreError::Rejected { key, reason: chain(&err) };
    }
    StoreError::Unavailable { key, reason: chain(&err), throttled: false, source: Some(Arc::new(err)) }
}

/// Whether a request failed because nobody gave out credentials for it.
#[must_use]
pub fn lacks_credentials(err: &StoreError) -> bool {
    let StoreError::Unavailable { source: Some(source), .. } = err else { return false };
    find_cause::<CredentialsError>(&**source).is_some()
}

fn find_cause<'e, T: Error + 'static>(err: &'e (dyn Error + 'static)) -> Option<&'e T> {
    let mut next = Some(err);
    while let Some(err) = next {
        if let Some(found) = err.downcast_ref::<T>() {
            return Some(found);
        }
        next = err.source();
    }
    None
}

/// An error and all its causes, in one line: the last of them says "connection refused".
pub(super) fn chain(err: &(dyn Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sdk_s3::operation::head_object::HeadObjectError;
    use aws_smithy_runtime_api::client::result::ConnectorError;

    use super::*;
    use crate::name::ETag;

    /// A short name for each kind of error, so that the table below reads as one.
    fn kind(err: &StoreError) -> &'static str {
        match err {
            StoreError::NotFound { .. } => "not found",
            StoreError::NoBucket { .. } => "no bucket",
            StoreError::AlreadyExists { .. } => "exists",
            StoreError::Changed { .. } => "changed",
            StoreError::Contended { .. } => "contended",
            StoreError::NoSuchUpload { .. } => "no upload",
            StoreError::Denied { .. } => "denied",
            StoreError::Rejected { .. } => "rejected",
            StoreError::Offline { .. } => "offline",
            StoreError::Unavailable { .. } => "unavailable",
        }
    }

    #[test]
    fn answers_are_sorted_by_what_the_caller_does_next() {
        let key = ObjectKey::from_listing("a/b");
        let absent = Expect::Absent;
        let version = Expect::Version(ETag::from_server("1"));
        let create = Subject::Write(&key, &absent);
        let replace = Subject::Write(&key, &version);
        let table: &[(Subject<'_>, u16, &str, &str)] = &[
            (Subject::Bucket, 404, "NoSuchBucket", "no bucket"),
            (Subject::Bucket, 404, "", "unavailable"),
            (Subject::Read(&key), 404, "", "unavailable"),
            (create, 404, "", "unavailable"),
            (replace, 404, "", "unavailable"),
            (Subject::Upload(&key), 404, "", "unavailable"),
            (Subject::Read(&key), 404, "NoSuchKey", "not found"),
            (Subject::Read(&key), 404, "NoSuchBucket", "no bucket"),
            (Subject::Read(&key), 412, "", "changed"),
            (create, 412, "PreconditionFailed", "exists"),
            (replace, 412, "PreconditionFailed", "changed"),
            (replace, 404, "NoSuchKey", "changed"),
            (create, 404, "NoSuchUpload", "no upload"),
            (replace, 404, "NoSuchUpload", "no upload"),
            (create, 409, "ConditionalRequestConflict", "contended"),
            (create, 409, "OperationAborted", "contended"),
            (Subject::Upload(&key), 404, "NoSuchUpload", "no upload"),
            (create, 403, "AccessDenied", "denied"),
            (Subject::Read(&key), 403, "", "denied"),
            (Subject::Read(&key), 401, "", "denied"),
            (create, 400, "ExpiredToken", "denied"),
            (create, 403, "RequestTimeTooSkewed", "denied"),
            (create, 400, "RequestTimeout", "unavailable"),
            (create, 400, "BadDigest", "unavailable"),
            (create, 400, "EntityTooSmall", "rejected"),
            (create, 400, "InvalidPart", "rejected"),
            (create, 503, "SlowDown", "unavailable"),
            (create, 429, "", "unavailable"),
            (create, 408, "", "unavailable"),
            (create, 500, "", "unavailable"),
            (create, 598, "", "unavailable"),
            (create, 501, "NotImplemented", "rejected"),
            (Subject::Bucket, 301, "PermanentRedirect", "rejected"),
            // 200 with an error in its body.
            (create, 200, "", "unavailable"),
            (Subject::Upload(&key), 200, "", "unavailable"),
            (Subject::Bucket, 200, "", "rejected"),
            (create, 200, "InternalError", "unavailable"),
            (create, 200, "PreconditionFailed", "exists"),
            (create, 200, "NoSuchUpload", "no upload"),
            (create, 200, "ConditionalRequestConflict", "contended"),
        ];
        for (subject, status, code, expected) in table {
            let answer = Answer { status: *status, code, message: "m", ..Answer::default() };
            let err = classify("assets", *subject, &answer);
            assert_eq!(kind(&err), *expected, "{subject:?} {status} {code}: {err}");
        }
    }

    #[test]
    fn not_found_is_believed_of_s3_only() {
        let key = ObjectKey::from_listing("a/b");
        let bare = Answer { status: 404, ..Answer::default() };
        let text = classify("assets", Subject::Read(&key), &bare).to_string();
        assert!(text.contains("HTTP 404; no answer of an S3 server"), "{text}");
        let err = classify("assets", Subject::Bucket, &bare);
        assert!(is_foreign(&err) && err.is_unanswered(), "{err:?}");
        let busy = classify("assets", Subject::Bucket, &Answer { status: 503, ..bare });
        assert!(!is_foreign(&busy) && !busy.is_unanswered(), "{busy:?}");
        let named = Answer { names_request: true, ..bare };
        for (subject, expected) in [
            (Subject::Bucket, "no bucket"),
            (Subject::Read(&key), "not found"),
            (Subject::Upload(&key), "no upload"),
        ] {
            assert_eq!(kind(&classify("assets", subject, &named)), expected, "{subject:?}");
        }
    }

    #[test]
    fn pages_are_told_from_what_s3_sends() {
        let own = [
            "",
            " \r\n",
            "<?xml version=\"1.0\"?>\n<CompleteMultipartUploadResult/>",
            "\u{feff}<?xml version=\"1.0\"?><ListBucketResult/>",
            "   <Error><Code>InternalError</Code></Error>",
        ];
        for body in own {
            assert!(!is_page(body.as_bytes()), "{body:?}");
        }
        let pages = [
            "404 page not found\n",
            "{\"error\":\"not found\"}",
            "<html><body>Welcome to nginx!</body></html>",
            "\n<!DOCTYPE html>\n<title>Log in</title>",
            "<?xml version=\"1.0\"?><!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0\"><HTML></HTML>",
            "<",
        ];
        for body in pages {
            assert!(is_page(body.as_bytes()), "{body:?}");
        }
    }

    #[test]
    fn reasons_carry_the_servers_words_and_what_follows_from_them() {
        let skew =
            Answer { status: 403, code: "RequestTimeTooSkewed", message: "too large", ..Answer::default() };
        let text = classify("assets", Subject::Bucket, &skew).to_string();
        assert!(text.contains("too large") && text.contains("clock of this machine"), "{text}");
        let region = Some("eu-west-1");
        let moved = Answer { status: 301, code: "PermanentRedirect", region, ..Answer::default() };
        let text = classify("assets", Subject::Bucket, &moved).to_string();
        assert!(text.contains("bucket assets") && text.contains("eu-west-1"), "{text}");
    }

    #[test]
    fn credentials_that_could_not_be_renewed_are_no_refusal() {
        let from = |err: CredentialsError| {
            let failure = ConnectorError::other(Box::new(err), None);
            let err: SdkError<HeadObjectError, HttpResponse> = SdkError::dispatch_failure(failure);
            from_sdk("assets", Subject::Bucket, err)
        };
        for err in [
            CredentialsError::provider_error("the SSO session has expired"),
            CredentialsError::unhandled("the SSO session has expired"),
            CredentialsError::provider_timed_out(Duration::from_secs(5)),
        ] {
            let words = chain(&err);
            let err = from(err);
            assert!(err.is_unanswered() && lacks_credentials(&err), "{err}");
            assert!(err.to_string().contains(&words), "{err}");
        }
        for err in [
            CredentialsError::not_loaded("nobody is configured"),
            CredentialsError::invalid_configuration("a profile that is its own source"),
        ] {
            assert_eq!(kind(&from(err)), "denied");
        }
    }

    #[test]
    fn the_cause_chain_is_one_line_without_repetition() {
        let inner = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let outer = std::io::Error::other(inner);
        assert_eq!(chain(&outer).matches("connection refused").count(), 1);
    }
}
