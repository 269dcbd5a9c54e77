//! Name lookups: bounded, and shared out so that one asker's slow name servers delay nobody else.
//!
//! - A lookup cannot be interrupted: the system resolves by blocking a thread. A caller that gives
//!   up is free at once; the lookup keeps its permit until the system answers.
//! - A caller that asks for a name which is being looked up for the same asker waits for that
//!   answer, so that repeated attempts do not pile up threads.
//! - Each tenant has a share of the lookups. Names of members are outside the bound: there are as
//!   many as members, and each is looked up once at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::seams::Tcp;
use tokio::sync::watch;

use super::shares::{Permit, TenantShares};

/// One tenant's share of all lookups: one in so many.
const TENANT_DIVISOR: usize = 4;

/// Names the party that a lookup is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    /// This node: names of members.
    Node,
    /// A tenant's step.
    Tenant(TenantId),
}

type Key = (Asker, String);
/// The result of a lookup; `None` while the system has not answered.
type Outcome = Option<Result<Vec<IpAddr>, Arc<io::Error>>>;

/// Looks names up; cheap to clone.
#[derive(Clone)]
pub(crate) struct Lookups(Arc<Inner>);

struct Inner {
    tcp: Arc<dyn Tcp>,
    shares: TenantShares,
    in_flight: Mutex<BTreeMap<Key, watch::Sender<Outcome>>>,
}

impl Lookups {
    /// Allows at most `lookups_max` lookups for tenants at a time.
    pub(crate) fn new(tcp: Arc<dyn Tcp>, lookups_max: usize) -> Self {
        let tenant_max = (lookups_max / TENANT_DIVISOR).max(1);
        let shares = TenantShares::new(lookups_max, tenant_max);
        Self(Arc::new(Inner { tcp, shares, in_flight: Mutex::default() }))
    }

    /// Makes lookups for [`Asker::Node`] only.
    pub(crate) fn of_node(tcp: Arc<dyn Tcp>) -> Self {
        Self::new(tcp, 1)
    }

    /// Resolves a host name, or an address written as text, to addresses with `port`.
    ///
    /// # Errors
    /// When the system knows no address.
    pub(crate) async fn resolve(
        &self,
        asker: Asker,
        host: &str,
        port: u16,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let mut outcome = self.join((asker, host.to_owned()));
        let outcome = outcome.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        match outcome {
            Some(Ok(found)) => Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            None => Err(io::ErrorKind::Other.into()),
        }
    }

    /// Joins the lookup of this name that is in flight, or starts one.
    fn join(&self, key: Key) -> watch::Receiver<Outcome> {
        let mut in_flight = self.0.in_flight.lock();
        if let Some(known) = in_flight.get(&key) {
            return known.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        in_flight.insert(key.clone(), sender.clone());
        tokio::spawn(Arc::clone(&self.0).look_up(key, sender));
        receiver
    }
}

impl Inner {
    async fn look_up(self: Arc<Self>, key: Key, sender: watch::Sender<Outcome>) {
        let _permit = match key.0 {
            Asker::Node => None,
            Asker::Tenant(tenant) => match self.permit(tenant, &key, &sender).await {
                Some(permit) => Some(permit),
                None => return,
            },
        };
        let found = self.tcp.resolve(&key.1, 0).await;
        let found = found.map(|found| found.iter().map(SocketAddr::ip).collect());
        // Removed before the outcome is published: a caller that comes in between starts a lookup
        // of its own instead of taking an answer that is already old.
        self.in_flight.lock().remove(&key);
        sender.send_replace(Some(found.map_err(Arc::new)));
    }

    /// Waits for the tenant's permit; `None` once no caller waits for the answer any more.
    async fn permit(
        &self,
        tenant: TenantId,
        key: &Key,
        sender: &watch::Sender<Outcome>,
    ) -> Option<Permit> {
        let mut permit = pin!(self.shares.acquire(tenant));
        loop {
            // Either may be first: a lookup that nobody waits for any more is made in vain, once.
            tokio::select! {
                permit = &mut permit => return Some(permit),
                () = sender.closed() => {
                    let mut in_flight = self.in_flight.lock();
                    // A caller may have joined since the last one left. `join` subscribes under
                    // this lock, so that the count cannot change between the test and the removal.
                    if sender.receiver_count() == 0 {
                        in_flight.remove(key);
                        return None;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("in_flight", &self.0.in_flight.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use shiioo_actors::ports::BoxFuture;
    use shiioo_actors::ports::seams::{ByteStream, TcpListen};
    use tokio::sync::Semaphore;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::testing::tenant;

    /// A resolver that does not answer for names that begin with `slow` until it is let.
    #[derive(Debug)]
    struct Resolver {
        answers: Semaphore,
        asked: Mutex<Vec<String>>,
    }

    impl Resolver {
        fn new() -> Arc<Self> {
            Arc::new(Self { answers: Semaphore::new(0), asked: Mutex::default() })
        }

        fn asked(&self) -> usize {
            self.asked.lock().len()
        }
    }

    impl Tcp for Resolver {
        fn bind(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
            Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
        }

        fn resolve<'a>(
            &'a self,
            host: &'a str,
            port: u16,
        ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
            Box::pin(async move {
                self.asked.lock().push(host.to_owned());
                if host.starts_with("slow") {
                    self.answers.acquire().await.unwrap().forget();
                }
                Ok(vec![([127, 0, 0, 9], port).into()])
            })
        }

        fn connect(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
            Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
        }
    }

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn slow_names_of_one_tenant_delay_neither_another_nor_members() {
        let resolver = Resolver::new();
        let lookups = Lookups::new(resolver.clone(), 32);
        let of_bad = |number: u32| {
            let lookups = lookups.clone();
            async move {
                let host = format!("slow-{number}.example");
                timeout(PATIENCE, lookups.resolve(Asker::Tenant(tenant(1)), &host, 80)).await
            }
        };
        let slow: Vec<_> = (0..96).map(|number| tokio::spawn(of_bad(number))).collect();
        sleep(PATIENCE / 2).await;
        assert_eq!(resolver.asked(), 32 / TENANT_DIVISOR);
        for asker in [Asker::Tenant(tenant(2)), Asker::Node] {
            let found = timeout(PATIENCE / 10, lookups.resolve(asker, "fast.example", 81)).await;
            assert_eq!(found.unwrap().unwrap(), [([127, 0, 0, 9], 81).into()]);
        }
        for caller in slow {
            assert!(caller.await.unwrap().is_err(), "callers that give up are free");
        }
        sleep(PATIENCE).await;
        let begun = 32 / TENANT_DIVISOR;
        assert_eq!(
            lookups.0.in_flight.lock().len(),
            begun,
            "lookups that nobody waits for have left the queue"
        );
        resolver.answers.add_permits(begun);
        sleep(PATIENCE).await;
        assert!(lookups.0.in_flight.lock().is_empty());
        resolver.answers.add_permits(1);
        assert!(of_bad(200).await.unwrap().is_ok(), "permits come back");
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_at_one_name_share_its_lookup() {
        let resolver = Resolver::new();
        let lookups = Lookups::new(resolver.clone(), 4);
        for _ in 0..20 {
            let attempt = lookups.resolve(Asker::Node, "slow.example", 7400);
            assert!(timeout(PATIENCE, attempt).await.is_err());
        }
        assert_eq!(resolver.asked(), 1);
        resolver.answers.add_permits(1);
        let found = lookups.resolve(Asker::Node, "slow.example", 7400).await.unwrap();
        assert_eq!(found, [([127, 0, 0, 9], 7400).into()]);
        let asked: BTreeSet<_> = resolver.asked.lock().iter().cloned().collect();
        assert_eq!((asked.len(), resolver.asked()), (1, 1));
    }

    #[tokio::test]
    async fn addresses_are_not_looked_up() {
        let resolver = Resolver::new();
        let lookups = Lookups::new(resolver.clone(), 1);
        let found = lookups.resolve(Asker::Node, "::1", 5).await.unwrap();
        assert_eq!((found, resolver.asked()), (vec!["[::1]:5".parse().unwrap()], 0));
    }
}
