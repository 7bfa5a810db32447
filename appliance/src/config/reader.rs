//! Typed access to the TOML tree that notes every problem with its line and goes on.

use super::problem::Problem;
use super::units;
use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Problems listed; a file with more of them is no configuration at all.
const PROBLEMS_MAX: usize = 100;

/// The text being read and the problems found so far.
pub struct File<'t> {
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> File<'t> {
    pub fn new(text: &'t str) -> Self {
        File { text, problems: RefCell::default() }
    }

    /// Notes a problem at a place in the text.
    pub fn note(
        &self,
        at: Range<usize>,
        key: impl Into<String>,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() > PROBLEMS_MAX {
            return;
        }
        let before = self.text.as_bytes().iter().take(at.start);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        let (key, what, instead) = match problems.len() {
            PROBLEMS_MAX => (String::new(), "there are more problems".to_owned(), String::new()),
            _ => (key.into(), what.into(), instead.into()),
        };
        problems.push(Problem { line, key, what, instead });
    }

    /// Notes what the TOML parser complains of.
    pub fn syntax(&self, error: &toml::de::Error) {
        let at = error.span().unwrap_or(0..0);
        self.note(at, "", format!("this is no TOML: {}", error.message()), "");
    }

    /// The problems in the order of their lines.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }
}

/// One table of the file. Every key asked for becomes a known key; [`Section::finish`] refuses the
/// others.
pub struct Section<'a> {
    file: &'a File<'a>,
    path: String,
    table: &'a DeTable<'a>,
    at: Range<usize>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub fn new(file: &'a File<'_>, path: &str, table: &'a DeTable<'_>, at: Range<usize>) -> Self {
        Section { file, path: path.to_owned(), table, at, known: Vec::new() }
    }

    pub fn file(&self) -> &'a File<'a> {
        self.file
    }

    /// Whether the key stands in the file.
    pub fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Where the key's value stands, or the section's head when it is absent.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.at.clone(), Spanned::span)
    }

    /// Notes a problem with one of this section's keys.
    pub fn note(&self, key: &str, what: impl Into<String>, instead: impl Into<String>) {
        self.file.note(self.span_of(key), self.full(key), what, instead);
    }

    fn full(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a DeValue<'a>> {
        self.known.push(key);
        self.table.get(key).map(Spanned::get_ref)
    }

    fn wrong_type(&self, key: &str, found: &DeValue<'_>, wanted: &str) {
        self.note(key, format!("is a {}", found.type_str()), format!("it must be {wanted}"));
    }

    /// The value as it stands, for keys of several shapes.
    pub fn any(&mut self, key: &'static str) -> Option<&'a DeValue<'a>> {
        self.value(key)
    }

    /// A key this version knows but cannot serve: refused with the reason.
    pub fn refuse(&mut self, key: &'static str, what: &str, instead: &str) {
        if self.value(key).is_some() {
            self.note(key, what, instead);
        }
    }

    /// The table under `key`; it must be there.
    pub fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        let path = self.full(key);
        let at = self.span_of(key);
        match self.value(key) {
            Some(DeValue::Table(table)) => Some(Section::new(self.file, &path, table, at)),
            Some(other) => {
                self.wrong_type(key, other, &format!("a table: [{path}]"));
                None
            }
            None => {
                self.note(key, "the table is missing", format!("add [{path}]"));
                None
            }
        }
    }

    /// The tables of `[[key]]`.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let path = self.full(key);
        let array = match self.value(key) {
            Some(DeValue::Array(array)) => array,
            Some(other) => {
                self.wrong_type(key, other, &format!("an array of tables: [[{path}]]"));
                return Vec::new();
            }
            None => return Vec::new(),
        };
        let mut sections = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Section::new(self.file, &path, table, item.span()));
                }
                other => self.wrong_type(key, other, &format!("an array of tables: [[{path}]]")),
            }
        }
        sections
    }

    /// A text, if the key is there.
    pub fn string(&mut self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            DeValue::String(text) => Some(text.clone().into_owned()),
            other => {
                self.wrong_type(key, other, "a text in quotes");
                None
            }
        }
    }

    /// A text with a default.
    pub fn string_or(&mut self, key: &'static str, default: &str) -> String {
        self.string(key).unwrap_or_else(|| default.to_owned())
    }

    /// A list of texts, if the key is there.
    pub fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        let wanted = "a list of texts: [\"a\", \"b\"]";
        let array = match self.value(key)? {
            DeValue::Array(array) => array,
            other => {
                self.wrong_type(key, other, wanted);
                return None;
            }
        };
        let mut texts = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push(text.clone().into_owned()),
                other => {
                    let what = format!("holds a {}", other.type_str());
                    self.file.note(item.span(), self.full(key), what, wanted);
                }
            }
        }
        Some(texts)
    }

    /// Yes or no, with a default.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(DeValue::Boolean(value)) => *value,
            Some(other) => {
                self.wrong_type(key, other, "true or false");
                default
            }
        }
    }

    /// A whole number within limits; `None` only after a problem was noted.
    pub fn integer(
        &mut self,
        key: &'static str,
        default: i64,
        limits: RangeInclusive<i64>,
    ) -> Option<i64> {
        let Some(value) = self.value(key) else { return Some(default) };
        let number = match value {
            DeValue::Integer(number) => {
                let digits = number.as_str().replace('_', "");
                i64::from_str_radix(&digits, number.radix()).ok()
            }
            other => {
                self.wrong_type(key, other, "a whole number");
                return None;
            }
        };
        let number = number.filter(|number| limits.contains(number));
        if number.is_none() {
            let instead = format!("a whole number from {} to {}", limits.start(), limits.end());
            self.note(key, "is out of bounds", instead);
        }
        number
    }

    /// A size in bytes within limits; `None` only after a problem was noted.
    pub fn size(
        &mut self,
        key: &'static str,
        default: u64,
        limits: RangeInclusive<u64>,
    ) -> Option<u64> {
        let Some(text) = self.quantity(key, "\"2GiB\", \"512MiB\" or a number of bytes")? else {
            return Some(default);
        };
        match units::size(&text) {
            None => {
                let what = format!("`{text}` is no size");
                self.note(key, what, "for example \"2GiB\", \"512MiB\" or a number of bytes");
                None
            }
            Some(size) if !limits.contains(&size) => {
                let (low, high) = (limits.start(), limits.end());
                let bounds = (tuning::report::bytes(*low), tuning::report::bytes(*high));
                let what = format!("`{text}` is out of bounds");
                self.note(key, what, format!("from {} to {}", bounds.0, bounds.1));
                None
            }
            Some(size) => Some(size),
        }
    }

    /// A duration within limits; `None` only after a problem was noted.
    pub fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        limits: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let example = "with a unit: \"500ms\", \"30s\", \"5m\", \"24h\" or \"7d\"";
        let Some(text) = self.quantity(key, example)? else { return Some(default) };
        match units::duration(&text) {
            None => {
                self.note(key, format!("`{text}` is no duration"), example);
                None
            }
            Some(duration) if !limits.contains(&duration) => {
                let instead = format!("from {:?} to {:?}", limits.start(), limits.end());
                self.note(key, format!("`{text}` is out of bounds"), instead);
                None
            }
            Some(duration) => Some(duration),
        }
    }

    /// Text or bare number: outer `None` = wrong type (noted), inner `None` = absent.
    fn quantity(&mut self, key: &'static str, example: &str) -> Option<Option<String>> {
        match self.value(key) {
            None => Some(None),
            Some(DeValue::String(text)) => Some(Some(text.clone().into_owned())),
            Some(DeValue::Integer(number)) if number.radix() == 10 => {
                Some(Some(number.as_str().replace('_', "")))
            }
            Some(other) => {
                self.wrong_type(key, other, example);
                None
            }
        }
    }

    /// Refuses every key that was never asked for, naming the nearest known one.
    pub fn finish(self) {
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let instead = match nearest(name, &self.known) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.file.note(key.span(), self.full(name), "this key is not known", instead);
        }
    }
}

/// The known word within an edit distance of a third of its length.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word: String = word.chars().take(64).collect();
    known
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, a row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let changed = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_and_a_far_one_is_not() {
        let known = ["data_dirs", "admin_socket", "metrics"];
        assert_eq!(nearest("data_dir", &known), Some("data_dirs"));
        assert_eq!(nearest("metric", &known), Some("metrics"));
        assert_eq!(nearest("wholly_other", &known), None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
