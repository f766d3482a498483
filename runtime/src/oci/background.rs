//! Leaving a process behind that stands for one in a guest.
//!
//! `exec --detach` ends as soon as the process runs, but a host process must stay that holds its
//! streams, gets its signals, and ends with its code. That is a fork of `bulkhead exec` itself, which
//! has one thread until then; its parent waits for one byte that says that it runs, or a sentence.

use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::process::Pid;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one that ends.
    Caller(Caller),
    /// The one that stays.
    Background(Background),
}

/// The caller's end.
#[derive(Debug)]
pub struct Caller {
    /// The one that stays.
    pub pid: Pid,
    news: PipeReader,
}

/// The end of the one that stays.
#[derive(Debug)]
pub struct Background(PipeWriter);

/// Forks. Must be called while this process has one thread.
pub fn fork() -> io::Result<Side> {
    let (news, tell) = io::pipe()?;
    // SAFETY: this process has one thread (the caller's promise), so the child may do all it may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(news);
            // Cannot fail: a new process leads no process group.
            let _ = rustix::process::setsid();
            Ok(Side::Background(Background(tell)))
        }
        pid => match Pid::from_raw(pid) {
            Some(pid) => Ok(Side::Caller(Caller { pid, news })),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
    }
}

impl Background {
    /// Says that the process runs.
    pub fn started(mut self) {
        // A caller that is gone does not wait.
        let _ = self.0.write_all(&[0]);
    }

    /// Says why it does not.
    pub fn failed(mut self, sentence: &str) {
        let _ = self.0.write_all(sentence.as_bytes());
    }
}

impl Caller {
    /// Waits until it runs; an error is what [`Background::failed`] said.
    pub fn wait(mut self) -> Result<(), String> {
        let mut news = Vec::new();
        let _ = self.news.read_to_end(&mut news);
        match news[..] {
            [0] => Ok(()),
            [] => Err("the process that was to stay behind died".to_owned()),
            _ => Err(String::from_utf8_lossy(&news).into_owned()),
        }
    }
}
