//! Times as agents tell them.

use jiff::Timestamp;

/// `None` if it is no moment that can be written.
pub fn timestamp(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}
