//! The boot-mark port: one byte written to it stamps a point of the VM's timeline.

/// A write-only port that hands every byte to a callback.
pub struct BootMark {
    marked: Box<dyn FnMut(u8) + Send>,
}

impl BootMark {
    /// A port that calls `marked` on the vCPU's thread: keep it short.
    pub fn new(marked: Box<dyn FnMut(u8) + Send>) -> Self {
        Self { marked }
    }

    /// The guest wrote `mark`.
    pub fn write(&mut self, mark: u8) {
        (self.marked)(mark);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn marks_arrive_in_order() {
        let (sender, receiver) = mpsc::channel();
        let mut port = BootMark::new(Box::new(move |mark| sender.send(mark).unwrap()));
        for mark in [1, 255, 0] {
            port.write(mark);
        }
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1, 255, 0]);
    }
}
