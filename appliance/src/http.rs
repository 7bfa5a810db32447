//! The small HTTP/1.1 server under the admin socket and the metrics address.
//!
//! Everything is bounded: connections at once, header size and time, body size. What is over a
//! bound gets an answer and is closed; nothing waits without end.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Connections served at once.
pub const CONNECTIONS_MAX: usize = 64;
/// Largest request body, unless told otherwise.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a request's head may take; also how long a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Who is turned away has so long to say what for, and to be told.
const TURNED_AWAY_TIMEOUT: Duration = Duration::from_millis(500);
/// Size of the buffer that holds a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A request, whole.
#[derive(Clone, Debug)]
pub struct Asked {
    /// GET, POST, …
    pub method: Method,
    /// The path without the query.
    pub path: String,
    /// The forms of an answer that are welcome; empty when nothing was said.
    pub accept: String,
    /// The body.
    pub body: Bytes,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The status.
    pub status: StatusCode,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
    /// Methods allowed here, with 405.
    pub allow: Option<&'static str>,
}

impl Answered {
    /// An answer in JSON.
    pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("answers have string keys only");
        let content_type = "application/json";
        Answered { status, content_type, body: Bytes::from(body), allow: None }
    }

    /// An error in JSON: `{"code": …, "reason": …}`.
    pub fn error(status: StatusCode, code: &str, reason: impl Into<String>) -> Self {
        Answered::json(status, &crate::states::Answer::new(code, reason))
    }
}

/// Counts connections, and says how large their requests may be; a permit gives its place back when
/// dropped.
#[derive(Clone)]
pub struct Places {
    taken: Rc<Cell<usize>>,
    body_bytes_max: usize,
}

impl Default for Places {
    fn default() -> Self {
        Places::with_bodies(BODY_BYTES_MAX)
    }
}

struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Places {
    /// For requests whose bodies have at most so many bytes.
    pub fn with_bodies(body_bytes_max: usize) -> Self {
        Places { taken: Rc::default(), body_bytes_max }
    }

    fn take(&self) -> Option<Place> {
        if self.taken.get() >= CONNECTIONS_MAX {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Place(self.taken.clone()))
    }
}

/// Serves one connection on a task of its own, or turns it away when too many are open.
pub fn serve<S, H, F>(stream: S, places: &Places, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Fn(Asked) -> F + Clone + 'static,
    F: Future<Output = Answered> + 'static,
{
    let Some(place) = places.take() else {
        tokio::task::spawn_local(turn_away(stream));
        return;
    };
    let body_bytes_max = places.body_bytes_max;
    tokio::task::spawn_local(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move { Ok::<_, Infallible>(answer(request, body_bytes_max, handler).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // A peer that breaks off is the peer's affair.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(place);
    });
}

async fn answer<H, F>(
    request: Request<Incoming>,
    body_bytes_max: usize,
    handler: H,
) -> Response<Full<Bytes>>
where
    H: Fn(Asked) -> F,
    F: Future<Output = Answered>,
{
    let (head, body) = request.into_parts();
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, body_bytes_max).collect());
    let answered = match whole.await {
        Ok(Ok(body)) => {
            let path = head.uri.path().to_owned();
            let accept = head.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
            let accept = accept.unwrap_or_default().to_owned();
            handler(Asked { method: head.method, path, accept, body: body.to_bytes() }).await
        }
        Ok(Err(error)) => Answered::error(
            StatusCode::BAD_REQUEST,
            "bad_body",
            format!("the body cannot be read: {error}; at most {body_bytes_max} bytes"),
        ),
        Err(_) => Answered::error(
            StatusCode::BAD_REQUEST,
            "bad_body",
            format!("the body did not arrive within {BODY_TIMEOUT:?}"),
        ),
    };
    let mut response = Response::new(Full::new(answered.body));
    *response.status_mut() = answered.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(answered.content_type));
    if let Some(allow) = answered.allow {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static(allow));
    }
    response
}

async fn turn_away(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let body = r#"{"code":"too_many_connections","reason":"too many connections are open"}"#;
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Who is still writing a request when the answer comes sees only a broken pipe.
    let mut head = [0; 4096];
    let _ = tokio::time::timeout(TURNED_AWAY_TIMEOUT, stream.read(&mut head)).await;
    let write = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(TURNED_AWAY_TIMEOUT, write).await;
}
