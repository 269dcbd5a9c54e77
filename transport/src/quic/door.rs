//! The door: who is let in as far as a handshake, and what becomes of it after that.
//!
//! - Handshakes under way are counted. The first few are begun for anybody; above that only for
//!   addresses that have proven to be real, which costs us no memory; above the bound for nobody.
//! - One real address, or one IPv6 network, has a share of them only. Some are kept for addresses of
//!   members: whoever knocks and stalls does not keep members from coming back.
//! - Strangers who say nothing make room for others.
//! - After the handshake a connection is a member's, a stranger's, or closed: there is no fourth.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, Incoming, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::members::turn_away;
use super::refusals::Refusals;
use super::serve::{self, Services};
use super::strangers::{Entry, Strangers, party};
use crate::tls::{self, Protocol};

/// Handshakes under way before addresses have to prove that they are real.
pub(super) const UNPROVEN_HANDSHAKES_MAX: usize = 32;
/// Handshakes under way at most.
const HANDSHAKES_MAX: usize = 256;
/// Handshakes of these that are kept for addresses of members.
const MEMBERS_HANDSHAKES: usize = 64;
/// Handshakes under way of one address that has proven to be real.
const ADDRESS_HANDSHAKES_MAX: usize = 64;
/// Longest time a handshake takes, ms.
const HANDSHAKE_MS_MAX: u64 = 2_000;
/// Connections of strangers at a time.
pub(super) const STRANGERS_MAX: usize = 64;
/// Requests of strangers that are served at a time.
const JOINS_MAX: usize = 4;
/// Code of a connection that is refused after its handshake.
const REFUSED: VarInt = VarInt::from_u32(4);

/// The state of the door.
#[derive(Debug)]
struct Door {
    handshakes: Mutex<Handshakes>,
    refusals: Mutex<Refusals>,
    strangers: Mutex<Strangers<Connection>>,
    joins: Arc<Semaphore>,
}

/// Handshakes under way, by address.
#[derive(Debug, Default)]
struct Handshakes {
    total: usize,
    /// Those of them from addresses of members.
    of_members: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// What to do with a knock.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Begin,
    /// The address has to prove that it is real and to come again.
    Prove,
    Refuse,
}

/// Keeps the door until the endpoint is closed.
pub(super) async fn keep(shared: Arc<Shared>, services: Services) {
    let door = Arc::new(Door {
        handshakes: Mutex::default(),
        refusals: Mutex::default(),
        strangers: Mutex::new(Strangers::new(STRANGERS_MAX)),
        joins: Arc::new(Semaphore::new(JOINS_MAX)),
    });
    while let Some(incoming) = shared.endpoint.accept().await {
        let address = incoming.remote_address().ip();
        let proven = incoming.remote_address_validated();
        let is_member = shared.members.is_home(address);
        let verdict = lock(&door.handshakes).judge(address, proven, is_member);
        match verdict {
            Verdict::Begin => {
                let (shared, services) = (Arc::clone(&shared), services.clone());
                let turn = Turn::new(&door, address, is_member);
                tokio::spawn(receive(shared, services, incoming, turn));
            }
            // Fails for an address that is proven, which is not asked to prove itself.
            Verdict::Prove => drop(incoming.retry()),
            Verdict::Refuse => {
                incoming.refuse();
                door.log(address, "too many handshakes are under way");
            }
        }
    }
}

/// Begins a handshake, and hands over the connection that comes of it.
async fn receive(shared: Arc<Shared>, services: Services, incoming: Incoming, turn: Turn) {
    let (door, address) = (Arc::clone(&turn.door), turn.address);
    let handshake = timeout(Duration::from_millis(HANDSHAKE_MS_MAX), incoming);
    let connection = match handshake.await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return door.log(address, &error.to_string()),
        Err(_) => return door.log(address, "the handshake took too long"),
    };
    drop(turn);
    match tls::protocol(&connection) {
        Some(Protocol::Peer) => member(&shared, services, &door, connection).await,
        Some(Protocol::Join) => stranger(services, &door, connection).await,
        None => door.refuse(&connection, "no protocol was agreed"),
    }
}

async fn member(shared: &Shared, services: Services, door: &Door, connection: Connection) {
    let Some(name) = tls::peer_name(&connection) else {
        return door.refuse(&connection, "no certificate of a member was shown");
    };
    let known = name.cluster == shared.name.cluster && shared.members.take(&name, &connection);
    if !known {
        door.log(connection.remote_address().ip(), &format!("{name} is not a member"));
        return turn_away(&connection);
    }
    serve::member(name.raft_id, &connection, services.peers).await;
    shared.members.forget(&name, &connection);
}

async fn stranger(services: Services, door: &Door, connection: Connection) {
    let address = connection.remote_address().ip();
    let entry = lock(&door.strangers).enter(address, connection.clone());
    let Entry::Admitted { number, asks, instead_of } = entry else {
        return door.refuse(&connection, "too many strangers are here");
    };
    if let Some(idle) = instead_of {
        door.refuse(&idle, "it asked for nothing, and another came");
    }
    serve::stranger(&connection, services.join, &door.joins, &asks).await;
    lock(&door.strangers).leave(number);
    connection.close(VarInt::from_u32(0), b"");
}

impl Door {
    fn refuse(&self, connection: &Connection, why: &str) {
        connection.close(REFUSED, why.as_bytes());
        self.log(connection.remote_address().ip(), why);
    }

    fn log(&self, address: IpAddr, why: &str) {
        if lock(&self.refusals).worth_logging(address, Instant::now()) {
            tracing::warn!(%address, why, "a connection was refused");
        }
    }
}

impl Handshakes {
    fn judge(&self, address: IpAddr, proven: bool, is_member: bool) -> Verdict {
        let of_address = self.by_address.get(&party(address)).copied().unwrap_or(0);
        let of_others = self.total - self.of_members;
        match proven {
            false if self.total < UNPROVEN_HANDSHAKES_MAX => Verdict::Begin,
            false => Verdict::Prove,
            true if self.total >= HANDSHAKES_MAX => Verdict::Refuse,
            true if of_address >= ADDRESS_HANDSHAKES_MAX => Verdict::Refuse,
            true if !is_member && of_others >= HANDSHAKES_MAX - MEMBERS_HANDSHAKES => {
                Verdict::Refuse
            }
            true => Verdict::Begin,
        }
    }
}

/// A handshake's place among those under way.
struct Turn {
    door: Arc<Door>,
    address: IpAddr,
    is_member: bool,
}

impl Turn {
    fn new(door: &Arc<Door>, address: IpAddr, is_member: bool) -> Self {
        let mut handshakes = lock(&door.handshakes);
        handshakes.total += 1;
        handshakes.of_members += usize::from(is_member);
        *handshakes.by_address.entry(party(address)).or_default() += 1;
        drop(handshakes);
        Self { door: Arc::clone(door), address, is_member }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut handshakes = lock(&self.door.handshakes);
        handshakes.total -= 1;
        handshakes.of_members -= usize::from(self.is_member);
        let party = party(self.address);
        if let Some(count) = handshakes.by_address.get_mut(&party) {
            *count -= 1;
            if *count == 0 {
                handshakes.by_address.remove(&party);
            }
        }
    }
}

/// Nothing that panics happens under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_flood_of_handshakes_leaves_room_for_real_addresses() {
        let address = |number| IpAddr::V4(Ipv4Addr::from_bits(number));
        let mut handshakes = Handshakes::default();
        assert_eq!(handshakes.judge(address(1), false, false), Verdict::Begin);
        handshakes.total = UNPROVEN_HANDSHAKES_MAX;
        assert_eq!(handshakes.judge(address(1), false, false), Verdict::Prove);
        assert_eq!(handshakes.judge(address(1), true, false), Verdict::Begin);
        handshakes.by_address.insert(address(1), ADDRESS_HANDSHAKES_MAX);
        assert_eq!(handshakes.judge(address(1), true, false), Verdict::Refuse);
        assert_eq!(handshakes.judge(address(2), true, false), Verdict::Begin);
        handshakes.total = HANDSHAKES_MAX;
        assert_eq!(handshakes.judge(address(2), true, true), Verdict::Refuse);
        assert_eq!(handshakes.judge(address(2), false, true), Verdict::Prove, "it costs no memory");
    }

    #[test]
    fn strangers_leave_handshakes_to_members() {
        let address = |number| IpAddr::V4(Ipv4Addr::from_bits(number));
        let strangers = HANDSHAKES_MAX - MEMBERS_HANDSHAKES;
        let mut handshakes = Handshakes { total: strangers, ..Handshakes::default() };
        assert_eq!(handshakes.judge(address(1), true, false), Verdict::Refuse);
        assert_eq!(handshakes.judge(address(2), true, true), Verdict::Begin);
        // Members' own do not take the strangers' places.
        (handshakes.total, handshakes.of_members) = (strangers + 9, 10);
        assert_eq!(handshakes.judge(address(1), true, false), Verdict::Begin);
    }

    #[test]
    fn all_of_a_network_has_one_share() {
        let mut handshakes = Handshakes::default();
        let [one, another]: [IpAddr; 2] =
            ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        handshakes.by_address.insert(party(one), ADDRESS_HANDSHAKES_MAX);
        assert_eq!(handshakes.judge(another, true, false), Verdict::Refuse);
    }
}
