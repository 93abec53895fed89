//! How long anything may take.

use std::future::Future;
use std::time::Duration;

/// Nothing that is waited for takes this long unless it is broken, however busy the machine is.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Fails the test if it takes too long.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}
