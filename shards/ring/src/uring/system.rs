//! System calls the ring does not make for us: sockets' set-up, the bell, file system questions.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::driver::Address;

const BACKLOG: i32 = 1024;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn event_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; the descriptor it returns is ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC))?)) }
}

/// Adds one to the eventfd. It can only fail when the count is full: then it is ringing already.
pub fn ring_bell(bell: &OwnedFd) {
    let one = 1u64;
    // SAFETY: writes 8 bytes from a live local.
    unsafe { libc::write(bell.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Another descriptor of the same open file.
pub fn duplicate(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; the descriptor it returns is ours alone.
    unsafe {
        let number = check(libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Closes a descriptor that belongs to nobody any more.
pub fn close_descriptor(descriptor: RawFd) {
    // SAFETY: takes no pointers; its last handle is being dropped.
    unsafe { libc::close(descriptor) };
}

/// Ends both directions of a stream; one that is not connected any more is left as it is.
pub fn shutdown(descriptor: RawFd) {
    // SAFETY: takes no pointers; the caller's handle keeps the descriptor open.
    unsafe { libc::shutdown(descriptor, libc::SHUT_RDWR) };
}

pub fn truncate(descriptor: RawFd, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: takes no pointers; the operation holds the file open.
    check(unsafe { libc::ftruncate(descriptor, len) }).map(drop)
}

pub fn monotonic_nanos() -> u64 {
    clock_nanos(libc::CLOCK_MONOTONIC)
}

pub fn thread_cpu() -> Duration {
    Duration::from_nanos(clock_nanos(libc::CLOCK_THREAD_CPUTIME_ID))
}

fn clock_nanos(clock: libc::clockid_t) -> u64 {
    // SAFETY: fills the local it is given; both clocks always exist.
    let time = unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(clock, &mut time);
        time
    };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Asks the allocator to give large pieces back to the system as soon as they are freed. Left
/// alone, glibc raises its thresholds with every large piece it sees freed (mallopt(3)), and what
/// was needed once stays with the process. Other allocators do as they like.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: takes two numbers. It can only refuse them.
        unsafe { libc::mallopt(parameter, 128 << 10) };
    }
}

/// Gives freed memory back to the system. It holds every thread's allocations up for some
/// milliseconds: for moments after which little is allocated for long (malloc_trim(3)).
pub fn trim_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number.
    unsafe {
        libc::malloc_trim(0)
    };
}

pub fn sync_filesystem(file: &File) -> io::Result<()> {
    // SAFETY: takes a live descriptor and no pointers.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a terminated string and a structure to fill, both alive for the call.
    let stat = unsafe {
        let mut stat: libc::statvfs = zeroed();
        check(libc::statvfs(path.as_ptr(), &mut stat))?;
        stat
    };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

pub fn processor_set(cores: &[usize]) -> libc::cpu_set_t {
    // SAFETY: a plain structure for which all zeros is the empty set; CPU_SET checks its index.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        for core in cores {
            libc::CPU_SET(*core, &mut set);
        }
        set
    }
}

/// A socket for `address`'s family; with `TCP_NODELAY` if it is one of TCP.
pub fn stream_socket(address: &Address) -> io::Result<OwnedFd> {
    let family = match address {
        Address::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        Address::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        Address::Unix(_) => libc::AF_UNIX,
    };
    let socket = socket(family)?;
    set_no_delay(socket.as_raw_fd());
    Ok(socket)
}

fn socket(family: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; the descriptor it returns is ours alone.
    unsafe {
        let number = check(libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// A socket that cannot do without delay (a Unix socket) is left as it is.
pub fn set_no_delay(socket: RawFd) {
    let _ = set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY);
}

/// Lets the socket be readable only once so many bytes have come, or its stream has ended
/// (`SO_RCVLOWAT`). Its buffer grows as needed.
pub fn set_low_water(socket: RawFd, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).expect("a low-water mark is below 2 GiB");
    set_value(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Payload bytes that have arrived on a TCP connection, those still in its buffer included:
/// `tcpi_bytes_received` (include/uapi/linux/tcp.h; RFC 4898 `tcpEStatsAppHCThruOctetsReceived`).
pub fn arrived_bytes(socket: RawFd) -> io::Result<u64> {
    // The struct only ever grows at its end; libc names none of its later fields.
    const AT: usize = 128;
    let mut info = [0u8; AT + size_of::<u64>()];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let pointer = info.as_mut_ptr().cast();
    // SAFETY: writes at most `len` bytes into a live local of that size.
    check(unsafe {
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, pointer, &raw mut len)
    })?;
    let bytes = info[AT..].try_into().expect("8 bytes");
    Ok(u64::from_ne_bytes(bytes))
}

fn set_option(socket: RawFd, level: i32, option: i32) -> io::Result<()> {
    set_value(socket, level, option, 1)
}

fn set_value(socket: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: reads `len` bytes from a live local.
    check(unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), len) })
        .map(drop)
}

/// Writes a socket address in the kernel's form; its length.
pub fn write_address(
    address: &Address,
    storage: &mut libc::sockaddr_storage,
) -> io::Result<libc::socklen_t> {
    match address {
        Address::Tcp(SocketAddr::V4(v4)) => {
            let form = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is made to hold every socket address form.
            unsafe { (&raw mut *storage).cast::<libc::sockaddr_in>().write(form) };
            Ok(size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        Address::Tcp(SocketAddr::V6(v6)) => {
            let form = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: `sockaddr_storage` is made to hold every socket address form.
            unsafe { (&raw mut *storage).cast::<libc::sockaddr_in6>().write(form) };
            Ok(size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        Address::Unix(path) => {
            let bytes = path.as_os_str().as_bytes();
            // SAFETY: a plain structure for which all zeros is valid.
            let mut form: libc::sockaddr_un = unsafe { zeroed() };
            if bytes.len() >= form.sun_path.len() || bytes.contains(&0) || bytes.is_empty() {
                let message = format!("{} is no path for a Unix socket", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            form.sun_family = libc::AF_UNIX as libc::sa_family_t;
            for (target, byte) in form.sun_path.iter_mut().zip(bytes) {
                *target = *byte as libc::c_char;
            }
            // SAFETY: `sockaddr_storage` is made to hold every socket address form.
            unsafe { (&raw mut *storage).cast::<libc::sockaddr_un>().write(form) };
            Ok(size_of::<libc::sockaddr_un>() as libc::socklen_t)
        }
    }
}

fn read_address(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    let pointer = &raw const *storage;
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which form the storage holds.
            let form = unsafe { pointer.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(form.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddrV4::new(ip, u16::from_be(form.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which form the storage holds.
            let form = unsafe { pointer.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(form.sin6_addr.s6_addr);
            Ok(SocketAddrV6::new(ip, u16::from_be(form.sin6_port), 0, form.sin6_scope_id).into())
        }
        family => Err(io::Error::other(format!("address family {family}"))),
    }
}

/// Binds and listens; where it listens then.
pub fn listen(address: &Address) -> io::Result<(RawFd, Address)> {
    match address {
        Address::Unix(path) => {
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            Ok((listener.into_raw_fd(), address.clone()))
        }
        Address::Tcp(_) => {
            let socket = stream_socket(address)?;
            let number = socket.as_raw_fd();
            set_option(number, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
            // SAFETY: a plain structure for which all zeros is valid.
            let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
            let mut len = write_address(address, &mut storage)?;
            let pointer = (&raw mut storage).cast();
            // SAFETY: the storage is alive and `len` is the length of the form in it.
            check(unsafe { libc::bind(number, pointer, len) })?;
            // SAFETY: takes a live descriptor and no pointers.
            check(unsafe { libc::listen(number, BACKLOG) })?;
            len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            // SAFETY: fills at most `len` bytes of the live storage.
            check(unsafe { libc::getsockname(number, pointer, &mut len) })?;
            let bound = read_address(&storage)?;
            Ok((socket.into_raw_fd(), Address::Tcp(bound)))
        }
    }
}
