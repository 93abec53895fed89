//! The cluster: which kubeconfig, which context, or the pod's own service account, with kubectl's overrides applied.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, anyhow, ensure};
use kube::config::{AuthInfo, Cluster, Context, ExecAuthCluster, InClusterError};
use kube::config::{Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use secrecy::ExposeSecret;

use crate::args::ClusterArgs;
use crate::proxy;

/// A way to the API server.
#[derive(Clone)]
pub struct Reach {
    /// As the user that the flags and the kubeconfig name.
    pub client: Client,
    /// The context's.
    pub namespace: String,
    /// The API server's address, and the proxy's if there is one; for people.
    pub address: String,
}

/// Reads what there is to read; nothing is sent yet.
pub fn reach(args: &ClusterArgs) -> Result<Reach> {
    let kubeconfig = kubeconfig(args)?;
    let (mut config, proxy) = match kubeconfig {
        Some(kubeconfig) => of_kubeconfig(kubeconfig, args)?,
        // A server that is named is none to show the service account's token.
        None if args.api_server.is_some() => of_kubeconfig(Kubeconfig::default(), args)?,
        None => (in_cluster(args)?, None),
    };
    ensure!(
        matches!(config.cluster_url.scheme_str(), Some("http" | "https")),
        "the address of the API server is no URL, such as https://HOST:PORT: {}",
        config.cluster_url
    );
    config.connect_timeout = args.request_timeout.0;
    config.proxy_url = proxy::to(&config.cluster_url, proxy.as_deref(), |name| {
        env::var(name).ok()
    })
    .context("cannot use the proxy")?;
    use_token(&mut config.auth_info)?;
    Ok(Reach {
        namespace: config.default_namespace.clone(),
        address: address(&config),
        client: Client::try_from(config).context("cannot use the kubeconfig")?,
    })
}

fn address(config: &Config) -> String {
    match &config.proxy_url {
        None => config.cluster_url.to_string(),
        // A password may stand before the host.
        Some(proxy) => {
            let authority = proxy.authority().map_or("", |a| a.as_str());
            let host = authority.rsplit('@').next().unwrap_or_default();
            let scheme = proxy.scheme_str().unwrap_or_default();
            format!("{} through the proxy {scheme}://{host}", config.cluster_url)
        }
    }
}

/// And the kubeconfig's proxy.
fn of_kubeconfig(kubeconfig: Kubeconfig, args: &ClusterArgs) -> Result<(Config, Option<String>)> {
    let (context, cluster, mut user) = chosen(&kubeconfig, args)?;
    let server = cluster.server.clone().unwrap_or_default();
    let url = server.parse().with_context(|| {
        format!("the address of the API server is no URL, such as https://HOST:PORT: {server}")
    })?;
    let mut config = Config::new(url);
    if let Some(namespace) = context.namespace.filter(|n| !n.is_empty()) {
        config.default_namespace = namespace;
    }
    let told = ExecAuthCluster::try_from(&cluster).context("cannot use the kubeconfig")?;
    config.root_cert = told
        .certificate_authority_data
        .as_deref()
        .map(certificates)
        .transpose()?;
    if let Some(exec) = &mut user.exec
        && exec.provide_cluster_info
    {
        exec.cluster = Some(told);
    }
    config.auth_info = user;
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    config.tls_server_name = cluster.tls_server_name;
    Ok((config, cluster.proxy_url.filter(|proxy| !proxy.is_empty())))
}

fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.context("cannot read the certificate authority of the cluster")?;
    ensure!(
        !found.is_empty(),
        "the certificate authority of the cluster has no certificate (PEM)"
    );
    Ok(found.into_iter().map(|der| der.to_vec()).collect())
}

/// Makes a header of the token possible. One that was written by hand ends with a line break, and kube sends it as it is;
/// a file with such a token is not read again.
fn use_token(user: &mut AuthInfo) -> Result<()> {
    let inline = user
        .token
        .take()
        .map(|t| t.expose_secret().trim().to_string());
    let inline = inline.filter(|token| !token.is_empty());
    let (token, of) = match (&inline, &user.token_file) {
        (Some(token), _) => (token.clone(), "the user".to_string()),
        (None, Some(file)) => {
            let token = fs::read_to_string(file);
            let token = token.with_context(|| format!("cannot read the token in {file}"))?;
            (token, file.clone())
        }
        (None, None) => return Ok(()),
    };
    let trimmed = token.trim();
    ensure!(!trimmed.is_empty(), "the token in {of} is empty");
    ensure!(
        !trimmed.contains(char::is_control),
        "the token of {of} has control characters, a line break perhaps"
    );
    if inline.is_some() || trimmed != token {
        user.token = Some(trimmed.into());
    }
    Ok(())
}

/// The kubeconfig, if there is one. Like kubectl: one that is named has to be there, those of `$KUBECONFIG` and of the
/// home directory need not, and one that says nothing is none.
pub fn kubeconfig(args: &ClusterArgs) -> Result<Option<Kubeconfig>> {
    let cannot = |path: &Path| format!("cannot use the kubeconfig {}", path.display());
    if let Some(path) = &args.kubeconfig {
        let kubeconfig = Kubeconfig::read_from(path).with_context(|| cannot(path))?;
        return Ok(Some(kubeconfig));
    }
    let mut merged = Kubeconfig::default();
    for path in usual_places() {
        match Kubeconfig::read_from(&path) {
            Ok(next) => merged = merged.merge(next).with_context(|| cannot(&path))?,
            Err(KubeconfigError::ReadConfig(e, _)) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| cannot(&path)),
        }
    }
    let says_nothing =
        merged.contexts.is_empty() && merged.clusters.is_empty() && merged.auth_infos.is_empty();
    Ok((!says_nothing).then_some(merged))
}

/// What `$KUBECONFIG` lists, or else the one in the home directory.
fn usual_places() -> Vec<PathBuf> {
    let listed = env::var_os("KUBECONFIG").unwrap_or_default();
    let mut places: Vec<_> = env::split_paths(&listed).collect();
    places.retain(|path| !path.as_os_str().is_empty());
    if places.is_empty() {
        places.extend(env::home_dir().map(|home| home.join(".kube").join("config")));
    }
    places
}

/// From within a pod, as its service account.
fn in_cluster(args: &ClusterArgs) -> Result<Config> {
    for (flag, name) in [
        ("context", &args.context),
        ("cluster", &args.cluster),
        ("user", &args.user),
    ] {
        if let Some(name) = name {
            anyhow::bail!("there is no kubeconfig with a {flag} {name}: set --kubeconfig");
        }
    }
    let mut config = Config::incluster().map_err(|e| match e {
        InClusterError::ReadEnvironmentVariable(_) => anyhow!(
            "found no cluster: set --kubeconfig or $KUBECONFIG, or ask one agent with --server"
        ),
        e => anyhow!(e).context("cannot use the service account of this pod"),
    })?;
    override_in_cluster(&mut config, args);
    Ok(config)
}

/// As [`override_cluster`] and [`override_user`].
fn override_in_cluster(config: &mut Config, args: &ClusterArgs) {
    if let Some(file) = &args.certificate_authority {
        config.root_cert_file = Some(file.clone());
    }
    if let Some(name) = &args.tls_server_name {
        config.tls_server_name = Some(name.clone());
    }
    config.accept_invalid_certs |= args.insecure_skip_tls_verify;
    config.disable_compression |= args.disable_compression;
    override_user(&mut config.auth_info, args);
}

/// The chosen context, its cluster and its user, with what the flags say.
fn chosen(kubeconfig: &Kubeconfig, args: &ClusterArgs) -> Result<(Context, Cluster, AuthInfo)> {
    let context = chosen_context(kubeconfig, args)?;
    let named = |name: &str| {
        let found = kubeconfig.clusters.iter().find(|c| c.name == name);
        found.and_then(|c| c.cluster.clone())
    };
    let mut cluster = match args.cluster.as_ref().unwrap_or(&context.cluster).as_str() {
        "" => Cluster::default(),
        name => named(name)
            .or_else(|| args.api_server.is_some().then(Cluster::default))
            .with_context(|| format!("the kubeconfig has no cluster {name}"))?,
    };
    let mut user = match args.user.as_ref().or(context.user.as_ref()) {
        None => AuthInfo::default(),
        Some(name) => {
            let found = kubeconfig.auth_infos.iter().find(|u| u.name == *name);
            // Like kubectl: a context may name a user that is not there, a flag may not.
            match found.and_then(|u| u.auth_info.clone()) {
                Some(user) => user,
                None if args.user.is_none() => AuthInfo::default(),
                None => anyhow::bail!("the kubeconfig has no user {name}"),
            }
        }
    };
    override_cluster(&mut cluster, args);
    override_user(&mut user, args);
    Ok((context, cluster, user))
}

fn chosen_context(kubeconfig: &Kubeconfig, args: &ClusterArgs) -> Result<Context> {
    let current = kubeconfig
        .current_context
        .as_ref()
        .filter(|c| !c.is_empty());
    let Some(name) = args.context.as_ref().or(current) else {
        // The flags alone may say enough.
        let enough = args.api_server.is_some() || args.cluster.is_some();
        ensure!(
            enough,
            "the kubeconfig has no current context: set --context"
        );
        return Ok(Context::default());
    };
    let found = kubeconfig.contexts.iter().find(|c| c.name == *name);
    found
        .and_then(|c| c.context.clone())
        .with_context(|| format!("the kubeconfig has no context {name}"))
}

fn override_cluster(cluster: &mut Cluster, args: &ClusterArgs) {
    if let Some(server) = &args.api_server {
        cluster.server = Some(server.clone());
    }
    if let Some(file) = &args.certificate_authority {
        cluster.certificate_authority = Some(text(file));
        cluster.certificate_authority_data = None;
    }
    if args.insecure_skip_tls_verify {
        cluster.insecure_skip_tls_verify = Some(true);
        cluster.certificate_authority = None;
        cluster.certificate_authority_data = None;
    }
    if let Some(name) = &args.tls_server_name {
        cluster.tls_server_name = Some(name.clone());
    }
    if args.disable_compression {
        cluster.disable_compression = Some(true);
    }
}

/// Whoever the flags say the user is takes the place of whoever it was: with the credentials of both, it would be for the
/// API server to choose. Whom to impersonate stays, unless a flag says another.
fn override_user(user: &mut AuthInfo, args: &ClusterArgs) {
    let secret = args.token.is_some() || args.username.is_some();
    let certificate = args.client_certificate.is_some() || args.client_key.is_some();
    if secret || certificate {
        user.token = None;
        user.token_file = None;
        user.username = None;
        user.password = None;
        user.exec = None;
        user.auth_provider = None;
    }
    // A flag may give half of the pair.
    if secret && !certificate {
        user.client_certificate = None;
        user.client_certificate_data = None;
        user.client_key = None;
        user.client_key_data = None;
    }
    if let Some(token) = &args.token {
        user.token = Some(token.clone().into());
    }
    if let (Some(name), Some(password)) = (&args.username, &args.password) {
        user.username = Some(name.clone());
        user.password = Some(password.clone().into());
    }
    if let Some(file) = &args.client_certificate {
        user.client_certificate = Some(text(file));
        user.client_certificate_data = None;
    }
    if let Some(file) = &args.client_key {
        user.client_key = Some(text(file));
        user.client_key_data = None;
    }
    if args.as_user.is_some() {
        user.impersonate.clone_from(&args.as_user);
        user.impersonate_uid.clone_from(&args.as_uid);
        user.impersonate_groups = (!args.as_group.is_empty()).then(|| args.as_group.clone());
        user.impersonate_user_extra = (!args.as_user_extra.is_empty()).then(|| extra(args));
    }
}

/// Key → its values.
fn extra(args: &ClusterArgs) -> HashMap<String, Vec<String>> {
    let mut extra: HashMap<_, Vec<_>> = HashMap::new();
    for (key, value) in args.as_user_extra.iter().cloned() {
        extra.entry(key).or_default().push(value);
    }
    extra
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: east, cluster: {server: 'https://east:6443', tls-server-name: e}}
- {name: west, cluster: {server: 'https://west:6443'}}
users:
- {name: ann, user: {token: ann's}}
- {name: bob, user: {token: bob's}}
- {name: cert, user: {client-certificate: c.pem, client-key: k.pem, as: bob}}
contexts:
- {name: one, context: {cluster: east, user: ann, namespace: shop}}
- {name: two, context: {cluster: west, user: gone}}
";

    fn args(line: &str) -> ClusterArgs {
        let words = ["kubectl-tcptracer"]
            .into_iter()
            .chain(line.split_whitespace());
        Args::try_parse_from(words).expect("valid").cluster
    }

    fn with(line: &str) -> Result<(Context, Cluster, AuthInfo)> {
        let kubeconfig = Kubeconfig::from_yaml(KUBECONFIG).expect("a kubeconfig");
        chosen(&kubeconfig, &args(line))
    }

    fn server(line: &str) -> Option<String> {
        with(line).expect("valid").1.server
    }

    #[test]
    fn the_context_and_what_flags_take_its_place() {
        let (context, cluster, user) = with("").expect("valid");
        assert_eq!(context.namespace.as_deref(), Some("shop"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("e"));
        assert!(user.token.is_some() && user.impersonate.is_none());

        assert_eq!(server("").as_deref(), Some("https://east:6443"));
        assert_eq!(
            server("--context two").as_deref(),
            Some("https://west:6443")
        );
        assert_eq!(
            server("--cluster west").as_deref(),
            Some("https://west:6443")
        );
        assert_eq!(server("-s https://x").as_deref(), Some("https://x"));

        let (_, cluster, user) = with(
            "--as eve --as-group a --as-group b --as-uid 7 --client-certificate c --client-key k --token t \
             --certificate-authority ca --tls-server-name n",
        )
        .expect("valid");
        assert_eq!(user.impersonate.as_deref(), Some("eve"));
        assert_eq!(user.impersonate_uid.as_deref(), Some("7"));
        assert_eq!(user.impersonate_groups, Some(vec!["a".into(), "b".into()]));
        assert_eq!(user.client_certificate.as_deref(), Some("c"));
        assert_eq!(user.client_key.as_deref(), Some("k"));
        assert_eq!(cluster.certificate_authority.as_deref(), Some("ca"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("n"));
    }

    #[test]
    fn who_a_flag_names_takes_the_place_of_the_kubeconfigs_user() {
        let user = |line: &str| with(line).expect("valid").2;
        let basic = user("--username u --password p");
        assert!(basic.token.is_none() && basic.password.is_some());
        assert_eq!(basic.username.as_deref(), Some("u"));

        let certificate = user("--client-certificate c --client-key k");
        assert!(certificate.token.is_none());
        assert_eq!(certificate.client_certificate.as_deref(), Some("c"));

        // The kubeconfig's other half of a pair.
        let half = user("--user cert --client-key k");
        assert_eq!(half.client_certificate.as_deref(), Some("c.pem"));
        assert_eq!(half.client_key.as_deref(), Some("k"));

        let token = user("--user cert --token t");
        assert!(token.token.is_some());
        assert!(token.client_certificate.is_none() && token.client_key.is_none());
        // A token does not make anybody themselves who is to be somebody else.
        assert_eq!(token.impersonate.as_deref(), Some("bob"));
    }

    #[test]
    fn what_else_is_impersonated_has_several_values() {
        let user =
            with("--as eve --as-user-extra k=a --as-user-extra k=b=c --as-user-extra e.org/x=");
        let extra = user.expect("valid").2.impersonate_user_extra;
        assert_eq!(
            extra,
            Some(
                [
                    ("k".to_string(), vec!["a".to_string(), "b=c".into()]),
                    ("e.org/x".into(), vec![String::new()]),
                ]
                .into()
            )
        );
    }

    #[test]
    fn tokens_lose_what_is_around_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |content: &str| {
            let path = folder.path().join("token");
            fs::write(&path, content).expect("a file");
            Some(text(&path))
        };
        let used = |token: Option<&str>, token_file: Option<String>| {
            let mut user = AuthInfo {
                token: token.map(Into::into),
                token_file,
                ..AuthInfo::default()
            };
            use_token(&mut user).map_err(|e| format!("{e:#}"))?;
            Ok(user.token.map(|t| t.expose_secret().to_string()))
        };
        assert_eq!(used(None, None), Ok(None));
        assert_eq!(used(Some(""), None), Ok(None));
        assert_eq!(used(Some(" a\r\n"), None), Ok(Some("a".into())));
        assert_eq!(used(None, file("b\n")), Ok(Some("b".into())));
        assert_eq!(used(Some("\n"), file("b\n")), Ok(Some("b".into())));
        assert_eq!(used(Some("a"), file("b\n")), Ok(Some("a".into())));
        // One that can be sent as it is, is read again when it may have changed.
        assert_eq!(used(None, file("b")), Ok(None));

        let wrong = "has control characters, a line break perhaps";
        assert_eq!(
            used(Some("a\nb"), None),
            Err(format!("the token of the user {wrong}"))
        );
        let path = file("a\nb\n").expect("a file");
        assert_eq!(
            used(None, Some(path.clone())),
            Err(format!("the token of {path} {wrong}"))
        );
        assert_eq!(
            used(None, file("\n")),
            Err(format!("the token in {path} is empty"))
        );
        let gone = used(None, Some("/nonexistent".into())).expect_err("no file");
        assert!(gone.starts_with("cannot read the token in /nonexistent: "));
    }

    #[test]
    fn flags_count_in_a_pod_too() {
        let in_pod = |line: &str| {
            let mut config = Config::new("https://10.96.0.1".parse().expect("a URL"));
            config.root_cert_file = Some("sa/ca.crt".into());
            config.auth_info.token_file = Some("sa/token".into());
            override_in_cluster(&mut config, &args(line));
            config
        };
        let plain = in_pod("");
        assert_eq!(plain.auth_info.token_file.as_deref(), Some("sa/token"));
        assert_eq!(plain.root_cert_file, Some("sa/ca.crt".into()));
        assert!(!plain.accept_invalid_certs && !plain.disable_compression);

        let bob = in_pod("--as bob --as-group a --as-uid 7 --as-user-extra k=v").auth_info;
        assert_eq!(bob.token_file.as_deref(), Some("sa/token"));
        assert_eq!(bob.impersonate.as_deref(), Some("bob"));
        assert_eq!(bob.impersonate_groups, Some(vec!["a".into()]));
        assert_eq!(bob.impersonate_uid.as_deref(), Some("7"));
        assert!(bob.impersonate_user_extra.is_some());

        for line in [
            "--token t",
            "--username u --password p",
            "--client-certificate c --client-key k",
        ] {
            assert_eq!(in_pod(line).auth_info.token_file, None, "{line}");
        }
        let server = in_pod("--certificate-authority ca --tls-server-name n");
        assert_eq!(server.root_cert_file, Some("ca".into()));
        assert_eq!(server.tls_server_name.as_deref(), Some("n"));
        let lax = in_pod("--insecure-skip-tls-verify --disable-compression");
        assert!(lax.accept_invalid_certs && lax.disable_compression);
    }

    #[test]
    fn a_user_who_is_not_there_may_only_be_the_contexts() {
        assert!(with("--context two").expect("valid").2.token.is_none());
        for (line, why) in [
            ("--user gone", "the kubeconfig has no user gone"),
            ("--cluster gone", "the kubeconfig has no cluster gone"),
            ("--context gone", "the kubeconfig has no context gone"),
        ] {
            assert_eq!(with(line).expect_err(line).to_string(), why);
        }
    }

    #[test]
    fn flags_alone_are_enough() {
        let made = chosen(&Kubeconfig::default(), &args("-s https://x --token t"));
        assert!(made.is_ok());
        let none = chosen(&Kubeconfig::default(), &args("")).expect_err("nothing");
        assert!(none.to_string().contains("set --context"));
    }
}
