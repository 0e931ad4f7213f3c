//! How things are said to a person.

use std::borrow::Cow;
use std::fmt::Write;

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
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let said = said.join(" ");
    format!("{}; --help tells more", said.strip_prefix("error: ").unwrap_or(&said))
}

/// The first names of a list and how many more there are: `a, b, c, d, e and 3 more`.
pub fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A line of text in which nothing acts on the terminal it is printed on: control characters, line breaks and what
/// turns the direction of writing around are written as JSON writes them, `\n` or `\u202e`. So no name of a file or
/// a class can forge a line or move the cursor, and JSON stays what it is.
pub fn visible(line: &str) -> Cow<'_, str> {
    if !line.contains(acts) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 8);
    for c in line.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // Writing to a string cannot fail, and all of these have four digits.
            c if acts(c) => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// [`visible`] for a text of several lines, such as a table, whose own line breaks stay.
pub fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// Controls, the two further line breaks of Unicode, and its marks, embeddings, overrides and isolates of direction.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// 594186 as `594,186`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_written_out_and_all_else_is_left() {
        for plain in ["", "épée — 日本語 \u{1f33b}", "C:\\n \"quoted\"", "e\u{301}\u{200d}x"] {
            assert!(matches!(visible(plain), Cow::Borrowed(same) if same == plain));
        }
        for (text, shown) in [
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2Jx\u{7}", "\\u001b[2Jx\\u0007"),
            ("\u{9b}31m\u{7f}\0", "\\u009b31m\\u007f\\u0000"),
            ("cat\u{202e}gnp.exe", "cat\\u202egnp.exe"),
            ("\u{2028}\u{2066}\u{200f}\u{61c}é", "\\u2028\\u2066\\u200f\\u061cé"),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert_eq!(visible_lines("a\tb\n\nc\u{1b}\n"), "a\\tb\n\nc\\u001b\n");
    }

    #[test]
    fn json_that_was_made_visible_says_the_same() {
        let name = "\u{1b}\n\"\\\u{9b}\u{7f}\u{202e}\u{2028}é";
        let json = serde_json::to_string(name).unwrap();
        let shown = visible(&json);
        assert!(!shown.contains(acts) && shown != json);
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), name);
    }

    #[test]
    fn a_complaint_is_one_line() {
        let text = "error: the following required arguments were not provided:\n  --preset <PRESET>\n\nUsage: x\n\nFor more\n";
        let line = "the following required arguments were not provided: --preset <PRESET>; --help tells more";
        assert_eq!(complaint(text), line);
        let text = "error: invalid value '0' for '--count <COUNT>': expected 1 to 9\n\nFor more information, try '--help'.\n";
        let line = "invalid value '0' for '--count <COUNT>': expected 1 to 9; --help tells more";
        assert_eq!(complaint(text), line);
    }

    #[test]
    fn long_lists_are_cut() {
        let names = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(
            [0, 1, 5, 6].map(|n| first_few(&names(n))),
            ["", "0", "0, 1, 2, 3, 4", "0, 1, 2, 3, 4 and 1 more"]
        );
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([12.34, 200.0, 7500.0].map(duration), ["12.3 s", "3 min 20 s", "2 h 05 min"]);
        assert_eq!([59.96, f64::NAN, 1e300].map(duration)[..2], ["1 min 00 s", "NaN s"]);
    }

    #[test]
    fn numbers_are_grouped_in_threes() {
        assert_eq!([7, 999, 1000, 594_186].map(grouped), ["7", "999", "1,000", "594,186"]);
    }
}
