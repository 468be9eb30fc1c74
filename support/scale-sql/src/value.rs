//! Parameters of statements.

/// A parameter. Created with `From`; `None` is SQL's null.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// A 64-bit number.
    Number(Option<i64>),
    /// Text.
    Text(Option<String>),
    /// Bytes.
    Bytes(Option<Vec<u8>>),
    /// A list for `{list:n}`, or an array of PostgreSQL.
    Numbers(Vec<i64>),
    /// A list for `{list:n}`, or an array of PostgreSQL.
    Texts(Vec<String>),
    /// An array of PostgreSQL; not supported by other systems.
    Blobs(Vec<Vec<u8>>),
}

macro_rules! from {
    ($($type:ty => $of:expr;)*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                let of: fn($type) -> Value = $of;
                of(value)
            }
        })*
    };
}

from! {
    i64 => |number| Value::Number(Some(number));
    Option<i64> => Value::Number;
    String => |text| Value::Text(Some(text));
    Option<String> => Value::Text;
    Vec<u8> => |bytes| Value::Bytes(Some(bytes));
    Option<Vec<u8>> => Value::Bytes;
    Vec<i64> => Value::Numbers;
    Vec<String> => Value::Texts;
    Vec<Vec<u8>> => Value::Blobs;
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl Value {
    /// Returns the number of parameters of this value where lists are expanded.
    pub(crate) fn places(&self) -> usize {
        match self {
            Self::Numbers(list) => list.len().max(1).next_power_of_two(),
            Self::Texts(list) => list.len().max(1).next_power_of_two(),
            _ => 1,
        }
    }
}
