//! All pages of a listing, several at a time where there are many.
//!
//! A server gives a thousand keys a request, one page after the other: 200 requests in a row for
//! 200 000 files. But a listing can also begin behind any key. So the rest of a directory level, or of
//! all keys below a prefix, is split behind its first page at names that are likely to have others on
//! both sides: where the names of a page count up (`img_000999.jpg`, `part=04/00017.bin`), at the next
//! digits. Every name lies in a range, whatever was guessed. A range with nothing in it
//! costs a request that tells what comes behind it; so only as many ranges are asked for at a time as full
//! pages make likely to be there.

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

/// Requests at a time for one listing, at most …
const PARALLEL: usize = 16;
/// … and so many more than one for each full page behind the first.
const PARALLEL_STEP: usize = 3;
/// Ranges that one range is split into, at most.
const SPLIT_MAX: usize = 64;

/// Ends a point, so that it is no name: servers leave out the directory `2/` of what is behind `2`.
/// Greater than `/`, so that the point is behind that directory in byte order and in the order of servers
/// that list directory by directory.
const NO_NAME: &str = "~~";

/// What becomes of the pages, which come in any order; a name comes twice from some servers that do not list
/// in byte order.
pub(super) trait Gather {
    /// Takes in a page of the listing of `prefix`.
    fn add_page(&mut self, prefix: &KeyPrefix, page: ListPage);
    /// Forgets what came so far: it will all come again.
    fn restart(&mut self);
    /// Whether nobody wants the rest any more.
    fn has_enough(&self) -> bool;
}

impl Gather for Listing {
    fn add_page(&mut self, prefix: &KeyPrefix, page: ListPage) {
        self.add_page(prefix, page);
    }

    fn restart(&mut self) {
        *self = Self::default();
    }

    fn has_enough(&self) -> bool {
        false
    }
}

/// Names without the listing's prefix: those behind `after`, up to and with `upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    after: Option<String>,
    /// Where the server says that the range goes on; it knows better than `after`.
    continuation: Option<String>,
    upto: Option<String>,
}

/// All of a listing, of which `first` is the page that answers `request`; `list` asks for another.
///
/// # Errors
/// The store's.
pub(super) async fn rest<G, F>(
    request: &ListRequest,
    first: ListPage,
    list: impl Fn(ListRequest) -> F,
    mut gathered: G,
) -> Result<G, StoreError>
where
    G: Gather,
    F: Future<Output = Result<ListPage, StoreError>>,
{
    let prefix = &request.prefix;
    let mut waiting = VecDeque::new();
    let beginning = ends(prefix, &first).map(|(first, _)| first.to_owned());
    let whole = Range { after: None, continuation: None, upto: None };
    waiting.extend(take(&mut gathered, prefix, first, &whole, PARALLEL));
    let mut asking = FuturesUnordered::new();
    let mut parallel = 1;
    loop {
        while asking.len() < parallel
            && let Some(range) = waiting.pop_front()
        {
            let page = list(request_for(request, &range));
            asking.push(async move { (page.await, range) });
        }
        if gathered.has_enough() {
            return Ok(gathered);
        }
        let Some((page, mut range)) = asking.next().await else { return Ok(gathered) };
        let page = page?;
        if let Some((first, _)) = ends(prefix, &page)
            && range.continuation.is_none()
            && beginning.as_ref().is_some_and(|beginning| first <= &**beginning)
        {
            tracing::debug!("the server cannot begin a listing of {prefix} in its middle");
            gathered.restart();
            drop(asking); // nobody would wait for them, and they would keep others from being sent
            return one_by_one(request, list, gathered).await;
        }
        let greatest = greatest(prefix, &page).map(str::to_owned);
        if let Some(greatest) = &greatest {
            widen(&mut range, greatest, &mut waiting);
        }
        if page.continuation.is_some() {
            parallel = (parallel + PARALLEL_STEP).min(PARALLEL);
        } else {
            // There is nothing behind it at all: nor in the ranges that begin later.
            let end = greatest.max(range.after.clone());
            waiting.retain(|other: &Range| other.continuation.is_some() || other.after < end);
        }
        let idle = PARALLEL.saturating_sub(asking.len() + waiting.len());
        for range in take(&mut gathered, prefix, page, &range, idle).into_iter().rev() {
            waiting.push_front(range);
        }
    }
}

/// Adds the ranges to one that its page reaches into, as far as nobody asks for them yet.
fn widen(range: &mut Range, greatest: &str, waiting: &mut VecDeque<Range>) {
    while let Some(upto) = &range.upto
        && greatest > &**upto
        && let Some(next) =
            waiting.iter().position(|next| next.after == range.upto && next.continuation.is_none())
    {
        range.upto = waiting.remove(next).and_then(|next| next.upto);
    }
}

fn request_for(request: &ListRequest, range: &Range) -> ListRequest {
    let request = request.clone();
    match (&range.continuation, &range.after) {
        (Some(_), _) => ListRequest { continuation: range.continuation.clone(), ..request },
        (None, after) => {
            let start_after = after.as_ref().map(|after| format!("{}{after}", request.prefix));
            ListRequest { start_after, ..request }
        }
    }
}

async fn one_by_one<G, F>(
    request: &ListRequest,
    list: impl Fn(ListRequest) -> F,
    mut gathered: G,
) -> Result<G, StoreError>
where
    G: Gather,
    F: Future<Output = Result<ListPage, StoreError>>,
{
    let mut request = request.clone();
    loop {
        let page = list(request.clone()).await?;
        request.continuation = page.continuation.clone();
        gathered.add_page(&request.prefix, page);
        if request.continuation.is_none() || gathered.has_enough() {
            return Ok(gathered);
        }
    }
}

/// Takes in what a page has of its range, and returns the ranges that are left of it.
fn take(
    gathered: &mut impl Gather,
    prefix: &KeyPrefix,
    mut page: ListPage,
    range: &Range,
    idle: usize,
) -> Vec<Range> {
    let ends = ends(prefix, &page).map(|(first, last)| (first.to_owned(), last.to_owned()));
    let continuation = page.continuation.take();
    if let Some(upto) = &range.upto {
        let is_within = |name: Option<&str>| name.is_none_or(|name| name <= &**upto);
        page.objects.retain(|object| is_within(prefix.strip(&object.key)));
        page.prefixes.retain(|below| is_within(below.as_str().strip_prefix(prefix.as_str())));
    }
    gathered.add_page(prefix, page);
    let Some(continuation) = continuation else { return Vec::new() };
    let Some((first, last)) = ends else {
        // There was nothing to see on this page, and there is another.
        return vec![Range { continuation: Some(continuation), ..range.clone() }];
    };
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

/// The first and the last name of a page, but for the marker of the listing's own directory, which has an
/// empty one. Objects and prefixes are each in order.
fn ends<'p>(prefix: &KeyPrefix, page: &'p ListPage) -> Option<(&'p str, &'p str)> {
    let is_marker = |object: &&ListedObject| object.key.as_str() == prefix.as_str();
    let object = |object: Option<&'p ListedObject>| object.and_then(|object| prefix.strip(&object.key));
    let below =
        |below: Option<&'p KeyPrefix>| below.and_then(|below| below.as_str().strip_prefix(prefix.as_str()));
    let firsts =
        [object(page.objects.iter().find(|object| !is_marker(object))), below(page.prefixes.first())];
    let lasts =
        [object(page.objects.last().filter(|object| !is_marker(object))), below(page.prefixes.last())];
    let first = firsts.into_iter().flatten().min()?;
    let last = lasts.into_iter().flatten().max()?;
    Some((first, last))
}

/// The greatest name of a page: on servers that list directory by directory that is not always the last,
/// `train-small/1` comes behind `train/1`.
fn greatest<'p>(prefix: &KeyPrefix, page: &'p ListPage) -> Option<&'p str> {
    let objects = page.objects.iter().filter_map(|object| prefix.strip(&object.key));
    let below = page.prefixes.iter().filter_map(|below| below.as_str().strip_prefix(prefix.as_str()));
    objects.chain(below).max()
}

/// Names behind `last` at which to split, in order; `first` and `last` are those of a page.
///
/// Between `first` and `last` the names have counted up at some position. Others will follow
/// that have a higher digit there, a page of them for each time it goes up by as much, or at a position
/// before it in the same run of digits.
fn split_points(first: &str, last: &str, upto: Option<&str>) -> Vec<String> {
    let (first, last) = (first.as_bytes(), last.as_bytes());
    let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let Some((&low, &high)) = first.get(common).zip(last.get(common)) else { return Vec::new() };
    let Some(alphabet) = alphabet_of(low, high) else { return Vec::new() };
    let run = last[..common].iter().rev().take_while(|byte| alphabet.contains(byte)).count();
    let mut points = Vec::new();
    let place = |byte: u8| alphabet.iter().position(|other| *other == byte).unwrap_or_default();
    let page = place(high).abs_diff(place(low)).max(1);
    for position in (common - run..=common).rev() {
        let step = if position == common { page } else { 1 };
        for next in (place(last[position]) + step..alphabet.len()).step_by(step) {
            // All that begins with the digit before comes first.
            let point = [&last[..position], &alphabet[next - 1..next], NO_NAME.as_bytes()].concat();
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::Instant;

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

    /// Keys in the order in which they came.
    #[derive(Default)]
    struct Found(Vec<String>);

    impl Gather for Found {
        fn add_page(&mut self, prefix: &KeyPrefix, page: ListPage) {
            let objects = page.objects.iter().filter_map(|object| prefix.strip(&object.key));
            self.0.extend(objects.map(str::to_owned));
            let below = page.prefixes.iter().filter_map(|below| below.as_str().strip_prefix(prefix.as_str()));
            self.0.extend(below.map(str::to_owned));
        }

        fn restart(&mut self) {
            self.0.clear();
        }

        fn has_enough(&self) -> bool {
            false
        }
    }

    /// A round trip.
    const TRIP: Duration = Duration::from_millis(20);

    /// What a listing took.
    struct Cost {
        requests: usize,
        /// As long as so many requests, one after the other.
        trips: u128,
    }

    /// The names found, in order; with a server that cannot begin in the middle, if so.
    async fn list(store: &MemoryStore, request: ListRequest, from_start: bool) -> (Vec<String>, Cost) {
        let requests = Cell::new(0);
        let list = |mut request: ListRequest| {
            requests.set(requests.get() + 1);
            if from_start {
                request.start_after = None;
            }
            async move {
                tokio::time::sleep(TRIP).await;
                store.list(&request).await
            }
        };
        let began = Instant::now();
        let first = list(request.clone()).await.unwrap();
        let mut found = rest(&request, first, list, Found::default()).await.unwrap().0;
        found.sort();
        let trips = began.elapsed().as_millis() / TRIP.as_millis();
        (found, Cost { requests: requests.get(), trips })
    }

    fn one_level() -> ListRequest {
        ListRequest::one_level(KeyPrefix::from_listing(PREFIX))
    }

    fn recursive() -> ListRequest {
        ListRequest::recursive(KeyPrefix::from_listing(PREFIX))
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_every_kind_are_found_once() {
        let counting: Vec<String> = (0..6000).map(|number| format!("img_{number:07}.jpg")).collect();
        let spread = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hashes: Vec<String> = (0..4000).map(|number| format!("{:016x}", spread(number))).collect();
        let odd: Vec<String> =
            (0..3000).map(|number| format!("é {}\u{1}{number}", spread(number) % 7)).collect();
        let below: Vec<String> = (0..2500).map(|number| format!("part-{number}/x")).collect();
        let deep: Vec<String> = (0..5000)
            .map(|number| format!("part={:02}/{}/{number:05}.bin", number % 50, number % 3))
            .collect();
        let mixed: Vec<String> = [&counting[..1500], &hashes[..1500], &odd[..500], &below[..1500]].concat();
        for mut names in [counting, hashes, odd, below, deep, mixed] {
            let store = store(names.iter().cloned());
            names.sort();
            let (found, cost) = list(&store, recursive(), false).await;
            assert_eq!(found, names);
            assert!(cost.requests < 100, "{} requests for {} keys", cost.requests, names.len());

            let component = |name: &String| name.split_inclusive('/').next().unwrap_or_default().to_owned();
            let mut expected: Vec<String> = names.iter().map(component).collect();
            expected.sort();
            expected.dedup();
            let (found, cost) = list(&store, one_level(), false).await;
            assert_eq!(found, expected);
            assert!(cost.requests < 100, "{} requests for {} names", cost.requests, names.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_marker_of_the_directory_itself_is_no_end() {
        let names = || std::iter::once(String::new()).chain((0..2500).map(|number| format!("{number:05}")));
        for request in [one_level(), recursive()] {
            let (found, _) = list(&store(names()), request, false).await;
            assert_eq!(found, names().collect::<Vec<_>>());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_without_names_is_no_end() {
        let names: Vec<String> = (0..2500).map(|number| format!("{number:05}")).collect();
        let store = store(names.iter().cloned());
        for request in [one_level(), recursive()] {
            // Before each page the server gives an empty one.
            let list = |request: ListRequest| {
                let (seen, request) = match &request.continuation {
                    Some(token) if token.starts_with("empty:") => {
                        let token = token.strip_prefix("empty:").filter(|token| !token.is_empty());
                        (true, ListRequest { continuation: token.map(str::to_owned), ..request })
                    }
                    _ => (false, request),
                };
                let store = &store;
                async move {
                    if seen {
                        return store.list(&request).await;
                    }
                    let after = request.continuation.or(request.start_after).unwrap_or_default();
                    let token = format!("empty:{after}");
                    Ok(ListPage { continuation: Some(token), ..ListPage::default() })
                }
            };
            let first = list(request.clone()).await.unwrap();
            let mut found = rest(&request, first, list, Found::default()).await.unwrap().0;
            found.sort();
            assert!(found == names, "{} names", found.len());
        }
    }

    /// Names in the order of a server that lists directory by directory.
    fn by_directory(names: &[String], one_level: bool) -> Vec<String> {
        let level = |name: &String| match name.split_once('/') {
            Some((directory, _)) if one_level => format!("{directory}/"),
            _ => name.clone(),
        };
        let mut names: Vec<String> = names.iter().map(level).collect();
        names.sort_by(|one, other| components(one).cmp(components(other)));
        names.dedup();
        names
    }

    fn components(name: &str) -> impl Iterator<Item = &str> {
        name.trim_end_matches('/').split('/')
    }

    /// What SeaweedFS answers, with a hundred names a page: a listing behind `2` begins behind all of `2/`.
    fn page_of(names: &[String], request: &ListRequest) -> ListPage {
        let start = request.start_after.as_deref().and_then(|after| after.strip_prefix(PREFIX));
        let after = request.continuation.as_deref().or(start).unwrap_or_default();
        let inside = format!("{after}/");
        let begin =
            names.partition_point(|name| components(name).le(components(after)) || name.starts_with(&inside));
        let mut names: Vec<String> = names.iter().skip(begin).take(101).cloned().collect();
        let is_truncated = names.len() > 100;
        names.truncate(100);
        let continuation = names.last().filter(|_| is_truncated).cloned();
        let (below, files): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with('/'));
        let object = |name: &String| ListedObject {
            key: ObjectKey::from_listing(&format!("{PREFIX}{name}")),
            size_bytes: 0,
            etag: None,
            modified: std::time::SystemTime::UNIX_EPOCH,
        };
        ListPage {
            objects: files.iter().map(object).collect(),
            prefixes: below.iter().map(|name| KeyPrefix::from_listing(&format!("{PREFIX}{name}"))).collect(),
            continuation,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lists_directory_by_directory_shows_all_names() {
        let numbered = (0..5000).map(|number| format!("{number:04}/x"));
        let odd = ["1", "1.d", "1!", "2", "2-x", "3~", "10", "11.d", "12"].map(|name| format!("{name}/x"));
        let files = (0..5000).map(|number| format!("img {number:04}.jpg"));
        let deep = (0..5000).map(|number| format!("z/part={:02}/{number:04}", number % 50));
        let many: Vec<String> = numbered.chain(odd).chain(files).chain(deep).collect();
        // The last page ends with what sorts before the rest of it in byte order.
        let counted = (0..150).map(|number| format!("zz/{number:03}"));
        let few: Vec<String> = counted.chain(["zz-small/1", "zz.d/1"].map(str::to_owned)).collect();
        for (names, request) in
            [(&many, one_level()), (&many, recursive()), (&few, one_level()), (&few, recursive())]
        {
            let names = by_directory(names, request.one_level);
            let list = |request: ListRequest| {
                let page = page_of(&names, &request);
                async move {
                    tokio::time::sleep(TRIP).await;
                    Ok(page)
                }
            };
            let first = list(request.clone()).await.unwrap();
            let found = rest(&request, first, list, Found::default()).await.unwrap().0;
            let found: BTreeSet<String> = found.into_iter().collect();
            let missing: Vec<&String> = names.iter().filter(|name| !found.contains(*name)).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn partitions_are_listed_side_by_side() {
        let split = |number: u64| if number.is_multiple_of(10) { "val" } else { "train" };
        let names = (0..10_000).map(|n| format!("data/{}/part={:02}/{n:05}.bin", split(n), n % 50));
        let (found, cost) = list(&store(names), recursive(), false).await;
        assert_eq!(found.len(), 10_000);
        assert!(
            cost.trips <= 5 && cost.requests <= 20,
            "{} round trips, {} requests",
            cost.trips,
            cost.requests
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_cannot_begin_in_the_middle_is_listed_in_order() {
        let names: Vec<String> = (0..3500).map(|number| format!("{number:05}")).collect();
        for request in [one_level(), recursive()] {
            let (found, _) = list(&store(names.iter().cloned()), request, true).await;
            assert_eq!(found, names);
        }
    }

    #[test]
    fn names_that_count_up_are_split_at_their_digits() {
        let points = split_points("img_00000", "img_00999", None);
        assert_eq!(points[0], "img_00~~");
        assert_eq!(points.last().unwrap(), "img_8~~");
        assert_eq!(points.len(), 18);
        assert!(points.is_sorted());
        assert_eq!(
            split_points("img_00000", "img_00999", Some("img_04")),
            ["img_00~~", "img_01~~", "img_02~~", "img_03~~"]
        );
        assert_eq!(split_points("0a3f", "0cff", None).first().map(String::as_str), Some("0d~~"));
        assert!(split_points("a b", "a é", None).is_empty());
        assert!(split_points("", "", None).is_empty());
    }
}
