//! Files that only their owner may change, and keys that only their owner may read. The agent keeps its state like this,
//! too.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use thiserror::Error;
use zeroize::Zeroizing;

/// Mode bits: written by the group or by others.
const WRITABLE: u32 = 0o022;
/// Mode bits: read by the group or by others.
const READABLE: u32 = 0o044;
/// How the names of files begin that are being written.
const FRESH: &str = ".tmp";
/// So many new files can be swept away under our hands before it is no accident.
const TRIES: usize = 8;

/// Why a state directory, or a file in it, is not used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The system does not let us.
    #[error("cannot use the state in {}: {source}", path.display())]
    System {
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Others could change what is kept.
    #[error(
        "others than the owner may write to {}: see that nothing was changed, then run `chmod {fix} {}`",
        path.display(),
        path.display()
    )]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// The mode that it should have.
        fix: &'static str,
    },
    /// Others could read a key.
    #[error("others than the owner may read the key {}: run `chmod 600 {}`", path.display(), path.display())]
    Readable {
        /// The file.
        path: PathBuf,
    },
    /// The owner can change it at will.
    #[error(
        "{} belongs to user {owner}, who is neither root nor us: see that nothing was changed, then run `chown {us} {}`",
        path.display(),
        path.display()
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
}

/// Makes the directory (0700) if it is not there. One that others may write to is refused. What a process that was killed had
/// half written, which may be a key, is removed.
///
/// # Errors
/// [`StateError`].
pub fn open_folder(folder: &Path) -> Result<(), StateError> {
    let system = |source| system(folder, source);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(system)?;
    judge(folder, &fs::metadata(folder).map_err(system)?, WRITABLE)?;
    sweep(folder).map_err(system)
}

/// A file's bytes; `None` if it is not there. One that others may write to is refused.
///
/// # Errors
/// [`StateError`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let Some(mut bytes) = read_unless(path, WRITABLE)? else { return Ok(None) };
    Ok(Some(std::mem::take(&mut *bytes)))
}

/// A key's bytes, wiped when dropped; `None` if it is not there. One that others may read or write to is refused.
///
/// # Errors
/// [`StateError`].
pub fn read_key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    read_unless(path, WRITABLE | READABLE)
}

/// Writes a file (0600) whole or not at all. What was written is still there after a loss of power.
///
/// # Errors
/// [`StateError`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let written = || {
        let folder = folder_of(path);
        let mut file = fresh(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync(folder)
    };
    written().map_err(|source| system(path, source))
}

/// Removes a file. It does not come back after a loss of power.
///
/// # Errors
/// [`StateError`].
pub fn remove(path: &Path) -> Result<(), StateError> {
    fs::remove_file(path).and_then(|()| sync(folder_of(path))).map_err(|source| system(path, source))
}

/// A new file (0600, as tempfile makes them), locked as long as it is being written: what is not locked was left behind.
fn fresh(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    for _ in 0..TRIES {
        let file = tempfile::Builder::new().prefix(FRESH).tempfile_in(folder)?;
        // A sweep can have come between the file and its lock.
        if file.as_file().try_lock().is_ok() && file.as_file().metadata()?.nlink() == 1 {
            return Ok(file);
        }
    }
    Err(io::Error::other("new files are removed by somebody else"))
}

fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_fresh = entry.file_name().as_encoded_bytes().starts_with(FRESH.as_bytes());
        if !is_fresh || !entry.file_type()?.is_file() {
            continue;
        }
        match File::open(entry.path()) {
            Ok(file) if file.try_lock().is_ok() => match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            },
            // It is being written, or has got its name meanwhile.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn read_unless(path: &Path, forbidden: u32) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let system = |source| system(path, source);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(system(source)),
    };
    let metadata = file.metadata().map_err(system)?;
    judge(path, &metadata, forbidden)?;
    // As large as the file: a buffer that grows leaves copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    file.read_to_end(&mut bytes).map_err(system)?;
    Ok(Some(bytes))
}

fn judge(path: &Path, found: &Metadata, forbidden: u32) -> Result<(), StateError> {
    judge_owner(path, found.uid(), geteuid().as_raw())?;
    let path = path.to_owned();
    match found.mode() & forbidden {
        0 => Ok(()),
        bits if bits & WRITABLE == 0 => Err(StateError::Readable { path }),
        _ => Err(StateError::Writable { path, fix: if found.is_dir() { "700" } else { "600" } }),
    }
}

fn judge_owner(path: &Path, owner: u32, us: u32) -> Result<(), StateError> {
    if owner == us || owner == 0 { Ok(()) } else { Err(StateError::Owner { path: path.to_owned(), owner, us }) }
}

/// A new name in a directory is written down only when the directory is.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn system(path: &Path, source: io::Error) -> StateError {
    StateError::System { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        for mode in [0o770, 0o707, 0o1777] {
            fs::create_dir_all(&folder).unwrap();
            set_mode(&folder, mode);
            let error = open_folder(&folder).unwrap_err().to_string();
            assert!(error.contains(&format!("`chmod 700 {}`", folder.display())), "{mode:o}: {error}");
        }
        for mode in [0o700, 0o750, 0o755] {
            set_mode(&folder, mode);
            open_folder(&folder).unwrap();
        }
    }

    #[test]
    fn a_file_that_others_may_write_to_is_refused_and_a_key_that_they_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"x").unwrap();
        assert_eq!(read_key(&path).unwrap().unwrap().as_slice(), b"x");
        for mode in [0o640, 0o604] {
            set_mode(&path, mode);
            assert_eq!(read(&path).unwrap().unwrap(), b"x");
            let error = read_key(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("read the key {0}: run `chmod 600 {0}`", path.display())), "{error}");
        }
        for mode in [0o620, 0o602] {
            set_mode(&path, mode);
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("may write to"), "{error}");
            assert!(matches!(read_key(&path), Err(StateError::Writable { .. })));
        }
    }

    #[test]
    fn what_a_killed_process_had_half_written_is_removed_and_what_another_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut left = fresh(folder).unwrap();
        left.write_all(b"half a key").unwrap();
        // As SIGKILL leaves it: closed, and not removed.
        let (_, left) = left.keep().unwrap();
        let written = fresh(folder).unwrap();
        fs::write(folder.join("other"), b"x").unwrap();
        open_folder(folder).unwrap();
        assert!(!left.exists() && written.path().exists() && folder.join("other").exists());
        drop(written);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_of_somebody_elses_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(judge_owner(path, 7, 7).is_ok() && judge_owner(path, 0, 7).is_ok());
        for (owner, us) in [(1, 0), (1, 7)] {
            let error = judge_owner(path, owner, us).unwrap_err().to_string();
            assert!(error.contains(&format!("run `chown {us} {}`", path.display())), "{error}");
        }
        // Only root can give one away.
        if geteuid().is_root() {
            chown(path, Some(1), None).unwrap();
            assert!(matches!(open_folder(path), Err(StateError::Owner { owner: 1, .. })));
        }
    }
}
