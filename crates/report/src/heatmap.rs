//! A confusion matrix as a drawing: shares of each class from white to the network's colour, images as numbers.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Error;
use crate::charts::{inner, whole};

/// More classes than these have no numbers in their cells, and more than these no names.
const NUMBERED: usize = 20;
const NAMED: usize = 40;

/// The drawing, by rows of true and columns of given classes, as an SVG file.
///
/// # Errors
/// The library's refusal.
pub fn confusion(
    title: &str,
    counts: &[Vec<u64>],
    classes: &[String],
    hue: RGBColor,
) -> Result<String, Error> {
    let n = classes.len();
    let cell: i32 = if n <= NUMBERED {
        40
    } else if n <= NAMED {
        18
    } else {
        6
    };
    let longest = classes.iter().map(|name| name.chars().count().min(14)).max().unwrap_or(0) as i32;
    let names = if n <= NAMED { 8 * longest + 12 } else { 8 };
    let (left, top) = (names + 22, names + 22);
    let side = cell * n as i32;
    let size = ((left + side + 12) as u32, (top + side + 12) as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| Error::Chart(error.to_string());
        let text = |words: &str, at: (i32, i32), anchor: (HPos, VPos), turn: FontTransform, ink: RGBColor| {
            let font =
                ("sans-serif", 13).into_font().transform(turn).color(&ink).pos(Pos::new(anchor.0, anchor.1));
            area.draw(&Text::new(words.to_owned(), at, font)).map_err(|error| failed(&error))
        };
        let (straight, up) = (FontTransform::None, FontTransform::Rotate270);
        text("Given class", (left + side / 2, 4), (HPos::Center, VPos::Top), straight.clone(), BLACK)?;
        text("True class", (14, top + side / 2), (HPos::Center, VPos::Bottom), up.clone(), BLACK)?;
        for (row, images) in counts.iter().enumerate() {
            let total = images.iter().sum::<u64>().max(1);
            let y = top + cell * row as i32;
            for (column, count) in images.iter().enumerate() {
                let x = left + cell * column as i32;
                let share = *count as f64 / total as f64;
                let fill = mixed(hue, share).filled();
                area.draw(&Rectangle::new([(x, y), (x + cell, y + cell)], fill))
                    .map_err(|error| failed(&error))?;
                if n <= NUMBERED && *count > 0 {
                    let ink = if share > 0.5 { WHITE } else { BLACK };
                    let middle = (x + cell / 2, y + cell / 2);
                    text(&count.to_string(), middle, (HPos::Center, VPos::Center), straight.clone(), ink)?;
                }
            }
        }
        for (index, name) in classes.iter().enumerate().filter(|_| n <= NAMED) {
            let name = shortened(name);
            let middle = cell * index as i32 + cell / 2;
            text(&name, (left - 6, top + middle), (HPos::Right, VPos::Center), straight.clone(), BLACK)?;
            text(&name, (left + middle, top - 6), (HPos::Left, VPos::Center), up.clone(), BLACK)?;
        }
        let frame = Rectangle::new([(left, top), (left + side, top + side)], RGBColor(120, 120, 120));
        area.draw(&frame).and_then(|()| area.present()).map_err(|error| failed(&error))?;
    }
    Ok(whole(title, (0, 0, size.0, size.1), inner(&svg)))
}

/// White for none, the hue for all.
fn mixed(hue: RGBColor, share: f64) -> RGBColor {
    let part = |full: u8| (255.0 - share * (255.0 - f64::from(full))).round() as u8;
    RGBColor(part(hue.0), part(hue.1), part(hue.2))
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= 14 { name.to_owned() } else { name.chars().take(13).chain(['…']).collect() }
}
