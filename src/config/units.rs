//! Sizes and durations as people write them.

use std::time::Duration;

use bytesize::ByteSize;

/// Parses `20GiB`, `500MB`, `1048576`. Powers of 1024 with an `i`, of 1000 without.
///
/// # Errors
/// A sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let size: ByteSize =
        text.parse().map_err(|_| format!("{text:?} is not a size; write it like 20GiB or 500MB"))?;
    Ok(size.as_u64())
}

/// Shows a size: `20 GiB`, `1.5 MiB`, `17 B`.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let text = ByteSize::b(bytes).display().iec().to_string();
    text.replace(".0 ", " ")
}

/// Parses `60s`, `5min`, `1h 30min`.
///
/// # Errors
/// A sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration; write it like 60s or 5min"))
}

/// Shows a duration: `1m`, `90ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(parse_size("20GiB"), Ok(20 << 30));
        assert_eq!(parse_size("500MB"), Ok(500_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(3 << 19));
        assert_eq!(parse_size("1024"), Ok(1024));
        for bad in ["", "GiB", "-1", "20 parsecs"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
        assert_eq!(show_size(20 << 30), "20 GiB");
        assert_eq!(show_size(3 << 19), "1.5 MiB");
        assert_eq!(show_size(17), "17 B");
    }

    #[test]
    fn durations_are_read_and_shown() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(show_duration(Duration::from_secs(90)), "1m 30s");
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("60").is_err());
    }
}
