//! What others have chosen, made safe to print.

/// Text of others, such as a process' name, for a line of output: nothing in it may move the cursor, reorder the line or
/// end it. Each such character becomes a `?`, also in a pipe, whose other end may be a terminal.
pub fn printable(text: &str) -> String {
    // Nearly all of it is.
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text.into();
    }
    text.chars()
        .map(|c| if is_unsafe(c) { '?' } else { c })
        .collect()
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' |
            '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_act_on_the_terminal() {
        assert_eq!(printable("nginx: worker"), "nginx: worker");
        assert_eq!(printable("\x1b[31mred\r\n\t"), "?[31mred???");
        assert_eq!(
            printable("a\u{202e}b\u{9b}c\u{7f}\u{2066}d\u{feff}"),
            "a?b?c??d?"
        );
        assert_eq!(printable("größe"), "größe");
    }
}
