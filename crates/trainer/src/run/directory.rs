//! One run's directory: who may write to it, what is already there, replacing that, and writing what is new.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use run_record::layout::{
    BEST, CHECKPOINTS, CLASSES, FIGURES, HISTORY, LAST, LAYERS, LOCK, LOG, PREDICTIONS, RECIPE, RECORD,
    TENSORBOARD, VERIFICATION,
};
use run_record::{
    EpochStats, Hashing, Recipe, RunRecord, STATUS_COMPLETE, STATUS_FAILED, remove_partial_files,
    sha256_file, sync_directory, to_csv, write_atomically, write_atomically_with,
};
use rustix::fs::{Access, access};

use crate::optim::precision::Precision;
use crate::process::progress::Log;
use crate::{Error, run::checkpoint, run::recipes, tensorboard::events};

/// The files of a run, besides the lock.
const FILES: [&str; 10] =
    [RECORD, RECIPE, CLASSES, HISTORY, BEST, LAST, PREDICTIONS, LAYERS, LOG, VERIFICATION];

/// Its directories.
const DIRECTORIES: [&str; 3] = [CHECKPOINTS, TENSORBOARD, FIGURES];

/// Where an earlier run waits until the one that replaces it has begun. While it is there it is the run, whatever
/// lies beside it: only a kill leaves it there.
const REPLACED: &str = "replaced";

/// What becomes of it then.
const DISCARDED: &str = "discarded.partial";

/// A run directory, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    // Held for its lock, which the system releases with the process, however that ends.
    _lock: File,
}

/// What a run directory holds before a run starts.
#[derive(Debug)]
pub enum Earlier {
    /// Nothing of a run, or one that failed before it had anything to lose.
    Nothing,
    /// A run of this recipe and seed that did not finish, or whose weights are gone.
    Unfinished(Box<RunRecord>),
    /// A finished run of this recipe and seed, with the weights it recorded.
    Finished(Box<RunRecord>),
}

/// Looks for what would keep a run directory from being made at `path`, without making it.
///
/// # Errors
/// A path that leads through a file, or where this process may not write.
pub fn check_place(path: &Path) -> Result<(), Error> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists());
    let Some(existing) = existing else { return Ok(()) };
    if !existing.is_dir() {
        return Err(Error::RunDir { path: existing.to_owned(), problem: "it is no directory".to_owned() });
    }
    access(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| Error::io(existing)(error.into()))
}

impl RunDir {
    /// Locks a run directory that exists. `None` if it does not.
    ///
    /// # Errors
    /// A directory that cannot be written, or another trainer that is using it.
    pub fn existing(path: &Path) -> Result<Option<Self>, Error> {
        if path.is_dir() { Self::open(path).map(Some) } else { Ok(None) }
    }

    /// Creates the directory if need be and locks it. A run that a killed replacement had set aside is put back.
    ///
    /// # Errors
    /// A directory that cannot be made or written, or another trainer that is using it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::RunDir {
                    path: path.to_owned(),
                    problem:
                        "another trainer is writing to this run; wait for it, or give --out another directory"
                            .to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&lock_path)(error)),
        }
        let run = Self { path: path.to_owned(), _lock: lock };
        run.put_back()?;
        Ok(run)
    }

    /// The path of a file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the run's checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.file(CHECKPOINTS)
    }

    /// The run's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there, given what is to be run. A run whose test was left out is not finished if it is to be tested.
    ///
    /// # Errors
    /// A run of another recipe, seed or precision, files of nobody's run, or files that cannot be read.
    pub fn find(
        &self,
        recipe: &Recipe,
        seed: u64,
        precision: Precision,
        tests: bool,
    ) -> Result<Earlier, Error> {
        let unreadable =
            |name: &str, problem| self.in_the_way(format!("its {name} cannot be read ({problem})"));
        let Some(record) = self.read(RECORD)? else {
            return match FILES.iter().chain(&DIRECTORIES).find(|name| self.file(name).exists()) {
                Some(name) => Err(self.in_the_way(format!("it has a {name} that belongs to no run"))),
                None => Ok(Earlier::Nothing),
            };
        };
        let record = RunRecord::parse(&record).map_err(|problem| unreadable(RECORD, problem))?;
        if record.result.status.starts_with(STATUS_FAILED) && self.has_nothing_to_lose()? {
            return Ok(Earlier::Nothing);
        }
        let old = match self.recipe()? {
            Some(old) => old,
            // Killed between the two files; the record tells whether the recipe was this one.
            None if record.result.recipe_sha256 == recipes::digest(recipe)? => recipe.clone(),
            None => return Err(self.in_the_way(format!("it has a {RECORD} and no {RECIPE}"))),
        };
        let mut differences = recipes::differences(&old, recipe)?;
        if record.result.seed != seed {
            differences.push(format!("seed: {} -> {seed}", record.result.seed));
        }
        let (was, is) = (record.result.precision.as_str(), precision.as_str());
        if was != is {
            differences.push(format!("precision: {was} -> {is}"));
        }
        if !differences.is_empty() {
            return Err(self.in_the_way(format!("it holds another run ({})", differences.join(", "))));
        }
        let is_tested = record.result.test_top1.is_some();
        let complete = record.result.status == STATUS_COMPLETE && (is_tested || !tests);
        let weights = recipe.train.select.weights_file();
        if !complete || !self.file(weights).exists() {
            return Ok(Earlier::Unfinished(Box::new(record))); // a checkpoint has the weights
        }
        if sha256_file(&self.file(weights)).ok() != record.weights_sha256 {
            let problem =
                format!("its {weights} is not the one it recorded (without it, a checkpoint's is taken)");
            return Err(self.in_the_way(problem));
        }
        Ok(Earlier::Finished(Box::new(record)))
    }

    /// The recipe of the run that is there.
    ///
    /// # Errors
    /// One that cannot be read.
    pub fn recipe(&self) -> Result<Option<Recipe>, Error> {
        let text = self.read(RECIPE)?;
        let recipe = text.map(|text| Recipe::parse(&text)).transpose();
        recipe.map_err(|problem| self.in_the_way(format!("its {RECIPE} cannot be read ({problem})")))
    }

    /// Checks that a run that was found saw the data that is there now.
    ///
    /// # Errors
    /// It saw others.
    pub fn check_data(&self, found: &Earlier, data_sha256: &str) -> Result<(), Error> {
        let (Earlier::Unfinished(record) | Earlier::Finished(record)) = found else { return Ok(()) };
        let seen = &record.result.data_sha256;
        if seen == data_sha256 {
            return Ok(());
        }
        Err(self.in_the_way(format!("it holds a run on other data (SHA-256 {seen}, now {data_sha256})")))
    }

    /// Whether a file lies in the directory.
    pub fn holds(&self, file: &Path) -> bool {
        fs::canonicalize(&self.path).is_ok_and(|directory| file.starts_with(directory))
    }

    /// Whether a run left no epoch, no checkpoint and no weights.
    fn has_nothing_to_lose(&self) -> Result<bool, Error> {
        let kept = [HISTORY, BEST, LAST];
        let has_none = !kept.iter().any(|name| self.file(name).exists());
        Ok(has_none && checkpoint::positions(&self.checkpoints())?.is_empty())
    }

    fn in_the_way(&self, problem: String) -> Error {
        Error::RunDir {
            path: self.path.clone(),
            problem: format!(
                "{problem}; --fresh starts over and replaces it, --out puts the new run elsewhere"
            ),
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.file(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// Removes the files of a run, so that nothing of it can be taken for another's.
    ///
    /// # Errors
    /// A file that cannot be removed.
    fn clear(&self) -> Result<(), Error> {
        checkpoint::clear(&self.checkpoints())?;
        let boards = self.file(TENSORBOARD);
        events::clear(&boards).map_err(Error::io(&boards))?;
        let figures = self.file(FIGURES);
        if figures.exists() {
            fs::remove_dir_all(&figures).map_err(Error::io(&figures))?;
        }
        // The record last: without it the rest would belong to nobody.
        for name in FILES.iter().rev() {
            let path = self.file(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(&path)(error)),
            }
        }
        Ok(())
    }

    /// Moves what is there of a run out of the way until [`RunDir::discard`] or [`RunDir::put_back`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_aside(&self) -> Result<(), Error> {
        if !FILES.iter().chain(&DIRECTORIES).any(|name| self.file(name).exists()) {
            return Ok(());
        }
        let aside = self.file(REPLACED);
        fs::create_dir(&aside).map_err(Error::io(&aside))?;
        // The record last: with it the run is there, without it here.
        for name in DIRECTORIES.iter().chain(FILES.iter().rev()) {
            move_if_there(&self.file(name), &aside.join(name))?;
        }
        sync(&aside).and_then(|()| sync(&self.path))
    }

    /// Puts the run back that was set aside, in the place of the one that was to replace it. `false` if there was none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_back(&self) -> Result<bool, Error> {
        let aside = self.file(REPLACED);
        if !aside.exists() {
            return Ok(false);
        }
        // With records in both places, nothing was put back yet, and what is here is the replacement's.
        if aside.join(RECORD).exists() && self.has_record() {
            self.clear()?;
        }
        for name in DIRECTORIES.iter().chain(FILES.iter().rev()) {
            move_if_there(&aside.join(name), &self.file(name))?;
        }
        fs::remove_dir(&aside).map_err(Error::io(&aside))?;
        sync(&self.path)?;
        Ok(true)
    }

    /// Lets go of the run that was set aside, if there is one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn discard(&self) -> Result<(), Error> {
        let (aside, gone) = (self.file(REPLACED), self.file(DISCARDED));
        if aside.exists() {
            // At once: half of a run is none to be put back.
            fs::rename(&aside, &gone).map_err(Error::io(&aside))?;
            fs::remove_dir_all(&gone).map_err(Error::io(&gone))?;
        }
        Ok(())
    }

    /// Removes what killed trainers left half-written.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn tidy(&self) -> Result<(), Error> {
        remove_partial_files(&self.path).map_err(Error::io(&self.path))?;
        let discarded = self.file(DISCARDED);
        if discarded.exists() {
            fs::remove_dir_all(&discarded).map_err(Error::io(&discarded))?;
        }
        Ok(checkpoint::tidy(&self.checkpoints())?)
    }

    /// The run's log, to add to.
    ///
    /// # Errors
    /// What the file system says.
    pub fn log(&self) -> Result<Log, Error> {
        let path = self.file(LOG);
        let file = File::options().create(true).append(true).open(&path);
        file.map(Some).map(Log).map_err(Error::io(&path))
    }

    /// Whether a run began in the directory.
    pub fn has_record(&self) -> bool {
        self.file(RECORD).exists()
    }

    /// Replaces a file of the run.
    ///
    /// # Errors
    /// What the file system says; the old file is then still there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.file(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))
    }

    /// Replaces a picture of the run.
    ///
    /// # Errors
    /// What the file system says; the old picture is then still there.
    pub fn write_figure(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let figures = self.file(FIGURES);
        fs::create_dir_all(&figures).map_err(Error::io(&figures))?;
        let path = figures.join(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))
    }

    /// Replaces a file of the run by a copy of another one, which must have this SHA-256.
    ///
    /// # Errors
    /// A file that has not, or what the file system says; the old file is then still there.
    pub fn publish(&self, from: &Path, name: &str, sha256: &str) -> Result<(), Error> {
        let path = self.file(name);
        let mut source = Hashing::new(File::open(from).map_err(Error::io(from))?);
        write_atomically_with(&path, |file| {
            io::copy(&mut source, file)?;
            let found = source.finish().1.sha256;
            if found == sha256 {
                Ok(())
            } else {
                Err(io::Error::other(format!("{} has the SHA-256 {found}, not {sha256}", from.display())))
            }
        })
        .map_err(Error::io(&path))
    }

    /// Writes `history.csv` as it stands after an epoch.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_history(&self, history: &[EpochStats]) -> Result<(), Error> {
        if history.is_empty() {
            return Ok(()); // there is no epoch to tell of
        }
        let rows = to_csv(history).map_err(|error| Error::io(&self.file(HISTORY))(error.into()))?;
        self.write(HISTORY, &rows)
    }

    /// Writes `record.json`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_record(&self, record: &RunRecord) -> Result<(), Error> {
        let path = self.file(RECORD);
        let mut text =
            serde_json::to_string_pretty(record).map_err(|error| Error::io(&path)(error.into()))?;
        text.push('\n');
        self.write(RECORD, text.as_bytes())
    }
}

fn move_if_there(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(from)(error)),
        _ => Ok(()),
    }
}

/// Has a directory's entries on the disk.
fn sync(directory: &Path) -> Result<(), Error> {
    sync_directory(directory).map_err(Error::io(directory))
}
