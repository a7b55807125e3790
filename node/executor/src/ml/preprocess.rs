//! Scaler, Imputer, Normalizer, Binarizer, FeatureVectorizer, ArrayFeatureExtractor.

use super::table_f32;
use crate::ops::{Build, Built, Refusal, one, take};
use crate::value::{Data, DataType, HostTensor, each_type, map_type};

/// One value for all columns, or one for each.
fn per_column<T: Copy>(values: &[T], column: usize) -> T {
    if values.len() == 1 { values[0] } else { values[column] }
}

fn fits(values: usize, columns: usize, what: &str) -> Result<(), String> {
    if values == 1 || values == columns { Ok(()) } else { Err(format!("{values} {what} for {columns} features")) }
}

/// `(x - offset) · scale`
pub(super) fn scaler(cx: &Build<'_>) -> Built {
    let list = |name: &str, default: f32| match cx.attributes.floats(name) {
        Some(values) if !values.is_empty() => values.to_vec(),
        _ => vec![default],
    };
    let (offset, scale) = (list("offset", 0.0), list("scale", 1.0));
    cx.holds((offset.len() + scale.len()) * 4);
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        let dims = x.dims().clone();
        let mut x = table_f32(x)?;
        fits(offset.len(), x.columns, "offsets")?;
        fits(scale.len(), x.columns, "scales")?;
        for row in x.values.chunks_exact_mut(x.columns.max(1)) {
            for (column, value) in row.iter_mut().enumerate() {
                *value = (*value - per_column(&offset, column)) * per_column(&scale, column);
            }
        }
        one(HostTensor { dims, data: Data::Fp32(x.values) })
    }))
}

/// Puts a value for the one that stands for "missing", which for floating point numbers is usually NaN.
pub(super) fn imputer(cx: &Build<'_>) -> Built {
    let a = cx.attributes;
    let floats = a.floats("imputed_value_floats").unwrap_or_default().to_vec();
    let ints = a.ints("imputed_value_int64s").unwrap_or_default().to_vec();
    let (missing_float, missing_int) = (a.float("replaced_value_float", 0.0), a.int("replaced_value_int64", 0));
    if floats.is_empty() && ints.is_empty() {
        return Err("it has no imputed values".into());
    }
    macro_rules! impute {
        ($values:expr, $columns:expr, $imputed:expr, $is_missing:expr) => {{
            fits($imputed.len(), $columns, "imputed values")?;
            for row in $values.chunks_exact_mut($columns.max(1)) {
                for (column, value) in row.iter_mut().enumerate() {
                    if $is_missing(*value) {
                        *value = per_column(&$imputed, column).into();
                    }
                }
            }
        }};
    }
    Ok(Box::new(move |mut i| {
        let mut x = take(&mut i, 0)?.into_host();
        let columns = x.dims.last().copied().unwrap_or_default();
        match &mut x.data {
            Data::Fp32(values) => {
                let is_missing = |value: f32| value == missing_float || (value.is_nan() && missing_float.is_nan());
                impute!(values, columns, floats, is_missing);
            }
            Data::Fp64(values) => {
                let missing = f64::from(missing_float);
                let is_missing = |value: f64| value == missing || (value.is_nan() && missing.is_nan());
                impute!(values, columns, floats, is_missing);
            }
            Data::Int64(values) => impute!(values, columns, ints, |value: i64| value == missing_int),
            other => return Err(format!("it is not for {}", other.datatype())),
        }
        one(x)
    }))
}

/// Each row divided by its norm; a row of zeros stays.
pub(super) fn normalizer(cx: &Build<'_>) -> Built {
    let norm: fn(&[f32]) -> f32 = match cx.attributes.string("norm", "MAX")? {
        "MAX" => |row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        "L1" => |row| row.iter().map(|value| value.abs()).sum(),
        "L2" => |row| row.iter().map(|value| value * value).sum::<f32>().sqrt(),
        other => return Err(format!("attribute `norm` is `{other}`").into()),
    };
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        let dims = x.dims().clone();
        let mut x = table_f32(x)?;
        for row in x.values.chunks_exact_mut(x.columns.max(1)) {
            let norm = norm(row);
            if norm != 0.0 {
                row.iter_mut().for_each(|value| *value /= norm);
            }
        }
        one(HostTensor { dims, data: Data::Fp32(x.values) })
    }))
}

/// 1 above the threshold, else 0.
pub(super) fn binarizer(cx: &Build<'_>) -> Built {
    let threshold = cx.attributes.float("threshold", 0.0);
    Ok(Box::new(move |mut i| {
        let mut x = take(&mut i, 0)?.into_host();
        match &mut x.data {
            Data::Fp32(values) => values.iter_mut().for_each(|value| *value = f32::from(*value > threshold)),
            Data::Fp64(values) => {
                values.iter_mut().for_each(|value| *value = f64::from(*value > f64::from(threshold)));
            }
            Data::Int64(values) => {
                values.iter_mut().for_each(|value| *value = i64::from(*value as f64 > f64::from(threshold)));
            }
            other => return Err(format!("it is not for {}", other.datatype())),
        }
        one(x)
    }))
}

/// Inputs side by side, as FP32.
pub(super) fn feature_vectorizer(cx: &Build<'_>) -> Built {
    let widths = cx.attributes.ints("inputdimensions").unwrap_or_default().to_vec();
    if !widths.is_empty() && widths.len() != cx.attributes.0.input.len() {
        return Err("attribute `inputdimensions` has not one number for each input".into());
    }
    Ok(Box::new(move |mut i| {
        let tables = (0..i.len()).map(|at| table_f32(take(&mut i, at)?)).collect::<Result<Vec<_>, String>>()?;
        let rows = tables.first().map_or(0, |table| table.rows);
        for (at, table) in tables.iter().enumerate() {
            let wanted = widths.get(at).map_or(table.columns as i64, |&width| width);
            if table.rows != rows || table.columns as i64 != wanted {
                let (found, columns) = (table.rows, table.columns);
                return Err(format!("input {at} is [{found}, {columns}] where [{rows}, {wanted}] is needed"));
            }
        }
        let columns = tables.iter().map(|table| table.columns).sum();
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for table in &tables {
                values.extend_from_slice(&table.values[row * table.columns..][..table.columns]);
            }
        }
        one(HostTensor::of_f32(&[rows, columns], values))
    }))
}

/// Columns of the last dimension, by number; one dimension counts as one row.
pub(super) fn array_feature_extractor(_: &Build<'_>) -> Result<crate::ops::Kernel, Refusal> {
    Ok(Box::new(|mut i| {
        let x = take(&mut i, 0)?.into_host();
        let places = take(&mut i, 1)?.into_host().cast(DataType::Int64)?.to_i64()?;
        let Some(&columns) = x.dims.last() else {
            return Err("its input has no dimensions".to_owned());
        };
        let places: Vec<usize> = places.into_iter().map(|place| usize::try_from(place).unwrap_or(usize::MAX)).collect();
        if let Some(bad) = places.iter().find(|&&place| place >= columns) {
            return Err(format!("there is no feature {bad} among {columns}"));
        }
        let mut dims = x.dims.clone();
        if dims.len() == 1 {
            dims.insert(0, 1);
        }
        let last = dims.len() - 1;
        dims[last] = places.len();
        let rows = each_type!(&x.data, values => values.len()) / columns.max(1);
        let data = map_type!(&x.data, values => {
            let mut out = Vec::with_capacity(rows * places.len());
            for row in values.chunks_exact(columns) {
                // Strings clone, numbers copy: one text for both.
                #[allow(clippy::clone_on_copy)]
                out.extend(places.iter().map(|&place| row[place].clone()));
            }
            out
        });
        one(HostTensor { dims, data })
    }))
}
