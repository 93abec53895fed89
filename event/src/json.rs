//! Objects of JSON, written straight into a text: a busy host has many.

use crate::text::push_number;
use crate::{Field, Value};

/// An object that is being written. Names and texts are printable, so only quotes and backslashes have to be escaped.
pub struct Object<'a, W> {
    to: &'a mut String,
    is_empty: bool,
    write_time: W,
}

impl<'a, W> Object<'a, W> {
    /// Begins one. `write_time` appends a moment, as text that needs no escapes.
    pub fn begin(to: &'a mut String, write_time: W) -> Self {
        to.push('{');
        Self {
            to,
            is_empty: true,
            write_time,
        }
    }

    /// Appends a field.
    pub fn put<T>(&mut self, (name, value): Field<'_, T>)
    where
        W: FnMut(T, &mut String),
    {
        let to = &mut *self.to;
        to.push_str(if self.is_empty { "\"" } else { ",\"" });
        self.is_empty = false;
        to.push_str(name);
        to.push_str("\":");
        match value {
            Value::Number(number) => push_number(to, number),
            Value::Flag(flag) => to.push_str(if flag { "true" } else { "false" }),
            Value::Text(text) => push_text(to, text),
            Value::Time(time) => {
                to.push('"');
                (self.write_time)(time, to);
                to.push('"');
            }
            Value::Texts(texts) => {
                to.push('{');
                for (at, (name, text)) in texts.iter().enumerate() {
                    if at > 0 {
                        to.push(',');
                    }
                    push_text(to, name);
                    to.push(':');
                    push_text(to, text);
                }
                to.push('}');
            }
        }
    }

    /// Ends it.
    pub fn end(self) {
        self.to.push('}');
    }
}

fn push_text(to: &mut String, text: &str) {
    to.push('"');
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\');
    let mut rest = text;
    // All of it is looked at, which is faster than to stop at the first.
    if text
        .bytes()
        .fold(false, |any, byte| any | is_special(&byte))
    {
        while let Some(at) = rest.as_bytes().iter().position(is_special) {
            to.push_str(&rest[..at]);
            to.push('\\');
            to.push_str(&rest[at..=at]);
            rest = &rest[at + 1..];
        }
    }
    to.push_str(rest);
    to.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_json_has_them() {
        let mut written = String::new();
        let write_time = |time: &str, to: &mut String| to.push_str(time);
        Object::begin(&mut written, write_time).end();
        let mut object = Object::begin(&mut written, write_time);
        object.put(("text", Value::Text(r#"a "b\c" größe"#)));
        object.put(("none", Value::Text("")));
        object.put(("number", Value::Number(u64::MAX)));
        object.put(("flag", Value::Flag(true)));
        object.put(("time", Value::Time("2026-11-29T08:00:00Z")));
        object.put(("texts", Value::Texts(&[("a", "b"), ("\"", "\\")])));
        object.put(("nothing", Value::Texts(&[])));
        object.end();
        let expected = r#"{"text":"a \"b\\c\" größe","none":"","number":18446744073709551615,"flag":true,"time":"2026-11-29T08:00:00Z","texts":{"a":"b","\"":"\\"},"nothing":{}}"#;
        assert_eq!(written, format!("{{}}{expected}"));
    }
}
