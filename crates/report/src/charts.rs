//! Charts as SVG: one drawing for the page and for the files of a run.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use serde::Serialize;

use crate::Error;

/// Pixels of a chart. Narrow, so that its words can be read on a phone.
const SIZE: (u32, u32) = (520, 340);
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
    /// Values.
    pub points: Vec<(f64, f64)>,
}

/// How numbers of an axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    Plain,
    /// 0 to 1, in per cent.
    Percent,
    /// In powers of ten.
    Log,
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

/// [`colour`] as CSS names it.
pub fn hex(family: &str) -> String {
    let RGBColor(red, green, blue) = colour(family);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// 594186 as `594 k`.
pub fn scaled(n: f64) -> String {
    let (value, unit) = match n {
        1e9.. => (n / 1e9, " G"),
        1e6.. => (n / 1e6, " M"),
        1e3.. => (n / 1e3, " k"),
        _ => (n, ""),
    };
    let digits = if value >= 100.0 || value.fract() == 0.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{unit}")
}

/// 0.8271 as `82.71 %`.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        if self == Self::Log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }

    fn tick(self, place: f64, span: f64) -> String {
        match self {
            Self::Plain => scaled_plain(place, span),
            Self::Percent if span < 0.05 => format!("{:.1} %", 100.0 * place),
            Self::Percent => format!("{:.0} %", 100.0 * place),
            Self::Log => scaled(10f64.powf(place)),
        }
    }

    fn value(self, value: f64) -> String {
        match self {
            Self::Plain if value.fract() == 0.0 => format!("{value}"),
            Self::Plain => format!("{value:.4}"),
            Self::Percent => percent(value),
            Self::Log => scaled(value),
        }
    }
}

fn scaled_plain(place: f64, span: f64) -> String {
    if span >= 5.0 { format!("{place:.0}") } else { format!("{place:.2}") }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = if high > low { 0.06 * (high - low) } else { (0.05 * low.abs()).max(0.01) };
    (low - room, high + room)
}

/// A chart in the page.
#[derive(Serialize)]
pub struct Figure {
    title: String,
    caption: &'static str,
    svg: String,
    file: Option<String>,
}

impl Chart {
    /// The chart for the page, with the address of its file; `None` with nothing to draw.
    ///
    /// # Errors
    /// The library's refusal.
    pub fn figure(&self, caption: &'static str, file: Option<String>) -> Result<Option<Figure>, Error> {
        Ok(self.inline()?.map(|svg| Figure { title: self.title.clone(), caption, svg, file }))
    }

    /// The chart as a whole SVG file, black on white; `None` with nothing to draw.
    ///
    /// # Errors
    /// The library's refusal.
    pub fn file(&self) -> Result<Option<String>, Error> {
        Ok(self.body()?.map(|body| {
            let (width, height) = SIZE;
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\
                 <title>{}</title><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>{body}</svg>\n",
                escaped(&self.title)
            )
        }))
    }

    /// The chart as a part of a page, in the page's own colour of ink.
    fn inline(&self) -> Result<Option<String>, Error> {
        Ok(self.body()?.map(|body| {
            let (width, height) = SIZE;
            let body =
                body.replace("\"#010101\"", "\"currentColor\"").replace("\"#DEDEDE\"", "\"var(--grid)\"");
            format!(
                "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {width} {height}\">{body}</svg>",
                escaped(&self.title)
            )
        }))
    }

    /// Axes, then a group per series that knows its run and where its values are.
    fn body(&self) -> Result<Option<String>, Error> {
        if self.series.iter().all(|series| series.points.is_empty()) {
            return Ok(None);
        }
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = range(all().map(|point| self.x.1.place(point.0)));
        let y = range(all().map(|point| self.y.1.place(point.1)));
        let (mut body, _) = self.layer(x, y, None)?;
        for series in &self.series {
            let (marks, pixels) = self.layer(x, y, Some(series))?;
            let points: Vec<String> = pixels
                .iter()
                .zip(&series.points)
                .map(|((px, py), (vx, vy))| {
                    format!("{px},{py},{} · {}", self.x.1.value(*vx), self.y.1.value(*vy))
                })
                .collect();
            let dashes = if series.mark == Mark::Dashes { " stroke-dasharray=\"5 4\"" } else { "" };
            body.push_str(&format!(
                "<g class=\"series\" data-run=\"{}\" data-name=\"{}\" data-points=\"{}\"{dashes}>{marks}</g>",
                escaped(&series.run),
                escaped(&series.name),
                escaped(&points.join(";"))
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
        let start = svg.find("<svg").and_then(|at| svg[at..].find('>').map(|end| at + end + 1)).unwrap_or(0);
        let end = svg.rfind("</svg>").unwrap_or(svg.len());
        Ok((svg[start..end].trim().to_owned(), pixels))
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: (f64, f64),
        y: (f64, f64),
        series: Option<&Series>,
    ) -> Result<Vec<(i32, i32)>, Box<dyn std::error::Error>> {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(46)
            .y_label_area_size(66)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let Some(series) = series else {
            let font = ("sans-serif", 14).into_font().color(&INK);
            chart
                .configure_mesh()
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .axis_style(INK)
                .x_labels(6)
                .y_labels(6)
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
        let style = series.colour.stroke_width(2);
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

fn pixels(
    chart: &ChartContext<'_, SVGBackend<'_>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    points: &[(f64, f64)],
) -> Vec<(i32, i32)> {
    points.iter().map(|point| chart.backend_coord(point)).collect()
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
