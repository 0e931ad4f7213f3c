//! Weights on the Hugging Face hub, `hf:ORG/NAME[@REVISION][/FILE]`: downloaded once, into the cache that other programs use.

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::Error;

/// What a reference to the hub begins with.
const SCHEME: &str = "hf:";

/// What is looked for in a repository, the first first.
const FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// How often a download goes on after it broke off.
const RETRIES: usize = 3;

/// Weights on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `ORG/NAME`.
    repo: String,
    /// A branch, a tag or a commit.
    revision: Option<String>,
    /// The file in the repository.
    file: Option<String>,
}

/// What a reference names, on this machine.
#[derive(Debug)]
pub struct Fetched {
    /// The file in the cache.
    pub path: PathBuf,
    /// The same with its commit and file, which name these weights for good.
    pub exact: Reference,
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::Usage(format!(
                "{text}: expected hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME@REVISION/FILE, such as \
                 hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
            ))
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (org, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (name, file) = rest.split_once('/').map_or((rest, None), |(name, file)| (name, Some(file)));
        let (name, revision) =
            name.split_once('@').map_or((name, None), |(name, revision)| (name, Some(revision)));
        // Each becomes a part of a path in the cache and of an address.
        let plain = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(known)
        };
        let parts =
            [org, name].into_iter().chain(revision).chain(file.into_iter().flat_map(|file| file.split('/')));
        if !parts.into_iter().all(plain) {
            return Err(wrong());
        }
        let repo = format!("{org}/{name}");
        Ok(Self { repo, revision: revision.map(str::to_owned), file: file.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

impl Reference {
    /// The reference that `weights` is, if it is one and no path.
    ///
    /// # Errors
    /// One that is incomplete.
    pub fn of(weights: &Path) -> Result<Option<Self>, Error> {
        let text = weights.to_str().filter(|text| text.starts_with(SCHEME));
        text.map(str::parse).transpose()
    }

    /// Whether this may name the weights that `exact` does.
    pub fn may_be(&self, exact: &Self) -> bool {
        self.repo == exact.repo
            && (self.revision.is_none() || self.revision == exact.revision)
            && (self.file.is_none() || self.file == exact.file)
    }

    /// The file, from the cache or else from the hub. `HF_HOME` moves the cache, `HF_ENDPOINT` names another server,
    /// `HF_HUB_OFFLINE=1` keeps from asking any.
    ///
    /// # Errors
    /// No such repository, revision or file, no network, or a download that is not what the server announced.
    pub fn fetch(&self) -> Result<Fetched, Error> {
        let cache = Cache::from_env();
        let revision = self.revision.clone().unwrap_or_else(|| "main".to_owned());
        let repo = Repo::with_revision(self.repo.clone(), RepoType::Model, revision.clone());
        let cached = cache.repo(repo.clone());
        let files: Vec<&str> = self.file.as_deref().map_or(FILES.to_vec(), |file| vec![file]);
        if let Some((path, file)) =
            files.iter().find_map(|file| Some((in_cache(&cached, &revision, file)?, *file)))
        {
            return self.fetched(path, file);
        }
        let named = if files.len() > 1 {
            format!("neither {}", files.join(" nor "))
        } else {
            format!("no {}", files[0])
        };
        if offline() {
            let place = cache.path().display();
            return Err(self.wrong(format!(
                "there is {named} in {place}, and HF_HUB_OFFLINE keeps from downloading it; unset that, or give a file"
            )));
        }
        let api = ApiBuilder::from_env().with_retries(RETRIES).with_progress(io::stderr().is_terminal());
        let api = api.build().map_err(|error| self.failed(&error))?.repo(repo);
        for file in files {
            match api.download(file) {
                Ok(path) => {
                    self.check(&path)?;
                    return self.fetched(path, file);
                }
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(self.wrong(format!(
            "the hub has no such revision, or there is {named} in it; name another after a slash"
        )))
    }

    /// The file is in `snapshots/COMMIT/FILE`.
    fn fetched(&self, path: PathBuf, file: &str) -> Result<Fetched, Error> {
        let snapshot = path.ancestors().nth(file.split('/').count());
        let commit = snapshot.and_then(Path::file_name).and_then(|name| name.to_str());
        let commit =
            commit.ok_or_else(|| self.wrong("the cache does not say which revision this is"))?.to_owned();
        let exact = Self { repo: self.repo.clone(), revision: Some(commit), file: Some(file.to_owned()) };
        Ok(Fetched { path, exact })
    }

    /// Large files are kept under their SHA-256, as the server announced it. One that differs is removed.
    fn check(&self, path: &Path) -> Result<(), Error> {
        let blob = fs::canonicalize(path).map_err(Error::io(path))?;
        let announced = blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name));
        let Some(announced) = announced else { return Ok(()) };
        let found = run_record::sha256(&fs::read(&blob).map_err(Error::io(&blob))?);
        if found == announced {
            return Ok(());
        }
        fs::remove_file(path).and_then(|()| fs::remove_file(&blob)).map_err(Error::io(&blob))?;
        Err(self.wrong(format!(
            "what was downloaded has the SHA-256 {found}, announced was {announced}; it was removed, try again"
        )))
    }

    fn failed(&self, error: &ApiError) -> Error {
        self.wrong(match status(error) {
            Some(status @ (401 | 403)) => format!(
                "the hub refuses it (status {status}): there is no such repository, or only for those who are logged in \
                 (`hf auth login`) and have accepted its terms"
            ),
            Some(status) => format!("the hub answers with status {status}; try again later"),
            None => format!(
                "it cannot be downloaded ({error}); is there a network? HF_ENDPOINT names another server, and a file that \
                 was downloaded elsewhere can be given by its path"
            ),
        })
    }

    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Weights { path: self.to_string().into(), problem: problem.into() }
    }
}

/// The file of this name in the cache, of a revision by whatever name.
fn in_cache(cached: &CacheRepo, revision: &str, file: &str) -> Option<PathBuf> {
    let of_commit = || Some(cached.pointer_path(revision).join(file)).filter(|path| path.exists());
    cached.get(file).or_else(of_commit)
}

/// What a server answered, if that is what went wrong.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

/// As Python's huggingface_hub reads it.
fn offline() -> bool {
    let value = env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written_alike() {
        for (text, repo, revision, file) in [
            ("hf:timm/a.b_c-1", "timm/a.b_c-1", None, None),
            ("hf:timm/a@main", "timm/a", Some("main"), None),
            ("hf:timm/a/b.pt", "timm/a", None, Some("b.pt")),
            ("hf:timm/a@v1.0/sub/b.pt", "timm/a", Some("v1.0"), Some("sub/b.pt")),
        ] {
            let found: Reference = text.parse().unwrap();
            let owned = |part: Option<&str>| part.map(str::to_owned);
            assert_eq!(found, Reference { repo: repo.into(), revision: owned(revision), file: owned(file) });
            assert_eq!(found.to_string(), text);
        }
        for text in [
            "hf:",
            "hf:timm",
            "hf:/a",
            "hf:timm/",
            "hf:timm/a@",
            "hf:timm/a/",
            "hf:timm/a//b",
            "hf:timm/../b",
            "hf:../a",
            "hf:timm/a@../b",
            "hf:timm/a/../../b",
            "hf:timm/a/.b",
            "hf:timm/a b",
            "hf:timm/a?b",
            "hf:timm/a@b@c",
            "timm/a",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("expected hf:ORG/NAME,"), "{error}");
        }
        assert_eq!(Reference::of(Path::new("./hf:timm/a")).unwrap(), None);
    }

    #[test]
    fn a_reference_may_leave_open_what_an_exact_one_says() {
        let exact: Reference = "hf:o/n@c0ffee/w.bin".parse().unwrap();
        let may_be = |text: &str| text.parse::<Reference>().unwrap().may_be(&exact);
        assert!(["hf:o/n", "hf:o/n@c0ffee", "hf:o/n/w.bin", "hf:o/n@c0ffee/w.bin"].into_iter().all(may_be));
        assert!(!["hf:o/m", "hf:o/n@main", "hf:o/n/w.pt"].into_iter().any(may_be));
    }
}
