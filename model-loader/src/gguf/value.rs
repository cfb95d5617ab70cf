//! Metadata values.

use std::io::{Read, Seek};

use super::ARRAY_MAX;
use super::cursor::Cursor;
use crate::error::{Error, Limit};

/// A metadata value. Numbers of all widths are read into the widest.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number. (Those above `i64::MAX` are refused: nothing here counts that far.)
    Integer(i64),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Boolean(bool),
    /// A string, which may not be UTF-8.
    String(Vec<u8>),
    /// A list of strings.
    Strings(Vec<Vec<u8>>),
    /// A list of whole numbers or truth values.
    Integers(Vec<i64>),
    /// A list of floating-point numbers.
    Floats(Vec<f32>),
}

impl Value {
    /// Reads type and value.
    pub(super) fn read<R: Read + Seek>(cursor: &mut Cursor<'_, R>, key: &str) -> Result<Self, Error> {
        let what = format!("the value of {key}");
        match cursor.u32(&what)? {
            9 => Self::read_array(cursor, key, &what),
            code => Self::read_scalar(cursor, code, key, &what),
        }
    }

    fn read_scalar<R: Read + Seek>(
        cursor: &mut Cursor<'_, R>,
        code: u32,
        key: &str,
        what: &str,
    ) -> Result<Self, Error> {
        Ok(match code {
            0 => Self::Integer(cursor.u8(what)?.into()),
            1 => Self::Integer(cursor.u8(what)?.cast_signed().into()),
            2 => Self::Integer(cursor.u16(what)?.into()),
            3 => Self::Integer(cursor.u16(what)?.cast_signed().into()),
            4 => Self::Integer(cursor.u32(what)?.into()),
            5 => Self::Integer(cursor.u32(what)?.cast_signed().into()),
            6 => Self::Float(f32::from_bits(cursor.u32(what)?).into()),
            7 => Self::Boolean(cursor.u8(what)? != 0),
            8 => Self::String(cursor.string(what)?),
            10 => Self::Integer(
                i64::try_from(cursor.u64(what)?).map_err(|_| Error::HugeNumber(key.to_owned()))?,
            ),
            11 => Self::Integer(cursor.u64(what)?.cast_signed()),
            12 => Self::Float(f64::from_bits(cursor.u64(what)?)),
            _ => return Err(Error::ValueType { key: key.to_owned(), code }),
        })
    }

    fn read_array<R: Read + Seek>(cursor: &mut Cursor<'_, R>, key: &str, what: &str) -> Result<Self, Error> {
        let code = cursor.u32(what)?;
        let count = cursor.u64(what)?;
        Limit::check("elements of an array", count, ARRAY_MAX)?;
        let least_bytes: u64 = match code {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => return Err(Error::ValueType { key: key.to_owned(), code }),
        };
        cursor.expect(count * least_bytes, what)?;
        let (mut strings, mut integers, mut floats) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            match Self::read_scalar(cursor, code, key, what)? {
                Self::Integer(value) => integers.push(value),
                Self::Boolean(value) => integers.push(value.into()),
                Self::Float(value) => floats.push(value as f32),
                Self::String(value) => strings.push(value),
                Self::Strings(_) | Self::Integers(_) | Self::Floats(_) => {}
            }
        }
        Ok(match code {
            8 => Self::Strings(strings),
            6 | 12 => Self::Floats(floats),
            _ => Self::Integers(integers),
        })
    }

    /// What kind of value this is, for people.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a floating-point number",
            Self::Boolean(_) => "true or false",
            Self::String(_) => "a string",
            Self::Strings(_) => "a list of strings",
            Self::Integers(_) => "a list of whole numbers",
            Self::Floats(_) => "a list of floating-point numbers",
        }
    }

    pub(super) fn unsigned(&self) -> Option<u64> {
        if let Self::Integer(value) = self { u64::try_from(*value).ok() } else { None }
    }

    pub(super) fn float(&self) -> Option<f32> {
        if let Self::Float(value) = self { Some(*value as f32) } else { None }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        if let Self::Boolean(value) = self { Some(*value) } else { None }
    }

    pub(super) fn string(&self) -> Option<&str> {
        if let Self::String(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    pub(super) fn strings(&self) -> Option<&[Vec<u8>]> {
        if let Self::Strings(list) = self { Some(list) } else { None }
    }

    pub(super) fn integers(&self) -> Option<&[i64]> {
        if let Self::Integers(list) = self { Some(list) } else { None }
    }

    pub(super) fn floats(&self) -> Option<&[f32]> {
        if let Self::Floats(list) = self { Some(list) } else { None }
    }
}
