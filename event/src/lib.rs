/*!
What the tracer reports: the life of TCP connections, as plain values.

Host tool, agent and plugin share it. Times of an [`Event`] are nanoseconds of `CLOCK_MONOTONIC`;
what is not known is `None`.

Names of kinds, sides, sources, reasons and places of loss are given here and nowhere else. [`Record`] is an event as
it is written: [`Record::put_fields`] has the list of the fields of JSON, and [`columns`] has those of tables. [`Object`] writes
JSON.
*/

mod cgroup;
pub mod columns;
mod event;
mod json;
mod loss;
mod record;
mod seconds;
mod text;

pub use cgroup::CgroupChange;
pub use event::{
    Closer, Comm, ConnectionId, Counters, Event, Kind, Nanos, Process, Reason, Role, Source,
};
pub use json::Object;
pub use loss::{LossSource, Losses};
pub use record::{Name, Put, Record};
pub use seconds::Seconds;
pub use text::{printable, write_address};
