//! Who is at the other end of the admin socket, and what they may do.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, getuid};
use std::ffi::CString;

/// The process at the other end, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Who may change things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    own_uid: u32,
    group: Option<u32>,
}

/// The configured group does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node.admin_group = \"{0}\": there is no such group on this host")]
pub struct NoSuchGroup(pub String);

impl Rights {
    /// Our own user, root, and members of `group`.
    ///
    /// # Errors
    /// When the group does not exist.
    pub fn new(group: Option<&str>) -> Result<Self, NoSuchGroup> {
        let group = match group {
            Some(name) => match Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid.as_raw()),
                _ => return Err(NoSuchGroup(name.to_owned())),
            },
            None => None,
        };
        Ok(Rights { own_uid: getuid().as_raw(), group })
    }

    /// The group whose members may change things.
    pub fn group(&self) -> Option<u32> {
        self.group
    }

    /// Whether the peer may change things.
    pub fn may_change(&self, peer: Peer) -> bool {
        if peer.uid == 0 || peer.uid == self.own_uid {
            return true;
        }
        self.group.is_some_and(|group| peer.gid == group || is_member(peer, group))
    }
}

/// Looks the peer's supplementary groups up; the kernel vouches for the first group only.
fn is_member(peer: Peer, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_user_root_and_group_may_change_things() {
        let rights = Rights { own_uid: 1000, group: Some(77) };
        let may = |uid, gid| rights.may_change(Peer { uid, gid });
        assert!(may(0, 0) && may(1000, 1) && may(1001, 77));
        assert!(!may(60_123, 1));
        let alone = Rights { own_uid: 1000, group: None };
        assert!(!alone.may_change(Peer { uid: 1001, gid: 77 }));
    }

    #[test]
    fn a_group_that_does_not_exist_is_an_error() {
        let error = Rights::new(Some("no-such-group-here")).expect_err("no such group");
        assert!(error.to_string().contains("no-such-group-here"));
        assert!(Rights::new(Some("root")).is_ok() && Rights::new(None).is_ok());
    }
}
