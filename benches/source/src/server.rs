//! Listeners and connections: one thread each, blocking.

use crate::cluster::{Cluster, ControlError};
use crate::control::Versions;
use crate::desk::{Begun, Desk};
use crate::fault::Fault;
use crate::fetch::{self, Stopping};
use crate::topic::TopicSpec;
use crate::wire::{Malformed, Response};
use kafka_protocol::messages::ApiKey;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Largest request that is read, bytes.
const REQUEST_BYTES_MAX: u32 = 16 << 20;
/// How long to wait for a listener to take the connection that ends it.
const WAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Stack of a connection's thread, bytes.
const STACK_BYTES: usize = 512 << 10;

/// How a source is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's id, as Metadata tells it.
    pub cluster_id: String,
    /// One address per broker, told to clients as it stands; port 0 takes any that is free.
    /// Broker k has id k. Partition p of a topic is led by broker p mod their number.
    pub listen: Vec<SocketAddr>,
    /// Topics that exist from the start.
    pub topics: Vec<TopicSpec>,
    /// Versions that the source admits to.
    pub versions: Versions,
    /// Connections at a time, to all brokers; more are closed at once.
    pub connections_max: usize,
    /// Fetch sessions that each broker keeps.
    pub sessions_max: usize,
    /// How long a fetch session must lie unused before another may take its place.
    pub session_evict_after: Duration,
    /// A broker's own limit on a Fetch answer, bytes.
    pub fetch_bytes_max: i32,
    /// Whether records may end within a batch when a limit says so, as a broker's do.
    pub partial_batches: bool,
    /// Session ids are drawn from this number.
    pub seed: u64,
}

impl Config {
    /// So many brokers on loopback, on free ports, with a broker's default limits.
    pub fn loopback(brokers: usize) -> Config {
        Config {
            cluster_id: "embedded-source".into(),
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); brokers],
            topics: Vec::new(),
            versions: Versions::newest(),
            connections_max: 1024,
            sessions_max: 1000,
            session_evict_after: Duration::from_secs(120),
            fetch_bytes_max: 55 << 20,
            partial_batches: true,
            seed: 1,
        }
    }

    /// The same with one more topic.
    pub fn with_topic(mut self, topic: TopicSpec) -> Config {
        self.topics.push(topic);
        self
    }
}

/// Why a source could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address as it was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// There must be at least one broker.
    #[error("no address to listen on")]
    NoBroker,
    /// A topic could not be made.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A running source. Dropping it ends every thread and closes every socket.
#[derive(Debug)]
pub struct Handle {
    server: Arc<Server>,
    addresses: Vec<SocketAddr>,
    listeners: Mutex<Vec<Option<JoinHandle<()>>>>,
}

#[derive(Debug)]
struct Server {
    desk: Desk,
    connections_max: usize,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    open: HashMap<u64, Connection>,
    accepted: u64,
}

#[derive(Debug)]
struct Connection {
    broker: usize,
    stream: TcpStream,
    thread: JoinHandle<()>,
}

/// Starts a source in this process.
pub fn serve(config: Config) -> Result<Handle, ServeError> {
    if config.listen.is_empty() {
        return Err(ServeError::NoBroker);
    }
    let mut listeners = Vec::new();
    let mut config = config;
    for address in &mut config.listen {
        let failed = |source| ServeError::Listen { address: *address, source };
        let listener = TcpListener::bind(*address).map_err(failed)?;
        *address = listener.local_addr().map_err(failed)?;
        listeners.push(listener);
    }
    let addresses = config.listen.clone();
    let connections_max = config.connections_max;
    let desk = Desk::new(config)?;
    let server = Arc::new(Server { desk, connections_max, connections: Mutex::default() });
    let accepting = listeners.into_iter().enumerate();
    let threads = accepting.map(|(broker, l)| Some(accept_thread(&server, broker, l))).collect();
    Ok(Handle { server, addresses, listeners: Mutex::new(threads) })
}

impl Handle {
    /// The brokers' addresses, by index.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The hand that moves the source; it outlives the handle, but moves nothing then.
    pub fn cluster(&self) -> Cluster {
        self.server.desk.cluster()
    }

    /// Open connections to a broker.
    pub fn connections(&self, broker: usize) -> usize {
        let connections = self.server.connections();
        connections.open.values().filter(|connection| connection.broker == broker).count()
    }

    /// Connections accepted since the start, all brokers together.
    pub fn connections_accepted(&self) -> u64 {
        self.server.connections().accepted
    }

    /// Cuts every connection to a broker.
    pub fn kill_connections(&self, broker: usize) {
        let connections = self.server.connections();
        for connection in connections.open.values().filter(|c| c.broker == broker) {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Stops a broker: its port is closed, its connections are cut, its sessions forgotten. Its
    /// partitions have no leader until it starts again or [`Cluster::move_leader`] is called.
    pub fn stop_broker(&self, broker: usize) -> Result<(), ControlError> {
        {
            let mut state = self.server.desk.shared.lock();
            let broker = state.broker(broker)?;
            broker.up = false;
            broker.sessions.clear();
        }
        self.server.desk.shared.wake();
        self.end_listener(broker);
        self.kill_connections(broker);
        Ok(())
    }

    /// Starts a stopped broker on its old port.
    pub fn start_broker(&self, broker: usize) -> Result<(), ServeError> {
        let address = self.server.desk.shared.lock().broker(broker)?.address;
        self.end_listener(broker);
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        self.server.desk.shared.lock().broker(broker)?.up = true;
        self.listeners()[broker] = Some(accept_thread(&self.server, broker, listener));
        self.server.desk.shared.wake();
        Ok(())
    }

    fn end_listener(&self, broker: usize) {
        let thread = self.listeners()[broker].take();
        if let Some(thread) = thread {
            self.server.desk.shared.lock().brokers[broker].up = false;
            // The thread looks at the flag once more after each connection.
            let _ = TcpStream::connect_timeout(&self.addresses[broker], WAKE_TIMEOUT);
            let _ = thread.join();
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Option<JoinHandle<()>>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.server.desk.shared.lock().stopping = true;
        self.server.desk.shared.wake();
        for broker in 0..self.addresses.len() {
            self.end_listener(broker);
        }
        let open: Vec<Connection> =
            self.server.connections().open.drain().map(|(_, connection)| connection).collect();
        for connection in &open {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        for connection in open {
            let _ = connection.thread.join();
        }
    }
}

fn accept_thread(server: &Arc<Server>, broker: usize, listener: TcpListener) -> JoinHandle<()> {
    let server = Arc::clone(server);
    let name = format!("source-accept-{broker}");
    let accept = move || {
        while let Ok((stream, _)) = listener.accept() {
            if !server.desk.shared.lock().brokers[broker].up {
                return;
            }
            // A connection that cannot be set up is one that the peer finds closed.
            let _ = server.admit(broker, stream);
        }
    };
    std::thread::Builder::new().name(name).spawn(accept).expect("the system gives a thread")
}

/// How a connection goes on after an answer.
enum Next {
    Request,
    Close,
}

impl Server {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, broker: usize, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        // The lock is held while the thread starts, so that it cannot end before it is known.
        let mut connections = self.connections();
        if connections.open.len() >= self.connections_max {
            return Ok(());
        }
        connections.accepted += 1;
        let id = connections.accepted;
        let (server, own) = (Arc::clone(self), stream.try_clone()?);
        let run = move || {
            let _ = server.converse(broker, &own);
            let _ = own.shutdown(Shutdown::Both);
            server.connections().open.remove(&id);
        };
        let builder = std::thread::Builder::new().name(format!("source-{broker}-{id}"));
        let thread = builder.stack_size(STACK_BYTES).spawn(run)?;
        connections.open.insert(id, Connection { broker, stream, thread });
        Ok(())
    }

    /// Answers requests in order until the connection ends.
    fn converse(&self, broker: usize, stream: &TcpStream) -> io::Result<()> {
        let mut input = BufReader::with_capacity(64 << 10, stream);
        let mut request = Vec::new();
        let mut response = Response::default();
        loop {
            let mut length = [0; 4];
            input.read_exact(&mut length)?;
            let length = u32::from_be_bytes(length);
            if length > REQUEST_BYTES_MAX {
                return Ok(());
            }
            request.clear();
            // Grows with what arrives, whatever length was announced.
            let read = (&mut input).take(u64::from(length)).read_to_end(&mut request)?;
            if read < length as usize || self.wait_while_paused(broker).is_err() {
                return Ok(());
            }
            let Ok(Ok(api_key)) = self.answer(broker, &request, &mut response) else {
                return Ok(());
            };
            if let Next::Close = self.send(broker, api_key, stream, &mut response)? {
                return Ok(());
            }
        }
    }

    fn answer(
        &self,
        broker: usize,
        request: &[u8],
        response: &mut Response,
    ) -> Result<Result<i16, Stopping>, Malformed> {
        match self.desk.begin(broker, request, response)? {
            Begun::Written(api_key) => Ok(Ok(api_key)),
            Begun::Fetch(pending) => {
                let Desk { shared, fetch, .. } = &self.desk;
                let waited = fetch::wait(shared, *fetch, broker, &pending, response);
                response.finish();
                Ok(waited.map(|()| ApiKey::Fetch as i16))
            }
        }
    }

    /// Sends a finished answer, or what a fault makes of it.
    fn send(
        &self,
        broker: usize,
        api_key: i16,
        mut stream: &TcpStream,
        response: &mut Response,
    ) -> io::Result<Next> {
        let fault = {
            let mut state = self.desk.shared.lock();
            state.bytes_sent += response.len() as u64;
            if state.faults.is_empty() { None } else { state.faults.of_frame(broker, api_key) }
        };
        match fault {
            None => {}
            Some(Fault::Close) => return Ok(Next::Close),
            Some(Fault::NeverAnswer) => {
                wait_for_end(stream);
                return Ok(Next::Close);
            }
            Some(fault @ (Fault::HalfFrameThenClose | Fault::HalfFrameThenSilence)) => {
                response.edit(|frame| frame.truncate(frame.len().div_ceil(2)));
                response.send(&mut stream)?;
                stream.flush()?;
                if fault == Fault::HalfFrameThenSilence {
                    wait_for_end(stream);
                }
                return Ok(Next::Close);
            }
            Some(Fault::WrongCorrelationId) => response.edit(|frame| frame[7] ^= 0x55),
            Some(Fault::FrameLength(length)) => {
                response.edit(|frame| frame[..4].copy_from_slice(&length.to_be_bytes()));
            }
            Some(Fault::Garbage) => response.edit(|frame| {
                let mut random = crate::record_batch::Random(frame.len() as u64);
                frame[8..].fill_with(|| random.next() as u8);
            }),
            Some(Fault::Delay(delay)) => {
                let until = Instant::now() + delay;
                let mut state = self.desk.shared.lock();
                while !state.stopping && Instant::now() < until {
                    state = self.desk.shared.wait(state, until);
                }
            }
            Some(other) => unreachable!("{other:?} is no fault of a frame"),
        }
        response.send(&mut stream)?;
        Ok(Next::Request)
    }

    fn wait_while_paused(&self, broker: usize) -> Result<(), Stopping> {
        let mut state = self.desk.shared.lock();
        while state.brokers[broker].paused && !state.stopping {
            state = self.desk.shared.wait(state, Instant::now() + Duration::from_secs(3600));
        }
        if state.stopping { Err(Stopping) } else { Ok(()) }
    }
}

/// Reads and forgets until the connection ends.
fn wait_for_end(mut stream: &TcpStream) {
    let mut ignored = [0; 4096];
    while stream.read(&mut ignored).is_ok_and(|bytes| bytes > 0) {}
}
