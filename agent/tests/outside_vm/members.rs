//! Further containers beside the VM's own.

use std::io::Write as _;

use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, ExecRequest, SignalRequest,
    StartContainerRequest,
};
use bulkhead_protocol::rpc::agent_ttrpc::AgentClient;

use crate::harness::{Agent, Host, context, read_all, shell, spec, wait_until};

fn running() -> (Agent, Host) {
    let agent = Agent::start();
    let host = agent.host();
    agent.create_sleeper();
    (agent, host)
}

fn create(client: &AgentClient, id: &str, container: ContainerSpec) -> CreateContainerResponse {
    let request = CreateContainerRequest {
        container: Some(container).into(),
        id: id.to_owned(),
        ..Default::default()
    };
    client.create_container(context(), &request).unwrap()
}

fn start(agent: &Agent, id: &str) {
    let request = StartContainerRequest { container: id.to_owned(), ..Default::default() };
    let response = agent.client.start_container(context(), &request).unwrap();
    assert!(response.failure.is_none(), "{response:?}");
}

#[test]
fn one_more_has_its_own_processes_name_and_streams() {
    let (agent, _host) = running();
    let mut second = spec(shell("read line; echo $line; hostname; echo $$; exit 3"));
    second.hostname = "second".to_owned();
    second.process.mut_or_insert_default().stdin = true;
    let created = create(&agent.client, "second", second);
    assert!(created.failure.is_none(), "{created:?}");
    start(&agent, "second");
    let mut stdin = agent.stream(created.stdin_port);
    stdin.write_all(b"hello\n").unwrap();
    let stdout = read_all(agent.stream(created.stdout_port));
    assert_eq!(String::from_utf8_lossy(&stdout), "hello\nsecond\n1\n");
    assert_eq!(agent.wait("second"), 3);
    // The name is free again, and the VM's own container has not noticed.
    let again = create(&agent.client, "second", spec(shell("true")));
    assert!(again.failure.is_none(), "{again:?}");
    let own = agent.exec("x", shell("hostname"));
    let name = read_all(agent.stream(own.stdout_port));
    assert_eq!(String::from_utf8_lossy(&name), "lighthouse\n");
}

#[test]
fn calls_reach_the_one_they_name() {
    let (agent, _host) = running();
    let mut second = spec(shell("sleep 1000"));
    second.hostname = "second".to_owned();
    create(&agent.client, "second", second);
    let exec = ExecRequest {
        id: "y".to_owned(),
        process: Some(shell("hostname")).into(),
        container: "second".to_owned(),
        ..Default::default()
    };
    start(&agent, "second");
    let response = agent.client.exec(context(), &exec).unwrap();
    assert!(response.failure.is_none(), "{response:?}");
    assert_eq!(read_all(agent.stream(response.stdout_port)), b"second\n");
    let missing = ExecRequest { container: "third".to_owned(), id: "z".to_owned(), ..exec };
    assert!(agent.client.exec(context(), &missing).is_err());
    let all = SignalRequest {
        signal: libc::SIGKILL as u32,
        all: true,
        container: "second".to_owned(),
        ..Default::default()
    };
    agent.client.signal(context(), &all).unwrap();
    assert_eq!(agent.wait("second"), 128 + 9);
    let own = agent.exec("x", shell("true"));
    assert!(own.failure.is_none(), "{own:?}");
}

#[test]
fn what_cannot_be_is_said() {
    let agent = Agent::start();
    let alone = create(&agent.client, "second", spec(shell("true")));
    assert!(alone.failure.message.contains("no container"), "{alone:?}");
    let _host = agent.host();
    agent.create_sleeper();
    create(&agent.client, "second", spec(shell("true")));
    let taken = create(&agent.client, "second", spec(shell("true")));
    assert!(taken.failure.message.contains("of this name"), "{taken:?}");
    let mut rootless = spec(shell("true"));
    rootless.root_share = "nowhere".to_owned();
    let failed = create(&agent.client, "third", rootless);
    assert!(failed.failure.is_some(), "{failed:?}");
    let another = create(&agent.client, "third", spec(shell("true")));
    assert!(another.failure.is_none(), "{another:?}");
}

#[test]
fn it_ends_with_the_connection_it_came_by() {
    let (agent, _host) = running();
    let client = agent.another_client();
    create(&client, "second", spec(shell("sleep 1000")));
    start(&agent, "second");
    drop(client);
    wait_until("its name is free again", || {
        create(&agent.client, "second", spec(shell("true"))).failure.is_none()
    });
}
