//! What can go wrong between us and a source.

use crate::codes::ErrorCode;
use crate::fetch::ParseError;
use crate::frame::FrameError;
use crate::guard::GuardError;
use crate::versions::Api;
use std::io;
use std::time::Duration;

/// An answer that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Its frame cannot be believed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Its lengths do not add up.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Its lengths do, its content does not (text that is not UTF-8, null where none may be).
    #[error("{0}")]
    Content(String),
}

/// Why a request to a source failed. After any of these but [`NetError::Unsupported`] and
/// [`NetError::Unsendable`] the connection is unusable and has to be opened anew.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No connection could be opened.
    #[error("cannot connect to {peer}: {source}")]
    Connect {
        /// Whom we tried.
        peer: String,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{peer}: {doing}: {source}")]
    Io {
        /// Whom we talked to.
        peer: String,
        /// What we were doing.
        doing: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The peer closed the connection while an answer was awaited.
    #[error("{peer} closed the connection before its answer to {api} was complete")]
    Closed {
        /// Whom we talked to.
        peer: String,
        /// What we had asked.
        api: Api,
    },
    /// Nothing came, or not enough, within the time allowed.
    #[error("{peer}: {doing}: nothing for {}", humane(*.limit))]
    TimedOut {
        /// Whom we talked to.
        peer: String,
        /// What we were waiting for.
        doing: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// An answer that cannot be decoded.
    #[error("{peer}: the answer to {api} version {version} is not understood: {source}")]
    Decode {
        /// Whom we talked to.
        peer: String,
        /// What we had asked.
        api: Api,
        /// In which version.
        version: i16,
        /// What is wrong with the answer.
        source: DecodeError,
    },
    /// A fetch answer that cannot be parsed.
    #[error("{peer}: the answer to Fetch version {version} is not understood: {source}")]
    Fetch {
        /// Whom we talked to.
        peer: String,
        /// In which version.
        version: i16,
        /// What is wrong with the answer.
        source: ParseError,
    },
    /// The peer and we have no version of this API in common.
    #[error("{peer} serves {api} in {theirs}, understudy needs {ours}")]
    Unsupported {
        /// Whom we talked to.
        peer: String,
        /// Which API.
        api: Api,
        /// The versions the peer offers; "no version" when it does not know the API.
        theirs: String,
        /// The versions we speak.
        ours: String,
    },
    /// A request that its version cannot express.
    #[error("a {api} request cannot be written in version {version}: {reason}")]
    Unsendable {
        /// Which API.
        api: Api,
        /// In which version.
        version: i16,
        /// What it cannot express.
        reason: String,
    },
    /// The peer refused with an error code of its own.
    #[error("{peer} answered {api} with {code}")]
    Refused {
        /// Whom we talked to.
        peer: String,
        /// What we had asked.
        api: Api,
        /// What it said.
        code: ErrorCode,
    },
    /// An earlier request on this connection failed or was abandoned half-way.
    #[error("{peer}: the connection was given up after an earlier failure")]
    Broken {
        /// Whom we talked to.
        peer: String,
    },
    /// There was no memory for what comes in time. The connection is lost with it.
    #[error("{peer}: no memory for {bytes} bytes within {}", humane(*.limit))]
    NoMemory {
        /// Whom we talked to.
        peer: String,
        /// How much was missing, in bytes.
        bytes: usize,
        /// How long we waited.
        limit: Duration,
    },
}

impl NetError {
    /// Whether a fresh connection may do better: everything but a peer that speaks another
    /// language than we do.
    pub fn retriable(&self) -> bool {
        match self {
            NetError::Unsupported { .. } | NetError::Unsendable { .. } => false,
            NetError::Refused { code, .. } => code.retriable(),
            _ => true,
        }
    }
}

fn humane(limit: Duration) -> String {
    format!("{} s", limit.as_millis() as f64 / 1000.0)
}
