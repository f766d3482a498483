//! FUSE server.
