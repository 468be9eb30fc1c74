//! Digest of a value: independent of the order of map entries, and different for `Some(())` and
//! `None`. The digest reveals whether an encoding changes a value.

use std::fmt::Display;
use std::hash::BuildHasher;

use serde::Serialize;
use serde::ser::{self, Serializer};

/// Returns the digest of a value's serialized form; `None` if serialization fails.
pub(crate) fn digest<V: Serialize + ?Sized>(value: &V) -> Option<u64> {
    let mut digest = Digest(0);
    value.serialize(&mut digest).ok().map(|()| digest.0)
}

struct Digest(u64);

impl Digest {
    /// Addition makes the order irrelevant.
    #[allow(clippy::unnecessary_wraps)]
    fn add(&mut self, kind: &str, bytes: &[u8]) -> Result<(), Refused> {
        let hash = foldhash::quality::FixedState::with_seed(7).hash_one((kind, bytes));
        self.0 = self.0.wrapping_add(hash);
        Ok(())
    }
}

/// Error of a value that cannot be serialized.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl ser::Error for Refused {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

macro_rules! numbers {
    ($($method:ident $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<(), Refused> {
            self.add(stringify!($type), &value.to_le_bytes())
        })*
    };
}

impl Serializer for &mut Digest {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    /// The form that distinguishes more: a UUID differs from a text.
    fn is_human_readable(&self) -> bool {
        false
    }

    numbers!(
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64,
        serialize_i128 i128, serialize_u8 u8, serialize_u16 u16, serialize_u32 u32,
        serialize_u64 u64, serialize_u128 u128, serialize_f32 f32, serialize_f64 f64
    );

    fn serialize_bool(self, value: bool) -> Result<(), Refused> {
        self.add("bool", &[u8::from(value)])
    }

    fn serialize_char(self, value: char) -> Result<(), Refused> {
        self.add("char", value.to_string().as_bytes())
    }

    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.add("str", value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        self.add("bytes", value)
    }

    fn serialize_none(self) -> Result<(), Refused> {
        self.add("none", &[])
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.add("some", &[])?;
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refused> {
        self.add("unit", &[])
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<(), Refused> {
        self.add("unit struct", name.as_bytes())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Refused> {
        self.add("variant", variant.as_bytes())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.add("variant", variant.as_bytes())?;
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Refused> {
        self.add("seq", &[])?;
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Refused> {
        self.add("tuple", &[])?;
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        self.add("tuple", &[])?;
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.add("variant", variant.as_bytes())?;
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Refused> {
        self.add("map", &[])?;
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        self.add("struct", &[])?;
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.add("variant", variant.as_bytes())?;
        Ok(self)
    }
}

macro_rules! sequences {
    ($($trait:ident $method:ident),*) => {
        $(impl ser::$trait for &mut Digest {
            type Ok = ();
            type Error = Refused;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        })*
    };
}

sequences!(
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
);

macro_rules! structs {
    ($($trait:ident),*) => {
        $(impl ser::$trait for &mut Digest {
            type Ok = ();
            type Error = Refused;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self, name: &'static str, value: &T,
            ) -> Result<(), Refused> {
                let mut field = Digest(0);
                value.serialize(&mut field)?;
                self.add(name, &field.0.to_le_bytes())
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        })*
    };
}

structs!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for &mut Digest {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Refused> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn what_differs_is_told_apart_and_order_is_not() {
        assert_ne!(digest(&Some(())), digest(&None::<()>));
        assert_ne!(digest(&Some(None::<u8>)), digest(&None::<Option<u8>>));
        assert_ne!(digest("7"), digest(&7));
        let many = |keys: std::ops::Range<u32>| {
            keys.map(|k| (k, k.to_string())).collect::<HashMap<_, _>>()
        };
        assert_eq!(digest(&many(0..1_000)), digest(&many(0..1_000)));
        assert_ne!(digest(&many(0..1_000)), digest(&many(1..1_001)));
    }
}
