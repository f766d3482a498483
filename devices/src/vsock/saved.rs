//! What a snapshot holds of the connections: plain data, which may say anything.
//!
//! A connection to one of the VMM's own streams goes on with the next VMM's. The other end of any other
//! is in a process that the restored guest has never heard of: it is reset.

use serde::{Deserialize, Serialize};

use super::credit::Credit;
use super::packet::Key;
use crate::virtio::RestoreError;

/// The connections the guest knows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct VsockState {
    /// Host ports of clients go on from here: the guest may take its time to forget the others.
    pub next_client_port: u32,
    /// In any order.
    pub connections: Vec<ConnectionState>,
}

/// A connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConnectionState {
    /// Its ports.
    pub key: Key,
    /// If it is to go on.
    pub joined: Option<JoinedState>,
}

/// A connection to one of the VMM's own streams.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinedState {
    /// Its flow control.
    pub credit: Credit,
    /// What the guest sent and the host has not taken.
    pub backlog: Vec<u8>,
    /// The guest still has to be told that it is connected.
    pub unanswered: bool,
    /// Directions that the guest has shut down, as flags of SHUTDOWN.
    pub guest_shutdown: u32,
    /// Directions that the guest was told are shut down.
    pub told_shutdown: u32,
}

impl VsockState {
    /// The state as it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain data in memory: there is nothing that could fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads what [`VsockState::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RestoreError> {
        match postcard::take_from_bytes(bytes) {
            Ok((state, [])) => Ok(state),
            _ => Err(RestoreError::Device { device: "vsock" }),
        }
    }
}
