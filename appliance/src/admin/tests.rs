//! Real answers held against `openapi.json`, over a real Unix socket where that matters.

use super::*;
use crate::controller::testing::{House, copied, run};
use hyper::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const OPENAPI: &str = include_str!("../../openapi.json");

fn admin() -> Rc<Admin> {
    let tune = Tune {
        text: "Machine".to_owned(),
        shard_cpus: vec![Some(1), None],
        housekeeping: "0".to_owned(),
        findings: vec![serde_json::json!({
            "check": "kernel", "severity": "info", "what": "w", "measured": "m", "change": ""
        })],
    };
    Admin::new(tune, Rights::new(None).expect("no group"))
}

async fn served() -> (Rc<Admin>, House) {
    let house = copied().await;
    let admin = admin();
    admin.attach(house.controller.clone());
    (admin, house)
}

/// Asks, checks the answer against the description, and hands it back.
async fn ask(admin: &Admin, method: Method, path: &str, body: &str) -> (u16, Value) {
    let asked = Asked {
        method: method.clone(),
        path: path.to_owned(),
        accept: String::new(),
        body: hyper::body::Bytes::copy_from_slice(body.as_bytes()),
    };
    let answered = admin.answer(asked, true).await;
    let value: Value = serde_json::from_slice(&answered.body).expect("JSON");
    let status = answered.status.as_u16();
    described(&method, path, status, &value);
    (status, value)
}

fn described(method: &Method, path: &str, status: u16, value: &Value) {
    let api: Value = serde_json::from_str(OPENAPI).expect("openapi.json is JSON");
    let Some(item) = path_item(&api, path) else {
        assert_eq!(status, 404, "{path} is not described");
        return validate(&api, &api["components"]["schemas"]["Error"], value, path);
    };
    let mut operation = &item[method.as_str().to_lowercase()];
    if operation.is_null() {
        assert_eq!(status, 405, "{method} {path} is not described");
        operation = ["get", "post"].iter().map(|m| &item[m]).find(|o| !o.is_null()).expect("one");
    }
    let response = &operation["responses"][status.to_string()];
    assert!(!response.is_null(), "{method} {path} may not answer {status}");
    let schema = &response["content"]["application/json"]["schema"];
    validate(&api, schema, value, &format!("{method} {path} {status}"));
}

fn path_item<'a>(api: &'a Value, path: &str) -> Option<&'a Value> {
    let paths = api["paths"].as_object().expect("paths");
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        let same = |(a, b): (&&str, &&str)| a.starts_with('{') || a == b;
        template.len() == parts.len() && template.iter().zip(&parts).all(same)
    };
    // A literal segment is a better match than a parameter.
    let mut found: Vec<&String> = paths.keys().filter(|template| fits(template)).collect();
    found.sort_by_key(|template| template.matches('{').count());
    found.first().map(|template| &paths[*template])
}

/// As much of JSON Schema as the description uses; anything else in it is an error.
fn validate(api: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(problem) = problem(api, schema, value, at) {
        panic!("{problem}");
    }
}

fn problem(api: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/components/schemas/").expect("a local reference");
        let schema = &api["components"]["schemas"][name];
        assert!(!schema.is_null(), "{reference} leads nowhere");
        return problem(api, schema, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = choices.iter().filter(|choice| problem(api, choice, value, at).is_none());
        return (fits.count() != 1).then(|| format!("{at}: not exactly one shape fits {value}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        other => panic!("{at}: no type: {other}"),
    };
    let is = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("{at}: unknown type {other}"),
    };
    if !types.iter().any(|name| is(name)) {
        return Some(format!("{at}: {value} is not {types:?}"));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return Some(format!("{at}: {value} is not one of {allowed:?}"));
    }
    if let Some(items) = value.as_array() {
        let all = items.iter().enumerate();
        return all.into_iter().find_map(|(index, item)| {
            problem(api, &schema["items"], item, &format!("{at}[{index}]"))
        });
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().expect("objects say what is required");
    for name in required.iter().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            return Some(format!("{at}: {name} is missing"));
        }
    }
    fields.iter().find_map(|(name, field)| match &schema["properties"][name] {
        Value::Null => Some(format!("{at}: {name} is not described")),
        schema => problem(api, schema, field, &format!("{at}.{name}")),
    })
}

#[test]
fn the_validator_finds_what_is_wrong() {
    let api: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let error = &api["components"]["schemas"]["Error"];
    let wrong = |value: Value| problem(&api, error, &value, "here");
    assert_eq!(wrong(serde_json::json!({"code": "a", "reason": "b"})), None);
    assert!(wrong(serde_json::json!({"code": "a"})).expect("missing").contains("reason"));
    assert!(wrong(serde_json::json!({"code": 1, "reason": "b"})).expect("type").contains("code"));
    let extra = serde_json::json!({"code": "a", "reason": "b", "more": 1});
    assert!(wrong(extra).expect("undescribed").contains("more"));
}

#[test]
fn every_path_answers_as_described() {
    run(async {
        let (admin, _house) = served().await;
        for path in [
            "/v1/version",
            "/v1/tune",
            "/v1/status",
            "/v1/links",
            "/v1/links/prod",
            "/v1/links/prod/topics",
            "/v1/links/prod/topics/orders",
            "/v1/links/prod/topics/orders/partitions",
        ] {
            assert_eq!(ask(&admin, Method::GET, path, "").await.0, 200, "{path}");
            assert_eq!(ask(&admin, Method::POST, path, "").await.0, 405, "{path}");
        }
        for path in [
            "/v1/links/nope",
            "/v1/links/nope/topics",
            "/v1/links/prod/topics/nope",
            "/v1/links/nope/topics/orders/partitions",
            "/v1/nothing",
            "/",
        ] {
            assert_eq!(ask(&admin, Method::GET, path, "").await.0, 404, "{path}");
        }
        let (_, links) = ask(&admin, Method::GET, "/v1/links", "").await;
        assert!(links[0].get("topics").is_none());
    });
}

#[test]
fn verbs_answer_as_described_in_every_outcome() {
    run(async {
        let (admin, house) = served().await;
        let steps = [
            ("prod/pause", "", 200, "paused"),
            ("prod/pause", "", 200, "already_paused"),
            ("prod/resume", r#"{"dry_run": true}"#, 200, "resumed"),
            ("prod/resume", "", 200, "resumed"),
            ("prod/topics/orders/pause", "{}", 200, "paused"),
            ("prod/topics/orders/delete", "", 409, "topic_live"),
            ("prod/topics/nope/delete", "", 404, "topic_not_found"),
            ("nope/delete", "", 404, "link_not_found"),
            ("prod/failover", r#"{"topics": ["orders", "users"]}"#, 200, "failed_over"),
            ("prod/topics/orders/resume", "", 409, "topic_failed_over"),
            ("prod/failover", r#"{"topics": []}"#, 400, "bad_body"),
            ("prod/failover", r#"{"dryrun": true}"#, 400, "bad_body"),
            ("prod/failover", "{", 400, "bad_body"),
            ("prod/topics/orders/failover", r#"{"topics": ["users"]}"#, 400, "bad_body"),
            ("prod/delete", "", 200, "deleted"),
            ("prod/resume", "", 409, "link_deleted"),
        ];
        for (path, body, status, code) in steps {
            let path = format!("/v1/links/{path}");
            let (answered, value) = ask(&admin, Method::POST, &path, body).await;
            assert_eq!((answered, value["code"].as_str()), (status, Some(code)), "{path} {body}");
            if status == 200 || status == 409 {
                assert_eq!(ask(&admin, Method::GET, &path, "").await.0, 405);
            }
        }
        drop(house);
    });
}

#[test]
fn a_failed_store_is_503_and_described() {
    run(async {
        let (admin, house) = served().await;
        house.disk.0.lock().expect("lock").fail_after = Some(0);
        let (status, value) = ask(&admin, Method::POST, "/v1/links/prod/failover", "").await;
        assert_eq!((status, value["code"].as_str()), (503, Some("store_failed")));
    });
}

#[test]
fn before_boot_everything_but_the_version_is_503() {
    run(async {
        let admin = admin();
        let (status, version) = ask(&admin, Method::GET, "/v1/version", "").await;
        assert_eq!((status, version["ready"].as_bool()), (200, Some(false)));
        assert_eq!(ask(&admin, Method::GET, "/v1/status", "").await.0, 503);
        assert_eq!(ask(&admin, Method::POST, "/v1/links/a/pause", "").await.0, 503);
        assert_eq!(ask(&admin, Method::GET, "/v1/nothing", "").await.0, 404);
    });
}

#[test]
fn who_may_only_look_may_not_change() {
    run(async {
        let (admin, _house) = served().await;
        for (path, status) in [("/v1/links/prod/pause", 403), ("/v1/status", 405)] {
            let asked = Asked {
                method: Method::POST,
                path: path.to_owned(),
                accept: String::new(),
                body: Default::default(),
            };
            assert_eq!(admin.answer(asked, false).await.status.as_u16(), status);
        }
    });
}

async fn exchange(path: &std::path::Path, text: &str) -> String {
    let mut stream = UnixStream::connect(path).await.expect("connect");
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_socket_speaks_http_and_bounds_what_it_takes() {
    run(async {
        let (admin, _house) = served().await;
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("admin.sock");
        let (listener, _guard) = bind(&path, 0o660, None).expect("bound");
        tokio::task::spawn_local(admin.listen(listener));
        let close = "connection: close\r\nhost: x\r\n";
        let get = format!("GET /v1/version HTTP/1.1\r\n{close}\r\n");
        assert!(exchange(&path, &get).await.starts_with("HTTP/1.1 200 OK"));
        let post = |length: usize, body: &str| {
            format!(
                "POST /v1/links/prod/pause HTTP/1.1\r\n{close}\
                 content-length: {length}\r\n\r\n{body}"
            )
        };
        let huge = exchange(&path, &post(10 << 20, "{")).await;
        assert!(huge.starts_with("HTTP/1.1 400") && huge.contains("bad_body"), "{huge}");
        let dry = exchange(&path, &post(16, "{\"dry_run\":true}")).await;
        assert!(dry.starts_with("HTTP/1.1 200 OK") && dry.contains("\"dry_run\":true"), "{dry}");
        assert!(exchange(&path, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let wrong = exchange(&path, &get.replace("GET", "PUT")).await;
        assert!(wrong.starts_with("HTTP/1.1 405") && wrong.contains("allow: GET"), "{wrong}");
        let mut open = Vec::new();
        for _ in 0..crate::http::CONNECTIONS_MAX {
            open.push(UnixStream::connect(&path).await.expect("connect"));
        }
        let full = exchange(&path, &get).await;
        assert!(
            full.starts_with("HTTP/1.1 503") && full.contains("too_many_connections"),
            "{full}"
        );
        drop(open);
        while !exchange(&path, &get).await.starts_with("HTTP/1.1 200 OK") {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_verb_is_carried_to_its_end_when_the_asker_goes_away() {
    run(async {
        let (admin, house) = served().await;
        let asked = Asked {
            method: Method::POST,
            path: "/v1/links/prod/failover".to_owned(),
            accept: String::new(),
            body: Default::default(),
        };
        {
            let mut answer = Box::pin(admin.answer(asked, true));
            let nothing = std::future::poll_fn(|context| {
                std::task::Poll::Ready(answer.as_mut().poll(context).is_pending())
            });
            assert!(nothing.await, "it takes a while");
        }
        while house.state("orders") != Some(crate::states::TopicState::FailedOver) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
