//! Reading a listing as servers really write it.
//!
//! `encoding-type=url` is asked for, since XML cannot hold every key. What comes back differs:
//! a space as `+` or as `%20`, `/` as itself or as `%2F`, `=` as itself or as `%3D`, and one server
//! family says "url" and encodes nothing. An encoded page holds only URL characters, so that a page with
//! any other character in it was not encoded.

use std::borrow::Cow;
use std::time::Duration;
use std::time::SystemTime;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;

use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::store::ListPage;
use crate::store::ListedObject;

use super::direct;

/// How the keys of a page are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Encoding {
    /// As they are.
    None,
    /// As in a query: `+` is a space, and a plus is `%2B`.
    Query,
    /// As in a path (Go's `url.PathEscape`: SeaweedFS): `+` is a plus.
    Path,
}

impl Encoding {
    /// What the keys of a page look like whose server says that they are encoded: no server encodes into
    /// other characters than these.
    fn of<'k>(keys: impl Iterator<Item = &'k str>) -> Self {
        let mut found = Self::Query;
        for key in keys {
            let bytes = key.as_bytes();
            for (at, byte) in bytes.iter().enumerate() {
                match byte {
                    b'%' if bytes
                        .get(at + 1..at + 3)
                        .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => {}
                    b'+' | b'/' | b'-' | b'_' | b'.' | b'~' | b'*' | b'!' | b'\'' | b'(' | b')' => {}
                    b'=' | b'$' | b'&' | b':' | b'@' => found = Self::Path,
                    other if other.is_ascii_alphanumeric() => {}
                    _ => return Self::None,
                }
            }
        }
        found
    }

    /// The key that is written so. What is not UTF-8 stays as it was.
    fn decode(self, text: &str) -> String {
        let spaced = match self {
            Self::None => return text.to_owned(),
            Self::Query => Cow::Owned(text.replace('+', " ")),
            Self::Path => Cow::Borrowed(text),
        };
        percent_decode_str(&spaced).decode_utf8().map_or_else(|_| text.to_owned(), Cow::into_owned)
    }
}

/// A time as the SDK holds it.
pub(super) fn system_time(time: Option<&DateTime>) -> SystemTime {
    let Some(time) = time else { return SystemTime::UNIX_EPOCH };
    u64::try_from(time.secs()).map_or(SystemTime::UNIX_EPOCH, |secs| {
        SystemTime::UNIX_EPOCH + Duration::new(secs, time.subsec_nanos())
    })
}

/// A page as the server wrote it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    /// The server says that keys are URL encoded.
    says_encoded: bool,
    objects: Vec<Object>,
    prefixes: Vec<String>,
    pub is_truncated: bool,
    pub continuation: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Object {
    key: Option<String>,
    size_bytes: u64,
    etag: Option<ETag>,
    modified: Option<DateTime>,
}

/// Why a page is not one.
#[derive(Debug, PartialEq)]
pub(super) enum NoPage {
    /// It is an error document, with this code and message.
    Error(String, String),
    /// It ends too early.
    CutOff,
    /// It is something else, or damaged.
    Unreadable(String),
}

impl From<ListObjectsV2Output> for Page {
    fn from(output: ListObjectsV2Output) -> Self {
        let says_encoded = output.encoding_type() == Some(&EncodingType::Url);
        let prefixes = output.common_prefixes.unwrap_or_default().into_iter();
        let objects = output.contents.unwrap_or_default().into_iter().map(|object| Object {
            size_bytes: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0),
            etag: object.e_tag().map(ETag::from_server),
            modified: object.last_modified,
            key: object.key,
        });
        Self {
            says_encoded,
            objects: objects.collect(),
            prefixes: prefixes.filter_map(|common| common.prefix).collect(),
            is_truncated: output.is_truncated == Some(true),
            continuation: output.next_continuation_token,
        }
    }
}

impl Page {
    /// Reads the document that answers `ListObjectsV2`.
    ///
    /// # Errors
    /// It is none, or not all of one.
    pub fn parse(document: &[u8]) -> Result<Self, NoPage> {
        if !document.trim_ascii_end().ends_with(b">") {
            return Err(NoPage::CutOff);
        }
        let mut reader = Reader::from_reader(document);
        let mut page = Self::default();
        let mut text = String::new();
        let mut object = Object::default();
        let mut inside: Vec<Element> = Vec::new();
        loop {
            match reader.read_event().map_err(unreadable)? {
                Event::Start(tag) => {
                    let element = Element::of(tag.local_name().as_ref());
                    match (&*inside, element) {
                        ([], Element::Listing) => {}
                        ([], Element::Error) => {
                            let document = String::from_utf8_lossy(document);
                            let (code, message) = direct::error_document(&document);
                            return Err(NoPage::Error(code.to_owned(), message.to_owned()));
                        }
                        ([], _) => return Err(unreadable("it is no listing")),
                        (_, Element::Contents) => object = Object::default(),
                        _ => {}
                    }
                    inside.push(element);
                    text.clear();
                }
                Event::End(_) => {
                    page.take(&inside, &text, &mut object)?;
                    inside.pop();
                    text.clear();
                    if inside.is_empty() {
                        return Ok(page);
                    }
                }
                Event::Text(piece) => text.push_str(&piece.decode().map_err(unreadable)?),
                Event::CData(piece) => text.push_str(&piece.decode().map_err(unreadable)?),
                Event::GeneralRef(name) => match name.resolve_char_ref().map_err(unreadable)? {
                    Some(character) => text.push(character),
                    None => {
                        let name = name.decode().map_err(unreadable)?;
                        let Some(resolved) = resolve_xml_entity(&name) else {
                            return Err(unreadable(format!("&{name}; is unknown")));
                        };
                        text.push_str(resolved);
                    }
                },
                Event::Eof => return Err(NoPage::CutOff),
                Event::Empty(tag) if inside.is_empty() => {
                    let is_listing = Element::of(tag.local_name().as_ref()) == Element::Listing;
                    return if is_listing { Ok(page) } else { Err(unreadable("it is no listing")) };
                }
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }

    /// Takes in an element that ends, the innermost of `inside`.
    fn take(&mut self, inside: &[Element], text: &str, object: &mut Object) -> Result<(), NoPage> {
        match inside {
            [Element::Listing, Element::IsTruncated] => {
                self.is_truncated = text.trim().parse().map_err(unreadable)?
            }
            [Element::Listing, Element::NextContinuationToken] => self.continuation = Some(text.to_owned()),
            [Element::Listing, Element::EncodingType] => self.says_encoded = text.trim() == "url",
            [Element::Listing, Element::CommonPrefixes, Element::Prefix] => {
                self.prefixes.push(text.to_owned());
            }
            [Element::Listing, Element::Contents] => self.objects.push(std::mem::take(object)),
            [Element::Listing, Element::Contents, Element::Key] => object.key = Some(text.to_owned()),
            [Element::Listing, Element::Contents, Element::Size] => {
                object.size_bytes = text.trim().parse().map_err(unreadable)?;
            }
            [Element::Listing, Element::Contents, Element::ETag] => {
                object.etag = Some(ETag::from_server(text))
            }
            [Element::Listing, Element::Contents, Element::LastModified] => {
                let time = DateTime::from_str(text.trim(), Format::DateTimeWithOffset);
                object.modified = Some(time.map_err(unreadable)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// With keys as they are in the bucket. The continuation is the caller's to check.
    pub fn read(self) -> ListPage {
        let keys = self.objects.iter().filter_map(|object| object.key.as_deref());
        let prefixes = self.prefixes.iter().map(String::as_str);
        let encoding = if self.says_encoded { Encoding::of(keys.chain(prefixes)) } else { Encoding::None };
        let objects = self.objects.into_iter().filter_map(|object| {
            Some(ListedObject {
                key: ObjectKey::from_listing(&encoding.decode(object.key.as_deref()?)),
                size_bytes: object.size_bytes,
                etag: object.etag,
                modified: system_time(object.modified.as_ref()),
            })
        });
        let objects = objects.collect();
        let prefixes =
            self.prefixes.iter().map(|prefix| KeyPrefix::from_listing(&encoding.decode(prefix))).collect();
        ListPage { objects, prefixes, continuation: None }
    }
}

/// What is looked for in a listing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Element {
    Listing,
    Error,
    Contents,
    CommonPrefixes,
    Prefix,
    Key,
    Size,
    ETag,
    LastModified,
    IsTruncated,
    NextContinuationToken,
    EncodingType,
    Other,
}

impl Element {
    fn of(name: &[u8]) -> Self {
        match name {
            b"ListBucketResult" => Self::Listing,
            b"Error" => Self::Error,
            b"Contents" => Self::Contents,
            b"CommonPrefixes" => Self::CommonPrefixes,
            b"Prefix" => Self::Prefix,
            b"Key" => Self::Key,
            b"Size" => Self::Size,
            b"ETag" => Self::ETag,
            b"LastModified" => Self::LastModified,
            b"IsTruncated" => Self::IsTruncated,
            b"NextContinuationToken" => Self::NextContinuationToken,
            b"EncodingType" => Self::EncodingType,
            _ => Self::Other,
        }
    }
}

fn unreadable(reason: impl std::fmt::Display) -> NoPage {
    NoPage::Unreadable(reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::types::CommonPrefix;
    use aws_sdk_s3::types::Object as SdkObject;

    fn keys(encoding: Option<EncodingType>, keys: &[&str]) -> Vec<String> {
        let contents = keys.iter().map(|key| SdkObject::builder().key(*key).size(1).build()).collect();
        let output =
            ListObjectsV2Output::builder().set_contents(Some(contents)).set_encoding_type(encoding).build();
        Page::from(output).read().objects.iter().map(|object| object.key.to_string()).collect()
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
    fn a_page_that_was_encoded_as_a_path_is_read_so() {
        let encoded = ["part=03/a%20b", "1%2B1", "x:y@z&$", "1%21", "%C3%A9"];
        let expected = ["part=03/a b", "1+1", "x:y@z&$", "1!", "é"];
        assert_eq!(keys(Some(EncodingType::Url), &encoded), expected);
        let plain = ["part=03/1+1", "é"];
        assert_eq!(keys(Some(EncodingType::Url), &plain), plain);
        assert_eq!(keys(Some(EncodingType::Url), &plain[..1]), plain[..1]);
    }

    #[test]
    fn absent_and_unquoted_etags_and_prefixes_are_read() {
        let object = |etag: Option<&str>| {
            SdkObject::builder().key("k").size(7).set_e_tag(etag.map(str::to_owned)).build()
        };
        let contents = vec![object(None), object(Some("abc")), object(Some("\"abc\""))];
        let output = ListObjectsV2Output::builder()
            .set_contents(Some(contents))
            .encoding_type(EncodingType::Url)
            .common_prefixes(CommonPrefix::builder().prefix("a+b%2F").build())
            .build();
        let page = Page::from(output).read();
        let etags: Vec<Option<String>> =
            page.objects.iter().map(|object| object.etag.as_ref().map(ToString::to_string)).collect();
        assert_eq!(etags, [None, Some("abc".into()), Some("abc".into())]);
        assert_eq!(page.prefixes, [KeyPrefix::from_listing("a b/")]);
    }

    /// The same page, as the SDK holds it and as a server writes it.
    #[test]
    fn a_document_is_read_as_the_sdk_reads_it() {
        let document = r#"<?xml version="1.0" encoding="UTF-8"?>
            <s3:ListBucketResult xmlns:s3="http://s3.amazonaws.com/doc/2006-03-01/">
              <Name>assets</Name><Prefix>a%20b/</Prefix><Delimiter/><KeyCount>3</KeyCount>
              <EncodingType>url</EncodingType><IsTruncated> true </IsTruncated>
              <NextContinuationToken>1&amp;2 &#x3D;</NextContinuationToken>
              <!-- any order -->
              <Contents><Owner><ID>x</ID><Key>not this</Key></Owner><ETag>&quot;1-2&quot;</ETag>
                <Key>a%20b/c</Key><Size>12</Size><LastModified>2026-11-22T10:00:00.250Z</LastModified></Contents>
              <Contents><Key><![CDATA[a+b/d]]></Key><Size>0</Size></Contents>
              <CommonPrefixes><Prefix>a+b/e/</Prefix></CommonPrefixes>
            </s3:ListBucketResult>"#;
        let modified = DateTime::from_millis(1_795_341_600_250);
        let objects = vec![
            SdkObject::builder().key("a%20b/c").size(12).e_tag("\"1-2\"").last_modified(modified).build(),
            SdkObject::builder().key("a+b/d").size(0).build(),
        ];
        let output = ListObjectsV2Output::builder()
            .set_contents(Some(objects))
            .common_prefixes(CommonPrefix::builder().prefix("a+b/e/").build())
            .encoding_type(EncodingType::Url)
            .is_truncated(true)
            .next_continuation_token("1&2 =")
            .build();
        assert_eq!(Page::parse(document.as_bytes()), Ok(Page::from(output)));
        let keys = Page::parse(document.as_bytes()).unwrap().read().objects;
        assert_eq!(keys.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a b/c", "a b/d"]);
    }

    #[test]
    fn times_with_an_offset_and_documents_without_anything_are_read() {
        let at = |text: &str| {
            let document = format!(
                "<ListBucketResult><Contents><Key>k</Key><LastModified>{text}</LastModified></Contents></ListBucketResult>"
            );
            Page::parse(document.as_bytes()).unwrap().read().objects[0].modified
        };
        assert_eq!(at("2026-11-22T10:00:00Z"), at("2026-11-22T12:00:00+02:00"));
        assert_eq!(Page::parse(b"<ListBucketResult/>"), Ok(Page::default()));
    }

    #[test]
    fn what_is_no_page_says_why() {
        let kind = |text: &str| Page::parse(text.as_bytes()).unwrap_err();
        let error = "<Error><Code>SlowDown</Code><Message>Later</Message></Error>";
        assert_eq!(kind(error), NoPage::Error("SlowDown".into(), "Later".into()));
        let whole = "<ListBucketResult><Contents><Key>k</Key><Size>1</Size></Contents></ListBucketResult>";
        Page::parse(whole.as_bytes()).unwrap();
        for cut in 0..whole.len() {
            assert_eq!(Page::parse(&whole.as_bytes()[..cut]), Err(NoPage::CutOff), "{cut}");
        }
        for text in [
            "<html><body>hello</body></html>",
            "<ListBucketResult><Contents><Size>-1</Size></Contents></ListBucketResult>",
            "<ListBucketResult><Contents><Key>&nbsp;</Key></Contents></ListBucketResult>",
            "<ListBucketResult><Contents></ListBucketResult>",
            "<ListBucketResult><IsTruncated>1</IsTruncated></ListBucketResult>",
            "<ListBucketResult><Contents><LastModified>today</LastModified></Contents></ListBucketResult>",
        ] {
            assert!(matches!(kind(text), NoPage::Unreadable(_)), "{text}: {:?}", kind(text));
        }
    }
}
