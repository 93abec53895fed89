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
    use crate::Comm;

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

    #[track_caller]
    fn printed(name: &[u8]) -> String {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name);
        Comm::new(bytes).printable()
    }

    #[test]
    fn a_name_cannot_reach_the_terminal() {
        assert_eq!(printed(b"nc"), "nc");
        assert_eq!(printed(b"a b"), "a b");
        assert_eq!(printed(b"\x1b[31mred\n"), "?[31mred?");
        assert_eq!(printed("a\u{202e}b\u{9b}".as_bytes()), "a?b?");
        assert_eq!(printed(b"bad\xff"), "bad\u{fffd}");
    }
}
