//! Reading a listing as servers really write it.
//!
//! `encoding-type=url` is asked for, since XML cannot hold every key. What comes back differs:
//! a space as `+` or as `%20`, `/` as itself or as `%2F`, and one server family says "url" and
//! encodes nothing. An encoded page holds only URL characters, so that a page with any other
//! character in it was not encoded.

use std::borrow::Cow;
use std::time::Duration;
use std::time::SystemTime;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use aws_smithy_types::DateTime;
use percent_encoding::percent_decode_str;

use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::store::ListPage;
use crate::store::ListedObject;

/// Whether a text can have come out of a URL encoder: no server encodes into anything else.
fn looks_encoded(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
        b'+' | b'/' | b'-' | b'_' | b'.' | b'~' | b'*' | b'!' | b'\'' | b'(' | b')' => true,
        other => other.is_ascii_alphanumeric(),
    })
}

/// Undoes the URL encoding of one key. What is not UTF-8 afterwards stays as it was.
fn decode(text: &str) -> Cow<'_, str> {
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(decoded) => Cow::Owned(decoded.into_owned()),
        Err(_) => Cow::Borrowed(text),
    }
}

/// A time as the SDK holds it.
pub(super) fn system_time(time: Option<&DateTime>) -> SystemTime {
    let Some(time) = time else { return SystemTime::UNIX_EPOCH };
    u64::try_from(time.secs()).map_or(SystemTime::UNIX_EPOCH, |secs| {
        SystemTime::UNIX_EPOCH + Duration::new(secs, time.subsec_nanos())
    })
}

/// One page, with keys as they are in the bucket. The continuation is the caller's to check.
pub(super) fn page(output: &ListObjectsV2Output) -> ListPage {
    let keys = output.contents().iter().filter_map(|object| object.key());
    let prefixes = output.common_prefixes().iter().filter_map(|common| common.prefix());
    let encoded =
        output.encoding_type() == Some(&EncodingType::Url) && keys.chain(prefixes).all(looks_encoded);
    let read = |text| if encoded { decode(text) } else { Cow::Borrowed(text) };
    let objects = output.contents().iter().filter_map(|object| {
        Some(ListedObject {
            key: ObjectKey::from_listing(&read(object.key()?)),
            size_bytes: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0),
            etag: object.e_tag().map(ETag::from_server),
            modified: system_time(object.last_modified()),
        })
    });
    let prefixes = output.common_prefixes().iter().filter_map(|common| common.prefix());
    ListPage {
        objects: objects.collect(),
        prefixes: prefixes.map(|prefix| KeyPrefix::from_listing(&read(prefix))).collect(),
        continuation: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::types::CommonPrefix;
    use aws_sdk_s3::types::Object;

    fn keys(encoding: Option<EncodingType>, keys: &[&str]) -> Vec<String> {
        let contents = keys.iter().map(|key| Object::builder().key(*key).size(1).build()).collect();
        let output =
            ListObjectsV2Output::builder().set_contents(Some(contents)).set_encoding_type(encoding).build();
        page(&output).objects.iter().map(|object| object.key.to_string()).collect()
    }

    #[test]
    fn every_spelling_of_an_encoded_key_is_read() {
        let url = Some(EncodingType::Url);
        let encoded = ["a+b", "a%20b", "dir%2Fx", "dir/x", "1%2B1", "100%25", "%C3%A9", "line%0Abreak"];
        let expected = ["a b", "a b", "dir/x", "dir/x", "1+1", "100%", "é", "line\nbreak"];
        assert_eq!(keys(url, &encoded), expected);
    }

    #[test]
    fn a_page_that_was_not_encoded_is_taken_as_it_is() {
        let url = Some(EncodingType::Url);
        assert_eq!(keys(None, &["a+b", "%41"]), ["a+b", "%41"]);
        assert_eq!(keys(url.clone(), &["1+1", "with space"]), ["1+1", "with space"]);
        assert_eq!(keys(url.clone(), &["1+1", "100%"]), ["1+1", "100%"]);
        assert_eq!(keys(url, &["1+1", "é"]), ["1+1", "é"]);
    }

    #[test]
    fn absent_and_unquoted_etags_and_prefixes_are_read() {
        let object = |etag: Option<&str>| {
            Object::builder().key("k").size(7).set_e_tag(etag.map(str::to_owned)).build()
        };
        let contents = vec![object(None), object(Some("abc")), object(Some("\"abc\""))];
        let output = ListObjectsV2Output::builder()
            .set_contents(Some(contents))
            .encoding_type(EncodingType::Url)
            .common_prefixes(CommonPrefix::builder().prefix("a+b%2F").build())
            .build();
        let page = page(&output);
        let etags: Vec<Option<String>> =
            page.objects.iter().map(|object| object.etag.as_ref().map(ToString::to_string)).collect();
        assert_eq!(etags, [None, Some("abc".into()), Some("abc".into())]);
        assert_eq!(page.prefixes, [KeyPrefix::from_listing("a b/")]);
    }
}
