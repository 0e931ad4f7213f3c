//! Tables for people.

use std::ops::Range;

use comfy_table::{CellAlignment, Table, presets};
use run_record::visible;

/// A table under a header, whose columns `numbers` are of numbers and the others of text. Names in it are shown
/// [`visible`].
pub fn table<const N: usize>(
    header: [&str; N],
    numbers: Range<usize>,
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    for column in table.column_iter_mut().take(numbers.end).skip(numbers.start) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_on_the_right_and_names_break_no_line() {
        let rows = [["a\nb", "1"], ["c", "1,000"]].map(|row| row.map(str::to_owned));
        let want = "| name | images |\n|------|--------|\n| a\\nb |      1 |\n| c    |  1,000 |";
        assert_eq!(table(["name", "images"], 1..2, rows), want);
    }
}
