//! Networks of their own, whose links can be cut one way at a time.
//!
//! Each node lives in a network namespace with one interface on a common bridge, and is called over
//! its own loopback, which nothing cuts. A link is cut by telling one side a hardware address that
//! nobody has: what it sends is lost without a word, as in a network that fails, and what it is
//! sent arrives. The namespaces have no names: the kernel removes them, and the bridge, with the
//! last process and descriptor in them, however the test ends.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::Client;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Nobody's.
const LOST: &str = "02:00:00:00:ff:ff";

/// A network namespace, which lives as long as anybody holds it.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<File>);

/// Namespaces of nodes, and the bridge between them.
pub struct Network {
    _hub: Namespace,
    nodes: Vec<Namespace>,
}

impl Namespace {
    /// A new one, without any interface but loopback.
    pub fn create() -> io::Result<Self> {
        // A thread of its own: what it unshares ends with it.
        let made = std::thread::spawn(|| {
            // SAFETY: changes nothing but the namespace of this thread.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        let made = Self(Arc::new(made.join().expect("a thread that does not panic")?));
        made.ip("link set lo up")?;
        Ok(made)
    }

    /// Has a process that is yet to be started live in it.
    pub fn enter_at_start(&self, command: &mut Command) {
        let namespace = self.clone();
        // SAFETY: setns is async-signal-safe, and the descriptor stays open with the closure.
        unsafe {
            command.pre_exec(move || namespace.enter());
        }
    }

    /// A client of a server in it, which connects from within it.
    pub fn client(&self, addr: SocketAddr) -> Client {
        let namespace = self.clone();
        let connect = move || {
            let namespace = namespace.clone();
            async move { namespace.connect(addr).await }
        };
        Client::over(addr.to_string(), connect)
    }

    async fn connect(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        let (answer, connected) = oneshot::channel();
        let namespace = self.clone();
        // A socket stays in the namespace it was made in, and so would a thread that is used again.
        std::thread::spawn(move || {
            let connect = || std::net::TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT);
            // Who does not wait any more needs no answer.
            let _ = answer.send(namespace.enter().and_then(|()| connect()));
        });
        let stream = connected.await.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        TcpStream::from_std(stream)
    }

    fn enter(&self) -> io::Result<()> {
        // SAFETY: moves the calling thread only.
        match unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Runs `ip` in it.
    fn ip(&self, args: &str) -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(args.split_whitespace()).stdin(Stdio::null());
        self.enter_at_start(&mut command);
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("ip {args}: {}", said.trim())))
    }

    /// A path that other programs find it by.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl Network {
    /// A network of so many nodes, all connected. An error says what is not permitted here.
    pub fn of(nodes: usize) -> io::Result<Self> {
        let hub = Namespace::create()?;
        hub.ip("link add br0 type bridge")?;
        hub.ip("link set br0 up")?;
        let nodes = (0..nodes).map(|_| Namespace::create()).collect::<io::Result<Vec<_>>>()?;
        let network = Self { _hub: hub.clone(), nodes };
        for (at, node) in network.nodes.iter().enumerate() {
            let (mac, path, ip) = (mac(at), node.path(), Self::ip(at));
            hub.ip(&format!("link add n{at} type veth peer name eth0 address {mac} netns {path}"))?;
            hub.ip(&format!("link set n{at} master br0 up"))?;
            node.ip(&format!("address add {ip}/24 dev eth0"))?;
            node.ip("link set eth0 up")?;
        }
        network.heal();
        Ok(network)
    }

    /// The namespace of a node.
    pub fn namespace(&self, node: usize) -> &Namespace {
        &self.nodes[node]
    }

    /// The address of a node.
    pub fn ip(node: usize) -> IpAddr {
        let last = u8::try_from(node + 1).expect("a small network");
        Ipv4Addr::new(10, 99, 0, last).into()
    }

    /// From now on what `from` sends to `to` is lost.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.neighbour(from, to, LOST);
    }

    /// From now on these two do not reach each other.
    pub fn cut(&self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// From now on nobody of `these` and anybody else reach each other.
    pub fn cut_off(&self, these: &[usize]) {
        for one in these {
            for other in (0..self.nodes.len()).filter(|other| !these.contains(other)) {
                self.cut(*one, other);
            }
        }
    }

    /// Everybody reaches everybody again.
    pub fn heal(&self) {
        for from in 0..self.nodes.len() {
            for to in (0..self.nodes.len()).filter(|to| *to != from) {
                self.neighbour(from, to, &mac(to));
            }
        }
    }

    fn neighbour(&self, from: usize, to: usize, mac: &str) {
        let ip = Self::ip(to);
        let entry = format!("neigh replace {ip} lladdr {mac} nud permanent dev eth0");
        self.nodes[from].ip(&entry).expect("change a neighbour");
    }
}

fn mac(node: usize) -> String {
    format!("02:00:00:00:00:{:02x}", node + 1)
}
