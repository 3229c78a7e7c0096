//! Building the SDK's client: one HTTP client, our own retries, no surprises.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::BehaviorVersion;
use aws_sdk_s3::config::ConfigBag;
use aws_sdk_s3::config::Intercept;
use aws_sdk_s3::config::Region;
use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::RuntimeComponents;
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::BoxError;
use aws_smithy_http_client::tls;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use parking_lot::Mutex;

use super::direct::Components;
use super::direct::DirectGet;

/// Who asks.
#[derive(Clone)]
pub enum S3Credentials {
    /// A key pair, as R2 and MinIO give them out.
    Static {
        /// The public half.
        access_key_id: String,
        /// The secret half.
        secret_access_key: String,
        /// For temporary credentials.
        session_token: Option<String>,
    },
    /// Nobody: requests are not signed. Public buckets only; conditional writes need a signature.
    Anonymous,
    /// What the AWS tools would use: environment, profile files, web identity, container, instance.
    DefaultChain {
        /// The profile, instead of the default one.
        profile: Option<String>,
    },
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { .. } => f.write_str("Static(redacted)"),
            Self::Anonymous => f.write_str("Anonymous"),
            Self::DefaultChain { profile } => write!(f, "DefaultChain({profile:?})"),
        }
    }
}

/// Where a bucket is and how to reach it.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// `http(s)://host[:port]` of the service, addressed path-style; none for AWS itself.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; R2's is `auto`.
    pub region: String,
    /// Who asks.
    pub credentials: S3Credentials,
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

    /// Options with the default timeouts.
    #[must_use]
    pub fn new(bucket: &str, endpoint: Option<&str>, region: &str, credentials: S3Credentials) -> Self {
        Self {
            bucket: bucket.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: region.to_owned(),
            credentials,
            connect_timeout: Self::CONNECT_TIMEOUT,
            request_timeout: Self::REQUEST_TIMEOUT,
        }
    }
}

/// The server's clock, as its last answer told it.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerClock {
    seen: Arc<Mutex<Option<(SystemTime, Instant)>>>,
    /// What the SDK works with, for requests that go without it.
    components: Components,
}

impl ServerClock {
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

/// The SDK's client, with everything off that is done elsewhere in dsfs; and what sends GETs
/// without it, where that is possible.
pub(super) async fn client(options: &S3Options, clock: &ServerClock) -> (Client, Option<DirectGet>) {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let direct_http = http.clone();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http.clone())
        .region(Region::new(options.region.clone()))
        .interceptor(clock.clone())
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
        .force_path_style(options.endpoint.is_some());
    let config = match &options.endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    };
    let config = match &options.credentials {
        S3Credentials::Static { access_key_id, secret_access_key, session_token } => config
            .credentials_provider(Credentials::from_keys(
                access_key_id,
                secret_access_key,
                session_token.clone(),
            )),
        S3Credentials::Anonymous => config.allow_no_auth(),
        S3Credentials::DefaultChain { profile } => {
            let provider = ProviderConfig::without_region()
                .with_http_client(http)
                .with_region(Some(Region::new(options.region.clone())));
            let mut chain = DefaultCredentialsChain::builder().configure(provider);
            if let Some(profile) = profile {
                chain = chain.profile_name(profile);
            }
            config.credentials_provider(chain.build().await)
        }
    };
    let direct = DirectGet::new(options, direct_http, Arc::clone(&clock.components));
    (Client::from_conf(config.build()), direct)
}
