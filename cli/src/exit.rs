//! How the process ends, and what it says on the way.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use tcptracer_client::error::{Error as AgentError, ErrorKind, Suspicion};
use tcptracer_event::printable;

/// Exit codes; documented in the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Everything that was asked for was shown.
    Complete,
    /// It could not be done, or no agent was heard.
    Failed,
    /// What was asked for makes no sense; so say the command line or all agents.
    Usage,
    /// It was done, but something was lost or a node was not heard.
    Incomplete,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(match code {
            Code::Complete => 0,
            Code::Failed => 1,
            Code::Usage => 2,
            Code::Incomplete => 3,
        })
    }
}

/// Something that the user has asked for and cannot have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What an error comes to. That nobody reads the output any more is no failure.
pub fn code_of(error: &anyhow::Error) -> Code {
    let broken_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if is_usage(error) {
        Code::Usage
    } else if error.downcast_ref().is_some_and(broken_pipe) {
        Code::Complete
    } else {
        Code::Failed
    }
}

/// Whether the user has asked for what they cannot have. What an agent finds invalid is what the user has asked for.
pub fn is_usage(error: &anyhow::Error) -> bool {
    let of_agent = error.downcast_ref::<AgentError>();
    error.is::<Usage>() || of_agent.is_some_and(|e| e.kind() == ErrorKind::Invalid)
}

/// An error and its causes, on one line. An error that ends with what its cause says has said it.
pub fn explained(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(said) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// What one error says, and the flags that may help.
fn said(error: &(dyn Error + 'static)) -> String {
    let flags = match error.downcast_ref() {
        Some(AgentError::TimedOut(_)) => "--request-timeout",
        Some(AgentError::HungUp { suspicion, .. }) => match suspicion {
            Suspicion::SpeaksTls => "--tls-ca",
            Suspicion::WantsCertificate => "--tls-cert, --tls-key",
            Suspicion::RejectsCertificate => "--tls-cert",
        },
        _ => return error.to_string(),
    };
    format!("{error} ({flags})")
}

/// One line to stderr, made printable. That nobody reads it must not end the program.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "kubectl tcptracer: {}", printable(line));
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_a_cause_says_is_said_once() {
        let io = || io::Error::new(io::ErrorKind::NotFound, "no file");
        let error = anyhow::Error::new(io()).context("cannot read x: no file");
        assert_eq!(
            explained(&error.context("it failed")),
            "it failed: cannot read x: no file"
        );
        let error = anyhow::Error::new(io()).context("cannot read x");
        assert_eq!(explained(&error), "cannot read x: no file");
    }

    #[test]
    fn errors_have_their_codes() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        for (error, code) in [
            (anyhow::Error::new(Usage("x".into())), Code::Usage),
            (anyhow::anyhow!("x"), Code::Failed),
            (pipe().into(), Code::Complete),
            (
                Err::<(), _>(Usage("x".into()))
                    .context("y")
                    .expect_err("an error"),
                Code::Usage,
            ),
            (io::Error::other("x").into(), Code::Failed),
        ] {
            assert_eq!(code_of(&error), code, "{error:#}");
        }
    }
}
