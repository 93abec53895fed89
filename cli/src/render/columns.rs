//! Columns that stay where they are while rows come in: they grow where a cell needs it, and never shrink.

use std::borrow::Cow;
use std::fmt::Write;

use anstyle::Style;

/// No column grows beyond this many characters: one absurd name must not push all later rows away. A longer cell
/// is written in full.
const WIDEST: usize = 80;

/// The text of one cell; it is printable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell<'a> {
    text: Cow<'a, str>,
    style: Style,
}

impl Cell<'_> {
    /// In colour.
    pub fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

impl<'a, T: Into<Cow<'a, str>>> From<T> for Cell<'a> {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            style: Style::new(),
        }
    }
}

/// How wide columns are.
#[derive(Clone, Debug)]
pub struct Columns {
    widths: Vec<usize>,
    gap: usize,
}

impl Columns {
    /// Columns of at least these widths, with so many spaces between.
    pub fn new(widths: impl IntoIterator<Item = usize>, gap: usize) -> Self {
        Self {
            widths: widths.into_iter().collect(),
            gap,
        }
    }

    /// A row, without spaces or a newline at its end. A cell beyond the columns makes one more.
    pub fn line<'a>(&mut self, cells: impl IntoIterator<Item = Cell<'a>>) -> String {
        let mut line = String::new();
        let mut pending = 0;
        for (at, Cell { text, style }) in cells.into_iter().enumerate() {
            if at == self.widths.len() {
                self.widths.push(0);
            }
            let width = &mut self.widths[at];
            // Nearly all are, and quickly seen to be.
            let taken = match text.is_ascii() {
                true => text.len(),
                false => text.chars().count(),
            };
            *width = (*width).max(taken.min(WIDEST));
            if !text.is_empty() {
                line.extend(std::iter::repeat_n(' ', pending));
                pending = 0;
                if style.is_plain() {
                    line += &text;
                } else {
                    // A string takes everything.
                    let _ = write!(line, "{style}{text}{style:#}");
                }
            }
            pending += width.saturating_sub(taken) + self.gap;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    #[track_caller]
    fn lines(rows: &[&[&str]]) -> Vec<String> {
        let mut columns = Columns::new([3, 2, 1], 1);
        rows.iter()
            .map(|row| columns.line(row.iter().map(|c| Cell::from(*c))))
            .collect()
    }

    #[test]
    fn columns_grow_and_never_shrink() {
        assert_eq!(
            lines(&[
                &["a", "b", "c"],
                &["a", "long", "c"],
                &["a", "b", "c"],
                &["abcd", "", "c"],
                &["a", "b", ""],
            ]),
            [
                "a   b  c",
                "a   long c",
                "a   b    c",
                "abcd      c",
                "a    b",
            ]
        );
    }

    #[test]
    fn an_absurd_name_is_written_in_full_and_forgotten() {
        let name = "x".repeat(5000);
        let lines = lines(&[&[&name, "b", "c"], &["a", "b", "c"]]);
        assert_eq!(lines[0], format!("{name} b  c"));
        assert_eq!(lines[1], format!("{:<80} b  c", "a"));
    }

    #[test]
    fn a_cell_too_many_is_written() {
        assert_eq!(lines(&[&["a", "b", "c", "d"]]), ["a   b  c d"]);
    }

    #[test]
    fn colours_take_no_room() {
        let mut columns = Columns::new([3, 1], 1);
        let red = AnsiColor::Red.on_default();
        assert_eq!(
            columns.line([Cell::from("a").styled(red), "b".into()]),
            "\x1b[31ma\x1b[0m   b"
        );
    }
}
