//! What others have chosen, made safe to print.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

/// Text of others, such as a process' name, for a line of output: nothing in it may move the cursor, reorder the line or
/// end it. Each such character becomes a `?`, also in a pipe, whose other end may be a terminal.
pub fn printable<'a>(text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    let text = text.into();
    // Nearly all of it is.
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text;
    }
    let shown = text.chars().map(|c| if is_unsafe(c) { '?' } else { c });
    Cow::Owned(shown.collect())
}

/// Appends a number in decimal digits to a text that takes everything.
pub(crate) fn push_number(to: &mut impl Write, number: impl itoa::Integer) {
    let _ = to.write_str(itoa::Buffer::new().format(number));
}

/// Appends an address as its `Display` writes it, to a text that takes everything. Nearly all are short and written often.
pub fn write_address(to: &mut impl Write, address: IpAddr) {
    let v4 = match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            let _ = write!(to, "{v6}");
            return;
        }
    };
    for (at, octet) in v4.octets().into_iter().enumerate() {
        if at > 0 {
            let _ = to.write_str(".");
        }
        push_number(to, octet);
    }
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
    fn addresses_are_written_as_they_are_displayed() {
        let octets = [0, 7, 10, 99, 100, 255];
        for (at, first) in octets.into_iter().enumerate() {
            for last in octets {
                let address = IpAddr::from([first, octets[at], last, 42]);
                let mut written = String::new();
                write_address(&mut written, address);
                assert_eq!(written, address.to_string());
            }
        }
        let mut written = String::from("at ");
        let address = IpAddr::from([255; 4]);
        write_address(&mut written, address);
        assert_eq!(written, "at 255.255.255.255");
    }

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
