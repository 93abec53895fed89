//! Why an agent does not do what it is asked.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::iter::successors;
use std::path::PathBuf;
use std::time::Duration;

use tcptracer_event::printable;
use tonic::{Code, Status};

/// Why an agent does not do what it is asked. What it says itself is made printable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is asked for makes no sense: so says the agent, or who looks for the way to it.
    #[error("{0}")]
    Invalid(String),
    /// Any other answer that is none; or, if it has a source, the connection has failed before there was one.
    #[error("{}", said(.0))]
    Status(Box<Status>),
    /// What answers does not know the call.
    #[error("what answers is no agent that this program knows")]
    NoAgent(#[source] Box<Self>),
    /// There is no connection.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// The certificates, or their key, cannot be used.
    #[error("cannot use the certificates")]
    Certificates(#[source] tonic::transport::Error),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that should have a certificate has none.
    #[error("{} has no certificate (PEM)", .0.display())]
    NoCertificate(PathBuf),
    /// Of a [`Way`](crate::dial::Way) that is not this crate's.
    #[error(transparent)]
    Way(Box<dyn StdError + Send + Sync>),
    /// It takes too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection has ended without an answer.
    #[error("{suspicion}")]
    HungUp {
        /// What may be the matter.
        suspicion: Suspicion,
        /// How it has ended.
        source: Box<Self>,
    },
    /// The tunnel to the agent broke.
    #[error("{why}")]
    Tunnel {
        /// So says the tunnel.
        why: String,
        /// What came of it.
        source: Option<Box<Self>>,
    },
    /// A stream is over that nobody has ended.
    #[error("the agent has ended the stream")]
    Ended,
}

/// What may be the matter with an agent that hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It speaks TLS, and is not spoken to like that.
    SpeaksTls,
    /// It wants a certificate, and is shown none.
    WantsCertificate,
    /// It does not accept the certificate that it is shown.
    RejectsCertificate,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SpeaksTls => "it may use TLS",
            Self::WantsCertificate => "it may want a certificate",
            Self::RejectsCertificate => "it may not accept the certificate",
        })
    }
}

/// Of what use it is to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Of none, whichever agent is asked: what is asked for makes no sense.
    Invalid,
    /// Of none, unless another agent is asked.
    Refused,
    /// It may go well the next time.
    Broken,
}

impl Error {
    /// Of what use it is to ask again.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::NoAgent(_) => ErrorKind::Refused,
            Self::Status(status) => match status.code() {
                Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied => {
                    ErrorKind::Refused
                }
                _ => ErrorKind::Broken,
            },
            Self::HungUp { source, .. }
            | Self::Tunnel {
                source: Some(source),
                ..
            } => source.kind(),
            _ => ErrorKind::Broken,
        }
    }

    /// Of the answer, if there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::HungUp { source, .. } => source.code(),
            Self::Tunnel { source, .. } => source.as_ref()?.code(),
            _ => None,
        }
    }

    /// Whether a connection has ended without an answer. A server that misses TLS, or a certificate, may or may not get
    /// round to saying why.
    pub fn has_hung_up(&self) -> bool {
        if let Self::Status(status) = self {
            return status.source().is_some();
        }
        successors(Some(self as &dyn StdError), |&e| e.source()).any(|cause| {
            let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            matches!(
                kind,
                Some(
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::UnexpectedEof
                )
            )
        })
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::InvalidArgument => Self::Invalid(printable(status.message()).into_owned()),
            _ => Self::Status(Box::new(status)),
        }
    }
}

fn said(status: &Status) -> String {
    let message = printable(status.message()).into_owned();
    // The first cause of a status that was not answered but comes of what happened here.
    let root = successors(status.source(), |&e| e.source()).last();
    let root = root.map(|root| printable(root.to_string()).into_owned());
    match (message.as_str(), root) {
        ("", None) => status.code().description().into(),
        (_, None) => message,
        // Nothing was answered: the connection has failed.
        (_, Some(root)) if message.ends_with(&root) => message,
        (_, Some(root)) => format!("{message}: {root}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_of_what_use_it_is_to_ask_again() {
        for (code, kind) in [
            (Code::InvalidArgument, ErrorKind::Invalid),
            (Code::Unimplemented, ErrorKind::Refused),
            (Code::Unauthenticated, ErrorKind::Refused),
            (Code::PermissionDenied, ErrorKind::Refused),
            (Code::Unavailable, ErrorKind::Broken),
        ] {
            let error = Error::from(Status::new(code, "no\x1b"));
            assert_eq!((error.kind(), error.to_string()), (kind, "no?".into()));
            let tunnel = Error::Tunnel {
                why: "it is gone".into(),
                source: Some(Box::new(Status::new(code, "no").into())),
            };
            assert_eq!(tunnel.kind(), kind);
        }
        let silent = Error::from(Status::new(Code::NotFound, ""));
        assert_eq!(silent.to_string(), Code::NotFound.description());
    }

    #[test]
    fn who_hangs_up_has_not_answered() {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let broken = Status::from_error(Box::new(reset()));
        let said = broken.message().to_string();
        let broken = Error::from(broken);
        assert!(broken.has_hung_up());
        assert_eq!(broken.to_string(), said);
        let below = Error::File {
            path: PathBuf::new(),
            source: reset(),
        };
        assert!(below.has_hung_up());
        assert!(!Error::from(Status::unavailable("no")).has_hung_up());
        assert!(!Error::Ended.has_hung_up());
    }
}
