//! Where an agent listens.

use std::fmt;
#[cfg(unix)]
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Where an agent listens, as `HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name or an address, and a port.
    Tcp(String),
    /// A socket in the file system.
    #[cfg(unix)]
    Unix(PathBuf),
}

/// The text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidAddress {
    /// Nothing follows `unix:`.
    #[error("the path is missing")]
    NoPath,
    /// It is a URL.
    #[error("expected an agent's HOST:PORT or unix:PATH")]
    Url,
    /// It is something else.
    #[error("expected HOST:PORT or unix:PATH")]
    Other,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(InvalidAddress::NoPath),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let port = text
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty() && !host.contains("//"))
            .and_then(|(_, port)| port.parse().ok())
            .filter(|port: &u16| *port > 0);
        match port {
            Some(_) => Ok(Self::Tcp(text.into())),
            None if text.contains("//") => Err(InvalidAddress::Url),
            None => Err(InvalidAddress::Other),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            #[cfg(unix)]
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["localhost:50051", "10.0.0.1:1", "[::1]:50051"] {
            assert_eq!(text.parse(), Ok(Address::Tcp(text.into())));
        }
        #[cfg(unix)]
        assert_eq!(
            "unix:/run/a.sock".parse(),
            Ok(Address::Unix("/run/a.sock".into()))
        );
        for text in [
            "",
            "localhost",
            ":50051",
            "unix:",
            "host:0",
            "host:65536",
            "http://host:80",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
