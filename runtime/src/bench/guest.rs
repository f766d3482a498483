//! What every VM boots, bulkhead's and the peers': bulkhead's kernel, and an initramfs whose /init greets. So a row
//! compares monitors, and not what they run.

use std::path::PathBuf;

use bulkhead_vmm::spec::VmSpec;

use super::BenchError;
use super::peers::mib;
use super::side::{Scratch, Side};
use crate::args::BenchArgs;
use crate::assets::{self, Dirs};
use crate::plan::CID;

// /init: greets every millisecond, as one that goes on from a snapshot has to greet again. By the kernel's log, which
// needs no interrupt of the serial device: Firecracker's has forgotten, in a snapshot, that one is due.
std::arch::global_asm!(
    ".pushsection .rodata",
    "bulkhead_greeter_start:",
    "mov eax, 133", // mknod(kmsg, S_IFCHR | 0600, makedev(1, 11)), in its working directory
    "lea rdi, [rip + 3f]",
    "mov esi, 0x2180",
    "mov edx, 0x10b",
    "syscall",
    "mov eax, 2", // open(kmsg, O_WRONLY)
    "lea rdi, [rip + 3f]",
    "mov esi, 1",
    "syscall",
    "mov ebx, eax",
    "2:",
    "mov eax, 1", // write(it, greeting)
    "mov edi, ebx",
    "lea rsi, [rip + 4f]",
    "mov edx, 9",
    "syscall",
    "mov eax, 35", // nanosleep(a millisecond)
    "lea rdi, [rip + 5f]",
    "xor esi, esi",
    "syscall",
    "jmp 2b",
    "3: .asciz \"kmsg\"",
    "4: .ascii \"<0>hello\\n\"",
    "5: .quad 0, 1000000",
    "bulkhead_greeter_end:",
    ".popsection",
);

unsafe extern "C" {
    static bulkhead_greeter_start: u8;
    static bulkhead_greeter_end: u8;
}

fn greeter() -> &'static [u8] {
    let (start, end) = (&raw const bulkhead_greeter_start, &raw const bulkhead_greeter_end);
    // SAFETY: both symbols are in the one read-only section above, the end behind the start; it lives as long as the
    // program, and nobody writes to it.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// A static program of one segment, as small as ELF allows (its gABI's headers).
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let long = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    half(&mut file, &[2, 62, 1, 0]); // ET_EXEC, x86-64, version 1
    long(&mut file, &[BASE + HEADERS, 64, 0]); // entry, program headers, no sections
    half(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]); // flags, sizes, one program header
    half(&mut file, &[1, 0, 5, 0]); // PT_LOAD, readable and executable
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(code);
    file
}

/// What makes the kernel's log show the greeting, all of them, and nothing before it.
const LOG_AS_IS: [&str; 3] = ["quiet", "printk.time=0", "printk.devkmsg=on"];

/// What every VM gets.
pub struct Guest {
    /// bulkhead's kernel.
    pub kernel: PathBuf,
    /// The program that becomes /init.
    pub init: PathBuf,
    /// An archive with it and a console.
    pub initramfs: PathBuf,
}

impl Guest {
    /// Makes program and archive.
    pub fn new(scratch: &Scratch) -> Result<Self, BenchError> {
        let init = elf(greeter());
        let initramfs = scratch.write("initramfs", &archive(&init))?;
        let kernel = asset(assets::KERNEL)?;
        Ok(Self { kernel, init: scratch.write("init", &init)?, initramfs })
    }
}

/// bulkhead's monitor alone, as others are measured: from its exec to the first line of /init, in its jail, with the
/// devices every container has.
pub fn monitor(args: &BenchArgs, scratch: &Scratch) -> Result<Side, BenchError> {
    let Guest { kernel, init, .. } = Guest::new(scratch)?;
    let socket = scratch.path("vsock");
    let spec = VmSpec {
        name: "bench".to_owned(),
        vcpus: args.cpus.parse().unwrap_or(1),
        memory_mib: mib(args).parse().unwrap_or(128),
        kernel,
        init,
        cmdline: LOG_AS_IS.map(str::to_owned).into(),
        cid: CID,
        vsock: socket.clone(),
        console: true,
        ..VmSpec::default()
    };
    let spec = serde_json::to_vec(&spec).unwrap_or_default();
    let words = [asset(assets::VMM)?, "--spec".into(), scratch.write("vm.json", &spec)?];
    let words = words.map(|word| word.display().to_string()).into();
    let side = Side::endless("boot/bulkhead-vmm", words);
    Ok(Side { on_stderr: true, socket: Some(socket), ..side })
}

fn asset(name: &'static str) -> Result<PathBuf, BenchError> {
    let failed = |error: assets::AssetError| BenchError::File {
        action: "find",
        path: name.into(),
        source: std::io::Error::other(error.to_string()),
    };
    Dirs::of_this_process().file(name).map_err(failed)
}

/// A newc archive with /init and the console it is given (the kernel's
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        let (size, name_len) = (data.len() as u32, name.len() as u32 + 1);
        let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_len, 0];
        archive.extend_from_slice(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add("dev", 0o040_755, (0, 0), b"");
    add("dev/console", 0o020_600, (5, 1), b"");
    add("init", 0o100_755, (0, 0), init);
    add("TRAILER!!!", 0, (0, 0), b"");
    archive
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::super::side::Ended;
    use super::*;

    #[test]
    fn the_greeter_is_a_program_that_greets_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let (init, log) = (dir.path().join("init"), dir.path().join("kmsg"));
        std::fs::write(&init, elf(greeter())).unwrap();
        std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755)).unwrap();
        mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _greeter = Ended(Command::new(&init).current_dir(dir.path()).spawn().unwrap());
        let said = BufReader::new(File::open(&log).unwrap()).lines().take(3);
        assert!(said.map(Result::unwrap).eq(["<0>hello"; 3]));
    }
}
