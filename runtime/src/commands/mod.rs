//! One verb, one file.

pub mod checkpoint;
pub mod clone;
pub mod create;
pub mod delete;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod features;
pub mod images;
pub mod isolation;
pub mod kill;
pub mod list;
pub mod oci;
pub mod pause;
pub mod ps;
pub mod pull;
pub mod restore;
pub mod resume;
pub mod rmi;
pub mod run;
pub mod run_bundle;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;
