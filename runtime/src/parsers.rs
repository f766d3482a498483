//! What reads a guest's answers and an engine's bundles, as tests/fuzz calls it.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{ContainerSpec, CreateContainerResponse, WaitResponse};
use protobuf::Message;
use ttrpc::MessageHeader;

use crate::agent::Agent;
use crate::client::Client;
use crate::oci::{bundle::Bundle, plan};

/// Nothing here waits: what is to be read is there before it is asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has both clients of the agent's service, of `run` and of the other verbs, read `bytes`. A socket
/// is made in the directory `dir`.
pub fn agent_says(bytes: &[u8], dir: &Path) {
    let path = dir.join("vsock.sock");
    let _ = std::fs::remove_file(&path);
    let Ok(listener) = UnixListener::bind(&path) else { return };
    let Ok(mut agent) = Agent::connect(&path, ContainerSpec::default()) else { return };
    if let Ok((mut guest, _)) = listener.accept() {
        // What does not fit the socket's buffer is not worth a thread.
        let _ = guest.set_nonblocking(true).and_then(|()| guest.write_all(bytes));
        let _ = guest.shutdown(std::net::Shutdown::Write);
        while agent.process().is_ok_and(|events| !events.is_empty()) {
            let _ = agent.signal(15);
            let _ = agent.resize(1, u16::MAX);
        }
        let _ = guest.read(&mut [0; 1024]);
    }
    let guest = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let (mut guest, _) = listener.accept()?;
            guest.set_nonblocking(true)?;
            guest.write_all(bytes)?;
            guest.shutdown(std::net::Shutdown::Write)?;
            std::io::Result::Ok(guest)
        });
        if let Ok(mut client) = Client::connect(&path, PATIENCE) {
            while let Ok(answer) = client.receive(PATIENCE) {
                let _ = answer.message::<WaitResponse>("Wait");
            }
        }
        guest.join()
    });
    drop(guest);
}

/// What an agent says that does as it should.
pub fn agent_answers() -> Vec<u8> {
    let mut said = b"OK 1073741824\n".to_vec();
    for (call, message) in [
        (1, CreateContainerResponse::default().write_to_bytes()),
        (3, WaitResponse { exit_code: 7, ..Default::default() }.write_to_bytes()),
    ] {
        let payload = message.unwrap_or_default();
        let response = ttrpc::Response { payload, ..Default::default() };
        let body = response.write_to_bytes().unwrap_or_default();
        said.extend(Vec::from(MessageHeader::new_response(call, body.len() as u32)));
        said.extend(body);
    }
    said
}

/// Loads and plans the bundle in `dir`: whether it makes a container.
pub fn bundle_loads(dir: &Path) -> bool {
    let Ok(bundle) = Bundle::load(dir) else { return false };
    let host = plan::Host { kernel: "/k".into(), agent: "/a".into(), vcpus: 4, memory_mib: 8192 };
    let vm = plan::vm(&bundle, &host, "fuzz", "/v".into());
    assert!(vm.check().is_ok(), "a plan is a VM: {:?}", vm.check());
    let _ = plan::network(&bundle.spec);
    plan::container(&bundle, "fuzz", 0).is_ok()
}
