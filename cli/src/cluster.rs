//! The cluster: which kubeconfig, which context, with kubectl's overrides applied as kubectl applies them.

use std::path::Path;

use anyhow::{Context as _, Result};
use kube::config::{AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig};
use kube::config::{NamedAuthInfo, NamedCluster, NamedContext};
use kube::{Client, Config};

use crate::args::ClusterArgs;

/// The name under which an overridden context, its cluster and its user are put beside those of the kubeconfig.
const OVERRIDDEN: &str = "kubectl-tcptracer";

/// A way to the API server.
#[derive(Clone)]
pub struct Reach {
    /// As the user that the flags and the kubeconfig name.
    pub client: Client,
    /// The context's.
    pub namespace: String,
    /// The API server's address.
    pub url: String,
}

/// Reads what there is to read; nothing is sent yet.
pub async fn reach(args: &ClusterArgs) -> Result<Reach> {
    let mut config = config(args).await?;
    config.connect_timeout = args.request_timeout.0;
    Ok(Reach {
        namespace: config.default_namespace.clone(),
        url: config.cluster_url.to_string(),
        client: Client::try_from(config).context("cannot use the kubeconfig")?,
    })
}

async fn config(args: &ClusterArgs) -> Result<Config> {
    let kubeconfig = match &args.kubeconfig {
        Some(path) => Some(
            Kubeconfig::read_from(path)
                .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?,
        ),
        None => Kubeconfig::read().ok(),
    };
    let kubeconfig = match kubeconfig {
        Some(kubeconfig) => kubeconfig,
        None if args.api_server.is_some() => Kubeconfig::default(),
        None => {
            return Config::infer().await.context(
                "found no cluster: set --kubeconfig or $KUBECONFIG, or ask one agent with --server",
            );
        }
    };
    let options = KubeConfigOptions {
        context: Some(OVERRIDDEN.into()),
        ..KubeConfigOptions::default()
    };
    Config::from_custom_kubeconfig(overridden(kubeconfig, args)?, &options)
        .await
        .context("cannot use the kubeconfig")
}

/// The kubeconfig with one more context: the chosen one, with what the flags say.
fn overridden(mut kubeconfig: Kubeconfig, args: &ClusterArgs) -> Result<Kubeconfig> {
    let context = chosen_context(&kubeconfig, args)?;
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

    kubeconfig.clusters.push(NamedCluster {
        name: OVERRIDDEN.into(),
        cluster: Some(cluster),
        ..NamedCluster::default()
    });
    kubeconfig.auth_infos.push(NamedAuthInfo {
        name: OVERRIDDEN.into(),
        auth_info: Some(user),
        ..NamedAuthInfo::default()
    });
    kubeconfig.contexts.push(NamedContext {
        name: OVERRIDDEN.into(),
        context: Some(Context {
            cluster: OVERRIDDEN.into(),
            user: Some(OVERRIDDEN.into()),
            ..context
        }),
        ..NamedContext::default()
    });
    Ok(kubeconfig)
}

fn chosen_context(kubeconfig: &Kubeconfig, args: &ClusterArgs) -> Result<Context> {
    let current = kubeconfig
        .current_context
        .as_ref()
        .filter(|c| !c.is_empty());
    let Some(name) = args.context.as_ref().or(current) else {
        // The flags alone may say enough.
        let enough = args.api_server.is_some() || args.cluster.is_some();
        anyhow::ensure!(
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
}

fn override_user(user: &mut AuthInfo, args: &ClusterArgs) {
    if let Some(token) = &args.token {
        *user = AuthInfo {
            token: Some(token.clone().into()),
            ..AuthInfo::default()
        };
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
    }
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
        let mut made = overridden(kubeconfig, &args(line))?;
        let context = made.contexts.pop().and_then(|c| c.context);
        let cluster = made.clusters.pop().and_then(|c| c.cluster);
        let user = made.auth_infos.pop().and_then(|u| u.auth_info);
        Ok((
            context.expect("a context"),
            cluster.expect("a cluster"),
            user.expect("a user"),
        ))
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
        let made = overridden(Kubeconfig::default(), &args("-s https://x --token t"));
        assert!(made.is_ok());
        let none = overridden(Kubeconfig::default(), &args("")).expect_err("nothing");
        assert!(none.to_string().contains("set --context"));
    }
}
