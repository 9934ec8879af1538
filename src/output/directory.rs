//! A directory that keytide writes into: opened once, never through a link, every file replaced as a whole.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::config::FileAccess;

/// Begins the names of files that are being written. No output of ours can have such a name, since names of outputs do
/// not begin with a dot and a word of ours.
const TEMPORARY: &str = ".keytide-tmp-";
/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of `linux/magic.h`.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// `NFS`, `SMB`, `SMB2`, `CIFS`, `FUSE`, `V9FS`, `CEPH`, `AFS`, `LUSTRE` of `linux/magic.h` and of those file systems.
const OF_OTHERS: [u64; 9] =
    [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x0bd0_0bd0];

/// A handle on a directory, held from the start.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: OwnedFd,
    allow_disk: bool,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: i64,
    changed: (i64, i64),
    mode: u32,
}

/// What a name of a directory stands for, without following a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// True for a regular file.
    pub is_file: bool,
    /// True for a directory.
    pub is_directory: bool,
    /// How many names the file has.
    pub links: u64,
    /// In bytes.
    pub size: u64,
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its permissions.
    pub mode: u32,
    /// When it was last changed, its name included: milliseconds since the Unix epoch.
    pub changed_ms: i64,
    /// What tells this state from another.
    pub stamp: Stamp,
}

/// The names of a directory, piece by piece.
#[derive(Debug)]
pub struct Listing<'a> {
    directory: &'a Directory,
    entries: fs::Dir,
}

/// Something that is wrong with a directory, or with a file in it.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It cannot be opened.
    #[error("failed to open directory {}: {what}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// It lies on a disk.
    #[error(
        "directory {} is not on a tmpfs: values would reach a disk; mount an in-memory volume there, or say allow_disk: true",
        .0.display()
    )]
    NotInMemory(PathBuf),
    /// Another directory has taken its name, and cannot be used.
    #[error("directory {} was replaced by something that keytide does not follow ({what})", path.display())]
    Replaced {
        /// The directory.
        path: PathBuf,
        /// What stands there now.
        what: String,
    },
    /// A step of writing a file failed.
    #[error("failed to {step} {}: {error}", path.display())]
    Write {
        /// What was attempted.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

// === impl Directory ===

impl Directory {
    /// Opens a directory, and makes it first where only its last parts are missing.
    ///
    /// # Errors
    /// If it is a link, not a directory, or on a disk without `allow_disk`.
    pub fn open(path: &Path, allow_disk: bool, mode: u32) -> Result<Self, DirectoryError> {
        let handle = match open_handle(path) {
            Err(Errno::NOENT) => {
                create(path, allow_disk, mode)?;
                open_handle(path)
            }
            other => other,
        };
        let handle = handle.map_err(|errno| open_error(path, errno))?;
        let directory = Self { path: path.to_owned(), handle, allow_disk };
        directory.check_medium()?;
        Ok(directory)
    }

    /// Makes a directory with this mode, whatever the process's umask, and whatever happens in between: it appears as a whole.
    /// The directories above it are made where they are missing.
    ///
    /// # Errors
    /// If it cannot be made, or would lie on a disk without `allow_disk`.
    pub fn make(path: &Path, allow_disk: bool, mode: u32) -> Result<(), DirectoryError> {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
        let parent = Self::open(parent, allow_disk, 0o755)?;
        let temporary = format!("{TEMPORARY}{:016x}", fastrand::u64(..));
        parent.subdirectory(&temporary, 0o700)?.set_mode(mode)?;
        let moved = fs::renameat(&parent.handle, &temporary, &parent.handle, name);
        moved.map_err(|errno| {
            fs::unlinkat(&parent.handle, &temporary, AtFlags::REMOVEDIR).unwrap_or_default();
            parent.error("make", &name.to_string_lossy(), errno)
        })
    }

    /// Opens a directory that must be there, on whatever medium.
    ///
    /// # Errors
    /// If it is missing, a link, or not a directory.
    pub fn open_existing(path: &Path) -> Result<Self, DirectoryError> {
        let handle = open_handle(path).map_err(|errno| open_error(path, errno))?;
        Ok(Self { path: path.to_owned(), handle, allow_disk: true })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if it is setgid, as the kubelet makes a volume of a pod with an `fsGroup`.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn is_setgid(&self) -> Result<bool, DirectoryError> {
        let stat = fs::fstat(&self.handle).map_err(|errno| self.error("look at", "", errno))?;
        Ok(Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID))
    }

    /// What the directory itself is; its stamp changes with the names in it.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn itself(&self) -> Result<Found, DirectoryError> {
        let stat = fs::fstat(&self.handle).map_err(|errno| self.error("look at", "", errno))?;
        Ok(Found::of(&stat))
    }

    /// Gives the directory this mode, whatever the process's umask.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn set_mode(&self, mode: u32) -> Result<(), DirectoryError> {
        fs::fchmod(&self.handle, Mode::from_raw_mode(mode)).map_err(|errno| self.error("set the mode of", "", errno))
    }

    /// True if the path still leads here.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn is_in_place(&self) -> Result<bool, DirectoryError> {
        let held = fs::fstat(&self.handle).map_err(|errno| self.error("look at", "", errno))?;
        match fs::statat(fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (held.st_dev, held.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(open_error(&self.path, errno)),
        }
    }

    /// False if it lies on a file system that others may change without this kernel's knowing.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let magic = fs::fstatfs(&self.handle).ok().and_then(|stat| u64::try_from(stat.f_type).ok());
        magic.is_none_or(|magic| !OF_OTHERS.contains(&(magic & 0xffff_ffff)))
    }

    /// Lists the names piece by piece, as bytes, in no order.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn listing(&self) -> Result<Listing<'_>, DirectoryError> {
        let entries = fs::Dir::read_from(&self.handle).map_err(|errno| self.error("list", "", errno))?;
        Ok(Listing { directory: self, entries })
    }

    /// What a name stands for; none if there is nothing.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn find(&self, name: &OsStr) -> Result<Option<Found>, DirectoryError> {
        match fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Found::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("look at", &name.to_string_lossy(), errno)),
        }
    }

    /// Opens a file for reading, and says what it is: of the open file, not of its name. Opening waits for nobody.
    ///
    /// # Errors
    /// If it cannot be opened; a link is not followed.
    pub fn open_file(&self, name: &OsStr) -> Result<(File, Found), DirectoryError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let failed = |errno| self.error("open", &name.to_string_lossy(), errno);
        let file = fs::openat(&self.handle, name, flags, Mode::empty()).map_err(failed)?;
        let stat = fs::fstat(&file).map_err(failed)?;
        Ok((File::from(file), Found::of(&stat)))
    }

    /// Moves a file to another directory of the same file system; false if there is no such file.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn move_to(&self, name: &OsStr, other: &Self, new_name: &OsStr) -> Result<bool, DirectoryError> {
        match fs::renameat(&self.handle, name, &other.handle, new_name) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.error("take", &name.to_string_lossy(), errno)),
        }
    }

    /// Makes an empty file for keytide alone; one that is there stays.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn touch(&self, name: &str) -> Result<(), DirectoryError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(&self.handle, name, flags, Mode::from_raw_mode(0o600)) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.error("make", name, errno)),
        }
    }

    /// Makes renames and removals survive a loss of power, where the directory may lie on a disk.
    ///
    /// # Errors
    /// If the system cannot.
    pub fn sync(&self) -> Result<(), DirectoryError> {
        if !self.allow_disk {
            return Ok(());
        }
        fs::fsync(&self.handle).map_err(|errno| self.error("sync", "", errno))
    }

    /// Looks whether the path still leads to the directory that is held, and takes the new one if somebody replaced it by
    /// a directory that is as good. A link is not followed.
    ///
    /// # Errors
    /// If what stands there now cannot be used.
    pub fn refresh(&mut self) -> Result<(), DirectoryError> {
        let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        let held = fs::fstat(&self.handle).map_err(|errno| self.error("look at", "", errno))?;
        match fs::statat(fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if same(&stat, &held) => Ok(()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let handle = open_handle(&self.path).map_err(|errno| open_error(&self.path, errno))?;
                let old = std::mem::replace(&mut self.handle, handle);
                self.check_medium().inspect_err(|_| self.handle = old)
            }
            Ok(stat) => {
                let what = format!("{:?}", FileType::from_raw_mode(stat.st_mode)).to_lowercase();
                Err(DirectoryError::Replaced { path: self.path.clone(), what })
            }
            Err(errno) => Err(open_error(&self.path, errno)),
        }
    }

    /// Opens, and where it is missing makes, a directory below this one.
    ///
    /// # Errors
    /// If it cannot be made or opened.
    pub fn subdirectory(&self, name: &str, mode: u32) -> Result<Self, DirectoryError> {
        match fs::mkdirat(&self.handle, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.error("make directory", name, errno)),
        }
        let handle = fs::openat(&self.handle, name, DIRECTORY, Mode::empty())
            .map_err(|errno| self.error("open", name, errno))?;
        Ok(Self { path: self.path.join(name), handle, allow_disk: self.allow_disk })
    }

    /// The state of a file; none if there is none.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn stamp(&self, name: &str) -> Result<Option<Stamp>, DirectoryError> {
        match fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stamp::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("look at", name, errno)),
        }
    }

    /// True if the file is a regular one and holds exactly this with this access.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn holds(&self, name: &str, content: &[u8], access: FileAccess, mode: u32) -> Result<bool, DirectoryError> {
        let Ok(Some(found)) = self.read(name, content.len()) else { return Ok(false) };
        let stat = fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.error("look at", name, errno))?;
        let permissions = Mode::from_raw_mode(stat.st_mode).bits() & 0o7777;
        Ok(*found == content
            && permissions == mode
            && access.group.is_none_or(|group| group == stat.st_gid)
            && access.owner.is_none_or(|owner| owner == stat.st_uid))
    }

    /// The content of a regular file of at most `limit` bytes; none if there is no such file.
    ///
    /// # Errors
    /// If it is there and cannot be read, is not a regular file, or is larger.
    pub fn read(&self, name: &str, limit: usize) -> Result<Option<Zeroizing<Vec<u8>>>, DirectoryError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("open", name, errno)),
        };
        let failed = |error| self.failure("read", name, error);
        let metadata = file.metadata().map_err(failed)?;
        let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        if !metadata.is_file() || size > limit {
            return Err(failed(io::Error::other("not a regular file of the expected size")));
        }
        let mut content = Zeroizing::new(Vec::with_capacity(size.saturating_add(1)));
        file.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut content).map_err(failed)?;
        Ok(Some(content))
    }

    /// Writes a file as a whole: into a new one beside it, whose mode and owners are set before the content, then renamed.
    ///
    /// # Errors
    /// If a step fails; the file of that name is then what it was, and nothing is left beside it.
    pub fn replace(&self, name: &str, content: &[u8], access: FileAccess, mode: u32) -> Result<Stamp, DirectoryError> {
        let temporary = format!("{TEMPORARY}{:016x}", fastrand::u64(..));
        let written = self.write_new(&temporary, name, content, access, mode).and_then(|stamp| {
            fs::renameat(&self.handle, &temporary, &self.handle, name)
                .map_err(|errno| self.error("replace", name, errno))?;
            if self.allow_disk {
                // On a disk the name must survive a loss of power as well as the content.
                fs::fsync(&self.handle).map_err(|errno| self.error("sync the directory of", name, errno))?;
            }
            Ok(stamp)
        });
        if written.is_err() {
            self.forget(&temporary);
        }
        // A rename changes the time of change: the stamp is that of the name as it stands now.
        written.and_then(|()| self.stamp(name)?.ok_or_else(|| self.error("look at", name, Errno::NOENT)))
    }

    fn write_new(
        &self,
        temporary: &str,
        name: &str,
        content: &[u8],
        access: FileAccess,
        mode: u32,
    ) -> Result<(), DirectoryError> {
        let failed = |step, errno: Errno| self.error(step, name, errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&self.handle, temporary, flags, Mode::empty())
            .map_err(|errno| failed("make a new file for", errno))?;
        // The lock says to whoever sweeps that its writer is alive.
        fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed("lock the new file of", errno))?;
        if access.owner.is_some() || access.group.is_some() {
            let owner = access.owner.map(fs::Uid::from_raw);
            let group = access.group.map(fs::Gid::from_raw);
            fs::fchown(&file, owner, group).map_err(|errno| failed("set the owner or group of", errno))?;
        }
        fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|errno| failed("set the mode of", errno))?;
        let mut file = File::from(file);
        file.write_all(content).map_err(|error| self.failure("write", name, error))?;
        if self.allow_disk {
            file.sync_all().map_err(|error| self.failure("sync", name, error))?;
        }
        Ok(())
    }

    /// Makes a symbolic link, in place of one of the same name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn link(&self, target: &str, name: &str) -> Result<(), DirectoryError> {
        let temporary = format!("{TEMPORARY}{:016x}", fastrand::u64(..));
        fs::symlinkat(target, &self.handle, &temporary).map_err(|errno| self.error("make link", name, errno))?;
        fs::renameat(&self.handle, &temporary, &self.handle, name).map_err(|errno| {
            self.forget(&temporary);
            self.error("replace link", name, errno)
        })
    }

    /// Where a link leads; none if there is none of that name, or something else.
    #[must_use]
    pub fn target(&self, name: &str) -> Option<String> {
        let target = fs::readlinkat(&self.handle, name, Vec::new()).ok()?;
        target.into_string().ok()
    }

    /// The names in it that are UTF-8, as all names of ours are.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn names(&self) -> Result<Vec<String>, DirectoryError> {
        Ok(self.raw_names()?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// All the names in it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn raw_names(&self) -> Result<Vec<OsString>, DirectoryError> {
        self.listing()?.next(usize::MAX)
    }

    /// Removes a file or a link.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), DirectoryError> {
        let name = name.as_ref();
        match fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", &name.to_string_lossy(), errno)),
        }
    }

    /// Removes a directory below this one, with the files in it.
    ///
    /// # Errors
    /// If something in it cannot be removed.
    pub fn remove_directory(&self, name: &str) -> Result<(), DirectoryError> {
        let below = self.subdirectory(name, 0o700)?;
        for file in below.names()? {
            below.remove(&file)?;
        }
        match fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove directory", name, errno)),
        }
    }

    /// Removes what writers that were killed left behind. A file whose writer is alive is locked, and stays.
    pub fn sweep(&self) {
        for name in self.names().unwrap_or_default().iter().filter(|name| name.starts_with(TEMPORARY)) {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let abandoned = match fs::openat(&self.handle, name.as_str(), flags, Mode::empty()) {
                Ok(file) => fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
                // A link that was not renamed, or a file that was not given its mode: nothing to lock.
                Err(errno) => matches!(errno, Errno::LOOP | Errno::ACCESS),
            };
            if abandoned {
                self.forget(name);
            }
        }
    }

    /// Removes a temporary file. One that stays behind is swept later.
    fn forget(&self, temporary: &str) {
        fs::unlinkat(&self.handle, temporary, AtFlags::empty()).unwrap_or_default();
    }

    fn check_medium(&self) -> Result<(), DirectoryError> {
        if self.allow_disk || is_in_memory(&self.handle).map_err(|errno| open_error(&self.path, errno))? {
            Ok(())
        } else {
            Err(DirectoryError::NotInMemory(self.path.clone()))
        }
    }

    fn error(&self, step: &'static str, name: &str, errno: Errno) -> DirectoryError {
        self.failure(step, name, errno.into())
    }

    fn failure(&self, step: &'static str, name: &str, error: io::Error) -> DirectoryError {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        DirectoryError::Write { step, path, error }
    }
}

// === impl Listing ===

impl Listing<'_> {
    /// The next names, at most so many; none at the end.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn next(&mut self, most: usize) -> Result<Vec<OsString>, DirectoryError> {
        let mut names = Vec::new();
        while names.len() < most
            && let Some(entry) = self.entries.next()
        {
            let entry = entry.map_err(|errno| self.directory.error("list", "", errno))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

// === impl DirectoryError ===

impl DirectoryError {
    /// True if the system does not let this user do it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Write { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(stat: &Stat) -> Self {
        let nanoseconds = i64::try_from(stat.st_ctime_nsec).unwrap_or_default();
        Self { inode: stat.st_ino, size: stat.st_size, changed: (stat.st_ctime, nanoseconds), mode: stat.st_mode }
    }
}

// === impl Found ===

impl Found {
    fn of(stat: &Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let ms = i64::try_from(stat.st_ctime_nsec).unwrap_or_default() / 1_000_000;
        Self {
            is_file: kind == FileType::RegularFile,
            is_directory: kind == FileType::Directory,
            links: stat.st_nlink,
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            owner: stat.st_uid,
            group: stat.st_gid,
            mode: Mode::from_raw_mode(stat.st_mode).bits() & 0o7777,
            changed_ms: stat.st_ctime.saturating_mul(1000).saturating_add(ms),
            stamp: Stamp::of(stat),
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_handle(path: &Path) -> Result<OwnedFd, Errno> {
    fs::openat(fs::CWD, path, DIRECTORY, Mode::empty())
}

/// Makes the missing parts of a path, but only where what is there already is as it must be: a volume that was not mounted
/// is not to be replaced by a directory on the container's disk.
fn create(path: &Path, allow_disk: bool, mode: u32) -> Result<(), DirectoryError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    if !allow_disk && let Some(there) = path.ancestors().nth(missing.len()) {
        let handle = open_handle(there).map_err(|errno| open_error(there, errno))?;
        if !is_in_memory(&handle).map_err(|errno| open_error(there, errno))? {
            return Err(DirectoryError::NotInMemory(path.to_owned()));
        }
    }
    for part in missing.iter().rev() {
        match fs::mkdirat(fs::CWD, *part, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(open_error(path, errno)),
        }
    }
    Ok(())
}

fn is_in_memory(handle: impl AsFd) -> Result<bool, Errno> {
    let magic = u64::try_from(fs::fstatfs(handle)?.f_type).unwrap_or_default();
    Ok(IN_MEMORY.contains(&magic))
}

fn open_error(path: &Path, errno: Errno) -> DirectoryError {
    let what = match errno {
        Errno::LOOP => "it is a symbolic link, which keytide does not follow".to_owned(),
        // O_DIRECTORY with O_NOFOLLOW says this of a link as well.
        Errno::NOTDIR => "it is a symbolic link or not a directory".to_owned(),
        errno => io::Error::from(errno).to_string(),
    };
    DirectoryError::Open { path: path.to_owned(), what }
}
