//! Saved containers with a terminal: each that goes on has one of its own.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{finish, until};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;

/// Says what it is told, and how large its terminal is.
const ECHO: &str = r#"stty -echo; while read line; do echo "$line $(stty size)"; done; echo over"#;

/// The terminal that the bulkhead of `command` makes, which is given options for that.
fn terminal(bundle: &Bundle, command: impl FnOnce(&[&str]) -> Command) -> BufReader<File> {
    let path = bundle.host.path("console");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut command = command(&["--console-socket", path.to_str().expect("a plain path")]);
    command.stdout(Stdio::null());
    assert!(command.status().expect("bulkhead runs").success(), "{command:?}");
    std::fs::remove_file(&path).expect("the socket");
    let (stream, _) = listener.accept().expect("it was sent");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let buffers = &mut [IoSliceMut::new(&mut name)];
    recvmsg(&stream, buffers, &mut control, RecvFlags::CMSG_CLOEXEC).expect("a message");
    let sent = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
        _ => None,
    });
    BufReader::new(File::from(sent.expect("a terminal")))
}

/// What the container answers, without what came before.
#[track_caller]
fn says(terminal: &mut BufReader<File>, word: &str) -> String {
    writeln!(terminal.get_ref(), "{word}").expect("it takes it");
    let mut line = String::new();
    while !line.starts_with(word) || line.trim_end() == word {
        line.clear();
        terminal.read_line(&mut line).expect("a line");
    }
    line.trim_end().to_owned()
}

#[test]
fn a_terminal_is_another_one_s() {
    let bundle = Bundle::new(ECHO)
        .with("/process/terminal", json!(true))
        .with("/process/consoleSize", json!({"height": 24, "width": 80}));
    let image = bundle.host.path("image");
    let image = image.to_str().expect("a plain path");
    let run = |console: &[&str]| bundle.command("run", &[console, &["--detach"]].concat(), "one");
    let mut one = terminal(&bundle, run);
    assert_eq!(says(&mut one, "first"), "first 24 80");
    let clone =
        |console: &[&str]| bundle.host.bulkhead([&["clone"], console, &["one", "two"]].concat());
    let mut two = terminal(&bundle, clone);
    assert_eq!(says(&mut two, "cloned"), "cloned 24 80");
    assert_eq!(says(&mut one, "original"), "original 24 80");
    finish(bundle.host.bulkhead(["checkpoint", "--image-path", image, "one"])).ok();
    let restore = |console: &[&str]| {
        let options = [console, &["--detach", "--image-path", image]].concat();
        bundle.command("restore", &options, "one")
    };
    let mut one = terminal(&bundle, restore);
    assert_eq!(says(&mut one, "restored"), "restored 24 80");
    let size = Winsize { ws_row: 33, ws_col: 44, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(one.get_ref(), size).expect("a size");
    // A signal brings it, beside what is typed.
    let one = RefCell::new(one);
    until("it has that size", || says(&mut one.borrow_mut(), "resized") == "resized 33 44");
    finish(bundle.host.bulkhead(["clone", "one", "three"])).fails(1, "--console-socket");
    for name in ["one", "two"] {
        finish(bundle.host.bulkhead(["delete", "--force", name])).ok();
    }
}
