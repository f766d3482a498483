//! The device as a guest and as host programs see it.

mod clients;
mod guest;
mod hostile;
mod ports;
mod restored;
