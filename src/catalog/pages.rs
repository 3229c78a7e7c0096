//! All pages of one directory level, several at a time where there are many.
//!
//! A server gives a thousand keys a request, one page after the other: 200 requests in a row for
//! 200 000 files. But a listing can also begin behind any key. So the rest of a level, behind
//! its first page, is split at names that are likely to have others on both sides: where the
//! names of a page count up (`img_000999.jpg`), at the next digits. What is guessed wrong costs a
//! request that finds little; every name lies in exactly one range, whatever was guessed.

use std::collections::VecDeque;
use std::future::Future;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::catalog::listing::Listing;
use crate::name::KeyPrefix;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::StoreError;

/// Requests at a time for one level.
const PARALLEL: usize = 16;
/// Ranges that one range is split into, at most.
const SPLIT_MAX: usize = 64;

/// Names of a level, without its prefix: those behind `after`, up to and with `upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    after: Option<String>,
    /// Where the server says that the range goes on; it knows better than `after`.
    continuation: Option<String>,
    upto: Option<String>,
}

/// The whole level, of which `first` is the first page; `list` asks for another.
///
/// # Errors
/// The store's.
pub(super) async fn rest<F>(
    prefix: &KeyPrefix,
    first: ListPage,
    list: impl Fn(ListRequest) -> F,
) -> Result<Listing, StoreError>
where
    F: Future<Output = Result<ListPage, StoreError>>,
{
    let mut listing = Listing::default();
    let mut waiting = VecDeque::new();
    let whole = Range { after: None, continuation: None, upto: None };
    waiting.extend(take(&mut listing, prefix, first, &whole, PARALLEL));
    let mut asking = FuturesUnordered::new();
    loop {
        while asking.len() < PARALLEL
            && let Some(range) = waiting.pop_front()
        {
            let page = list(request(prefix, &range));
            asking.push(async move { (page.await, range) });
        }
        let Some((page, range)) = asking.next().await else { return Ok(listing) };
        let page = page?;
        if let (Some(after), Some((first, _))) = (&range.after, ends(prefix, &page))
            && range.continuation.is_none()
            && first < &**after
        {
            tracing::debug!("the server cannot begin a listing of {prefix} in its middle");
            return one_by_one(prefix, list).await;
        }
        if page.objects.is_empty() && page.prefixes.is_empty() && page.continuation.is_none() {
            // There is nothing behind it at all: nor in the ranges that begin later.
            waiting.retain(|other: &Range| other.continuation.is_some() || other.after < range.after);
        }
        let idle = PARALLEL.saturating_sub(asking.len() + waiting.len());
        for range in take(&mut listing, prefix, page, &range, idle).into_iter().rev() {
            waiting.push_front(range);
        }
    }
}

fn request(prefix: &KeyPrefix, range: &Range) -> ListRequest {
    let request = ListRequest::one_level(prefix.clone());
    match (&range.continuation, &range.after) {
        (Some(_), _) => ListRequest { continuation: range.continuation.clone(), ..request },
        (None, after) => {
            let start_after = after.as_ref().map(|after| format!("{prefix}{after}"));
            ListRequest { start_after, ..request }
        }
    }
}

async fn one_by_one<F>(prefix: &KeyPrefix, list: impl Fn(ListRequest) -> F) -> Result<Listing, StoreError>
where
    F: Future<Output = Result<ListPage, StoreError>>,
{
    let mut request = ListRequest::one_level(prefix.clone());
    let mut listing = Listing::default();
    loop {
        let page = list(request.clone()).await?;
        request.continuation = page.continuation.clone();
        listing.add_page(prefix, page);
        if request.continuation.is_none() {
            return Ok(listing);
        }
    }
}

/// Takes a page in, and returns the ranges that are left of its range.
fn take(listing: &mut Listing, prefix: &KeyPrefix, page: ListPage, range: &Range, idle: usize) -> Vec<Range> {
    let ends = ends(prefix, &page).map(|(first, last)| (first.to_owned(), last.to_owned()));
    let continuation = page.continuation.clone();
    listing.add_page(prefix, page);
    let (Some(continuation), Some((first, last))) = (continuation, ends) else { return Vec::new() };
    if range.upto.as_ref().is_some_and(|upto| last > *upto) {
        return Vec::new();
    }
    let points = if idle > 1 { split_points(&first, &last, range.upto.as_deref()) } else { Vec::new() };
    let mut ranges = Vec::with_capacity(points.len() + 1);
    let mut begin = Range { after: Some(last), continuation: Some(continuation), upto: None };
    for point in points {
        let next = Range { after: Some(point.clone()), continuation: None, upto: None };
        ranges.push(Range { upto: Some(point), ..std::mem::replace(&mut begin, next) });
    }
    ranges.push(Range { upto: range.upto.clone(), ..begin });
    ranges
}

/// The first and the last name of a page. Objects and prefixes are each in order.
fn ends<'p>(prefix: &KeyPrefix, page: &'p ListPage) -> Option<(&'p str, &'p str)> {
    let object = |object: Option<&'p ListedObject>| object.and_then(|object| prefix.strip(&object.key));
    let below =
        |below: Option<&'p KeyPrefix>| below.and_then(|below| below.as_str().strip_prefix(prefix.as_str()));
    let firsts = [object(page.objects.first()), below(page.prefixes.first())];
    let lasts = [object(page.objects.last()), below(page.prefixes.last())];
    let first = firsts.into_iter().flatten().filter(|name| !name.is_empty()).min()?;
    let last = lasts.into_iter().flatten().max()?;
    Some((first, last))
}

/// Names behind `last` at which to split, in order; `first` and `last` are those of a page.
///
/// Between `first` and `last` the names have counted up at some position. Others will follow
/// that have a higher digit there, or at a position before it in the same run of digits.
fn split_points(first: &str, last: &str, upto: Option<&str>) -> Vec<String> {
    let (first, last) = (first.as_bytes(), last.as_bytes());
    let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let Some((&low, &high)) = first.get(common).zip(last.get(common)) else { return Vec::new() };
    let Some(alphabet) = alphabet_of(low, high) else { return Vec::new() };
    let run = last[..common].iter().rev().take_while(|byte| alphabet.contains(byte)).count();
    let mut points = Vec::new();
    for position in (common - run..=common).rev() {
        for byte in alphabet.iter().filter(|byte| **byte > last[position]) {
            let mut point = last[..position].to_vec();
            point.push(*byte);
            let Ok(point) = String::from_utf8(point) else { return points };
            if upto.is_some_and(|upto| *point >= *upto) || points.len() == SPLIT_MAX {
                return points;
            }
            points.push(point);
        }
    }
    points
}

/// The smallest set of characters, in order, that both belong to.
fn alphabet_of(low: u8, high: u8) -> Option<&'static [u8]> {
    const SETS: [&[u8]; 4] = [
        b"0123456789",
        b"0123456789abcdef",
        b"0123456789ABCDEF",
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    ];
    SETS.into_iter().find(|set| set.contains(&low) && set.contains(&high))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bytes::Bytes;

    use super::*;
    use crate::name::ObjectKey;
    use crate::store::ObjectStore;
    use crate::store::memory::MemoryStore;

    const PREFIX: &str = "d/run/";

    fn store(names: impl Iterator<Item = String>) -> MemoryStore {
        let store = MemoryStore::default();
        for name in names {
            let key = ObjectKey::from_listing(&format!("{PREFIX}{name}"));
            store.overwrite_out_of_band(&key, Bytes::new());
        }
        store
    }

    /// The names found, and with how many requests; with a server that cannot begin in the middle.
    async fn list(store: &MemoryStore, from_start: bool) -> (Vec<String>, usize) {
        let prefix = KeyPrefix::from_listing(PREFIX);
        let requests = Cell::new(0);
        let list = |mut request: ListRequest| {
            requests.set(requests.get() + 1);
            if from_start {
                request.start_after = None;
            }
            async move {
                tokio::task::yield_now().await;
                store.list(&request).await
            }
        };
        let first = list(ListRequest::one_level(prefix.clone())).await.unwrap();
        let listing = rest(&prefix, first, list).await.unwrap();
        (listing.entries.keys().map(ToString::to_string).collect(), requests.get())
    }

    #[tokio::test]
    async fn names_of_every_kind_are_found_once() {
        let counting: Vec<String> = (0..6000).map(|number| format!("img_{number:07}.jpg")).collect();
        let spread = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hashes: Vec<String> = (0..4000).map(|number| format!("{:016x}", spread(number))).collect();
        let odd: Vec<String> =
            (0..3000).map(|number| format!("é {}\u{1}{number}", spread(number) % 7)).collect();
        let below: Vec<String> = (0..2500).map(|number| format!("part-{number}/x")).collect();
        let mixed: Vec<String> = [&counting[..1500], &hashes[..1500], &odd[..500], &below[..1500]].concat();
        for names in [counting, hashes, odd, below, mixed] {
            let store = store(names.iter().cloned());
            let mut expected: Vec<String> =
                names.iter().map(|name| name.split('/').next().unwrap().to_owned()).collect();
            expected.sort();
            let (found, requests) = list(&store, false).await;
            assert_eq!(found, expected);
            assert!(requests < 100, "{requests} requests for {} names", names.len());
        }
    }

    #[tokio::test]
    async fn a_server_that_cannot_begin_in_the_middle_is_listed_in_order() {
        let names: Vec<String> = (0..3500).map(|number| format!("{number:05}")).collect();
        let (found, _) = list(&store(names.iter().cloned()), true).await;
        assert_eq!(found, names);
    }

    #[test]
    fn names_that_count_up_are_split_at_their_digits() {
        let points = split_points("img_00000", "img_00999", None);
        assert_eq!(points[0], "img_01");
        assert_eq!(points.last().unwrap(), "img_9");
        assert_eq!(points.len(), 18);
        assert!(points.is_sorted());
        assert_eq!(split_points("img_00000", "img_00999", Some("img_04")), ["img_01", "img_02", "img_03"]);
        assert_eq!(split_points("0a3f", "0cff", None).first().map(String::as_str), Some("0d"));
        assert!(split_points("a b", "a é", None).is_empty());
        assert!(split_points("", "", None).is_empty());
    }
}
