//! The admin socket from the other end.

use super::{FAILED, NOT_FOUND, NOT_PERMITTED, REFUSED, Stop, UNREACHABLE, USAGE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// A status of ten thousand partitions is some megabytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Failover waits for the flush barrier, deletion for files to go.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long to wait for a place in the socket's queue, and between two tries.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
const QUEUE_PAUSE: Duration = Duration::from_millis(50);

/// Where the node listens.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The socket named, by option or environment, or the first that exists where one is expected.
    pub fn find(named: Option<&Path>) -> Result<Client, Stop> {
        let named = named.map(Path::to_owned);
        if let Some(socket) =
            named.or_else(|| std::env::var_os("UNDERSTUDY_SOCKET").map(Into::into))
        {
            return Ok(Client { socket });
        }
        let candidates = super::socket_candidates();
        if let Some(socket) = candidates.iter().find(|path| path.exists()) {
            return Ok(Client { socket: socket.clone() });
        }
        let places: Vec<String> = candidates.iter().map(|p| p.display().to_string()).collect();
        let reason = format!(
            "no node is found: there is no socket at {}. Is it running? Name its socket with \
             --socket or $UNDERSTUDY_SOCKET",
            places.join(", ")
        );
        Err(Stop::new(UNREACHABLE, reason))
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks; anything but 200 ends the command.
    pub async fn get(&self, path: &str) -> Result<(u16, Value), Stop> {
        let (status, value) = self.ask(Method::GET, path, Bytes::new()).await?;
        match status {
            200 => Ok((status, value)),
            _ => Err(refused(status, &value)),
        }
    }

    /// Asks for a change; the caller looks at the status.
    pub async fn post(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<(u16, Value), Stop> {
        let body = serde_json::to_vec(body).expect("requests have string keys only");
        self.ask(Method::POST, path, Bytes::from(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<(u16, Value), Stop> {
        let socket = self.socket.display();
        let broken = |error: hyper::Error| {
            Stop::new(
                UNREACHABLE,
                format!("the node at {socket} broke the connection off: {error}"),
            )
        };
        let stream = connect(&self.socket).await.map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::PermissionDenied => "you may not open it",
                ErrorKind::WouldBlock => "too many others wait for it",
                _ => "is it running?",
            };
            Stop::new(UNREACHABLE, format!("no node answers at {socket}: {error}; {hint}"))
        })?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Stop::new(USAGE, format!("this cannot be asked for: {error}")))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Stop::new(FAILED, format!("the answer: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        let whole = async {
            tokio::pin!(exchange, connection);
            tokio::select! {
                answer = &mut exchange => answer,
                // The connection may end first, with the whole answer already there.
                _ = &mut connection => exchange.await,
            }
        };
        let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, whole)
            .await
            .map_err(|_| Stop::new(FAILED, format!("no answer within {ANSWER_TIMEOUT:?}")))??;
        let value = serde_json::from_slice(&body)
            .map_err(|error| Stop::new(FAILED, format!("the answer is no JSON: {error}")))?;
        Ok((status, value))
    }
}

/// A Unix socket whose queue is full refuses at once (connect(2), `EAGAIN`); the queue soon moves.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + QUEUE_TIMEOUT;
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                tokio::time::sleep(QUEUE_PAUSE).await;
            }
            connected => return connected,
        }
    }
}

/// An error answer as an exit code and a sentence.
pub fn refused(status: u16, value: &Value) -> Stop {
    let code = match status {
        400 | 405 => USAGE,
        403 => NOT_PERMITTED,
        404 => NOT_FOUND,
        409 => REFUSED,
        _ => FAILED,
    };
    let text = |name: &str| value[name].as_str().unwrap_or("no reason given").to_owned();
    Stop::new(code, format!("{} ({})", text("reason"), text("code")))
}
