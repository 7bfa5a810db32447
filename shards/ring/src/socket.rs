//! Stream sockets: TCP and Unix.

use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

pub use crate::driver::Address;
use crate::executor::with_current;
use crate::memory::{Gather, Lease};
use crate::op::{Handle, Op, perform};
use crate::time::sleep;

/// A connected stream; cheap to clone. Closes with its last clone and its last operation.
#[derive(Clone, Debug)]
pub struct Stream {
    handle: Rc<Handle>,
}

impl Stream {
    /// Connects by TCP, with `TCP_NODELAY`.
    ///
    /// # Errors
    /// As `connect(2)`. There is no time limit of its own: wrap it in [`crate::timeout`].
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_to(Address::Tcp(address)).await
    }

    /// Connects to either kind of address. See [`Stream::connect`].
    ///
    /// # Errors
    /// As `connect(2)`; `InvalidInput` for a Unix path that is too long.
    pub async fn connect_to(address: Address) -> io::Result<Self> {
        let number = perform(Op::Connect { address }).await.result?;
        Ok(Self { handle: Handle::adopt(number.cast_signed()) })
    }

    /// Receives into the leases in order and gives them back. 0 is the end of the stream.
    /// With `all`, waits until they are full.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    ///
    /// # Panics
    /// If there is no room in the leases.
    pub async fn receive(
        &self,
        into: [Option<Lease>; 2],
        all: bool,
    ) -> (io::Result<usize>, [Option<Lease>; 2]) {
        let room = into.iter().flatten().any(|lease| !lease.is_empty());
        assert!(room, "a receive into nothing would look like the stream's end");
        let op = Op::Receive { socket: Rc::clone(&self.handle), into, all };
        let done = perform(op).await;
        match done.op {
            Some(Op::Receive { into, .. }) => (done.result.map(|bytes| bytes as usize), into),
            other => unreachable!("a receive came back as {other:?}"),
        }
    }

    /// Sends; may be short.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub async fn send(&self, from: Gather) -> io::Result<usize> {
        let op = Op::Send { socket: Rc::clone(&self.handle), from };
        perform(op).await.result.map(|bytes| bytes as usize)
    }

    /// Sends everything.
    ///
    /// # Errors
    /// As `sendmsg(2)`; `WriteZero` if the peer takes nothing more.
    pub async fn send_all(&self, mut from: Gather) -> io::Result<()> {
        while !from.is_empty() {
            let mut sent = self.send(from.clone()).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while let Some(first) = from.first() {
                if sent < first.len() {
                    from[0] = first.slice(sent..first.len());
                    break;
                }
                sent -= first.len();
                from.remove(0);
            }
        }
        Ok(())
    }

    /// A watch on the stream's end that does not keep it open.
    pub fn watch(&self) -> SocketWatch {
        SocketWatch { handle: Rc::downgrade(&self.handle) }
    }

    /// Ends the stream both ways; operations in flight complete.
    pub fn shutdown(&self) {
        with_current(|executor| executor.shutdown(self.handle.number()));
    }
}

/// Watches a stream that others hold, see [`Stream::watch`].
#[derive(Clone, Debug)]
pub struct SocketWatch {
    handle: Weak<Handle>,
}

impl SocketWatch {
    /// Waits until the last holder, operations included, has let go and the socket is closed.
    pub async fn closed(&self) {
        while self.handle.strong_count() > 0 {
            sleep(CLOSE_POLL).await;
        }
        sleep(CLOSE_POLL).await; // the driver's turn in between submits the close
    }

    /// Bytes that have arrived since it was connected, those included that nobody has received
    /// yet; 0 once it is closed, and of what is not TCP.
    pub fn arrived_bytes(&self) -> u64 {
        let Some(handle) = self.handle.upgrade() else { return 0 };
        with_current(|executor| executor.arrived_bytes(handle.number()))
    }
}

/// Closing is rare and soon: looking now and then costs less than telling.
const CLOSE_POLL: Duration = Duration::from_millis(1);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    handle: Rc<Handle>,
    address: Address,
}

impl Listener {
    /// Listens; port 0 lets the system choose. A Unix socket's file outlives the listener: who
    /// listens there again removes it first, or is told `AddrInUse`.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (number, address) = with_current(|executor| executor.listen(address))?;
        Ok(Self { handle: Handle::adopt(number), address })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub async fn accept(&self) -> io::Result<Stream> {
        let number = perform(Op::Accept { socket: Rc::clone(&self.handle) }).await.result?;
        Ok(Stream { handle: Handle::adopt(number.cast_signed()) })
    }
}
