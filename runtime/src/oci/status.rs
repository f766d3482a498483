//! What `state` prints and hooks are given (OCI runtime specification, runtime.md, "State"), with
//! the fields runc adds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::container::Container;
use super::record::{Record, Status};

/// A container's state.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    oci_version: &'a str,
    /// Its ID.
    pub id: &'a str,
    /// Of the host process that is the container; 0 when that has ended.
    pub pid: i32,
    /// What it is doing.
    pub status: String,
    /// Its bundle.
    pub bundle: &'a Path,
    rootfs: &'a Path,
    /// When it was created.
    pub created: &'a str,
    annotations: BTreeMap<String, String>,
    /// Who created it; as runc, empty where that is not known.
    pub owner: &'static str,
}

impl<'a> State<'a> {
    /// Of a container that is being created, for its hooks.
    pub fn creating(record: &'a Record) -> Self {
        let pid = record.process.pid;
        Self::new(record, "creating".to_owned(), pid, record.annotations.clone())
    }

    /// Of a container that was created.
    pub fn of(container: &'a Container) -> Self {
        let record = &container.record;
        let status = container.status();
        let (pid, mut annotations) = (record.process.pid, record.annotations.clone());
        if status != Status::Stopped {
            return Self::new(record, status.to_string(), pid, annotations);
        }
        annotations.extend(container.post_mortem());
        Self::new(record, status.to_string(), 0, annotations)
    }

    fn new(
        record: &'a Record,
        status: String,
        pid: i32,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        Self {
            oci_version: &record.oci_version,
            id: &record.id,
            pid,
            status,
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations,
            owner: "",
        }
    }

    /// As JSON.
    pub fn json(&self) -> String {
        // Strings, numbers and maps of strings always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}
