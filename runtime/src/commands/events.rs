//! `bulkhead events`: what a container uses, as JSON lines in runc's form, and when it runs out of
//! memory. The figures are the guest kernel's.

use std::time::Duration;

use bulkhead_protocol::rpc::agent::{StatsRequest, StatsResponse};
use serde::Serialize;
use serde_json::{Value, json};

use super::oci::{self, OciError, PATIENCE, print};
use crate::args::oci::EventsArgs;
use crate::oci::container::Container;
use crate::oci::record::Status;
use crate::state::Root;

/// Prints them until the container ends.
pub fn run(args: &EventsArgs, root: &Root) -> Result<(), OciError> {
    let interval = interval(&args.interval)?;
    let container = oci::open(root, &args.id)?;
    let status = container.status();
    if status == Status::Stopped {
        return Err(OciError::NotRunning { id: container.id, status });
    }
    if args.stats {
        print(&stats_event(&args.id, &stats(&container)?).json());
        return Ok(());
    }
    let mut oom_kills = 0;
    loop {
        match stats(&container) {
            Ok(stats) => {
                if stats.oom_kills > oom_kills {
                    oom_kills = stats.oom_kills;
                    print(&oom_event(&args.id).json());
                }
                print(&stats_event(&args.id, &stats).json());
            }
            // Paused, or just about to end.
            Err(_) if container.status() != Status::Running => {}
            Err(error) => return Err(error),
        }
        if container.wait(interval) {
            if container.post_mortem().iter().any(|(name, _)| name.ends_with(".oom"))
                && oom_kills == 0
            {
                print(&oom_event(&args.id).json());
            }
            return Ok(());
        }
    }
}

fn stats(container: &Container) -> Result<StatsResponse, OciError> {
    let mut agent = container.agent(PATIENCE)?;
    let request = StatsRequest { container: container.name_in_vm(), ..Default::default() };
    Ok(agent.call("Stats", &request, PATIENCE)?)
}

/// "5s", "500ms", "1m", or seconds.
fn interval(text: &str) -> Result<Duration, OciError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "" | "s" => 1000,
        "ms" => 1,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    ms.filter(|ms| *ms > 0).map(Duration::from_millis).ok_or_else(|| OciError::Option {
        option: "interval",
        value: text.to_owned(),
        advice: "give a time such as 5s or 500ms, more than 0",
    })
}

/// An event, with the fields in runc's order, which some look for by pattern.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl Event<'_> {
    fn json(&self) -> String {
        // Strings and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn stats_event<'a>(id: &'a str, stats: &StatsResponse) -> Event<'a> {
    let ns = |us: u64| us.saturating_mul(1000);
    let data = json!({
        "cpu": {
            "usage": {
                "total": ns(stats.cpu_usage_us),
                "kernel": ns(stats.cpu_system_us),
                "user": ns(stats.cpu_user_us),
            },
            "throttling": {},
        },
        "memory": {
            "usage": {
                "usage": stats.memory_bytes,
                "max": stats.memory_peak_bytes,
                "limit": stats.memory_limit_bytes,
                "failcnt": stats.oom_kills,
            },
        },
        "pids": { "current": stats.pids, "limit": stats.pids_limit },
        "blkio": {},
        "hugetlb": {},
    });
    Event { kind: "stats", id, data: Some(data) }
}

fn oom_event(id: &str) -> Event<'_> {
    Event { kind: "oom", id, data: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        for (text, ms) in [("5", 5000), ("5s", 5000), ("20ms", 20), ("2m", 120_000)] {
            assert_eq!(interval(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "0", "0s", "s", "1d", "-1s", "1.5s", "99999999999999999999h"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_have_runc_s_names_and_units() {
        let stats =
            StatsResponse { cpu_usage_us: 7, memory_bytes: 4096, pids: 3, ..Default::default() };
        let event = stats_event("web", &stats);
        assert!(event.json().starts_with(r#"{"type":"stats","id":"web","data":{"#));
        let data = event.data.unwrap();
        assert_eq!(data["cpu"]["usage"]["total"], 7000);
        assert_eq!(data["memory"]["usage"]["usage"], 4096);
        assert_eq!(data["pids"]["current"], 3);
    }
}
