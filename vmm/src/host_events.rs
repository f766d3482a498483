//! What happens to this process that concerns the container: to whoever runs it, the VMM's process
//! is the container, so signals and window changes that reach it are passed on to the guest.
//!
//! They travel as [`HostEvent`]s through a pipe of our own to [`HostPort::Events`], whose device end
//! is a stream like standard input. Nothing comes back, and a guest that does not read only misses
//! them.
//!
//! [`HostPort::Events`]: bulkhead_protocol::HostPort::Events

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use bulkhead_protocol::HostEvent;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;

use crate::signals::Signals;
use crate::spec::VmSpec;

/// Passes events on.
pub struct HostEvents {
    signals: SignalsFd,
    pipe: File,
    /// The terminal whose size is the container's.
    terminal: Option<OwnedFd>,
}

/// The event loop wants a raw descriptor.
struct SignalsFd(Signals);

impl AsRawFd for SignalsFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl HostEvents {
    /// What `spec` asks for. To be called before any other thread starts: none may take the signals.
    pub fn of(spec: &VmSpec) -> io::Result<Option<(Self, OwnedFd)>> {
        if !spec.host_events {
            return Ok(None);
        }
        let terminal = || io::stdin().as_fd().try_clone_to_owned();
        Self::new(spec.terminal.then(terminal).transpose()?).map(Some)
    }

    /// Blocks the signals from now on, for this thread and those it starts. Returns also the end of
    /// the pipe that the guest is to read. With `terminal`, its size is the first event.
    pub fn new(terminal: Option<OwnedFd>) -> io::Result<(Self, OwnedFd)> {
        let (guest_end, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // The event loop must not wait for a guest that does not read.
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        let signals = SignalsFd(Signals::block()?);
        let mut events = Self { signals, pipe: pipe.into(), terminal };
        events.send_size();
        Ok((events, guest_end))
    }

    fn send_size(&mut self) {
        let size = self.terminal.as_ref().map(rustix::termios::tcgetwinsize);
        if let Some(Ok(size)) = size
            && size.ws_row > 0
            && size.ws_col > 0
        {
            self.send(HostEvent::Window { rows: size.ws_row, columns: size.ws_col });
        }
    }

    fn send(&mut self, event: HostEvent) {
        // A full pipe holds 8192 events that the guest did not want to know; one record is less
        // than PIPE_BUF, so it is written whole or not at all.
        let _ = self.pipe.write(&event.to_bytes());
    }
}

impl MutEventSubscriber for HostEvents {
    fn init(&mut self, ops: &mut EventOps) {
        // Cannot fail but for lack of kernel memory.
        let _ = ops.add(Events::new(&self.signals, EventSet::IN));
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        for signal in self.signals.0.read().unwrap_or_default() {
            match signal {
                libc::SIGWINCH => self.send_size(),
                signal => {
                    if let Ok(signal) = u8::try_from(signal) {
                        self.send(HostEvent::Signal(signal));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_size_comes_first_and_signals_are_passed_on() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let terminal = rustix::pty::openpt(flags).unwrap();
        let size = |rows, columns| rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&terminal, size(30, 100)).unwrap();
        let (events, guest_end) = HostEvents::new(Some(terminal)).unwrap();
        let mut manager =
            event_manager::EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
        event_manager::SubscriberOps::add_subscriber(&mut manager, Box::new(events));
        // SAFETY: raises a signal that this thread has just blocked.
        unsafe { libc::raise(libc::SIGTERM) };
        manager.run_with_timeout(1000).unwrap();
        let mut guest_end = File::from(guest_end);
        let mut read = || {
            let mut bytes = [0; HostEvent::LEN];
            guest_end.read_exact(&mut bytes).unwrap();
            HostEvent::from_bytes(bytes)
        };
        assert_eq!(read(), Some(HostEvent::Window { rows: 30, columns: 100 }));
        assert_eq!(read(), Some(HostEvent::Signal(15)));
    }
}
