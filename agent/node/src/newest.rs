//! A bounded number of tasks, of which the newest stay.
//!
//! For what strangers can start. Whoever idles gives way to who comes next, so no number of idlers locks others out.

use std::collections::VecDeque;
use std::future::Future;

use tokio::task::{AbortHandle, JoinSet};

/// Tasks, oldest first. Dropping it ends them.
#[derive(Debug)]
pub struct Newest {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
    limit: usize,
}

impl Newest {
    /// Room for `limit` tasks.
    pub fn new(limit: usize) -> Self {
        Self {
            tasks: JoinSet::new(),
            order: VecDeque::new(),
            limit,
        }
    }

    /// Starts a task; without room, the oldest ends for it.
    pub fn start(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|task| !task.is_finished());
        if self.order.len() >= self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        self.order.push_back(self.tasks.spawn(task));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Starts a task that ends when it is told to; the receiver fails once the task is gone.
    fn start(tasks: &mut Newest) -> (oneshot::Sender<()>, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let (alive, gone) = oneshot::channel();
        tasks.start(async move {
            let _alive = alive;
            let _ = ended.await;
        });
        (end, gone)
    }

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let mut tasks = Newest::new(2);
        let (_first_end, first) = start(&mut tasks);
        let (second_end, mut second) = start(&mut tasks);
        let (_third_end, mut third) = start(&mut tasks);

        assert!(first.await.is_err());
        assert!(second.try_recv() == Err(oneshot::error::TryRecvError::Empty));

        // Who has ended takes no room.
        drop(second_end);
        assert!(second.await.is_err());
        while tasks.order.iter().filter(|t| !t.is_finished()).count() > 1 {
            tokio::task::yield_now().await;
        }
        let (_fourth_end, mut fourth) = start(&mut tasks);
        tokio::task::yield_now().await;
        for stays in [&mut third, &mut fourth] {
            assert_eq!(stays.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
    }
}
