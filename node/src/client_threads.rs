//! Threads that work on clients' requests: those of connections to the API, and those that other nodes hand over.
//!
//! What clients send must not hold up what the node's actors, its log and its links do: on one runtime each of their
//! tasks waits behind all tasks of clients that are ready, and clients decide how many these are (decision 30).

use std::future;

use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

/// Runs tasks for clients.
#[derive(Debug, Clone)]
pub enum ClientThreads {
    /// On the caller's runtime: in a simulation there is one thread for everything.
    Shared,
    /// On a runtime of their own.
    Own(Handle),
}

impl ClientThreads {
    /// Starts a task, which goes on when its handle is dropped.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        match self {
            Self::Shared => tokio::spawn(task),
            Self::Own(runtime) => runtime.spawn(task),
        }
    }

    /// Runs a task to its end. Dropping the future that this returns has the task ended soon, by its own threads.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let runtime = match self {
            Self::Shared => return task.await,
            Self::Own(runtime) => runtime,
        };
        // A set ends its tasks when it is dropped.
        let mut one = JoinSet::new();
        one.spawn_on(task, runtime);
        let ended =
            one.join_next().await.map(|ended| ended.map_err(|error| error.try_into_panic()));
        match ended {
            Some(Ok(done)) => done,
            Some(Err(Ok(panic))) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it the process: nobody will poll this again.
            Some(Err(Err(_))) | None => future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    use super::*;

    fn name() -> Option<String> {
        thread::current().name().map(str::to_owned)
    }

    #[test]
    fn tasks_run_on_threads_of_their_own_and_end_with_their_caller() {
        let own = Builder::new_multi_thread().worker_threads(1).thread_name("own").build().unwrap();
        let threads = ClientThreads::Own(own.handle().clone());
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(async {
            assert_eq!(threads.run(async { name() }).await.as_deref(), Some("own"));
            assert_eq!(threads.spawn(async { name() }).await.unwrap().as_deref(), Some("own"));
            let here = name();
            assert_eq!(ClientThreads::Shared.run(async { name() }).await, here);

            let (held, dropped) = oneshot::channel::<()>();
            let waiting = threads.run(async move {
                let _held = held;
                future::pending::<()>().await;
            });
            tokio::select! {
                biased;
                () = waiting => unreachable!("nothing ends it"),
                () = future::ready(()) => {}
            }
            assert!(dropped.await.is_err(), "what the task held is dropped with it");
        });
    }

    #[test]
    #[should_panic(expected = "in the task")]
    fn a_panic_goes_on_in_the_caller() {
        let own = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let threads = ClientThreads::Own(own.handle().clone());
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(threads.run(async { panic!("in the task") }))
    }
}
