//! One run's directory: who may write to it, what is already there, and writing what is new.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use run_record::{EpochStats, Recipe, RunRecord, STATUS_COMPLETE, remove_partial_files, write_atomically};
use sha2::{Digest, Sha256};

use crate::precision::Precision;
use crate::{Error, checkpoint, recipes, tensorboard};

/// The files of a run, besides the lock.
const FILES: [&str; 6] =
    ["record.json", "recipe.toml", "history.csv", "best.safetensors", "last.safetensors", "train.log"];

/// Its directories.
const DIRECTORIES: [&str; 2] = ["checkpoints", "tensorboard"];

/// A run directory, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    // Held for its lock, which the system releases with the process, however that ends.
    _lock: File,
}

/// What a run directory holds before a run starts.
#[derive(Debug)]
pub enum Found {
    /// Nothing of a run.
    Nothing,
    /// A run of this recipe and seed that did not finish, or whose weights are gone.
    Unfinished(Box<RunRecord>),
    /// A finished run of this recipe and seed on this data, with the weights it recorded.
    Finished(Box<RunRecord>),
}

impl RunDir {
    /// Creates the directory if need be and locks it.
    ///
    /// # Errors
    /// A directory that cannot be made or written, or another trainer that is using it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let lock_path = path.join("run.lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::RunDir {
                path: path.to_owned(),
                problem:
                    "another trainer is writing to this run; wait for it, or give --out another directory"
                        .to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(Error::io(&lock_path)(error)),
        }
    }

    /// The path of a file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the run's checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.file("checkpoints")
    }

    /// The run's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there, given what is to be run.
    ///
    /// # Errors
    /// A run of another recipe, seed or precision, a finished one on other data, files of nobody's run, or
    /// files that cannot be read.
    pub fn find(
        &self,
        recipe: &Recipe,
        seed: u64,
        precision: Precision,
        data_sha256: &str,
    ) -> Result<Found, Error> {
        let unreadable =
            |name: &str, problem| self.in_the_way(format!("its {name} cannot be read ({problem})"));
        let Some(record) = self.read("record.json")? else {
            return match FILES.iter().chain(&DIRECTORIES).find(|name| self.file(name).exists()) {
                Some(name) => Err(self.in_the_way(format!("it has a {name} that belongs to no run"))),
                None => Ok(Found::Nothing),
            };
        };
        let record = RunRecord::parse(&record).map_err(|problem| unreadable("record.json", problem))?;
        let old = match self.read("recipe.toml")? {
            Some(old) => Recipe::parse(&old).map_err(|problem| unreadable("recipe.toml", problem))?,
            // Killed between the two files; the record tells whether the recipe was this one.
            None if record.result.recipe_sha256 == recipes::digest(recipe)? => recipe.clone(),
            None => return Err(self.in_the_way("it has a record.json and no recipe.toml".to_owned())),
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
        let (seen, complete) = (&record.result.data_sha256, record.result.status == STATUS_COMPLETE);
        // A run that failed for want of data has seen none.
        if seen != data_sha256 && (complete || !seen.is_empty()) {
            return Err(
                self.in_the_way(format!("it holds a run on other data (SHA-256 {seen}, now {data_sha256})"))
            );
        }
        if !complete {
            return Ok(Found::Unfinished(Box::new(record)));
        }
        let weights = recipe.train.select.weights_file();
        if !self.file(weights).exists() {
            return Ok(Found::Unfinished(Box::new(record))); // a checkpoint has them
        }
        let digest = fs::read(self.file(weights)).map(|bytes| recipes::hex(&Sha256::digest(bytes)));
        if digest.ok() != record.weights_sha256 {
            let problem =
                format!("its {weights} is not the one it recorded (without it, a checkpoint's is taken)");
            return Err(self.in_the_way(problem));
        }
        Ok(Found::Finished(Box::new(record)))
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
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// Removes the files of an earlier run, so that nothing of it can be taken for the new one's.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn clear(&self) -> Result<(), Error> {
        checkpoint::clear(&self.checkpoints())?;
        let boards = self.file("tensorboard");
        tensorboard::clear(&boards).map_err(Error::io(&boards))?;
        // The record last: without it the rest would belong to nobody.
        for name in FILES.iter().rev() {
            let path = self.file(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(&path)(error)),
            }
        }
        Ok(())
    }

    /// Removes what killed trainers left half-written.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn tidy(&self) -> Result<(), Error> {
        remove_partial_files(&self.path).map_err(Error::io(&self.path))?;
        Ok(checkpoint::tidy(&self.checkpoints())?)
    }

    /// The run's log, to add to.
    ///
    /// # Errors
    /// What the file system says.
    pub fn log(&self) -> Result<File, Error> {
        let path = self.file("train.log");
        File::options().create(true).append(true).open(&path).map_err(Error::io(&path))
    }

    /// Replaces a file of the run.
    ///
    /// # Errors
    /// What the file system says; the old file is then still there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.file(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))
    }

    /// Writes `history.csv` as it stands after an epoch.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_history(&self, history: &[EpochStats]) -> Result<(), Error> {
        if history.is_empty() {
            return Ok(()); // without a row there would be no header
        }
        let broken = |error: csv::Error| Error::io(&self.file("history.csv"))(std::io::Error::other(error));
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in history {
            writer.serialize(row).map_err(broken)?;
        }
        let bytes = writer.into_inner().map_err(|error| broken(error.into_error().into()))?;
        self.write("history.csv", &bytes)
    }

    /// Writes `record.json`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_record(&self, record: &RunRecord) -> Result<(), Error> {
        let path = self.file("record.json");
        let mut text =
            serde_json::to_string_pretty(record).map_err(|error| Error::io(&path)(error.into()))?;
        text.push('\n');
        self.write("record.json", text.as_bytes())
    }
}
