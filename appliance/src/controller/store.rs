//! The metadata store, on a thread of its own: its fsync must not stall the control thread.

use std::thread::JoinHandle;
use storage::metadata::{Change, MetadataStore};
use tokio::sync::{mpsc, oneshot};

/// Transactions that may wait; each is one verb or one discovery.
const QUEUE_MAX: usize = 64;

pub use storage::metadata::Pairs;

/// What keeps the records: a file in the product, memory in tests.
pub trait Backend: Send + 'static {
    /// Everything stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn load(&mut self) -> Result<Pairs, String>;

    /// One durable transaction: all of it or nothing.
    ///
    /// # Errors
    /// When it did not become durable.
    fn commit(&mut self, changes: &[Change]) -> Result<(), String>;
}

impl Backend for MetadataStore {
    fn load(&mut self) -> Result<Pairs, String> {
        Ok(MetadataStore::load(self))
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
        MetadataStore::commit(self, changes).map_err(|error| error.to_string())
    }
}

/// The store failed; nothing of the transaction may be counted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metadata store failed: {0}")]
pub struct StoreError(pub String);

enum Request {
    Load(oneshot::Sender<Result<Pairs, String>>),
    Commit(Vec<Change>, oneshot::Sender<Result<(), String>>),
}

/// Handle to the store's thread; cheap to clone. The thread ends when the last handle is gone.
#[derive(Clone)]
pub struct Store {
    requests: mpsc::Sender<Request>,
}

impl Store {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut backend: impl Backend) -> std::io::Result<(Store, JoinHandle<()>)> {
        let (requests, mut inbox) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("metadata".to_owned()).spawn(move || {
            while let Some(request) = inbox.blocking_recv() {
                // A receiver that has gone away does not undo the transaction.
                match request {
                    Request::Load(reply) => drop(reply.send(backend.load())),
                    Request::Commit(changes, reply) => drop(reply.send(backend.commit(&changes))),
                }
            }
        })?;
        Ok((Store { requests }, thread))
    }

    /// Everything stored.
    ///
    /// # Errors
    /// When the store cannot be read or its thread has died.
    pub async fn load(&self) -> Result<Pairs, StoreError> {
        self.ask(Request::Load).await
    }

    /// One durable transaction. Nothing to change is no transaction.
    ///
    /// # Errors
    /// When it did not become durable or the thread has died.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.ask(|reply| Request::Commit(changes, reply)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Request,
    ) -> Result<T, StoreError> {
        let gone = || StoreError("its thread has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(StoreError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as gates;
    use std::time::Duration;

    /// A device whose flush takes as long as a test likes.
    struct Slow {
        begun: gates::Sender<()>,
        gate: gates::Receiver<()>,
    }

    impl Backend for Slow {
        fn load(&mut self) -> Result<Pairs, String> {
            Ok(Vec::new())
        }

        fn commit(&mut self, _: &[Change]) -> Result<(), String> {
            self.begun.send(()).expect("the test waits");
            // Who waits here on the control thread can never be let through by it.
            let opened = self.gate.recv_timeout(Duration::from_secs(5));
            opened.map_err(|_| "nobody else had a turn".to_owned())
        }
    }

    #[test]
    fn a_commit_that_takes_its_time_does_not_hold_up_the_control_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ((open, gate), (begun, has_begun)) = (gates::channel(), gates::channel());
        let (store, thread) = Store::start(Slow { begun, gate }).expect("a thread");
        let change = Change { key: "topic".to_owned(), value: None };
        let both = async {
            tokio::join!(store.commit(vec![change]), async move {
                while has_begun.try_recv().is_err() {
                    tokio::task::yield_now().await;
                }
                let _ = open.send(());
            })
        };
        let (committed, ()) = runtime.expect("a runtime").block_on(both);
        assert_eq!(committed, Ok(()));
        drop(store);
        thread.join().expect("it ends with its last handle");
    }
}
