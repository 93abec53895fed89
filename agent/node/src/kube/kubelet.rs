//! Pods from the kubelet, which has no watch: asked now and then, and at once when a container
//! appears whose pod is not known.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::pod::Pod;
use super::source::{Gone, Kubelet, Update, UpdateSender, parse};

/// Between two questions, give or take a fifth, so that nodes that started together do not ask together.
const INTERVAL: Duration = Duration::from_secs(10);

/// Between two questions at least, however many containers appear.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long the kubelet may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer may have this many bytes; 250 pods have some 5 MiB.
const MAX_ANSWER: usize = 64 << 20;

pub(super) async fn run(kubelet: &Kubelet, wanted: &Notify, updates: UpdateSender) -> Result<Gone> {
    let kubelet = Asked {
        client: client(kubelet)?,
        token_file: kubelet.token_file.as_deref(),
    };
    Ok(poll(&kubelet, wanted, updates)
        .await
        .map_or_else(|gone| gone, |()| Gone))
}

/// A kubelet that is asked.
struct Asked<'a> {
    client: Client,
    /// Read for each question: tokens are replaced now and then.
    token_file: Option<&'a Path>,
}

fn client(kubelet: &Kubelet) -> Result<Client> {
    let url = kubelet
        .url
        .parse()
        .with_context(|| format!("--kubelet-url: {} is no URL", kubelet.url.escape_debug()))?;
    let mut config = Config::new(url);
    config.accept_invalid_certs = kubelet.insecure;
    config.root_cert = match (&kubelet.ca_file, kubelet.insecure) {
        (Some(path), _) => Some(certificates(path)?),
        // None is looked at. The system's, which are the default, need not be there.
        (None, true) => Some(Vec::new()),
        (None, false) => None,
    };
    // Read again now and then.
    config.root_cert_file.clone_from(&kubelet.ca_file);
    Client::try_from(config).context("--pods kubelet: cannot use the configuration")
}

/// DER.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates =
        read.with_context(|| format!("--kubelet-ca-file: cannot read {}", path.display()))?;
    Ok(certificates.into_iter().map(|c| c.to_vec()).collect())
}

async fn poll(kubelet: &Asked<'_>, wanted: &Notify, mut updates: UpdateSender) -> Result<(), Gone> {
    let mut last = None;
    loop {
        let asked = Instant::now();
        match fetch(kubelet, &mut last).await {
            Ok(pods) => {
                updates.works().await?;
                if let Some(pods) = pods {
                    updates.send(Update::Replaced(pods)).await?;
                }
            }
            Err(e) => updates.failed(&e).await?,
        }
        tokio::select! {
            () = sleep_until(asked + jitter(INTERVAL)) => {}
            () = wanted.notified() => sleep_until(asked + SHORTEST).await,
        }
    }
}

/// The pods, unless the answer is the same as the last one.
async fn fetch(kubelet: &Asked<'_>, last: &mut Option<u64>) -> Result<Option<Vec<Arc<Pod>>>> {
    let answer = timeout(PATIENCE, kubelet.ask())
        .await
        .context("the kubelet does not answer")??;
    let mut hasher = DefaultHasher::new();
    answer.hash(&mut hasher);
    let hash = hasher.finish();
    if *last == Some(hash) {
        return Ok(None);
    }
    let pods = parse(&answer).context("what the kubelet says at /pods is no list of pods")?;
    *last = Some(hash);
    Ok(Some(pods))
}

impl Asked<'_> {
    async fn ask(&self) -> Result<Vec<u8>> {
        let mut request = Request::get("/pods").body(Body::empty())?;
        if let Some(path) = self.token_file {
            request
                .headers_mut()
                .insert(AUTHORIZATION, credentials(path).await?);
        }
        let response = self
            .client
            .send(request)
            .await
            .context("cannot ask the kubelet")?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => bail!("the kubelet does not accept our token (401)"),
            StatusCode::FORBIDDEN => bail!(
                "the kubelet does not let us read its pods (403): the service account needs get on nodes/pods, \
             or on nodes/proxy before Kubernetes 1.33"
            ),
            other => bail!("the kubelet answers {other}"),
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        match body {
            Ok(body) => Ok(body.to_bytes().into()),
            Err(e) => bail!("cannot read what the kubelet says: {e}"),
        }
    }
}

async fn credentials(token_file: &Path) -> Result<HeaderValue> {
    let shown = token_file.display();
    let token = tokio::fs::read_to_string(token_file)
        .await
        .with_context(|| format!("--kubelet-token-file: cannot read {shown}"))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .with_context(|| format!("--kubelet-token-file: {shown} holds no token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Between four and six fifths of it.
fn jitter(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    interval * 4 / 5 + interval * random as u32 / 2500
}
