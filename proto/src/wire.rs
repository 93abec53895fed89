//! Fields of messages, one at a time, for what is written or read too often to make a message of it.

use std::fmt;

use prost::DecodeError;
use prost::encoding::WireType;
use thiserror::Error;

/// It is not what a peer that speaks the protocol sends.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("failed to decode Protobuf message")]
pub struct Malformed;

impl From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

/// Appends fields. As proto3 has it, a number or a text that is 0 or empty is left out, but a message never is.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Has room for so much before it takes memory again.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A number, a flag or a value of an enum.
    pub fn number(&mut self, field: u32, value: impl Into<u64>) {
        let value = value.into();
        if value != 0 {
            self.key(field, WireType::Varint);
            self.varint(value);
        }
    }

    /// A number that may be negative.
    pub fn signed(&mut self, field: u32, value: i64) {
        // Two's complement, which is long.
        self.number(field, value as u64);
    }

    /// A text.
    pub fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    /// A message that is encoded already.
    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, WireType::LengthDelimited);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A message, or a text that is not empty, of less than 128 bytes in most cases.
    pub fn short(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        self.delimited::<1>(field, fill);
    }

    /// A message of 128 bytes or more in most cases.
    pub fn long(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        self.delimited::<2>(field, fill);
    }

    /// Leaves room for a length of so many bytes, and makes it another if the length takes another.
    fn delimited<const ROOM: usize>(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        self.key(field, WireType::LengthDelimited);
        let at = self.0.len();
        self.0.extend_from_slice(&[0; ROOM]);
        fill(self);
        let start = at + ROOM;
        let mut length = self.0.len() - start;
        if length >> (7 * ROOM) == 0 && (ROOM == 1 || length >> (7 * (ROOM - 1)) > 0) {
            for byte in &mut self.0[at..start - 1] {
                *byte = length as u8 | 0x80;
                length >>= 7;
            }
            self.0[start - 1] = length as u8;
        } else {
            let mut encoded = Self::default();
            encoded.varint(length as u64);
            self.0.splice(at..start, encoded.0);
        }
    }

    fn key(&mut self, field: u32, wire_type: WireType) {
        self.varint(u64::from(field << 3 | wire_type as u32));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// Into a text that has been begun.
impl fmt::Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Reads the fields of a message in the order in which they come.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A number, a flag or a value of an enum.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
    /// A number of a kind that the API does not have. A later version might.
    Fixed,
}

impl<'a> Fields<'a> {
    /// Of a message.
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The next field and what it holds; `None` at the end.
    #[inline]
    pub fn next(&mut self) -> Result<Option<(u32, Content<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).map_err(|_| Malformed)?;
        let content = match key & 7 {
            0 => Content::Number(self.varint()?),
            1 => self.fixed(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Content::Bytes(self.take(length)?)
            }
            5 => self.fixed(4)?,
            _ => return Err(Malformed),
        };
        Ok(Some((field, content)))
    }

    fn fixed(&mut self, length: usize) -> Result<Content<'a>, Malformed> {
        self.take(length).map(|_| Content::Fixed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        // Keys and lengths have one byte.
        match self.0.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.0 = rest;
                Ok(byte.into())
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        let mut bytes = self.0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = bytes.split_first().ok_or(Malformed)?;
            bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                self.0 = bytes;
                // Of the tenth byte there is room for one bit.
                return if shift < 63 || byte < 2 {
                    Ok(value)
                } else {
                    Err(Malformed)
                };
            }
        }
        Err(Malformed)
    }
}

impl<'a> Content<'a> {
    /// As a number. What has no room in 32 bits is cut off where that is asked for, as everywhere in Protobuf.
    pub fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(Malformed),
        }
    }

    /// As a message.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// As a text.
    pub fn text(self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
}
