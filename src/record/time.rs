//! Times as records and metadata spell them.

use std::time::Duration;
use std::time::SystemTime;

use serde::Deserialize;

/// A file's modification time as S3 metadata has it: seconds since 1970 with nine decimals.
#[must_use]
pub fn format_mtime(time: SystemTime) -> String {
    let (sign, distance) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => ("", after),
        Err(before) => ("-", before.duration()),
    };
    format!("{sign}{}.{:09}", distance.as_secs(), distance.subsec_nanos())
}

/// Reads what [`format_mtime`] or rclone wrote: seconds, with or without a fraction.
#[must_use]
pub fn parse_mtime(text: &str) -> Option<SystemTime> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit())
        || !seconds.starts_with(|c: char| c.is_ascii_digit())
    {
        return None;
    }
    let nanoseconds: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    let distance = Duration::new(seconds.parse().ok()?, nanoseconds);
    if negative {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

/// Of an entry: as [`format_mtime`] writes it.
pub(super) mod mtime {
    use super::*;

    pub fn serialize<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_mtime(*time))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        parse_mtime(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a time")))
    }
}

/// Of what the processes of one machine tell each other: as serde has it, which every dsfs reads, and for
/// times before 1970, which serde does not write, as [`format_mtime`] does.
pub mod any_time {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Told {
        Since1970(SystemTime),
        Before(String),
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        if *time < SystemTime::UNIX_EPOCH {
            return serializer.serialize_str(&format_mtime(*time));
        }
        serde::Serialize::serialize(time, serializer)
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// It is no time.
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        match Told::deserialize(deserializer)? {
            Told::Since1970(time) => Ok(time),
            Told::Before(text) => {
                parse_mtime(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a time")))
            }
        }
    }
}

/// Of a record: RFC 3339, in UTC.
pub(super) mod rfc3339 {
    use super::*;

    pub fn serialize<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let time = jiff::Timestamp::try_from(*time).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&time)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse::<jiff::Timestamp>().map(SystemTime::from).map_err(serde::de::Error::custom)
    }

    pub mod option {
        use super::*;

        #[expect(clippy::ref_option, reason = "serde hands it over so")]
        pub fn serialize<S: serde::Serializer>(
            time: &Option<SystemTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: serde::Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            super::deserialize(deserializer).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
    struct Moment(#[serde(with = "any_time")] SystemTime);

    #[test]
    fn any_time_is_told_as_it_was_and_since_1970_in_the_old_form() {
        for nanos in [0i64, 1, 1_500_000_000, -1, -1_500_000_000] {
            let distance = Duration::from_nanos(nanos.unsigned_abs());
            let time =
                if nanos < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance };
            let text = serde_json::to_string(&Moment(time)).unwrap();
            assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), Moment(time));
            assert!(serde_json::to_string(&time).ok().is_none_or(|old| old == text), "{text}");
        }
        assert!(serde_json::from_str::<Moment>("\"yesterday\"").is_err());
    }

    #[test]
    fn mtimes_are_exact_and_read_what_rclone_writes() {
        for (text, nanos) in
            [("0.000000000", 0i128), ("1.000000001", 1_000_000_001), ("-1.500000000", -1_500_000_000)]
        {
            let distance = Duration::from_nanos(nanos.unsigned_abs() as u64);
            let time =
                if nanos < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance };
            assert_eq!(format_mtime(time), text);
            assert_eq!(parse_mtime(text), Some(time));
        }
        let at = |seconds, nanos| Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(parse_mtime("1700000000"), at(1_700_000_000, 0));
        assert_eq!(parse_mtime("1700000000.5"), at(1_700_000_000, 500_000_000));
        assert_eq!(parse_mtime("1.0000000019"), at(1, 1));
        for bad in ["", ".", "-", "x", "1.x", "1e9", "+1", ".5", "--1", "99999999999999999999"] {
            assert_eq!(parse_mtime(bad), None, "{bad}");
        }
    }
}
