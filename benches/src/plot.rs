//! Plots, written as SVG by hand: a panel of bars per quantity, the spread as a whisker, the
//! ceiling or goal as a dashed line, the medians in a column of their own beside the bars.

use std::fmt::Write as _;

use crate::conditions::FileState;
use crate::report::{Panel, Report, figure};
use crate::sample::Sample;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 300.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 16.0;
const STEP: f64 = 24.0;
const PANEL_HEAD: f64 = 44.0;
const PANEL_FOOT: f64 = 44.0;
const TITLE: f64 = 62.0;

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut top = TITLE;
    for panel in &report.panels {
        let rows: Vec<(String, FileState, &Sample)> = report
            .rows
            .iter()
            .filter_map(|row| Some((row.name.clone(), row.files, row.sample(&panel.unit)?)))
            .collect();
        if !rows.is_empty() {
            top = draw_panel(&mut body, panel, &rows, top);
        }
    }
    let c = &report.conditions;
    let quick = if c.quick { ", QUICK" } else { "" };
    let runs = match c.runs {
        1 => "one run".to_owned(),
        runs => format!("{runs} runs, bars are medians, lines least to most"),
    };
    let machine =
        format!("{} × {}, Linux {}, {} build; {runs}{quick}", c.cores, c.cpu, c.kernel, c.build);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{top}\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{}</text>\n\
         <text x=\"16\" y=\"46\" fill=\"#555\">{}</text>\n{body}</svg>\n",
        escape(&format!("{}: {}", report.bench, report.title)),
        escape(&machine),
    )
}

/// Draws one panel; where the next begins.
fn draw_panel(
    out: &mut String,
    panel: &Panel,
    rows: &[(String, FileState, &Sample)],
    top: f64,
) -> f64 {
    let bottom = top + PANEL_HEAD + STEP * rows.len() as f64;
    let most = rows.iter().map(|(_, _, sample)| sample.max()).fold(0.0, f64::max);
    let most = panel.line.as_ref().map_or(most, |(line, _)| most.max(*line));
    let (end, tick) = axis(most);
    let x = |value: f64| LEFT + value / end * (WIDTH - LEFT - RIGHT);
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"{}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
        top + 18.0,
        escape(&format!("{}{}", panel.unit, direction(&panel.unit)))
    );
    let mut at = 0.0;
    while at <= end * 1.0001 {
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" y1=\"{1}\" x2=\"{0:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\" fill=\"#555\">{3}</text>",
            x(at),
            top + PANEL_HEAD - 6.0,
            bottom + 16.0,
            (at * 1e6).round() / 1e6
        );
        at += tick;
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#555\">{}</text>",
        WIDTH - 16.0,
        bottom + 32.0,
        escape(&panel.unit)
    );
    for (index, (name, files, sample)) in rows.iter().enumerate() {
        draw_bar(out, name, *files, sample, top + PANEL_HEAD + STEP * index as f64, &x);
    }
    if let Some((value, label)) = &panel.line {
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" y1=\"{1}\" x2=\"{0:.1}\" y2=\"{bottom}\" stroke=\"#c0392b\" \
             stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/>\
             <text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"{3}\" fill=\"#c0392b\">{4}</text>",
            x(*value),
            top + PANEL_HEAD - 8.0,
            top + PANEL_HEAD - 12.0,
            if *value > end / 2.0 { "end" } else { "start" },
            escape(&format!("{label}: {}", figure(*value)))
        );
    }
    bottom + PANEL_FOOT
}

fn draw_bar(
    out: &mut String,
    name: &str,
    files: FileState,
    sample: &Sample,
    y: f64,
    x: &impl Fn(f64) -> f64,
) {
    let (colour, label) = match files {
        FileState::Growing => ("#1b4f72", format!("{name} (growing)")),
        FileState::Fresh => ("#2e86c1", format!("{name} (fresh)")),
        FileState::Overwritten => ("#85c1e9", format!("{name} (overwritten)")),
        FileState::None => ("#7f8c8d", name.to_owned()),
    };
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>",
        LEFT - 8.0,
        middle + 4.0,
        escape(&label),
        (x(sample.median()) - LEFT).max(0.5)
    );
    if sample.0.len() > 1 {
        let _ = writeln!(
            out,
            "<line x1=\"{:.1}\" y1=\"{middle}\" x2=\"{:.1}\" y2=\"{middle}\" stroke=\"#222\"/>",
            x(sample.min()),
            x(sample.max())
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        WIDTH - 16.0,
        middle + 4.0,
        figure(sample.median())
    );
}

/// What a reader wants of a quantity.
fn direction(unit: &str) -> &'static str {
    match unit {
        "GiB/s" => ": more is better",
        "connections" => "",
        _ => ": less is better",
    }
}

/// The end of an axis and the distance of its ticks: 1, 2 or 5 times a power of ten.
fn axis(most: f64) -> (f64, f64) {
    let most = if most > 0.0 { most } else { 1.0 };
    let power = 10f64.powf((most / 5.0).log10().floor());
    let tick = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|t| most / t <= 6.0);
    let tick = tick.unwrap_or(power * 10.0);
    ((most / tick).ceil() * tick, tick)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_a_tick() {
        for most in [0.003, 0.2, 1.0, 2.9, 7.0, 12_345.0] {
            let (end, tick) = axis(most);
            let ticks = end / tick;
            assert!(end >= most * 0.9999 && (1.0..=7.0).contains(&ticks), "{most}: {end} {tick}");
        }
    }
}
