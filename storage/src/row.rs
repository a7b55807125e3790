//! One packed row per feature view: from Arrow columns and into Arrow builders, nothing in between.
//!
//! ```text
//! version u8 = 1 | schema hash u32 | null bitmap | fixed part | variable part
//! ```
//! Little endian. A set bit is a null. The fixed part has one place per feature: the number itself, the numbers of a
//! fixed-length list, or for strings, bytes and lists where their bytes end in the variable part (u32; they start
//! where those before end). A null's place is zero, or the same end again. So any feature is found without reading
//! others, and equal values give equal bytes.
//!
//! What always holds: bytes of another schema, or broken ones, are an error and never a value.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::RowDecoder;
pub use encode::RowEncoder;

use crate::types::{check_type, type_name};
use crate::{Error, Result};
use cairn_proto::record::v1::{Field, ValueKind};
use std::sync::Arc;
use twox_hash::XxHash3_64;

/// Largest packed row.
pub const PACKED_BYTES_MAX: usize = 1 << 20;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// The features of a feature view and where each stands in a packed row. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RowSchema {
    layout: Arc<Layout>,
}

#[derive(Debug)]
struct Layout {
    fields: Vec<Field>,
    places: Vec<Place>,
    header: [u8; HEADER_BYTES],
    bitmap_bytes: usize,
    fixed_bytes: usize,
}

/// Where a feature stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    shape: Shape,
    /// In the fixed part.
    offset: usize,
    /// Where in the fixed part the end of the variable bytes before it stands, for variable features after the first.
    start_at: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Bool,
    Int32,
    Date,
    Int64,
    Timestamp,
    Float32,
    Float64,
    String,
    Bytes,
    List(Number),
    FixedList(Number, usize),
}

/// Numbers that lists hold.
#[derive(Debug, Clone, Copy)]
enum Number {
    Int32,
    Int64,
    Float32,
    Float64,
}

impl Number {
    fn bytes(self) -> usize {
        match self {
            Self::Int32 | Self::Float32 => 4,
            Self::Int64 | Self::Float64 => 8,
        }
    }
}

impl Shape {
    fn of(field: &Field) -> Result<Self> {
        let feature_type = field.r#type.unwrap_or_default();
        let bad = |message| Error::InvalidArgument(format!("feature `{}`: {message}", field.name));
        check_type(&feature_type).map_err(bad)?;
        let kind = feature_type.kind();
        if feature_type.list {
            let number = match kind {
                ValueKind::Int32 => Number::Int32,
                ValueKind::Int64 => Number::Int64,
                ValueKind::Float32 => Number::Float32,
                ValueKind::Float64 => Number::Float64,
                _ => return Err(bad(format!("`{}` is not offered", type_name(&feature_type)))),
            };
            return Ok(match feature_type.length {
                0 => Self::List(number),
                length => Self::FixedList(number, length as usize),
            });
        }
        Ok(match kind {
            ValueKind::Bool => Self::Bool,
            ValueKind::Int32 => Self::Int32,
            ValueKind::Int64 => Self::Int64,
            ValueKind::Float32 => Self::Float32,
            ValueKind::Float64 => Self::Float64,
            ValueKind::String => Self::String,
            ValueKind::Bytes => Self::Bytes,
            ValueKind::Timestamp => Self::Timestamp,
            ValueKind::Date => Self::Date,
            ValueKind::Unspecified => return Err(bad("it has no type".to_owned())),
        })
    }

    fn fixed_bytes(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Int32 | Self::Date | Self::Float32 => 4,
            Self::Int64 | Self::Timestamp | Self::Float64 => 8,
            Self::String | Self::Bytes | Self::List(_) => 4,
            Self::FixedList(number, length) => number.bytes() * length,
        }
    }

    fn is_variable(self) -> bool {
        matches!(self, Self::String | Self::Bytes | Self::List(_))
    }
}

impl RowSchema {
    /// # Errors
    /// `InvalidArgument` naming a feature whose type is not offered; `TooLarge` when the fixed-length lists alone are
    /// over the limit of a row.
    pub fn new(features: &[Field]) -> Result<Self> {
        let mut places = Vec::with_capacity(features.len());
        let mut fixed_bytes = 0;
        let mut start_at = None;
        let mut hashed = Vec::new();
        for field in features {
            let shape = Shape::of(field)?;
            let variable = shape.is_variable();
            places.push(Place { shape, offset: fixed_bytes, start_at: if variable { start_at } else { None } });
            if variable {
                start_at = Some(fixed_bytes);
            }
            fixed_bytes += shape.fixed_bytes();
            hashed.extend_from_slice(field.name.as_bytes());
            hashed.push(0);
            hashed.extend_from_slice(type_name(&field.r#type.unwrap_or_default()).as_bytes());
            hashed.push(0);
        }
        let bitmap_bytes = features.len().div_ceil(8);
        if HEADER_BYTES + bitmap_bytes + fixed_bytes > PACKED_BYTES_MAX {
            return Err(Error::TooLarge(format!(
                "a row of these features takes {fixed_bytes} bytes at least, over the limit of {PACKED_BYTES_MAX}"
            )));
        }
        let mut header = [VERSION, 0, 0, 0, 0];
        header[1..].copy_from_slice(&(XxHash3_64::oneshot(&hashed) as u32).to_le_bytes());
        let layout = Layout { fields: features.to_vec(), places, header, bitmap_bytes, fixed_bytes };
        Ok(Self { layout: Arc::new(layout) })
    }

    /// The features, in row order.
    pub fn fields(&self) -> &[Field] {
        &self.layout.fields
    }

    /// Whether rows take more or less by what they hold.
    pub fn is_variable(&self) -> bool {
        self.layout.places.iter().any(|place| place.shape.is_variable())
    }

    /// Checks that `packed` is whole and of this schema, without reading values.
    ///
    /// # Errors
    /// `Corrupt` saying what does not fit.
    pub fn check(&self, packed: &[u8]) -> Result<()> {
        self.layout.open(packed).map(drop)
    }

    /// Whether the feature of this number is null in `packed`; also when there is no such feature or row.
    pub fn is_null_in(&self, packed: &[u8], feature: usize) -> bool {
        match self.layout.open(packed) {
            Ok(row) if feature < self.layout.fields.len() => row.is_null(feature),
            _ => true,
        }
    }
}

/// A packed row, cut in its parts.
#[derive(Clone, Copy)]
struct Parts<'a> {
    bitmap: &'a [u8],
    fixed: &'a [u8],
    variable: &'a [u8],
}

impl Parts<'_> {
    /// `feature` must be one of the schema.
    fn is_null(&self, feature: usize) -> bool {
        self.bitmap[feature / 8] & (1 << (feature % 8)) != 0
    }
}

impl Layout {
    fn open<'a>(&self, packed: &'a [u8]) -> Result<Parts<'a>> {
        let Some((header, rest)) = packed.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Error::Corrupt(format!("a packed row of {} bytes is cut short", packed.len())));
        };
        if *header != self.header {
            return Err(self.foreign(header));
        }
        let parts = rest.split_at_checked(self.bitmap_bytes).and_then(|(bitmap, rest)| {
            let (fixed, variable) = rest.split_at_checked(self.fixed_bytes)?;
            Some(Parts { bitmap, fixed, variable })
        });
        parts.ok_or_else(|| Error::Corrupt(format!("a packed row of {} bytes is cut short", packed.len())))
    }

    #[cold]
    fn foreign(&self, header: &[u8; HEADER_BYTES]) -> Error {
        if header[0] == VERSION {
            return Error::Corrupt(format!(
                "a packed row has schema hash {:02x?}, not {:02x?}: it is of another feature view",
                &header[1..],
                &self.header[1..]
            ));
        }
        Error::Corrupt(format!("a packed row has version {}; this node reads {VERSION}", header[0]))
    }
}

/// A number as little-endian bytes.
trait LittleEndian: Copy + Default {
    const BYTES: usize;
    /// `bytes` has exactly [`Self::BYTES`].
    fn read(bytes: &[u8]) -> Self;
    fn write(self, bytes: &mut [u8]);
}

macro_rules! little_endian {
    ($($number:ty),*) => {$(
        impl LittleEndian for $number {
            const BYTES: usize = size_of::<$number>();

            fn read(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$number>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }

            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
little_endian!(i32, i64, f32, f64);
