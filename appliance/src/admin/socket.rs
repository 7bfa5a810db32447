//! The socket's file: made with the right mode, never over somebody else's, gone at the end.

use nix::unistd::{Gid, chown};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("another process listens on {}: stop it, or set node.admin_socket", .0.display())]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{} exists and is not a socket: move it away, or set node.admin_socket", .0.display())]
    NotASocket(PathBuf),
    /// The operating system says no.
    #[error("cannot make the admin socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds the socket. A file left by a process that died is replaced.
///
/// # Errors
/// When somebody listens there, something else is there, or the system refuses.
pub fn bind(
    path: &Path,
    mode: u32,
    group: Option<u32>,
) -> Result<(UnixListener, Guard), BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    clear(path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(io)?;
    }
    // Connecting takes the right to write, which boot's umask leaves to nobody but us: no one gets
    // in between here and chmod.
    let listener = UnixListener::bind(path).map_err(io)?;
    let guard = Guard(path.to_owned());
    if let Some(group) = group {
        chown(path, None, Some(Gid::from_raw(group))).map_err(|error| io(error.into()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io)?;
    Ok((listener, guard))
}

fn clear(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !kind.is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime(test: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("runtime");
        let _entered = runtime.enter();
        test(folder.path());
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_us() {
        in_runtime(|folder| {
            let path = folder.join("made/for/us/admin.sock");
            let (_listener, guard) = bind(&path, 0o640, None).expect("bound");
            let mode = fs::metadata(&path).expect("socket").permissions().mode();
            assert_eq!(mode & 0o777, 0o640);
            drop(guard);
            assert!(!path.exists());
        });
    }

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_is_not() {
        in_runtime(|folder| {
            let path = folder.join("s");
            let (listener, guard) = bind(&path, 0o600, None).expect("bound");
            assert!(matches!(bind(&path, 0o600, None), Err(BindError::InUse(_))));
            drop(listener);
            std::mem::forget(guard);
            assert!(path.exists(), "as after a crash");
            bind(&path, 0o600, None).expect("the stale file is replaced");
        });
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone() {
        in_runtime(|folder| {
            let path = folder.join("precious");
            fs::write(&path, "data").expect("file");
            assert!(matches!(bind(&path, 0o600, None), Err(BindError::NotASocket(_))));
            assert_eq!(fs::read_to_string(&path).expect("file"), "data");
        });
    }
}
