//! Interfaces that were plugged in while the VM ran. The kernel has looked at their places once, at
//! boot, and found nothing there: it is told to look again (Documentation/ABI/testing/sysfs-bus-*).

use std::fs;
use std::path::Path;

use rustix::io::Errno;

const DEVICES: &str = "/sys/bus/platform/devices";
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";
/// A device on the kernel's command line is called this and its number there.
const PREFIX: &str = "virtio-mmio.";

/// Has the kernel look at the first `count` places that were empty, in their order.
pub fn find(count: usize) -> rustix::io::Result<()> {
    let mut places = empty().map_err(errno)?;
    places.sort_unstable();
    for place in places.get(..count).ok_or(Errno::NODEV)? {
        fs::write(BIND, format!("{PREFIX}{place}")).map_err(errno)?;
    }
    Ok(())
}

/// The numbers of devices without a driver.
fn empty() -> std::io::Result<Vec<u32>> {
    let devices = fs::read_dir(DEVICES)?.flatten();
    let empty = devices.filter(|device| !Path::exists(&device.path().join("driver")));
    let number =
        |device: fs::DirEntry| device.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok();
    Ok(empty.filter_map(number).collect())
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
