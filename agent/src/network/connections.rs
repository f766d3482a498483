//! Ends TCP connections of addresses that are this VM's no more: they are those of the VM it was saved
//! from, and who reads from one would wait for ever.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::connect_unspec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Of all TCP sockets, one a line (networking/proc_net_tcp.rst).
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// The state of a socket that listens, as hexadecimal number (net/tcp_states.h).
const LISTEN: &str = "0A";
/// What an IPv4 address begins with as one of IPv6 (RFC 4291, 2.5.5.2).
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Ends those with one of these local addresses, of 4 or 16 bytes. The links must be down: no word of it
/// may reach a peer. One that no process has open yet is left.
pub fn end(gone: &[&[u8]]) {
    let tables = TABLES.iter().filter_map(|table| fs::read_to_string(table).ok());
    let sockets: BTreeSet<String> = tables
        .flat_map(|table| table.lines().filter_map(|line| ended(line, gone)).collect::<Vec<_>>())
        .collect();
    if sockets.is_empty() {
        return;
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        if let Some(pid) = number(&process.path()).and_then(Pid::from_raw) {
            // An error says that the process has ended.
            let _ = end_of(pid, &process.path().join("fd"), &sockets);
        }
    }
}

/// The socket of a line, as its descriptors are called, if it is to be ended.
fn ended(line: &str, gone: &[&[u8]]) -> Option<String> {
    let mut fields = line.split_ascii_whitespace();
    let (local, state) = (fields.nth(1)?, fields.nth(1)?);
    // Behind queues, timers, user and time-outs.
    let inode = fields.nth(5)?;
    let address = address(local)?;
    let address = address.strip_prefix(&MAPPED).unwrap_or(&address);
    (state != LISTEN && gone.contains(&address)).then(|| format!("socket:[{inode}]"))
}

/// The address of a socket's end: 32-bit numbers in hexadecimal, and its port.
fn address(end: &str) -> Option<Vec<u8>> {
    let (digits, _) = end.split_once(':')?;
    let numbers = digits.as_bytes().chunks(8).map(|number| {
        u32::from_str_radix(str::from_utf8(number).ok()?, 16).ok().map(u32::to_ne_bytes)
    });
    Some(numbers.collect::<Option<Vec<_>>>()?.concat())
}

fn number(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn end_of(pid: Pid, fds: &Path, sockets: &BTreeSet<String>) -> Result<(), Errno> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    for fd in fs::read_dir(fds).into_iter().flatten().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        if target.to_str().is_some_and(|target| sockets.contains(target))
            && let Some(number) = number(&fd.path())
        {
            let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
            // tcp_disconnect(): who waits for the socket gets an error.
            let _ = connect_unspec(&socket);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let v4 = "   1: 0200070A:1B5A 0100070A:C392 01 00000000:00000000 00:00000000 00000000     \
            0        0 4711 1 0000000000000000 20 4 30 10 -1";
        let v6 = "   1: 0000000000000000FFFF00000200070A:1B5A 0000000000000000FFFF00000100070A:C392 \
            01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000";
        let gone: &[&[u8]] = &[&[10, 7, 0, 2]];
        assert_eq!(ended(v4, gone).as_deref(), Some("socket:[4711]"));
        assert_eq!(ended(v6, gone).as_deref(), Some("socket:[4712]"));
        assert_eq!(ended(v4, &[&[10, 7, 0, 3]]), None);
        assert_eq!(ended(&v4.replace(" 01 ", " 0A "), gone), None);
        for nonsense in
            ["", "sl local rem st", "0: XYZ:1 0:1 01 0 0 0 0 0 1", "0: é:1 a b c d e f g"]
        {
            assert_eq!(ended(nonsense, gone), None);
        }
    }

    #[test]
    fn a_connection_ends_and_others_do_not() {
        let pair = |address: &str| {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let to = listener.local_addr().unwrap();
            (TcpStream::connect(to).unwrap(), listener.accept().unwrap().0)
        };
        let [(_ours, mut gone), (ours, mut kept)] = ["127.0.7.7", "127.0.7.8"].map(pair);
        end(&[&[127, 0, 7, 7]]);
        let error = gone.read(&mut [0]).unwrap_err().kind();
        assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::NotConnected), "{error}");
        drop(ours);
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    }
}
