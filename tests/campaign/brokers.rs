//! The source's brokers on the simulator: `source`'s own answers, carried by simulated sockets.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ring::{Address, Class, Gather, Listener, Share, Stream};
use source::{Desk, Reply};

/// How often answers are spoiled on their way out, in parts per million, and how often they were.
#[derive(Debug, Default)]
pub struct Mischief {
    /// Chance per answer.
    pub frame_ppm: u32,
    /// Answers spoiled so far, by kind.
    pub done: [u64; KINDS],
}

/// Shared by all brokers of a world.
pub type SharedMischief = Rc<RefCell<Mischief>>;

const KINDS: usize = 8;
/// What each kind of spoiled answer is called.
pub const KIND_NAMES: [&str; KINDS] = [
    "connection closed",
    "half a frame, then closed",
    "half a frame, then silence",
    "never answered",
    "another correlation id",
    "garbage",
    "negative frame length",
    "answered late",
];

const REQUEST_BYTES_MAX: u32 = 16 << 20;
const PIECE_BYTES: usize = 64 << 10;

/// Where a broker listens.
pub fn address(broker: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, broker as u8 + 1), 9092))
}

/// Listens and answers until its executor dies.
pub async fn serve(desk: Desk, broker: usize, mischief: SharedMischief) {
    let listener = Listener::bind(&Address::Tcp(address(broker))).expect("a free address");
    loop {
        let Ok(stream) = listener.accept().await else {
            ring::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let (desk, mischief) = (desk.clone(), Rc::clone(&mischief));
        let answering = async move {
            let _ = converse(&desk, broker, &stream, &mischief).await;
        };
        ring::spawn(Share::Serve, answering).detach();
    }
}

async fn converse(
    desk: &Desk,
    broker: usize,
    stream: &Stream,
    mischief: &SharedMischief,
) -> io::Result<()> {
    loop {
        let head = receive(stream, 4).await?;
        let length = u32::from_be_bytes(head.try_into().expect("4 bytes"));
        if length > REQUEST_BYTES_MAX {
            return Ok(());
        }
        let request = receive(stream, length as usize).await?;
        let mut answer = match desk.request(broker, &request) {
            Reply::Answer(answer) => answer,
            Reply::Close => return Ok(()),
            Reply::Fetch(mut waiting) => {
                let until = ring::now() + waiting.wait_max();
                loop {
                    if let Some(answer) = waiting.look(ring::now() >= until) {
                        break answer;
                    }
                    ring::sleep(Duration::from_micros(500 + ring::random() % 20_000)).await;
                }
            }
        };
        let Some(kind) = draw(mischief) else {
            send(stream, &answer).await?;
            continue;
        };
        mischief.borrow_mut().done[kind] += 1;
        let half = answer.len().div_ceil(2);
        match kind {
            0 => return Ok(()),
            1 => return send(stream, &answer[..half]).await,
            2 => send(stream, &answer[..half]).await?,
            3 => {}
            4 => answer[7] ^= 0x55,
            5 => answer[8..].fill_with(|| ring::random() as u8),
            6 => answer[..4].fill(0xff),
            _ => ring::sleep(Duration::from_millis(ring::random() % 40_000)).await,
        }
        if matches!(kind, 2 | 3) {
            let _ = receive(stream, 1).await; // until the peer gives up
            return Ok(());
        }
        send(stream, &answer).await?;
    }
}

fn draw(mischief: &SharedMischief) -> Option<usize> {
    let ppm = mischief.borrow().frame_ppm;
    let spoiled = ppm > 0 && ring::random() % 1_000_000 < u64::from(ppm);
    spoiled.then(|| (ring::random() % KINDS as u64) as usize)
}

async fn receive(stream: &Stream, bytes: usize) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    while received.len() < bytes {
        let wanted = (bytes - received.len()).min(PIECE_BYTES);
        let (lease, _) = ring::lease(wanted, Class::Control).await.split(wanted);
        let (result, [lease, _]) = stream.receive([Some(lease), None], false).await;
        let count = result?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&lease.expect("it comes back")[..count]);
    }
    Ok(received)
}

async fn send(stream: &Stream, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(PIECE_BYTES) {
        let mut lease = ring::lease(piece.len(), Class::Control).await;
        lease[..piece.len()].copy_from_slice(piece);
        let (slice, _) = lease.freeze(piece.len());
        stream.send_all(Gather::from_iter([slice])).await?;
    }
    Ok(())
}
