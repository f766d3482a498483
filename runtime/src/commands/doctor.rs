//! `bulkhead doctor`: whether this host can run micro-VMs, and what to do if it cannot.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_vmm::probe::{self, Check, Outcome};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::assets::{self, AssetError, Dirs};
use crate::security::{HostFiles, Walls, table};
use crate::state::Root;

const CANNOT: u8 = 1;
const INSTALL: &str = "build or install all of bulkhead: `make` puts its files together";
/// What a kernel image's version string starts with.
const BANNER: &[u8] = b"Linux version ";
/// Longest part of that string that is shown.
const VERSION_MAX: usize = 64;
/// Enough of a program to hold its program headers, in bytes.
const ELF_HEAD: u64 = 64 << 10;
/// Far more than any kernel image has, in bytes.
const KERNEL_MAX: u64 = 256 << 20;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether this host can run micro-VMs.
    can_host: bool,
    /// Bulkhead's own version.
    version: &'static str,
    checks: Vec<Check>,
}

/// What `--security --json` prints.
#[derive(Debug, Serialize)]
struct Security {
    /// Whether every wall of every VM's processes stands.
    walls_stand: bool,
    checks: Vec<Check>,
    walls: Vec<Walls>,
}

/// Checks the host and prints what was found; success if it can run micro-VMs, or, asked for its
/// security, if no wall of a running VM is missing.
pub fn run(args: &DoctorArgs, root: Option<&Root>) -> u8 {
    if args.security {
        return security(args.json);
    }
    if let Some(root) = root {
        root.sweep();
    }
    let mut checks = probe::probe();
    let can_host = probe::can_host(&checks);
    checks.extend(assets(&Dirs::of_this_process()));
    let diagnosis = Diagnosis { can_host, version: env!("CARGO_PKG_VERSION"), checks };
    let text = if args.json { json(&diagnosis) } else { text(&diagnosis) };
    println!("{text}");
    if can_host { 0 } else { CANNOT }
}

fn security(as_json: bool) -> u8 {
    let host = HostFiles::new();
    let (checks, walls) = (host.checks(), host.walls());
    let walls_stand = walls.iter().all(Walls::stand);
    let text = if as_json {
        json(&Security { walls_stand, checks, walls })
    } else {
        let mut lines = lines(&checks);
        lines.push(match walls.len() {
            0 => "No VM runs that this user can see.".to_owned(),
            _ => table(&walls),
        });
        lines.join("\n")
    };
    println!("{text}");
    if walls_stand { 0 } else { CANNOT }
}

fn json(diagnosis: &impl Serialize) -> String {
    // Strings, booleans and lists always serialise.
    serde_json::to_string_pretty(diagnosis).unwrap_or_default()
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut all = vec![format!("bulkhead {}", diagnosis.version)];
    all.extend(lines(&diagnosis.checks));
    all.push(verdict(diagnosis));
    all.join("\n")
}

/// One line a check, and its advice below it.
fn lines(checks: &[Check]) -> Vec<String> {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    let mut given: Vec<&str> = Vec::new();
    for check in checks {
        let outcome = match check.outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED",
        };
        lines.push(format!("{outcome:7}  {:width$}  {}", check.name, check.detail));
        // Several failures often have one cause: its cure is told once.
        if let Some(advice) = check.advice.as_deref().filter(|advice| !given.contains(advice)) {
            given.push(advice);
            lines.push(format!("{:7}  -> {advice}", ""));
        }
    }
    lines
}

fn verdict(diagnosis: &Diagnosis) -> String {
    let count = |outcome| diagnosis.checks.iter().filter(|check| check.outcome == outcome).count();
    let failed = count(Outcome::Failed);
    let warnings = match count(Outcome::Warning) {
        0 => String::new(),
        1 => ", with 1 warning".to_owned(),
        warnings => format!(", with {warnings} warnings"),
    };
    match (diagnosis.can_host, failed) {
        (true, _) => format!("This host can run micro-VMs{warnings}."),
        (false, 1) => "This host cannot run micro-VMs: 1 check failed.".to_owned(),
        (false, _) => format!("This host cannot run micro-VMs: {failed} checks failed."),
    }
}

/// Whether the files bulkhead needs are there. Their lack is a warning: it is no fault of the host.
fn assets(dirs: &Dirs) -> [Check; 3] {
    let found = |name, path: Result<PathBuf, AssetError>, version: fn(&Path) -> Option<String>| {
        match path {
            Ok(path) => {
                let version = version(&path).map(|version| format!(" ({version})"));
                let version = version.unwrap_or_default();
                Check::ok(name, format!("{}{version}", path.display()))
            }
            Err(error) => Check::warning(name, error.to_string(), INSTALL),
        }
    };
    [
        found("monitor", dirs.program(assets::VMM), vmm_version),
        agent(dirs.program(assets::AGENT)),
        found("guest kernel", dirs.file(assets::KERNEL), kernel_version),
    ]
}

/// The agent runs where there is no dynamic loader.
fn agent(path: Result<PathBuf, AssetError>) -> Check {
    let name = "agent";
    match path.map(|path| (has_interpreter(&path), path)) {
        Ok((Some(true), path)) => {
            let detail = format!("{} is not statically linked", path.display());
            Check::warning(name, detail, "guests will not boot: build it with `make agent`")
        }
        Ok((_, path)) => Check::ok(name, path.display().to_string()),
        Err(error) => Check::warning(name, error.to_string(), INSTALL),
    }
}

/// Whether an ELF program asks for a dynamic loader; `None` if it is no 64-bit ELF file.
fn has_interpreter(path: &Path) -> Option<bool> {
    // e_phoff, e_phentsize and e_phnum of Elf64_Ehdr; p_type of Elf64_Phdr (elf(5)).
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    File::open(path).ok()?.take(ELF_HEAD).read_to_end(&mut head).ok()?;
    head.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let bytes = |at: usize, length: usize| head.get(at..at.checked_add(length)?);
    let start = usize::try_from(u64::from_le_bytes(bytes(32, 8)?.try_into().ok()?)).ok()?;
    let size = usize::from(u16::from_le_bytes(bytes(54, 2)?.try_into().ok()?));
    let count = usize::from(u16::from_le_bytes(bytes(56, 2)?.try_into().ok()?));
    let kind = |index: usize| {
        let at = start.checked_add(index.checked_mul(size)?)?;
        Some(u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?))
    };
    Some((0..count).any(|index| kind(index) == Some(PT_INTERP)))
}

fn vmm_version(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(text.lines().next()?.trim().to_owned())
}

fn kernel_version(path: &Path) -> Option<String> {
    let mut image = Vec::new();
    File::open(path).ok()?.take(KERNEL_MAX).read_to_end(&mut image).ok()?;
    let start = image.windows(BANNER.len()).position(|bytes| bytes == BANNER)? + BANNER.len();
    let rest = image[start..].iter().take(VERSION_MAX);
    let version: Vec<u8> = rest.take_while(|byte| byte.is_ascii_graphic()).copied().collect();
    String::from_utf8(version).ok().map(|version| format!("Linux {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn diagnosis(checks: Vec<Check>) -> Diagnosis {
        Diagnosis { can_host: probe::can_host(&checks), version: "1.2.3", checks }
    }

    #[test]
    fn a_bad_host_is_told_with_its_cure_once() {
        let text = text(&diagnosis(vec![
            Check::ok("one", "well"),
            Check::failed("second", "broken", "mend it"),
            Check::failed("third", "broken too", "mend it"),
        ]));
        assert!(text.contains("FAILED   second  broken\n"), "{text}");
        assert_eq!(text.matches("mend it").count(), 1, "{text}");
        assert!(text.ends_with("This host cannot run micro-VMs: 2 checks failed."), "{text}");
    }

    #[test]
    fn a_good_host_may_have_warnings() {
        let text = text(&diagnosis(vec![Check::ok("a", "b"), Check::warning("c", "d", "e")]));
        assert!(text.ends_with("This host can run micro-VMs, with 1 warning."), "{text}");
    }

    #[test]
    fn json_has_the_verdict_and_every_check() {
        let json = json(&diagnosis(vec![Check::ok("a", "b"), Check::failed("c", "d", "e")]));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["can_host"], false);
        assert_eq!(value["version"], "1.2.3");
        let ok = serde_json::json!({"name": "a", "outcome": "ok", "detail": "b", "advice": null});
        assert_eq!(value["checks"][0], ok);
        assert_eq!(value["checks"][1]["outcome"], "failed");
        assert_eq!(value["checks"][1]["advice"], "e");
    }

    #[test]
    fn an_agent_that_needs_a_loader_is_told() {
        let this = std::env::current_exe().unwrap();
        assert_eq!(has_interpreter(&this), Some(true));
        assert_eq!(agent(Ok(this)).outcome, Outcome::Warning);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        elf[54..58].copy_from_slice(&[0xff; 4]);
        fs::write(&path, &elf).unwrap();
        assert_eq!(has_interpreter(&path), Some(false));
        fs::write(&path, "#!/bin/sh").unwrap();
        assert_eq!(has_interpreter(&path), None);
    }

    #[test]
    fn a_kernel_says_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        fs::write(&path, b"\x7fELF\0\0Linux version 6.12.1-x (builder) #1\0").unwrap();
        assert_eq!(kernel_version(&path).as_deref(), Some("Linux 6.12.1-x"));
        fs::write(&path, b"nothing of the kind").unwrap();
        assert_eq!(kernel_version(&path), None);
    }
}
