//! `bulkhead images`: what is in the store.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use bulkhead_image::store::{Record, Store};
use indicatif::{HumanBytes, HumanDuration};

use crate::args::ImagesArgs;
use crate::images::ImageError;

/// Prints a table, or JSON.
pub fn run(args: &ImagesArgs) -> Result<(), ImageError> {
    let images = Store::choose()?.images();
    match args.json {
        true => println!("{}", serde_json::json!(images)),
        false => print!("{}", table(&images, SystemTime::now())),
    }
    Ok(())
}

fn table(images: &[Record], now: SystemTime) -> String {
    let width = images.iter().map(|image| image.name.len()).chain([5]).max().unwrap_or(5);
    let mut table = format!("{:width$}  {:12}  {:>12}  IMPORTED\n", "IMAGE", "ID", "SIZE");
    for image in images {
        let imported = SystemTime::UNIX_EPOCH + Duration::from_secs(image.imported);
        let age = HumanDuration(now.duration_since(imported).unwrap_or_default());
        let (id, size) = (image.id.short(), HumanBytes(image.bytes).to_string());
        let _ = writeln!(table, "{:width$}  {id}  {size:>12}  {age} ago", image.name);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_image::digest::Digest;

    #[test]
    fn a_line_an_image() {
        let image = Record {
            name: "docker.io/library/busybox:latest".to_owned(),
            id: Digest::of(b""),
            manifest: None,
            bytes: 3 << 20,
            imported: 1_000_000,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + 7200);
        let table = table(&[image], now);
        let line = table.lines().nth(1).unwrap();
        for part in
            ["docker.io/library/busybox:latest ", " e3b0c44298fc ", "3.00 MiB", "2 hours ago"]
        {
            assert!(line.contains(part), "{table}");
        }
    }
}
