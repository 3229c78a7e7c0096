//! Datasets that begin and end in staging.

use super::*;

#[test]
fn datasets_come_and_go() {
    let area = Area::new();
    let staging = area.staging.as_ref().unwrap();
    let dataset = area.dataset();
    assert_eq!(staging.datasets(), [name()]);
    assert!(matches!(dataset.freeze("tx"), Err(StagingError::NothingStaged)));
    write(&dataset, "f", "");
    assert_eq!(errno(staging.remove_dataset(&name())), libc::ENOTEMPTY);
    dataset.unlink(&path("f")).unwrap();
    staging.remove_dataset(&name()).unwrap();
    assert_eq!(errno(staging.remove_dataset(&name())), libc::ENOENT);
    assert!(staging.dataset(&name()).is_none());
}

#[test]
fn a_dataset_that_was_not_made_on_purpose_goes_with_the_last_that_is_staged() {
    let mut area = Area::new();
    let dataset = area.staging.as_ref().unwrap().known_dataset(&name()).unwrap();
    let is_gone = |area: &Area| !dataset.exists() && !area.on_disk("").exists();
    write(&dataset, "a/f", "");
    dataset.mkdir(&path("d"), 0o755).unwrap();
    dataset.rmdir(&path("d")).unwrap();
    assert!(dataset.exists());
    dataset.rename(&path("a/f"), &path("f"), false).unwrap();
    dataset.unlink(&path("f")).unwrap();
    assert!(is_gone(&area));

    fs::create_dir_all(area.on_disk("")).unwrap();
    fs::write(area.on_disk("open"), "in the way").unwrap();
    assert_eq!(errno(dataset.create_file(&path("f"), 0o644)), libc::EEXIST);
    fs::remove_file(area.on_disk("open")).unwrap();
    assert_eq!(errno(dataset.rename(&path("nowhere"), &path("x"), false)), libc::ENOENT);
    drop(dataset.begin_import().unwrap());
    assert!(is_gone(&area), "what has failed, or was given up, leaves nothing");

    let base = Base { etag: ETag::from_server("e"), size_bytes: 1, kind: BaseKind::Delete };
    dataset.set_base(&path("published"), &base).unwrap();
    write(&dataset, "f", "");
    dataset.unlink(&path("f")).unwrap();
    assert!(dataset.exists(), "a deletion is staged");
    dataset.clear_base(&path("published")).unwrap();
    assert!(is_gone(&area));

    for made in [false, true] {
        if made {
            area.dataset();
        }
        write(&dataset, "f", "");
        let sealed = dataset.freeze("tx").unwrap();
        dataset.thaw(&sealed).unwrap();
        dataset.unlink(&path("f")).unwrap();
        assert_eq!(dataset.exists(), made);
    }
    area.staging = None;
    area.staging = Some(Staging::open(area.root.path(), &Holder::default()).unwrap());
    assert_eq!(area.staging.as_ref().unwrap().datasets(), [name()], "made on purpose, with nothing in it");
}
