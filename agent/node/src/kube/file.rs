//! Pods from a file.

use std::convert::Infallible;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Notify;

use super::source::{Gone, Update, UpdateSender, parse};

/// Between two looks whether the file has changed.
const INTERVAL: Duration = Duration::from_millis(200);

/// What tells one content from another: device and inode, size, and time of change.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(file: &Metadata) -> Stamp {
    (
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
    )
}

pub(super) async fn run(
    path: &Path,
    wanted: &Notify,
    mut updates: UpdateSender,
) -> Result<Infallible, Gone> {
    let mut read: Option<Stamp> = None;
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = wanted.notified() => {}
        }
        // To have another thread look, and to wait for it, would take ten times as long.
        let changed = std::fs::metadata(path).map(|found| stamp(&found));
        if changed.as_ref().ok() == read.as_ref() && read.is_some() {
            continue;
        }
        let pods = match changed {
            Ok(stamp) => {
                read = Some(stamp);
                load(path).await
            }
            Err(e) => {
                read = None;
                Err(e.into())
            }
        };
        let shown = || format!("cannot read the pods from {}", path.display());
        match pods.with_context(shown) {
            Ok(pods) => {
                updates.works().await?;
                updates.send(Update::Replaced(pods)).await?;
            }
            Err(e) => updates.failed(&e).await?,
        }
    }
}

async fn load(path: &Path) -> Result<Vec<std::sync::Arc<super::Pod>>> {
    parse(&tokio::fs::read(path).await?)
}
