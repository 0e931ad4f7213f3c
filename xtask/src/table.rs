//! Tables of results for people.

use std::ops::Range;

use comfy_table::{CellAlignment, Table, presets};

/// A Markdown table; the header's cells are separated by `|`, and `numbers` are the columns that are aligned to the right.
pub(crate) fn markdown(
    header: &str,
    numbers: Range<usize>,
    rows: impl Iterator<Item = Vec<String>>,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.split('|')).add_rows(rows);
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A share as per cent; nothing for one that is not known.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or(String::new(), |share| format!("{:.2} %", share * 100.0))
}

/// A difference of two shares in percentage points.
pub(crate) fn points(difference: Option<f64>) -> String {
    difference.map_or(String::new(), |difference| format!("{:+.2}", difference * 100.0))
}

/// Images per second.
pub(crate) fn speed(images: Option<f64>) -> String {
    images.map_or(String::new(), |images| format!("{images:.0}"))
}
