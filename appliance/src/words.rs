//! Small words that several places say to people.

/// A number with its noun: `1 topic`, `2 topics`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        let said = [0, 1, 2].map(|number| count(number, "topic"));
        assert_eq!(said, ["0 topics", "1 topic", "2 topics"]);
    }
}
