//! JSON that says what to run: the monitor's spec and an engine's bundle.

use bulkhead::parsers::bundle_loads;
use bulkhead_vmm::VmSpec;
use bulkhead_vmm::spec::{NetSpec, Share};

use crate::scratch;

pub fn vm_spec(input: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<VmSpec>(input) else { return };
    let _ = spec.check();
    let _ = spec.inherited_fds().count();
    let again = serde_json::to_vec(&spec).expect("a spec is JSON");
    assert_eq!(serde_json::from_slice::<VmSpec>(&again).expect("its own JSON is read"), spec);
}

pub fn vm_spec_seeds() -> Vec<Vec<u8>> {
    let share = Share { name: "rootfs".to_owned(), source: "/r".into(), ..Share::default() };
    let net: NetSpec = serde_json::from_str(r#"{"mac":[2,0,0,0,0,1],"mtu":1500}"#).unwrap();
    let spec = VmSpec {
        name: "fuzz".to_owned(),
        vcpus: 1,
        memory_mib: 128,
        cid: 3,
        shares: vec![share],
        nets: vec![net],
        ..VmSpec::default()
    };
    vec![serde_json::to_vec(&spec).unwrap()]
}

pub fn bundle(input: &[u8]) {
    let dir = scratch::fresh();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    std::fs::write(dir.path().join("config.json"), input).unwrap();
    bundle_loads(dir.path());
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 2, "loading changes nothing");
}

pub fn bundle_seeds() -> Vec<Vec<u8>> {
    [
        &include_bytes!("../../../resources/oci/config.json")[..],
        include_bytes!("../../../runtime/src/oci/testing/podman.json"),
    ]
    .map(|json| {
        // Without the spaces there is more in the same bytes.
        let value: serde_json::Value = serde_json::from_slice(json).unwrap();
        serde_json::to_vec(&value).unwrap()
    })
    .into()
}
