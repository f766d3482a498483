"""Calls a CRI runtime (runtime.v1) as a kubelet does. Arguments: its socket, a directory for logs.

Messages are made and read by their fields' numbers (api.proto): a dict is a message, a list a repeated field.
"""
import grpc, os, sys, time, urllib.request

socket, logs = sys.argv[1:]
channel = grpc.insecure_channel("unix:" + socket)


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(fields):
    out = b""
    for field, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(field << 3) + varint(value)
            else:
                raw = message(value) if isinstance(value, dict) else value.encode()
                out += varint(field << 3 | 2) + varint(len(raw)) + raw
    return out


def fields(raw):
    """Numbers and bytes by field, the last of each."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = raw[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(raw):
        key = number()
        found[key >> 3] = number()
        if key & 7 == 2:
            length = found[key >> 3]
            found[key >> 3], at = raw[at : at + length], at + length
    return found


def call(verb, asked={}):
    method = channel.unary_unary("/runtime.v1.RuntimeService/" + verb)
    return fields(method(message(asked), timeout=100))


def refused(verb, asked):
    try:
        call(verb, asked)
    except grpc.RpcError as error:
        return error.details()
    raise AssertionError(verb + " succeeded")


POD_NAMESPACES = {1: 0, 2: 1}  # the pod's network, a PID namespace each
RUNNING, EXITED = 1, 2
pod = {
    1: {1: "pod", 2: "uid", 3: "default"}, 2: "pod-host", 3: logs, 4: {1: "10.1.2.3"},
    5: {2: 80, 3: 8099}, 8: {2: {1: POD_NAMESPACES}},
}


def create(sandbox, name, script):
    config = {
        1: {1: name}, 2: {1: "localhost/busybox:latest"}, 3: ["sh", "-c"], 4: [script], 6: {1: "A", 2: "b"},
        7: {1: "/vol", 2: logs}, 11: name + ".log", 15: {1: {4: 100 << 20}, 2: {3: POD_NAMESPACES}},
    }
    return call("CreateContainer", {1: sandbox, 2: config, 3: pod})[1].decode()


def status(container):
    """Its state and exit code."""
    said = fields(call("ContainerStatus", {1: container})[1])
    return said.get(3, 0), said.get(7, 0)


def log(name):
    with open(os.path.join(logs, name + ".log")) as file:
        return [line.split(" ", 3)[1:] for line in file.read().splitlines()]


def until(what, condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("never: " + what)


os.mkdir(logs)
sandbox = call("RunPodSandbox", {1: pod, 2: "bulkhead"})[1].decode()
address = fields(fields(call("PodSandboxStatus", {1: sandbox})[1])[5])[1].decode()
assert address.startswith("10.99.0."), address

first = create(sandbox, "first", """
    echo $A; echo err >&2; hostname; cat /etc/resolv.conf; ip -o -4 addr show eth0; cat /sys/fs/cgroup/memory.max
    mkdir /w; echo page >/w/index.html; httpd -p 80 -h /w
    trap 'exit 5' TERM; while :; do sleep 0.1; done""")
call("StartContainer", {1: first})
said = call("ExecSync", {1: first, 2: ["sh", "-c", "echo in; echo e >&2; ls /vol; exit 3"], 3: 60})
assert (said[1], said[2], said[3]) == (b"in\nfirst.log\n", b"e\n", 3), said
assert "timeout" in refused("ExecSync", {1: first, 2: ["sleep", "1000"], 3: 1})
for place in (address + ":80", "127.0.0.1:8099"):
    assert urllib.request.urlopen("http://" + place, timeout=20).read() == b"page\n"
lines = log("first")
assert ["stderr", "F", "err"] in lines, lines
out = [line[2] for line in lines if line[0] == "stdout"]
assert out[:3] == ["b", "pod-host", "nameserver 10.1.2.3"] and address in out[3], out
assert out[4] == str(100 << 20), out
call("UpdateContainerResources", {1: first, 2: {4: 64 << 20}})
said = call("ExecSync", {1: first, 2: ["cat", "/sys/fs/cgroup/memory.max"], 3: 60})
assert said[1] == b"%d\n" % (64 << 20), said
assert fields(fields(call("ContainerStats", {1: first})[1])[3])[2] != b"", "memory is counted"

second = create(sandbox, "second", "hostname; wget -qO- http://127.0.0.1/; exit 4")
call("StartContainer", {1: second})
until("second has ended", lambda: status(second) == (EXITED, 4))
assert [line[2] for line in log("second")] == ["pod-host", "page"], log("second")
assert status(first)[0] == RUNNING
call("StopContainer", {1: first, 2: 20})
assert status(first) == (EXITED, 5), status(first)
call("RemoveContainer", {1: first})
third = create(sandbox, "third", "ip -o -4 addr show eth0; exit 4")
call("StartContainer", {1: third})
until("third has ended", lambda: status(third) == (EXITED, 4))
assert address in log("third")[0][2]

call("StopPodSandbox", {1: sandbox})
call("RemovePodSandbox", {1: sandbox})
assert (call("ListPodSandbox"), call("ListContainers")) == ({}, {})
