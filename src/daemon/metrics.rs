//! The counters for Prometheus, on request: one small HTTP server with one page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Encoder;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::TextEncoder;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::stat::MountStat;
use crate::daemon::service::Service;
use crate::read::DatasetStats;

/// How long a client may take over one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Clients at a time.
const CLIENTS_MAX: usize = 8;
/// How long no client is accepted after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes the address.
///
/// # Errors
/// It cannot be had.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|err| {
        Failure::new(FailureKind::Failed, format!("the metrics cannot be served at {address}: {err}"))
            .hint("--metrics takes another address, such as 127.0.0.1:0")
    })
}

/// Answers until it is told to stop.
pub(super) async fn serve(listener: TcpListener, service: Arc<Service>, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!("metrics at http://{address}/metrics");
    }
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let client = tokio::select! {
            () = stop.cancelled() => return,
            client = listener.accept() => client,
        };
        let Ok(place) = Arc::clone(&clients).acquire_owned().await else { return };
        match client {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    let answered = time::timeout(REQUEST_TIMEOUT, answer(stream, &service)).await;
                    if !matches!(answered, Ok(Ok(()))) {
                        tracing::debug!("a client of the metrics went away");
                    }
                    drop(place);
                });
            }
            Err(err) => {
                tracing::debug!("a client of the metrics was not accepted: {err}");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, service: &Service) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = if head.starts_with(b"GET /metrics ") || head.starts_with(b"GET / ") {
        match page(&service.stat()) {
            Ok(body) => ("200 OK", body),
            Err(err) => ("500 Internal Server Error", err.to_string()),
        }
    } else {
        ("404 Not Found", "the metrics are at /metrics\n".to_owned())
    };
    let kind = "text/plain; version=0.0.4";
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The counters in the text format.
fn page(stat: &MountStat) -> prometheus::Result<String> {
    let registry = Registry::new();
    let (read, cache) = (&stat.read, &stat.cache);
    let counters = [
        ("dsfs_read_served_bytes_total", "Bytes handed to readers by the daemon.", read.served_bytes),
        ("dsfs_read_hits_total", "Reads answered at once.", read.hits),
        ("dsfs_read_misses_total", "Reads that had to wait.", read.misses),
        ("dsfs_read_failures_total", "Reads that failed.", read.failures),
        ("dsfs_requests_total", "GETs sent.", read.requests),
        ("dsfs_fetched_bytes_total", "Bytes that came from the remote.", read.fetched_bytes),
        ("dsfs_broken_bodies_total", "Bodies that broke off and were continued.", read.broken_bodies),
        ("dsfs_prefetch_useful_bytes_total", "Bytes fetched ahead and read.", read.prefetch_useful_bytes),
        ("dsfs_prefetch_wasted_bytes_total", "Bytes fetched ahead in vain.", read.prefetch_wasted_bytes),
        ("dsfs_cache_hits_total", "Lookups that the cache answered.", cache.hits),
        ("dsfs_cache_misses_total", "Lookups that it did not.", cache.misses),
        ("dsfs_cache_written_bytes_total", "Bytes written to the cache.", cache.written_bytes),
        ("dsfs_cache_evicted_bytes_total", "Bytes evicted from the cache.", cache.evicted_bytes),
        ("dsfs_cache_damaged_blocks_total", "Blocks that failed their check.", cache.damaged_blocks),
        ("dsfs_cache_lost_writes_total", "Files that lost what was written to them.", cache.lost_writes),
    ];
    for (name, help, value) in counters {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        registry.register(Box::new(counter))?;
    }
    let gauges = [
        ("dsfs_requests_in_flight", "GETs under way.", read.in_flight),
        ("dsfs_memory_bytes", "Bytes of the memory budget in use.", read.memory_bytes),
        ("dsfs_memory_limit_bytes", "The memory budget.", read.memory_limit_bytes),
        ("dsfs_cache_used_bytes", "Bytes in the cache.", cache.used_bytes),
        ("dsfs_cache_pinned_bytes", "Bytes of pinned versions.", cache.pinned_bytes),
        ("dsfs_cache_limit_bytes", "Bytes that may be in the cache.", cache.limit_bytes),
        ("dsfs_cache_bypassed", "1 if the cache's disk is not used.", u64::from(cache.bypassed.is_some())),
        ("dsfs_open_handles", "Open files and directories.", stat.open_handles),
        ("dsfs_inodes", "Files and directories that the kernel knows.", stat.inodes),
    ];
    for (name, help, value) in gauges {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(Box::new(gauge))?;
    }
    register_datasets(&registry, stat)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

type OfDataset = fn(&DatasetStats) -> u64;

/// The counters of each dataset, under its name.
fn register_datasets(registry: &Registry, stat: &MountStat) -> prometheus::Result<()> {
    let counters: [(&str, &str, OfDataset); 4] = [
        ("dsfs_dataset_served_bytes_total", "Bytes of a dataset handed to readers.", |of| of.served_bytes),
        ("dsfs_dataset_misses_total", "Reads of a dataset that had to wait.", |of| of.misses),
        ("dsfs_dataset_requests_total", "GETs sent for a dataset.", |of| of.requests),
        ("dsfs_dataset_fetched_bytes_total", "Bytes of a dataset that came.", |of| of.fetched_bytes),
    ];
    for (name, help, value) in counters {
        let counter = IntCounterVec::new(Opts::new(name, help), &["dataset"])?;
        for (dataset, stats) in &stat.datasets {
            counter.with_label_values(&[dataset.as_str()]).inc_by(value(stats));
        }
        registry.register(Box::new(counter))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheUsage;
    use crate::read::ReadStats;
    use std::collections::BTreeMap;

    #[test]
    fn every_counter_is_on_the_page_with_its_value() {
        let stat = MountStat {
            mountpoint: "/m".into(),
            uptime_ms: 1,
            open_handles: 3,
            inodes: 4,
            passthrough: false,
            read: ReadStats { fetched_bytes: 77, ..ReadStats::default() },
            datasets: BTreeMap::from([(
                "run".to_owned(),
                DatasetStats { fetched_bytes: 70, ..DatasetStats::default() },
            )]),
            cache: CacheUsage { bypassed: Some("full".into()), ..CacheUsage::default() },
        };
        let page = page(&stat).unwrap();
        let of_run = "dsfs_dataset_fetched_bytes_total{dataset=\"run\"} 70";
        for line in ["dsfs_fetched_bytes_total 77", of_run, "dsfs_open_handles 3", "dsfs_cache_bypassed 1"] {
            assert!(page.lines().any(|known| known == line), "{line} in {page}");
        }
        assert!(page.contains("# TYPE dsfs_requests_total counter"), "{page}");
        assert!(page.contains("# TYPE dsfs_memory_bytes gauge"), "{page}");
    }
}
