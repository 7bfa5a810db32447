//! Sizes, durations and points in time as people write them.

use std::time::Duration;
use toml::value::Datetime;

/// Reads `2GiB`, `512 MiB`, `10MB` or `4096`; `None` when it is no size or does not fit.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// Reads `30s`, `500ms`, `5m`, `24h`, `7d`; a bare number has no unit and is refused.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// Milliseconds since 1970 of a date and time with an offset (RFC 3339).
pub fn timestamp_ms(at: &Datetime) -> Option<i64> {
    let (date, time, offset) = (at.date?, at.time?, at.offset?);
    let offset_minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_since_1970(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let (second, nanosecond) = (time.second.unwrap_or(0), time.nanosecond.unwrap_or(0));
    let minutes = i64::from(time.hour) * 60 + i64::from(time.minute) - offset_minutes;
    let seconds = days * 86_400 + minutes * 60 + i64::from(second);
    Some(seconds * 1_000 + i64::from(nanosecond) / 1_000_000)
}

/// Days between 1970-01-01 and a date of the Gregorian calendar. Years start in March here, so that
/// the leap day is a year's last and months have a fixed pattern of lengths.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("2GiB"), Some(2 << 30));
        assert_eq!(size(" 512 MiB "), Some(512 << 20));
        assert_eq!(size("10MB"), Some(10_000_000));
        assert_eq!(size("4096"), Some(4096));
        for wrong in ["", "GiB", "2 gigs", "-1", "1.5GiB", "99999999999999TiB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("24h"), Some(Duration::from_secs(86_400)));
        for wrong in ["", "30", "s", "1.5s", "5 minutes", "99999999999999999999s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn points_in_time() {
        let ms = |text: &str| timestamp_ms(&text.parse().expect("a date"));
        assert_eq!(ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(ms("2024-02-29T12:00:00.250Z"), Some(1_709_208_000_250));
        assert_eq!(ms("2026-11-20T01:00:00+01:00"), ms("2026-11-20T00:00:00Z"));
        assert_eq!(ms("1969-12-31T23:59:59Z"), Some(-1_000));
        assert_eq!(ms("2026-11-20T00:00:00"), None, "which zone?");
    }
}
