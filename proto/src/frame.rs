//! A `WatchResponse` put together from parts that are encoded already, and taken apart without decoding them.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::encoded::{EVENT_FIELD, EncodedEvent};
use crate::v1::{WatchResponse, watch_response};
use crate::view::EventBytes;
use crate::wire::{Fields, Malformed};

/// `events` in `WatchResponse`.
const EVENTS_FIELD: u32 = 3;

/// The bytes of one `WatchResponse`.
#[derive(Clone, Debug)]
pub struct Frame(Bytes);

impl Frame {
    /// A batch of events. Nothing of `envelope` but its message is replaced; that has to be none.
    pub fn events(envelope: &WatchResponse, events: &[EncodedEvent]) -> Self {
        debug_assert!(envelope.message.is_none());
        let size: usize = events.iter().map(|event| event.as_bytes().len()).sum();
        let head = envelope.encoded_len() + key_len(EVENTS_FIELD) + encoded_len_varint(size as u64);
        let mut bytes = BytesMut::with_capacity(head + size);

        // A BytesMut grows: encoding cannot run out of room.
        let _ = envelope.encode(&mut bytes);
        encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut bytes);
        encode_varint(size as u64, &mut bytes);
        for event in events {
            bytes.put_slice(event.as_bytes());
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

    /// A batch of events; `None` if it is another message.
    pub fn batch(&self) -> Result<Option<Batch<'_>>, Malformed> {
        let mut batch = Batch::default();
        let mut has_events = false;
        let mut fields = Fields::of(&self.0);
        while let Some((field, content)) = fields.next()? {
            match field {
                1 => batch.node = content.text()?,
                2 => batch.epoch = content.number()?,
                EVENTS_FIELD => {
                    batch.events = content.bytes()?;
                    has_events = true;
                }
                _ => {}
            }
        }
        Ok(has_events.then_some(batch))
    }

    /// Whatever it is, as a message.
    pub fn decode(&self) -> Result<WatchResponse, Malformed> {
        Ok(WatchResponse::decode(&*self.0)?)
    }
}

/// A `WatchResponse` with events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// The node.
    pub node: &'a str,
    /// The run of its agent.
    pub epoch: u64,
    events: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Hands out the events, in order.
    pub fn each(
        self,
        mut take: impl FnMut(EventBytes<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut fields = Fields::of(self.events);
        while let Some((field, content)) = fields.next()? {
            if field == EVENT_FIELD {
                take(EventBytes(content.bytes()?))?;
            }
        }
        Ok(())
    }
}

/// The codec of a server: reads requests as usual and writes frames as they are.
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
    type Encoder = Frames;
    type Decoder = ProstDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        Frames
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

/// The codec of a client: writes requests as usual and reads frames as they are.
#[derive(Debug)]
pub struct ClientFrameCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for ClientFrameCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message + Send + 'static> Codec for ClientFrameCodec<E, Frame> {
    type Encode = E;
    type Decode = Frame;
    type Encoder = ProstEncoder<E>;
    type Decoder = Frames;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Frames
    }
}

/// Frames as they are.
#[derive(Debug)]
pub struct Frames;

impl Encoder for Frames {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(frame.0);
        Ok(())
    }
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        Ok(Some(Frame(from.copy_to_bytes(from.remaining()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoded::tests::encoded;
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
            let encoded: Vec<_> = (0..count).map(encoded).collect();
            let frame = Frame::events(&envelope(), &encoded);
            let WatchResponse {
                node,
                epoch,
                message,
            } = decoded(&frame);
            assert_eq!((&*node, epoch), ("node-1", 7));
            let Some(watch_response::Message::Events(Events { events })) = message else {
                panic!("{message:?}");
            };
            assert!(events.iter().map(|event| event.sequence).eq(0..count));

            let batch = frame.batch().expect("it can be read").expect("events");
            assert_eq!((batch.node, batch.epoch), ("node-1", 7));
            let mut read = Vec::new();
            let each = batch.each(|event| {
                assert_eq!(event.sequence()?, event.view()?.sequence);
                read.push(event.message()?);
                Ok(())
            });
            assert_eq!((each, read), (Ok(()), events));
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
        let frame = Frame::message(&envelope(), lost);
        assert_eq!(decoded(&frame), expected);
        assert!(frame.batch().expect("it can be read").is_none());
        assert_eq!(frame.decode(), Ok(expected));
    }
}
