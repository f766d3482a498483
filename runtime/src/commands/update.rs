//! `bulkhead update`: new limits for a running container, in the guest's cgroup and in the host's.

use std::fs;
use std::io::{self, Read as _};

use bulkhead_protocol::rpc::agent::{UpdateResourcesRequest, UpdateResourcesResponse};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::oci::{self, OciError, PATIENCE};
use crate::args::oci::UpdateArgs;
use crate::oci::cgroup::Limits;
use crate::oci::record::Status;
use crate::oci::{create, plan};
use crate::settings::Settings;
use crate::state::Root;

/// Sets them.
pub fn run(args: &UpdateArgs, root: &Root) -> Result<(), OciError> {
    let container = oci::open(root, &args.id)?;
    let status = container.status();
    if matches!(status, Status::Stopped | Status::Paused) {
        return Err(OciError::NotRunning { id: container.id, status });
    }
    let cgroup = container.cgroup()?;
    let mut resources = resources(args)?;
    if !container.is_member() {
        resources = complete(resources, cgroup.cpu_quota());
    }
    let walls = Settings::load()?.walls(&container.record.annotations)?;
    create::admit(&walls, Some(&resources))?;
    let request = UpdateResourcesRequest {
        cgroup: plan::resources::guest(&resources),
        device_rules: plan::device_rules(&resources)?,
        container: container.name_in_vm(),
        ..Default::default()
    };
    let _: UpdateResourcesResponse =
        container.agent(PATIENCE)?.call("UpdateResources", &request, PATIENCE)?;
    if container.is_member() {
        // Around the VM is another container's.
        return Ok(());
    }
    Ok(cgroup.limit(&Limits::of_change(&resources, walls.cpus))?)
}

/// A quota of CPU time and its period belong together: the one that was not given stays as it is.
fn complete(mut resources: LinuxResources, current: Option<(i64, u64)>) -> LinuxResources {
    let Some(mut cpu) = resources.cpu().clone() else { return resources };
    let (quota, period) = current.unwrap_or((-1, 0));
    match (cpu.quota(), cpu.period()) {
        (None | Some(0), Some(1..)) => {
            cpu.set_quota(Some(quota));
        }
        (Some(1..), None | Some(0)) => {
            cpu.set_period(Some(period));
        }
        _ => {}
    }
    resources.set_cpu(Some(cpu));
    resources
}

fn resources(args: &UpdateArgs) -> Result<LinuxResources, OciError> {
    let json = match &args.resources {
        None => return serde_json::from_value(from_options(args)).map_err(OciError::Resources),
        Some(file) if file.as_os_str() == "-" => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map(|_| text)
        }
        Some(file) => fs::read_to_string(file),
    };
    let path = || args.resources.clone().unwrap_or_default();
    let json = json.map_err(|source| OciError::Read { path: path(), source })?;
    serde_json::from_str(&json).map_err(OciError::Resources)
}

/// The options in the specification's form; only what was given.
fn from_options(args: &UpdateArgs) -> Value {
    let group = |fields: &[(&str, Option<Value>)]| {
        let given = fields
            .iter()
            .filter_map(|(name, value)| value.clone().map(|value| ((*name).to_owned(), value)));
        Some(given.collect::<Map<_, _>>()).filter(|given| !given.is_empty()).map(Value::Object)
    };
    let groups = [
        (
            "memory",
            group(&[
                ("limit", args.memory.map(Value::from)),
                ("reservation", args.memory_reservation.map(Value::from)),
                ("swap", args.memory_swap.map(Value::from)),
            ]),
        ),
        (
            "cpu",
            group(&[
                ("period", args.cpu_period.map(Value::from)),
                ("quota", args.cpu_quota.map(Value::from)),
                ("shares", args.cpu_share.map(Value::from)),
                ("cpus", args.cpuset_cpus.clone().map(Value::from)),
                ("mems", args.cpuset_mems.clone().map(Value::from)),
            ]),
        ),
        ("blockIO", group(&[("weight", args.blkio_weight.map(Value::from))])),
        ("pids", group(&[("limit", args.pids_limit.map(Value::from))])),
    ];
    group(&groups).unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_resources() {
        let typed = "bulkhead update --memory 1048576 --cpu-quota -1 --pids-limit 9 web";
        let args = crate::args::Args::try_parse_from(typed.split(' ')).unwrap();
        let crate::args::Command::Update(args) = args.command else { panic!("not update") };
        let resources = resources(&args).unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(-1));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 9);
        assert!(resources.block_io().is_none());
    }

    #[test]
    fn half_a_quota_leaves_the_other_half() {
        let of = |cpu: Value, current| {
            let asked = serde_json::from_value(json!({ "cpu": cpu })).unwrap();
            let cpu = complete(asked, current).cpu().clone().unwrap();
            (cpu.quota(), cpu.period())
        };
        let current = Some((500_000, 1_000_000));
        assert_eq!(of(json!({"period": 900_000}), current), (Some(500_000), Some(900_000)));
        assert_eq!(of(json!({"quota": 7000}), current), (Some(7000), Some(1_000_000)));
        assert_eq!(of(json!({"quota": 7000, "period": 8000}), current), (Some(7000), Some(8000)));
        assert_eq!(of(json!({"quota": -1}), current), (Some(-1), None));
        assert_eq!(of(json!({"shares": 2}), current), (None, None));
        assert_eq!(of(json!({"period": 9000}), None), (Some(-1), Some(9000)));
    }
}
