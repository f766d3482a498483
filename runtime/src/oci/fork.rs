//! A clone of a container of `bulkhead run`. That has no bundle; its VM's spec was written down when it
//! was started.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use bulkhead_image::store::Container as ImageRoot;
use bulkhead_protocol::rpc::agent::Process;
use bulkhead_vmm::spec::VmSpec;

use super::clock;
use super::container::Container;
use super::create::{BOOT_MAX, CreateError};
use super::detached::{Detached, Surroundings};
use super::id::ContainerId;
use super::record::Record;
use super::restore;
use crate::assets::{self, Dirs};
use crate::client::Client;
use crate::machine_id;
use crate::net::Network;
use crate::plan::ROOT_SHARE;
use crate::state::{Root, VmDir};
use crate::templates::Snapshot;
use crate::vmm::Course;

/// What a clone comes from.
#[derive(Debug)]
pub struct Fork<'a> {
    /// The other one's record,
    pub record: &'a Record,
    /// and its process.
    pub process: &'a Process,
    /// It as it was saved.
    pub files: &'a Snapshot,
    /// The copy of its root, if that is an image's.
    pub image: Option<ImageRoot>,
    /// The network namespace that the clone takes over.
    pub network: Option<&'a Path>,
}

impl Fork<'_> {
    /// Lets a clone named `id` go on from there; it lives on only if its VMM is let go.
    pub fn start(self, id: &ContainerId, root: &Root) -> Result<Detached, CreateError> {
        let vmm = Dirs::of_this_process().program(assets::VMM)?;
        let dir = root.claim(id.as_str())?;
        let network = self.network.map(Network::take_over).transpose()?.unwrap_or_default();
        let wanted = VmSpec {
            name: id.to_string(),
            vsock: dir.socket(),
            nets: network.nets,
            ..self.record.vm.clone().unwrap_or_default()
        };
        let mut vm = restore::shape(wanted.clone(), Some(self.files))?;
        if let Some(image) = &self.image {
            vm.keep_fds.push(image.lock().as_raw_fd());
            for share in vm.shares.iter_mut().filter(|share| share.name == ROOT_SHARE) {
                (share.fd, share.copied) = (Some(image.root().as_raw_fd()), true);
            }
        }
        let course = Course::Restore(self.files);
        let mut detached = Detached::start(&vmm, vm, &dir, course, Surroundings::default())?;
        // The VMM has them now, and the taps are to go with it.
        drop(network.taps);
        let record = Record {
            id: id.to_string(),
            created: clock::now_rfc3339(),
            process: detached.process,
            memory: course.mapped(),
            image: self.image.as_ref().map(|image| image.path().to_owned()),
            vm: Some(VmSpec { nets: Vec::new(), ..wanted }),
            ..self.record.clone()
        };
        let go_on = |dir: &VmDir| -> Result<(), CreateError> {
            let mut agent = Client::connect(&dir.socket(), BOOT_MAX)?;
            let machine_id = machine_id::fresh()?;
            restore::go_on(&mut agent, id.to_string(), network.spec, machine_id)?;
            Ok(Container::write_run(dir.path(), &record, self.process)?)
        };
        if let Err(error) = go_on(&dir) {
            detached.kill();
            return Err(error);
        }
        dir.leave();
        if let Some(image) = self.image {
            image.leave();
        }
        Ok(detached)
    }
}
