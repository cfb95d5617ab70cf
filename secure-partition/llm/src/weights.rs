//! The model's tensors as the kernels take them.

use flexserve_container::{Manifest, Model, TensorKind};
use flexserve_kernels::format::Format;
use flexserve_kernels::matrix::Matrix;
use flexserve_kernels::vector::Vector;

use crate::Error;

/// Finds a matrix.
///
/// # Errors
/// [`Error::Tensor`].
pub fn matrix<'m>(model: &Model<'m>, kind: TensorKind, layer: u32) -> Result<Matrix<'m>, Error> {
    let error = Error::Tensor(kind, layer);
    let view = model.tensor(kind, layer).ok_or(error)?;
    let format = Format::from_id(view.format).ok_or(error)?;
    Matrix::new(format, view.rows as usize, view.cols as usize, view.bytes).map_err(|_| error)
}

/// Finds a vector.
///
/// # Errors
/// [`Error::Tensor`].
pub fn vector<'m>(model: &Model<'m>, kind: TensorKind, layer: u32) -> Result<Vector<'m>, Error> {
    let error = Error::Tensor(kind, layer);
    let view = model.tensor(kind, layer).ok_or(error)?;
    if Format::from_id(view.format) != Some(Format::Vector) {
        return Err(error);
    }
    Vector::new(view.cols as usize, view.bytes).map_err(|_| error)
}

/// The output head: its own matrix, or the token embedding.
///
/// # Errors
/// [`Error::Tensor`].
pub fn head<'m>(model: &Model<'m>) -> Result<Matrix<'m>, Error> {
    let tied = model.manifest().params().tied_head;
    matrix(model, if tied { TensorKind::TokenEmbedding } else { TensorKind::Output }, 0)
}

/// Whether a matrix takes the activations twice.
#[must_use]
pub fn take_twice(manifest: &Manifest) -> bool {
    manifest.tensors().any(|info| info.format == Format::W16.id())
}

/// Checks that every tensor is in a format that inference can use.
///
/// # Errors
/// [`Error::Tensor`].
pub fn check(model: &Model) -> Result<(), Error> {
    for info in model.manifest().tensors() {
        let layer = info.layer.unwrap_or(0);
        if info.kind.is_norm() {
            vector(model, info.kind, layer)?;
        } else {
            matrix(model, info.kind, layer)?;
        }
    }
    Ok(())
}
