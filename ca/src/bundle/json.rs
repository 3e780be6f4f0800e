//! JSON that every reader reads alike: no object has a name twice, and nothing is deep.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A bundle nests four deep; what is not ours to read may be a little deeper.
const DEEPEST: usize = 8;

/// A value; of numbers only those that a bundle has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Text(String),
    Whole(u64),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
    /// `null`, `true`, `false`, and numbers that are negative, too large or no integers.
    Other,
}

/// Reads one value with nothing behind it.
pub(crate) fn read(bytes: &[u8]) -> Result<Json, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Level(0).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

impl Json {
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(crate) fn whole(&self) -> Option<u64> {
        if let Self::Whole(number) = self { Some(*number) } else { None }
    }

    pub(crate) fn list(&self) -> Option<&[Json]> {
        if let Self::List(values) = self { Some(values) } else { None }
    }

    pub(crate) fn object(&self) -> Option<&BTreeMap<String, Json>> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }
}

/// How many lists and objects a value stands in.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.0 == DEEPEST { Err(E::custom("it nests too deep")) } else { Ok(Self(self.0 + 1)) }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Whole(number))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let (inner, mut values) = (self.inner()?, Vec::new());
        while let Some(value) = list.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json, A::Error> {
        let (inner, mut members) = (self.inner()?, BTreeMap::new());
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value_seed(inner)?;
            // One reader would believe the first, another one the last.
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("`{}` is there twice", name.escape_debug())));
            }
            members.insert(name, value);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn no_name_is_there_twice_at_any_level_however_it_is_written() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"b":2,"a":3}]}"#, r#"{"a":1,"\u0061":2}"#] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("`a` is there twice"), "{error}");
        }
        assert!(read(br#"{"a":{"a":[{"a":1},{"a":2}]}}"#).is_ok(), "these are other objects'");
    }

    #[test]
    fn nothing_is_deep_and_nothing_is_behind_it() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(nested(DEEPEST).as_bytes()).is_ok());
        assert!(read(nested(DEEPEST + 1).as_bytes()).is_err());
        assert!(read(nested(100_000).as_bytes()).is_err());
        assert!(read(b"{} {}").is_err() && read(b"").is_err() && read(b"\xff").is_err() && read(b"{} ").is_ok());
    }

    #[test]
    fn only_whole_numbers_of_64_bits_are_numbers() {
        assert_eq!(read(b"18446744073709551615").unwrap(), Json::Whole(u64::MAX));
        for text in ["18446744073709551616", "-1", "1.0", "1e3", "true", "null"] {
            assert_eq!(read(text.as_bytes()).unwrap(), Json::Other, "{text}");
        }
    }
}
