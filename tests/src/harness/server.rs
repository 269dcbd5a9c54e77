//! The real program as a child process.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Namespace, Process, binary, spawner};
use crate::Client;

/// From the start of the process to 200 on `/readyz`.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// A node that refuses to start does so at once; the rest is for a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);
/// What the manual promises for SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(10);
const OUTPUT_SHOWN_BYTES: usize = 8_000;

/// One node, run from the real binary. Dropping it kills it.
pub struct Server {
    child: Child,
    launch: Launch,
    addr: SocketAddr,
    /// Held for servers that own their folder: it goes with them.
    _owned: Option<TempDir>,
}

/// How a node is started: again and again, the same way.
#[derive(Clone)]
pub struct Launch {
    /// Its working directory; its data lies in `data` there.
    pub folder: PathBuf,
    /// Where its API listens.
    pub api_addr: SocketAddr,
    /// Where the other nodes reach it.
    pub node_addr: SocketAddr,
    /// Further arguments.
    pub args: Vec<String>,
    /// The network namespace it lives in, when it is not this process's own.
    pub namespace: Option<Namespace>,
    /// File descriptors it may have open, soft and hard limit, when not as many as this process.
    pub descriptors: Option<u64>,
}

/// How a process that was expected to end has ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// All that it printed, on both streams.
    pub output: String,
}

/// The program with arguments of the test's choice only. Dropping it kills it.
pub struct Background {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a node whose data lies in `<folder>/data` and waits until it is ready.
    pub async fn start(folder: &TempDir, extra_args: &[&str]) -> Self {
        Self::try_start(folder.path(), extra_args).await.unwrap_or_else(|exit| {
            panic!("the node did not become ready ({:?}):\n{}", exit.code, exit.output)
        })
    }

    /// Starts a node in a folder of its own, which is removed with it.
    pub async fn alone(extra_args: &[&str]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut server = Self::start(&folder, extra_args).await;
        server._owned = Some(folder);
        server
    }

    /// A node with these arguments that tests of this process share while any of them runs. It
    /// ends with the last one that holds it, for a process's statics are never dropped.
    pub async fn shared(extra_args: &[&str]) -> Arc<Self> {
        static SHARED: LazyLock<Mutex<HashMap<String, Weak<Server>>>> =
            LazyLock::new(Mutex::default);
        let mut shared = SHARED.lock().await;
        let slot = shared.entry(extra_args.join(" ")).or_default();
        if let Some(server) = slot.upgrade() {
            return server;
        }
        let server = Arc::new(Self::alone(extra_args).await);
        *slot = Arc::downgrade(&server);
        server
    }

    /// As [`Server::start`]; gives the exit of a node that ends, or is killed for taking too long.
    pub async fn try_start(folder: &Path, extra_args: &[&str]) -> Result<Self, Exit> {
        let args = extra_args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut server = Self::launch(folder, args);
        match server.await_ready().await {
            Ok(()) => Ok(server),
            Err(code) => Err(Exit { code, output: server.output() }),
        }
    }

    /// Starts the process on any free ports and does not wait for anything.
    pub fn launch(folder: &Path, args: Vec<String>) -> Self {
        Launch::anywhere(folder, args).start()
    }

    /// Where its HTTP API listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A new client of it.
    pub fn client(&self) -> Client {
        match &self.launch.namespace {
            Some(namespace) => namespace.client(self.addr),
            None => Client::new(self.addr),
        }
    }

    /// How it is started the next time.
    pub fn launch_mut(&mut self) -> &mut Launch {
        &mut self.launch
    }

    /// Where other nodes reach it.
    pub fn node_addr(&self) -> String {
        self.node_json()["node_addr"].as_str().expect("a node address").to_owned()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.launch.folder.join("data")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the system tells of its process.
    pub fn process(&self) -> Process {
        Process::new(self.pid())
    }

    /// Its resident memory.
    pub fn rss_kib(&self) -> u64 {
        self.process().rss_kib().expect("the memory of a process that runs")
    }

    /// What `<data-dir>/node.json` says.
    pub fn node_json(&self) -> Value {
        node_json(&self.data()).expect("node.json of a ready node")
    }

    /// All that it and its predecessors in this folder printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.launch.folder.join("node.log")).unwrap_or_default()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.child.kill().expect("kill the node");
        self.child.wait().expect("wait for the killed node");
    }

    /// Starts it again, which it must refuse: it ends with 1 and one line that says all of this.
    pub async fn refuses(&mut self, words: &[&str]) {
        self.relaunch();
        let exit = self.wait(REFUSED_WITHIN).await;
        let exit = exit.unwrap_or_else(|| panic!("it goes on:\n{}", self.output()));
        assert_eq!(exit.code, Some(1), "{}", exit.output);
        let line = exit.error();
        for word in words {
            assert!(line.contains(word), "no {word:?} in {line}");
        }
    }

    /// SIGTERM, and waits; panics unless it exits 0 within ten seconds.
    pub async fn term(&mut self) {
        self.signal(libc::SIGTERM);
        let exit = self.wait(STOP_TIMEOUT).await;
        assert_eq!(exit.map(|exit| exit.code), Some(Some(0)), "SIGTERM:\n{}", self.output());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: sends a signal to our own child, which has not been waited for yet.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "signal {signal} to {pid}");
    }

    /// Waits for it to end by itself; none when it does not.
    pub async fn wait(&mut self, patience: Duration) -> Option<Exit> {
        let status = ended(&mut self.child, patience).await?;
        Some(Exit { code: status.code(), output: self.output() })
    }

    /// Starts it again on the same data, with the same arguments; it must have ended.
    pub async fn restart(&mut self) {
        self.relaunch();
        if let Err(code) = self.await_ready().await {
            panic!("the node did not come back ({code:?}):\n{}", self.output());
        }
    }

    /// Starts it again without waiting for it to be ready.
    pub fn relaunch(&mut self) {
        let mut next = self.launch.clone().start();
        std::mem::swap(self, &mut next);
        self._owned = next._owned.take();
    }

    /// Waits for `node.json` and 200 on `/readyz`. An error is the code of a node that ended.
    pub async fn await_ready(&mut self) -> Result<(), Option<i32>> {
        let started = Instant::now();
        while started.elapsed() < READY_TIMEOUT {
            if let Some(status) = self.child.try_wait().expect("ask for the node") {
                return Err(status.code());
            }
            if let Some(addr) = api_addr(&self.data(), self.child.id()) {
                self.addr = addr;
                let ready = self.client().call("GET", "/readyz").try_send().await;
                if ready.is_ok_and(|reply| reply.status == 200) {
                    return Ok(());
                }
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        self.kill9();
        Err(None)
    }

    /// Whether the process runs (or is stopped), as far as is known by now.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ask for the node").is_none()
    }
}

impl Launch {
    /// On any free ports of loopback.
    pub fn anywhere(folder: &Path, args: Vec<String>) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            folder: folder.to_owned(),
            api_addr: free,
            node_addr: free,
            args,
            namespace: None,
            descriptors: None,
        }
    }

    /// Starts the process and does not wait for anything.
    pub fn start(self) -> Server {
        let data = self.folder.join("data");
        // It describes a process that is gone; its successor is not there yet.
        let _ = std::fs::remove_file(data.join("node.json"));
        let mut command = Command::new(binary::path());
        command.args(["--api-addr", &self.api_addr.to_string()]);
        command.args(["--node-addr", &self.node_addr.to_string()]);
        command.arg("--data-dir").arg(&data).args(&self.args).current_dir(&self.folder);
        isolate(&mut command);
        // What is shown of a failed test's node is its end: the consensus library would fill it.
        command.env("RUST_LOG", "info,openraft=error");
        let output = append(&self.folder.join("node.log"));
        command.stdout(output.try_clone().expect("share the log")).stderr(output);
        if let Some(namespace) = &self.namespace {
            namespace.enter_at_start(&mut command);
        }
        if let Some(descriptors) = self.descriptors {
            limit_descriptors(&mut command, descriptors);
        }
        let child = spawner::spawn(command).expect("start the node");
        let addr = self.api_addr;
        Server { child, launch: self, addr, _owned: None }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let ended = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let tail = output.len().saturating_sub(OUTPUT_SHOWN_BYTES);
            let tail = String::from_utf8_lossy(&output.as_bytes()[tail..]);
            let signal = ended.ok().and_then(|status| status.signal());
            eprintln!("--- the node in {:?} (signal {signal:?}):\n{tail}---", self.launch.folder);
        }
    }
}

impl Exit {
    /// The line that says why it ended.
    pub fn error(&self) -> &str {
        self.output.lines().rfind(|line| line.starts_with("error: ")).expect("a line")
    }

    /// Runs the program to its end with these arguments only; panics when it goes on.
    pub async fn of(folder: &Path, args: &[&str]) -> Self {
        let mut program = Background::start(folder, "program.log", args);
        match ended(&mut program.child, READY_TIMEOUT).await {
            Some(status) => Self { code: status.code(), output: program.output() },
            None => panic!("goes on after {READY_TIMEOUT:?}: {args:?}\n{}", program.output()),
        }
    }
}

impl Background {
    /// Starts the program with these arguments only, and does not wait for anything.
    pub fn start(folder: &Path, log: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary::path());
        command.args(args).current_dir(folder);
        isolate(&mut command);
        let log = folder.join(log);
        let output = File::create(&log).expect("create a log");
        command.stdout(output.try_clone().expect("share the log")).stderr(output);
        Self { child: spawner::spawn(command).expect("start the program"), log }
    }

    /// All that it printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ask for the program").is_none()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ended(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("ask for the process") {
            return Some(status);
        }
        if started.elapsed() >= patience {
            return None;
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// The caller's own settings and terminal must not reach the program under test.
fn isolate(command: &mut Command) {
    command.stdin(Stdio::null()).env("NO_COLOR", "1").env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHIIOO_") {
            command.env_remove(name);
        }
    }
}

/// Has a process that is yet to be started live with so few file descriptors.
fn limit_descriptors(command: &mut Command, descriptors: u64) {
    let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors };
    // SAFETY: setrlimit is async-signal-safe and reads only `limit`, which the closure holds.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("open the node's log")
}

fn node_json(data: &Path) -> Option<Value> {
    let bytes = std::fs::read(data.join("node.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn api_addr(data: &Path, pid: u32) -> Option<SocketAddr> {
    let node = node_json(data)?;
    if node["pid"] != pid {
        return None;
    }
    node["api_addr"].as_str()?.parse().ok()
}
