//! Lines on standard output and standard error.

use std::io::Write;

use run_record::{visible, visible_lines};

/// Prints a line of results, with [`visible`] names. A reader that stopped listening (`| head`) is no reason to stop
/// training.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", visible(line));
}

/// Prints results of several lines: a table, a help, indented JSON. A name in them must be [`visible`] already, or it may
/// break a line.
pub fn show(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", visible_lines(text));
}

/// Prints a line beside the results, on standard error. One that is closed or full changes nothing.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", visible(line));
}
