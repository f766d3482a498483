//! Requests of the monitor's own, on their way among the guest's: one at a time, answered with a number.
//!
//! ```text
//!        ask               the socket takes it           the reply
//!  idle ─────▶ wanted ─────────────────────────▶ asked ───────────▶ answered ──▶ idle
//!                 └───────── the connection ends ──┴──────────────────▲
//! ```

use std::io;
use std::os::fd::OwnedFd;

use super::wire::{HEADER_LEN_OUT, MONITORS, OutHeader};

/// The bytes of a request, and the files that go with it.
pub type Message = (Vec<u8>, Vec<OwnedFd>);

/// Where the request stands.
#[derive(Debug, Default)]
pub enum Monitors {
    /// There is none.
    #[default]
    Idle,
    /// It waits for a message before it.
    Wanted(Message),
    /// It is on its way, or with the worker.
    Asked,
    /// An errno, or 0.
    Answered(i32),
}

impl Monitors {
    /// Takes a request, a whole message with a header, whose number becomes [`MONITORS`]. EBUSY if there is one
    /// already, EINVAL if it is no message.
    pub fn ask(&mut self, mut bytes: Vec<u8>, files: Vec<OwnedFd>) -> io::Result<()> {
        if !matches!(self, Self::Idle) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let number = bytes.get_mut(8..HEADER_LEN_OUT);
        let number = number.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?;
        number.copy_from_slice(&MONITORS.to_le_bytes());
        *self = Self::Wanted((bytes, files));
        Ok(())
    }

    /// The request, if it waits to be sent.
    pub fn take_wanted(&mut self) -> Option<Message> {
        match std::mem::replace(self, Self::Asked) {
            Self::Wanted(message) => Some(message),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Takes the reply; false if nobody waits for one, or not for such a one.
    pub fn answer(&mut self, header: OutHeader) -> bool {
        let waits = matches!(self, Self::Asked) && header.len as usize == HEADER_LEN_OUT;
        if waits {
            *self = Self::Answered(-header.error);
        }
        waits
    }

    /// There will be no reply.
    pub fn end(&mut self, errno: i32) {
        if matches!(self, Self::Wanted(_) | Self::Asked) {
            *self = Self::Answered(errno);
        }
    }

    /// What became of the request, once it is known.
    pub fn take_answer(&mut self) -> Option<io::Result<()>> {
        let Self::Answered(errno) = *self else { return None };
        *self = Self::Idle;
        Some(if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) })
    }

    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Idle | Self::Answered(_))
    }
}
