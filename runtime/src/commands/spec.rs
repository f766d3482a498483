//! `bulkhead spec`: a config.json to start from.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use super::oci::OciError;
use crate::args::oci::SpecArgs;

/// What it holds: a shell in ./rootfs with what containers usually have.
pub const DEFAULT: &str = include_str!("../../../resources/oci/config.json");

/// Writes it; one that is there already stays.
pub fn run(args: &SpecArgs) -> Result<(), OciError> {
    let path = args.bundle.as_deref().unwrap_or(Path::new(".")).join("config.json");
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(DEFAULT.as_bytes()));
    written.map_err(|source| OciError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::bundle::Bundle;

    #[test]
    fn the_default_is_a_bundle_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let args = SpecArgs { bundle: Some(dir.path().to_owned()), rootless: false };
        run(&args).unwrap();
        let bundle = Bundle::load(dir.path()).unwrap();
        assert_eq!(bundle.spec.process().as_ref().unwrap().args().as_ref().unwrap(), &["sh"]);
        assert!(run(&args).unwrap_err().to_string().contains("exists"));
    }
}
