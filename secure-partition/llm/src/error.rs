//! Why inference cannot go on.

use core::fmt;
use flexserve_container::TensorKind;
use flexserve_kernels::matrix::ShapeError;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The workspace is too small, or not aligned.
    Workspace,
    /// A context of no tokens was asked for, or of more than attention can sum up.
    Context,
    /// Heads are wider than the arithmetic allows.
    HeadDim,
    /// The tensor of this layer is missing, or in a format that inference cannot use.
    Tensor(TensorKind, u32),
    /// Tensors' shapes do not go together.
    Shape,
    /// There is nothing to compute.
    NoTokens,
    /// The vocabulary has no such token.
    Token(u32),
    /// The tokens do not fit the context.
    ContextFull,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workspace => write!(f, "the workspace is too small or not aligned"),
            Self::Context => write!(f, "the context must hold 1 to 131072 tokens"),
            Self::HeadDim => write!(f, "the model's heads are too wide"),
            Self::Tensor(kind, layer) => write!(f, "tensor {kind:?} of layer {layer} cannot be used"),
            Self::Shape => write!(f, "the tensors' shapes do not go together"),
            Self::NoTokens => write!(f, "no tokens"),
            Self::Token(token) => write!(f, "token {token} is not in the vocabulary"),
            Self::ContextFull => write!(f, "the context is full"),
        }
    }
}

impl core::error::Error for Error {}

impl From<ShapeError> for Error {
    fn from(ShapeError: ShapeError) -> Self {
        Self::Shape
    }
}
