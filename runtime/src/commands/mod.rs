//! One verb, one file.

pub mod doctor;
pub mod run;
