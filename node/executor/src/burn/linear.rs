//! Matrix products.

use burn_tensor::Float;

use super::{Dev, broadcast, padded, with_rank};
use crate::ops::sized;
use crate::value::Dims;

/// numpy's `matmul`: the last two dimensions are matrices, those before them broadcast; a vector gets a dimension and
/// loses it again.
///
/// At most `elements_max` elements come out.
pub(crate) fn matmul(a: Dev, b: Dev, elements_max: usize) -> Result<Dev, String> {
    if a.datatype != b.datatype || !a.datatype.is_float() {
        return Err(format!(
            "its inputs are {} and {}: both must be the same floating point type",
            a.datatype, b.datatype
        ));
    }
    if a.dims.is_empty() || b.dims.is_empty() {
        return Err("its inputs must have dimensions".to_owned());
    }
    let (row_vector, column_vector) = (a.rank() == 1, b.rank() == 1);
    let a_dims = if row_vector { Dims::from_slice(&[1, a.dims[0]]) } else { a.dims.clone() };
    let b_dims = if column_vector { Dims::from_slice(&[b.dims[0], 1]) } else { b.dims.clone() };
    let (a_batch, a_matrix) = a_dims.split_at(a_dims.len() - 2);
    let (b_batch, b_matrix) = b_dims.split_at(b_dims.len() - 2);
    if a_matrix[1] != b_matrix[0] {
        let (a, b) = (a.dims.as_slice(), b.dims.as_slice());
        return Err(format!("shapes {a:?} and {b:?} do not multiply: {} columns, {} rows", a_matrix[1], b_matrix[0]));
    }
    let mut dims = broadcast(a_batch, b_batch)?;
    dims.extend([a_matrix[0], b_matrix[1]]);
    sized(&dims, elements_max)?;
    let datatype = a.datatype;
    let (a_dims, b_dims) = (padded(&a_dims, dims.len()), padded(&b_dims, dims.len()));
    let (a, b) = (a.reshape(a_dims)?, b.reshape(b_dims)?);
    let product: Result<Dev, String> = with_rank!(dims.len(), D => {
        Ok(Dev::wrap(a.lift::<D, Float>().matmul(b.lift()), datatype, dims.clone()))
    });
    let product = product?;
    if column_vector {
        dims.pop();
    }
    if row_vector {
        dims.remove(dims.len() - if column_vector { 1 } else { 2 });
    }
    product.reshape(dims)
}
