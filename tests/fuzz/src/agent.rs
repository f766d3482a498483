//! What the guest's agent says to the host, and the host's last words to the agent.

use bulkhead::parsers::{agent_answers, agent_says};
use bulkhead_protocol::{ExitReport, GuestInfo, HostEvent};

pub fn run(input: &[u8]) {
    if let Some(report) = ExitReport::from_bytes(input) {
        assert_eq!(report.to_bytes(), input, "a report has one form");
    }
    if let Some(event) = input.first_chunk().and_then(|bytes| HostEvent::from_bytes(*bytes)) {
        assert_eq!(HostEvent::from_bytes(event.to_bytes()), Some(event));
    }
    let mut words = [0; GuestInfo::WORDS];
    for (word, bytes) in words.iter_mut().zip(input.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    let _ = GuestInfo::from_words(words);
    let dir = tempfile::tempdir().unwrap();
    agent_says(input, dir.path());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let report = ExitReport { code: 3, oom_killed: true }.to_bytes().to_vec();
    let event = HostEvent::Window { rows: 24, columns: 80 }.to_bytes().to_vec();
    vec![agent_answers(), report, event]
}
