//! Objects of JSON, written straight into a text: a busy host has many.

use std::convert::Infallible;

use crate::text::push_number;
use crate::{Name, Put};

/// An object that is being written. Names and texts are printable, so only quotes and backslashes have to be escaped.
pub struct Object<'a, W> {
    to: &'a mut String,
    /// Where it begins. Each field has a comma in front, so what is written of a name is the same wherever it is written:
    /// at the end, the first one gives way to the brace.
    start: usize,
    write_time: W,
}

impl<'a, W> Object<'a, W> {
    /// Begins one. `write_time` appends a moment, as text that needs no escapes.
    pub fn begin(to: &'a mut String, write_time: W) -> Self {
        Self {
            start: to.len(),
            to,
            write_time,
        }
    }

    /// Appends the fields of a part.
    pub fn put_part(&mut self, part: &str) {
        self.to.push_str(part);
    }

    /// Ends it as a part of objects, which [`Object::put_part`] puts into each.
    pub fn end_part(self) {}

    /// Ends it.
    pub fn end(self) {
        match self.to.len() == self.start {
            true => self.to.push('{'),
            false => self.to.replace_range(self.start..=self.start, "{"),
        }
        self.to.push('}');
    }
}

/// These are inlined, so that a name is not a text of any length.
impl<T, W: FnMut(T, &mut String)> Put<T> for Object<'_, W> {
    type Error = Infallible;

    #[inline(always)]
    fn text(&mut self, name: Name, text: &str) -> Result<(), Infallible> {
        self.to.push_str(name.as_json());
        push_text(self.to, text);
        Ok(())
    }

    #[inline(always)]
    fn word(&mut self, name: Name, word: &'static str) -> Result<(), Infallible> {
        self.to.push_str(name.as_json());
        self.to.push('"');
        self.to.push_str(word);
        self.to.push('"');
        Ok(())
    }

    #[inline(always)]
    fn number(&mut self, name: Name, number: u64) -> Result<(), Infallible> {
        self.to.push_str(name.as_json());
        push_number(self.to, number);
        Ok(())
    }

    #[inline(always)]
    fn flag(&mut self, name: Name, flag: bool) -> Result<(), Infallible> {
        self.to.push_str(name.as_json());
        self.to.push_str(if flag { "true" } else { "false" });
        Ok(())
    }

    #[inline(always)]
    fn time(&mut self, name: Name, time: T) -> Result<(), Infallible> {
        self.to.push_str(name.as_json());
        self.to.push('"');
        (self.write_time)(time, self.to);
        self.to.push('"');
        Ok(())
    }

    fn texts(&mut self, name: Name, texts: &[(&str, &str)]) -> Result<(), Infallible> {
        self.to.push_str(name.as_json());
        self.to.push('{');
        for (at, (name, text)) in texts.iter().enumerate() {
            if at > 0 {
                self.to.push(',');
            }
            push_text(self.to, name);
            self.to.push(':');
            push_text(self.to, text);
        }
        self.to.push('}');
        Ok(())
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
    use crate::record::field_name;

    /// What is written of an object that has these fields behind others, if any.
    fn written(before: &str, put: impl FnOnce(&mut PutAll<'_>)) -> String {
        let mut written = "before".to_owned();
        let write_time = |time: &'static str, to: &mut String| to.push_str(time);
        let mut object = Object::begin(&mut written, write_time);
        object.put_part(before);
        put(&mut object);
        object.end();
        written
    }

    /// One that does not fail.
    type PutAll<'a> = dyn Put<&'static str, Error = Infallible> + 'a;

    #[test]
    fn values_are_written_as_json_has_them() {
        assert_eq!(written("", |_| {}), "before{}");
        let put = |to: &mut PutAll<'_>| {
            let Ok(()) = to.text(field_name!("text"), r#"a "b\c" größe"#);
            let Ok(()) = to.text(field_name!("none"), "");
            let Ok(()) = to.word(field_name!("word"), "reset-local");
            let Ok(()) = to.number(field_name!("number"), u64::MAX);
            let Ok(()) = to.flag(field_name!("flag"), true);
            let Ok(()) = to.time(field_name!("time"), "2026-11-29T08:00:00Z");
            let Ok(()) = to.texts(field_name!("texts"), &[("a", "b"), ("\"", "\\")]);
            let Ok(()) = to.texts(field_name!("nothing"), &[]);
        };
        let expected = r#""text":"a \"b\\c\" größe","none":"","word":"reset-local","number":18446744073709551615,"flag":true,"time":"2026-11-29T08:00:00Z","texts":{"a":"b","\"":"\\"},"nothing":{}}"#;
        assert_eq!(written("", put), format!("before{{{expected}"));

        let mut part = String::new();
        let mut object = Object::begin(&mut part, |(): (), _: &mut String| {});
        let Ok(()) = object.number(field_name!("pid"), 1);
        object.end_part();
        assert_eq!(
            written(&part, put),
            format!(r#"before{{"pid":1,{expected}"#)
        );
    }
}
