"""One run of the lab: its process, our ends of its ports, and the threads that copy between them and our own streams."""

import collections
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tty

from machine import LabError, initramfs, qemu

CONSOLE_LINES_SHOWN = 40
COPY_BYTES = 1 << 16
TERMINAL_IDLE_SECONDS = 0.1
PR_SET_PDEATHSIG = 1


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def start_of(mark, text):
    """The longest end of the text that a mark may begin with: it is not known yet whether it does."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((mark[:length] for length in lengths if text.endswith(mark[:length])), b"")


class Session:
    def __init__(self, job, vmlinux, verbose):
        self.job, self.verbose = job, verbose
        self.begun = time.monotonic()
        self.seconds_to_start = None
        self.console = collections.deque(maxlen=CONSOLE_LINES_SHOWN)
        self.copied = collections.Counter()
        self.ended = set()  # streams whose end mark was seen
        self.broken_pipe = False
        self.saved_terminal = None
        pairs = {name: socket.socketpair() for name in job.ports()}
        self.ports = {name: ours for name, (ours, _) in pairs.items()}
        self.process = self.start(vmlinux, {name: theirs for name, (_, theirs) in pairs.items()})

    def start(self, vmlinux, theirs):
        initrd = os.memfd_create("initrd", 0)
        write_all(initrd, initramfs(self.job))
        fds = {name: end.fileno() for name, end in theirs.items()}
        try:
            return subprocess.Popen(
                qemu(self.job, vmlinux, initrd, fds),
                pass_fds=[initrd, *fds.values()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C is ours to handle
                preexec_fn=die_with_parent,
            )
        except FileNotFoundError as error:
            raise LabError("QEMU is not installed: run `make deps`") from error
        finally:
            os.close(initrd)
            for end in theirs.values():
                end.close()

    def __enter__(self):
        spawn(self.read_console)
        spawn(self.read_qemu_errors)
        if self.job.terminal:
            self.saved_terminal = termios.tcgetattr(0)
            tty.setraw(0)
            signal.signal(signal.SIGWINCH, lambda *_: self.send_window_size())
            self.send_window_size()
            spawn(self.copy_out, "terminal", 1)
            spawn(self.copy_in, "terminal")
        else:
            spawn(self.copy_out, "stdout", 1)
            spawn(self.copy_out, "stderr", 2)
            if self.job.stdin:
                spawn(self.copy_in, "stdin")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        if self.saved_terminal:
            termios.tcsetattr(0, termios.TCSAFLUSH, self.saved_terminal)

    def send_window_size(self):
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
        self.ports["control"].sendall(b"winsize %d %d\n" % (rows or 24, columns or 80))

    def read_console(self):
        with self.ports["console"].makefile("r", errors="replace") as lines:
            for line in lines:
                self.console.append(line.rstrip())
                if self.verbose:
                    print(f"[lab] {line.rstrip()}", file=sys.stderr)

    def read_qemu_errors(self):
        for line in self.process.stderr:
            self.console.append(line.decode(errors="replace").rstrip())

    def copy_out(self, name, fd):
        """Copies a stream up to its end mark, which the terminal's lacks."""
        mark, held = self.job.end_mark.encode(), b""
        while data := self.ports[name].recv(COPY_BYTES):
            text, ended, _ = (held + data).partition(mark)
            held = b"" if ended else start_of(mark, text)
            try:
                write_all(fd, text[: len(text) - len(held)])
            except BrokenPipeError:
                self.broken_pipe = True
                self.ports["control"].shutdown(socket.SHUT_RDWR)
                return
            self.copied[name] += len(data)
            if ended:
                self.ended.add(name)
                return

    def copy_in(self, name):
        try:
            while data := os.read(0, COPY_BYTES):
                self.ports[name].sendall(data)
            # Only our half: QEMU must still read what is under way before it sees the end.
            self.ports[name].shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the lab has ended

    def wait(self, timeout_seconds):
        """The command's exit code, once all its output has been written."""
        deadline = self.begun + timeout_seconds if timeout_seconds else float("inf")
        for line in self.control_lines(deadline):
            verb, *numbers = line.split()
            if verb == "started":
                self.seconds_to_start = time.monotonic() - self.begun
            elif verb == "exit":
                self.drain(deadline)
                return 128 + signal.SIGPIPE if self.broken_pipe else int(numbers[0])
        if self.broken_pipe:
            return 128 + signal.SIGPIPE
        raise self.failure("it ended before the command did")

    def control_lines(self, deadline):
        control, pending = self.ports["control"], b""
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self.failure("timed out")
            control.settimeout(min(remaining, 3600))
            try:
                data = control.recv(COPY_BYTES)
            except TimeoutError:
                continue
            except ConnectionResetError:
                return
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            yield from (line.decode() for line in lines if line.strip())

    def drain(self, deadline):
        """Waits for the end of both streams; a terminal's has no mark, so wait until it is quiet."""
        if self.job.terminal:
            seen = -1
            while seen != self.copied["terminal"]:
                seen = self.copied["terminal"]
                time.sleep(TERMINAL_IDLE_SECONDS)
            return
        while not self.broken_pipe and len(self.ended) < 2:
            if time.monotonic() > deadline:
                raise self.failure("timed out with output still to be read")
            time.sleep(0.002)

    def failure(self, what):
        self.process.kill()
        self.process.wait()
        time.sleep(0.1)  # lets the readers take what QEMU left
        lines = "".join(f"\n  | {line}" for line in self.console if line)
        return LabError(f"{what}; the end of its console:{lines or ' (nothing)'}")


def spawn(target, *arguments):
    threading.Thread(target=target, args=arguments, daemon=True).start()
