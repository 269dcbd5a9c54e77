//! Addresses, descriptors, TLS: what happens before a request is sent.

use std::io;
use std::net::SocketAddr;

use super::*;

#[tokio::test]
async fn calls_of_one_tenant_leave_room_for_another() {
    let budget =
        DescriptorBudget { step_calls: 3, tenant_step_calls: 2, ..DescriptorBudget::default() };
    let client =
        Arc::new(HttpSteps::new(Arc::new(RealTcp), Arc::new(TODAY), false, &budget).unwrap());
    let silent = RealTcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (client, request) = (Arc::clone(&client), get(url.clone()));
        calls.spawn(async move { client.call(request).await });
    }
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(silent.accept().await.unwrap());
    }
    let server = Server::plain(&[&[OK]]).await;
    let request = HttpRequest { tenant: tenant(2), ..get(server.url("/")) };
    let answer = tokio::time::timeout(PATIENCE, client.call(request)).await;
    assert_eq!(answer.unwrap().unwrap().status, 200);
    // Its third call would have connected long before the other tenant was answered.
    let third = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await;
    assert!(third.is_err(), "a third call of the tenant is under way");
    drop(open.pop());
    let next = tokio::time::timeout(PATIENCE, silent.accept()).await;
    assert!(next.is_ok(), "a call that has ended makes room");
}

/// A network in which the first attempts to connect find no descriptor.
#[derive(Debug)]
struct Short(Mutex<u32>);

impl Tcp for Short {
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
        RealTcp.bind(addr)
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        RealTcp.resolve(host, port)
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        let mut left = self.0.lock();
        if *left == 0 {
            return RealTcp.connect(addr);
        }
        *left -= 1;
        // Too many open files.
        let error = io::Error::from_raw_os_error(if *left == 0 { 23 } else { 24 });
        Box::pin(async move { Err(error) })
    }
}

#[tokio::test]
async fn a_lack_of_descriptors_is_waited_for() {
    let tcp = Arc::new(Short(Mutex::new(3)));
    let budget = DescriptorBudget::default();
    let client = HttpSteps::new(tcp, Arc::new(TODAY), false, &budget).unwrap();
    let server = Server::plain(&[&[OK]]).await;
    assert_eq!(client.call(get(server.url("/"))).await.unwrap().status, 200);
}

#[tokio::test]
async fn failures_of_the_network_name_the_host_only() {
    // A port that is taken, and where nobody listens.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let reason = failed(client().call(get(format!("http://127.0.0.1:{port}/sesame"))).await);
    assert!(reason.starts_with(&format!("127.0.0.1:{port}: cannot connect")), "{reason}");
    assert!(!reason.contains("sesame"));

    let server = Server::plain(&[&["SSH-2.0-OpenSSH\r\n"]]).await;
    failed(client().call(get(server.url("/"))).await);
    unsendable(client().call(get("gopher://x/")).await);
}

/// A network where `public.example` has one public address, `both.example` a private one as well,
/// and every public address leads to this machine.
#[derive(Debug, Default)]
struct Detour(RealTcp);

const PUBLIC: [u8; 4] = [93, 184, 216, 34];
const PRIVATE: [u8; 4] = [10, 0, 0, 1];

impl Tcp for Detour {
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
        self.0.bind(addr)
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        match host {
            "public.example" => Box::pin(async move { Ok(vec![(PUBLIC, port).into()]) }),
            "both.example" => {
                Box::pin(async move { Ok(vec![(PRIVATE, port).into(), (PUBLIC, port).into()]) })
            }
            _ => self.0.resolve(host, port),
        }
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        assert_eq!(addr.ip(), std::net::IpAddr::from(PUBLIC), "a private address was dialled");
        self.0.connect(([127, 0, 0, 1], addr.port()).into())
    }
}

#[tokio::test]
async fn private_targets_are_denied_by_the_address_that_is_dialled() {
    let client = denying(Detour::default());
    for url in ["http://127.0.0.1:1/", "http://[::ffff:127.0.0.1]:1/", "http://[::1]:1/"] {
        let reason = unsendable(client.call(get(url)).await);
        assert!(reason.contains("--deny-private-targets"), "{reason}");
    }

    let inward = "HTTP/1.1 302 Found\r\nLocation: //127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let server = Server::plain(&[&[OK, inward], &[OK]]).await;
    let public = || get(format!("http://public.example:{}/", server.port));
    assert_eq!(client.call(public()).await.unwrap().status, 200);
    let reason = unsendable(client.call(public()).await);
    assert!(reason.contains("loopback"), "{reason}");
    let both = get(format!("http://both.example:{}/", server.port));
    assert_eq!(client.call(both).await.unwrap().status, 200);
}

#[tokio::test]
async fn https_checks_the_certificate_against_authority_name_and_clock() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from(&include_bytes!("../testdata/leaf.der")[..]);
    let key = PrivatePkcs8KeyDer::from(&include_bytes!("../testdata/leaf.key.der")[..]);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let answers = || vec![OK.to_owned(), OK.to_owned()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let server = Server::start(vec![answers(), answers(), answers()], Some(tls)).await;
    let url = format!("https://127.0.0.1:{}/", server.port);

    let trusting = |clock: At| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(&include_bytes!("../testdata/ca.der")[..])).unwrap();
        HttpSteps::with_roots(
            Arc::new(RealTcp),
            Arc::new(clock),
            false,
            &DescriptorBudget::default(),
            roots,
        )
        .unwrap()
    };
    let reason = failed(trusting(At(Timestamp(7_258_118_400_000))).call(get(url.clone())).await);
    assert!(reason.contains("TLS") && reason.contains("expired"), "{reason}");
    let reason = failed(client().call(get(url.clone())).await);
    assert!(reason.contains("UnknownIssuer"), "{reason}");

    let client = trusting(TODAY);
    for _ in 0..2 {
        assert_eq!(client.call(get(url.clone())).await.unwrap().body, b"hi");
    }
    assert_eq!(server.heard().len(), 2);
    server.script.await.unwrap();
}
