//! Where objects land: keys as paths below a directory.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use crate::name::KeyPrefix;
use crate::name::RelPath;
use crate::store::ListedObject;
use crate::transfer::DownloadFile;
use crate::transfer::TransferError;

/// Where the objects of a listing land below `into`: their keys without `prefix`. Markers of directories
/// become directories, the second half of the answer.
///
/// # Errors
/// [`TransferError::Unfit`], with every key that makes no path, or that is a file and a directory.
pub fn landing(
    prefix: &KeyPrefix,
    objects: &[ListedObject],
    into: &Path,
) -> Result<(Vec<DownloadFile>, Vec<PathBuf>), TransferError> {
    let mut files: BTreeMap<RelPath, &ListedObject> = BTreeMap::new();
    let mut directories = BTreeSet::new();
    let mut unfit = Vec::new();
    for object in objects {
        let Some(rest) = prefix.strip(&object.key).filter(|rest| !rest.is_empty()) else { continue };
        let (text, is_marker) = rest.strip_suffix('/').map_or((rest, false), |text| (text, true));
        match RelPath::parse(text) {
            Ok(path) if is_marker => {
                directories.insert(path);
            }
            Ok(path) => {
                files.insert(path, object);
            }
            Err(err) => unfit.push(format!("{} ({err})", object.key)),
        }
    }
    let above = |path: &RelPath| path.ancestors().filter_map(|dir| dir.as_path()).collect::<Vec<_>>();
    let mut as_directory: BTreeSet<RelPath> = files.keys().flat_map(above).collect();
    as_directory.extend(directories.iter().flat_map(above));
    as_directory.extend(directories.iter().cloned());
    for path in files.keys().filter(|path| as_directory.contains(*path)) {
        unfit.push(format!("{prefix}{path} (it is a file and a directory)"));
    }
    if !unfit.is_empty() {
        return Err(TransferError::Unfit { what: unfit });
    }
    let files = files.into_iter().map(|(path, object)| DownloadFile {
        key: object.key.clone(),
        etag: object.etag.clone(),
        size_bytes: object.size_bytes,
        modified: object.modified,
        content: None,
        target: into.join(path.as_str()),
    });
    Ok((files.collect(), directories.into_iter().map(|path| into.join(path.as_str())).collect()))
}
