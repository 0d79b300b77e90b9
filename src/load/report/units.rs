//! Numbers for people: three digits that say something, and the unit that fits.

/// "873 µs", "12.4 ms", "3.20 s".
pub(super) fn micros(us: u64) -> String {
    let us = us as f64;
    // what would be rounded up to 1000 is one of the next unit
    if us < 1_000.0 {
        format!("{us} µs")
    } else if us < 999_500.0 {
        format!("{} ms", digits(us / 1e3))
    } else {
        format!("{} s", digits(us / 1e6))
    }
}

/// "512 B", "4.10 kB", "33.1 MB": thousands, as disks count.
pub(super) fn bytes(bytes: f64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(one, _)| bytes.abs() >= one * 0.9995) {
        Some((one, unit)) => format!("{} {unit}", digits(bytes / one)),
        None => format!("{} B", bytes.round()),
    }
}

/// "0.00 s", "3.21 s", "47.0 s" of CPU.
pub(super) fn seconds(seconds: f64) -> String {
    format!("{} s", digits(seconds))
}

/// "1,234,567".
pub(super) fn count(count: u64) -> String {
    let plain = count.to_string();
    let mut grouped = String::new();
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// "1 request", "7 requests".
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// As [`counted`], of what has a plural of its own.
pub(super) fn counted_as(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// "99.97 %" and, of nothing less than all, "100 %": what is nearly all is not all.
pub(super) fn part(share: f64) -> String {
    let hundredths = (share * 10_000.0).floor();
    if share >= 1.0 { "100 %".to_owned() } else { format!("{:.2} %", hundredths / 100.0) }
}

/// So many a second: "0.42", "97.3", "1,830".
pub(super) fn rate(per_second: f64) -> String {
    digits(per_second)
}

/// "0.42 %".
pub(super) fn percent(share: f64) -> String {
    format!("{} %", digits(share * 100.0))
}

/// B to A: "1.00×", "0.87×", "12.3×".
pub(super) fn ratio(ratio: f64) -> String {
    format!("{}×", digits(ratio))
}

/// "2m 30s", "45 s", "850 ms".
pub(super) fn span(ms: u64) -> String {
    let (minutes, seconds) = (ms / 60_000, ms / 1000 % 60);
    match (minutes, seconds) {
        (0, 0) => format!("{ms} ms"),
        (0, _) if ms.is_multiple_of(1000) => format!("{seconds} s"),
        (0, _) => format!("{} s", digits(ms as f64 / 1e3)),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

/// "2026-11-27 03:40:05 UTC".
pub(super) fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, for days since 1970
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Three significant digits, whole numbers in groups.
fn digits(value: f64) -> String {
    let size = value.abs();
    if size >= 99.95 {
        let whole = count(size.round() as u64);
        return if value < 0.0 { format!("−{whole}") } else { whole };
    }
    let places = if size >= 9.995 {
        1
    } else if size >= 0.0995 || size == 0.0 {
        2
    } else {
        4
    };
    format!("{value:.places$}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_the_unit_that_fits() {
        let told = [1, 999, 1_000, 12_345, 999_499, 999_500, 60_000_000].map(micros);
        assert_eq!(told, ["1 µs", "999 µs", "1.00 ms", "12.3 ms", "999 ms", "1.00 s", "60.0 s"]);
        assert_eq!(
            [0.0, 999.4, 999.6, 33_123_456.0].map(bytes),
            ["0 B", "999 B", "1.00 kB", "33.1 MB"]
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.0, 0.0042, 0.42, 9.996, 97.34, 1830.4].map(rate),
            ["0.00", "0.0042", "0.42", "10.0", "97.3", "1,830"]
        );
        assert_eq!(bytes(-5_000_000.0), "−5.00 MB");
        assert_eq!(
            [850, 45_000, 1_500, 60_000, 150_000].map(span),
            ["850 ms", "45 s", "1.50 s", "1 min", "2 min 30 s"]
        );
        assert_eq!(counted(1, "request"), "1 request");
        assert_eq!(counted_as(2, "delivery", "deliveries"), "2 deliveries");
        assert_eq!([0.0, 0.5, 0.999_99, 1.0].map(part), ["0.00 %", "50.00 %", "99.99 %", "100 %"]);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        // `date -u -d @…` says so
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399_000), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_750_805_999), "2026-11-27 03:40:05 UTC");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01 00:00:00 UTC");
    }
}
