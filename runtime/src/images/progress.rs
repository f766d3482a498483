//! How far layers are: bars on a terminal, a line when one is done elsewhere. All on standard error,
//! and nothing at all when there is nothing to do.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::IsTerminal;

use bulkhead_image::digest::Digest;
use bulkhead_image::import::Progress;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{prefix} {msg:11} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}";

/// A bar for each layer that is being worked on.
pub struct Bars {
    what: &'static str,
    terminal: Option<MultiProgress>,
    layers: RefCell<HashMap<Digest, Layer>>,
}

struct Layer {
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars that say `what` is done.
    pub fn new(what: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { what, terminal, layers: RefCell::default() }
    }

    /// A layer of `bytes` begins.
    pub fn begin(&self, layer: Digest, bytes: u64) {
        let bar = self.terminal.as_ref().map(|bars| {
            let bar = ProgressBar::new(bytes).with_prefix(layer.short()).with_message(self.what);
            // The template is a constant that the tests try.
            let style = ProgressStyle::with_template(TEMPLATE);
            bars.add(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
        });
        self.layers.borrow_mut().insert(layer, Layer { bytes, bar });
    }

    /// So many bytes more of it are done.
    pub fn advance(&self, layer: Digest, bytes: u64) {
        if let Some(Layer { bar: Some(bar), .. }) = self.layers.borrow().get(&layer) {
            bar.inc(bytes);
        }
    }

    /// It is done.
    pub fn end(&self, layer: Digest) {
        match self.layers.borrow_mut().remove(&layer) {
            Some(Layer { bar: Some(bar), .. }) => bar.finish_with_message("done"),
            Some(Layer { bytes, .. }) => {
                eprintln!("{} {}: {}", self.what, layer.short(), HumanBytes(bytes));
            }
            None => {}
        }
    }

    /// What an import tells.
    pub fn imported(&self, event: Progress) {
        match event {
            Progress::Present(_) => {}
            Progress::Begun(layer, bytes) => self.begin(layer, bytes),
            Progress::Read(layer, bytes) => self.advance(layer, bytes),
            Progress::Done(layer) => self.end(layer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
