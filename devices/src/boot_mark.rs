//! The boot-mark port: one byte written to it stamps a point of the VM's timeline; a string read from
//! it is what the VMM has to tell the guest.

/// Takes a byte that the guest wrote.
pub type Marked = Box<dyn FnMut(u8) + Send>;
/// Fills what the guest reads.
pub type Asked = Box<dyn FnMut(&mut [u8]) + Send>;

/// A port that hands every byte written to a callback, and every read to another.
pub struct BootMark {
    marked: Marked,
    asked: Asked,
}

impl BootMark {
    /// A port that calls `marked`, and `asked` for reads, on the vCPU's thread: keep them short.
    pub fn new(marked: Marked, asked: Asked) -> Self {
        Self { marked, asked }
    }

    /// The guest reads `data`, as many bytes as its instruction asks for.
    pub fn read(&mut self, data: &mut [u8]) {
        (self.asked)(data);
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
        let mark = move |mark| sender.send(mark).unwrap();
        let mut port = BootMark::new(Box::new(mark), Box::new(|data| data.fill(7)));
        let mut data = [0; 3];
        port.read(&mut data);
        assert_eq!(data, [7; 3]);
        for mark in [1, 255, 0] {
            port.write(mark);
        }
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1, 255, 0]);
    }
}
