//! The monitor's side of SAVE.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::wire::{HEADER_LEN_OUT, op, request_without_body};

/// Has the server at the other end of `socket`, which has answered all that it was asked, write its
/// state to its state file; returns the state's length in bytes. Waits as long as the socket's own
/// timeout lets it. An error of the server's has its number, EFBIG for a state above [`STATE_MAX`].
pub fn save(socket: &UnixStream) -> io::Result<u64> {
    let (mut writer, mut reader) = (socket, socket);
    writer.write_all(&request_without_body(op::SAVE))?;
    let mut header = [0; HEADER_LEN_OUT];
    reader.read_exact(&mut header)?;
    let [_, _, _, _, a, b, c, d, ..] = header;
    match i32::from_le_bytes([a, b, c, d]) {
        0 => {
            let mut len = [0; size_of::<u64>()];
            reader.read_exact(&mut len)?;
            Ok(u64::from_le_bytes(len))
        }
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}
