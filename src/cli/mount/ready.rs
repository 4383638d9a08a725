//! Tells a service manager that the mount answers: one datagram to the socket in `NOTIFY_SOCKET`, see sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says `READY=1` and `status`, if somebody is there to hear it. Only the process that was started as the service may.
pub fn tell(status: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, &format!("READY=1\nSTATUS={}\n", status.replace('\n', " "))) {
        log::warn!("cannot tell {} that the mount answers: {error}", socket.to_string_lossy());
    }
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}
