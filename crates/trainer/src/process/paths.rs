//! Which files a command may write: never one that it reads, and only where it can.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use run_record::check_writable;

use crate::Error;

/// Whether a command that reads `inputs`, files or directories, may write the file `output`. To be asked before anything
/// is computed. An earlier output is written over.
///
/// # Errors
/// An output that is one of the inputs by whatever path or link, lies in one that is a directory, is itself a directory
/// or a device, or cannot be written.
pub fn check_output(output: &Path, inputs: &[&Path]) -> Result<(), Error> {
    let refused =
        |problem: String| Error::Usage(format!("{}: {problem}; name another output", output.display()));
    let existing = fs::metadata(output).ok();
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Where the file is written, and where it leads if it is a link by now.
    let written = fs::canonicalize(directory).ok().zip(output.file_name()).map(|(dir, name)| dir.join(name));
    let places: Vec<PathBuf> = written.into_iter().chain(fs::canonicalize(output)).collect();
    for input in inputs {
        // An input that is not there is for those to report who read it.
        let Ok((about, input_place)) = fs::metadata(input).and_then(|a| Ok((a, fs::canonicalize(input)?)))
        else {
            continue;
        };
        let same = |output: &Metadata| (output.dev(), output.ino()) == (about.dev(), about.ino());
        if existing.as_ref().is_some_and(same) {
            return Err(refused(format!("this is the input {}", input.display())));
        }
        if about.is_dir() && places.iter().any(|place| place.starts_with(&input_place)) {
            return Err(refused(format!("it would be part of what is in {}", input.display())));
        }
    }
    match existing {
        Some(about) if about.is_dir() => Err(refused("this is a directory".to_owned())),
        Some(about) if !about.is_file() => Err(refused("this is not a regular file".to_owned())),
        _ if !directory.is_dir() => Err(refused(format!("there is no directory {}", directory.display()))),
        _ => check_writable(output).map_err(Error::io(output)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn an_output_is_never_an_input_by_whatever_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("inner")).unwrap();
        fs::write(at("input"), "precious").unwrap();
        symlink(at("input"), at("link")).unwrap();
        symlink(at("link"), at("inner/link")).unwrap();
        symlink(directory.path(), at("inner/up")).unwrap();
        fs::hard_link(at("input"), at("hard")).unwrap();
        for output in ["input", "inner/../input", "link", "inner/link", "inner/up/input", "hard"] {
            for input in ["input", "link", "hard", "inner/up/input"] {
                let error = check_output(&at(output), &[Path::new("none"), &at(input)]).unwrap_err();
                let expected = format!("{output}: this is the input ");
                assert!(error.to_string().contains(&expected) && error.exit_code() == 2, "{error}");
            }
        }
        // Another file of the same content is another file, and an earlier output is written over.
        fs::write(at("other"), "precious").unwrap();
        for output in ["other", "new", "inner/new"] {
            check_output(&at(output), &[&at("input"), &at("none")]).unwrap();
        }
        let mut left: Vec<_> =
            fs::read_dir(at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["hard", "inner", "input", "link", "other"]);
    }

    #[test]
    fn nothing_is_written_into_a_directory_that_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("data/cat")).unwrap();
        fs::create_dir_all(at("data2")).unwrap();
        fs::write(at("data/cat/0.png"), "").unwrap();
        symlink(at("data/cat"), at("cats")).unwrap();
        symlink(at("data/cat/0.png"), at("picture")).unwrap();
        symlink(at("data2"), at("data/out")).unwrap();
        for output in
            ["data/cat/0.png", "data/cat/new.png", "data/new.png", "cats/0.png", "picture", "data2/../data/x"]
        {
            let error = check_output(&at(output), &[&at("data")]).unwrap_err().to_string();
            assert!(error.contains("would be part of what is in"), "{error}");
        }
        assert!(
            check_output(&at("data"), &[&at("data")]).unwrap_err().to_string().contains("this is the input")
        );
        for output in ["data2/sheet.png", "sheet.png", "data/out/sheet.png"] {
            check_output(&at(output), &[&at("data")]).unwrap();
        }
    }

    #[test]
    fn an_output_that_cannot_be_written_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "").unwrap();
        let long = "x".repeat(250);
        for (output, words) in [
            (at("none/new"), "there is no directory "),
            (at("file/new"), "there is no directory "),
            (at(""), "this is a directory"),
            (at(".."), "this is a directory"),
            (PathBuf::from("/dev/null"), "this is not a regular file"),
            (PathBuf::new(), "the path names no file"),
            (at(&long), "too long"),
        ] {
            let error = check_output(&output, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
