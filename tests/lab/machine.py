"""The lab's machine: the initramfs that carries a job into it, and QEMU's command line."""

import os
import secrets
import shlex
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAB_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIRECTORY, FILE, EXECUTABLE, LINK = 0o040755, 0o100644, 0o100755, 0o120777
# What init calls; stage2 finds busybox's applets without links, through /proc.
INIT_APPLETS = ("cat", "chmod", "cp", "date", "ln", "mkdir", "mount", "switch_root")


class LabError(Exception):
    """The lab could not run the command: one sentence, perhaps with the last lines of its console."""


@dataclass(frozen=True)
class Job:
    """What to run in the lab, and in what kind of lab."""

    command: list
    environment: dict
    directory: str
    terminal: bool
    stdin: bool
    shares: list
    exact: bool
    cpus: int
    threads: int
    memory_mib: int
    end_mark: str = field(default_factory=lambda: secrets.token_hex(16))  # follows the last byte of stdout and of stderr

    def ports(self):
        """Names of the virtio ports, in the order of their numbers (stage2 knows them too), after the serial console."""
        return ["console", "control"] + (["terminal"] if self.terminal else ["stdin", "stdout", "stderr"])

    def script(self):
        """What stage2 reads: a few variables, and a function that becomes the command."""
        lines = [f"terminal={int(self.terminal)}", f"stdin={int(self.stdin)}", f"end_mark={self.end_mark}"]
        lines += [f"directory={shlex.quote(self.directory)}", "job() {"]
        lines += [ *(f"export {name}={shlex.quote(value)}" for name, value in self.environment.items())]
        lines += ['cd "$directory" || exit 125', "exec " + shlex.join(self.command), "}", ""]
        return os.fsencode("\n".join(lines))


def cpio(entries):
    """A newc archive, the format of an initramfs, of (name, mode, data)."""
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def initramfs(job):
    """Small enough to be made anew for each run: a shell, two scripts, the job."""
    busybox = shutil.which("busybox", path=LAB_PATH)
    if not busybox:
        raise LabError("busybox is not installed: run `make deps`")
    shares = "".join(f"share{index} {directory}\n" for index, directory in enumerate(job.shares))
    return cpio(
        [
            *((name, DIRECTORY, b"") for name in ("bin", "dev", "proc")),
            *((f"bin/{name}", LINK, b"busybox") for name in INIT_APPLETS),
            ("bin/busybox", EXECUTABLE, Path(busybox).read_bytes()),
            ("init", EXECUTABLE, (HERE / "init").read_bytes()),
            ("stage2", FILE, (HERE / "stage2").read_bytes()),
            ("shares", FILE, os.fsencode(shares)),
            ("job", FILE, job.script()),
        ]
    )


def kernel_line(job):
    words = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "8250.nr_uarts=1", "random.trust_cpu=on"]
    # An emulated timer needs no checking, and the emulated TSC never drifts.
    words += ["tsc=reliable", "no_timer_check", "noreplace-smp"]
    if not job.exact:
        # QEMU 7.2 clears its virtual-interrupt flag without a lock, and another interrupt that arrives meanwhile is lost. A CPU
        # that waits for a one-shot timer then never wakes; a periodic one comes again. (With --exact there is one thread.)
        words += ["highres=off", "nohz=off"]
    return " ".join([*words, f"lab.time={int(time.time())}"])


# ERMS and FSRM make kernels copy and clear by `rep movsb`, of which the emulator counts every byte as an instruction; without
# them they use `rep movsq`, which is nearer to what real hardware takes. XSAVE is off because the emulator does not let KVM
# intercept XSETBV: a guest that enabled AVX or even SSE state by it would lose that state at its next exit. AVX and what builds on
# it go with it: programs that trust CPUID alone (netavark 1.4) would run into illegal instructions.
CPU = "max,+svm,-erms,-fsrm,-xsave,-avx,-avx2,-fma,-f16c"


def processor(job):
    return CPU + (",+topoext" if job.threads > 1 else "")


def accelerator(job):
    if job.exact:
        return ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
    # One thread of QEMU's for all threads of a core: with more it loses interrupts, as with more CPUs.
    emulation = "single" if job.threads > 1 else "multi"
    smp = f"{job.cpus * job.threads},sockets=1,cores={job.cpus},threads={job.threads}"
    return ["-accel", f"tcg,thread={emulation}", "-smp", smp]


def qemu(job, vmlinux, initrd_fd, port_fds):
    """The command that starts the machine; port_fds maps each port's name to a connected socket."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"]
    command += ["-M", "q35,hpet=off,smbus=off,sata=off,i8042=off,vmport=off", "-cpu", processor(job)]
    command += [*accelerator(job), "-m", str(job.memory_mib)]
    command += ["-kernel", vmlinux, "-initrd", f"/dev/fd/{initrd_fd}", "-append", kernel_line(job)]
    command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=8"]
    for number, name in enumerate(job.ports()):
        command += ["-chardev", f"socket,id={name},fd={port_fds[name]}"]
        if name == "console":
            command += ["-serial", f"chardev:{name}"]
        elif name == "terminal":
            command += ["-device", f"virtconsole,chardev={name},nr={number}"]
        else:
            command += ["-device", f"virtserialport,chardev={name},nr={number}"]
    directories = [("root", "/", "on"), *((f"share{number}", path, "off") for number, path in enumerate(job.shares))]
    for tag, path, readonly in directories:
        escaped = path.replace(",", ",,")
        command += ["-fsdev", f"local,id={tag},path={escaped},security_model=none,multidevs=remap,readonly={readonly}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return command
