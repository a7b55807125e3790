//! Element by element: arithmetic, activations, comparison, logic, casts.

use smallvec::smallvec;

use super::{Build, Built, Inputs, Outputs, Refusal, one, sized, take};
use crate::burn::broadcast;
use crate::burn::elementwise::{
    Arithmetic, Comparison, Logic, Unary, arithmetic, choose, compare, is_nan, logic, not, unary,
};
use crate::value::{Data, DataType, HostTensor, Value};

/// `None` where `op` is not of this family.
pub(super) fn build(cx: &Build<'_>, op: &str) -> Option<Built> {
    if let Some(op) = activation(cx, op) {
        return Some(op.map(|op| boxed(move |mut i| one(unary(op, take(&mut i, 0)?.into_dev()?)?))));
    }
    let elements = cx.limits.elements_max;
    Some(match op {
        "Add" => arithmetic_op(Arithmetic::Add, elements),
        "Sub" => arithmetic_op(Arithmetic::Sub, elements),
        "Mul" => arithmetic_op(Arithmetic::Mul, elements),
        "Div" => arithmetic_op(Arithmetic::Div, elements),
        "Pow" => arithmetic_op(Arithmetic::Pow, elements),
        "Min" => fold(Arithmetic::Min, false, elements),
        "Max" => fold(Arithmetic::Max, false, elements),
        "Sum" => fold(Arithmetic::Add, false, elements),
        "Mean" => fold(Arithmetic::Add, true, elements),
        "Equal" => comparison(Comparison::Equal, elements),
        "Less" => comparison(Comparison::Less, elements),
        "LessOrEqual" => comparison(Comparison::LessOrEqual, elements),
        "Greater" => comparison(Comparison::Greater, elements),
        "GreaterOrEqual" => comparison(Comparison::GreaterOrEqual, elements),
        "And" => logical(Logic::And, elements),
        "Or" => logical(Logic::Or, elements),
        "Xor" => logical(Logic::Xor, elements),
        "Not" => Ok(boxed(|mut i| one(not(take(&mut i, 0)?.into_dev()?)?))),
        "IsNaN" => Ok(boxed(|mut i| one(is_nan(take(&mut i, 0)?.into_dev()?)?))),
        "Where" => Ok(boxed(move |mut i| {
            let (condition, yes, no) = (take(&mut i, 0)?, take(&mut i, 1)?, take(&mut i, 2)?);
            sized(&broadcast(condition.dims(), &broadcast(yes.dims(), no.dims())?)?, elements)?;
            one(choose(condition.into_dev()?, yes.into_dev()?, no.into_dev()?)?)
        })),
        "PRelu" => Ok(boxed(move |mut i| {
            let (x, slope) = (take(&mut i, 0)?, take(&mut i, 1)?);
            if broadcast(x.dims(), slope.dims())? != *x.dims() {
                return Err("its slopes have more dimensions than its input".to_owned());
            }
            let x = x.into_dev()?;
            let zero = Value::from(HostTensor::of_f32(&[], vec![0.0])).into_host().cast(x.datatype())?;
            let negative = compare(Comparison::Less, x.clone(), Value::from(zero).into_dev()?)?;
            let scaled = arithmetic(Arithmetic::Mul, x.clone(), slope.into_dev()?)?;
            one(choose(negative, scaled, x)?)
        })),
        "Clip" => clip(cx),
        "Cast" => cast(cx),
        "Identity" => Ok(boxed(|mut i| one(take(&mut i, 0)?))),
        "Dropout" => dropout(cx),
        _ => return None,
    })
}

fn boxed(kernel: impl Fn(Inputs) -> Result<Outputs, String> + Send + Sync + 'static) -> super::Kernel {
    Box::new(kernel)
}

/// Functions of one element.
fn activation(cx: &Build<'_>, op: &str) -> Option<Result<Unary, Refusal>> {
    let a = cx.attributes;
    Some(Ok(match op {
        "Neg" => Unary::Neg,
        "Abs" => Unary::Abs,
        "Sign" => Unary::Sign,
        "Sqrt" => Unary::Sqrt,
        "Exp" => Unary::Exp,
        "Log" => Unary::Log,
        "Reciprocal" => Unary::Reciprocal,
        "Floor" => Unary::Floor,
        "Ceil" => Unary::Ceil,
        "Relu" => Unary::Relu,
        "LeakyRelu" => Unary::LeakyRelu(a.float("alpha", 0.01)),
        "Elu" => Unary::Elu(a.float("alpha", 1.0)),
        "Selu" => Unary::Selu { alpha: a.float("alpha", 1.673_263_2), gamma: a.float("gamma", 1.050_701) },
        "Sigmoid" => Unary::Sigmoid,
        "HardSigmoid" => Unary::HardSigmoid { alpha: a.float("alpha", 0.2), beta: a.float("beta", 0.5) },
        "Tanh" => Unary::Tanh,
        "Softplus" => Unary::Softplus,
        "Erf" => Unary::Erf,
        "Gelu" => match a.string("approximate", "none") {
            Ok("none") => Unary::Gelu,
            Ok("tanh") => Unary::GeluTanh,
            Ok(other) => return Some(Err(format!("attribute `approximate` is `{other}`").into())),
            Err(reason) => return Some(Err(reason.into())),
        },
        _ => return None,
    }))
}

fn run_arithmetic(op: Arithmetic, a: Value, b: Value, elements: usize) -> Result<Value, String> {
    sized(&broadcast(a.dims(), b.dims())?, elements)?;
    if a.datatype() == DataType::Bytes {
        return Err("it is not for BYTES".to_owned());
    }
    let b = if op == Arithmetic::Pow && a.datatype() != b.datatype() {
        Value::from(b.into_host().cast(a.datatype())?)
    } else {
        b
    };
    if op == Arithmetic::Div && b.datatype().is_int() && b.clone().into_host().to_i64()?.contains(&0) {
        return Err("a whole number is divided by zero".to_owned());
    }
    Ok(arithmetic(op, a.into_dev()?, b.into_dev()?)?.into())
}

fn arithmetic_op(op: Arithmetic, elements: usize) -> Built {
    Ok(boxed(move |mut i| one(run_arithmetic(op, take(&mut i, 0)?, take(&mut i, 1)?, elements)?)))
}

/// Min, Max, Sum and Mean take any number of inputs.
fn fold(op: Arithmetic, mean: bool, elements: usize) -> Built {
    Ok(boxed(move |mut i| {
        let mut all = take(&mut i, 0)?;
        for at in 1..i.len() {
            let next = take(&mut i, at)?;
            all = run_arithmetic(op, all, next, elements)?;
        }
        if mean {
            let count = HostTensor::of_f32(&[], vec![i.len() as f32]).cast(all.datatype())?;
            all = run_arithmetic(Arithmetic::Div, all, count.into(), elements)?;
        }
        one(all)
    }))
}

fn comparison(op: Comparison, elements: usize) -> Built {
    Ok(boxed(move |mut i| {
        let (a, b) = (take(&mut i, 0)?, take(&mut i, 1)?);
        sized(&broadcast(a.dims(), b.dims())?, elements)?;
        one(compare(op, a.into_dev()?, b.into_dev()?)?)
    }))
}

fn logical(op: Logic, elements: usize) -> Built {
    Ok(boxed(move |mut i| {
        let (a, b) = (take(&mut i, 0)?, take(&mut i, 1)?);
        sized(&broadcast(a.dims(), b.dims())?, elements)?;
        one(logic(op, a.into_dev()?, b.into_dev()?)?)
    }))
}

/// Bounds are attributes before operator set 11, then inputs, each optional. NaN stays NaN.
fn clip(cx: &Build<'_>) -> Built {
    let bounds = (cx.opset < 11).then(|| {
        let bound = |name| cx.attributes.has(name).then(|| cx.attributes.float(name, 0.0));
        (bound("min"), bound("max"))
    });
    fn bound(value: Option<Value>, datatype: DataType) -> Result<Option<HostTensor>, String> {
        value.map(|value| value.into_host().cast(datatype)).transpose()
    }
    macro_rules! clip {
        ($values:expr, $low:expr, $high:expr, $variant:ident) => {{
            let first = |tensor: Option<HostTensor>| match tensor.map(|tensor| tensor.data) {
                Some(Data::$variant(values)) => values.first().copied(),
                _ => None,
            };
            let (low, high) = (first($low), first($high));
            for value in $values.iter_mut() {
                if let Some(low) = low
                    && *value < low
                {
                    *value = low;
                }
                if let Some(high) = high
                    && *value > high
                {
                    *value = high;
                }
            }
        }};
    }
    Ok(boxed(move |mut i| {
        let mut x = take(&mut i, 0)?.into_host();
        let datatype = x.data.datatype();
        let (low, high) = match bounds {
            Some((low, high)) => {
                let tensor =
                    |bound: Option<f32>| bound.map(|bound| HostTensor::of_f32(&[], vec![bound]).cast(datatype));
                (tensor(low).transpose()?, tensor(high).transpose()?)
            }
            None => {
                let mut input = |at: usize| bound(i.get_mut(at).and_then(Option::take), datatype);
                (input(1)?, input(2)?)
            }
        };
        match &mut x.data {
            Data::Fp32(values) => clip!(values, low, high, Fp32),
            Data::Fp64(values) => clip!(values, low, high, Fp64),
            Data::Int64(values) => clip!(values, low, high, Int64),
            Data::Int32(values) => clip!(values, low, high, Int32),
            other => return Err(format!("it is not for {}", other.datatype())),
        }
        one(x)
    }))
}

fn cast(cx: &Build<'_>) -> Built {
    let to = match cx.attributes.int("to", 0) {
        1 => DataType::Fp32,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        11 => DataType::Fp64,
        other => return Err(Refusal::Unsupported(format!("a cast to element type number {other}"))),
    };
    Ok(boxed(move |mut i| {
        let x = take(&mut i, 0)?;
        if x.datatype() == to {
            return one(x);
        }
        if to == DataType::Bytes && x.datatype().is_float() {
            return Err("floating point numbers as strings are not supported".to_owned());
        }
        one(x.into_host().cast(to)?)
    }))
}

/// Nothing is dropped when a model answers.
fn dropout(cx: &Build<'_>) -> Built {
    if let Some(training) = cx.constants.get(2).copied().flatten()
        && training.data == Data::Bool(vec![true])
    {
        return Err(Refusal::Unsupported("it is in training mode".to_owned()));
    }
    let mask = cx.has_output(1);
    Ok(boxed(move |mut i| {
        let x = take(&mut i, 0)?;
        if !mask {
            return one(x);
        }
        let ones = HostTensor { dims: x.dims().clone(), data: Data::Bool(vec![true; x.len()]) };
        Ok(smallvec![x, ones.into()])
    }))
}
