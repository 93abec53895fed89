//! Events of a stream, decoded in place: a view borrows its texts from the message. The identity stays encoded, so that a
//! caller which has seen the same bytes before need not decode it again.
//!
//! The fields of a view are those of the message that it names, whose documentation is in the protocol.

use prost::Message;
use prost_types::{Duration, Timestamp};
use tcptracer_event::{Kind, Reason, Role, Source};

use crate::v1;
use crate::wire::{Content, Fields, Malformed};

/// The bytes of one event.
#[derive(Clone, Copy, Debug)]
pub struct EventBytes<'a>(pub(crate) &'a [u8]);

impl<'a> EventBytes<'a> {
    /// All of it, as a message of its own.
    pub fn message(self) -> Result<v1::Event, Malformed> {
        Ok(v1::Event::decode(self.0)?)
    }

    /// All of it, where it is.
    pub fn view(self) -> Result<EventView<'a>, Malformed> {
        let mut view = EventView::default();
        each(self.0, |field, content| view.take(field, content))?;
        Ok(view)
    }

    /// Its number.
    pub fn sequence(self) -> Result<u64, Malformed> {
        let mut sequence = 0;
        each(self.0, |field, content| {
            if field == 1 {
                sequence = content.number()?;
            }
            Ok(())
        })?;
        Ok(sequence)
    }
}

/// The bytes of an [`v1::Identity`]. Nearly all events of one container have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityBytes<'a>(&'a [u8]);

impl<'a> IdentityBytes<'a> {
    /// The bytes, by which it can be found again.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// All of it.
    pub fn message(self) -> Result<v1::Identity, Malformed> {
        Ok(v1::Identity::decode(self.0)?)
    }
}

/// A [`v1::Event`]. What the API names and this program does not know is `None`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct EventView<'a> {
    pub sequence: u64,
    pub kind: Option<Kind>,
    pub time: Option<Timestamp>,
    pub connection: ConnectionView<'a>,
    pub identity: IdentityBytes<'a>,
    pub closer: Option<CloserView<'a>>,
    pub reason: Option<Reason>,
    pub errno: u32,
    pub errno_inferred: bool,
    pub first_fin: Option<Timestamp>,
    pub duration: Option<Duration>,
    pub counters: Option<v1::Counters>,
}

/// A [`v1::Connection`], but for whose it is.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ConnectionView<'a> {
    pub id: &'a str,
    pub role: Option<Role>,
    pub process: ProcessView<'a>,
    pub netns: u32,
    pub local: EndpointView<'a>,
    pub remote: EndpointView<'a>,
    pub family: v1::IpFamily,
    pub syn: Option<Timestamp>,
    pub established: Option<Timestamp>,
    pub accepted: Option<Timestamp>,
}

/// A [`v1::Process`].
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ProcessView<'a> {
    pub pid: u32,
    pub tid: u32,
    pub uid: u32,
    pub comm: &'a str,
    pub cgroup_id: u64,
    pub mntns: u32,
    pub source: Option<Source>,
}

/// A [`v1::Closer`].
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct CloserView<'a> {
    pub pid: u32,
    pub comm: &'a str,
}

/// A [`v1::Endpoint`].
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct EndpointView<'a> {
    pub address: &'a str,
    pub port: u32,
}

/// Of a message that was read already.
impl<'a> From<&'a v1::Connection> for ConnectionView<'a> {
    fn from(connection: &'a v1::Connection) -> Self {
        let endpoint = |endpoint: Option<&'a v1::Endpoint>| match endpoint {
            Some(v1::Endpoint { address, port }) => EndpointView {
                address,
                port: *port,
            },
            None => EndpointView::default(),
        };
        let process = match &connection.process {
            Some(process) => ProcessView {
                pid: process.pid,
                tid: process.tid,
                uid: process.uid,
                comm: &process.comm,
                cgroup_id: process.cgroup_id,
                mntns: process.mntns,
                source: process.source().known(),
            },
            None => ProcessView::default(),
        };
        Self {
            id: &connection.id,
            role: connection.role().known(),
            process,
            netns: connection.netns,
            local: endpoint(connection.local.as_ref()),
            remote: endpoint(connection.remote.as_ref()),
            family: connection.family(),
            syn: connection.syn,
            established: connection.established,
            accepted: connection.accepted,
        }
    }
}

impl<'a> EventView<'a> {
    fn take(&mut self, field: u32, content: Content<'a>) -> Result<(), Malformed> {
        match field {
            1 => self.sequence = content.number()?,
            2 => self.kind = named(content)?.and_then(v1::EventType::known),
            3 => self.time = Some(timestamp(content)?),
            4 => {
                let (connection, identity) = (&mut self.connection, &mut self.identity);
                each(content.bytes()?, |field, content| {
                    match field {
                        4 => identity.0 = content.bytes()?,
                        _ => connection.take(field, content)?,
                    }
                    Ok(())
                })?;
            }
            5 => {
                let closer = self.closer.get_or_insert_default();
                each(content.bytes()?, |field, content| {
                    closer.take(field, content)
                })?;
            }
            6 => self.reason = named(content)?.and_then(v1::CloseReason::known),
            7 => self.errno = content.number()? as u32,
            8 => self.first_fin = Some(timestamp(content)?),
            9 => self.duration = Some(duration(content)?),
            10 => {
                let counters = self.counters.get_or_insert_default();
                each(content.bytes()?, |field, content| {
                    take_counter(counters, field, content)
                })?;
            }
            11 => self.errno_inferred = content.number()? != 0,
            _ => {}
        }
        Ok(())
    }
}

impl<'a> ConnectionView<'a> {
    fn take(&mut self, field: u32, content: Content<'a>) -> Result<(), Malformed> {
        match field {
            1 => self.id = content.text()?,
            2 => self.role = named(content)?.and_then(v1::Role::known),
            3 => each(content.bytes()?, |field, content| {
                self.process.take(field, content)
            })?,
            5 => self.netns = content.number()? as u32,
            6 => each(content.bytes()?, |field, content| {
                self.local.take(field, content)
            })?,
            7 => each(content.bytes()?, |field, content| {
                self.remote.take(field, content)
            })?,
            8 => self.family = named(content)?.unwrap_or_default(),
            9 => self.syn = Some(timestamp(content)?),
            10 => self.established = Some(timestamp(content)?),
            11 => self.accepted = Some(timestamp(content)?),
            _ => {}
        }
        Ok(())
    }
}

impl<'a> ProcessView<'a> {
    fn take(&mut self, field: u32, content: Content<'a>) -> Result<(), Malformed> {
        match field {
            1 => self.pid = content.number()? as u32,
            2 => self.tid = content.number()? as u32,
            3 => self.uid = content.number()? as u32,
            4 => self.comm = content.text()?,
            5 => self.cgroup_id = content.number()?,
            6 => self.mntns = content.number()? as u32,
            7 => self.source = named(content)?.and_then(v1::ProcessSource::known),
            _ => {}
        }
        Ok(())
    }
}

impl<'a> CloserView<'a> {
    fn take(&mut self, field: u32, content: Content<'a>) -> Result<(), Malformed> {
        match field {
            1 => self.pid = content.number()? as u32,
            2 => self.comm = content.text()?,
            _ => {}
        }
        Ok(())
    }
}

impl<'a> EndpointView<'a> {
    fn take(&mut self, field: u32, content: Content<'a>) -> Result<(), Malformed> {
        match field {
            1 => self.address = content.text()?,
            2 => self.port = content.number()? as u32,
            _ => {}
        }
        Ok(())
    }
}

fn take_counter(
    counters: &mut v1::Counters,
    field: u32,
    content: Content<'_>,
) -> Result<(), Malformed> {
    match field {
        1 => counters.bytes_sent = content.number()?,
        2 => counters.bytes_received = content.number()?,
        3 => counters.segments_sent = content.number()? as u32,
        4 => counters.segments_received = content.number()? as u32,
        5 => counters.retransmits = content.number()? as u32,
        6 => counters.srtt = Some(duration(content)?),
        _ => {}
    }
    Ok(())
}

fn timestamp(content: Content<'_>) -> Result<Timestamp, Malformed> {
    let (seconds, nanos) = seconds_and_nanos(content)?;
    Ok(Timestamp { seconds, nanos })
}

fn duration(content: Content<'_>) -> Result<Duration, Malformed> {
    let (seconds, nanos) = seconds_and_nanos(content)?;
    Ok(Duration { seconds, nanos })
}

fn seconds_and_nanos(content: Content<'_>) -> Result<(i64, i32), Malformed> {
    let (mut seconds, mut nanos) = (0, 0);
    each(content.bytes()?, |field, content| {
        match field {
            1 => seconds = content.number()? as i64,
            2 => nanos = content.number()? as i32,
            _ => {}
        }
        Ok(())
    })?;
    Ok((seconds, nanos))
}

/// A value of an enum of the API, if the API of this program has it.
fn named<T: TryFrom<i32>>(content: Content<'_>) -> Result<Option<T>, Malformed> {
    Ok(T::try_from(content.number()? as i32).ok())
}

/// Hands out the fields of a message. Of a field that comes twice the last one counts, and messages come once: it is the
/// agent that writes them.
fn each<'a>(
    message: &'a [u8],
    mut take: impl FnMut(u32, Content<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut fields = Fields::of(message);
    while let Some((field, content)) = fields.next()? {
        take(field, content)?;
    }
    Ok(())
}
