use std::os::unix::net::UnixListener;

use bulkhead_protocol::rpc::agent::SignalResponse;

use super::*;

/// Both ends of a connection, the VMM's played by the test.
fn pair() -> (Agent, UnixStream, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let spec = ContainerSpec { hostname: "web".to_owned(), ..Default::default() };
    let agent = Agent::connect(&path, spec).unwrap();
    (agent, listener.accept().unwrap().0, dir)
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn read_request(stream: &mut UnixStream) -> (u32, ttrpc::Request) {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    stream.read_exact(&mut header).unwrap();
    let header = MessageHeader::from(header);
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).unwrap();
    (header.stream_id, ttrpc::Request::parse_from_bytes(&body).unwrap())
}

fn answer(stream: u32, response: &ttrpc::Response) -> Vec<u8> {
    let body = response.write_to_bytes().unwrap();
    let mut frame = Vec::from(MessageHeader::new_response(stream, body.len() as u32));
    frame.extend(body);
    frame
}

fn ok(message: &impl Message) -> ttrpc::Response {
    ttrpc::Response { payload: message.write_to_bytes().unwrap(), ..Default::default() }
}

#[test]
fn a_container_is_started_after_the_handshake() {
    let (mut agent, mut vmm, _dir) = pair();
    assert_eq!(read_line(&mut vmm), "CONNECT 1024\n");
    assert_eq!(agent.process().unwrap(), []);
    vmm.write_all(b"OK 12").unwrap();
    assert_eq!(agent.process().unwrap(), []);
    vmm.write_all(b"34\n").unwrap();
    assert_eq!(agent.process().unwrap(), [Event::Connected]);
    let (stream, request) = read_request(&mut vmm);
    assert_eq!((stream, &*request.service, &*request.method), (1, SERVICE, "CreateContainer"));
    let create = CreateContainerRequest::parse_from_bytes(&request.payload).unwrap();
    assert!(create.start && create.container.hostname == "web");

    let frame = answer(1, &ok(&CreateContainerResponse { pid: 9, ..Default::default() }));
    for byte in &frame[..frame.len() - 1] {
        vmm.write_all(&[*byte]).unwrap();
        assert_eq!(agent.process().unwrap(), []);
    }
    vmm.write_all(&frame[frame.len() - 1..]).unwrap();
    assert_eq!(agent.process().unwrap(), [Event::Started]);
}

/// An agent whose container runs.
fn open() -> (Agent, UnixStream, tempfile::TempDir) {
    let (mut agent, mut vmm, dir) = pair();
    read_line(&mut vmm);
    vmm.write_all(b"OK 1\n").unwrap();
    agent.process().unwrap();
    read_request(&mut vmm);
    vmm.write_all(&answer(1, &ok(&CreateContainerResponse::default()))).unwrap();
    assert_eq!(agent.process().unwrap(), [Event::Started]);
    (agent, vmm, dir)
}

#[test]
fn signals_and_sizes_are_passed_on_once_it_runs() {
    let (mut agent, mut vmm, _dir) = open();
    agent.signal(15).unwrap();
    agent.resize(30, 100).unwrap();
    let (first, request) = read_request(&mut vmm);
    assert_eq!(request.method, "Signal");
    assert_eq!(SignalRequest::parse_from_bytes(&request.payload).unwrap().signal, 15);
    let (second, request) = read_request(&mut vmm);
    let resize = ResizeRequest::parse_from_bytes(&request.payload).unwrap();
    assert_eq!((&*request.method, resize.rows, resize.columns), ("Resize", 30, 100));
    assert_eq!((first, second), (3, 5));
    for stream in [second, first] {
        vmm.write_all(&answer(stream, &ok(&SignalResponse::default()))).unwrap();
    }
    assert_eq!(agent.process().unwrap(), []);
}

#[test]
fn nothing_is_passed_on_before_it_runs() {
    let (mut agent, mut vmm, _dir) = pair();
    agent.signal(2).unwrap();
    assert_eq!(read_line(&mut vmm), "CONNECT 1024\n");
    vmm.set_nonblocking(true).unwrap();
    assert_eq!(vmm.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_command_that_cannot_start_is_told_with_its_errno() {
    let (mut agent, mut vmm, _dir) = pair();
    vmm.write_all(b"OK 1\n").unwrap();
    let failure = StartFailure { message: "no".to_owned(), errno: 2, ..Default::default() };
    let created =
        CreateContainerResponse { failure: Some(failure.clone()).into(), ..Default::default() };
    vmm.write_all(&answer(1, &ok(&created))).unwrap();
    assert_eq!(agent.process().unwrap(), [Event::Connected, Event::StartFailed(failure)]);
}

#[test]
fn an_error_of_the_agent_is_told() {
    let (mut agent, mut vmm, _dir) = pair();
    vmm.write_all(b"OK 1\n").unwrap();
    let status = ttrpc::Status {
        code: ttrpc::Code::INVALID_ARGUMENT.into(),
        message: "bad mount".to_owned(),
        ..Default::default()
    };
    let response = ttrpc::Response { status: Some(status).into(), ..Default::default() };
    vmm.write_all(&answer(1, &response)).unwrap();
    let error = agent.process().unwrap_err().to_string();
    assert!(error.ends_with("bad mount"), "{error}");
}

#[test]
fn nonsense_from_the_guest_is_refused() {
    let mut too_long = Vec::from(MessageHeader::new_response(1, u32::MAX));
    too_long.extend([0; 64]);
    let mut request = Vec::from(MessageHeader::new_request(1, 0));
    request.extend([0; 64]);
    let mut malformed = Vec::from(MessageHeader::new_response(1, 4));
    malformed.extend([0xff; 4]);
    for bytes in [too_long, request, malformed] {
        let (mut agent, mut vmm, _dir) = pair();
        vmm.write_all(b"OK 1\n").unwrap();
        vmm.write_all(&bytes).unwrap();
        assert!(matches!(agent.process(), Err(AgentError::Nonsense(_))), "{bytes:?}");
    }
    for line in ["NO\n", "a line without any end"] {
        let (mut agent, mut vmm, _dir) = pair();
        vmm.write_all(line.as_bytes()).unwrap();
        assert!(matches!(agent.process(), Err(AgentError::Refused)), "{line:?}");
    }
}

#[test]
fn a_closed_connection_is_told_after_what_was_said() {
    let (mut agent, mut vmm, _dir) = pair();
    vmm.write_all(b"OK 1\n").unwrap();
    drop(vmm);
    // Whether the last request could still be written is a matter of luck.
    match agent.process() {
        Ok(events) => {
            assert_eq!(events, [Event::Connected]);
            assert!(agent.process().is_err());
        }
        Err(error) => assert!(matches!(error, AgentError::Broken(_) | AgentError::Closed)),
    }
}
