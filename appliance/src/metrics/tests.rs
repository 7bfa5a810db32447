use super::*;
use crate::admin::{Rights, Tune};
use crate::controller::testing::{copied, run};

fn admin() -> Rc<Admin> {
    let tune = Tune {
        text: String::new(),
        shard_cpus: Vec::new(),
        housekeeping: String::new(),
        findings: Vec::new(),
    };
    Admin::new(tune, Rights::new(None).expect("no group"))
}

const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1";

async fn get(admin: &Admin, path: &str) -> (u16, String) {
    get_as(admin, path, PROMETHEUS).await
}

async fn get_as(admin: &Admin, path: &str, accept: &str) -> (u16, String) {
    let (path, accept) = (path.to_owned(), accept.to_owned());
    let asked = Asked { method: Method::GET, path, accept, body: Bytes::new() };
    let answered = answer(admin, asked).await;
    (answered.status.as_u16(), String::from_utf8_lossy(&answered.body).into_owned())
}

#[test]
fn a_scrape_has_every_state_and_only_known_lags() {
    run(async {
        let house = copied().await;
        let admin = admin();
        admin.attach(house.controller.clone());
        let (status, text) = get(&admin, "/metrics").await;
        assert_eq!(status, 200);
        for line in [
            "understudy_link_state{link=\"prod\",state=\"ACTIVE\"} 1.0",
            "understudy_link_state{link=\"prod\",state=\"PAUSED\"} 0.0",
            "understudy_topic_state{link=\"prod\",topic=\"orders\",state=\"FAILED_OVER\"} 0.0",
            "understudy_partitions{link=\"prod\",state=\"ACTIVE\"} 4.0",
            "understudy_partitions{link=\"prod\",state=\"CORRUPT\"} 0.0",
            "understudy_partition_lag_records{link=\"prod\",topic=\"orders\",partition=\"0\"} 3.0",
            "understudy_link_lag_records{link=\"prod\"} 6.0",
            "understudy_link_lag_unknown_partitions{link=\"prod\"} 2.0",
            "understudy_shard_up{shard=\"1\"} 1.0",
            "# TYPE understudy_shard_received_bytes counter",
            "# UNIT understudy_partition_lag_seconds seconds",
        ] {
            assert!(text.lines().any(|have| have == line), "`{line}` is not in\n{text}");
        }
        assert!(!text.contains("lag_records{link=\"prod\",topic=\"orders\",partition=\"1\"}"));
        assert!(text.contains("understudy_shard_received_bytes_total{shard=\"0\"} "));
        assert!(text.ends_with("# EOF\n"));
    });
}

#[test]
fn the_older_text_form_has_the_same_series() {
    run(async {
        let house = copied().await;
        let admin = admin();
        admin.attach(house.controller.clone());
        let (_, openmetrics) = get(&admin, "/metrics").await;
        let (_, classic) = get_as(&admin, "/metrics", "*/*").await;
        let series = |text: &str| -> Vec<String> {
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(series(&openmetrics), series(&classic));
        assert!(classic.contains("# TYPE understudy_shard_received_bytes_total counter\n"));
        assert!(!classic.contains("# EOF") && !classic.contains("# UNIT"));
        promtool_agrees(&classic);
    });
}

/// Prometheus' own linter, where it is installed.
fn promtool_agrees(text: &str) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
fn health_and_readiness() {
    run(async {
        let admin = admin();
        assert_eq!(get(&admin, "/healthz").await.0, 200);
        assert_eq!(get(&admin, "/readyz").await.0, 503);
        assert_eq!(get(&admin, "/metrics").await.0, 503);
        let house = copied().await;
        admin.attach(house.controller.clone());
        assert_eq!(get(&admin, "/readyz").await, (200, "ok\n".to_owned()));
        house.kafka.die();
        assert_eq!(get(&admin, "/readyz").await.0, 200, "a dead source is not our illness");
        house.shards[1].0.mute.set(true);
        let (status, text) = get(&admin, "/healthz").await;
        assert_eq!((status, text.as_str()), (503, "shard 1 does not answer\n"));
        assert!(get(&admin, "/metrics").await.1.contains("understudy_shard_up{shard=\"1\"} 0.0"));
        assert_eq!(get(&admin, "/other").await.0, 404);
        let post = Asked {
            method: Method::POST,
            path: "/metrics".into(),
            accept: String::new(),
            body: Bytes::new(),
        };
        assert_eq!(answer(&admin, post).await.status.as_u16(), 405);
    });
}
