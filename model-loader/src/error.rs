//! What can be wrong with a model, said with cause and remedy.

use crate::gguf::TensorType;

/// Why a model cannot be read, packed or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The first bytes are not "GGUF".
    #[error("this is not a GGUF file (it does not begin with \"GGUF\"); give a .gguf model")]
    NotGguf,
    /// Written for a big-endian machine.
    #[error(
        "the GGUF file is big-endian, which is not supported; convert it with a little-endian machine's tools"
    )]
    BigEndian,
    /// A version that this reader does not know.
    #[error("GGUF version {0} is not supported (2 and 3 are); convert the model with current tools")]
    GgufVersion(u32),
    /// The file ends too early.
    #[error("the file ends at byte {at}, inside {reading}; it was probably not downloaded completely")]
    Truncated {
        /// Bytes of the file.
        at: u64,
        /// What was being read.
        reading: String,
    },
    /// A count or a size is above its cap.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// Text that is not UTF-8.
    #[error("{0} is not UTF-8; the file is corrupt")]
    NotUtf8(String),
    /// Metadata key or tensor that is there twice.
    #[error("{0} is in the file twice; the file is corrupt")]
    Twice(String),
    /// The alignment of tensor data makes no sense.
    #[error("general.alignment is not a power of two of at most 65536; the file is corrupt")]
    Alignment,
    /// A type of metadata value that GGUF does not have, or a list of lists.
    #[error(
        "the value of {key} has type number {code}, which is not supported; the file is corrupt or too new"
    )]
    ValueType {
        /// The key.
        key: String,
        /// Number of its type.
        code: u32,
    },
    /// A number that does not fit 63 bits.
    #[error("the value of {0} is too large; the file is corrupt")]
    HugeNumber(String),
    /// A tensor's data do not begin where they may.
    #[error("the data of tensor {0} are not aligned; the file is corrupt")]
    TensorOffset(String),
    /// A tensor's dimensions do not fit its type, or memory.
    #[error("tensor {0} has a size that cannot be; the file is corrupt")]
    TensorSize(String),
    /// A tensor that is larger than memory.
    #[error("tensor {0} does not fit into memory")]
    TooLarge(String),
    /// A tensor of a type that cannot be packed.
    #[error(
        "tensor {tensor} has type {found}, which is not supported; use a model in F16, BF16, F32, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1 or a K-quant (Q2_K to Q6_K)"
    )]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: TensorType,
    },
    /// A metadata key that must be there is not.
    #[error("metadata key {0} is missing; the file is incomplete or of an unusual converter")]
    MissingKey(String),
    /// A metadata value of another type than it should be.
    #[error("metadata key {key} should be {expected} but is {found}")]
    KeyType {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A metadata value outside its range.
    #[error("metadata key {key} is {value}, which is not supported ({why})")]
    KeyValue {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What would be.
        why: &'static str,
    },
    /// A tensor that must be there is not.
    #[error(
        "tensor {0} is missing; the file is incomplete, or one of several parts that must be merged first"
    )]
    MissingTensor(String),
    /// A tensor that the architecture does not have.
    #[error(
        "tensor {0} is not part of a Llama-type model as supported here (no biases, no experts, no adapters)"
    )]
    UnknownTensor(String),
    /// A tensor of the wrong shape.
    #[error(
        "tensor {tensor} has {found_rows} rows of {found_cols}, but the metadata ask for {rows} rows of {cols}"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Rows that it has.
        found_rows: u64,
        /// Columns that it has.
        found_cols: u64,
        /// Rows that it should have.
        rows: u32,
        /// Columns that it should have.
        cols: u32,
    },
    /// A tensor that the kernels' packer refuses.
    #[error("tensor {tensor} cannot be packed: {why}")]
    Pack {
        /// The tensor.
        tensor: String,
        /// Why.
        why: &'static str,
    },
    /// An architecture that is not supported.
    #[error(
        "architecture \"{0}\" is not supported; use a model of architecture \"llama\" (such as SmolLM2, Llama 2, Llama 3, TinyLlama)"
    )]
    Architecture(String),
    /// A tokenizer that is not supported.
    #[error(
        "tokenizer \"{0}\" is not supported; gpt2 (with pre-tokenizer default, gpt-2, smollm or llama-bpe) and llama are"
    )]
    Tokenizer(String),
    /// The tokenizer's tables contradict each other.
    #[error("the tokenizer is inconsistent: {0}")]
    Vocabulary(String),
    /// The container is refused.
    #[error("{0}")]
    Container(#[from] flexserve_container::Error),
    /// Inference failed.
    #[error("{0}")]
    Inference(#[from] flexserve_llm::Error),
    /// The prompt cannot be tokenized.
    #[error("{0}")]
    Tokenize(#[from] flexserve_llm::tokenizer::Error),
    /// The prompt cannot be answered.
    #[error("{0}")]
    Prompt(#[from] flexserve_llm::generator::PromptError),
}

/// A count or size above its cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what}: more than {most}, which no sound model needs; the file is corrupt")]
pub struct Limit {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// The cap.
    pub most: u64,
}

impl Limit {
    /// Checks a count.
    ///
    /// # Errors
    /// [`Limit`] if `count` is above `most`.
    pub fn check(what: &'static str, count: u64, most: u64) -> Result<(), Self> {
        if count > most { Err(Self { what, count, most }) } else { Ok(()) }
    }
}
