//! What comes out of a registry or an archive.

use bulkhead_image::config::ImageConfig;
use bulkhead_image::digest::Digest;
use bulkhead_image::layer::extract;
use bulkhead_image::reference::Reference;
use bulkhead_image::source;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::scratch;

pub fn documents(input: &[u8]) {
    let _ = source::named_by(input);
    let _ = source::media_type(input);
    let _ = source::layers_of(input);
    if let Ok(config) = ImageConfig::parse(input) {
        let _ = config.variables();
        let _ = config.args(None, &[]);
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = text.parse::<Digest>();
        let _ = text.parse::<Reference>();
    }
}

pub fn document_seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"");
    let blob = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1}}"#);
    let config = blob("application/vnd.oci.image.config.v1+json");
    let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip");
    let manifest = blob("application/vnd.oci.image.manifest.v1+json");
    [
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}]}}"#),
        format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#),
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"],"Entrypoint":["/e"],"Cmd":["c"],"User":"1:2","WorkingDir":"/w","Volumes":{{"/v":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
        ),
        digest.to_string(),
        format!("registry.example:5000/a/b:tag@{digest}"),
        "docker-archive:./file.tar:name".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

/// The input is a layer's file. If it is a plain archive its checksums are made to fit, which no
/// search would find.
pub fn layer(input: &[u8]) {
    let dir = scratch::fresh();
    let beside = dir.path().join("beside");
    std::fs::write(&beside, "untouched").unwrap();
    let open = |name: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, dir.path().join(name), flags, Mode::empty()).unwrap()
    };
    let mut input = input.to_vec();
    fit_checksums(&mut input);
    let _ = extract(&input[..], None, Digest::of(b""), open("root"), open("trash"));
    assert_eq!(std::fs::read(&beside).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing lies beside the layer");
}

/// Walks the archive as a reader would.
fn fit_checksums(archive: &mut [u8]) {
    const BLOCK: usize = 512;
    const MAGICS: [&[u8]; 2] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd]];
    if MAGICS.iter().any(|magic| archive.starts_with(magic)) {
        return;
    }
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let digits = header[124..135].iter().map_while(|byte| (*byte as char).to_digit(8));
        let size = digits.fold(0, |size, digit| size * 8 + digit as usize);
        at = at.saturating_add(BLOCK + size.next_multiple_of(BLOCK));
        if at > archive.len() {
            return;
        }
    }
}

pub fn layer_seeds() -> Vec<Vec<u8>> {
    use tar::{Builder, EntryType, Header};
    let mut archive = Builder::new(Vec::new());
    let mut add = |kind, path: &str, link: &str, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(data.len() as u64);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        archive.append(&header, data).unwrap();
    };
    add(EntryType::Directory, "d/", "", b"");
    add(EntryType::XHeader, "pax", "", b"30 SCHILY.xattr.user.name=val\n");
    add(EntryType::Regular, "d/f", "", b"data");
    add(EntryType::Symlink, "d/l", "../../../beside", b"");
    add(EntryType::Link, "d/h", "d/f", b"");
    add(EntryType::Regular, "d/.wh..wh..opq", "", b"");
    add(EntryType::Regular, ".wh.gone", "", b"");
    add(EntryType::Regular, "d/l/x", "", b"");
    vec![archive.into_inner().unwrap(), vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0]]
}
