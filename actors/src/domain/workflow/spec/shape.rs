//! Reads the fields of a workflow's JSON. `null` is taken for nothing where a field is optional, a
//! list never for an object, and what is expected is said in words of JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

use super::{StepSpec, WorkflowSpec};

/// Reads a `T` from a JSON object, and from nothing else: serde takes a list for a struct.
pub(super) struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_any(Fields(PhantomData))
    }
}

impl<T> Object<T> {
    pub(super) fn value<'de, D>(from: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        Self::deserialize(from).map(|object| object.0)
    }

    pub(super) fn option<'de, D>(from: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        Option::<Self>::deserialize(from).map(|object| object.map(|object| object.0))
    }
}

impl<'de> Deserialize<'de> for WorkflowSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            steps: Vec<Object<StepSpec>>,
            #[serde(default)]
            dependencies: Option<BTreeMap<String, Option<Vec<String>>>>,
        }
        let Fields { steps, dependencies } = Object::value(from)?;
        let dependencies = dependencies.map(|all| {
            all.into_iter().map(|(step, needs)| (step, needs.unwrap_or_default())).collect()
        });
        Ok(Self { steps: steps.into_iter().map(|step| step.0).collect(), dependencies })
    }
}

/// `null` is the same as nothing.
pub(super) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Reads a number of seconds.
pub(super) fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Option::<Seconds>::deserialize(from).map(|secs| secs.map(|secs| secs.0))
}

struct Seconds(f64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_f64<E: Error>(self, secs: f64) -> Result<Seconds, E> {
                Ok(Seconds(secs))
            }

            #[expect(clippy::cast_precision_loss, reason = "so many seconds are refused later")]
            fn visit_u64<E: Error>(self, secs: u64) -> Result<Seconds, E> {
                Ok(Seconds(secs as f64))
            }

            #[expect(clippy::cast_precision_loss, reason = "below zero is refused later")]
            fn visit_i64<E: Error>(self, secs: i64) -> Result<Seconds, E> {
                Ok(Seconds(secs as f64))
            }
        }
        from.deserialize_any(Number)
    }
}

/// Reads a whole number.
pub(super) fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    Option::<Count>::deserialize(from).map(|count| count.map(|count| count.0))
}

struct Count(u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, not below 0")
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<Count, E> {
                // What is too large is refused later, with its bounds.
                Ok(Count(u32::try_from(count).unwrap_or(u32::MAX)))
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<Count, E> {
                let count = u32::try_from(count);
                count
                    .map(Count)
                    .map_err(|_| E::invalid_value(Unexpected::Other("a number below 0"), &self))
            }
        }
        from.deserialize_any(Whole)
    }
}

/// Writes a whole number of seconds as an integer.
#[expect(clippy::ref_option, reason = "serde gives it like this")]
pub(super) fn whole<S: Serializer>(secs: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    /// Up to here every whole number is exact.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    match *secs {
        None => to.serialize_none(),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole, and in the range"
        )]
        Some(secs) if secs.fract() == 0.0 && (0.0..EXACT_MAX).contains(&secs) => {
            to.serialize_u64(secs as u64)
        }
        Some(secs) => to.serialize_f64(secs),
    }
}
