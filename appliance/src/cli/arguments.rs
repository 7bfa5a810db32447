//! What may stand on the command line.

use argh::FromArgs;
use std::path::PathBuf;

/// Keeps a disaster-recovery copy of a Kafka cluster, byte for byte at the source's own offsets.
#[derive(FromArgs, Debug)]
pub struct Arguments {
    /// what to do
    #[argh(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum Command {
    /// `run`
    Run(Run),
    /// `check`
    Check(Check),
    /// `status`
    Status(Status),
    /// `pause`
    Pause(Pause),
    /// `resume`
    Resume(Resume),
    /// `failover`
    Failover(Failover),
    /// `delete`
    Delete(Delete),
    /// `tune`
    Tune(TuneCommand),
    /// `demo`
    Demo(Demo),
    /// `embedded-source`
    EmbeddedSource(EmbeddedSource),
    /// `version`
    Version(VersionCommand),
}

/// Replicate what the configuration file names, until told to stop (SIGTERM). SIGHUP reads the file
/// again.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "run")]
pub struct Run {
    /// the configuration file
    #[argh(option)]
    pub config: PathBuf,
}

/// Validate the configuration file, look at the host, and try each source: can it be reached, is it
/// the cluster expected, are its versions and our rights enough, how many topics match. Changes
/// nothing.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "check")]
pub struct Check {
    /// the configuration file
    #[argh(option)]
    pub config: PathBuf,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
}

/// Show state, reason, positions and lag of every link, topic and partition.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "status")]
pub struct Status {
    /// only this link
    #[argh(positional)]
    pub link: Option<String>,
    /// only these topics, separated by commas
    #[argh(option)]
    pub topics: Vec<String>,
    /// only topics and partitions that have a reason to show
    #[argh(switch)]
    pub troubled: bool,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
    /// path of the admin socket
    #[argh(option)]
    pub socket: Option<PathBuf>,
}

/// Stop copying a link or topics; what is copied stays. Of a paused link nothing at all goes to the
/// source and no socket is open, after a restart either.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "pause")]
pub struct Pause {
    /// the link; may be left out when there is only one
    #[argh(positional)]
    pub link: Option<String>,
    /// only these topics, separated by commas
    #[argh(option)]
    pub topics: Vec<String>,
    /// only say what would happen
    #[argh(switch)]
    pub dry_run: bool,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
    /// path of the admin socket
    #[argh(option)]
    pub socket: Option<PathBuf>,
}

/// Go on copying a link or topics. A FAULTED topic is tried again.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "resume")]
pub struct Resume {
    /// the link; may be left out when there is only one
    #[argh(positional)]
    pub link: Option<String>,
    /// only these topics, separated by commas
    #[argh(option)]
    pub topics: Vec<String>,
    /// only say what would happen
    #[argh(switch)]
    pub dry_run: bool,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
    /// path of the admin socket
    #[argh(option)]
    pub socket: Option<PathBuf>,
}

/// Cut the copy loose from the source, for good, at what is flushed. Works with the source dead; it
/// is durable when the command returns, and safe to run again. There is no way back but a new copy.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "failover")]
pub struct Failover {
    /// the link; may be left out when there is only one, or with --all to mean every link
    #[argh(positional)]
    pub link: Option<String>,
    /// every topic; the link is paused, too
    #[argh(switch)]
    pub all: bool,
    /// only these topics, separated by commas
    #[argh(option)]
    pub topics: Vec<String>,
    /// go ahead though logs cannot be used now: they end at what was flushed
    #[argh(switch)]
    pub force: bool,
    /// only say what would happen
    #[argh(switch)]
    pub dry_run: bool,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
    /// path of the admin socket
    #[argh(option)]
    pub socket: Option<PathBuf>,
}

/// Forget a link (the files of its topics stay) or topics (their files are removed). Refused while
/// anything has not failed over, unless forced; try --dry-run first.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "delete")]
pub struct Delete {
    /// the link; may be left out when there is only one
    #[argh(positional)]
    pub link: Option<String>,
    /// only these topics, separated by commas
    #[argh(option)]
    pub topics: Vec<String>,
    /// delete what has not failed over
    #[argh(switch)]
    pub force: bool,
    /// only say what would happen
    #[argh(switch)]
    pub dry_run: bool,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
    /// path of the admin socket
    #[argh(option)]
    pub socket: Option<PathBuf>,
}

/// Show which cores and memory are used on this host and why, and what on the host stands in the
/// way. Asks the running node; with --config, or when none runs, looks for itself.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "tune")]
pub struct TuneCommand {
    /// a configuration file, to see what it would come to
    #[argh(option)]
    pub config: Option<PathBuf>,
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
    /// path of the admin socket
    #[argh(option)]
    pub socket: Option<PathBuf>,
}

/// Copy a small source of this program's own, kill it, fail over, and compare every byte. Takes a
/// minute, needs some disk, leaves nothing behind.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "demo")]
pub struct Demo {
    /// how much to copy (default: 4GiB)
    #[argh(option, default = "String::from(\"4GiB\")")]
    pub size: String,
    /// where to make the demo's folder (default: here)
    #[argh(option, default = "PathBuf::from(\".\")")]
    pub dir: PathBuf,
    /// leave the folder there
    #[argh(switch)]
    pub keep: bool,
}

/// The source of the demo and the benches, as a process of its own: prints its addresses and serves
/// until its standard input ends.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "embedded-source")]
pub struct EmbeddedSource {
    /// what it serves, as key=value
    #[argh(positional)]
    pub what: String,
}

/// Show the version.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "version")]
pub struct VersionCommand {
    /// answer in JSON
    #[argh(switch)]
    pub json: bool,
}

/// What the changing verbs have in common.
#[derive(Debug)]
pub struct VerbArguments {
    pub link: Option<String>,
    pub topics: Vec<String>,
    pub force: bool,
    pub dry_run: bool,
    pub json: bool,
    pub socket: Option<PathBuf>,
}

macro_rules! in_common {
    ($($verb:ident: $force:expr),*) => {$(
        impl From<$verb> for VerbArguments {
            fn from(verb: $verb) -> Self {
                let force: fn(&$verb) -> bool = $force;
                let force = force(&verb);
                let $verb { link, topics, dry_run, json, socket, .. } = verb;
                VerbArguments { link, topics, force, dry_run, json, socket }
            }
        }
    )*};
}

in_common!(
    Pause: |_| false,
    Resume: |_| false,
    Failover: |verb| verb.force,
    Delete: |verb| verb.force
);
