//! The way to the API server leads through a proxy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tcptracer_authority::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::agent::{Agent, connect};
use crate::api::Api;
use crate::plugin::{Nobody, Plugin, command};

/// What it was asked for: the first line, or the host and port, and who asks.
type Asked = (String, Option<String>);

/// A proxy that knows one server, whatever it is asked for; of one that speaks TLS it plays that part as well.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start(server: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::default();
        let note = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, tls.clone(), Arc::clone(&note)));
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    /// What it was asked for since the last time.
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().expect("nobody has panicked"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    tls: Option<TlsAcceptor>,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let mut first = [0];
    client.peek(&mut first).await.expect("a request");
    let request = match first {
        [5] => socks(&mut client).await,
        _ => http(&mut client).await,
    };
    asked.lock().expect("nobody has panicked").push(request);
    let mut server = TcpStream::connect(server).await.expect("the server runs");
    let _ = match tls {
        None => copy_bidirectional(&mut client, &mut server).await,
        Some(tls) => {
            let mut client = tls.accept(client).await.expect("a handshake");
            copy_bidirectional(&mut client, &mut server).await
        }
    };
}

async fn http(client: &mut TcpStream) -> Asked {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("a request"));
    }
    let head = String::from_utf8(head).expect("text");
    let line = head.lines().next().unwrap_or_default().to_string();
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    let who = headers.find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"));
    let who = who.map(|(_, value)| value.to_string());
    let answer = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    answer.expect("the client listens");
    (line, who)
}

/// Version 5, without authentication, to a name.
async fn socks(client: &mut TcpStream) -> Asked {
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).await.expect("a greeting");
    assert_eq!(greeting, [5, 1, 0]);
    client.write_all(&[5, 0]).await.expect("the client listens");
    let mut request = [0; 5];
    client.read_exact(&mut request).await.expect("a request");
    let [5, 1, 0, 3, length] = request else {
        panic!("no connect to a name: {request:?}");
    };
    let mut name = vec![0; length.into()];
    client.read_exact(&mut name).await.expect("a name");
    let port = client.read_u16().await.expect("a port");
    let answer = client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    answer.expect("the client listens");
    let name = String::from_utf8(name).expect("text");
    (format!("{name}:{port}"), None)
}

const CONNECT: &str = "CONNECT api.test:6443 HTTP/1.1";

/// A cluster of one node.
async fn one_node() -> (Api, Agent) {
    let api = Api::start().await;
    let agent = Agent::start("n1").await;
    api.agent("agent-1", "n1", agent.address);
    api.pod("shop", "web-0", "n1", json!({}));
    (api, agent)
}

#[tokio::test]
async fn everything_goes_through_the_kubeconfigs_proxy() {
    let (api, mut agent) = one_node().await;
    let authority = Authority::new();
    let tls = TlsAcceptor::from(Arc::new(authority.server("api.test")));
    let proxy = Proxy::start(api.address(), Some(tls)).await;
    let server = format!("server: 'http://{}'", api.address());
    // Not even an exception counts, nor what the environment says.
    let kubeconfig = api.kubeconfig_with(
        &server,
        &format!(
            "server: 'https://api.test:6443', proxy-url: 'http://ann:p%40w@{}', certificate-authority: '{}'",
            proxy.address,
            authority.ca()
        ),
    );
    let mut command = command(&["--kubeconfig", &kubeconfig, "-o", "name"]);
    command
        .env("NO_PROXY", "api.test")
        .env("HTTPS_PROXY", "http://127.0.0.1:1");
    let mut plugin = Plugin::spawn(&mut command);
    let watch = agent.watched().await;
    watch.live(0).await;
    watch.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "pod/web-0");
    plugin.interrupt().await.well();
    assert_eq!(api.forwarded(), ["tcptracer/agent-1"]);
    let asked = proxy.asked();
    assert!(!asked.is_empty());
    for request in asked {
        let who = Some("Basic YW5uOnBAdw==".into());
        assert_eq!(request, (CONNECT.into(), who));
    }
}

#[tokio::test]
async fn a_proxy_may_speak_socks() {
    let (api, _agent) = one_node().await;
    let proxy = Proxy::start(api.address(), None).await;
    let url = format!("socks5://{}", proxy.address);
    let mut command = command(&["-s", "http://api.test:6443", "status", "-o", "name"]);
    let ended = Plugin::spawn(command.env("HTTP_PROXY", url)).ended().await;
    assert_eq!(ended.well(), ["node/n1"]);
    let asked = proxy.asked();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|(to, _)| to == "api.test:6443"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn the_environments_proxy_has_exceptions() {
    let (api, _agent) = one_node().await;
    let authority = Authority::new();
    let tls = TlsAcceptor::from(Arc::new(authority.server("api.test")));
    let proxy = Proxy::start(api.address(), Some(tls)).await;
    let plain_proxy = Proxy::start(api.address(), None).await;
    let ca = authority.ca();
    let ask = |server: &str, variables: &[(&str, String)]| {
        let args = ["-s", server, "--certificate-authority", &ca];
        let mut command = command(&[&args[..], &["status", "-o", "name"]].concat());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        Plugin::spawn(&mut command).ended()
    };
    // By its name nobody finds it: it is the proxy that does.
    let through = ("https_proxy", proxy.address.to_string());
    let plain = ("HTTP_PROXY", format!("http://{}", plain_proxy.address));
    let variables = [through, plain, ("NO_PROXY", "other.test,,".into())];
    let ended = ask("https://api.test:6443", &variables).await;
    assert_eq!(ended.well(), ["node/n1"]);
    assert!(proxy.asked().iter().all(|(line, _)| line == CONNECT));
    assert!(plain_proxy.asked().is_empty());

    let ended = ask("http://api.test:6443", &variables).await;
    assert_eq!(ended.well(), ["node/n1"]);
    assert!(plain_proxy.asked().iter().all(|(line, _)| line == CONNECT));

    let [through, plain, _] = variables;
    let excepted = [through, plain, ("NO_PROXY", ".test".into())];
    let ended = ask("https://api.test:6443", &excepted).await;
    assert_eq!((ended.code, &ended.out[..]), (Some(1), &[][..]));
    let why = "the cluster at https://api.test:6443/: ";
    assert!(ended.err[0].starts_with(why), "{:?}", ended.err);

    // This machine is asked directly.
    let server = format!("http://{}", api.address());
    assert_eq!(ask(&server, &excepted).await.well(), ["node/n1"]);
    assert!(proxy.asked().is_empty() && plain_proxy.asked().is_empty());
}

#[tokio::test]
async fn a_proxy_that_is_not_there() {
    let nobody = Nobody::new();
    let address = nobody.address();
    for (proxy, why) in [
        (
            format!("http://ann:secret@{address}"),
            format!("the cluster at https://api.test/ through the proxy http://{address}: "),
        ),
        (
            "gopher://ann:secret@x".into(),
            "cannot use the proxy: HTTPS_PROXY: a proxy is reached by http, https or socks5".into(),
        ),
    ] {
        let mut command = command(&["-s", "https://api.test", "status"]);
        let ended = Plugin::spawn(command.env("HTTPS_PROXY", &proxy))
            .ended()
            .await;
        assert_eq!((ended.code, &ended.out[..]), (Some(1), &[][..]));
        assert!(ended.err[0].starts_with(&why), "{:?}", ended.err);
        assert!(!ended.err[0].contains("secret"), "{:?}", ended.err);
    }
}
