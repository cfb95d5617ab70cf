//! Reads GGUF, versions 2 and 3, little-endian.
//!
//! A file is magic, version, counts, metadata, tensor descriptions, padding, tensor data. Everything is checked against
//! caps and against the bytes that are left before memory is taken for it; no content makes the reader panic.

mod cursor;
mod types;
mod value;

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

pub use types::TensorType;
pub use value::Value;

use crate::error::{Error, Limit};
use cursor::Cursor;

/// Most metadata keys.
pub const KEYS_MAX: u64 = 1 << 16;
/// Most tensors.
pub const TENSORS_MAX: u64 = 1 << 14;
/// Most bytes of a string.
pub const STRING_MAX: u64 = 1 << 24;
/// Most elements of an array.
pub const ARRAY_MAX: u64 = 1 << 22;
/// Most dimensions of a tensor.
pub const DIMENSIONS_MAX: u32 = 4;
/// Largest alignment of tensor data.
pub const ALIGNMENT_MAX: u64 = 1 << 16;

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");

/// Where a tensor's data are and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// GGML's number of the element type.
    pub ggml_type: TensorType,
    /// Lengths of the dimensions, the fastest first.
    pub dimensions: Vec<u64>,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Tensor {
    /// Rows and columns; a vector is one row.
    #[must_use]
    pub fn shape(&self) -> (u64, u64) {
        let cols = self.dimensions.first().copied().unwrap_or(1);
        (self.dimensions.iter().skip(1).product(), cols)
    }
}

/// An open GGUF file: metadata and tensor descriptions in memory, tensor data on demand.
#[derive(Debug)]
pub struct Gguf<R> {
    source: R,
    version: u32,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
}

impl<R: Read + Seek> Gguf<R> {
    /// Reads everything but the tensor data.
    ///
    /// # Errors
    /// [`Error`], by name of what is wrong and where.
    pub fn open(mut source: R) -> Result<Self, Error> {
        let mut cursor = Cursor::new(&mut source)?;
        if cursor.u32("the magic number")? != MAGIC {
            return Err(Error::NotGguf);
        }
        let version = cursor.u32("the version")?;
        if version.swap_bytes() < 16 && version > 0xffff {
            return Err(Error::BigEndian);
        }
        if !(2..=3).contains(&version) {
            return Err(Error::GgufVersion(version));
        }
        let tensor_count = cursor.u64("the number of tensors")?;
        Limit::check("tensors", tensor_count, TENSORS_MAX)?;
        let key_count = cursor.u64("the number of metadata keys")?;
        Limit::check("metadata keys", key_count, KEYS_MAX)?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let alignment = metadata.get("general.alignment").map_or(Ok(32), |value| {
            value.unsigned().filter(|&a| a.is_power_of_two() && a <= ALIGNMENT_MAX).ok_or(Error::Alignment)
        })?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        Ok(Self { source, version, metadata, tensors })
    }

    /// GGUF version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata.
    #[must_use]
    pub fn metadata(&self) -> &HashMap<String, Value> {
        &self.metadata
    }

    /// All tensors.
    #[must_use]
    pub fn tensors(&self) -> &HashMap<String, Tensor> {
        &self.tensors
    }

    /// Finds a tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    /// Reads a tensor's data.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Io`].
    pub fn read(&mut self, name: &str) -> Result<Vec<u8>, Error> {
        let tensor = self.tensor(name)?.clone();
        let mut data = vec![0; usize::try_from(tensor.bytes).map_err(|_| Error::TooLarge(name.to_owned()))?];
        self.source.seek(SeekFrom::Start(tensor.offset))?;
        self.source.read_exact(&mut data)?;
        Ok(data)
    }

    /// Finds a metadata value and reads it by `read`, which says [`None`] if the value is of another type.
    fn find<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let wrong = || Error::KeyType { key: key.to_owned(), expected, found: value.type_name() };
        read(value).map(Some).ok_or_else(wrong)
    }

    /// A number that is not negative, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, Error> {
        self.find(key, "a number that is not negative", Value::unsigned)
    }

    /// A floating-point number, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        self.find(key, "a floating-point number", Value::float)
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        self.find(key, "true or false", Value::boolean)
    }

    /// A string, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        self.find(key, "a UTF-8 string", Value::string)
    }

    /// A list of strings, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn strings(&self, key: &str) -> Result<Option<&[Vec<u8>]>, Error> {
        self.find(key, "a list of strings", Value::strings)
    }

    /// A list of whole numbers, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, Error> {
        self.find(key, "a list of whole numbers", Value::integers)
    }

    /// A list of floating-point numbers, if the key is there.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        self.find(key, "a list of floating-point numbers", Value::floats)
    }
}

/// Turns "the key is not there" into an error.
///
/// # Errors
/// [`Error::MissingKey`].
pub fn required<T>(key: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::MissingKey(key.to_owned()))
}

fn read_metadata<R: Read + Seek>(
    cursor: &mut Cursor<'_, R>,
    count: u64,
) -> Result<HashMap<String, Value>, Error> {
    let mut metadata = HashMap::new();
    for index in 0..count {
        let key = cursor.name(&format!("the name of metadata key {index}"))?;
        let value = Value::read(cursor, &key)?;
        if metadata.contains_key(&key) {
            return Err(Error::Twice(key));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_tensors<R: Read + Seek>(
    cursor: &mut Cursor<'_, R>,
    count: u64,
    alignment: u64,
) -> Result<HashMap<String, Tensor>, Error> {
    let mut tensors = HashMap::new();
    for index in 0..count {
        let name = cursor.name(&format!("the name of tensor {index}"))?;
        let tensor = read_tensor(cursor, &name)?;
        if tensors.contains_key(&name) {
            return Err(Error::Twice(name));
        }
        tensors.insert(name, tensor);
    }
    let start = cursor.position().next_multiple_of(alignment);
    for (name, tensor) in &mut tensors {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(Error::TensorOffset(name.clone()));
        }
        let end = start.checked_add(tensor.offset).and_then(|offset| offset.checked_add(tensor.bytes));
        if end.is_none_or(|end| end > cursor.length()) {
            let at = cursor.length();
            return Err(Error::Truncated { at, reading: format!("the data of tensor {name}") });
        }
        tensor.offset += start;
    }
    Ok(tensors)
}

/// One description; its offset is still relative to the start of the data.
fn read_tensor<R: Read + Seek>(cursor: &mut Cursor<'_, R>, name: &str) -> Result<Tensor, Error> {
    let what = format!("the description of tensor {name}");
    let count = cursor.u32(&what)?;
    Limit::check("dimensions of a tensor", count.into(), DIMENSIONS_MAX.into())?;
    let mut dimensions = Vec::new();
    for _ in 0..count {
        dimensions.push(cursor.u64(&what)?);
    }
    let ggml_type = TensorType(cursor.u32(&what)?);
    let offset = cursor.u64(&what)?;
    let elements = dimensions.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let bytes = elements.filter(|&n| n != 0).and_then(|elements| {
        let (block, block_bytes) = ggml_type.block()?;
        let columns = dimensions.first().copied().unwrap_or(1);
        if columns.is_multiple_of(block) { (elements / block).checked_mul(block_bytes) } else { None }
    });
    let bytes = match (ggml_type.block(), bytes) {
        (None, _) => return Err(Error::TensorType { tensor: name.to_owned(), found: ggml_type }),
        (_, None) => return Err(Error::TensorSize(name.to_owned())),
        (_, Some(bytes)) => bytes,
    };
    Ok(Tensor { ggml_type, dimensions, offset, bytes })
}
