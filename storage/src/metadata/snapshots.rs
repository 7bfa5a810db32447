//! Two files and one rule: the current one is never written to.
//!
//! A commit is: the whole next state written over the spare and flushed; spare and current change
//! names in one step; the folder flushed. A crash before the change of names leaves what was; one
//! after it leaves what was or what is, both whole. When the last step fails, the names are changed
//! back and that is flushed, so that disk and memory agree; when that fails, too, nothing more is
//! taken until a restart has read what counts.

use std::io;
use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::image::{BODY_BYTES_MAX, FORMAT, Image, ReadError};
use super::{Change, MetadataError};

/// The spare holds so much at least.
const SPARE_BYTES_MIN: u64 = 1 << 20;

/// The state, in memory and in a folder.
pub struct Snapshots<F> {
    folder: F,
    path: PathBuf,
    names: Names,
    image: Image,
    /// Lengths of the two files: at least what is in them.
    current_bytes: u64,
    spare_bytes: u64,
    /// Whether nobody knows what a power loss would leave.
    undecided: bool,
}

struct Names {
    current: String,
    spare: String,
    /// A store that is being made.
    new: String,
    /// What earlier programs wrote.
    former: String,
}

impl Names {
    fn new(path: &Path) -> Names {
        let named = |ending: &str| {
            let path = path.with_extension(ending);
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        };
        let current = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Names { current, spare: named("spare"), new: named("new"), former: named("redb") }
    }
}

impl<F: Folder> Snapshots<F> {
    /// Reads what is there, or begins with nothing where there has never been anything.
    pub fn open(folder: F, path: &Path) -> Result<Snapshots<F>, MetadataError> {
        Self::read_or(folder, path, begin)
    }

    /// Reads what is there.
    pub fn open_existing(folder: F, path: &Path) -> Result<Snapshots<F>, MetadataError> {
        Self::read_or(folder, path, |folder, path, names| {
            refuse_former(folder, path, names)?;
            Err(MetadataError::Missing(path.to_owned()))
        })
    }

    fn read_or(
        folder: F,
        path: &Path,
        otherwise: impl FnOnce(&F, &Path, &Names) -> Result<Image, MetadataError>,
    ) -> Result<Snapshots<F>, MetadataError> {
        let names = Names::new(path);
        let failed = |what| move |source| failure(path, what, source);
        let current = folder.open(&names.current).map_err(failed("opened"))?;
        let current_bytes = current.as_ref().map_or(0, |&(_, bytes)| bytes);
        let image = match current {
            Some((file, bytes)) => {
                Image::read(file, bytes).map_err(|error| refusal(path, error))?
            }
            None => otherwise(&folder, path, &names)?,
        };
        // A crash may have left it to the next one which of two commits counts.
        folder.sync().map_err(failed("flushed"))?;
        let path = path.to_owned();
        let (spare_bytes, undecided) = (0, false);
        let mut opened =
            Snapshots { folder, path, names, image, current_bytes, spare_bytes, undecided };
        opened.prepare_spare();
        Ok(opened)
    }

    /// The state after the last commit that did not fail.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// One durable transaction.
    ///
    /// # Errors
    /// When it did not become durable; then nothing of it counts.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), MetadataError> {
        if self.undecided {
            return Err(MetadataError::Undecided(self.path.clone()));
        }
        let next = self.image.with(changes).map_err(|bytes| {
            let path = self.path.clone();
            MetadataError::TooLarge { path, bytes, bytes_max: BODY_BYTES_MAX }
        })?;
        let (current, spare) = (&self.names.current, &self.names.spare);
        let failed = |what, source| Err(failure(&self.path, what, source));
        if let Err(error) = self.folder.write(spare, next.as_bytes()) {
            return failed("written", error);
        }
        if let Err(error) = self.folder.exchange(spare, current) {
            self.undecided = true;
            return failed("replaced", error);
        }
        if let Err(error) = self.folder.sync() {
            let undone = self.folder.exchange(spare, current).and_then(|()| self.folder.sync());
            self.undecided = undone.is_err();
            return failed("flushed", error);
        }
        self.spare_bytes = self.spare_bytes.max(next.as_bytes().len() as u64);
        std::mem::swap(&mut self.current_bytes, &mut self.spare_bytes);
        self.image = next;
        self.prepare_spare();
        Ok(())
    }

    /// Room for the next commits is taken while there is some: a failover, which has to work on a
    /// full disk, makes the state larger by the ends of all partitions.
    fn prepare_spare(&mut self) {
        let bytes = self.image.as_bytes().len() as u64;
        if self.spare_bytes >= SPARE_BYTES_MIN.max(2 * bytes) {
            return;
        }
        let wanted = SPARE_BYTES_MIN.max(4 * bytes);
        match self.folder.reserve(&self.names.spare, wanted) {
            Ok(()) => self.spare_bytes = wanted,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the metadata store has no room for its next commit");
            }
        }
    }
}

/// An empty store.
fn begin(folder: &impl Folder, path: &Path, names: &Names) -> Result<Image, MetadataError> {
    refuse_former(folder, path, names)?;
    if is_there(folder, path, &names.spare)? {
        return Err(MetadataError::Missing(path.to_owned()));
    }
    let failed = |source| failure(path, "made", source);
    let image = Image::empty();
    folder.write(&names.new, image.as_bytes()).map_err(failed)?;
    folder.rename(&names.new, &names.current).map_err(failed)?;
    Ok(image)
}

fn refuse_former(folder: &impl Folder, path: &Path, names: &Names) -> Result<(), MetadataError> {
    match is_there(folder, path, &names.former)? {
        true => Err(MetadataError::Former {
            path: path.to_owned(),
            former: path.with_file_name(&names.former),
        }),
        false => Ok(()),
    }
}

fn is_there(folder: &impl Folder, path: &Path, name: &str) -> Result<bool, MetadataError> {
    let file = folder.open(name).map_err(|source| failure(path, "opened", source))?;
    Ok(file.is_some())
}

fn failure(path: &Path, what: &'static str, source: io::Error) -> MetadataError {
    MetadataError::Io { path: path.to_owned(), what, source }
}

fn refusal(path: &Path, error: ReadError) -> MetadataError {
    let path = path.to_owned();
    match error {
        ReadError::Io(source) => MetadataError::Io { path, what: "read", source },
        ReadError::Format(found) => MetadataError::Format { path, found, known: FORMAT },
        ReadError::Damage(damage) => MetadataError::Damaged { path, damage },
    }
}
