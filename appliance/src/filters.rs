//! Which topics a link covers.
//!
//! A pattern is a topic's name, a prefix (`orders-*`), everything (`*`) or a regular expression
//! between slashes (`/eu-\d+/`), which must match the whole name. Exclusion wins over inclusion.
//! Topics whose names start with `__` belong to the source's brokers and are never covered.

use regex::{Regex, RegexBuilder};
use std::fmt;

/// Longest topic name Kafka allows (`Topic.MAX_NAME_LENGTH`).
const NAME_LENGTH_MAX: usize = 249;
/// Compiled size a pattern may have; expressions beyond it are a mistake or an attack.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Longest pattern, in bytes: on the way to its compiled form a class of characters takes thousands
/// of times what its text does.
const PATTERN_BYTES_MAX: usize = 1024;

/// Include and exclude patterns.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicFilter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// A pattern that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern `{pattern}` {what}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub what: String,
    /// What to write.
    pub instead: &'static str,
}

#[derive(Clone, Debug)]
enum Pattern {
    Literal(String),
    Prefix(String),
    Expression(Regex),
}

impl TopicFilter {
    /// Compiles the patterns.
    ///
    /// # Errors
    /// On the first pattern that means nothing.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, PatternError> {
        let compile = |patterns: &[String]| {
            patterns.iter().map(|text| Pattern::new(text)).collect::<Result<Vec<_>, _>>()
        };
        Ok(TopicFilter { include: compile(include)?, exclude: compile(exclude)? })
    }

    /// Whether the link covers the topic.
    pub fn covers(&self, topic: &str) -> bool {
        !topic.starts_with("__")
            && !self.exclude.iter().any(|pattern| pattern.matches(topic))
            && self.include.iter().any(|pattern| pattern.matches(topic))
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, PatternError> {
        let error =
            |what: String, instead| PatternError { pattern: text.to_owned(), what, instead };
        if text.len() > PATTERN_BYTES_MAX {
            let what = format!("has more than {PATTERN_BYTES_MAX} bytes");
            return Err(error(what, "several shorter patterns in the list"));
        }
        if let Some(expression) = text.strip_prefix('/') {
            let Some(expression) = expression.strip_suffix('/') else {
                let what = "starts a regular expression but does not end it".to_owned();
                return Err(error(what, "close it with a slash: \"/eu-.*/\""));
            };
            let compile = |text: &str| RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
            // By itself first: a group that `a)|(b` closes too often would close ours.
            let compiled =
                compile(expression).and_then(|_| compile(&format!("^(?:{expression})$")));
            return compiled.map(Pattern::Expression).map_err(|cause| {
                let cause = cause.to_string();
                let cause = cause.lines().last().unwrap_or_default().trim().to_owned();
                error(
                    format!("is no regular expression: {cause}"),
                    "https://docs.rs/regex has the syntax, without look-around and back-references",
                )
            });
        }
        let (name, prefix) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.contains('*') {
            let what = "has a star that is not at its end".to_owned();
            return Err(error(
                what,
                "a prefix with one star at its end (\"orders-*\"), or \"/regex/\"",
            ));
        }
        if (name.is_empty() && !prefix) || name.len() > NAME_LENGTH_MAX || !name.chars().all(plain)
        {
            let what = "is no topic name (letters, digits, `.`, `_`, `-`; at most 249)".to_owned();
            return Err(error(what, "a name, a prefix with a star (\"orders-*\"), or \"/regex/\""));
        }
        Ok(if prefix {
            Pattern::Prefix(name.to_owned())
        } else {
            Pattern::Literal(name.to_owned())
        })
    }

    fn matches(&self, topic: &str) -> bool {
        match self {
            Pattern::Literal(name) => name == topic,
            Pattern::Prefix(prefix) => topic.starts_with(prefix.as_str()),
            Pattern::Expression(expression) => expression.is_match(topic),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Literal(name) => f.write_str(name),
            Pattern::Prefix(prefix) => write!(f, "{prefix}*"),
            Pattern::Expression(expression) => write!(f, "/{expression}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(include: &[&str], exclude: &[&str]) -> TopicFilter {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        TopicFilter::new(&own(include), &own(exclude)).expect("patterns")
    }

    #[test]
    fn literal_prefix_and_expression() {
        let filter = filter(&["orders", "eu-*", r"/v\d+/"], &[]);
        for (topic, covered) in [
            ("orders", true),
            ("orders2", false),
            ("eu-", true),
            ("eu-x", true),
            ("us-eu-", false),
            ("v12", true),
            ("av12", false),
            ("v12b", false),
        ] {
            assert_eq!(filter.covers(topic), covered, "{topic}");
        }
    }

    #[test]
    fn exclusion_wins_and_internal_topics_are_out() {
        let filter = filter(&["*", "__consumer_offsets", "_schemas"], &["secret*"]);
        assert!(filter.covers("orders") && filter.covers("_schemas"));
        assert!(!filter.covers("secret-1") && !filter.covers("__consumer_offsets"));
    }

    #[test]
    fn alternatives_in_an_expression_match_whole_names_only() {
        assert!(!filter(&["/a|b/"], &[]).covers("ab"));
        assert!(filter(&["/a|b/"], &[]).covers("b"));
    }

    #[test]
    fn nonsense_is_refused_with_a_way_out() {
        for (pattern, what) in [
            ("", "no topic name"),
            ("a*b", "star"),
            ("/a", "does not end"),
            ("/(/", "regular expression"),
            ("a b", "no topic name"),
            ("/a{1000}{1000}{1000}/", "regular expression"),
            ("/a)|(b/", "regular expression"),
            (&format!("/{}/", r"\w".repeat(600)), "1024 bytes"),
        ] {
            let error = TopicFilter::new(&[pattern.to_owned()], &[]).expect_err(pattern);
            assert!(error.to_string().contains(what), "{error}");
            assert!(!error.instead.is_empty());
        }
    }

    proptest! {
        #[test]
        fn a_literal_covers_itself_alone(a in "[a-z0-9.-]{1,20}", b in "[a-z0-9.-]{1,20}") {
            prop_assert!(filter(&[&a], &[]).covers(&a));
            prop_assert_eq!(filter(&[&a], &[]).covers(&b), a == b);
        }

        #[test]
        fn excluding_only_takes_away(topic in "[a-z_.-]{1,12}", prefix in "[a-z_.-]{0,4}") {
            let all = filter(&["*"], &[]);
            let some = filter(&["*"], &[&format!("{prefix}*")]);
            prop_assert!(!some.covers(&topic) || all.covers(&topic));
            prop_assert_eq!(some.covers(&topic), all.covers(&topic) && !topic.starts_with(&prefix));
        }

        #[test]
        fn internal_topics_are_never_covered(rest in "[a-z_]{0,12}") {
            let name = format!("__{rest}");
            prop_assert!(!filter(&["*", "/.*/", &name], &[]).covers(&name));
        }

        #[test]
        fn no_pattern_panics(pattern in ".{0,40}", topic in ".{0,40}") {
            if let Ok(filter) = TopicFilter::new(&[pattern], &[]) {
                let _ = filter.covers(&topic);
            }
        }
    }
}
