//! The steps of the probe guest, and what each must show.

use std::io;
use std::sync::mpsc::Sender;

use kvm_ioctls::Kvm;

use super::Check;
use super::guest::{self, Label};
use super::machine::{ANSWER, Access, End, Machine, MachineError, SIGNATURE, Seen};

/// What helps against a KVM that cannot run a kernel.
pub const ADVICE: &str = "this KVM cannot run a Linux kernel: use a host whose KVM drives VT-x or \
                          AMD-V itself, or a VM with nested virtualization";

const TSC_ADVICE: &str = "tell this host's kernel on its command line (tsc_early_khz=KHZ)";

/// A check by running guest code; `Err` is what was wrong.
type Step = fn(&mut Machine) -> Result<String, String>;

const SETUP: &str = "virtual machine";
/// The device interrupt comes last: it may leave the vCPU halted.
const STEPS: [(&str, Step); COUNT - 1] = [
    ("long mode and port I/O", port_io),
    ("memory-mapped I/O", mmio),
    ("queue notification", notification),
    ("system call", system_call),
    ("exception in user mode", user_exception),
    ("CPUID", cpuid),
    ("kernel instructions", instructions),
    ("device interrupt", device_interrupt),
];
/// How many checks [`run`] sends when all goes well.
pub const COUNT: usize = 9;

/// The name of check `index` of [`run`].
pub fn name(index: usize) -> &'static str {
    let after_setup = index.checked_sub(1).and_then(|step| STEPS.get(step));
    after_setup.map_or(SETUP, |(name, _)| name)
}

/// Sets the machine up and runs all steps, whatever each finds.
pub fn run(kvm: &Kvm, found: &Sender<Check>) {
    let mut machine = match Machine::new(kvm) {
        Ok(machine) => machine,
        Err(error) => {
            let advice = match error {
                MachineError::TscUnknown => TSC_ADVICE,
                MachineError::Refused { .. } => ADVICE,
            };
            let _ = found.send(Check::failed(SETUP, error.to_string(), advice));
            return;
        }
    };
    let mut check = Check::ok(SETUP, "made, with interrupt controllers and one vCPU");
    for (name, step) in STEPS {
        // The receiver has given up on us: nobody wants to know any more.
        if found.send(check).is_err() {
            return;
        }
        check = match step(&mut machine) {
            Ok(detail) => Check::ok(name, detail),
            Err(detail) => Check::failed(name, detail, ADVICE),
        };
    }
    let _ = found.send(check);
}

fn port_io(machine: &mut Machine) -> Result<String, String> {
    let seen = finished(machine.run(Label::PortIo))?;
    let expected = [
        Access::PortRead(guest::IO_PORT),
        Access::PortWrite(guest::IO_PORT, (!ANSWER).to_le_bytes().to_vec()),
    ];
    accesses(&seen, &expected).map(|()| "the guest's port accesses arrive".to_owned())
}

fn mmio(machine: &mut Machine) -> Result<String, String> {
    let seen = finished(machine.run(Label::Mmio))?;
    let expected = [
        Access::Read(guest::MMIO),
        Access::Write(guest::MMIO + 4, (!ANSWER).to_le_bytes().to_vec()),
    ];
    accesses(&seen, &expected).map(|()| "the guest's device accesses arrive".to_owned())
}

fn notification(machine: &mut Machine) -> Result<String, String> {
    let seen = finished(machine.run(Label::Notify))?;
    match (machine.notifications(), &*seen.accesses) {
        (1, []) => Ok("ioeventfd signals the guest's write".to_owned()),
        (count, _) => Err(format!("ioeventfd signalled {count} times for one write of the guest")),
    }
}

fn system_call(machine: &mut Machine) -> Result<String, String> {
    let seen = machine.run(Label::Syscall);
    // Told first: whatever else went wrong followed from it.
    let user = selector(seen.regs.rdi);
    let kernel = selector(seen.regs.rbx);
    if user == guest::USER_CS && kernel != guest::KERNEL_CS && kernel != 0 {
        return Err(format!(
            "after SYSCALL the guest is still at privilege level {} (CS {kernel:#x}, should be {:#x})",
            kernel & 3,
            guest::KERNEL_CS
        ));
    }
    let seen = finished(seen)?;
    entered_user_mode(&seen)?;
    Ok("SYSCALL in user mode arrives in kernel mode".to_owned())
}

fn user_exception(machine: &mut Machine) -> Result<String, String> {
    let seen = finished(machine.run(Label::UserException))?;
    entered_user_mode(&seen)?;
    let [handler, saved] = [seen.regs.rbx, seen.regs.rsi].map(selector);
    if (handler, saved) != (guest::KERNEL_CS, guest::USER_CS) {
        return Err(format!("the handler ran with CS {handler:#x}, interrupting CS {saved:#x}"));
    }
    // SS, RSP, RFLAGS, CS and RIP were pushed on the stack that the TSS names.
    let expected = guest::INTERRUPT_STACK - 5 * 8;
    if seen.regs.rcx != expected {
        return Err(format!("the handler's stack is at {:#x}, not {expected:#x}", seen.regs.rcx));
    }
    Ok("an exception in user mode arrives in kernel mode, on its own stack".to_owned())
}

fn cpuid(machine: &mut Machine) -> Result<String, String> {
    let seen = finished(machine.run(Label::Cpuid))?;
    match seen.regs.rbx as u32 {
        SIGNATURE => Ok("the guest sees what KVM_SET_CPUID2 set".to_owned()),
        _ => Err("the guest sees the host's CPUID, not what KVM_SET_CPUID2 set".to_owned()),
    }
}

fn instructions(machine: &mut Machine) -> Result<String, String> {
    let tried =
        [("POPCNT", Label::Popcnt), ("CMPXCHG16B", Label::Cmpxchg16b), ("INT3", Label::Int3)];
    let mut wrong = Vec::new();
    for (name, label) in tried {
        let seen = machine.run(label);
        let result = match seen.end {
            End::Done if seen.regs.rbx == 8 => continue,
            End::Done => "a wrong result".to_owned(),
            end => describe(&end),
        };
        wrong.push(format!("{name} ({result})"));
    }
    match &*wrong {
        [] => Ok("POPCNT, CMPXCHG16B and INT3 work in kernel mode".to_owned()),
        wrong => Err(format!("not executed in kernel mode: {}", wrong.join(", "))),
    }
}

fn device_interrupt(machine: &mut Machine) -> Result<String, String> {
    machine.interrupt().map_err(|error| error.to_string())?;
    let seen = finished(machine.run(Label::DeviceInterrupt))?;
    match seen.regs.rbx == u64::from(guest::DEVICE_VECTOR) {
        true => Ok("an interrupt line wakes the guest by the IOAPIC".to_owned()),
        false => Err("the guest woke without the interrupt that was raised".to_owned()),
    }
}

fn finished(seen: Seen) -> Result<Seen, String> {
    if seen.end == End::Done { Ok(seen) } else { Err(describe(&seen.end)) }
}

fn accesses(seen: &Seen, expected: &[Access]) -> Result<(), String> {
    if seen.accesses == expected {
        return Ok(());
    }
    Err(format!("the guest's accesses arrived as {:x?}, not {expected:x?}", seen.accesses))
}

fn entered_user_mode(seen: &Seen) -> Result<(), String> {
    match selector(seen.regs.rdi) {
        guest::USER_CS => Ok(()),
        cs => Err(format!("user mode ran with CS {cs:#x} instead of {:#x}", guest::USER_CS)),
    }
}

fn selector(register: u64) -> u16 {
    (register & 0xffff) as u16
}

fn describe(end: &End) -> String {
    match end {
        End::Done => "the guest came through".to_owned(),
        End::Fault(vector) => format!("the guest took exception {vector}"),
        End::Shutdown => "the guest crashed (triple fault)".to_owned(),
        End::Internal(suberror) => format!("KVM gave up: internal error {suberror}"),
        End::FailEntry(reason) => {
            format!("the processor refused to enter the guest: reason {reason:#x}")
        }
        End::Ioctl(errno) => {
            format!("KVM refused to run the guest: {}", io::Error::from_raw_os_error(*errno))
        }
        End::Strange(exit) => format!("the guest stopped unexpectedly: {exit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_its_name() {
        let names: Vec<_> = (0..COUNT).map(name).collect();
        assert_eq!(names[0], SETUP);
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), COUNT);
    }

    #[test]
    fn an_access_with_other_data_is_told() {
        let seen = Seen {
            end: End::Done,
            accesses: vec![Access::Write(guest::MMIO, vec![1])],
            regs: Default::default(),
        };
        assert!(accesses(&seen, &[Access::Write(guest::MMIO, vec![1])]).is_ok());
        let wrong = accesses(&seen, &[Access::Write(guest::MMIO, vec![2])]).unwrap_err();
        assert!(wrong.contains("[1]") && wrong.contains("[2]"), "{wrong}");
    }
}
