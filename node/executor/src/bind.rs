//! Arrow columns to the tensors a model takes, and its tensors to Arrow columns. The rules are on
//! [`crate::Model::run`].

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array,
    Int64Array, PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray,
};
use arrow_schema::{DataType as ArrowType, Field, Schema, TimeUnit};

use crate::error::RunError;
use crate::ml::Labels;
use crate::model::TensorSpec;
use crate::plan::Output;
use crate::value::{Data, DataType, Dims, HostTensor, map_type};

pub(crate) fn inputs(specs: &[TensorSpec], batch: &RecordBatch) -> Result<Vec<HostTensor>, RunError> {
    let rows = batch.num_rows();
    for spec in specs {
        if let Some(&wanted) = spec.shape.first().filter(|&&size| size >= 0)
            && rows > 0
            && wanted != rows as i64
        {
            return Err(RunError::BadInput(format!(
                "the model takes exactly {wanted} rows at a time, and {rows} came"
            )));
        }
    }
    if let [spec] = specs
        && spec.shape.len() == 2
    {
        let schema = batch.schema();
        let columns =
            schema.fields().iter().zip(batch.columns()).map(|(field, column)| (field.name().as_str(), column));
        return Ok(vec![table(spec, columns.collect(), rows)?]);
    }
    specs.iter().map(|spec| by_name(spec, batch)).collect()
}

/// Columns side by side: `[rows, features]`.
fn table(spec: &TensorSpec, columns: Vec<(&str, &ArrayRef)>, rows: usize) -> Result<HostTensor, RunError> {
    let features: usize = columns.iter().map(|(_, column)| width(column)).sum();
    if let Some(&wanted) = spec.shape.get(1).filter(|&&size| size >= 0)
        && wanted != features as i64
    {
        let (name, given) = (&spec.name, columns.len());
        return Err(RunError::BadInput(format!(
            "the model's input `{name}` takes {wanted} features, and the batch has {features} in {given} columns"
        )));
    }
    Ok(HostTensor { dims: Dims::from_slice(&[rows, features]), data: cells(spec.datatype, &columns, rows, features)? })
}

/// One column as an input of any shape.
fn by_name(spec: &TensorSpec, batch: &RecordBatch) -> Result<HostTensor, RunError> {
    let Some(column) = batch.column_by_name(&spec.name) else {
        let schema = batch.schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let (name, names) = (&spec.name, names.join("`, `"));
        return Err(RunError::BadInput(format!("the model's input `{name}` is not among the columns `{names}`")));
    };
    let (rows, width) = (batch.num_rows(), width(column));
    let mut dims = Dims::from_slice(&[rows]);
    match spec.shape.get(1..) {
        None | Some([]) if width == 1 => {}
        // One size may be open: the column's width decides it.
        Some(sizes) => {
            let known: i64 = sizes.iter().filter(|&&size| size >= 0).product();
            let open = sizes.iter().filter(|&&size| size < 0).count();
            let fits =
                known > 0 && width as i64 % known == 0 && if open == 0 { known == width as i64 } else { open == 1 };
            if !fits {
                let (name, shape) = (&spec.name, &spec.shape);
                return Err(RunError::BadInput(format!(
                    "the model's input `{name}` has shape {shape:?}, and its column holds {width} values a row"
                )));
            }
            dims.extend(sizes.iter().map(|&size| if size < 0 { width / known as usize } else { size as usize }));
        }
        None => dims.push(width),
    }
    Ok(HostTensor { dims, data: cells(spec.datatype, &[(&spec.name, column)], rows, width)? })
}

/// Values in one row of a column.
fn width(column: &ArrayRef) -> usize {
    match column.data_type() {
        ArrowType::FixedSizeList(_, size) => usize::try_from(*size).unwrap_or_default(),
        _ => 1,
    }
}

fn cells(datatype: DataType, columns: &[(&str, &ArrayRef)], rows: usize, features: usize) -> Result<Data, RunError> {
    fn fill<T: Cell>(columns: &[(&str, &ArrayRef)], rows: usize, features: usize) -> Result<Vec<T>, RunError> {
        let mut values = vec![T::ZERO; rows * features];
        let mut first = 0;
        for (name, column) in columns {
            let width = width(column);
            let mut target = Target { values: &mut values, first, stride: features, column: name };
            if let Some(list) = column.as_fixed_size_list_opt() {
                target.list(list, width)?;
            } else {
                target.column(column.as_ref(), 1, |_| false)?;
            }
            first += width;
        }
        Ok(values)
    }
    Ok(match datatype {
        DataType::Fp32 => Data::Fp32(fill(columns, rows, features)?),
        DataType::Fp64 => Data::Fp64(fill(columns, rows, features)?),
        DataType::Int64 => Data::Int64(fill(columns, rows, features)?),
        DataType::Int32 => Data::Int32(fill(columns, rows, features)?),
        DataType::Bool => Data::Bool(fill(columns, rows, features)?),
        DataType::Bytes => Data::Bytes(strings(columns, rows, features)?),
    })
}

/// A value of a model's element type.
trait Cell: Copy {
    const ZERO: Self;
    /// What a null becomes, where it can become anything.
    const NULL: Option<Self>;
    const NAME: &'static str;
    /// `None` where the value has no place in the type.
    fn from_f64(value: f64) -> Option<Self>;
    fn from_i64(value: i64) -> Option<Self>;
    fn from_bool(value: bool) -> Option<Self>;
}

macro_rules! float_cell {
    ($T:ty, $name:literal) => {
        impl Cell for $T {
            const ZERO: Self = 0.0;
            const NULL: Option<Self> = Some(<$T>::NAN);
            const NAME: &'static str = $name;
            fn from_f64(value: f64) -> Option<Self> {
                Some(value as $T)
            }
            fn from_i64(value: i64) -> Option<Self> {
                Some(value as $T)
            }
            fn from_bool(value: bool) -> Option<Self> {
                Some(<$T>::from(u8::from(value)))
            }
        }
    };
}
float_cell!(f32, "FP32");
float_cell!(f64, "FP64");

macro_rules! int_cell {
    ($T:ty, $name:literal) => {
        impl Cell for $T {
            const ZERO: Self = 0;
            const NULL: Option<Self> = None;
            const NAME: &'static str = $name;
            /// Whole numbers only: nothing is cut off in silence.
            fn from_f64(value: f64) -> Option<Self> {
                (value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0)
                    .then(|| Self::from_i64(value as i64))
                    .flatten()
            }
            fn from_i64(value: i64) -> Option<Self> {
                <$T>::try_from(value).ok()
            }
            fn from_bool(value: bool) -> Option<Self> {
                Some(<$T>::from(value))
            }
        }
    };
}
int_cell!(i64, "INT64");
int_cell!(i32, "INT32");

impl Cell for bool {
    const ZERO: Self = false;
    const NULL: Option<Self> = None;
    const NAME: &'static str = "BOOL";
    fn from_f64(value: f64) -> Option<Self> {
        if value == 0.0 { Some(false) } else { (value == 1.0).then_some(true) }
    }
    fn from_i64(value: i64) -> Option<Self> {
        if value == 0 { Some(false) } else { (value == 1).then_some(true) }
    }
    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

/// Where a column's values go: `first`, then every `stride`.
struct Target<'a, T> {
    values: &'a mut [T],
    first: usize,
    stride: usize,
    column: &'a str,
}

impl<T: Cell> Target<'_, T> {
    /// `width` consecutive values make a row; `is_null` says so of a whole row.
    fn column(&mut self, column: &dyn Array, width: usize, is_null: impl Fn(usize) -> bool) -> Result<(), RunError> {
        macro_rules! ints {
            ($A:ty) => {
                self.primitive::<$A>(column, width, is_null, |value| T::from_i64(value.into()))
            };
        }
        match column.data_type() {
            ArrowType::Float32 => {
                self.primitive::<Float32Type>(column, width, is_null, |value| T::from_f64(value.into()))
            }
            ArrowType::Float64 => self.primitive::<Float64Type>(column, width, is_null, T::from_f64),
            ArrowType::Int8 => ints!(Int8Type),
            ArrowType::Int16 => ints!(Int16Type),
            ArrowType::Int32 => ints!(Int32Type),
            ArrowType::Int64 => ints!(Int64Type),
            ArrowType::UInt8 => ints!(UInt8Type),
            ArrowType::UInt16 => ints!(UInt16Type),
            ArrowType::UInt32 => ints!(UInt32Type),
            ArrowType::UInt64 => {
                self.primitive::<UInt64Type>(column, width, is_null, |value| match i64::try_from(value) {
                    Ok(value) => T::from_i64(value),
                    Err(_) => T::from_f64(value as f64),
                })
            }
            ArrowType::Date32 => ints!(Date32Type),
            ArrowType::Date64 => ints!(Date64Type),
            ArrowType::Timestamp(TimeUnit::Second, _) => ints!(TimestampSecondType),
            ArrowType::Timestamp(TimeUnit::Millisecond, _) => ints!(TimestampMillisecondType),
            ArrowType::Timestamp(TimeUnit::Microsecond, _) => ints!(TimestampMicrosecondType),
            ArrowType::Timestamp(TimeUnit::Nanosecond, _) => ints!(TimestampNanosecondType),
            ArrowType::Boolean => {
                let values = column.as_boolean();
                self.each(values, width, is_null, |at| T::from_bool(values.value(at)))
            }
            other => Err(RunError::BadInput(format!(
                "column `{}` is {other}, and the model takes {} there",
                self.column,
                T::NAME
            ))),
        }
    }

    fn primitive<A: ArrowPrimitiveType>(
        &mut self,
        column: &dyn Array,
        width: usize,
        is_null: impl Fn(usize) -> bool,
        convert: impl Fn(A::Native) -> Option<T>,
    ) -> Result<(), RunError> {
        let array: &PrimitiveArray<A> = column.as_primitive();
        let values = array.values();
        self.each(column, width, is_null, |at| convert(values[at]))
    }

    fn each(
        &mut self,
        column: &dyn Array,
        width: usize,
        is_null: impl Fn(usize) -> bool,
        value: impl Fn(usize) -> Option<T>,
    ) -> Result<(), RunError> {
        let nulls = column.logical_nulls();
        for row in 0..column.len() / width {
            let to = self.first + row * self.stride;
            let row_is_null = is_null(row);
            for (cell, at) in self.values[to..to + width].iter_mut().zip(row * width..) {
                let null = row_is_null || nulls.as_ref().is_some_and(|nulls| nulls.is_null(at));
                let Some(found) = (if null { T::NULL } else { value(at) }) else {
                    let reason = if null { "it is null, and the model takes" } else { "its value has no place in" };
                    let reason = format!("{reason} {}{}", T::NAME, if null { " there" } else { "" });
                    return Err(RunError::BadValue { column: self.column.to_owned(), row, reason });
                };
                *cell = found;
            }
        }
        Ok(())
    }

    fn list(&mut self, list: &FixedSizeListArray, width: usize) -> Result<(), RunError> {
        if width == 0 {
            return Ok(());
        }
        let start = usize::try_from(list.value_offset(0)).unwrap_or_default();
        let values = list.values().slice(start, list.len() * width);
        self.column(values.as_ref(), width, |row| list.is_null(row))
    }
}

fn strings(columns: &[(&str, &ArrayRef)], rows: usize, features: usize) -> Result<Vec<Arc<str>>, RunError> {
    let mut values: Vec<Arc<str>> = vec!["".into(); rows * features];
    for (at, (name, column)) in columns.iter().enumerate() {
        for row in 0..rows {
            let text = match column.data_type() {
                ArrowType::Utf8 => column.as_string::<i32>().value(row),
                ArrowType::LargeUtf8 => column.as_string::<i64>().value(row),
                ArrowType::Utf8View => column.as_string_view().value(row),
                other => {
                    return Err(RunError::BadInput(format!(
                        "column `{name}` is {other}, and the model takes BYTES there"
                    )));
                }
            };
            if column.is_null(row) {
                let reason = "it is null, and the model takes BYTES there".to_owned();
                return Err(RunError::BadValue { column: (*name).to_owned(), row, reason });
            }
            values[row * features + at] = text.into();
        }
    }
    Ok(values)
}

/// The same columns with one row of zeros.
pub(crate) fn one_row(tensor: HostTensor) -> HostTensor {
    let mut dims = tensor.dims;
    if let Some(rows) = dims.first_mut() {
        *rows = 1;
    }
    let n = dims.iter().product();
    let data = map_type!(tensor.data, values => { drop(values); vec![Default::default(); n] });
    HostTensor { dims, data }
}

pub(crate) fn outputs(
    specs: &[TensorSpec],
    made: &[Output],
    tensors: Vec<HostTensor>,
    rows: usize,
) -> Result<RecordBatch, RunError> {
    let mut fields = Vec::with_capacity(specs.len());
    let mut columns = Vec::with_capacity(specs.len());
    for ((spec, output), tensor) in specs.iter().zip(made).zip(tensors) {
        let name = &spec.name;
        if tensor.dims.first() != Some(&rows) {
            let shape = tensor.dims.as_slice();
            return Err(RunError::BadOutput(format!("output `{name}` has shape {shape:?} for {rows} rows")));
        }
        let width: usize = tensor.dims[1..].iter().product();
        let is_vector = tensor.dims.len() > 1 && (width != 1 || output.classes.is_some());
        let values = array(tensor.data);
        let column: ArrayRef = if is_vector {
            let item = Arc::new(Field::new("item", values.data_type().clone(), false));
            let size = i32::try_from(width).ok().filter(|&size| size > 0);
            let size = size.ok_or_else(|| RunError::BadOutput(format!("output `{name}` has {width} values a row")))?;
            let list = FixedSizeListArray::try_new(item, size, values, None);
            Arc::new(list.map_err(|error| RunError::BadOutput(format!("output `{name}`: {error}")))?)
        } else {
            values
        };
        let mut field = Field::new(name, column.data_type().clone(), false);
        if let Some(classes) = &output.classes {
            field = field.with_metadata(HashMap::from([("classes".to_owned(), classes_json(classes))]));
        }
        fields.push(field);
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .map_err(|error| RunError::BadOutput(error.to_string()))
}

fn classes_json(classes: &Labels) -> String {
    match classes {
        Labels::Ints(labels) => serde_json::json!(labels),
        Labels::Strings(labels) => labels.iter().map(|label| label.to_string()).collect(),
    }
    .to_string()
}

fn array(data: Data) -> ArrayRef {
    match data {
        Data::Fp32(values) => Arc::new(Float32Array::from(values)),
        Data::Fp64(values) => Arc::new(Float64Array::from(values)),
        Data::Int64(values) => Arc::new(Int64Array::from(values)),
        Data::Int32(values) => Arc::new(Int32Array::from(values)),
        Data::Bool(values) => Arc::new(BooleanArray::from(values)),
        Data::Bytes(values) => Arc::new(StringArray::from_iter_values(values.iter())),
    }
}
