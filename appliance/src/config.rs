//! The configuration file: TOML in, checked values out, or every problem at once with its line.
//!
//! The file declares; what happens to a link at run time (paused, failed over) is not here but in
//! the metadata store. Keys that are not known are refused, since a misspelt `exclude` would
//! otherwise copy what it was meant to keep out.

mod link;
mod problem;
mod reader;
pub(crate) mod units;

pub use link::LinkConfig;
pub use problem::{ConfigError, Problem};

use reader::{File, Section};
use shards::control::VerifySettings;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeTable;
use tuning::{Cores, CpuSet, Profile};

/// Files larger than this are no configuration of ours: it is room for thousands of links, and a
/// tree of single words takes hundreds of times the bytes of its text.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of a Unix socket's path, without the zero at its end (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[shards]`
    pub shards: ShardsConfig,
    /// Every `[[link]]`, in the file's order; names are unique.
    pub links: Vec<LinkConfig>,
}

/// `[node]`: this process.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Number of this node; part of the client id the source sees.
    pub id: u32,
    /// Folders for the copy, one per file system.
    pub data_dirs: Vec<PathBuf>,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// File mode of the admin socket.
    pub admin_socket_mode: u32,
    /// Members of this group may change things too, beside our own user and root.
    pub admin_group: Option<String>,
    /// Where metrics are served; none = nowhere.
    pub metrics: Option<SocketAddr>,
    /// How long a clean stop may take.
    pub stop_timeout: Duration,
}

/// `[shards]`: the data path.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardsConfig {
    /// Which CPUs carry data.
    pub cores: Cores,
    /// The data path's memory budget, all shards together.
    pub memory_bytes: u64,
    /// How much of the machine is ours.
    pub profile: Profile,
    /// Stored bytes each shard reads again per second, to verify them; 0: none.
    pub verify_rate: u64,
    /// How long it rests after all of them.
    pub verify_every: Duration,
}

/// How long after a start stored bytes are first read again, at most.
const VERIFY_AFTER: Duration = Duration::from_secs(60);

impl ShardsConfig {
    /// How shards verify what is stored; none: they do not.
    pub fn verify_settings(&self) -> Option<VerifySettings> {
        (self.verify_rate > 0).then(|| VerifySettings {
            bytes_per_second: self.verify_rate,
            first_after: self.verify_every.min(VERIFY_AFTER),
            every: self.verify_every,
        })
    }
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it start at the working directory.
    ///
    /// # Errors
    /// When the file cannot be read, or with every problem found in it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { file: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { file: path.to_owned(), bytes });
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Config::parse(text, path),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let problem = Problem {
                    line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
                    key: String::new(),
                    what: format!("byte {:#04x} is no UTF-8", bytes[error.valid_up_to()]),
                    instead: "save the file as UTF-8".to_owned(),
                };
                Err(ConfigError::Wrong { file: path.to_owned(), problems: vec![problem] })
            }
        }
    }

    /// Checks `text`; `path` only names the file in errors.
    ///
    /// # Errors
    /// With every problem found.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let file = File::new(text);
        let (root, syntax) = DeTable::parse_recoverable(text);
        for error in syntax {
            file.syntax(&error);
        }
        let config = read(&file, root.get_ref());
        let problems = file.into_problems();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Wrong { file: path.to_owned(), problems }),
        }
    }

    /// The link of that name.
    pub fn link(&self, name: &str) -> Option<&LinkConfig> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// `None` only where a problem has been noted.
fn read(file: &File<'_>, root: &DeTable<'_>) -> Option<Config> {
    let mut top = Section::new(file, "", root, 0..0);
    let node = top.section("node").and_then(read_node);
    let shards = match top.has("shards") {
        true => top.section("shards").and_then(read_shards),
        false => Some(ShardsConfig::default()),
    };
    let sections = top.sections("link");
    if sections.is_empty() {
        top.note(
            "link",
            "no [[link]] is declared",
            "declare at least one source cluster:\n    [[link]]\n    name = \"prod\"\n    \
             bootstrap_servers = [\"kafka-1:9092\"]",
        );
    }
    let mut links: Vec<LinkConfig> = Vec::new();
    let mut complete = true;
    for section in sections {
        let line_of_name = section.span_of("name");
        let Some(link) = link::read(section) else {
            complete = false;
            continue;
        };
        if links.iter().any(|other| other.name == link.name) {
            file.note(
                line_of_name,
                "link.name",
                format!("two links are called `{}`", link.name),
                "give each link a name of its own: it is the name of its folder, too",
            );
        }
        links.push(link);
    }
    top.finish();
    let (node, shards) = (node?, shards?);
    complete.then_some(Config { node, shards, links })
}

impl Default for ShardsConfig {
    fn default() -> Self {
        ShardsConfig {
            cores: Cores::Auto,
            memory_bytes: 2 << 30,
            profile: Profile::Auto,
            verify_rate: 32 << 20,
            verify_every: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

fn read_node(mut node: Section<'_>) -> Option<NodeConfig> {
    let id = node.integer("id", 1, 0..=i64::from(i32::MAX));
    let data_dirs: Vec<PathBuf> =
        node.strings("data_dirs").unwrap_or_default().into_iter().map(PathBuf::from).collect();
    if data_dirs.is_empty() {
        node.note("data_dirs", "no data folder is named", "data_dirs = [\"/var/lib/understudy\"]");
    }
    for (index, dir) in data_dirs.iter().enumerate() {
        for other in &data_dirs[..index] {
            let what = match (dir == other, dir.starts_with(other), other.starts_with(dir)) {
                (true, ..) => format!("`{}` is named twice", dir.display()),
                (_, true, _) => format!("`{}` lies in `{}`", dir.display(), other.display()),
                (_, _, true) => format!("`{}` lies in `{}`", other.display(), dir.display()),
                _ => continue,
            };
            node.note("data_dirs", what, "name each folder once, and none within another");
        }
    }
    let admin_socket = PathBuf::from(node.string_or("admin_socket", "/run/understudy/admin.sock"));
    let length = admin_socket.as_os_str().len();
    if !(1..=SOCKET_PATH_BYTES_MAX).contains(&length) {
        let what = format!("a path of {length} bytes; a socket's has 1 to {SOCKET_PATH_BYTES_MAX}");
        node.note("admin_socket", what, "admin_socket = \"/run/understudy/admin.sock\"");
    }
    let mode = node.string_or("admin_socket_mode", "0660");
    let admin_socket_mode = u32::from_str_radix(&mode, 8).ok().filter(|mode| *mode <= 0o777);
    if admin_socket_mode.is_none() {
        let what = format!("`{mode}` is no file mode");
        node.note("admin_socket_mode", what, "write it in octal: \"0660\"");
    }
    let admin_group = node.string("admin_group");
    let metrics = node.string("metrics").and_then(|text| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let what = format!("`{text}` is no address with a port");
            node.note("metrics", what, "metrics = \"127.0.0.1:9644\" (a host's name will not do)");
            None
        }
    });
    let minute = Duration::from_secs(60);
    let stop_timeout = node.duration("stop_timeout", minute / 2, minute / 60..=60 * minute);
    let name = node.span_of("data_dirs");
    if data_dirs.iter().any(|dir| dir.as_os_str().is_empty()) {
        node.file().note(name, "node.data_dirs", "a folder's name is empty", "remove it");
    }
    node.finish();
    Some(NodeConfig {
        id: id? as u32,
        data_dirs,
        admin_socket,
        admin_socket_mode: admin_socket_mode?,
        admin_group,
        metrics,
        stop_timeout: stop_timeout?,
    })
}

fn read_shards(mut shards: Section<'_>) -> Option<ShardsConfig> {
    let default = ShardsConfig::default();
    let cores = match shards.string_or("cores", "auto").as_str() {
        "auto" => Some(Cores::Auto),
        list => {
            let parsed = list.parse::<CpuSet>().map_err(|error| error.to_string());
            let some = parsed.and_then(|set| match set.is_empty() {
                false => Ok(Cores::List(set)),
                true => Err("no CPU is named".to_owned()),
            });
            some.map_err(|what| shards.note("cores", what, "cores = \"auto\" or \"2-9,12\"")).ok()
        }
    };
    let sizes = tuning::plan::SHARD_MEMORY_BYTES_MIN..=1 << 50;
    let memory_bytes = shards.size("memory", default.memory_bytes, sizes);
    let profile = shards.string_or("profile", "auto");
    let parsed = profile.parse().ok();
    if parsed.is_none() {
        let what = format!("`{profile}` is no profile");
        shards.note("profile", what, "one of \"auto\", \"dev\", \"shared\", \"dedicated\"");
    }
    let verify_rate = shards.size("verify_rate", default.verify_rate, 0..=1 << 40);
    let rest = Duration::from_millis(100)..=Duration::from_secs(365 * 24 * 60 * 60);
    let verify_every = shards.duration("verify_every", default.verify_every, rest);
    shards.finish();
    Some(ShardsConfig {
        cores: cores?,
        memory_bytes: memory_bytes?,
        profile: parsed?,
        verify_rate: verify_rate?,
        verify_every: verify_every?,
    })
}

#[cfg(test)]
mod tests;
