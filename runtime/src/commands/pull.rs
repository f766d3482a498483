//! `bulkhead pull`: an image into the store.

use bulkhead_image::store::Store;

use crate::args::PullArgs;
use crate::assets::Dirs;
use crate::images::{self, Access, ImageError};

/// Pulls or imports it; prints its ID.
pub fn run(args: &PullArgs) -> Result<(), ImageError> {
    let access = Access { insecure: !args.tls_verify };
    let image = images::pull(&Store::choose()?, &args.image, &access, &Dirs::of_this_process())?;
    println!("{}", image.id);
    Ok(())
}
