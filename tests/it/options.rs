//! Each option of the S3 client, by the request that it makes.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dsfs::name::ETag;
use dsfs::name::KeyPrefix;
use dsfs::name::ObjectKey;
use dsfs::store::Expect;
use dsfs::store::ListRequest;
use dsfs::store::ObjectStore;
use dsfs::store::PutAttributes;
use dsfs::store::StoreError;
use dsfs::store::s3::CaBundle;
use dsfs::store::s3::S3Credentials;
use dsfs::store::s3::S3Options;
use dsfs::store::s3::S3Proxy;
use dsfs::store::s3::S3Store;
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::Double;
use crate::common::double::REQUEST_ID;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::http::Answer;
use crate::common::http::Asked;
use crate::common::http::Recorder;
use crate::common::mount::wait_until;

fn listing_server() -> Recorder {
    Recorder::start(|_| Answer::empty_listing())
}

fn options(server: &str) -> S3Options {
    let credentials = S3Credentials::keys(ACCESS_KEY, SECRET_KEY);
    S3Options { proxy: S3Proxy::Direct, ..S3Options::new(BUCKET, Some(server), "us-east-1", credentials) }
}

fn key() -> ObjectKey {
    ObjectKey::from_listing("datasets/run/a")
}

/// The one request that a listing makes.
async fn listed(options: &S3Options, server: &Recorder) -> Asked {
    let before = server.asked().len();
    S3Store::new(options).check_access().await.unwrap();
    server.asked().swap_remove(before)
}

/// S3's, and in few words.
fn not_found() -> Answer {
    Answer(404, vec![(REQUEST_ID, "1".into())], String::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_signs_anonymous_requests() {
    let server = listing_server();
    let signed = listed(&options(&server.url()), &server).await;
    assert!(signed.header("authorization").unwrap().contains("us-east-1/s3/aws4_request"));
    let anonymous = S3Options { credentials: S3Credentials::Anonymous, ..options(&server.url()) };
    assert_eq!(listed(&anonymous, &server).await.header("authorization"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_says_who_pays() {
    let server = Recorder::start(|_| not_found());
    let store = S3Store::new(&S3Options { requester_pays: true, ..options(&server.url()) });
    let etag = ETag::from_server("e");
    store.check_access().await.unwrap_err();
    store.head(&key()).await.unwrap_err();
    store.get(&key(), &etag, 0..1).await.err().unwrap();
    store.put(&key(), Bytes::new(), &Expect::Absent, &PutAttributes::default()).await.unwrap_err();
    store.create_multipart(&key(), &PutAttributes::default()).await.unwrap_err();
    let asked = server.asked();
    assert_eq!(asked.len(), 5);
    for request in asked {
        assert_eq!(request.header("x-amz-request-payer"), Some("requester"), "{request:?}");
        assert!(request.header("authorization").unwrap().contains("x-amz-request-payer"), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_is_sent_and_signed() {
    let double = Double::start(); // checks signatures, over the Host that it is sent
    let store = S3Store::new(&S3Options { host_header: Some("store.example".into()), ..double.options() });
    store.check_access().await.unwrap();
    let server = listing_server();
    let with_host = S3Options { host_header: Some("store.example".into()), ..options(&server.url()) };
    assert_eq!(listed(&with_host, &server).await.header("host"), Some("store.example"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_is_addressed_in_the_path_or_in_the_host() {
    // The proxy sees the whole URL, and no name has to be resolved.
    let proxy = listing_server();
    let through = S3Options { proxy: S3Proxy::Url(proxy.url()), ..options("http://s3.example") };
    for (path_style, expected) in [
        (None, "http://s3.example/assets"),
        (Some(true), "http://s3.example/assets"),
        (Some(false), "http://assets.s3.example/"),
    ] {
        let asked = listed(&S3Options { path_style, ..through.clone() }, &proxy).await;
        assert!(asked.uri.to_string().starts_with(expected), "{} for {path_style:?}", asked.uri);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_region_is_found_from_the_bucket_whatever_the_answer_is() {
    for status in [200, 301, 400, 403] {
        let server = Recorder::start(move |asked| match asked.method.as_str() {
            "HEAD" => Answer(status, vec![("x-amz-bucket-region", "eu-test-9".into())], String::new()),
            _ => Answer::empty_listing(),
        });
        let store = S3Store::new(&S3Options { find_region: true, ..options(&server.url()) });
        store.check_access().await.unwrap();
        store.check_access().await.unwrap();
        let asked = server.asked();
        assert_eq!(asked.len(), 3, "the region is asked for once");
        assert_eq!(asked[0].header("authorization"), None, "before anybody can sign");
        assert!(asked[1].header("authorization").unwrap().contains("/eu-test-9/s3/"), "{status}");
    }
    let silent = Recorder::start(|_| not_found());
    let store = S3Store::new(&S3Options { find_region: true, ..options(&silent.url()) });
    assert!(matches!(store.check_access().await, Err(StoreError::NoBucket { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_conditional_writes_a_look_stands_in() {
    let double = Double::start();
    let store = S3Store::new(&S3Options { conditional_writes: false, ..double.options() });
    let put = |body: &'static [u8], expect: Expect| {
        let store = &store;
        async move { store.put(&key(), Bytes::from_static(body), &expect, &PutAttributes::default()).await }
    };
    let etag = put(b"one", Expect::Absent).await.unwrap();
    assert!(matches!(put(b"two", Expect::Absent).await, Err(StoreError::AlreadyExists { .. })));
    let wrong = Expect::Version(ETag::from_server("other"));
    assert!(matches!(put(b"two", wrong).await, Err(StoreError::Changed { .. })));
    put(b"two", Expect::Version(etag)).await.unwrap();
    assert_eq!(double.object(key().as_str()).unwrap().0, "two");

    let server = Recorder::start(|asked| match asked.method.as_str() {
        "HEAD" => not_found(),
        _ => Answer(200, vec![("etag", "\"e\"".into())], String::new()),
    });
    for conditional_writes in [true, false] {
        let store = S3Store::new(&S3Options { conditional_writes, ..options(&server.url()) });
        store.put(&key(), Bytes::new(), &Expect::Absent, &PutAttributes::default()).await.unwrap();
        let sent = server.asked().pop().unwrap();
        assert_eq!(sent.header("if-none-match"), conditional_writes.then_some("*"));
    }
}

/// Speaks TLS in front of the double, with a certificate that nobody knows; its PEM text.
async fn tls_front(double: &Double) -> (String, String) {
    let names = vec!["localhost".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = double.endpoint().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else { return };
                let mut plain = TcpStream::connect(behind).await.unwrap();
                let _closed = copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    (format!("https://localhost:{port}"), cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ones_own_is_trusted_only_when_named() {
    let double = Double::start();
    let (endpoint, pem) = tls_front(&double).await;
    let stranger = S3Store::new(&options(&endpoint)).check_access().await.unwrap_err();
    assert!(stranger.to_string().contains("certificate"), "{stranger}");
    let ca_bundle = Some(CaBundle::parse(pem.as_bytes()).unwrap());
    let store = S3Store::new(&S3Options { ca_bundle, ..options(&endpoint) });
    // Over TLS, bodies travel unsigned.
    let body = Bytes::from(vec![7; 100_000]);
    let etag = store.put(&key(), body.clone(), &Expect::Absent, &PutAttributes::default()).await.unwrap();
    let read = dsfs::store::collect(store.get(&key(), &etag, 0..100_000).await.unwrap(), 100_000).await;
    assert_eq!(read.unwrap(), body);
    let page = store.list(&ListRequest::recursive(KeyPrefix::from_listing("datasets/"))).await.unwrap();
    assert_eq!(page.objects.len(), 1);

    let damaged = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for (bad, word) in [("no certificate here", "no certificate"), (damaged, "PEM")] {
        let err = CaBundle::parse(bad.as_bytes()).unwrap_err();
        assert!(err.contains(word), "{err}");
    }
}

/// A home whose remote is the double, without any keys.
fn keyless(double: &Double) -> (Home, String) {
    (Home::new(), double.endpoint())
}

fn list(home: &Home, endpoint: &str, flags: &[&str], env: &[(&str, &str)]) -> crate::common::home::Said {
    let arguments = [&["list", "-b", BUCKET, "-e", endpoint, "--region", "us-east-1"], flags].concat();
    home.run_with(&arguments, env)
}

#[test]
fn a_profile_of_aws_files_signs() {
    let double = Double::start();
    double.put_out_of_band("datasets/run/data.jsonl", b"{}\n");
    let (home, endpoint) = keyless(&double);
    let keys = format!(
        "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n\
         [lab]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    );
    fs::write(home.path("keys"), keys).unwrap();
    let file = home.path("keys");
    let file = file.to_str().unwrap();
    let by_flag = list(&home, &endpoint, &["--aws-profile", "lab", "--aws-credentials-file", file], &[]);
    assert_eq!((by_flag.code, by_flag.out.trim()), (0, "run"), "{}", by_flag.err);
    let env = [("AWS_PROFILE", "lab"), ("AWS_SHARED_CREDENTIALS_FILE", file)];
    let by_env = list(&home, &endpoint, &[], &env);
    assert_eq!((by_env.code, by_env.out.trim()), (0, "run"), "{}", by_env.err);
    let wrong = list(&home, &endpoint, &["--aws-credentials-file", file, "--retries", "0"], &[]);
    wrong.failed(5, &["denied", "default"]);
    // Keys of the environment, and a wish not to use them.
    let env = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    assert_eq!(list(&home, &endpoint, &["--credentials", "environment"], &env).code, 0);
    list(&home, &endpoint, &["--credentials", "anonymous"], &env).failed(5, &["denied", "not signed"]);
    list(&home, &endpoint, &["--credentials", "environment"], &[]).failed(2, &["R2_ACCESS_KEY_ID"]);
}

/// A program that gives out keys, and has to be asked again for each request, or fails.
fn key_program(home: &Home, does: &str) -> String {
    fs::write(home.path("keys.sh"), does).unwrap();
    let file = home.path("config");
    fs::write(&file, format!("[default]\ncredential_process = sh {}\n", home.path("keys.sh").display()))
        .unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_program_that_gives_out_no_keys_is_quoted() {
    let double = Double::start();
    let (home, endpoint) = keyless(&double);
    let file = key_program(&home, "echo 'the SSO session has expired' >&2\nexit 1\n");
    let flags = ["--aws-config-file", &file, "--retries", "1", "--retry-max-delay", "10ms"];
    list(&home, &endpoint, &flags, &[]).failed(5, &["the SSO session has expired", "a login", "default"]);
}

/// As after a night without a network: the keys have expired, and nobody renews them.
#[test]
fn while_keys_cannot_be_renewed_a_mount_is_offline() {
    let double = Double::start();
    double.put_out_of_band("datasets/run/a", b"cached");
    double.put_out_of_band("datasets/run/sub/b", b"not cached");
    let (home, endpoint) = keyless(&double);
    // They expire so soon that each request asks for new ones.
    let gives = format!(
        "echo '{{\"Version\":1,\"AccessKeyId\":\"{ACCESS_KEY}\",\"SecretAccessKey\":\"{SECRET_KEY}\",\
         \"Expiration\":\"'$(date -u -d '+1 second' +%FT%TZ)'\"}}'\n"
    );
    let fails = "echo 'Could not connect to the endpoint' >&2\nexit 1\n";
    let file = key_program(&home, &gives);
    let dsfs = |arguments: &[&str]| {
        let env = [
            ("R2_BUCKET", BUCKET),
            ("R2_ENDPOINT", &endpoint),
            ("R2_REGION_NAME", "us-east-1"),
            ("DSFS_CREDENTIALS", "profile"),
            ("AWS_CONFIG_FILE", &file),
        ];
        let said = home.run_with(arguments, &env);
        assert_eq!(said.code, 0, "{arguments:?}: {}", said.err);
        said
    };
    let mnt = |path: &str| home.path("mnt").join(path);
    let offline = || home.status()["mounts"][0]["offline"].clone();
    dsfs(&["mount", "mnt"]);
    assert_eq!(fs::read(mnt("run/a")).unwrap(), b"cached");
    assert_eq!(fs::read_dir(mnt("run/sub")).unwrap().count(), 1);
    wait_until("the listings are on disk", || {
        let cache: Value = serde_json::from_str(&dsfs(&["cache", "--json"]).out).unwrap();
        cache["usage"]["catalog_bytes"] != 0
    });

    key_program(&home, fails);
    let unread = fs::read(mnt("run/sub/b")).unwrap_err();
    assert_eq!(unread.raw_os_error(), Some(libc::ENETUNREACH), "{unread}");
    assert!(offline()["reason"].to_string().contains("Could not connect to the endpoint"), "{}", offline());
    fs::write(mnt("run/new"), "a recorder goes on").unwrap();
    dsfs(&["umount", "mnt"]);
    let said = dsfs(&["mount", "mnt"]);
    assert!(said.err.contains("Could not connect to the endpoint"), "{}", said.err);
    assert_eq!(fs::read(mnt("run/a")).unwrap(), b"cached");
    fs::write(mnt("run/newer"), "and on").unwrap();

    key_program(&home, &gives);
    wait_until("there are keys again", || offline().is_null());
    assert_eq!(fs::read(mnt("run/sub/b")).unwrap(), b"not cached");
    dsfs(&["commit", "run"]);
    assert_eq!(double.object("datasets/run/newer").unwrap().0, "and on");
    dsfs(&["umount", "mnt"]);
}

/// A time `seconds` from now, as the metadata services write it.
fn in_seconds(seconds: i64) -> String {
    let now = jiff::Timestamp::now();
    now.checked_add(jiff::SignedDuration::from_secs(seconds))
        .unwrap()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

fn temporary_keys(expires_in: i64) -> Answer {
    Answer::ok(format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"{ACCESS_KEY}\",\"SecretAccessKey\":\"{SECRET_KEY}\",\
         \"Token\":\"t\",\"Expiration\":\"{}\",\"LastUpdated\":\"{}\"}}",
        in_seconds(expires_in),
        in_seconds(-60),
    ))
}

#[test]
fn a_container_gives_keys_that_are_renewed_when_they_expire() {
    let double = Double::start();
    double.put_out_of_band("datasets/run/data.jsonl", b"{}\n");
    let (home, endpoint) = keyless(&double);
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let metadata = Recorder::start(move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.header("authorization"), Some("let me in"));
        temporary_keys(1) // so short that each request of ours needs new ones
    });
    fs::write(home.path("token"), "let me in").unwrap();
    let url = format!("{}/credentials", metadata.url());
    let token = home.path("token");
    let env = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ];
    let said = list(&home, &endpoint, &["--credentials", "ecs"], &env);
    assert_eq!((said.code, said.out.trim()), (0, "run"), "{}", said.err);
    assert!(asked.load(Ordering::SeqCst) >= 2, "the keys expired between two requests");
    // Also without being told where to look.
    assert_eq!(list(&home, &endpoint, &[], &env).code, 0);
}

#[test]
fn an_instance_gives_keys_by_the_second_version_of_its_protocol() {
    let double = Double::start();
    double.put_out_of_band("datasets/run/data.jsonl", b"{}\n");
    let (home, endpoint) = keyless(&double);
    let metadata = Recorder::start(|request| {
        let path = request.uri.path();
        match (request.method.as_str(), request.header("x-aws-ec2-metadata-token")) {
            ("PUT", _) if path == "/latest/api/token" => {
                Answer(200, vec![("x-aws-ec2-metadata-token-ttl-seconds", "21600".into())], "session".into())
            }
            ("GET", Some("session")) if path.ends_with("/security-credentials/") => Answer::ok("lab-role"),
            ("GET", Some("session")) if path.ends_with("/lab-role") => temporary_keys(3600),
            _ => Answer(401, Vec::new(), String::new()),
        }
    });
    let said = list(&home, &endpoint, &["--credentials", "imds", "--imds-endpoint", &metadata.url()], &[]);
    assert_eq!((said.code, said.out.trim()), (0, "run"), "{}", said.err);
    let url = metadata.url();
    let env = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str())];
    let said = list(&home, &endpoint, &["--credentials", "imds"], &env);
    assert_eq!((said.code, said.out.trim()), (0, "run"), "{}", said.err);
}

#[test]
fn options_reach_the_wire_from_the_command_line() {
    let server = listing_server();
    let home = Home::new();
    let env = [("R2_ACCESS_KEY_ID", "k"), ("R2_SECRET_ACCESS_KEY", "s")];
    let flags = ["--requester-pays", "--addressing", "virtual-host", "--host-header", "h.example"];
    let proxy = server.url();
    let flags = [&flags[..], &["--proxy", &proxy]].concat();
    let said = list(&home, "http://s3.example", &flags, &env);
    assert_eq!(said.code, 0, "{}", said.err);
    let asked = server.asked().swap_remove(0);
    assert_eq!(asked.header("x-amz-request-payer"), Some("requester"));
    assert_eq!(asked.header("host"), Some("h.example"));
    // The usual variables of proxies are heard too.
    let env = [&env[..], &[("HTTP_PROXY", proxy.as_str())]].concat();
    assert_eq!(list(&home, "http://s3.example", &[], &env).code, 0);
    let before = server.asked().len();
    let direct = ["--proxy", "none", "--retries", "0", "--connect-timeout", "1s"];
    assert_eq!(list(&home, "http://127.0.0.1:1", &direct, &env).code, 5);
    assert_eq!(server.asked().len(), before, "the proxy was left out");

    list(&home, "http://h", &["--ca-bundle", "nowhere.pem"], &env).failed(2, &["nowhere.pem", "--ca-bundle"]);
    list(&home, "http://h", &["--request-concurrency", "0"], &env).failed(2, &["--request-concurrency"]);
    home.run_with(&["list", "-b", BUCKET, "--host-header", "h"], &env)
        .failed(2, &["--host-header", "endpoint"]);
}

#[test]
fn conditional_writes_can_be_trusted_or_left_out() {
    let double = Double::start();
    let home = Home::new();
    let env = [("R2_ACCESS_KEY_ID", ACCESS_KEY), ("R2_SECRET_ACCESS_KEY", SECRET_KEY)];
    let endpoint = double.endpoint();
    let commit = |name: &str, flags: &[&str]| {
        let staged = home.path("mnt").join(name);
        let remote = ["-b", BUCKET, "-e", &endpoint, "--region", "us-east-1"];
        let mount = home.run_with(&[&["mount", "mnt"], &remote[..], flags].concat(), &env);
        assert_eq!(mount.code, 0, "{}", mount.err);
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("data.jsonl"), "{}\n").unwrap();
        let said = home.run_with(&["commit", name], &env);
        let unmounted = home.run(&["umount", "mnt"]);
        assert_eq!(unmounted.code, 0, "{}", unmounted.err);
        said
    };
    let off = commit("off", &["--conditional-writes", "off"]);
    off.failed(1, &["--allow-unenforced"]);
    let on = commit("on", &["--conditional-writes", "on"]);
    assert_eq!(on.code, 0, "{}", on.err);
    assert!(double.object("datasets/on/data.jsonl").is_some());
    let probes = double.requests().iter().filter(|asked| asked.key.contains("probe")).count();
    assert_eq!(probes, 0, "what the user vouches for is not probed");
}
