//! A system call that a process did not mean to make, as one that was taken over would: put into a
//! thread of it by ptrace(2).

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use libc::{c_long, c_void, pid_t, user_regs_struct};

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel ended the process with this signal.
    Killed(i32),
    /// What the call returned: a value, or a negative error number.
    Returned(i64),
}

/// Stands for the address of a text.
pub const TEXT: u64 = u64::MAX << 12;

/// `syscall`, two bytes.
const SYSCALL: c_long = 0x050f;

/// Has thread `tid`, which waits in a system call, make the call `number` with `args`. A thread that
/// lives on goes back to what it did.
pub fn inject(tid: u32, number: c_long, args: [u64; 3]) -> io::Result<Outcome> {
    let tid = tid as pid_t;
    let options = libc::PTRACE_O_TRACESYSGOOD as usize;
    request(libc::PTRACE_SEIZE, tid, 0, options)?;
    let before = waiting(tid)?;
    // Where it waits is behind the instruction that it waits in.
    let instruction = before.rip - 2;
    let [rdi, rsi, rdx] = args;
    let rax = number as u64;
    // Without `orig_rax` the kernel restarts nothing.
    let injected =
        user_regs_struct { rip: instruction, rax, orig_rax: u64::MAX, rdi, rsi, rdx, ..before };
    set_registers(tid, &injected)?;
    // Its beginning and its end; a stop of another kind may come before. Of a call that a filter
    // refused there is an end too, with the signal waiting behind it.
    let (mut stops, mut signal) = (0, 0);
    while stops < 2 || is_refused(tid)? {
        request(libc::PTRACE_SYSCALL, tid, 0, signal)?;
        let status = wait(tid)?;
        if libc::WIFSIGNALED(status) {
            return Ok(Outcome::Killed(libc::WTERMSIG(status)));
        }
        let stop = libc::WSTOPSIG(status);
        stops += i32::from(stop == libc::SIGTRAP | 0x80);
        signal = if stop == libc::SIGSYS { libc::SIGSYS as usize } else { 0 };
    }
    let returned = registers(tid)?.rax.cast_signed();
    set_registers(tid, &before)?;
    request(libc::PTRACE_DETACH, tid, 0, 0)?;
    Ok(Outcome::Returned(returned))
}

/// Runs `command` until its first thread is about to put a filter before itself, has it make `calls` instead,
/// with [`TEXT`] in its memory, and ends it. Returns what each returned: what the walls say without the filter.
pub fn before_its_filter(
    mut command: Command,
    calls: &[(c_long, [u64; 3], &CStr)],
) -> io::Result<Vec<i64>> {
    // SAFETY: the child makes one system call more, which takes numbers.
    unsafe { command.pre_exec(|| request(libc::PTRACE_TRACEME, 0, 0, 0).map(drop)) };
    let mut child = command.spawn()?;
    let tid = child.id() as pid_t;
    wait(tid)?;
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize)?;
    let before = loop {
        next_stop(tid)?;
        let before = registers(tid)?;
        if before.orig_rax == libc::SYS_seccomp as u64 {
            break before;
        }
        next_stop(tid)?;
    };
    let mut returned = Vec::new();
    for (number, args, text) in calls {
        // Below the stack and what a function may use there without saying so.
        let place = (before.rsp - 1024) & !7;
        put(tid, place, text.to_bytes_with_nul())?;
        let [rdi, rsi, rdx] = args.map(|arg| if arg == TEXT { place } else { arg });
        let (orig_rax, r10) = (*number as u64, 0);
        set_registers(tid, &user_regs_struct { orig_rax, rdi, rsi, rdx, r10, ..before })?;
        next_stop(tid)?;
        returned.push(registers(tid)?.rax.cast_signed());
        // Once more to the beginning of a call.
        let (rip, rax) = (before.rip - 2, libc::SYS_gettid as u64);
        set_registers(tid, &user_regs_struct { rip, rax, ..before })?;
        next_stop(tid)?;
    }
    child.kill()?;
    child.wait()?;
    Ok(returned)
}

/// Goes on to the next beginning or end of a system call.
fn next_stop(tid: pid_t) -> io::Result<()> {
    let mut signal = 0;
    loop {
        request(libc::PTRACE_SYSCALL, tid, 0, signal)?;
        let status = wait(tid)?;
        if !libc::WIFSTOPPED(status) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match libc::WSTOPSIG(status) {
            stop if stop == libc::SIGTRAP | 0x80 => return Ok(()),
            stop => signal = stop as usize,
        }
    }
}

/// Writes to the thread's memory, and zeroes to the next multiple of a word.
fn put(tid: pid_t, place: u64, bytes: &[u8]) -> io::Result<()> {
    for (at, chunk) in (place..).step_by(8).zip(bytes.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u64::from_ne_bytes(word) as usize;
        request(libc::PTRACE_POKEDATA, tid, at as usize, word)?;
    }
    Ok(())
}

/// Stops the thread in a system call and returns its registers. It may be met at work.
fn waiting(tid: pid_t) -> io::Result<user_regs_struct> {
    for _ in 0..500 {
        request(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
        wait(tid)?;
        let registers = registers(tid)?;
        let text = request(libc::PTRACE_PEEKTEXT, tid, registers.rip as usize - 2, 0)?;
        if text & 0xffff == SYSCALL {
            return Ok(registers);
        }
        request(libc::PTRACE_CONT, tid, 0, 0)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Whether a filter's signal is on its way.
fn is_refused(tid: pid_t) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"))?;
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap_or_default();
    let pending = u64::from_str_radix(pending.trim(), 16).unwrap_or(0);
    Ok(pending & 1 << (libc::SIGSYS - 1) != 0)
}

fn registers(tid: pid_t) -> io::Result<user_regs_struct> {
    // SAFETY: it is plain integers, for which zero is valid.
    let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers).addr())?;
    Ok(registers)
}

fn set_registers(tid: pid_t, registers: &user_regs_struct) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, (&raw const *registers).addr()).map(drop)
}

fn request(request: libc::c_uint, tid: pid_t, address: usize, data: usize) -> io::Result<c_long> {
    let [address, data] = [address, data].map(std::ptr::without_provenance_mut::<c_void>);
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = 0 };
    // SAFETY: the requests used here read and write registers at `data`, which callers point at a
    // whole structure of them, and nothing else of ours.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    let error = io::Error::last_os_error();
    // A word that is read may be -1.
    if result == -1 && error.raw_os_error() != Some(0) { Err(error) } else { Ok(result) }
}

fn wait(tid: pid_t) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is an int.
    match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(status),
    }
}
