//! One object a line. The fields are those of [`Record::put_fields`]; docs/json.md has their meanings.

use tcptracer_event::{Event, Nanos, Object, Record};

use crate::clock::Moments;

/// Appends one event, without a newline. `texts` is taken for what a [`Record`] takes.
pub fn write_line(event: &Event, moments: &mut Moments, texts: &mut String, to: &mut String) {
    let record = Record::of(event, texts, |time| time);
    let mut object = Object::begin(to, |time: Nanos, to: &mut String| moments.write(time, to));
    let Ok(()) = record.put_head(&mut object);
    let Ok(()) = record.put_fields(&mut object);
    object.end();
}
