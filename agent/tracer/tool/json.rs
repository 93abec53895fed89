//! One object a line. The fields are those of [`Record::put_fields`]; docs/json.md has their meanings.

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tcptracer_event::{Event, Field, Record, Value};

use crate::clock::Clock;

struct Line(Record<Timestamp>);

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut put = |(name, value): Field<'_, Timestamp>| match value {
            Value::Text(text) => map.serialize_entry(name, text),
            Value::Number(number) => map.serialize_entry(name, &number),
            Value::Flag(flag) => map.serialize_entry(name, &flag),
            Value::Time(time) => map.serialize_entry(name, &time),
        };
        self.0.put_head(&mut put)?;
        self.0.put_fields(&mut put)?;
        map.end()
    }
}

/// One event, without a newline.
pub fn line(event: &Event, clock: Clock) -> String {
    let record = Record::of(event, |time| clock.at(time));
    // Nothing in it can fail to serialise.
    serde_json::to_string(&Line(record)).unwrap_or_default()
}
