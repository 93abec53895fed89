/*!
The proxy on the way to the API server.

As for kubectl: the kubeconfig's, whatever the environment says; else that of `HTTPS_PROXY` or `HTTP_PROXY`, by the scheme of
the API server, unless `NO_PROXY` excepts its host. kube reads the environment as well, but asks whether the proxy is
excepted.

The matcher of hyper-util decides whether `NO_PROXY` excepts a host. The rest is written here, because the matcher
- does not know the kubeconfig;
- ignores a proxy that is invalid, where an error has to name the variable (and not quote the proxy's password);
- takes the password out of the proxy's URL, where kube wants it;
- accepts `socks4`, which kube does not speak;
- has no exception for this machine, as Go's has;
- reads entries as curl does, which is not quite how Go does ([`for_curl`]).
*/

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

/// The proxy to this server, if there is one. `named`: in the kubeconfig.
pub fn to(
    server: &Uri,
    named: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>> {
    if let Some(proxy) = named {
        return parse(proxy).map(Some).context("proxy-url");
    }
    let names = match server.scheme_str() {
        Some("https") => ["HTTPS_PROXY", "https_proxy"],
        _ => ["HTTP_PROXY", "http_proxy"],
    };
    let first = |names: [&'static str; 2]| {
        let values = names.into_iter().map(|name| (name, variable(name)));
        let mut given = values.filter_map(|(name, value)| Some((name, value?)));
        given.find(|(_, value)| !value.is_empty())
    };
    let Some((name, proxy)) = first(names) else {
        return Ok(None);
    };
    let excepted = first(["NO_PROXY", "no_proxy"]).is_some_and(|(_, list)| excepts(&list, server));
    match excepted || is_this_machine(server) {
        true => Ok(None),
        false => parse(&proxy).map(Some).context(name),
    }
}

/// Not quoted in errors: it may have a password.
fn parse(proxy: &str) -> Result<Uri> {
    let uri = match proxy.contains("://") {
        true => proxy.parse::<Uri>(),
        false => format!("http://{proxy}").parse(),
    };
    let uri = uri.ok().filter(|uri| uri.host().is_some());
    let uri = uri.context("it is no URL, such as http://HOST:PORT")?;
    ensure!(
        matches!(uri.scheme_str(), Some("http" | "https" | "socks5")),
        "a proxy is reached by http, https or socks5"
    );
    Ok(uri)
}

fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    host.trim_matches(['[', ']']).into()
}

/// No proxy is asked for it.
fn is_this_machine(server: &Uri) -> bool {
    let host = host(server);
    let address: Option<IpAddr> = host.parse().ok();
    host == "localhost" || address.is_some_and(|ip| ip.is_loopback())
}

/// `*`, networks, and hosts with and without a port; what is none of these excepts nothing.
fn excepts(list: &str, server: &Uri) -> bool {
    let host = host(server);
    let port = server.port_u16().unwrap_or(match server.scheme_str() {
        Some("https") => 443,
        _ => 80,
    });
    let entries = list.split(',').map(str::trim);
    let entries: Vec<_> = entries
        .filter_map(|entry| for_curl(entry, &host, port))
        .collect();
    let matcher = Matcher::builder()
        .all("http://any")
        .no(entries.join(","))
        .build();
    matcher.intercept(server).is_none()
}

/// An entry of Go's syntax in curl's, which the matcher reads; nothing, if it is not about this host and port. In curl's,
/// entries have no ports, `*` excepts names only, there is no `*.example.org`, and `.example.org` means `example.org` too.
fn for_curl<'a>(entry: &'a str, host: &'a str, port: u16) -> Option<&'a str> {
    if entry == "*" {
        return Some(host);
    }
    if entry.contains('/') || entry.parse::<IpAddr>().is_ok() {
        return Some(entry);
    }
    let name = match entry.rsplit_once(':') {
        Some((name, only)) if only.parse() == Ok(port) => name,
        Some(_) => return None,
        None => entry,
    };
    let name = name.trim_matches(['[', ']']);
    let name = name.strip_prefix('*').unwrap_or(name);
    // With a dot it is only what is below.
    let is_above = |domain: &str| domain.eq_ignore_ascii_case(host);
    let is_none = matches!(name, "." | "*") || name.strip_prefix('.').is_some_and(is_above);
    (!is_none).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_with(
        server: &str,
        named: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Option<String>> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).into())
        };
        let server = server.parse().expect("a URL");
        Ok(to(&server, named, variable)?.map(|proxy| proxy.to_string()))
    }

    #[test]
    fn the_kubeconfigs_proxy_goes_first_and_has_no_exceptions() {
        let variables = [("HTTPS_PROXY", "http://env:1"), ("NO_PROXY", "*")];
        for server in ["https://east:6443", "https://localhost:6443"] {
            let proxy = to_with(server, Some("socks5://named:1080"), &variables);
            assert_eq!(
                proxy.expect("valid").as_deref(),
                Some("socks5://named:1080/")
            );
        }
    }

    #[test]
    fn the_environments_proxy_is_that_of_the_scheme() {
        let variables = [
            ("HTTPS_PROXY", ""),
            ("https_proxy", "s:1"),
            ("HTTP_PROXY", "http://ann:pw@p:2"),
            ("http_proxy", "x:3"),
        ];
        for (server, proxy) in [
            ("https://east:6443", Some("http://s:1/")),
            ("http://east", Some("http://ann:pw@p:2/")),
            ("https://localhost:6443", None),
            ("https://127.1.2.3:6443", None),
            ("https://[::1]:6443", None),
        ] {
            let found = to_with(server, None, &variables).expect("valid");
            assert_eq!(found.as_deref(), proxy, "{server}");
        }
        assert_eq!(to_with("https://east", None, &[]).expect("valid"), None);
    }

    #[test]
    fn exceptions() {
        for (list, server, excepted) in [
            ("*", "https://east", true),
            ("*", "https://10.1.2.3:6443", true),
            ("", "https://east", false),
            (",", "https://east", false),
            ("north, EAST ,", "https://east:6443", true),
            ("east:6443", "https://east:6443", true),
            ("east:443", "https://east", true),
            ("east:443", "https://east:6443", false),
            ("east:x", "https://east", false),
            ("example.org", "https://example.org", true),
            ("example.org", "https://api.example.org", true),
            ("example.org", "https://badexample.org", false),
            (".example.org", "https://example.org", false),
            (".example.org", "https://api.example.org", true),
            ("*.example.org", "https://api.example.org", true),
            ("*.example.org", "https://example.org", false),
            ("*.example.org:6443", "https://api.example.org", false),
            ("10.0.0.0/8", "https://10.1.2.3:6443", true),
            ("10.0.0.0/8", "https://11.1.2.3:6443", false),
            ("10.1.2.3", "https://10.1.2.3:6443", true),
            ("10.1.2.3:6443", "https://10.1.2.3:6443", true),
            ("10.1.2.3:1", "https://10.1.2.3:6443", false),
            ("2.3", "https://10.1.2.3", false),
            ("fd00::/8", "https://[fd00::1]", true),
            ("fd00::1", "https://[fd00::1]", true),
            ("[fd00::1]:443", "https://[fd00::1]", true),
            ("[fd00::1]:443", "https://[fd00::1]:1", false),
            (".", "https://east", false),
            (":443", "https://east", false),
        ] {
            let variables = [("HTTPS_PROXY", "p:1"), ("no_proxy", list)];
            let proxy = to_with(server, None, &variables).expect("valid");
            assert_eq!(proxy.is_none(), excepted, "{list} {server}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_said_without_its_password() {
        for (proxy, why) in [
            ("http://", "it is no URL, such as http://HOST:PORT"),
            (
                "http://ann:secret@ x",
                "it is no URL, such as http://HOST:PORT",
            ),
            (
                "ftp://ann:secret@p",
                "a proxy is reached by http, https or socks5",
            ),
        ] {
            let variables = [("HTTPS_PROXY", proxy)];
            let e = to_with("https://east", None, &variables).expect_err(proxy);
            assert_eq!(format!("{e:#}"), format!("HTTPS_PROXY: {why}"));
            let e = to_with("https://east", Some(proxy), &[]).expect_err(proxy);
            assert_eq!(format!("{e:#}"), format!("proxy-url: {why}"));
        }
    }
}
