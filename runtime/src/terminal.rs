//! The caller's terminal: its size, and raw mode for as long as the container has it.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

/// The size of a terminal where there is none to ask.
const DEFAULT_WINDOW: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// The size of the caller's terminal, whichever stream is joined to it.
pub fn window() -> Winsize {
    let sizes = [stdin(), stdout(), stderr()].into_iter().filter_map(|fd| tcgetwinsize(fd).ok());
    let known = sizes.into_iter().find(|size| size.ws_row > 0 && size.ws_col > 0);
    known.unwrap_or(DEFAULT_WINDOW)
}

/// What standard input was before it became raw; here rather than in [`Raw`] because a panic must
/// restore it too, and in a release build a panic runs no destructor.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input is raw; it is what it was before when this is dropped, or the program panics.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes standard input raw; `None` if it is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        restore_on_panic();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // Now, not Drain: output that nobody reads must not keep us.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}

fn restore_on_panic() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
    });
}
