//! The Java client, at our word: `java/Load.java` as one long-lived process per cluster.
//!
//! Requests and answers are lines of JSON, matched by number, so several may be under way.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::ChildStdin;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::install::Installed;
use crate::process::{self, Process};
use crate::{Outcome, crate_dir, work_dir};

/// Longer than any of the client's own time limits, so that it speaks first.
const ANSWER: Duration = Duration::from_secs(240);

type Waiting = Arc<Mutex<HashMap<u64, SyncSender<Result<Value, String>>>>>;

/// A Java client of one cluster.
#[derive(Debug)]
pub struct Load {
    process: Process,
    state: Mutex<(u64, ChildStdin)>,
    waiting: Waiting,
}

impl Load {
    /// Starts the client.
    ///
    /// # Errors
    /// Java cannot be started.
    pub fn start(installed: &Installed, name: &str, bootstrap: &str) -> Outcome<Load> {
        let log = work_dir().join("logs").join(format!("{name}-load.log"));
        let logging = crate_dir().join("kafka/log4j2.properties");
        let mut java = process::mortal("java");
        java.args(["-Xmx512m", "-XX:+UseSerialGC", "-Dunderstudy.log=WARN"])
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
            .args(["-cp", &installed.load(), "Load", bootstrap]);
        let mut process = Process::start("Load", &mut java, &log, true)?;
        let (stdin, stdout) = process.pipes().ok_or("the load tool has no pipes")?;
        let waiting = Waiting::default();
        let answers = Arc::clone(&waiting);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(answer) = line.map(|l| serde_json::from_str::<Value>(&l)) else { break };
                let Ok(mut answer) = answer else { continue };
                let id = answer["id"].as_u64().unwrap_or(0);
                let outcome = match answer["error"].as_str() {
                    Some(error) => Err(error.to_owned()),
                    None => Ok(answer["ok"].take()),
                };
                let mut waiting = answers.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(waiter) = waiting.remove(&id) {
                    let _ = waiter.send(outcome);
                }
            }
            // The process has ended: whoever waits learns it by their sender being dropped.
            answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Ok(Load { process, state: Mutex::new((0, stdin)), waiting })
    }

    /// One request: the verb, and its parameters as an object. See `java/Load.java`.
    ///
    /// # Errors
    /// What the client said, or that it said nothing.
    pub fn call(&self, verb: &str, mut parameters: Value) -> Outcome<Value> {
        let (sender, receiver) = sync_channel(1);
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 += 1;
            let id = state.0;
            parameters["id"] = id.into();
            parameters["verb"] = verb.into();
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
            writeln!(state.1, "{parameters}")
                .and_then(|()| state.1.flush())
                .map_err(|e| format!("the load tool is gone: {e}\n{}", self.process.log_tail()))?;
        }
        let asked = || format!("{verb} {parameters}\n{}", self.process.log_tail());
        match receiver.recv_timeout(ANSWER) {
            Ok(outcome) => outcome.map_err(|e| format!("{e}\nasked: {}", asked())),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer to {}", asked())),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("the load tool ended at {}", asked()))
            }
        }
    }

    /// Creates a topic with so many partitions and copies; returns when it is whole.
    ///
    /// # Errors
    /// As [`Load::call`].
    pub fn create(
        &self,
        topic: &str,
        partitions: usize,
        replication: usize,
        configs: &[(&str, &str)],
    ) -> Outcome<Topic> {
        let mut request =
            json!({"topic": topic, "partitions": partitions, "replication": replication});
        for (key, value) in configs {
            request["configs"][key] = json!(value);
        }
        self.call("create", request).and_then(|v| Topic::from(&v))
    }

    /// A topic's id, leaders and copies.
    ///
    /// # Errors
    /// As [`Load::call`].
    pub fn describe(&self, topic: &str) -> Outcome<Topic> {
        self.call("describe", json!({ "topic": topic })).and_then(|v| Topic::from(&v))
    }

    /// Per partition the first offset and the end offset (the high watermark).
    ///
    /// # Errors
    /// As [`Load::call`].
    pub fn offsets(&self, topic: &str) -> Outcome<Vec<std::ops::Range<i64>>> {
        let answer = self.call("offsets", json!({ "topic": topic }))?;
        let list = |name: &str| -> Vec<i64> {
            answer[name].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
        };
        Ok(list("start").into_iter().zip(list("end")).map(|(start, end)| start..end).collect())
    }

    /// Produces in the background, under the name of the topic, until [`Load::stop`].
    ///
    /// # Errors
    /// As [`Load::call`].
    pub fn begin(&self, topic: &str, mut parameters: Value) -> Outcome {
        parameters["topic"] = topic.into();
        parameters["name"] = topic.into();
        self.call("start", parameters).map(drop)
    }

    /// Waits until the background producer of a topic has had so many more records acknowledged.
    ///
    /// # Errors
    /// As [`Load::call`], and when too long nothing comes.
    pub fn await_more(&self, topic: &str, records: u64) -> Outcome {
        let acknowledged = || -> Outcome<u64> {
            let answer = self.call("progress", json!({ "name": topic }))?;
            answer["acknowledged"].as_u64().ok_or_else(|| format!("odd answer: {answer}"))
        };
        let before = acknowledged()?;
        crate::wait_for(&format!("{records} more records in {topic}"), ANSWER, || {
            Ok((acknowledged()? >= before + records).then_some(()))
        })
    }

    /// Ends the background producer of a topic, after all it sent is acknowledged.
    ///
    /// # Errors
    /// As [`Load::call`], and when a send has failed.
    pub fn stop(&self, topic: &str) -> Outcome<Value> {
        self.call("stop", json!({ "name": topic }))
    }

    /// Produces, and returns when all is acknowledged.
    ///
    /// # Errors
    /// As [`Load::call`], and when a send has failed.
    pub fn produce(&self, topic: &str, mut parameters: Value) -> Outcome<Value> {
        parameters["topic"] = topic.into();
        self.call("produce", parameters)
    }
}

/// What the cluster says of a topic.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id as Kafka writes it: 16 bytes in base64url.
    pub id: String,
    /// The same id as a UUID.
    pub uuid: String,
    /// Per partition the leader's node id; `None` while there is none.
    pub leaders: Vec<Option<usize>>,
    /// Per partition the node ids of all copies.
    pub replicas: Vec<Vec<usize>>,
    /// Per partition the node ids of the copies in sync.
    pub in_sync: Vec<Vec<usize>>,
}

impl Topic {
    fn from(answer: &Value) -> Outcome<Topic> {
        let text = |v: &Value| v.as_str().map(str::to_owned).ok_or(format!("odd answer: {answer}"));
        let ids = |v: &Value| -> Vec<usize> {
            v.as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .map(|i| i as usize)
                .collect()
        };
        let partitions = answer["partitions"].as_array().ok_or(format!("odd answer: {answer}"))?;
        Ok(Topic {
            name: text(&answer["topic"])?,
            id: text(&answer["topic_id"])?,
            uuid: text(&answer["topic_uuid"])?,
            leaders: partitions.iter().map(|p| p["leader"].as_u64().map(|i| i as usize)).collect(),
            replicas: partitions.iter().map(|p| ids(&p["replicas"])).collect(),
            in_sync: partitions.iter().map(|p| ids(&p["isr"])).collect(),
        })
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> usize {
        self.leaders.len()
    }
}
