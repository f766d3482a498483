//! `bulkhead rmi`: names of images go, and with the last one what nothing else needs.

use bulkhead_image::store::Store;

use crate::args::RmiArgs;
use crate::images::ImageError;

/// Removes each; stops at the first that is not there.
pub fn run(args: &RmiArgs) -> Result<(), ImageError> {
    let store = Store::choose()?;
    for text in &args.images {
        let image = store.find(text)?;
        store.remove(&image)?;
        println!("removed {}", image.name);
    }
    Ok(())
}
