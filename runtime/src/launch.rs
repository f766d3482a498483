//! How a VM comes to run: cloned from a template, or booted. The one place where that is decided, for
//! every verb that starts a VM.

mod trial;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use bulkhead_vmm::snapshot::WorkingSet;
use bulkhead_vmm::spec::{Confinement, LinkKind, NetSpec, Outcome, Report, VmSpec};

use crate::state::{Root, VmDir};
use crate::templates::{Template, TemplateError, Templates};
use crate::vmm::{self, Course, Input, Vmm};

/// How long a VM may take to boot and be saved, even on an emulated processor.
const BUILD_MAX: Duration = Duration::from_secs(300);
/// A locally administered address (IEEE 802), as good as any.
const TEMPLATE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The template to clone `vm` from; `None` if it is to boot. `cold` asks for that. A host that cannot
/// make templates boots its VMs, and says why.
pub fn template(vm: &VmSpec, program: &Path, root: &Root, cold: bool) -> Option<Template> {
    // The log on a console begins at boot; sealed VMs share no memory.
    if cold || vm.console || vm.jail == Confinement::Sealed {
        return None;
    }
    let built = Templates::of_this_user()
        .and_then(|templates| templates.get(vm, program, |files| build(vm, program, root, files)));
    match built {
        Ok(template) => Some(template),
        Err(error) => {
            eprintln!("bulkhead: no template, so the VM boots: {error}");
            None
        }
    }
}

/// An interface without a cable, as templates have them. The agent gives a clone's its address, by
/// which the guest's driver forgets this one.
pub fn unplugged(kind: LinkKind) -> NetSpec {
    NetSpec { mac: TEMPLATE_MAC, kind, ..NetSpec::default() }
}

/// Makes a template of the shape of `vm` in `files`.
fn build(vm: &VmSpec, program: &Path, root: &Root, files: &Template) -> Result<(), TemplateError> {
    if io::stderr().is_terminal() {
        let (vcpus, mib) = (vm.vcpus, vm.memory_mib);
        eprintln!("bulkhead: making a template for VMs of {vcpus} CPU and {mib} MiB, once");
    }
    let spec = VmSpec {
        name: "template".to_owned(),
        vcpus: vm.vcpus,
        memory_mib: vm.memory_mib,
        kernel: vm.kernel.clone(),
        init: vm.init.clone(),
        cmdline: vm.cmdline.clone(),
        cid: vm.cid,
        net_places: vm.net_places,
        window_mib: vm.window_mib,
        nets: vm.nets.iter().map(|net| unplugged(net.kind)).collect(),
        // Nothing runs in it but our own kernel and agent, and it is to write files.
        jail: Confinement::Off,
        ..VmSpec::default()
    };
    save(&spec, program, &claim(root, "template")?, files)?;
    let set = trial::working_set(spec, program, &claim(root, "trial")?, files);
    let set = set.unwrap_or_else(|error| {
        eprintln!("bulkhead: clones start slower than they could, for want of a trial: {error}");
        WorkingSet::default()
    });
    Ok(set.write(&files.working_set)?)
}

/// A directory for a VM of our own. No container has this name: theirs have no dot in front.
fn claim(root: &Root, purpose: &str) -> Result<VmDir, TemplateError> {
    let dir = root.claim(&format!(".{purpose}-{}", std::process::id()));
    dir.map_err(|source| TemplateError::Build(source.to_string()))
}

/// Boots a VM and saves it.
fn save(vm: &VmSpec, program: &Path, dir: &VmDir, files: &Template) -> Result<(), TemplateError> {
    let error = |error: String| TemplateError::Build(error);
    let vm = VmSpec { vsock: dir.socket(), ..vm.clone() };
    let vmm = Vmm::start(program, vm, dir, Input::Empty, Course::Save(files));
    let mut vmm = vmm.map_err(|source| error(source.to_string()))?;
    if !vmm.has_ended_within(BUILD_MAX) {
        vmm.kill();
    }
    match vmm.wait().map_err(|source| error(source.to_string()))? {
        (_, Some(Report { outcome: Outcome::Saved, .. })) => Ok(()),
        (_, Some(Report { outcome: Outcome::Failed { message, .. }, .. })) => Err(error(message)),
        (status, _) => Err(error(vmm::describe(status))),
    }
}
