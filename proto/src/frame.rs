//! A `WatchResponse` put together from parts that are encoded already.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

use crate::v1::{Event, WatchResponse, watch_response};

/// `events` in `WatchResponse`.
const EVENTS_FIELD: u32 = 3;
/// `events` in `Events`.
const EVENT_FIELD: u32 = 1;

/// One event as an element of `Events.events`. A clone shares the bytes.
#[derive(Clone, Debug)]
pub struct EncodedEvent(Bytes);

impl EncodedEvent {
    /// Encodes an event.
    pub fn new(event: &Event) -> Self {
        let mut bytes = BytesMut::with_capacity(event.encoded_len() + 8);
        prost::encoding::message::encode(EVENT_FIELD, event, &mut bytes);
        Self(bytes.freeze())
    }

    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

/// The bytes of one `WatchResponse`.
#[derive(Clone, Debug)]
pub struct Frame(Bytes);

impl Frame {
    /// A batch of events. Nothing of `envelope` but its message is replaced; that has to be none.
    pub fn events(envelope: &WatchResponse, events: &[EncodedEvent]) -> Self {
        debug_assert!(envelope.message.is_none());
        let size: usize = events.iter().map(EncodedEvent::size).sum();
        let head = envelope.encoded_len() + key_len(EVENTS_FIELD) + encoded_len_varint(size as u64);
        let mut bytes = BytesMut::with_capacity(head + size);

        // A BytesMut grows: encoding cannot run out of room.
        let _ = envelope.encode(&mut bytes);
        encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut bytes);
        encode_varint(size as u64, &mut bytes);
        for event in events {
            bytes.put_slice(&event.0);
        }
        Self(bytes.freeze())
    }

    /// Any other message.
    pub fn message(envelope: &WatchResponse, message: watch_response::Message) -> Self {
        let response = WatchResponse {
            message: Some(message),
            ..envelope.clone()
        };
        Self(response.encode_to_vec().into())
    }
}

/// Reads requests as usual and writes frames as they are.
#[derive(Debug)]
pub struct FrameCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for FrameCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<D: Message + Default + Send + 'static> Codec for FrameCodec<Frame, D> {
    type Encode = Frame;
    type Decode = D;
    type Encoder = FrameEncoder;
    type Decoder = ProstDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

/// Writes frames as they are.
#[derive(Debug)]
pub struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(frame.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Events, Lost};

    fn envelope() -> WatchResponse {
        WatchResponse {
            node: "node-1".into(),
            epoch: 7,
            message: None,
        }
    }

    #[track_caller]
    fn decoded(frame: &Frame) -> WatchResponse {
        WatchResponse::decode(frame.0.clone()).expect("the bytes of a response")
    }

    #[test]
    fn a_frame_is_the_response_that_it_stands_for() {
        for count in [0, 1, 200] {
            let events: Vec<Event> = (0..count)
                .map(|sequence| Event {
                    sequence,
                    errno: 111,
                    ..Event::default()
                })
                .collect();
            let encoded: Vec<_> = events.iter().map(EncodedEvent::new).collect();
            let expected = WatchResponse {
                message: Some(watch_response::Message::Events(Events { events })),
                ..envelope()
            };
            assert_eq!(decoded(&Frame::events(&envelope(), &encoded)), expected);
        }
        let lost = watch_response::Message::Lost(Lost {
            source: 1,
            count: 5,
            position: None,
        });
        let expected = WatchResponse {
            message: Some(lost.clone()),
            ..envelope()
        };
        assert_eq!(decoded(&Frame::message(&envelope(), lost)), expected);
    }
}
