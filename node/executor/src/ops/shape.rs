//! Shapes: reading them, changing them, taking elements by place.

use super::{Build, Built, IntList, Outputs, Refusal, axis, one, sized, take};
use crate::burn::movement;
use crate::value::{Data, Dims, HostTensor, Value};

pub(super) fn flatten(cx: &Build<'_>) -> Built {
    let at = cx.attributes.int("axis", 1);
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        let rank = x.dims().len();
        // One past the last axis is allowed here.
        let at = if at == rank as i64 { rank } else { axis(at, rank.max(1))? };
        let (rows, columns) = x.dims().split_at(at.min(rank));
        let dims = Dims::from_slice(&[rows.iter().product(), columns.iter().product()]);
        one(x.reshape(dims)?)
    }))
}

pub(super) fn reshape(cx: &Build<'_>) -> Built {
    let wanted = cx.int_list("shape", 1)?;
    let zero_is_zero = cx.attributes.flag("allowzero", false);
    let elements = cx.limits.elements_max;
    Ok(Box::new(move |mut i| {
        let wanted = wanted.read(&mut i)?.ok_or("its shape is missing")?;
        let x = take(&mut i, 0)?;
        let dims = reshaped(x.dims(), &wanted, zero_is_zero)?;
        sized(&dims, elements)?;
        one(x.reshape(dims)?)
    }))
}

/// ONNX's shape arithmetic: 0 keeps a size (unless told otherwise), -1 takes what is left.
fn reshaped(from: &[usize], wanted: &[i64], zero_is_zero: bool) -> Result<Dims, String> {
    let mut dims = Dims::new();
    let mut open = None;
    for (at, &size) in wanted.iter().enumerate() {
        dims.push(match size {
            0 if !zero_is_zero => {
                *from.get(at).ok_or_else(|| format!("shape {wanted:?} keeps size {at} of {from:?}"))?
            }
            -1 if open.is_none() => {
                open = Some(at);
                1
            }
            size => usize::try_from(size).map_err(|_| format!("there is no shape {wanted:?}"))?,
        });
    }
    if let Some(at) = open {
        let known = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let known = known
            .filter(|&known| known > 0)
            .ok_or_else(|| format!("the -1 of shape {wanted:?} stands for anything"))?;
        dims[at] = from.iter().product::<usize>() / known;
    }
    Ok(dims)
}

pub(super) fn squeeze(cx: &Build<'_>) -> Built {
    let axes = cx.int_list("axes", 1)?;
    Ok(Box::new(move |mut i| {
        let axes = axes.read(&mut i)?;
        let x = take(&mut i, 0)?;
        let rank = x.dims().len();
        let axes: Option<Vec<usize>> =
            axes.map(|axes| axes.into_iter().map(|at| axis(at, rank)).collect::<Result<_, _>>()).transpose()?;
        if let Some(bad) = axes.iter().flatten().find(|&&at| x.dims()[at] != 1) {
            return Err(format!("axis {bad} of {:?} has more than one element", x.dims().as_slice()));
        }
        let keeps = |at: usize, size: usize| axes.as_ref().map_or(size != 1, |axes| !axes.contains(&at));
        let dims = x.dims().iter().enumerate().filter(|&(at, &size)| keeps(at, size)).map(|(_, &size)| size).collect();
        one(x.reshape(dims)?)
    }))
}

pub(super) fn unsqueeze(cx: &Build<'_>) -> Built {
    let axes = cx.int_list("axes", 1)?;
    Ok(Box::new(move |mut i| {
        let axes = axes.read(&mut i)?.ok_or("its axes are missing")?;
        let x = take(&mut i, 0)?;
        let rank = x.dims().len() + axes.len();
        let axes: Vec<usize> = axes.into_iter().map(|at| axis(at, rank)).collect::<Result<_, _>>()?;
        let mut old = x.dims().iter();
        let dims: Option<Dims> =
            (0..rank).map(|at| if axes.contains(&at) { Some(1) } else { old.next().copied() }).collect();
        let dims = dims.ok_or_else(|| format!("axes {axes:?} repeat"))?;
        one(x.reshape(dims)?)
    }))
}

pub(super) fn concat(cx: &Build<'_>) -> Built {
    if !cx.attributes.has("axis") {
        return Err("attribute `axis` is missing".into());
    }
    let at = cx.attributes.int("axis", 0);
    Ok(Box::new(move |mut i| {
        let tensors = (0..i.len()).map(|at| take(&mut i, at)?.into_dev()).collect::<Result<Vec<_>, String>>()?;
        let rank = tensors.first().map_or(0, |tensor| tensor.dims().len());
        one(movement::concat(tensors, axis(at, rank)?)?)
    }))
}

pub(super) fn transpose(cx: &Build<'_>) -> Built {
    let perm = cx.attributes.ints("perm").map(<[i64]>::to_vec);
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?.into_dev()?;
        let rank = x.dims().len();
        let axes: Vec<usize> = match &perm {
            Some(perm) => perm.iter().map(|&at| axis(at, rank)).collect::<Result<_, _>>()?,
            None => (0..rank).rev().collect(),
        };
        one(x.permute(&axes)?)
    }))
}

/// Bounds are attributes before operator set 10, then inputs.
pub(super) fn slice(cx: &Build<'_>) -> Built {
    let (starts, ends, axes) = (cx.int_list("starts", 1)?, cx.int_list("ends", 2)?, cx.int_list("axes", 3)?);
    let steps = cx.int_list("steps", 4)?;
    Ok(Box::new(move |mut i| {
        let starts = starts.read(&mut i)?.ok_or("its starts are missing")?;
        let ends = ends.read(&mut i)?.ok_or("its ends are missing")?;
        let axes = axes.read(&mut i)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = steps.read(&mut i)?.unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("its starts, ends, axes and steps differ in number".to_owned());
        }
        let mut x = take(&mut i, 0)?.into_dev()?;
        let rank = x.dims().len();
        let mut from = vec![0; rank];
        let mut to = x.dims().to_vec();
        let mut by = vec![1; rank];
        let mut backwards = Vec::new();
        for (((start, end), at), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
            let at = axis(at, rank)?;
            let size = x.dims()[at] as i64;
            let wrapped = |bound: i64| if bound < 0 { bound.saturating_add(size) } else { bound };
            if step > 0 {
                from[at] = wrapped(start).clamp(0, size) as usize;
                to[at] = (wrapped(end).clamp(0, size) as usize).max(from[at]);
                by[at] = usize::try_from(step).unwrap_or(usize::MAX);
            } else if step < 0 {
                let (start, end) = (wrapped(start).min(size - 1), wrapped(end).max(-1));
                let mut indices = Vec::new();
                let mut index = start;
                while index > end && index >= 0 {
                    indices.push(index);
                    index = index.saturating_add(step);
                }
                backwards.push((at, indices));
            } else {
                return Err("a step is 0".to_owned());
            }
        }
        x = x.slice(&from, &to, &by)?;
        for (at, indices) in backwards {
            x = x.select(at, indices)?;
        }
        one(x)
    }))
}

/// Sizes are an attribute before operator set 13, then an input; without either, equal parts.
pub(super) fn split(cx: &Build<'_>) -> Built {
    let at = cx.attributes.int("axis", 0);
    let sizes = cx.int_list("split", 1)?;
    let parts = cx.attributes.0.output.len();
    if parts == 0 {
        return Err("it has no outputs".into());
    }
    Ok(Box::new(move |mut i| {
        let sizes = sizes.read(&mut i)?;
        let x = take(&mut i, 0)?.into_dev()?;
        let at = axis(at, x.dims().len())?;
        let size = x.dims()[at];
        let sizes = match sizes {
            Some(sizes) => sizes
                .iter()
                .map(|&size| usize::try_from(size))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| "a size is negative")?,
            None => {
                let part = size.div_ceil(parts);
                (0..parts).map(|n| part.min(size.saturating_sub(n * part))).collect()
            }
        };
        if sizes.len() != parts || sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size)) != Some(size) {
            return Err(format!("parts of {sizes:?} do not make a dimension of {size} in {parts} outputs"));
        }
        let (mut from, mut to) = (vec![0; x.dims().len()], x.dims().to_vec());
        let by = vec![1; from.len()];
        let mut outputs = Outputs::new();
        for size in sizes {
            to[at] = from[at] + size;
            outputs.push(x.clone().slice(&from, &to, &by)?.into());
            from[at] = to[at];
        }
        Ok(outputs)
    }))
}

pub(super) fn gather(cx: &Build<'_>) -> Built {
    let at = cx.attributes.int("axis", 0);
    let elements = cx.limits.elements_max;
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?.into_dev()?;
        let indices = take(&mut i, 1)?.into_host();
        let at = axis(at, x.dims().len())?;
        let size = x.dims()[at] as i64;
        let places: Vec<i64> = indices
            .to_i64()?
            .into_iter()
            .map(|index| if index < 0 { index.saturating_add(size) } else { index })
            .collect();
        let mut dims = Dims::from_slice(&x.dims()[..at]);
        dims.extend_from_slice(&indices.dims);
        dims.extend_from_slice(&x.dims()[at + 1..]);
        sized(&dims, elements)?;
        one(x.select(at, places)?.reshape(dims)?)
    }))
}

pub(super) fn shape(cx: &Build<'_>) -> Built {
    let (start, end) = (cx.attributes.int("start", 0), cx.attributes.int("end", i64::MAX));
    Ok(Box::new(move |mut i| {
        let x = take(&mut i, 0)?;
        let rank = x.dims().len() as i64;
        let bound = |at: i64| if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank) as usize;
        let sizes: Vec<i64> = x.dims().iter().map(|&size| size as i64).collect();
        let sizes = sizes.get(bound(start)..bound(end)).unwrap_or_default().to_vec();
        one(HostTensor::of_i64(&[sizes.len()], sizes))
    }))
}

pub(super) fn constant_of_shape(cx: &Build<'_>) -> Built {
    let value = cx.attributes.tensor("value")?.unwrap_or_else(|| HostTensor::of_f32(&[1], vec![0.0]));
    if value.data.len() != 1 {
        return Err(format!("attribute `value` has {} elements, not one", value.data.len()).into());
    }
    let wanted = cx.int_list("", 0)?;
    let elements = cx.limits.elements_max;
    Ok(Box::new(move |mut i| {
        let wanted = wanted.read(&mut i)?.ok_or("its shape is missing")?;
        let dims = sizes(&wanted)?;
        let n = sized(&dims, elements)?;
        let data = match &value.data {
            Data::Fp32(values) => Data::Fp32(vec![values[0]; n]),
            Data::Fp64(values) => Data::Fp64(vec![values[0]; n]),
            Data::Int64(values) => Data::Int64(vec![values[0]; n]),
            Data::Int32(values) => Data::Int32(vec![values[0]; n]),
            Data::Bool(values) => Data::Bool(vec![values[0]; n]),
            Data::Bytes(_) => return Err("it is not for BYTES".to_owned()),
        };
        one(HostTensor { dims, data })
    }))
}

pub(super) fn expand(cx: &Build<'_>) -> Built {
    let wanted = cx.int_list("", 1)?;
    if matches!(wanted, IntList::Absent) {
        return Err(Refusal::Invalid("its shape is missing".to_owned()));
    }
    let elements = cx.limits.elements_max;
    Ok(Box::new(move |mut i| {
        let wanted = sizes(&wanted.read(&mut i)?.unwrap_or_default())?;
        let x: Value = take(&mut i, 0)?;
        let dims = crate::burn::broadcast(x.dims(), &wanted)?;
        sized(&dims, elements)?;
        one(x.into_dev()?.expand(&dims)?)
    }))
}

fn sizes(wanted: &[i64]) -> Result<Dims, String> {
    let dims: Result<Dims, _> = wanted.iter().map(|&size| usize::try_from(size)).collect();
    dims.map_err(|_| format!("there is no shape {wanted:?}"))
}
