//! Which number of a model's answer is its score, decided before any row is scored.

use crate::error::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};
use cairn_proto::ErrorKind;

/// How far from 1 two probabilities may sum up.
const SUM_TOLERANCE: f64 = 1e-3;
/// Labels of two classes whose second one is the positive one.
const NO_AND_YES: [[&str; 2]; 5] = [["0", "1"], ["-1", "1"], ["false", "true"], ["False", "True"], ["no", "yes"]];

/// Where a score is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub output: String,
    /// Label or number of the class whose value it is; empty = the output is one number.
    pub class: String,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The output is a number.
    Number,
    /// One of the values of a row.
    Item(usize),
    /// The second of two, which must be probabilities: nothing else says what they are.
    SecondOfTwo,
}

/// Finds the score of `model` (`name@version`, for messages) in what it answers with: a regressor's number, or a
/// classifier's value for the positive one of two classes.
///
/// - `output`, `class`: what the caller chose; what is not chosen must follow from the answer alone
///
/// # Errors
/// `NotFound` for an output or class that is not there; `InvalidArgument` when the choice is open, with what there is.
pub fn choose(model: &str, answer: &Schema, output: Option<&str>, class: Option<&str>) -> Result<Choice> {
    let field = match output {
        Some(name) => answer.field_with_name(name).map_err(|_| {
            Error::not_found(format!("model `{model}` has no output `{name}`; it has {}", listed(answer.fields())))
        })?,
        None => the_only_one(model, answer)?,
    };
    let name = field.name();
    let (item, width) = match field.data_type() {
        DataType::FixedSizeList(item, width) => (item.data_type(), Some(usize::try_from(*width).unwrap_or(0))),
        number => (number, None),
    };
    if !item.is_numeric() && *item != DataType::Boolean {
        return Err(Error::invalid(format!("output `{name}` of model `{model}` is {item}; a score is a number")));
    }
    let chosen = |place, class: String| Choice { output: name.clone(), class, place };
    let Some(width) = width else {
        return match class {
            None => Ok(chosen(Place::Number, String::new())),
            Some(class) => Err(Error::not_found(format!(
                "output `{name}` of model `{model}` is one number a row, so it has no class `{class}`"
            ))),
        };
    };
    let labels = classes(field);
    let there = match &labels {
        Some(labels) => format!("its classes are `{}`", labels.join("`, `")),
        None => format!("its values are numbered 0 to {}", width.saturating_sub(1)),
    };
    if let Some(class) = class {
        let at = match &labels {
            Some(labels) => labels.iter().position(|label| label == class),
            None => class.parse().ok().filter(|at| *at < width),
        };
        let missing =
            || Error::not_found(format!("output `{name}` of model `{model}` has no class `{class}`; {there}"));
        return Ok(chosen(Place::Item(at.ok_or_else(missing)?), class.to_owned()));
    }
    let positive = labels.as_ref().and_then(|labels| labels.get(1)).cloned();
    match (width, &labels) {
        (1, _) => Ok(chosen(Place::Item(0), labels.and_then(|labels| labels.first().cloned()).unwrap_or_default())),
        (2, None) => Ok(chosen(Place::SecondOfTwo, "1".to_owned())),
        (2, Some(labels)) if NO_AND_YES.iter().any(|known| known[..] == labels[..]) => {
            Ok(chosen(Place::Item(1), positive.unwrap_or_default()))
        }
        _ => Err(Error::invalid(format!(
            "output `{name}` of model `{model}` has {width} values a row, and {there}: say which class is the score \
             (`--score {name}[CLASS]`)"
        ))),
    }
}

/// The one output, or the one with floating point numbers where others hold labels.
fn the_only_one<'s>(model: &str, answer: &'s Schema) -> Result<&'s Field> {
    let fields: Vec<&Field> = answer.fields().iter().map(AsRef::as_ref).collect();
    if let [only] = fields[..] {
        return Ok(only);
    }
    let is_float = |field: &&Field| match field.data_type() {
        DataType::FixedSizeList(item, _) => item.data_type().is_floating(),
        number => number.is_floating(),
    };
    let floats: Vec<&Field> = fields.iter().copied().filter(is_float).collect();
    match floats[..] {
        [only] => Ok(only),
        _ => Err(Error::invalid(format!(
            "model `{model}` has {} outputs, and it is open which of them is its score: {}; say which (`--score OUTPUT`)",
            fields.len(),
            listed(answer.fields())
        ))),
    }
}

fn listed(fields: &arrow_schema::Fields) -> String {
    fields.iter().map(|field| format!("`{}`", field.name())).collect::<Vec<_>>().join(", ")
}

/// The labels that an output names its values by.
fn classes(field: &Field) -> Option<Vec<String>> {
    let labels: Vec<serde_json::Value> = serde_json::from_str(field.metadata().get("classes")?).ok()?;
    let text = |label: &serde_json::Value| label.as_str().map_or_else(|| label.to_string(), str::to_owned);
    Some(labels.iter().map(text).collect())
}

impl Choice {
    /// The scores of an answer, one a row; not finite where the model gave no finite number.
    ///
    /// # Errors
    /// `InvalidArgument` when two values a row were taken for probabilities and are none.
    pub fn take(&self, model: &str, answer: &RecordBatch) -> Result<Vec<f64>> {
        let name = &self.output;
        let gone = || Error::internal(format!("model `{model}` answered without its output `{name}`"));
        let column = answer.column_by_name(name).ok_or_else(gone)?;
        let floats = |values: &ArrayRef| -> Result<Vec<f64>> {
            let values = cast(values, &DataType::Float64).map_err(|error| Error::internal(error.to_string()))?;
            let values = values.as_primitive::<Float64Type>();
            Ok(values.iter().map(|value| value.unwrap_or(f64::NAN)).collect())
        };
        let (item, two) = match self.place {
            Place::Number => return floats(column),
            Place::Item(item) => (item, false),
            Place::SecondOfTwo => (1, true),
        };
        let list = column.as_fixed_size_list_opt().ok_or_else(gone)?;
        let width = usize::try_from(list.value_length()).unwrap_or(1).max(1);
        let values = floats(list.values())?;
        let mut scores = Vec::with_capacity(list.len());
        for row in values.chunks_exact(width) {
            if two && row.iter().all(|value| value.is_finite()) {
                let is_share = |value: &f64| (-SUM_TOLERANCE..=1.0 + SUM_TOLERANCE).contains(value);
                if !row.iter().all(is_share) || (row.iter().sum::<f64>() - 1.0).abs() > SUM_TOLERANCE {
                    return Err(Error::new(
                        ErrorKind::InvalidArgument,
                        format!(
                            "output `{name}` of model `{model}` has two values a row that are no probabilities of two \
                             classes; say which of them is the score (`--score {name}[0]` or `--score {name}[1]`)"
                        ),
                    ));
                }
            }
            scores.push(row.get(item).copied().unwrap_or(f64::NAN));
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{FixedSizeListArray, Float32Array, Int64Array, StringArray};
    use expect_test::{Expect, expect};
    use std::sync::Arc;

    fn list(width: i32, classes: Option<&str>) -> Field {
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let field = Field::new("p", DataType::FixedSizeList(item, width), false);
        match classes {
            Some(classes) => field.with_metadata([("classes".to_owned(), classes.to_owned())].into()),
            None => field,
        }
    }

    fn said(fields: Vec<Field>, output: Option<&str>, class: Option<&str>) -> String {
        match choose("m@1", &Schema::new(fields), output, class) {
            Ok(choice) => format!("{} [{}] {:?}", choice.output, choice.class, choice.place),
            Err(error) => format!("{}: {error}", error.kind),
        }
    }

    #[test]
    fn what_follows_from_the_answer_is_taken() {
        let number = |name: &str, kind| Field::new(name, kind, false);
        let label = || number("label", DataType::Int64);
        assert_eq!(said(vec![number("y", DataType::Float32)], None, None), "y [] Number");
        assert_eq!(said(vec![label()], None, None), "label [] Number");
        assert_eq!(said(vec![label(), number("y", DataType::Float64)], None, None), "y [] Number");
        assert_eq!(said(vec![label(), list(2, None)], None, None), "p [1] SecondOfTwo");
        assert_eq!(said(vec![list(1, None)], None, None), "p [] Item(0)");
        assert_eq!(said(vec![list(2, Some("[0,1]"))], None, None), "p [1] Item(1)");
        assert_eq!(said(vec![list(2, Some(r#"["no","yes"]"#))], None, None), "p [yes] Item(1)");
        assert_eq!(said(vec![label(), list(3, None)], None, Some("2")), "p [2] Item(2)");
        assert_eq!(said(vec![list(3, Some(r#"["a","b","c"]"#))], None, Some("a")), "p [a] Item(0)");
        assert_eq!(said(vec![number("y", DataType::Float64), list(2, None)], Some("y"), None), "y [] Number");
    }

    #[test]
    fn what_is_open_is_refused_with_what_there_is() {
        let check =
            |fields: Vec<Field>, output, class, expected: Expect| expected.assert_eq(&said(fields, output, class));
        let number = |name: &str| Field::new(name, DataType::Float32, false);
        check(
            vec![number("a"), number("b")],
            None,
            None,
            expect![
                "invalid_argument: model `m@1` has 2 outputs, and it is open which of them is its score: `a`, `b`; say which (`--score OUTPUT`)"
            ],
        );
        check(vec![number("a")], Some("b"), None, expect!["not_found: model `m@1` has no output `b`; it has `a`"]);
        check(
            vec![number("a")],
            None,
            Some("1"),
            expect!["not_found: output `a` of model `m@1` is one number a row, so it has no class `1`"],
        );
        check(
            vec![list(3, None)],
            None,
            None,
            expect![
                "invalid_argument: output `p` of model `m@1` has 3 values a row, and its values are numbered 0 to 2: say which class is the score (`--score p[CLASS]`)"
            ],
        );
        check(
            vec![list(2, Some(r#"["late","on_time"]"#))],
            None,
            None,
            expect![
                "invalid_argument: output `p` of model `m@1` has 2 values a row, and its classes are `late`, `on_time`: say which class is the score (`--score p[CLASS]`)"
            ],
        );
        check(
            vec![list(3, None)],
            None,
            Some("3"),
            expect!["not_found: output `p` of model `m@1` has no class `3`; its values are numbered 0 to 2"],
        );
        check(
            vec![Field::new("t", DataType::Utf8, false)],
            None,
            None,
            expect!["invalid_argument: output `t` of model `m@1` is Utf8; a score is a number"],
        );
    }

    #[test]
    fn scores_are_the_chosen_values_and_two_numbers_are_not_taken_for_probabilities() {
        let of = |values: Vec<f32>| {
            let field = list(2, None);
            let DataType::FixedSizeList(item, width) = field.data_type().clone() else { panic!() };
            let values = FixedSizeListArray::new(item, width, Arc::new(Float32Array::from(values)), None);
            RecordBatch::try_from_iter([
                ("label", Arc::new(Int64Array::from(vec![0; values.len()])) as ArrayRef),
                ("p", Arc::new(values)),
            ])
            .unwrap()
        };
        let rows = of(vec![0.75, 0.25, 0.0, 1.0, f32::NAN, 0.5]);
        let choice = choose("m@1", rows.schema_ref(), None, None).unwrap();
        assert_eq!(choice.take("m@1", &rows).unwrap(), [0.25, 1.0, 0.5]);
        let error = choice.take("m@1", &of(vec![3.0, -2.0])).unwrap_err();
        assert!(error.message.contains("no probabilities of two classes"), "{error}");
        let first = choose("m@1", rows.schema_ref(), None, Some("0")).unwrap();
        assert_eq!(first.take("m@1", &of(vec![3.0, -2.0])).unwrap(), [3.0]);
        let label = choose("m@1", rows.schema_ref(), Some("label"), None).unwrap();
        assert_eq!(label.take("m@1", &rows).unwrap(), [0.0; 3]);
        let text = RecordBatch::try_from_iter([("t", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]).unwrap();
        assert!(label.take("m@1", &text).is_err());
    }
}
