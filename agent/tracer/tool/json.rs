//! One object a line. The fields are those of [`Record::put_fields`]; docs/json.md has their meanings.

use std::convert::Infallible;

use tcptracer_event::{Event, Field, Nanos, Object, Record};

use crate::clock::Moments;

/// Appends one event, without a newline. `texts` is taken for what a [`Record`] takes.
pub fn write_line(event: &Event, moments: &mut Moments, texts: &mut String, to: &mut String) {
    let record = Record::of(event, texts, |time| time);
    let mut object = Object::begin(to, |time, to: &mut String| moments.write(time, to));
    let mut put = |field: Field<'_, Nanos>| {
        object.put(field);
        Ok::<_, Infallible>(())
    };
    let Ok(()) = record.put_head(&mut put);
    let Ok(()) = record.put_fields(&mut put);
    object.end();
}
