//! User namespaces: which IDs the container's are to the guest's kernel and to the files.

use bulkhead_protocol::rpc::agent::IdMapping;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::PlanError;

/// Mappings of users and of groups; empty without a user namespace.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

impl Ids {
    /// The mappings that a configuration asks for. A namespace without mappings, or the reverse,
    /// would not be what was meant.
    pub fn of(linux: Option<&Linux>) -> Result<Self, PlanError> {
        let Some(linux) = linux else { return Ok(Self::default()) };
        let mut namespaces = linux.namespaces().iter().flatten();
        let wanted = namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        let ids =
            Self { uids: mappings(linux.uid_mappings()), gids: mappings(linux.gid_mappings()) };
        let complete = [&ids.uids, &ids.gids].map(|mappings| !mappings.is_empty());
        if complete != [wanted; 2] || ids.uids.iter().chain(&ids.gids).any(overflows) {
            return Err(PlanError::IdMapping);
        }
        Ok(ids)
    }

    /// What a user is outside; a user without a mapping stays what it is.
    pub fn user(&self, id: u32) -> u32 {
        outside(&self.uids, id)
    }

    /// What a group is outside.
    pub fn group(&self, id: u32) -> u32 {
        outside(&self.gids, id)
    }

    /// There is a user namespace.
    pub fn are_mapped(&self) -> bool {
        !self.uids.is_empty()
    }
}

fn mappings(asked: &Option<Vec<LinuxIdMapping>>) -> Vec<IdMapping> {
    let mapping = |asked: &LinuxIdMapping| IdMapping {
        container_id: asked.container_id(),
        kernel_id: asked.host_id(),
        size: asked.size(),
        ..Default::default()
    };
    asked.iter().flatten().map(mapping).collect()
}

fn overflows(mapping: &IdMapping) -> bool {
    let ends = [mapping.container_id, mapping.kernel_id].map(|id| id.checked_add(mapping.size));
    mapping.size == 0 || ends.contains(&None)
}

fn outside(mappings: &[IdMapping], id: u32) -> u32 {
    let found = mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|n| *n < mapping.size)?;
        Some(mapping.kernel_id + offset)
    });
    found.unwrap_or(id)
}
