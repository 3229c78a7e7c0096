//! Building the SDK's client: one HTTP client, our own retries, no surprises.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use aws_config::provider_config::ProviderConfig;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::BehaviorVersion;
use aws_sdk_s3::config::ConfigBag;
use aws_sdk_s3::config::Intercept;
use aws_sdk_s3::config::Region;
use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::RuntimeComponents;
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::error::SdkError;
use aws_sigv4::http_request::SignableBody;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls;
use aws_smithy_http_client::tls::TlsContext;
use aws_smithy_http_client::tls::TrustStore;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::store::StoreError;
use crate::store::s3::credentials;
use crate::store::s3::credentials::S3Credentials;
use crate::store::s3::direct::Components;
use crate::store::s3::error::ForeignAnswer;
use crate::store::s3::error::Subject;
use crate::store::s3::error::chain;
use crate::store::s3::error::is_page;

/// Where every bucket of AWS can be asked for.
const REGION_ASKED_FIRST: &str = "us-east-1";

/// Certificates that are trusted beside the system's, checked to be such.
#[derive(Clone)]
pub struct CaBundle(TlsContext);

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaBundle")
    }
}

impl CaBundle {
    /// Takes the text of a PEM file in.
    ///
    /// # Errors
    /// A sentence: there is no certificate in it, or one that is damaged.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        // The SDK panics on what it cannot parse.
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| format!("is no PEM file of certificates: {err}"))?;
        if certificates.is_empty() {
            return Err("holds no certificate".to_owned());
        }
        let store = TrustStore::empty().with_native_roots(true).with_pem_certificate(pem);
        let context = TlsContext::builder().with_trust_store(store).build();
        context.map(Self).map_err(|err| format!("cannot be used: {}", chain(&err)))
    }
}

/// What stands between this machine and the server.
#[derive(Clone, Debug)]
pub enum S3Proxy {
    /// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Nothing.
    Direct,
    /// A proxy for all requests, plain and (tunnelled) TLS alike.
    Url(String),
}

/// Where a bucket is and how to reach it.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// `http(s)://host[:port]` of the service; none for AWS itself.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; R2's is `auto`.
    pub region: String,
    /// Ask the server, before anything else, which region the bucket is in. For AWS, where the
    /// wrong one is refused.
    pub find_region: bool,
    /// Whether the bucket's name goes into the path; `None` for: with an endpoint it does.
    pub path_style: Option<bool>,
    /// Sent and signed as `Host`, instead of the endpoint's.
    pub host_header: Option<String>,
    /// Say in each request that this side pays for it.
    pub requester_pays: bool,
    /// Send `If-None-Match` and `If-Match` with writes. Without, a look before each write stands in,
    /// which two writers at the same time can slip past.
    pub conditional_writes: bool,
    /// Who asks.
    pub credentials: S3Credentials,
    /// Certificates to trust beside the system's.
    pub ca_bundle: Option<CaBundle>,
    /// What stands between.
    pub proxy: S3Proxy,
    /// How long a TCP and TLS handshake may take.
    pub connect_timeout: Duration,
    /// How long a server may be silent: until an answer begins, and between two pieces of a body.
    /// What a body needs on a very slow line, or an upload to be completed, comes on top.
    pub request_timeout: Duration,
}

impl S3Options {
    /// Default of [`Self::connect_timeout`].
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    /// Default of [`Self::request_timeout`].
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

    /// Options with the defaults.
    #[must_use]
    pub fn new(bucket: &str, endpoint: Option<&str>, region: &str, credentials: S3Credentials) -> Self {
        Self {
            bucket: bucket.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: region.to_owned(),
            find_region: false,
            path_style: None,
            host_header: None,
            requester_pays: false,
            conditional_writes: true,
            credentials,
            ca_bundle: None,
            proxy: S3Proxy::Environment,
            connect_timeout: Self::CONNECT_TIMEOUT,
            request_timeout: Self::REQUEST_TIMEOUT,
        }
    }
}

/// The headers that options add to every request, so that they are signed.
#[derive(Clone, Debug)]
struct ExtraHeaders {
    host: Option<String>,
    requester_pays: bool,
}

impl Intercept for ExtraHeaders {
    fn name(&self) -> &'static str {
        "ExtraHeaders"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request_mut().headers_mut();
        if let Some(host) = &self.host {
            headers.try_insert("host", host.clone())?;
        }
        if self.requester_pays {
            headers.try_insert("x-amz-request-payer", "requester")?;
        }
        Ok(())
    }
}

/// Up to here hashing costs less than handing the work to another thread, in bytes.
const HASHED_INLINE_BYTES_MAX: usize = 64 * 1024;

fn sha256_hex(body: &[u8]) -> String {
    HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, body).as_ref())
}

/// Whether somebody on the way could change what is sent to `endpoint`.
pub(super) fn is_exposed(endpoint: &str, proxy: &S3Proxy) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return !endpoint.starts_with("https://") };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.parse::<SocketAddr>().map(|address| address.ip());
    let host = host.or_else(|_| authority.trim_matches(['[', ']']).parse::<IpAddr>());
    let is_here = match host {
        Ok(address) => address.is_loopback(),
        Err(_) => authority.split(':').next() == Some("localhost"),
    };
    !is_here || matches!(proxy, S3Proxy::Url(_))
}

/// What a request's signature says of its body: nothing, or its SHA-256. That one is computed here: the
/// client's own code for it takes three times as long on a CPU without instructions for SHA.
#[derive(Clone, Debug)]
pub(super) struct BodySignature(PayloadSigningOverride);

impl BodySignature {
    /// Of a body whose SHA-256 may be `known`.
    pub async fn of(body: &Bytes, known: Option<[u8; 32]>, unsigned: bool) -> Self {
        if unsigned {
            return Self(PayloadSigningOverride::UnsignedPayload);
        }
        let digest = match known {
            Some(known) => HEXLOWER.encode(&known),
            None if body.len() <= HASHED_INLINE_BYTES_MAX => sha256_hex(body),
            None => {
                let shared = body.clone();
                // It is cancelled with the runtime only, when nobody waits for it.
                spawn_blocking(move || sha256_hex(&shared)).await.unwrap_or_else(|_| sha256_hex(body))
            }
        };
        Self(PayloadSigningOverride::Precomputed(digest))
    }

    /// The same, for a request that goes past the SDK.
    pub fn signable(&self) -> SignableBody<'static> {
        self.0.clone().to_signable_body()
    }
}

impl Intercept for BodySignature {
    fn name(&self) -> &'static str {
        "BodySignature"
    }

    fn modify_before_signing(
        &self,
        _context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(self.0.clone());
        Ok(())
    }
}

/// Looks for the region that an answer says the bucket is in; errors count too.
#[derive(Clone, Debug, Default)]
struct RegionFinder {
    seen: Arc<Mutex<Option<String>>>,
}

impl Intercept for RegionFinder {
    fn name(&self) -> &'static str {
        "RegionFinder"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let region = context.response().headers().get("x-amz-bucket-region");
        *self.seen.lock() = region.map(str::to_owned);
        Ok(())
    }
}

/// The server's clock, as its last answer told it.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerClock {
    seen: Arc<Mutex<Option<(SystemTime, Instant)>>>,
    /// What the SDK works with, for requests that go past it.
    pub(super) components: Components,
}

impl ServerClock {
    /// The same clock, to be told by another client.
    pub(super) fn of_new_client(&self) -> Self {
        Self { seen: Arc::clone(&self.seen), components: Components::default() }
    }

    /// The time at the server now, from the `Date` of its last answer; to the second.
    pub(super) fn now(&self) -> Option<SystemTime> {
        self.seen.lock().map(|(date, at)| date + at.elapsed())
    }

    /// Looks at the `Date` of an answer.
    pub(super) fn note(&self, date: Option<&str>) {
        let date = date.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok());
        if let Some(date) = date {
            *self.seen.lock() = Some((super::listing::system_time(Some(&date)), Instant::now()));
        }
    }
}

impl Intercept for ServerClock {
    fn name(&self) -> &'static str {
        "ServerClock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.note(context.response().headers().get("date"));
        self.components.get_or_init(|| components.clone());
        Ok(())
    }
}

/// Refuses a yes that is not S3's. Where S3 has nothing more to say, the SDK does not look at what it gets.
#[derive(Clone, Debug)]
struct RefusePages;

impl Intercept for RefusePages {
    fn name(&self) -> &'static str {
        "RefusePages"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response();
        // An object's bytes are not there yet, whatever they are.
        let is_foreign = answer.status().is_success() && answer.body().bytes().is_some_and(is_page);
        if is_foreign { Err(ForeignAnswer.into()) } else { Ok(()) }
    }
}

/// The SDK's client, with everything off that is done elsewhere in dsfs.
pub(super) fn client(options: &S3Options, region: &str, clock: &ServerClock) -> Client {
    let http = http_client(options);
    let config = config(options, region, &http).interceptor(clock.clone());
    let provider_config = ProviderConfig::without_region()
        .with_http_client(http)
        .with_region(Some(Region::new(region.to_owned())));
    let config = match credentials::provider(&options.credentials, &provider_config) {
        Some(provider) => config.credentials_provider(provider),
        None => config.allow_no_auth(),
    };
    Client::from_conf(config.build())
}

/// Asks which region a bucket is in: a HEAD that is not signed, whose answer says so whatever it is.
///
/// # Errors
/// There is no answer, or none that names a region.
pub(super) async fn find_region(options: &S3Options) -> Result<String, StoreError> {
    let finder = RegionFinder::default();
    let config = config(options, REGION_ASKED_FIRST, &http_client(options));
    let client = Client::from_conf(config.interceptor(finder.clone()).allow_no_auth().build());
    let request = client.head_bucket().bucket(&options.bucket).send();
    let outcome = timeout(options.request_timeout, request).await;
    if let Some(region) = finder.seen.lock().take() {
        return Ok(region);
    }
    let bucket = format!("bucket {}", options.bucket);
    match outcome {
        Ok(Err(err @ SdkError::ServiceError(_))) => {
            Err(super::error::from_sdk(&options.bucket, Subject::Bucket, err))
        }
        Ok(Err(err)) => Err(StoreError::unanswered(bucket, chain(&err))),
        Ok(Ok(_)) => Err(StoreError::Rejected {
            key: bucket,
            reason: "the server does not say which region it is in; name it".to_owned(),
        }),
        Err(_) => {
            let seconds = options.request_timeout.as_secs_f32();
            Err(StoreError::unanswered(bucket, format!("no answer within {seconds} s")))
        }
    }
}

/// An HTTP client with connections of its own.
pub(super) fn http_client(options: &S3Options) -> SharedHttpClient {
    let tls = options.ca_bundle.clone().map(|bundle| bundle.0).unwrap_or_default();
    let proxy = match &options.proxy {
        S3Proxy::Environment => ProxyConfig::from_env(),
        S3Proxy::Direct => ProxyConfig::disabled(),
        // What is no URL was refused with the other settings.
        S3Proxy::Url(url) => ProxyConfig::all(url).unwrap_or_else(|_| ProxyConfig::disabled()),
    };
    aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .tls_context(tls.clone())
            .proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    })
}

fn config(options: &S3Options, region: &str, http: &SharedHttpClient) -> aws_sdk_s3::config::Builder {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http.clone())
        .region(Region::new(region.to_owned()))
        .interceptor(ExtraHeaders {
            host: options.host_header.clone(),
            requester_pays: options.requester_pays,
        })
        .interceptor(RefusePages)
        // Retries are `store::retry`, which knows when a lost reply must not be asked twice.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(options.connect_timeout).build())
        // `get` watches for silence itself: the SDK's protection counts the time in which *we*
        // do not read (back pressure) and needs its grace period to end first.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // We send the checksum ourselves, of our choice; and a whole object's checksum cannot
        // be checked against a range.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .disable_s3_express_session_auth(true)
        .force_path_style(options.path_style.unwrap_or(options.endpoint.is_some()));
    match &options.endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_over_a_network_is_exposed() {
        let proxy = S3Proxy::Url("http://proxy:3128".into());
        for here in [
            "http://127.0.0.1:9000",
            "http://localhost/",
            "http://localhost:8333",
            "http://[::1]:80/x",
            "http://[::1]",
        ] {
            assert!(!is_exposed(here, &S3Proxy::Direct), "{here}");
            assert!(is_exposed(here, &proxy), "{here} through a proxy");
        }
        assert!(!is_exposed("https://minio.lab", &proxy));
        for exposed in [
            "http://minio.lab:9000",
            "http://10.0.0.7",
            "http://localhost.lab",
            "http://[fd00::1]:9000",
            "http://",
        ] {
            assert!(is_exposed(exposed, &S3Proxy::Direct), "{exposed}");
        }
    }
}
