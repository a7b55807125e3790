//! The rows and the keys: the same for every system, the same on every machine.
//!
//! Always true:
//! - every value is a function of (column, entity) alone, so an answer can be checked without keeping the table
//! - keys are zipf-like (rank = floor(N^u) for uniform u: the most asked entity gets ln 2 / ln N of the requests),
//!   spread over the id space by a multiplication, as a seed says
//! - no state: a counter through splitmix64's output step, so another language can make the same bytes

use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

/// Float32 features of a row in the ingest and read sections.
pub const FEATURES: usize = 27;
pub const JOIN_KEY: &str = "user_id";
const EVENT_TIMESTAMP: &str = cairn_client::command::EVENT_TIMESTAMP;

const SEED: u64 = 20_261_121;
const KEY_STREAM: u64 = 10_000;

/// splitmix64's output step.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn hash(stream: u64, counter: u64) -> u64 {
    mix(mix(SEED.wrapping_add(stream)) ^ counter)
}

/// Columns of a feature view, and where their values lie.
#[derive(Debug, Clone)]
pub struct Columns {
    /// Name, lowest and highest value.
    features: Vec<(String, f32, f32)>,
}

impl Columns {
    /// `count` features `f00`, `f01`, … between 0 and 1.
    pub fn plain(count: usize) -> Self {
        Self { features: (0..count).map(|column| (format!("f{column:02}"), 0.0, 1.0)).collect() }
    }

    /// Features with names and ranges of their own.
    pub fn ranged(features: &[(&str, f32, f32)]) -> Self {
        Self { features: features.iter().map(|(name, low, high)| ((*name).to_owned(), *low, *high)).collect() }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.features.iter().map(|(name, ..)| name.as_str())
    }

    /// The value of one feature of one entity: 24 random bits between the column's lowest and highest.
    pub fn value(&self, column: usize, entity: i64) -> f32 {
        let (low, high) = self.features.get(column).map_or((0.0, 1.0), |(_, low, high)| (*low, *high));
        let share = (hash(100 + column as u64, entity.cast_unsigned()) >> 40) as f32 / 16_777_216.0;
        low + (high - low) * share
    }

    /// All values of one entity, in the order of the columns.
    pub fn row(&self, entity: i64) -> impl Iterator<Item = f32> {
        (0..self.features.len()).map(move |column| self.value(column, entity))
    }

    /// Rows as `DoPut` takes them: the key, the event time (a microsecond later each row), the features.
    ///
    /// # Errors
    /// `Internal`: a bug here.
    pub fn batch(&self, entities: &[i64], event_us: i64) -> crate::Result<RecordBatch> {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let mut fields = vec![Field::new(JOIN_KEY, DataType::Int64, false), Field::new(EVENT_TIMESTAMP, utc, false)];
        fields.extend(self.names().map(|name| Field::new(name, DataType::Float32, false)));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(entities.iter().copied())),
            event_times(entities.len(), event_us),
        ];
        for column in 0..self.features.len() {
            let values = entities.iter().map(|entity| self.value(column, *entity));
            columns.push(Arc::new(Float32Array::from_iter_values(values)));
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

fn event_times(rows: usize, event_us: i64) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values((event_us..).take(rows)).with_timezone("UTC"))
}

/// The same rows at other event times. Keys and features are shared, not copied.
///
/// # Errors
/// `Internal`: a bug here.
pub fn at_time(rows: &RecordBatch, event_us: i64) -> crate::Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    let at = rows.schema_ref().index_of(EVENT_TIMESTAMP)?;
    columns[at] = event_times(rows.num_rows(), event_us);
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

/// Entity rows as a reader sends them.
///
/// # Errors
/// `Internal`: a bug here.
pub fn question(entities: &[i64]) -> crate::Result<RecordBatch> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new(JOIN_KEY, DataType::Int64, false)]));
    Ok(RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(entities.to_vec()))])?)
}

/// `count` lists of `size` zipf-like entity ids below `entities`; another `seed`, other lists.
pub fn key_lists(entities: u64, size: usize, count: usize, seed: u64) -> Vec<Vec<i64>> {
    let id = |counter: usize| {
        let uniform = (hash(KEY_STREAM + seed, counter as u64) >> 11) as f64 / (1_u64 << 53) as f64;
        let rank = (entities as f64).powf(uniform) as u64 - 1;
        // The multiplier is a prime above every N, so ids stay distinct; neighbours in rank lie far apart.
        (rank.wrapping_mul(2_654_435_761) % entities.max(1)).cast_signed()
    };
    (0..count).map(|list| (list * size..(list + 1) * size).map(id).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float32Type, TimestampMicrosecondType};
    use std::collections::BTreeMap;

    #[test]
    fn values_are_those_of_any_other_machine() {
        // The first output of splitmix64 from state 0, as published.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        let columns = Columns::plain(2);
        assert_eq!(columns.value(1, 7).to_bits(), columns.row(7).nth(1).unwrap().to_bits());
        assert_ne!(columns.value(0, 7).to_bits(), columns.value(1, 7).to_bits());
        assert_ne!(columns.value(0, 7).to_bits(), columns.value(0, 8).to_bits());
    }

    #[test]
    fn values_stay_in_their_range_and_fill_it() {
        let columns = Columns::ranged(&[("temp", 10.0, 100.0)]);
        let values: Vec<f32> = (0..10_000).map(|entity| columns.value(0, entity)).collect();
        assert!(values.iter().all(|value| (10.0..=100.0).contains(value)));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!((50.0..60.0).contains(&mean), "{mean}");
    }

    #[test]
    fn keys_are_in_range_skewed_and_seeded() {
        let lists = key_lists(200_000, 10, 10_000, 3);
        assert!(lists.iter().all(|list| list.len() == 10));
        let mut asked = BTreeMap::<i64, usize>::new();
        for id in lists.iter().flatten() {
            assert!((0..200_000).contains(id));
            *asked.entry(*id).or_default() += 1;
        }
        // ln 2 / ln 200,000 = 5.7 % of the requests go to the first entity; most entities are asked once or never.
        let most = asked.values().max().copied().unwrap_or_default();
        assert!((4_500..7_000).contains(&most), "{most}");
        assert!(asked.len() > 10_000, "{}", asked.len());
        assert_eq!(key_lists(200_000, 10, 3, 3), lists[..3]);
        assert_ne!(key_lists(200_000, 10, 3, 4), lists[..3]);
    }

    #[test]
    fn a_batch_moves_in_time_and_keeps_its_values() {
        let columns = Columns::plain(FEATURES);
        let rows = columns.batch(&[5, 9], 1_000).unwrap();
        let later = at_time(&rows, 2_000).unwrap();
        assert_eq!(later.num_columns(), 2 + FEATURES);
        assert_eq!(later.column(1).as_primitive::<TimestampMicrosecondType>().values(), &[2_000, 2_001]);
        assert_eq!(later.column(0), rows.column(0));
        assert_eq!(later.column(4).as_primitive::<Float32Type>().value(1), columns.value(2, 9));
    }
}
