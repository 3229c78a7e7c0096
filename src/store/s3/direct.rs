//! GETs and PUTs of objects, and listings, without the SDK's machinery.
//!
//! A request through the SDK costs several times the CPU of the request itself: endpoint rules,
//! interceptors, configuration bags, for each of ten thousand small files. Where everything
//! that they would find out is known beforehand (an endpoint with the bucket in its path, no
//! headers of the user's), the request is written and signed here. It travels through the SDK's own HTTP
//! client, with the same TLS, proxy and timeouts, and is signed by the SDK's own signer with the
//! credentials that it keeps.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use aws_runtime::auth::sigv4::SCHEME_ID;
use aws_sdk_s3::config::ConfigBag;
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
use aws_smithy_runtime_api::client::http::HttpConnectorFuture;
use aws_smithy_runtime_api::client::http::HttpConnectorSettings;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::identity::ResolveCachedIdentity;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::GetIdentityResolver;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream as SdkStream;
use bytes::Bytes;
use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;

use super::connect::S3Options;
use super::credentials::S3Credentials;
use crate::clock::Clock;
use crate::clock::SystemClock;

/// What stands for itself in the path of a signed request.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in the value of a query.
const QUERY: &AsciiSet = &PATH.add(b'/');
/// What is read of the body of an error answer, at least.
const ERROR_BYTES_MAX: usize = 16 * 1024;
const USER_AGENT: &str = concat!("dsfs/", env!("CARGO_PKG_VERSION"));

/// The SDK's parts that its first request shows.
pub(super) type Components = Arc<OnceLock<RuntimeComponents>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request, but for where it goes and who signs it.
pub(super) struct Draft<'a> {
    pub method: &'static str,
    /// The object's key; empty for the bucket.
    pub path: &'a str,
    pub query: &'a [(&'static str, &'a str)],
    /// All of them are signed.
    pub headers: Vec<(&'a str, String)>,
    pub body: Bytes,
    /// What the signature says of the body.
    pub signed_body: SignableBody<'a>,
}

/// Sends requests.
pub(super) struct Direct {
    /// `http://host/bucket/`.
    base: String,
    region: String,
    anonymous: bool,
    connect_timeout: Duration,
    components: Components,
    connector: OnceLock<SharedHttpConnector>,
    /// Nothing is configured for a request of its own.
    config: ConfigBag,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Direct {
    /// `None` where only the SDK knows how to reach the bucket, or what to send along.
    pub(super) fn new(options: &S3Options, components: Components) -> Option<Self> {
        let endpoint = options.endpoint.as_deref()?.trim_end_matches('/');
        let plain = options.path_style != Some(false)
            && options.host_header.is_none()
            && !options.requester_pays
            && !options.find_region;
        plain.then(|| Self {
            base: format!("{endpoint}/{}/", utf8_percent_encode(&options.bucket, PATH)),
            region: options.region.clone(),
            anonymous: matches!(options.credentials, S3Credentials::Anonymous),
            connect_timeout: options.connect_timeout,
            components,
            connector: OnceLock::new(),
            config: ConfigBag::base(),
        })
    }

    /// A request, to be awaited for any answer of the server; `None` where the SDK has to send it:
    /// before its own first request, and when there are no credentials, which it explains best.
    pub(super) async fn request(&self, draft: Draft<'_>) -> Option<HttpConnectorFuture> {
        let components = self.components.get()?;
        let identity = if self.anonymous { None } else { Some(self.identity(components).await?) };
        let path = draft.path;
        match self.prepare(identity.as_ref(), draft) {
            Ok(request) => Some(self.connector(components)?.call(request)),
            Err(err) => {
                tracing::debug!(path, "a request is left to the SDK: {err}");
                None
            }
        }
    }

    /// The SDK's own connections.
    fn connector(&self, components: &RuntimeComponents) -> Option<&SharedHttpConnector> {
        if self.connector.get().is_none() {
            let settings = HttpConnectorSettings::builder().connect_timeout(self.connect_timeout).build();
            let connector = components.http_client()?.http_connector(&settings, components);
            self.connector.get_or_init(|| connector);
        }
        self.connector.get()
    }

    /// Who asks, renewed as the SDK does it.
    async fn identity(&self, components: &RuntimeComponents) -> Option<Identity> {
        let resolver = components.identity_resolver(SCHEME_ID)?;
        let cache = components.identity_cache();
        cache.resolve_cached_identity(resolver, components, &self.config).await.ok()
    }

    fn prepare(&self, identity: Option<&Identity>, draft: Draft<'_>) -> Result<HttpRequest, BoxError> {
        let mut url = format!("{}{}", self.base, utf8_percent_encode(draft.path, PATH));
        for (number, (name, value)) in draft.query.iter().enumerate() {
            let mark = if number == 0 { '?' } else { '&' };
            url.extend([&*format!("{mark}{name}="), &*utf8_percent_encode(value, QUERY).to_string()]);
        }
        let signature = match identity {
            Some(identity) => self.signature(identity, &url, &draft)?,
            None => Vec::new(),
        };
        let mut request = HttpRequest::new(SdkBody::from(draft.body));
        request.set_method(draft.method)?;
        request.set_uri(url)?;
        for (name, value) in draft.headers {
            request.headers_mut().try_insert(name.to_owned(), value)?;
        }
        request.headers_mut().insert("user-agent", USER_AGENT);
        for (name, value) in signature {
            request.headers_mut().try_insert(name, value)?;
        }
        Ok(request)
    }

    /// The headers that sign a request.
    fn signature(
        &self,
        identity: &Identity,
        url: &str,
        draft: &Draft<'_>,
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
        let headers = draft.headers.iter().map(|(name, value)| (*name, &**value));
        let request = SignableRequest::new(draft.method, url, headers, draft.signed_body.clone())?;
        let (instructions, _signature) = sign(request, &params)?.into_parts();
        let (headers, _query) = instructions.into_parts();
        Ok(headers.into_iter().map(|header| (header.name().to_owned(), header.value().to_owned())).collect())
    }
}

/// The text of an answer that is an error or says yes, as far as it is sent and short.
pub(super) async fn short_body(body: SdkBody) -> String {
    let mut stream = SdkStream::new(body);
    let mut text = Vec::new();
    while text.len() < ERROR_BYTES_MAX
        && let Some(Ok(piece)) = stream.next().await
    {
        text.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&text).into_owned()
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
