//! One verb, one file.

pub mod doctor;
pub mod images;
pub mod pull;
pub mod rmi;
pub mod run;
