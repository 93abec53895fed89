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
        self.push_name(name.as_json());
        let to = &mut *self.to;
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

    /// Begins a part of objects, which [`Object::put_part`] puts into each. It does not end as an object.
    pub fn begin_part(to: &'a mut String, write_time: W) -> Self {
        Self {
            to,
            is_empty: false,
            write_time,
        }
    }

    /// Appends the fields of a part, which are some.
    pub fn put_part(&mut self, part: &str) {
        self.push_name(part);
    }

    /// What begins with a comma, which the first does without.
    fn push_name(&mut self, name: &str) {
        self.to.push_str(match self.is_empty {
            true => &name[1..],
            false => name,
        });
        self.is_empty = false;
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
    use crate::field_name;

    #[test]
    fn values_are_written_as_json_has_them() {
        let mut written = String::new();
        let write_time = |time: &str, to: &mut String| to.push_str(time);
        Object::begin(&mut written, write_time).end();
        let mut object = Object::begin(&mut written, write_time);
        object.put((field_name!("text"), Value::Text(r#"a "b\c" größe"#)));
        object.put((field_name!("none"), Value::Text("")));
        object.put((field_name!("number"), Value::Number(u64::MAX)));
        object.put((field_name!("flag"), Value::Flag(true)));
        object.put((field_name!("time"), Value::Time("2026-11-29T08:00:00Z")));
        object.put((
            field_name!("texts"),
            Value::Texts(&[("a", "b"), ("\"", "\\")]),
        ));
        object.put((field_name!("nothing"), Value::Texts(&[])));
        object.end();
        let mut part = String::new();
        Object::begin_part(&mut part, write_time).put((field_name!("flag"), Value::Flag(true)));
        for first in ["", r#""number":1,"#] {
            let mut written = String::new();
            let mut object = Object::begin(&mut written, write_time);
            if !first.is_empty() {
                object.put((field_name!("number"), Value::Number(1)));
            }
            object.put_part(&part);
            object.end();
            assert_eq!(written, format!(r#"{{{first}"flag":true}}"#));
        }
        let expected = r#"{"text":"a \"b\\c\" größe","none":"","number":18446744073709551615,"flag":true,"time":"2026-11-29T08:00:00Z","texts":{"a":"b","\"":"\\"},"nothing":{}}"#;
        assert_eq!(written, format!("{{}}{expected}"));
    }
}
