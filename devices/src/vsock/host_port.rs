//! Host ports that the VMM answers itself.

use std::fmt;
use std::os::fd::OwnedFd;

use super::output::Output;
use crate::host_stream::{Direction, HostStream};
use crate::virtio::buffers::Buffers;

/// Takes a message.
pub type Deliver = Box<dyn FnMut(&[u8]) + Send>;

/// What is behind a host port. The first connection gets it; later ones are reset.
pub enum HostEnd {
    /// Inherited descriptors.
    Streams {
        /// What is read from it goes to the guest; end of file is a half close.
        read: Option<OwnedFd>,
        /// What the guest sends is written to it; closed when the guest will send no more.
        write: Option<OwnedFd>,
    },
    /// One message of a fixed length from the guest, which gets no answer.
    Message {
        /// Bytes.
        len: usize,
        /// Called once with the message, on the event loop's thread, when all that came before it
        /// on [`HostEnd::Streams`] has been written.
        deliver: Deliver,
    },
}

/// The ports that nobody has connected to yet.
pub struct HostPorts(Vec<(u32, Option<Port>)>);

/// What a connection to a port gets: the input and the output of the host's end.
pub type Port = (Option<HostStream>, Output);

impl HostPorts {
    /// Takes the descriptors over at once: reopening them needs /proc, which a jail may take away.
    pub fn new(ports: Vec<(u32, HostEnd)>) -> Self {
        let open = |end| match end {
            HostEnd::Streams { read, write } => {
                let read = read.map(|fd| HostStream::inherited(fd, Direction::Read));
                let write = write.map(|fd| HostStream::inherited(fd, Direction::Write));
                (read, Output::joined(write))
            }
            HostEnd::Message { len, deliver } => {
                (None, Output::message(Message::new(len, deliver)))
            }
        };
        Self(ports.into_iter().map(|(port, end)| (port, Some(open(end)))).collect())
    }

    /// Takes what is behind `port`: `None` if the VMM does not answer it, `Some(None)` if it was
    /// taken before.
    pub fn take(&mut self, port: u32) -> Option<Option<Port>> {
        self.0.iter_mut().find(|(known, _)| *known == port).map(|(_, end)| end.take())
    }
}

/// A [`HostEnd::Message`] on its way.
pub struct Message {
    len: usize,
    bytes: Vec<u8>,
    deliver: Option<Deliver>,
}

impl Message {
    pub fn new(len: usize, deliver: Deliver) -> Self {
        Self { len, bytes: Vec::new(), deliver: Some(deliver) }
    }

    /// Takes bytes up to the message's length; what comes after is ignored.
    pub fn collect(&mut self, payload: &mut Buffers) {
        let start = self.bytes.len();
        self.bytes.resize(start + payload.len().min(self.len - start), 0);
        payload.read(&mut self.bytes[start..]);
    }

    /// All of it is there and was not delivered yet.
    pub fn is_due(&self) -> bool {
        self.bytes.len() == self.len && self.deliver.is_some()
    }

    /// Delivers it.
    pub fn deliver(&mut self) {
        if let Some(mut deliver) = self.deliver.take() {
            deliver(&self.bytes);
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Message({} of {} bytes)", self.bytes.len(), self.len)
    }
}
