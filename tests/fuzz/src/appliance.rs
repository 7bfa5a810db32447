//! What people send: the configuration file, topic filters, admin requests.

use crate::input::Input;
use crate::memory;
use ::appliance::admin::{read_verb, routes};
use ::appliance::config::{Config, ConfigError};
use ::appliance::filters::TopicFilter;
use ::appliance::http::{self, Answered, Asked, Places};
use ::appliance::states::Verb;
use hyper::StatusCode;
use regex::Regex;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A configuration is the owner's own, and its size is limited: its tree, with a table for every
/// dot in a key and the place of every word, costs more.
const CONFIGURATION_FACTOR: usize = 1024;
/// A key may have some eighty dots.
const CONFIGURATION_BASE_BYTES: usize = 128 << 10;
/// What a link's expressions may take while they are compiled, each.
const EXPRESSION_BYTES_MAX: usize = 16 << 20;

/// A configuration file.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let expressions = text.matches('/').count();
    let bytes_max = CONFIGURATION_BASE_BYTES
        + CONFIGURATION_FACTOR * text.len()
        + expressions * EXPRESSION_BYTES_MAX;
    let path = Path::new("u.toml");
    match memory::within(bytes_max, || Config::parse(text, path)) {
        Ok(config) => {
            assert!(!config.links.is_empty() && !config.node.data_dirs.is_empty());
            for link in &config.links {
                assert!(config.link(&link.name) == Some(link) && !link.topics.covers("__x"));
            }
        }
        Err(ConfigError::Wrong { problems, .. }) => {
            assert!(!problems.is_empty(), "refused without a reason");
            let lines = 1 + text.matches('\n').count();
            for problem in &problems {
                assert!((1..=lines).contains(&problem.line), "{problem}: line {}", problem.line);
            }
        }
        Err(other) => panic!("{other}"),
    }
}

/// An included pattern, an excluded one and a topic, each behind its length.
pub fn filters(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut text = || String::from_utf8_lossy(input.run()).into_owned();
    let (include, exclude, topic) = (text(), text(), text());
    let given = [include.clone()];
    let excluded = [exclude];
    let bytes_max = 2 * EXPRESSION_BYTES_MAX + memory::FACTOR * bytes.len();
    let filter = memory::within(bytes_max, || TopicFilter::new(&given, &[]));
    let expression = include.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    match &filter {
        Ok(filter) => {
            let covers = filter.covers(&topic);
            if let Some(expression) = expression {
                let alone = Regex::new(expression).expect("accepted, so it stands by itself");
                assert!(!covers || alone.is_match(&topic), "{include} covers {topic}");
            } else if include.ends_with('*') {
                assert!(!covers || topic.starts_with(include.trim_end_matches('*')));
            } else {
                assert!(!covers || topic == include);
            }
        }
        Err(error) => assert!(error.pattern == include && !error.instead.is_empty()),
    }
    if let (Ok(filter), Ok(both)) = (filter, TopicFilter::new(&given, &excluded)) {
        assert!(!both.covers(&topic) || filter.covers(&topic));
        let excluded = TopicFilter::new(&excluded, &[]).expect("it was compiled before");
        assert!(!(both.covers(&topic) && excluded.covers(&topic)));
    }
}

/// What stands on the admin socket: bytes, as they come.
pub fn admin_request(bytes: &[u8]) {
    const CONNECTION_BYTES: usize = 256 << 10;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let bytes_max = CONNECTION_BYTES + memory::FACTOR * bytes.len();
    let answer = memory::within(bytes_max, || {
        local.block_on(&runtime, async {
            let (server, mut client) = tokio::io::duplex(4096);
            http::serve(server, &Places::default(), |asked| async move { answer(&asked) });
            let mut answer = Vec::new();
            let (mut answers, mut asks) = tokio::io::split(&mut client);
            let ask = async {
                // A server that has heard enough hangs up.
                let _ = asks.write_all(bytes).await;
                let _ = asks.shutdown().await;
            };
            let listen = async {
                // A pipelining asker is answered as often as it asks.
                let _ = (&mut answers).take(64 << 10).read_to_end(&mut answer).await;
            };
            tokio::join!(ask, listen);
            answer
        })
    });
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
}

/// Answers as the admin socket does, up to where a controller would be asked.
fn answer(asked: &Asked) -> Answered {
    match routes::find(&asked.method, &asked.path) {
        Err(_) => Answered::error(StatusCode::NOT_FOUND, "path_not_found", ""),
        Ok(routes::Route::Verb { topic, verb, .. }) => match read_verb(&asked.body, topic, verb) {
            Ok(_) => Answered::json(StatusCode::OK, &"carried"),
            Err(reason) => Answered::error(StatusCode::BAD_REQUEST, "bad_body", reason),
        },
        Ok(_) => Answered::json(StatusCode::OK, &"seen"),
    }
}

/// Flags, then a verb's body. Flag 1: under a topic.
pub fn admin_body(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let topic = (input.byte() & 1 != 0).then(|| "t".to_owned());
    let body = input.rest();
    let under_topic = topic.is_some();
    let request = memory::bounded(bytes.len(), || read_verb(body, topic, Verb::Failover));
    if let Ok(request) = request {
        assert!(request.topics.as_ref().is_none_or(|topics| !topics.is_empty()));
        assert!(!under_topic || request.topics == Some(vec!["t".to_owned()]));
    }
}
