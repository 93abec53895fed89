//! Where the server listens: TCP or a Unix socket, in the clear or with TLS.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use futures::future::ready;
use futures::{Stream, StreamExt};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

use super::connection::{Connection, Door, Transport};
use crate::newest::Newest;

/// How long a client may take to say hello.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at a time; with more, the oldest are given up, so that who idles keeps nobody out.
const HANDSHAKES: usize = 256;

/// Connections past their handshake that may wait to be served.
const QUEUE: usize = 64;

/// After a connection could not be accepted: out of descriptors, perhaps.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Whether only processes of this host can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => is_loopback(address.ip()),
            Self::Unix(_) => true,
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("the path is missing".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "expected ADDRESS:PORT or unix:PATH".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The files that TLS needs. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and what it depends on, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Whose certificates clients have to show, PEM; without it they need none.
    pub client_ca: Option<PathBuf>,
}

impl Tls {
    fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.cert, &self.key]
            .into_iter()
            .chain(&self.client_ca)
            .map(PathBuf::as_path)
    }

    /// When each was changed. Kubernetes replaces the folder, which changes this as well.
    fn changed(&self) -> Vec<Option<SystemTime>> {
        self.files()
            .map(|file| fs::metadata(file).and_then(|m| m.modified()).ok())
            .collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>> {
        let certs = certificates("--tls-cert", &self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("--tls-key: cannot read {}", self.key.display()))?;
        let builder = match &self.client_ca {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for ca in certificates("--tls-client-ca", path)? {
                    roots.add(ca).with_context(|| {
                        format!("--tls-client-ca: {} has a bad certificate", path.display())
                    })?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(certs, key)
            .context("--tls-key does not belong to --tls-cert")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let certs = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("{option}: cannot read {shown}"))?;
    if certs.is_empty() {
        bail!("{option}: there is no certificate in {shown}");
    }
    Ok(certs)
}

/// The server's TLS configuration, loaded anew when a file has changed. Files that cannot be used leave
/// the one before in place.
struct Reloaded {
    tls: Tls,
    changed: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

impl Reloaded {
    fn new(tls: Tls) -> Result<Self> {
        Ok(Self {
            changed: tls.changed(),
            config: tls.load()?,
            tls,
        })
    }

    fn acceptor(&mut self) -> TlsAcceptor {
        let changed = self.tls.changed();
        if changed != self.changed {
            self.changed = changed;
            match self.tls.load() {
                Ok(config) => self.config = config,
                Err(e) => warn!("TLS files have changed and cannot be used: {e:#}"),
            }
        }
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Socket {
    async fn accept(&self) -> io::Result<Transport> {
        Ok(match self {
            Self::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Box::pin(stream)
            }
            Self::Unix(socket, _) => Box::pin(socket.accept().await?.0),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// A bound socket.
pub struct Listener {
    socket: Socket,
    tls: Option<Reloaded>,
    address: Address,
}

impl Listener {
    /// Binds. A socket that an earlier run left in the file system is replaced.
    pub async fn bind(address: &Address, tls: Option<Tls>) -> Result<Self> {
        let tls = tls.map(Reloaded::new).transpose()?;
        let cannot = || format!("--grpc-listen: cannot listen on {address}");
        let (socket, address) = match address {
            Address::Tcp(wanted) => {
                let socket = TcpListener::bind(wanted).await.with_context(cannot)?;
                let bound = Address::Tcp(socket.local_addr()?);
                (Socket::Tcp(socket), bound)
            }
            Address::Unix(path) => {
                remove_stale(path).with_context(cannot)?;
                let socket = UnixListener::bind(path).with_context(cannot)?;
                (Socket::Unix(socket, path.clone()), address.clone())
            }
        };
        Ok(Self {
            socket,
            tls,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connections, past their handshake, as long as the door admits them. The handshake is made apart, so that no client
    /// holds up another.
    pub fn incoming(self, mut door: Door) -> impl Stream<Item = io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(self.accept_into(sender));
        ReceiverStream::new(receiver)
            .filter_map(move |transport| ready(door.admit(transport).map(Ok)))
    }

    async fn accept_into(mut self, to: mpsc::Sender<Transport>) {
        let mut handshakes = Newest::new(HANDSHAKES);
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = to.closed() => return,
            };
            let connection = match accepted {
                Ok(connection) => connection,
                Err(e) => {
                    warn!("cannot accept a connection: {e}");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let acceptor = self.tls.as_mut().map(Reloaded::acceptor);
            let to = to.clone();
            handshakes.start(async move {
                if let Some(connection) = shake_hands(connection, acceptor).await {
                    let _ = to.send(connection).await;
                }
            });
        }
    }
}

async fn shake_hands(connection: Transport, acceptor: Option<TlsAcceptor>) -> Option<Transport> {
    let Some(acceptor) = acceptor else {
        return Some(connection);
    };
    match timeout(HANDSHAKE, acceptor.accept(connection)).await {
        Ok(Ok(stream)) => Some(Box::pin(stream)),
        Ok(Err(e)) => {
            warn!("a client failed the TLS handshake: {e}");
            None
        }
        Err(_) => None,
    }
}

/// Only a socket is removed, and only one that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type().is_socket(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !is_socket {
        return Err(io::Error::other("there is something else at that path"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(_) => fs::remove_file(path),
    }
}
