//! Writing an object past the SDK.

use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::client::http::HttpConnectorFuture;
use aws_smithy_runtime_api::client::result::ConnectorError;
use bytes::Bytes;

use super::S3Store;
use super::crc32c_header;
use super::direct;
use super::direct::Draft;
use super::error;
use super::error::Answer;
use super::error::NOT_S3;
use super::error::Subject;
use super::error::chain;
use super::no_answer_within;
use crate::name::ObjectKey;
use crate::store::Expect;
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::StoredChecksum;
use crate::store::patience::Extra;

/// What the SDK says of objects, too.
const CONTENT_TYPE: &str = "application/octet-stream";

/// What was answered to a write.
struct Reply {
    status: u16,
    etag: Option<String>,
    region: Option<String>,
    names_request: bool,
    body: String,
}

/// Whether what a HEAD finds is what was put, as far as that can be told: by the id of its transaction and all
/// else that it carries, or by its bytes.
pub(super) fn is_what_was_put(
    found: &ObjectMeta,
    body: &[u8],
    expect: &Expect,
    attributes: &PutAttributes,
) -> bool {
    let sent = &attributes.metadata;
    let is_old = matches!(expect, Expect::Version(old) if *old == found.etag);
    let is_told = if sent.contains_key(META_TXID) {
        sent.iter().all(|(name, value)| found.metadata.get(name) == Some(value))
    } else {
        found.checksum == Some(StoredChecksum::Whole(crc32c::crc32c(body)))
    };
    !is_old && is_told && found.size_bytes == body.len() as u64
}

impl S3Store {
    /// A PUT past the SDK; `None` where only the SDK can send it.
    pub(super) async fn direct_put(
        &self,
        key: &ObjectKey,
        body: &Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
        signed_body: SignableBody<'static>,
    ) -> Option<HttpConnectorFuture> {
        let direct = self.direct.read().clone()?;
        let names: Vec<String> =
            attributes.metadata.keys().map(|name| format!("x-amz-meta-{name}")).collect();
        let (if_none_match, if_match) = self.condition(expect);
        let mut headers = vec![
            ("content-length", body.len().to_string()),
            ("content-type", CONTENT_TYPE.to_owned()),
            ("x-amz-checksum-crc32c", crc32c_header(body)),
        ];
        headers.extend(if_none_match.map(|value| ("if-none-match", value)));
        headers.extend(if_match.map(|value| ("if-match", value)));
        headers.extend(names.iter().map(String::as_str).zip(attributes.metadata.values().cloned()));
        direct
            .request(Draft {
                method: "PUT",
                path: key.as_str(),
                query: &[],
                headers,
                body: body.clone(),
                signed_body,
            })
            .await
    }

    /// Waits for the answer to a write; its `ETag`, if it has one.
    pub(super) async fn written_directly(
        &self,
        request: HttpConnectorFuture,
        key: &ObjectKey,
        expect: &Expect,
        extra: Extra,
    ) -> Result<Option<String>, StoreError> {
        let reply = match self.line.wait(self.request_timeout, extra, self.reply(request)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(err)) => return Err(StoreError::unanswered(key, chain(&err))),
            Err(waited) => return Err(StoreError::unanswered(key, no_answer_within(waited))),
        };
        let (code, message) = direct::error_document(&reply.body);
        // Some say yes before they know, and no in the body.
        if (200..300).contains(&reply.status) && code.is_empty() {
            // Whoever it was that said yes, nobody knows whether anything was written.
            return if error::is_page(reply.body.as_bytes()) {
                Err(error::foreign(key, NOT_S3))
            } else {
                Ok(reply.etag)
            };
        }
        let (status, region, names_request) = (reply.status, reply.region.as_deref(), reply.names_request);
        let answer = Answer { status, code, message, region, names_request };
        Err(error::classify(&self.bucket, Subject::Write(key, expect), &answer))
    }

    /// The whole answer, so that its connection can be used again.
    async fn reply(&self, request: HttpConnectorFuture) -> Result<Reply, ConnectorError> {
        let reply = request.await?;
        let header = |name: &str| reply.headers().get(name).map(str::to_owned);
        let (etag, region) = (header("etag"), header("x-amz-bucket-region"));
        let names_request = error::names_request(reply.headers());
        self.clock.note(reply.headers().get("date"));
        let status = reply.status().as_u16();
        let body = direct::short_body(reply.into_body()).await;
        Ok(Reply { status, etag, region, names_request, body })
    }
}
