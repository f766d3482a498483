//! OCI bundles: what a container engine hands over, and what becomes of it.
//!
//! ```text
//! config.json ── Bundle::load ──▶ Bundle (checked) ── plan ──▶ VmSpec for the host
//!                                     │                        ContainerSpec for the guest
//!                                     └── cgroup ─────────────▶ limits around VMM and fs worker
//! ```
//!
//! # What becomes of each field of config.json (runtime specification 1.2)
//!
//! | field | applied |
//! |---|---|
//! | ociVersion | 1.x; others are refused |
//! | root.path | served over virtio-fs; relative to the bundle and inside of it, or absolute; no symlink |
//! | root.readonly | by the fs worker on the host, and as a flag of the guest's mount |
//! | hostname, domainname | in the guest; without a hostname the ID's first 12 characters |
//! | mounts: bind, rbind | a share of their own, without or with what is mounted below it when the container starts (later mounts do not show); "ro" by the fs worker on the host, for all that is below; other flags and propagation in the guest. Directories, single files; a device, socket or FIFO becomes one of the guest's kernel, so a socket has nobody at its other end |
//! | mounts: overlay | made of the host's directories on the host, and a share (`overlays`); its options besides lowerdir, upperdir and workdir are ours |
//! | mounts: /dev/shm bound from a tmpfs | a tmpfs of that size in the guest: memory is shared within a kernel |
//! | mounts: proc, sysfs, tmpfs, devpts, mqueue, others | by the guest's kernel, with their options; tmpcopyup |
//! | mounts: cgroup, cgroup2 | version 2, whatever the host has |
//! | mounts: idmap, ridmap, uidMappings, gidMappings | of directories and files of the host, by an ID-mapped mount for the fs worker, as root; by the container's mappings if none are given, always for all that is below; refused for other mounts |
//! | mounts: destinations | resolved inside the root, by the guest's kernel; made if missing, as runc does, by the guest, or on the host if the root is read-only |
//! | process.args, env, cwd, user (uid, gid, umask, additionalGids), terminal, consoleSize, rlimits, capabilities, noNewPrivileges, oomScoreAdj, ioPriority, scheduler | in the guest |
//! | process.apparmorProfile, selinuxLabel, linux.mountLabel | no: the guest's kernel has no such module; labels of the host's files are the host's |
//! | process.execCPUAffinity | no: the VM's CPUs are the container's own |
//! | hooks | by the verbs, on the host; startContainer by the agent, in the container |
//! | linux.namespaces | every container has all but user of its own, in a kernel of its own, and user if asked for; a network path is the network's; uts, ipc and network paths of another container of ours make a pod (`pod`); cgroup and other uts paths are harmless (hostname and cgroups are in the configuration); pid, mount, user, time and other ipc paths are refused: they belong to another kernel |
//! | linux.uidMappings, gidMappings | a user namespace in the guest, so that files on the host have the mapped owners; its other namespaces belong to the guest's root, so root in it may mount, but not change the hostname |
//! | linux.timeOffsets | refused |
//! | linux.devices | nodes in the guest; what is behind them is what its kernel has: no hardware of the host's |
//! | linux.netDevices | no: interfaces come from the network namespace |
//! | linux.cgroupsPath | a cgroup around VMM and fs worker, version 1, 2 or both; SLICE:PREFIX:NAME with --systemd-cgroup, as directories and without asking systemd |
//! | resources.memory.limit, reservation | memory.max, memory.low in the guest; the VM's size (limit and what its kernel needs; 512 MiB without a limit); memory.max around VMM and fs worker |
//! | resources.memory: swap, kernel, kernelTCP, swappiness, disableOOMKiller, useHierarchy, checkBeforeUpdate | no: the guest has no swap, and version 2 knows none of the rest |
//! | resources.cpu.quota, period, cpus | the VM's CPUs (quota rounded up, or the set's size; one without a limit, never more than the host's); cpu.max in the guest; quota and set on the host |
//! | resources.cpu.burst | in the guest |
//! | resources.cpu: shares, idle, mems | on the host |
//! | resources.cpu: realtimeRuntime, realtimePeriod | no: version 2 has no such limit |
//! | resources.pids.limit | in the guest; VMM and fs worker have a limit of their own |
//! | resources.blockIO: weight, throttle… | on the host, around the fs worker, which does the I/O |
//! | resources.blockIO: leafWeight, weightDevice | no: kernels have dropped them |
//! | resources.hugepageLimits | in the guest |
//! | resources.devices | in the guest, by a program on the container's cgroup: of each kind of access the last rule that names it holds; what every container has is always allowed, as in runc; without rules every device of the guest's kernel is |
//! | resources.network, rdma, linux.intelRdt, memoryPolicy | no: of version 1, or of hardware that the VM has not |
//! | resources.unified | io.* and cpuset.* on the host, the rest in the guest |
//! | linux.sysctl | in the guest, any: its kernel is the container's own |
//! | linux.seccomp | compiled to BPF on the host, loaded in the guest; SCMP_ACT_NOTIFY is refused |
//! | linux.personality.domain | in the guest |
//! | linux.maskedPaths, readonlyPaths, rootfsPropagation | in the guest |
//! | annotations | read by the verbs (isolation); others mean nothing here |
//! | solaris, windows, vm, zos, unknown fields | ignored |

pub mod background;
pub mod base;
pub mod bundle;
pub mod cgroup;
pub mod checkpoint;
pub mod clock;
pub mod console;
pub mod container;
pub mod create;
pub mod detached;
pub mod exec;
pub mod fork;
pub mod hooks;
pub mod id;
pub mod log;
pub mod member;
pub mod overlays;
pub mod pagemap;
pub mod plan;
pub mod plug;
pub mod pod;
pub mod record;
pub mod restore;
pub mod signal;
pub mod status;
#[cfg(test)]
pub mod testing;
