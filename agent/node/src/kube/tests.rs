//! The sources against fakes of the servers that they ask: what is said is scripted, one answer a request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use axum::routing::get;
use futures::{StreamExt, stream};
use kube::{Client, Config};
use serde_json::{Value, json};
use tcptracer_authority::Authority;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::source::{Kubelet, Source, Update, UpdateSender};
use super::{api, run};

/// Nothing that is waited for takes this long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a fake says.
#[derive(Clone)]
enum Answer {
    /// A whole body.
    Whole(u16, String),
    /// The beginning of a stream that goes on in silence.
    Open(String),
    /// A stream that breaks off when the test says so.
    Broken(String, Arc<Notify>),
}

type Script = Arc<Mutex<VecDeque<Answer>>>;

/// A server on a free port that answers by the script, and then no more; and the requests it gets.
async fn fake(script: Vec<Answer>) -> (String, mpsc::UnboundedReceiver<String>) {
    let (requests, asked) = mpsc::unbounded_channel();
    let script: Script = Arc::new(Mutex::new(script.into()));
    let router = Router::new()
        .fallback(answer)
        .with_state((script, requests));
    let listener = TcpListener::bind((own_address(), 0)).await;
    let listener = listener.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

/// An address of loopback at which nobody else takes a port that a test gives back for a while.
fn own_address() -> Ipv4Addr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high, low, COUNT.fetch_add(1, Ordering::Relaxed))
}

async fn answer(
    State((script, requests)): State<(Script, mpsc::UnboundedSender<String>)>,
    uri: Uri,
) -> Response<Body> {
    let _ = requests.send(uri.to_string());
    let next = script.lock().expect("no panic").pop_front();
    let begun = |text: String| stream::once(async { Ok::<_, std::io::Error>(Bytes::from(text)) });
    let (code, body) = match next {
        Some(Answer::Whole(code, text)) => (code, Body::from(text)),
        Some(Answer::Open(text)) => (200, Body::from_stream(begun(text).chain(stream::pending()))),
        Some(Answer::Broken(text, cut)) => {
            let end = stream::once(async move {
                cut.notified().await;
                Err(std::io::ErrorKind::ConnectionReset.into())
            });
            (200, Body::from_stream(begun(text).chain(end)))
        }
        None => std::future::pending().await,
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

fn pod(name: &str, version: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string(),
        },
    })
}

fn list(version: u32, pods: &[Value]) -> Answer {
    let list = json!({
        "kind": "PodList", "apiVersion": "v1", "items": pods,
        "metadata": { "resourceVersion": version.to_string() },
    });
    Answer::Whole(200, list.to_string())
}

fn lines(events: &[(&str, Value)]) -> String {
    events
        .iter()
        .map(|(kind, object)| format!("{}\n", json!({ "type": kind, "object": object })))
        .collect()
}

fn status(code: u16) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "No",
        "code": code,
    })
}

fn refusal(code: u16) -> Answer {
    Answer::Whole(code, status(code).to_string())
}

/// An update in short: names of pods, or the reason.
async fn next(updates: &mut mpsc::Receiver<Update>) -> String {
    let update = timeout(DEADLINE, updates.recv()).await;
    match update.expect("in time").expect("the source goes on") {
        Update::Replaced(pods) => {
            let names: Vec<_> = pods.iter().map(|p| p.name.as_str()).collect();
            format!("replaced {}", names.join(" "))
        }
        Update::Applied(pod) => format!("applied {}", pod.name),
        Update::Deleted(uid) => format!("deleted {uid}"),
        Update::Failed(why) => format!("failed {why}"),
        Update::Recovered => "recovered".into(),
    }
}

async fn watch(script: Vec<Answer>) -> (mpsc::Receiver<Update>, mpsc::UnboundedReceiver<String>) {
    let (url, asked) = fake(script).await;
    (watch_at(&url), asked)
}

fn watch_at(url: &str) -> mpsc::Receiver<Update> {
    let config = Config::new(url.parse().expect("a URL"));
    let client = Client::try_from(config).expect("a client");
    let (sender, updates) = mpsc::channel(1);
    tokio::spawn(async move { api::watch(client, "node-1", UpdateSender::new(sender)).await });
    updates
}

#[tokio::test]
async fn the_api_is_listed_once_and_watched() {
    let bookmark =
        json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "resourceVersion": "14" } });
    let (mut updates, mut asked) = watch(vec![
        list(10, &[pod("a", 1), pod("b", 2)]),
        Answer::Open(lines(&[
            ("MODIFIED", pod("a", 11)),
            ("ADDED", pod("c", 12)),
            ("DELETED", pod("b", 13)),
            ("BOOKMARK", bookmark),
        ])),
    ])
    .await;
    for expected in ["replaced a b", "applied a", "applied c", "deleted b"] {
        assert_eq!(next(&mut updates).await, expected);
    }
    let listed = asked.recv().await.expect("a request");
    assert!(
        listed.contains("fieldSelector=spec.nodeName%3Dnode-1"),
        "{listed}"
    );
    assert!(listed.contains("resourceVersion=0"), "{listed}");
    let watched = asked.recv().await.expect("a request");
    assert!(watched.contains("watch=true"), "{watched}");
    assert!(watched.contains("resourceVersion=10"), "{watched}");
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_watch_that_is_too_old_begins_with_a_list_again() {
    let (mut updates, _asked) = watch(vec![
        list(10, &[pod("a", 1), pod("b", 2)]),
        Answer::Open(lines(&[("ERROR", status(410))])),
        list(20, &[pod("a", 1)]),
        Answer::Open(lines(&[("ADDED", pod("c", 21))])),
    ])
    .await;
    for expected in ["replaced a b", "replaced a", "applied c"] {
        assert_eq!(next(&mut updates).await, expected);
    }
}

#[tokio::test]
async fn a_watch_that_breaks_off_goes_on_from_there() {
    let cut = Arc::new(Notify::new());
    let begun = lines(&[("ADDED", pod("b", 11))]) + "{\"type\":\"ADD";
    let (mut updates, mut asked) = watch(vec![
        list(10, &[pod("a", 1)]),
        Answer::Broken(begun, Arc::clone(&cut)),
        Answer::Open(lines(&[("ADDED", pod("c", 12))])),
    ])
    .await;
    assert_eq!(next(&mut updates).await, "replaced a");
    // What was begun has come; an error before that would have taken it along.
    assert_eq!(next(&mut updates).await, "applied b");
    cut.notify_one();
    assert_eq!(next(&mut updates).await, "applied c");
    let requests: Vec<String> = std::iter::from_fn(|| asked.try_recv().ok()).collect();
    assert!(requests[2].contains("resourceVersion=11"), "{requests:?}");
}

/// The watch goes on in silence: that it is back is found by asking.
#[tokio::test]
async fn a_server_that_is_back_is_found_without_news() {
    let script = vec![list(10, &[pod("a", 1)]), Answer::Open(String::new())];
    let server = Runtime::new().expect("a runtime");
    let (url, mut asked) = server.spawn(fake(script)).await.expect("it serves");
    let mut updates = watch_at(&url);
    assert_eq!(next(&mut updates).await, "replaced a");
    for what in ["the list", "the watch"] {
        timeout(DEADLINE, asked.recv()).await.expect(what);
    }
    // With all its connections.
    server.shutdown_background();
    let failed = next(&mut updates).await;
    let expected = "failed cannot watch the pods of this node: ";
    assert!(failed.starts_with(expected), "{failed}");

    let address = url.strip_prefix("http://").expect("a URL");
    let listener = TcpListener::bind(address).await.expect("the port is free");
    let version = json!({
        "major": "1", "minor": "35", "gitVersion": "v1.35.0", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
    });
    let silence = async || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    let router = Router::new()
        .route("/version", get(async move || version.to_string()))
        .fallback(silence);
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut told = next(&mut updates).await;
    // There may be several reasons.
    while told.starts_with(expected) {
        told = next(&mut updates).await;
    }
    assert_eq!(told, "recovered");
}

#[tokio::test]
async fn missing_rights_are_told_once_and_heal() {
    let (mut updates, _asked) = watch(vec![
        refusal(403),
        refusal(403),
        refusal(401),
        list(10, &[pod("a", 1)]),
        Answer::Open(String::new()),
    ])
    .await;
    let failed = next(&mut updates).await;
    assert!(failed.contains("needs list and watch on pods"), "{failed}");
    let failed = next(&mut updates).await;
    assert!(
        failed.contains("does not accept our credentials"),
        "{failed}"
    );
    assert_eq!(next(&mut updates).await, "recovered");
    assert_eq!(next(&mut updates).await, "replaced a");
}

/// What a kubelet says at `/pods`.
fn pods(names: &[&str]) -> String {
    let items: Vec<_> = names.iter().map(|name| pod(name, 1)).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "items": items }).to_string()
}

fn kubelet_at(url: String) -> Kubelet {
    Kubelet {
        url,
        token_file: None,
        ca_file: None,
        insecure: false,
    }
}

/// Asks at once, and again whenever it is notified.
fn ask_kubelet(kubelet: Kubelet) -> (mpsc::Receiver<Update>, Arc<Notify>) {
    let (sender, updates) = mpsc::channel(1);
    let wanted = Arc::new(Notify::new());
    let source = Source::Kubelet(kubelet);
    tokio::spawn(run(source, "node-1".into(), Arc::clone(&wanted), sender));
    (updates, wanted)
}

#[tokio::test]
async fn the_kubelet_may_say_anything() {
    let whole = |code, text: &str| Answer::Whole(code, text.into());
    let (url, mut asked) = fake(vec![
        whole(200, &pods(&["a"])),
        // The same again is no news.
        whole(200, &pods(&["a"])),
        whole(500, "no"),
        whole(200, "<html>hello</html>"),
        whole(200, &pods(&["a", "b"])),
        whole(200, "{\"kind\":\"PodList\",\"items\":[{"),
        whole(401, "who are you"),
        whole(200, &pods(&[])),
    ])
    .await;
    let (mut updates, wanted) = ask_kubelet(kubelet_at(url));
    // Containers keep appearing, so it is asked as often as it may be.
    tokio::spawn(async move {
        while let Some(request) = asked.recv().await {
            assert_eq!(request, "/pods");
            wanted.notify_one();
        }
        Ok::<_, Infallible>(())
    });
    for expected in [
        "replaced a",
        "failed the kubelet answers 500 Internal Server Error",
        "failed what the kubelet says at /pods is no list of pods: expected value",
        "recovered",
        "replaced a b",
        "failed what the kubelet says at /pods is no list of pods: EOF",
        "failed the kubelet does not accept our token (401)",
        "recovered",
        "replaced ",
    ] {
        let update = next(&mut updates).await;
        assert!(
            update.starts_with(expected),
            "{update} instead of {expected}"
        );
    }
}

/// Accepts who trusts the certificate.
struct TlsListener(TcpListener, TlsAcceptor);

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.0.accept().await.expect("a connection");
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

#[tokio::test]
async fn the_kubelets_certificate_counts_unless_told_otherwise() {
    let (ours, another) = (Authority::new(), Authority::new());
    let (ours_file, another_file) = (PathBuf::from(ours.ca()), PathBuf::from(another.ca()));
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://{}", socket.local_addr().expect("an address"));
    let router = Router::new().fallback(async || pods(&["a"]));
    let listener = TlsListener(socket, Arc::new(ours.server("127.0.0.1")).into());
    tokio::spawn(async move { axum::serve(listener, router).await });

    for (ca_file, insecure, is_trusted) in [
        (Some(&ours_file), false, true),
        (Some(&another_file), false, false),
        (Some(&another_file), true, true),
        (None, true, true),
    ] {
        let (mut updates, _) = ask_kubelet(Kubelet {
            ca_file: ca_file.cloned(),
            insecure,
            ..kubelet_at(url.clone())
        });
        let said = next(&mut updates).await;
        match is_trusted {
            true => assert_eq!(said, "replaced a"),
            false => {
                let expected = "failed cannot ask the kubelet: ";
                assert!(said.starts_with(expected), "{ca_file:?}: {said}");
                assert!(said.contains("certificate"), "{ca_file:?}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn the_token_is_read_again() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let token = folder.path().join("token");
    let router = Router::new().fallback(async |headers: HeaderMap| {
        let credentials = headers.get("authorization").map(HeaderValue::as_bytes);
        match credentials {
            Some(b"Bearer new") => Ok(pods(&["a"])),
            _ => Err(StatusCode::UNAUTHORIZED),
        }
    });
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", socket.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(socket, router).await });

    let (mut updates, wanted) = ask_kubelet(Kubelet {
        token_file: Some(token.clone()),
        ..kubelet_at(url)
    });
    let failed = next(&mut updates).await;
    let expected = "failed --kubelet-token-file: cannot read ";
    assert!(failed.starts_with(expected), "{failed}");
    for (content, expected) in [
        ("no\0token", "failed --kubelet-token-file: "),
        ("old", "failed the kubelet does not accept our token (401)"),
        ("new\n", "recovered"),
    ] {
        fs::write(&token, content).expect("written");
        wanted.notify_one();
        let told = next(&mut updates).await;
        assert!(told.starts_with(expected), "{told}");
        assert!(!told.contains("no\0token"), "{told}");
    }
    assert_eq!(next(&mut updates).await, "replaced a");
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("pods.json");
    let write = |names: &[&str]| {
        let items: Vec<_> = names.iter().map(|name| pod(name, 1)).collect();
        let new = folder.path().join("new");
        fs::write(&new, json!({ "kind": "List", "items": items }).to_string()).expect("written");
        fs::rename(new, &path).expect("renamed");
    };
    let (sender, mut updates) = mpsc::channel(1);
    let source = run(
        Source::File(path.clone()),
        "node-1".into(),
        Arc::default(),
        sender,
    );
    tokio::spawn(source);

    let failed = next(&mut updates).await;
    assert!(failed.contains("No such file"), "{failed}");
    write(&["a"]);
    assert_eq!(next(&mut updates).await, "recovered");
    assert_eq!(next(&mut updates).await, "replaced a");
    write(&["a", "b"]);
    assert_eq!(next(&mut updates).await, "replaced a b");
    fs::write(&path, "{\"kind\":\"Pod").expect("written");
    let failed = next(&mut updates).await;
    assert!(
        failed.starts_with("failed cannot read the pods from"),
        "{failed}"
    );
    fs::write(&path, "{\"kind\":\"ConfigMap\"}").expect("written");
    fs::remove_file(&path).expect("removed");
    write(&[]);
    assert_eq!(next(&mut updates).await, "recovered");
    assert_eq!(next(&mut updates).await, "replaced ");
}
