//! A registry on the loopback, as far as pulling goes (OCI distribution specification), out of memory.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// "user:secret" as HTTP's Basic scheme has it.
pub const BASIC: &str = "dXNlcjpzZWNyZXQ=";

/// What paths answer, and what was asked for.
#[derive(Default)]
pub struct Content {
    answers: HashMap<String, Vec<u8>>,
    asked: Vec<String>,
    /// What the Authorization header must hold.
    pub wanted: Option<String>,
    /// What who lacks it is told.
    pub challenge: String,
    /// Paths with this in them are never answered.
    pub stalled: Option<String>,
}

/// A registry with one repository, `app`; it serves as long as the process lives.
pub struct Registry {
    /// On 127.0.0.1.
    pub port: u16,
    /// What it has, and who may read it.
    pub content: Arc<Mutex<Content>>,
}

impl Registry {
    /// An empty one, which serves already.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the registry works");
        let port = listener.local_addr().expect("the registry works").port();
        let content = Arc::new(Mutex::new(Content::default()));
        let served = content.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                thread::spawn(move || serve(stream, &served));
            }
        });
        Self { port, content }
    }

    /// Serves `bytes` at a path below the repository's.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let path = format!("/v2/app/{path}");
        self.content.lock().expect("the registry works").answers.insert(path, bytes.to_vec());
    }

    /// How many times a path with `part` in it was asked for.
    pub fn asked(&self, part: &str) -> usize {
        let content = self.content.lock().expect("the registry works");
        content.asked.iter().filter(|path| path.contains(part)).count()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

fn serve(mut stream: TcpStream, content: &Mutex<Content>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            // TLS begins so; nobody here speaks it.
            Ok(1) if head.is_empty() && byte[0] == 0x16 => return,
            Ok(1) if head.len() < 16 << 10 => head.push(byte[0]),
            _ => return,
        }
        if head.ends_with(b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head).into_owned();
            head.clear();
            let stalled = content.lock().expect("the registry works").stalled.clone();
            let path = text.split(' ').nth(1).unwrap_or_default();
            if stalled.is_some_and(|part| path.contains(&part)) {
                content.lock().expect("the registry works").asked.push(path.to_owned());
                loop {
                    thread::park();
                }
            }
            if stream.write_all(&answer(&text, content)).is_err() {
                return;
            }
        }
    }
}

fn answer(head: &str, content: &Mutex<Content>) -> Vec<u8> {
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut content = content.lock().expect("the registry works");
    content.asked.push(path.clone());
    let authorized = content.wanted.as_ref().is_none_or(|wanted| {
        head.lines().any(|line| {
            line.to_ascii_lowercase().starts_with("authorization:") && line.contains(wanted)
        })
    });
    let found = content.answers.get(path.split('?').next().unwrap_or_default());
    let (status, extra, body) = match found {
        _ if path.starts_with("/token") => match head.contains(BASIC) {
            true => ("200 OK", String::new(), br#"{"token":"a-token"}"#.to_vec()),
            false => ("401 Unauthorized", String::new(), Vec::new()),
        },
        _ if !authorized => {
            ("401 Unauthorized", format!("WWW-Authenticate: {}\r\n", content.challenge), Vec::new())
        }
        Some(body) => ("200 OK", String::new(), body.clone()),
        None if path == "/v2/" => ("200 OK", String::new(), b"{}".to_vec()),
        None => ("404 Not Found", String::new(), b"{\"errors\":[]}".to_vec()),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{extra}Content-Length: {length}\r\n\r\n");
    [head.into_bytes(), body].concat()
}
