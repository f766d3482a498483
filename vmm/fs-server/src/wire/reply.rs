//! Replies: bytes out.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// Length of `struct fuse_out_header`.
pub const HEADER_LEN_OUT: usize = 16;

/// A reply under construction in a thread's buffer, header first, so that one `send` takes it all.
///
/// Writing beyond the buffer fails with EIO; no reply that fits [`super::MESSAGE_MAX`] does.
#[derive(Debug)]
pub struct Reply<'a> {
    buffer: &'a mut [u8],
    len: usize,
    /// A file to be handed over with it.
    file: Option<OwnedFd>,
}

impl<'a> Reply<'a> {
    /// Begins a reply in `buffer`, which must hold a header at least.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        assert!(buffer.len() >= HEADER_LEN_OUT, "a reply's buffer is made once, by the server");
        Self { buffer, len: HEADER_LEN_OUT, file: None }
    }

    /// Hands a file over with the reply.
    pub fn attach(&mut self, file: OwnedFd) {
        self.file = Some(file);
    }

    /// Takes back the file to be handed over.
    pub fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    /// Bytes of the body so far.
    pub fn body_len(&self) -> usize {
        self.len - HEADER_LEN_OUT
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.spare(bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Appends 32-bit fields.
    pub fn u32s<const N: usize>(&mut self, values: [u32; N]) -> Result<(), Errno> {
        values.iter().try_for_each(|value| self.bytes(&value.to_le_bytes()))
    }

    /// Appends 64-bit fields.
    pub fn u64s<const N: usize>(&mut self, values: [u64; N]) -> Result<(), Errno> {
        values.iter().try_for_each(|value| self.bytes(&value.to_le_bytes()))
    }

    /// Appends `len` zero bytes.
    pub fn zeros(&mut self, len: usize) -> Result<(), Errno> {
        self.spare(len)?.fill(0);
        self.len += len;
        Ok(())
    }

    /// The `len` bytes after the reply so far, to be filled and then taken in by [`Self::grow`].
    pub fn spare(&mut self, len: usize) -> Result<&mut [u8], Errno> {
        self.buffer[self.len..].get_mut(..len).ok_or(Errno::IO)
    }

    /// Appends the first `len` bytes of what [`Self::spare`] gave out.
    pub fn grow(&mut self, len: usize) -> Result<(), Errno> {
        self.spare(len)?;
        self.len += len;
        Ok(())
    }

    /// Completes the header and returns the message's length. An error drops the body.
    pub fn finish(self, unique: u64, result: Result<(), Errno>) -> usize {
        let (len, error) = match result {
            Ok(()) => (self.len, 0),
            Err(errno) => (HEADER_LEN_OUT, -errno.raw_os_error()),
        };
        self.buffer[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.buffer[4..8].copy_from_slice(&error.to_le_bytes());
        self.buffer[8..HEADER_LEN_OUT].copy_from_slice(&unique.to_le_bytes());
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_header_then_body() {
        let mut buffer = [0xaa; 32];
        let mut reply = Reply::new(&mut buffer);
        reply.u32s([7]).unwrap();
        reply.u64s([8]).unwrap();
        assert_eq!(reply.bytes(&[0; 5]), Err(Errno::IO));
        assert_eq!(reply.finish(9, Ok(())), 28);
        assert_eq!(buffer[..16], [28, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(buffer[16..28], [7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_error_has_no_body() {
        let mut buffer = [0; 32];
        let mut reply = Reply::new(&mut buffer);
        reply.u64s([1]).unwrap();
        assert_eq!(reply.finish(1, Err(Errno::NOENT)), 16);
        assert_eq!(buffer[4..8], (-2i32).to_le_bytes());
    }
}
