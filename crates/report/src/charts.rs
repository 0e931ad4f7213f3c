//! Charts as SVG: one drawing for the page and for the files of a run.

use plotters::coord::Shift;
use plotters::prelude::*;

use serde::Serialize;

use crate::Error;
use crate::files::Files;
use crate::scale::{Axis, Scale, TICKS};

/// Pixels of a chart. Narrow, so that its words can be read on a phone.
const SIZE: (u32, u32) = (400, 300);
/// Height of a line of words, and width of a letter, in pixels.
const LINE: i32 = 16;
const LETTER: i32 = 7;
/// Where a legend begins.
const LEGEND_LEFT: i32 = 12;
const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(222, 222, 222);

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A line, solid.
    Line,
    /// A line, dashed.
    Dashes,
    /// Filled circles.
    Dots,
    /// Hollow diamonds.
    Diamonds,
}

/// Points of one run.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name of the run, to show and hide it.
    pub run: String,
    /// What is said of a point when it is pointed at, before its values.
    pub name: String,
    /// Colour of its architecture.
    pub colour: RGBColor,
    /// How it is drawn.
    pub mark: Mark,
    /// Width of a line in pixels.
    pub width: u32,
    /// What is written beside it, where there is room.
    pub label: Option<String>,
    /// Values.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A line, a dot or a diamond of usual size, without a label.
    pub fn new(run: &str, name: &str, colour: RGBColor, mark: Mark, points: Vec<(f64, f64)>) -> Self {
        Self { run: run.to_owned(), name: name.to_owned(), colour, mark, width: 2, label: None, points }
    }
}

/// A chart of several series.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Name and scale of the horizontal axis.
    pub x: (&'static str, Scale),
    /// Name and scale of the vertical axis.
    pub y: (&'static str, Scale),
    /// What is drawn.
    pub series: Vec<Series>,
    /// Where a legend stands above it.
    pub legend: Legend,
}

/// Where a chart has a legend of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Legend {
    /// Nowhere: points are named where they are.
    None,
    /// In its files; the page has one for all its charts.
    Files,
    /// In its files and in the page.
    Everywhere,
}

/// Colour of an architecture, of those that Okabe and Ito chose for all eyes.
pub fn colour(family: &str) -> RGBColor {
    match family {
        "cct" => RGBColor(0, 114, 178),
        "gcvit" => RGBColor(213, 94, 0),
        "patchconvnet" => RGBColor(0, 158, 115),
        "vit" => RGBColor(204, 121, 167),
        "convmixer" => RGBColor(230, 159, 0),
        _ => RGBColor(110, 110, 110),
    }
}

/// A colour as CSS names it.
pub fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// A chart in the page.
#[derive(Serialize)]
pub struct Figure {
    title: String,
    caption: &'static str,
    svg: String,
    links: Vec<(&'static str, String)>,
}

impl Chart {
    /// The chart for the page, and as `NAME.svg` and `NAME.png` in a directory, whose address in the page is given, beside
    /// that of the numbers; `None` with nothing to draw.
    ///
    /// # Errors
    /// The library's refusal, or a file that cannot be written.
    pub fn figure(&self, caption: &'static str, files: &Files) -> Result<Option<Figure>, Error> {
        let Some(body) = self.body()? else { return Ok(None) };
        Ok(Some(Figure {
            title: self.title.clone(),
            caption,
            svg: self.inline(&body),
            links: files.write(&self.file(&body))?,
        }))
    }

    /// The chart as a whole SVG file, black on white.
    fn file(&self, body: &str) -> String {
        let (band, legend) = if self.legend == Legend::None { (0, String::new()) } else { self.legend() };
        whole(&self.title, (0, -band, SIZE.0, SIZE.1), &(legend + body))
    }

    /// The chart as a part of a page, in the page's own colour of ink.
    fn inline(&self, body: &str) -> String {
        let (band, legend) =
            if self.legend == Legend::Everywhere { self.legend() } else { (0, String::new()) };
        let (width, height) = SIZE;
        let body = (legend + body)
            .replace("\"#010101\"", "\"currentColor\"")
            .replace("\"#DEDEDE\"", "\"var(--grid)\"");
        format!(
            "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 -{band} {width} {}\">{body}</svg>",
            escaped(&self.title),
            height as i32 + band
        )
    }

    /// How the series are drawn and called, above the chart, and the height of that in pixels. Thin lines have no entry.
    fn legend(&self) -> (i32, String) {
        let named = self.series.iter().filter(|series| series.width > 1 && !series.points.is_empty());
        let letters = named.clone().map(|series| series.name.chars().count()).max().unwrap_or(0);
        let wide = 26 + LETTER * letters as i32 + 14;
        let columns = ((SIZE.0 as i32 - LEGEND_LEFT) / wide).max(1) as usize;
        let rows = named.clone().count().div_ceil(columns);
        let band = LINE * rows as i32 + 6;
        let drawn = named.enumerate().map(|(index, series)| {
            let (x, row) = (LEGEND_LEFT + wide * (index % columns) as i32, (index / columns) as i32);
            let y = LINE * row + LINE / 2 - band + 4;
            let paint = hex(series.colour);
            let line = |dashes: &str| format!("<path d=\"M{x} {y}h20\" stroke=\"{paint}\" stroke-width=\"2\"{dashes}/>");
            let sample = match series.mark {
                Mark::Line => line(""),
                Mark::Dashes => line(" stroke-dasharray=\"5 4\""),
                Mark::Dots => format!("<circle cx=\"{}\" cy=\"{y}\" r=\"5\" fill=\"{paint}\"/>", x + 10),
                Mark::Diamonds => {
                    format!("<path d=\"M{} {}l6 6l-6 6l-6 -6z\" fill=\"none\" stroke=\"{paint}\" stroke-width=\"2\"/>", x + 10, y - 6)
                }
            };
            sample + &words(x + 26, y + 4, &series.name)
        });
        (band, drawn.collect())
    }

    /// Axes, then a group per series that knows its run and where its values are.
    fn body(&self) -> Result<Option<String>, Error> {
        if self.series.iter().all(|series| series.points.is_empty()) {
            return Ok(None);
        }
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = self.x.1.range(all().map(|point| point.0));
        let y = self.y.1.range(all().map(|point| point.1));
        let (mut body, _) = self.layer(x, y, None)?;
        let layers = self.series.iter().map(|series| self.layer(x, y, Some(series)));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let marks: Vec<(i32, i32)> = layers.iter().flat_map(|(_, pixels)| pixels.clone()).collect();
        let mut labels = Labels::beside(marks);
        for (series, (marks, pixels)) in self.series.iter().zip(layers) {
            let label = series.label.as_deref().and_then(|text| labels.place(text, &pixels));
            let points: Vec<String> = pixels
                .iter()
                .zip(&series.points)
                .map(|((px, py), (vx, vy))| {
                    format!("{px},{py},{} · {}", self.x.1.value(*vx), self.y.1.value(*vy))
                })
                .collect();
            let dashes = if series.mark == Mark::Dashes { " stroke-dasharray=\"5 4\"" } else { "" };
            body.push_str(&format!(
                "<g class=\"series\" data-run=\"{}\" data-name=\"{}\" data-points=\"{}\"{dashes}>{marks}{}</g>",
                escaped(&series.run),
                escaped(&series.name),
                escaped(&points.join(";")),
                label.unwrap_or_default()
            ));
        }
        Ok(Some(body))
    }

    fn layer(
        &self,
        x: (f64, f64),
        y: (f64, f64),
        series: Option<&Series>,
    ) -> Result<(String, Vec<(i32, i32)>), Error> {
        let mut svg = String::new();
        let pixels = {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let pixels = self.draw(&area, x, y, series).map_err(|error| Error::Chart(error.to_string()))?;
            area.present().map_err(|error| Error::Chart(error.to_string()))?;
            pixels
        };
        Ok((inner(&svg).to_owned(), pixels))
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: (f64, f64),
        y: (f64, f64),
        series: Option<&Series>,
    ) -> Result<Vec<(i32, i32)>, Box<dyn std::error::Error>> {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(46)
            .y_label_area_size(62)
            .build_cartesian_2d(Axis::new(self.x.1, x), Axis::new(self.y.1, y))?;
        let Some(series) = series else {
            let font = ("sans-serif", 15).into_font().color(&INK);
            chart
                .configure_mesh()
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .axis_style(INK)
                .x_labels(TICKS)
                .y_labels(TICKS)
                .x_desc(self.x.0)
                .y_desc(self.y.0)
                .label_style(font.clone())
                .axis_desc_style(font)
                .x_label_formatter(&|place| self.x.1.tick(*place, x.1 - x.0))
                .y_label_formatter(&|place| self.y.1.tick(*place, y.1 - y.0))
                .draw()?;
            return Ok(Vec::new());
        };
        let points: Vec<(f64, f64)> =
            series.points.iter().map(|point| (self.x.1.place(point.0), self.y.1.place(point.1))).collect();
        let style = series.colour.stroke_width(series.width);
        match series.mark {
            // A line of one point would not be seen.
            Mark::Line | Mark::Dashes if points.len() > 1 => {
                chart.draw_series(LineSeries::new(points.clone(), style))?;
            }
            Mark::Line | Mark::Dashes | Mark::Dots => {
                let dot = |point: &(f64, f64)| Circle::new(*point, 6, series.colour.filled());
                chart.draw_series(points.iter().map(dot))?;
            }
            Mark::Diamonds => {
                let corners = [(0, -8), (8, 0), (0, 8), (-8, 0), (0, -8)];
                let diamond =
                    |point: &(f64, f64)| EmptyElement::at(*point) + PathElement::new(corners.to_vec(), style);
                chart.draw_series(points.iter().map(diamond))?;
            }
        }
        Ok(pixels(&chart, &points))
    }
}

/// Words beside points, none over another or over a point.
struct Labels {
    taken: Vec<[i32; 4]>,
}

impl Labels {
    fn beside(points: Vec<(i32, i32)>) -> Self {
        Self { taken: points.into_iter().map(|(x, y)| [x - 8, y - 8, x + 8, y + 8]).collect() }
    }

    /// The words as SVG right, left, above or below of a point, where that is free: of the last such point.
    fn place(&mut self, text: &str, points: &[(i32, i32)]) -> Option<String> {
        let width = LETTER * text.chars().count() as i32;
        let place = points.iter().rev().find_map(|point| self.free_place(width, *point))?;
        self.taken.push(place);
        Some(words(place[0], place[1] + 13, text))
    }

    fn free_place(&self, width: i32, (x, y): (i32, i32)) -> Option<[i32; 4]> {
        let half = LINE / 2;
        let corners = [
            (x + 10, y - half),
            (x - 10 - width, y - half),
            (x - width / 2, y - 10 - LINE),
            (x - width / 2, y + 10),
            (x - width + 10, y - 10 - LINE),
            (x - width + 10, y + 10),
        ];
        let boxes = corners.map(|(left, top)| [left, top, left + width, top + LINE]);
        let is_free = |place: &[i32; 4]| {
            let [left, top, right, bottom] = *place;
            let inside = left > 66 && right < SIZE.0 as i32 - 6 && top > 6 && bottom < SIZE.1 as i32 - 50;
            let apart =
                |other: &[i32; 4]| right < other[0] || other[2] < left || bottom < other[1] || other[3] < top;
            inside && self.taken.iter().all(apart)
        };
        boxes.into_iter().find(is_free)
    }
}

fn pixels(
    chart: &ChartContext<'_, SVGBackend<'_>, Cartesian2d<Axis, Axis>>,
    points: &[(f64, f64)],
) -> Vec<(i32, i32)> {
    points.iter().map(|point| chart.backend_coord(point)).collect()
}

/// Words that begin at a point.
fn words(x: i32, y: i32, text: &str) -> String {
    let text = escaped(text);
    format!(
        "<text x=\"{x}\" y=\"{y}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#010101\">{text}</text>"
    )
}

/// What an SVG draws, without its outermost element.
pub fn inner(svg: &str) -> &str {
    let start = svg.find("<svg").and_then(|at| svg[at..].find('>').map(|end| at + end + 1)).unwrap_or(0);
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    svg[start..end].trim()
}

/// An SVG file of a drawing, on white. It begins at a point left of or above which there is nothing, and has a width and a
/// height below and right of 0.
pub fn whole(title: &str, (left, top, width, height): (i32, i32, u32, u32), body: &str) -> String {
    let (wide, high) = (width as i32 - left, height as i32 - top);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{wide}\" height=\"{high}\" viewBox=\"{left} {top} {wide} {high}\">\
         <title>{}</title><rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{high}\" fill=\"#fff\"/>{body}</svg>\n",
        escaped(title)
    )
}

/// Text in HTML and SVG, in quotes too.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no other control characters.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
