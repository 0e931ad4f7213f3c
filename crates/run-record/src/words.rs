//! How things are said to a person.

/// Seconds as `12.3 s`, `3 min 20 s` or `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A command-line parser's complaint on one line, without its repetition of the usage.
pub fn complaint(text: &str) -> String {
    let said: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    format!("{}; --help tells more", said.strip_prefix("error: ").unwrap_or(&said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line() {
        let text = "error: the following required arguments were not provided:\n  --preset <PRESET>\n\nUsage: x\n\nFor more\n";
        let line = "the following required arguments were not provided: --preset <PRESET>; --help tells more";
        assert_eq!(complaint(text), line);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([12.34, 200.0, 7500.0].map(duration), ["12.3 s", "3 min 20 s", "2 h 05 min"]);
        assert_eq!([59.96, f64::NAN, 1e300].map(duration)[..2], ["1 min 00 s", "NaN s"]);
    }
}
