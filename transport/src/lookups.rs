//! Name lookups: bounded, and shared out so that nobody's slow name servers delay anybody else.
//!
//! - A lookup cannot be interrupted: the system resolves by blocking a thread. Whoever gives up is
//!   free at once; the lookup keeps its place until the system answers.
//! - Who asks for a name while that is being looked up for the same asker waits for that answer,
//!   so that attempts that follow one another do not pile up threads.
//! - Tenants have a share each. Members' names have a line of their own, without a bound: there
//!   are as many as members, and the lookup of each is made once at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::seams::Tcp;
use tokio::sync::watch;

use crate::shares::{Place, Shares};

/// Lookups of one tenant under way at most: one in so many of all.
const TENANT_DIVISOR: usize = 4;

/// Whose lookup it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    /// The node's own: names of members.
    Node,
    /// A tenant's step.
    Tenant(TenantId),
}

type Name = (Asker, String);
/// What a lookup came to; `None` while it is under way.
type Told = Option<Result<Vec<IpAddr>, Arc<io::Error>>>;

/// Looks names up; cheap to clone.
#[derive(Clone)]
pub(crate) struct Lookups(Arc<Inner>);

struct Inner {
    tcp: Arc<dyn Tcp>,
    shares: Shares,
    under_way: Mutex<BTreeMap<Name, watch::Sender<Told>>>,
}

impl Lookups {
    /// At most `lookups_max` for tenants at a time.
    pub(crate) fn new(tcp: Arc<dyn Tcp>, lookups_max: usize) -> Self {
        let of_tenant = (lookups_max / TENANT_DIVISOR).max(1);
        let shares = Shares::new(lookups_max, of_tenant);
        Self(Arc::new(Inner { tcp, shares, under_way: Mutex::default() }))
    }

    /// Only for the node's own.
    pub(crate) fn of_node(tcp: Arc<dyn Tcp>) -> Self {
        Self::new(tcp, 1)
    }

    /// The addresses of a host name or of an address written as text.
    ///
    /// # Errors
    /// When the system knows none.
    pub(crate) async fn resolve(
        &self,
        asker: Asker,
        host: &str,
        port: u16,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let mut told = self.join((asker, host.to_owned()));
        let told = told.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        match told {
            Some(Ok(found)) => Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            None => Err(io::ErrorKind::Other.into()),
        }
    }

    /// Waits with those who asked for this name already, or begins.
    fn join(&self, name: Name) -> watch::Receiver<Told> {
        let mut under_way = self.0.under_way();
        if let Some(known) = under_way.get(&name) {
            return known.subscribe();
        }
        let (tell, told) = watch::channel(None);
        under_way.insert(name.clone(), tell.clone());
        tokio::spawn(Arc::clone(&self.0).look_up(name, tell));
        told
    }
}

impl Inner {
    async fn look_up(self: Arc<Self>, name: Name, tell: watch::Sender<Told>) {
        let _place = match name.0 {
            Asker::Node => None,
            Asker::Tenant(tenant) => match self.place(tenant, &name, &tell).await {
                Some(place) => Some(place),
                None => return,
            },
        };
        let found = self.tcp.resolve(&name.1, 0).await;
        let found = found.map(|found| found.iter().map(SocketAddr::ip).collect());
        self.under_way().remove(&name);
        tell.send_replace(Some(found.map_err(Arc::new)));
    }

    /// Waits for the tenant's place; `None` once nobody waits for the answer any more.
    async fn place(
        &self,
        tenant: TenantId,
        name: &Name,
        tell: &watch::Sender<Told>,
    ) -> Option<Place> {
        let mut place = pin!(self.shares.place(tenant));
        loop {
            tokio::select! {
                place = &mut place => return Some(place),
                () = tell.closed() => {
                    let mut under_way = self.under_way();
                    // Somebody may have joined since: subscribing happens under this lock.
                    if tell.receiver_count() == 0 {
                        under_way.remove(name);
                        return None;
                    }
                }
            }
        }
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeMap<Name, watch::Sender<Told>>> {
        // Nothing that panics happens under the lock.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("under_way", &self.0.under_way().len()).finish()
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
            self.asked.lock().unwrap().len()
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
                self.asked.lock().unwrap().push(host.to_owned());
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
        assert_eq!(lookups.0.under_way().len(), begun, "who waited in vain has left the line");
        resolver.answers.add_permits(begun);
        sleep(PATIENCE).await;
        assert!(lookups.0.under_way().is_empty());
        resolver.answers.add_permits(1);
        assert!(of_bad(200).await.unwrap().is_ok(), "places come back");
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
        let asked: BTreeSet<_> = resolver.asked.lock().unwrap().iter().cloned().collect();
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
