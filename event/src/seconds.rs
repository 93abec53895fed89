//! Times of day as text, which a busy host writes several of for every event.

const NANOS: u32 = 1_000_000_000;

/// Writes moments. Nearly all are in the second of the one before, whose text is kept.
#[derive(Clone, Debug, Default)]
pub struct Seconds {
    kept: Option<i64>,
    /// Up to where the fraction begins.
    text: String,
}

impl Seconds {
    /// Appends a moment: the second, counted from 1970, as `show` writes it, which ends with a `Z`; before that the
    /// nanoseconds of it, without zeros at their end.
    pub fn write(
        &mut self,
        to: &mut String,
        second: i64,
        nanos: u32,
        show: impl FnOnce(i64) -> String,
    ) {
        if self.kept != Some(second) {
            self.kept = Some(second);
            self.text = show(second);
            self.text.pop();
        }
        to.push_str(&self.text);
        if nanos > 0 {
            // The one in front keeps the zeros at the beginning of the fraction.
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(NANOS + nanos);
            to.push('.');
            to.push_str(digits[1..].trim_end_matches('0'));
        }
        to.push('Z');
    }
}
