//! What a bench found: rows of measurements under stated conditions, as a table, as JSON, as a
//! plot.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::conditions::{Conditions, FileState, Incomparable};
use crate::sample::Sample;

/// Everything a bench found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Name of the bench.
    pub bench: String,
    /// What it shows, in a line.
    pub title: String,
    /// What it was measured under.
    pub conditions: Conditions,
    /// Load averages before and after: how busy others kept the machine.
    pub busy: [String; 2],
    /// One per thing measured.
    pub rows: Vec<Row>,
    /// Against ceilings and goals, of this run.
    pub ratios: Vec<Ratio>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// What is drawn.
    pub panels: Vec<Panel>,
}

/// One thing measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What.
    pub name: String,
    /// What was written to.
    pub files: FileState,
    /// Quantities by unit.
    pub measures: Vec<(String, Sample)>,
    /// What it does, where the name does not say it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub does: String,
}

/// A median against another one of the same run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// What against what.
    pub name: String,
    /// How many times.
    pub value: f64,
    /// What it should be, if the design says so.
    pub goal: Option<Goal>,
}

/// A bound on a ratio or a value.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// No more than.
    AtMost(f64),
    /// No less than.
    AtLeast(f64),
}

/// One plot of bars: a quantity over rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Panel {
    /// Which quantity: its unit, as in the rows.
    pub unit: String,
    /// The ceiling or goal drawn as a line, and what it is.
    pub line: Option<(f64, String)>,
}

impl Row {
    /// Nothing measured yet.
    pub fn new(name: impl Into<String>, files: FileState) -> Row {
        Row { name: name.into(), files, measures: Vec::new(), does: String::new() }
    }

    /// The same, with what it does.
    pub fn doing(mut self, does: impl Into<String>) -> Row {
        self.does = does.into();
        self
    }

    /// Adds a run's value of a quantity.
    pub fn push(&mut self, unit: &str, value: f64) {
        match self.measures.iter_mut().find(|(known, _)| known == unit) {
            Some((_, sample)) => sample.push(value),
            None => self.measures.push((unit.to_owned(), Sample(vec![value]))),
        }
    }

    /// The values of a quantity.
    pub fn sample(&self, unit: &str) -> Option<&Sample> {
        self.measures.iter().find(|(known, _)| known == unit).map(|(_, sample)| sample)
    }

    /// The median of a quantity.
    ///
    /// # Errors
    /// It was not measured.
    pub fn median(&self, unit: &str) -> Outcome<f64> {
        let sample = self.sample(unit);
        Ok(sample.ok_or_else(|| format!("{}: no {unit} was measured", self.name))?.median())
    }
}

impl Goal {
    fn holds(self, value: f64) -> bool {
        match self {
            Goal::AtMost(bound) => value <= bound,
            Goal::AtLeast(bound) => value >= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Goal::AtMost(bound) => format!("≤ {bound}"),
            Goal::AtLeast(bound) => format!("≥ {bound}"),
        }
    }
}

impl Report {
    /// Puts a row's median over another's.
    ///
    /// # Errors
    /// When the two wrote to files in different states, or one lacks the quantity.
    pub fn compare(
        &mut self,
        name: &str,
        unit: &str,
        this: &Row,
        to: &Row,
        goal: Option<Goal>,
    ) -> Outcome {
        if this.files != to.files {
            let what =
                format!("{} wrote {} files, {} wrote {}", this.name, this.files, to.name, to.files);
            return Err(Incomparable(what).into());
        }
        let value = this.median(unit)? / to.median(unit)?;
        self.ratios.push(Ratio { name: name.to_owned(), value, goal });
        Ok(())
    }

    /// States a value against its goal.
    pub fn state(&mut self, name: &str, value: f64, goal: Option<Goal>) {
        self.ratios.push(Ratio { name: name.to_owned(), value, goal });
    }

    /// Sets this report's medians against those of an earlier one.
    ///
    /// # Errors
    /// When bench or conditions differ, or the file is no report.
    pub fn against(&self, file: &Path) -> Outcome<String> {
        let earlier: Report = serde_json::from_slice(&std::fs::read(file)?)?;
        if earlier.bench != self.bench {
            let what = format!("{} is of bench {}", file.display(), earlier.bench);
            return Err(Incomparable(what).into());
        }
        self.conditions.comparable(&earlier.conditions)?;
        let mut text = format!("against {}:\n", file.display());
        for row in &self.rows {
            let same = |r: &&Row| r.name == row.name && r.files == row.files;
            let Some(then) = earlier.rows.iter().find(same) else { continue };
            for (unit, sample) in &row.measures {
                if let Some(before) = then.sample(unit) {
                    let (now, before) = (sample.median(), before.median());
                    let times = now / before;
                    let _ = writeln!(
                        text,
                        "  {}: {unit} {now:.3}, was {before:.3} (× {times:.2})",
                        row.name
                    );
                }
            }
        }
        Ok(text)
    }

    /// The table and all that must be read with it.
    pub fn text(&self) -> String {
        let c = &self.conditions;
        let mut text = format!("{}: {}\n\n", self.bench, self.title);
        let quick = if c.quick { " · QUICK: shows that it works, not how fast" } else { "" };
        let _ = writeln!(text, "load      {}", c.load);
        let _ = writeln!(text, "ceiling   {}", c.ceiling);
        let _ = writeln!(
            text,
            "machine   {} × {}, Linux {}, {}, {} build, load averages {} → {}",
            c.cores, c.cpu, c.kernel, c.file_system, c.build, self.busy[0], self.busy[1]
        );
        let _ = writeln!(text, "runs      {}, medians (min–max){quick}\n", c.runs);
        text.push_str(&self.table());
        if !self.ratios.is_empty() {
            text.push('\n');
        }
        for Ratio { name, value, goal } in &self.ratios {
            let goal = goal.map_or(String::new(), |goal| {
                let verdict = if goal.holds(*value) { "met" } else { "missed" };
                format!("  goal {}: {verdict}", goal.text())
            });
            let _ = writeln!(text, "{value:>10}  {name}{goal}", value = figure(*value));
        }
        for note in &self.notes {
            let _ = writeln!(text, "\nnote: {note}");
        }
        text
    }

    fn table(&self) -> String {
        let mut units: Vec<&str> = Vec::new();
        for (unit, _) in self.rows.iter().flat_map(|row| &row.measures) {
            if !units.contains(&unit.as_str()) {
                units.push(unit);
            }
        }
        let mut lines = vec![vec![String::new(), "files".to_owned()]];
        lines[0].extend(units.iter().map(|unit| (*unit).to_owned()));
        let does = self.rows.iter().any(|row| !row.does.is_empty());
        lines[0].extend(does.then(|| "what it does".to_owned()));
        for row in &self.rows {
            let mut cells = vec![row.name.clone(), row.files.to_string()];
            cells.extend(units.iter().map(|unit| row.sample(unit).map_or("".into(), spread)));
            cells.extend(does.then(|| row.does.clone()));
            lines.push(cells);
        }
        let columns = lines[0].len();
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let mut out = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(out, "{cell:<width$}  ");
            }
            let _ = writeln!(text, "{}", out.trim_end());
        }
        text
    }
}

fn spread(sample: &Sample) -> String {
    match sample.0.len() {
        1 => figure(sample.median()),
        _ => {
            let (median, min, max) = (sample.median(), sample.min(), sample.max());
            format!("{} ({}–{})", figure(median), figure(min), figure(max))
        }
    }
}

/// A number with as many digits as mean something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v < 0.01 => format!("{value:.4}"),
        v if v < 1.0 => format!("{value:.3}"),
        v if v < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let conditions = Conditions::here(Path::new("."), "load", "ceiling", 2, true);
        Report {
            bench: "test".into(),
            title: "a test".into(),
            conditions: conditions.expect("this machine"),
            busy: Default::default(),
            rows: Vec::new(),
            ratios: Vec::new(),
            notes: Vec::new(),
            panels: Vec::new(),
        }
    }

    #[test]
    fn files_in_different_states_are_not_compared() {
        let mut report = report();
        let mut fresh = Row::new("a", FileState::Fresh);
        let mut over = Row::new("b", FileState::Overwritten);
        fresh.push("GiB/s", 2.0);
        over.push("GiB/s", 3.0);
        let refused = report.compare("a to b", "GiB/s", &fresh, &over, None);
        assert!(refused.expect_err("refused").to_string().contains("not compared"));
        let mut alike = over.clone();
        alike.files = FileState::Fresh;
        report.compare("a to b", "GiB/s", &alike, &fresh, Some(Goal::AtMost(1.25))).expect("alike");
        assert!(report.text().contains("goal ≤ 1.25: missed"), "{}", report.text());
    }

    #[test]
    fn what_was_not_measured_is_not_in_the_table() {
        let mut report = report();
        let mut row = Row::new("one", FileState::None);
        row.push("s", 1.0);
        row.push("s", 3.0);
        report.rows.push(row);
        assert!(report.text().contains("2.00 (1.00–3.00)"), "{}", report.text());
        assert!(report.rows[0].median("GiB/s").is_err());
    }
}
