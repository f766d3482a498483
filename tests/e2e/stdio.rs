//! Standard streams and terminals.

use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;

use bulkhead_tests::{Host, finish, finish_with_input, start};

#[test]
fn stdout_and_stderr_stay_apart() {
    let host = Host::new();
    let finished = host.sh("echo out; echo err >&2; echo out again");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\nout again\n", "err\n"));
}

#[test]
fn stdin_is_joined_only_when_asked_for() {
    let host = Host::new();
    let cat = |options: &[&str]| finish_with_input(host.run(options, &["cat"]), b"hello\n").ok();
    assert_eq!(cat(&["-i"]), "hello\n");
    assert_eq!(cat(&[]), "");
}

#[test]
fn output_to_files_and_devices_arrives() {
    let host = Host::new();
    let out = std::fs::File::create(host.path("out")).expect("a file");
    let mut command = host.run(&[], &["sh", "-c", "echo to a file; echo by name >/dev/stdout"]);
    assert!(command.stdout(out).status().expect("it runs").success());
    let written = std::fs::read_to_string(host.path("out")).expect("a file");
    assert_eq!(written, "to a file\nby name\n");
    let mut command = host.run(&[], &["sh", "-c", "echo nobody listens; exit 4"]);
    assert_eq!(command.stdout(Stdio::null()).status().expect("it runs").code(), Some(4));
}

#[test]
fn a_reader_that_leaves_does_not_hang_the_container() {
    let host = Host::new();
    let mut child = start(host.run(&[], &["sh", "-c", "yes | head -c 10m; exit 5"]));
    let mut first = [0; 2];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("it says something");
    assert_eq!(&first, b"y\n");
    bulkhead_tests::wait(child);
}

/// 1 GiB through stdin to stdout: every byte, in order. (A full GiB takes minutes on an emulated
/// CPU; `BULKHEAD_TEST_STREAM_MIB` says how much of it this run sends.)
#[test]
fn a_long_stream_arrives_intact() {
    let mib: usize =
        std::env::var("BULKHEAD_TEST_STREAM_MIB").map_or(32, |mib| mib.parse().expect("a number"));
    let host = Host::new();
    let mut command = host.run(&["-i"], &["cat"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = thread::spawn(move || {
        for number in 0..mib {
            stdin.write_all(&block(number)).expect("the container reads");
        }
    });
    let mut stdout = child.stdout.take().expect("piped");
    let mut got = vec![0; 1 << 20];
    for number in 0..mib {
        stdout.read_exact(&mut got).expect("the container writes");
        assert!(got == block(number), "MiB {number} is as it was sent");
    }
    assert_eq!(stdout.read(&mut got).expect("end of file"), 0);
    writer.join().expect("all was sent");
    assert!(child.wait().expect("it ends").success());
}

/// A MiB that no other number's resembles.
fn block(number: usize) -> Vec<u8> {
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..1usize << 17).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// A Python program that runs its arguments on a pseudo-terminal and speaks to it.
const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios, time
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
def resize(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
said = b''
def expect(text, seconds=120):
    global said
    end = time.time() + seconds
    while text not in said:
        ready, _, _ = select.select([master], [], [], max(0, end - time.time()))
        if not ready:
            sys.exit(f'never said {text!r}, only {said!r}')
        try:
            said += os.read(master, 4096)
        except OSError:
            sys.exit(f'ended without {text!r}, with {said!r}')
    said = said.split(text, 1)[1]
def say(text):
    os.write(master, text)
def exit_code():
    try:
        while os.read(master, 4096): pass
    except OSError: pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"#;

fn on_a_terminal(host: &Host, options: &[&str], command: &[&str], dialogue: &str) {
    let bulkhead = host.run(options, command);
    let mut python = std::process::Command::new("python3");
    python.arg("-c").arg(format!("{ON_A_TERMINAL}\n{dialogue}"));
    python.arg(bulkhead.get_program()).args(bulkhead.get_args());
    finish(python).ok();
}

#[test]
fn a_terminal_is_a_terminal() {
    let host = Host::new();
    on_a_terminal(
        &host,
        &["-it"],
        &["sh"],
        r#"
resize(30, 100)
expect(b'# ')
say(b'tty; stty size; echo $((6*7))\r')
expect(b'/dev/pts/0'); expect(b'42'); expect(b'# ')
resize(50, 132); time.sleep(3)
say(b'stty size\r'); expect(b'50 132'); expect(b'# ')
say(b'exit 9\r')
assert exit_code() == 9
"#,
    );
}

#[test]
fn ctrl_c_interrupts_the_process_in_the_terminal() {
    let host = Host::new();
    on_a_terminal(
        &host,
        &["-it"],
        &["sh", "-c", "echo up; sleep 1000; echo \"sleep said $?\"; exit 3"],
        r#"
expect(b'up')
time.sleep(1)
say(b'\x03')
code = exit_code()
assert code in (3, 130), code
"#,
    );
}
