use super::*;
use crate::testing::{Item, pax_record, tar, write_member};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// Every member and, of regular files, the data.
fn read(archive: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut members = Members::new(archive);
    let mut all = Vec::new();
    while let Some(member) = members.next_member()? {
        let mut file = tempfile::tempfile().unwrap();
        if member.kind == Kind::Regular {
            members.copy(&member, &mut file)?;
        }
        all.push((member, contents(file)));
    }
    Ok(all)
}

fn contents(mut file: File) -> Vec<u8> {
    use std::io::{Seek, SeekFrom};
    let mut data = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.take(1 << 20).read_to_end(&mut data).unwrap();
    data
}

#[test]
fn members_come_as_they_were_packed() {
    let long = "directory/".repeat(30);
    let items = [
        Item { owner: (1000, 50), mode: 0o4755, ..Item::file("a", b"hello") },
        Item::file(&format!("{long}file"), &[7; 1000]),
        Item::symlink("s", &format!("{long}target")),
        Item::dir("d/"),
        Item::hardlink("h", "a"),
        Item::new(EntryType::Fifo, "f"),
        Item::new(EntryType::Char, "c"),
    ];
    let read = read(&tar(&items)).unwrap();
    let kinds: Vec<_> = read.iter().map(|(member, _)| member.kind).collect();
    use Kind::*;
    assert_eq!(kinds, [Regular, Regular, Symlink, Directory, Hardlink, Fifo, Device]);
    let (first, data) = &read[0];
    assert_eq!((first.uid, first.gid, first.mode, &data[..]), (1000, 50, 0o4755, &b"hello"[..]));
    assert_eq!(first.mtime, (1_000_000_000, 0));
    assert_eq!(read[1].0.path, format!("{long}file").as_bytes());
    assert_eq!(read[1].1, [7; 1000]);
    assert_eq!(read[2].0.link, format!("{long}target").as_bytes());
}

#[test]
fn pax_headers_win_over_what_they_extend() {
    let pax = [
        pax_record("path", b"real"),
        pax_record("uid", b"3000000"),
        pax_record("mtime", b"5.5"),
        pax_record("SCHILY.xattr.user.x", b"1\n2"),
    ];
    let items = [Item { pax: pax.concat(), ..Item::file("short", b"x") }, Item::file("next", b"y")];
    let read = read(&tar(&items)).unwrap();
    let (first, _) = &read[0];
    assert_eq!(
        (&first.path[..], first.uid, first.mtime),
        (&b"real"[..], 3_000_000, (5, 500_000_000))
    );
    assert_eq!(first.xattrs, [(b"user.x".to_vec(), b"1\n2".to_vec())]);
    let (next, _) = &read[1];
    assert_eq!((&next.path[..], next.uid, next.xattrs.len()), (&b"next"[..], 0, 0));
}

#[test]
fn links_and_directories_have_no_data_whatever_they_say() {
    let mut archive = Vec::new();
    let mut header = Header::new_gnu();
    header.set_path("l").unwrap();
    header.set_link_name("t").unwrap();
    header.set_entry_type(EntryType::Symlink);
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(1 << 30);
    header.set_cksum();
    write_member(&mut archive, &header, b"");
    archive.extend(tar(&[Item::file("after", b"x")]));
    assert_eq!(read(&archive).unwrap()[1].0.path, b"after");
}

#[test]
fn sparse_files_have_their_holes() {
    // GNU's own: 4 bytes at 1 MiB of a file of 1 MiB + 4.
    let mut header = Header::new_gnu();
    header.set_path("old").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(4);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size((1 << 20) + 4);
    gnu.sparse[0].set_offset(1 << 20);
    gnu.sparse[0].set_length(4);
    header.set_cksum();
    let mut archive = Vec::new();
    write_member(&mut archive, &header, b"tail");
    // Version 1.0.
    let mut data = b"1\n8192\n4\n".to_vec();
    data.resize(512, 0);
    data.extend(b"TAIL");
    let pax = [
        pax_record("GNU.sparse.major", b"1"),
        pax_record("GNU.sparse.minor", b"0"),
        pax_record("GNU.sparse.name", b"new"),
        pax_record("GNU.sparse.realsize", b"10000"),
    ];
    archive.extend(tar(&[
        Item { pax: pax.concat(), ..Item::file("GNUSparseFile.0/new", &data) },
        Item::file("after", b"x"),
    ]));
    let read = read(&archive).unwrap();
    assert_eq!((&read[0].0.path[..], read[0].0.size), (&b"old"[..], (1 << 20) + 4));
    assert!(read[0].1.iter().all(|byte| *byte == 0), "a hole up to 1 MiB");
    assert_eq!((&read[1].0.path[..], read[1].1.len()), (&b"new"[..], 10_000));
    assert_eq!(read[1].1[8190..8198], *b"\0\0TAIL\0\0");
    assert_eq!(read[2].0.path, b"after");
}

#[test]
fn a_huge_sparse_file_takes_no_space() {
    let pax = [
        pax_record("GNU.sparse.major", b"1"),
        pax_record("GNU.sparse.realsize", (1u64 << 39).to_string().as_bytes()),
    ];
    let mut data = b"0\n".to_vec();
    data.resize(512, 0);
    let archive = tar(&[Item { pax: pax.concat(), ..Item::file("x", &data) }]);
    let mut members = Members::new(&archive[..]);
    let member = members.next_member().unwrap().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    members.copy(&member, &mut file).unwrap();
    let stat = file.metadata().unwrap();
    assert!(stat.len() == 1 << 39 && stat.blocks() < 100);
}

#[test]
fn lies_are_errors_and_cost_nothing() {
    let file = tar(&[Item::file("a", &[1; 2000])]);
    assert!(matches!(read(&file[..1000]), Err(TarError::Truncated)));
    assert!(matches!(read(&file[..100]), Err(TarError::Truncated)));
    let mut wrong = file.clone();
    wrong[0] ^= 1;
    assert!(matches!(read(&wrong), Err(TarError::Header(_))));
    for (kind, size) in [
        (EntryType::GNULongName, 1u64 << 33),
        (EntryType::XHeader, 1 << 33),
        (EntryType::Regular, u64::MAX / 2),
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        assert!(matches!(read(header.as_bytes()), Err(TarError::TooLong { .. })), "{kind:?}");
    }
    let backwards = b"2\n100\n5\n50\n5\n";
    let pax = [pax_record("GNU.sparse.major", b"1"), pax_record("GNU.sparse.realsize", b"999")];
    let item = Item { pax: pax.concat(), ..Item::file("x", backwards) };
    assert!(matches!(read(&tar(&[item])), Err(TarError::Header(_))));
}

proptest::proptest! {
    /// Random damage to a good archive: an error or an archive, never a panic or a hang.
    #[test]
    fn damage_is_survived(at in 0usize..3000, byte: u8, cut in 0usize..4000) {
        let pax = [pax_record("size", b"5"), pax_record("mtime", b"1.5")].concat();
        let long = "n".repeat(200);
        let items = [Item { pax, ..Item::file("a", b"hello") }, Item::file(&long, b"x")];
        let mut archive = tar(&items);
        let length = archive.len();
        archive[at % length] = byte;
        archive.truncate(cut);
        let _ = read(&archive);
    }
}
