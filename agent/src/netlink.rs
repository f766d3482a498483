//! rtnetlink messages packed by hand (rtnetlink(7), linux/rtnetlink.h): the few that the agent needs.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// An answer is a header, an error number and our request's header.
const ANSWER_MAX: usize = 4096;

/// A request under construction.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of type `kind` (RTM_*) with `flags` (NLM_F_*) and the fixed part of its body.
    pub fn new(kind: u16, flags: libc::c_int, body: &[u8]) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    /// Adds an attribute (`struct rtattr`, padded to four bytes).
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = (4 + value.len()) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute unless it is empty.
    pub fn optional(self, kind: u16, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.attribute(kind, value) }
    }

    /// Adds an attribute that is a number.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }
}

/// A socket to the kernel.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one in our network namespace.
    pub fn open() -> rustix::io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // No protocol is number 0, NETLINK_ROUTE.
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).map(Self)
    }

    /// For ioctls about interfaces.
    pub fn socket(&self) -> &OwnedFd {
        &self.0
    }

    /// Has the kernel carry a request out.
    pub fn carry_out(&self, Request(mut bytes): Request) -> rustix::io::Result<()> {
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        rustix::net::send(&self.0, &bytes, SendFlags::empty())?;
        let mut answer = [0; ANSWER_MAX];
        let receive = || rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty());
        let (len, _) = rustix::io::retry_on_intr(receive)?;
        outcome(&answer[..len.min(ANSWER_MAX)])
    }
}

/// NLMSG_ERROR holds 0 for success, or a negated error number.
fn outcome(answer: &[u8]) -> rustix::io::Result<()> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    let error = answer.get(HEADER..HEADER + 4).and_then(|error| error.try_into().ok());
    match (kind.map(u16::from_ne_bytes), error.map(i32::from_ne_bytes)) {
        (Some(kind), Some(error)) if libc::c_int::from(kind) == libc::NLMSG_ERROR => match error {
            0 => Ok(()),
            error => Err(Errno::from_raw_os_error(error.wrapping_neg())),
        },
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_packed_as_the_kernel_reads_them() {
        let request = Request::new(16, 0, &[7; 16]).attribute(3, b"eth0\0").number(4, 1500);
        let request = request.optional(9, b"");
        let expected = [
            &[0, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[7; 16],
            &[9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0],
            &[8, 0, 4, 0, 0xdc, 5, 0, 0],
        ];
        assert_eq!(request.0, expected.concat());
    }

    #[test]
    fn answers_are_success_or_an_error() {
        let answer = |kind: u8, error: i32| {
            [&[36, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &error.to_ne_bytes()]
                .concat()
        };
        assert_eq!(outcome(&answer(2, 0)), Ok(()));
        assert_eq!(outcome(&answer(2, -17)), Err(Errno::EXIST));
        assert_eq!(outcome(&answer(3, 0)), Err(Errno::PROTO));
        assert_eq!(outcome(&answer(2, 0)[..18]), Err(Errno::PROTO));
    }

    #[test]
    fn the_kernel_answers() {
        let netlink = Netlink::open().unwrap();
        // An interface that is not there cannot be deleted (RTM_DELLINK).
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = netlink.carry_out(Request::new(17, 0, &body)).unwrap_err();
        assert!([Errno::NODEV, Errno::PERM].contains(&error), "{error}");
    }
}
