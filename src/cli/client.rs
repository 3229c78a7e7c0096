//! The flags that say how the bucket is asked and by whom; rarely needed, so only `--help` lists them.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::absolute;
use crate::config::Layer;

/// Flags of every command about the S3 client.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "S3 client")]
pub struct ClientArgs {
    /// Where the keys come from: auto, anonymous, environment, profile, ecs or imds
    #[arg(long, value_name = "KIND", global = true, hide_short_help = true)]
    credentials: Option<String>,
    /// A profile of AWS's own files
    #[arg(long, value_name = "NAME", global = true, hide_short_help = true)]
    aws_profile: Option<String>,
    /// AWS's file of profiles, instead of ~/.aws/config
    #[arg(long, value_name = "FILE", global = true, hide_short_help = true)]
    aws_config_file: Option<PathBuf>,
    /// AWS's file of keys, instead of ~/.aws/credentials
    #[arg(long, value_name = "FILE", global = true, hide_short_help = true)]
    aws_credentials_file: Option<PathBuf>,
    /// The instance metadata service
    #[arg(long, value_name = "URL", global = true, hide_short_help = true)]
    imds_endpoint: Option<String>,
    /// Where the bucket's name goes: auto, path or virtual-host
    #[arg(long, value_name = "STYLE", global = true, hide_short_help = true)]
    addressing: Option<String>,
    /// Send and sign this Host, instead of the endpoint's
    #[arg(long, value_name = "HOST", global = true, hide_short_help = true)]
    host_header: Option<String>,
    /// Pay for the requests, instead of the bucket's owner
    #[arg(long, global = true, hide_short_help = true)]
    requester_pays: bool,
    /// Send conditions with writes: auto (probe what they are worth), on (trust them) or off
    #[arg(long, value_name = "WHEN", global = true, hide_short_help = true)]
    conditional_writes: Option<String>,
    /// A PEM file of certificates to trust beside the system's
    #[arg(long, value_name = "FILE", global = true, hide_short_help = true)]
    ca_bundle: Option<PathBuf>,
    /// An HTTP proxy, or none; else as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say
    #[arg(long, value_name = "URL", global = true, hide_short_help = true)]
    proxy: Option<String>,
    /// How long a TCP and TLS handshake may take [default: 10s]
    #[arg(long, value_name = "TIME", global = true, hide_short_help = true)]
    connect_timeout: Option<String>,
    /// How long the server may be silent within a request [default: 30s]
    #[arg(long, value_name = "TIME", global = true, hide_short_help = true)]
    request_timeout: Option<String>,
    /// Requests under way at once [default: 32]
    #[arg(long, value_name = "N", global = true, hide_short_help = true)]
    request_concurrency: Option<String>,
    /// How often a failed request is made again [default: 32]
    #[arg(long, value_name = "N", global = true, hide_short_help = true)]
    retries: Option<String>,
    /// Bound of the first pause before a retry; it doubles from there [default: 1s]
    #[arg(long, value_name = "TIME", global = true, hide_short_help = true)]
    retry_initial_delay: Option<String>,
    /// Bound of every pause before a retry [default: 32s]
    #[arg(long, value_name = "TIME", global = true, hide_short_help = true)]
    retry_max_delay: Option<String>,
    /// How long a request is made again; the last one has its own time [default: 60s]
    #[arg(long, value_name = "TIME", global = true, hide_short_help = true)]
    retry_timeout: Option<String>,
    /// Reads and listings begun in a second [default: no limit]
    #[arg(long, value_name = "N", global = true, hide_short_help = true)]
    read_rate: Option<String>,
    /// Writes and deletions begun in a second [default: no limit]
    #[arg(long, value_name = "N", global = true, hide_short_help = true)]
    write_rate: Option<String>,
    /// The time in which both rates double [default: never]
    #[arg(long, value_name = "TIME", global = true, hide_short_help = true)]
    rate_doubling_time: Option<String>,
}

impl ClientArgs {
    /// These settings in a layer.
    #[must_use]
    pub fn layer(&self) -> Layer {
        Layer {
            credentials: self.credentials.clone(),
            aws_profile: self.aws_profile.clone(),
            aws_config_file: self.aws_config_file.as_deref().map(absolute),
            aws_credentials_file: self.aws_credentials_file.as_deref().map(absolute),
            imds_endpoint: self.imds_endpoint.clone(),
            addressing: self.addressing.clone(),
            host_header: self.host_header.clone(),
            requester_pays: self.requester_pays.then_some(true),
            conditional_writes: self.conditional_writes.clone(),
            ca_bundle: self.ca_bundle.as_deref().map(absolute),
            proxy: self.proxy.clone(),
            connect_timeout: self.connect_timeout.clone(),
            request_timeout: self.request_timeout.clone(),
            request_concurrency: self.request_concurrency.clone(),
            retries: self.retries.clone(),
            retry_initial_delay: self.retry_initial_delay.clone(),
            retry_max_delay: self.retry_max_delay.clone(),
            retry_timeout: self.retry_timeout.clone(),
            read_rate: self.read_rate.clone(),
            write_rate: self.write_rate.clone(),
            rate_doubling_time: self.rate_doubling_time.clone(),
            ..Layer::default()
        }
    }
}
