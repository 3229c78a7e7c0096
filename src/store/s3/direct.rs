//! GETs without the SDK's machinery.
//!
//! A GET through the SDK costs several times the CPU of the request itself: endpoint rules,
//! interceptors, configuration bags, for each of ten thousand small files. Where everything
//! that they would find out is known beforehand (an endpoint, a bucket in its path, fixed
//! credentials), the request is written and signed here. It travels through the SDK's own HTTP
//! client: the same connections, TLS and timeouts; and signed by the SDK's own signer.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_s3::config::RuntimeComponents;
use aws_sigv4::http_request::PayloadChecksumKind;
use aws_sigv4::http_request::PercentEncodingMode;
use aws_sigv4::http_request::SignableBody;
use aws_sigv4::http_request::SignableRequest;
use aws_sigv4::http_request::SigningSettings;
use aws_sigv4::http_request::UriPathNormalizationMode;
use aws_sigv4::http_request::sign;
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::HttpClient;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::http::HttpConnectorSettings;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;

use super::connect::S3Credentials;
use super::connect::S3Options;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::name::ETag;
use crate::name::ObjectKey;

/// What stands for itself in the path of a signed request.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
const USER_AGENT: &str = concat!("dsfs/", env!("CARGO_PKG_VERSION"));

/// The SDK's parts that its first request shows.
pub(super) type Components = Arc<OnceLock<RuntimeComponents>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Sends GETs.
pub(super) struct DirectGet {
    /// `http://host/bucket/`.
    base: String,
    region: String,
    /// Absent for anonymous requests.
    identity: Option<Identity>,
    http: SharedHttpClient,
    connect_timeout: Duration,
    components: Components,
    connector: OnceLock<SharedHttpConnector>,
}

impl fmt::Debug for DirectGet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectGet").field("base", &self.base).finish_non_exhaustive()
    }
}

impl DirectGet {
    /// `None` where only the SDK knows how to reach the bucket, or who asks.
    pub(super) fn new(options: &S3Options, http: SharedHttpClient, components: Components) -> Option<Self> {
        let endpoint = options.endpoint.as_deref()?.trim_end_matches('/');
        let identity = match &options.credentials {
            S3Credentials::Static { access_key_id, secret_access_key, session_token } => {
                let token = session_token.clone();
                Some(Credentials::from_keys(access_key_id, secret_access_key, token).into())
            }
            S3Credentials::Anonymous => None,
            S3Credentials::DefaultChain { .. } => return None,
        };
        Some(Self {
            base: format!("{endpoint}/{}/", utf8_percent_encode(&options.bucket, PATH)),
            region: options.region.clone(),
            identity,
            http,
            connect_timeout: options.connect_timeout,
            components,
            connector: OnceLock::new(),
        })
    }

    /// The SDK's own connections; `None` until it has sent its first request.
    fn connector(&self) -> Option<&SharedHttpConnector> {
        if let Some(connector) = self.connector.get() {
            return Some(connector);
        }
        let components = self.components.get()?;
        let settings = HttpConnectorSettings::builder().connect_timeout(self.connect_timeout).build();
        Some(self.connector.get_or_init(|| self.http.http_connector(&settings, components)))
    }

    /// Whether requests can be sent.
    pub(super) fn is_ready(&self) -> bool {
        self.connector().is_some()
    }

    /// Sends a GET; any answer of the server is one.
    pub(super) async fn send(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        range: &Range<u64>,
    ) -> Result<HttpResponse, BoxError> {
        let connector = self.connector().ok_or("the HTTP client is not there yet")?;
        let url = format!("{}{}", self.base, utf8_percent_encode(key.as_str(), PATH));
        let range = format!("bytes={}-{}", range.start, range.end - 1);
        let if_match = super::quoted(etag);
        let headers = [("range", &*range), ("if-match", &*if_match)];
        let mut request = HttpRequest::get(&url)?;
        for (name, value) in headers {
            request.headers_mut().try_insert(name, value.to_owned())?;
        }
        request.headers_mut().insert("user-agent", USER_AGENT);
        if let Some(identity) = &self.identity {
            for (name, value) in self.signature(identity, &url, &headers)? {
                request.headers_mut().try_insert(name, value)?;
            }
        }
        connector.call(request).await.map_err(Into::into)
    }

    /// The headers that sign a request.
    fn signature(
        &self,
        identity: &Identity,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Vec<(String, String)>, BoxError> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let params = v4::SigningParams::builder()
            .identity(identity)
            .region(&self.region)
            .name("s3")
            .time(SystemClock.now())
            .settings(settings)
            .build()?
            .into();
        let request = SignableRequest::new("GET", url, headers.iter().copied(), SignableBody::Bytes(&[]))?;
        let (instructions, _signature) = sign(request, &params)?.into_parts();
        let (headers, _query) = instructions.into_parts();
        Ok(headers.into_iter().map(|header| (header.name().to_owned(), header.value().to_owned())).collect())
    }
}

/// Code and message of an error document, as far as there is one.
pub(super) fn error_document(body: &str) -> (&str, &str) {
    let element = |open: &str, close: &str| {
        let (_, rest) = body.split_once(open)?;
        rest.split_once(close).map(|(text, _)| text.trim())
    };
    let code = element("<Code>", "</Code>").unwrap_or_default();
    (code, element("<Message>", "</Message>").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_documents_are_read_as_far_as_they_go() {
        let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce</Message></Error>";
        assert_eq!(error_document(body), ("SlowDown", "Reduce"));
        assert_eq!(error_document("<html>Bad gateway</html>"), ("", ""));
        assert_eq!(error_document("<Code>Slow"), ("", ""));
    }
}
