//! Others that start something, each at the settings its own documentation gives for a quick start,
//! and VMs of the same size with the same kernel. The commands are in the result.
//!
//! - QEMU: the microvm machine of docs/system/i386/microvm.rst ("running a microvm-based VM", with a
//!   serial console and without what the kernel does not need).
//! - Firecracker: see [`super::firecracker`].
//! - Cloud Hypervisor: its README's "booting your VM", direct kernel boot, serial console.
//! - runc, crun: the bundle that their own `spec` makes, without a terminal.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::BenchError;
use super::firecracker;
use super::guest::Guest;
use super::side::{GREETING, Scratch, Side};
use crate::args::BenchArgs;

/// What a VM's kernel is told: as bulkhead's own, and a serial console for the one line of output.
pub const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1 no_timer_check noreplace-smp \
                           printk.time=0 printk.devkmsg=on";
/// A peer of `--vs` as its name and the program.
pub fn named(peer: &str) -> (&str, &str) {
    peer.split_once('=').unwrap_or((peer, peer))
}

/// The sides of `--vs`, booting.
pub fn sides(args: &BenchArgs, scratch: &Scratch) -> Result<Vec<Side>, BenchError> {
    args.vs.iter().map(|peer| side(peer, args, scratch)).collect()
}

/// The sides of `--vs` that can go on from a snapshot, doing so. One that cannot make one here is told and left out.
pub fn clones(args: &BenchArgs, scratch: &Scratch) -> Vec<Side> {
    let peers = args.vs.iter().map(|peer| named(peer)).filter(|(name, _)| *name == "firecracker");
    let sides = peers.filter_map(|(_, program)| match firecracker::clone(program, args, scratch) {
        Ok(side) => Some(side),
        Err(error) => {
            eprintln!("bulkhead: left out: {error}");
            None
        }
    });
    sides.collect()
}

fn side(peer: &str, args: &BenchArgs, scratch: &Scratch) -> Result<Side, BenchError> {
    let (name, program) = named(peer);
    let unknown = || BenchError::Peer(peer.to_owned());
    let words = match name {
        "qemu" => {
            let program = if program == "qemu" { "qemu-system-x86_64" } else { program };
            qemu(program, args, &Guest::new(scratch)?)
        }
        "firecracker" => return firecracker::boot(program, args, scratch),
        "cloud-hypervisor" => cloud_hypervisor(program, args, &Guest::new(scratch)?),
        "runc" | "crun" => {
            return container(&format!("boot/{name}"), program, args, scratch, &["echo", GREETING]);
        }
        _ => return Err(unknown()),
    };
    Ok(Side::endless(&format!("boot/{name}"), words))
}

/// Memory, MiB.
pub fn mib(args: &BenchArgs) -> String {
    args.memory.trim_end_matches(['m', 'M']).to_owned()
}

fn qemu(program: &str, args: &BenchArgs, guest: &Guest) -> Vec<String> {
    let (kernel, initramfs) = (guest.kernel.display(), guest.initramfs.display());
    let (cpus, mib) = (&args.cpus, mib(args));
    let line = format!(
        "{program} -M microvm,acpi=off,x-option-roms=off,rtc=off -enable-kvm -cpu host -m {mib} \
         -smp {cpus} -no-user-config -nodefaults -display none -no-reboot -serial stdio \
         -kernel {kernel} -initrd {initramfs} -append"
    );
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    words.push(CMDLINE.to_owned());
    words
}

fn cloud_hypervisor(program: &str, args: &BenchArgs, guest: &Guest) -> Vec<String> {
    let (kernel, initramfs) =
        (guest.kernel.display().to_string(), guest.initramfs.display().to_string());
    let memory = format!("size={}M", mib(args));
    let cpus = format!("boot={}", args.cpus);
    [
        program,
        "--kernel",
        &kernel,
        "--initramfs",
        &initramfs,
        "--cmdline",
        CMDLINE,
        "--cpus",
        &cpus,
        "--memory",
        &memory,
        "--console",
        "off",
        "--serial",
        "tty",
    ]
    .map(str::to_owned)
    .into()
}

/// A container of the host's kernel: the bundle that `program spec` makes, running `command`.
pub fn container(
    name: &str,
    program: &str,
    args: &BenchArgs,
    scratch: &Scratch,
    command: &[&str],
) -> Result<Side, BenchError> {
    let bundle = bundle(name, program, args, scratch, command)?.display().to_string();
    let id = format!("bulkhead-bench-{}", std::process::id());
    let words = [program, "run", "--bundle", &bundle, &id].map(str::to_owned).into();
    Ok(Side::new(name, words))
}

/// The bundle that `program spec` makes, of the VMs' size, without a terminal, running `command`.
pub fn bundle(
    name: &str,
    program: &str,
    args: &BenchArgs,
    scratch: &Scratch,
    command: &[&str],
) -> Result<PathBuf, BenchError> {
    let spec = Side::new(name, vec![program.to_owned(), "spec".to_owned()]);
    let bundle = scratch.path(format!("bundle-{}", name.replace('/', "-")));
    let made = std::fs::create_dir_all(&bundle);
    made.map_err(|error| spec.failed(error.to_string()))?;
    let output = Command::new(program).arg("spec").current_dir(&bundle).output();
    let output = output.map_err(|error| spec.failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let file = bundle.join("config.json");
    let text = std::fs::read(&file);
    let text =
        text.map_err(|_| spec.failed(format!("it made no config.json, and said: {said}")))?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| spec.failed(error.to_string()))?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(command);
    config["root"]["path"] = json!(absolute(&args.rootfs));
    config["root"]["readonly"] = json!(false);
    let memory = mib(args).parse::<u64>().unwrap_or(128) << 20;
    config["linux"]["resources"]["memory"] = json!({ "limit": memory });
    std::fs::write(&file, config.to_string()).map_err(|error| spec.failed(error.to_string()))?;
    Ok(bundle)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
