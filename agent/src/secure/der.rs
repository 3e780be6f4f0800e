//! Whether bytes are DER (X.690 §10 and §11), whatever they mean.
//!
//! Parsers forgive different things, and where one forgives what another does not, two readers can see two certificates.

/// Deeper than any certificate nests.
const DEEPEST: usize = 16;
/// In bytes, as some parsers have room for.
const LONGEST_IDENTIFIER: usize = 39;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const IA5_STRING: u8 = 0x16;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// The universal types that certificates are made of; the others are strings and times of these kinds.
const KNOWN: [u8; 17] = [
    BOOLEAN,
    INTEGER,
    BIT_STRING,
    OCTET_STRING,
    NULL,
    OBJECT_IDENTIFIER,
    0x0a,
    UTF8_STRING,
    0x13,
    0x14,
    IA5_STRING,
    0x17,
    0x18,
    0x1a,
    0x1e,
    SEQUENCE,
    SET,
];
const CLASS: u8 = 0xc0;
const CONSTRUCTED: u8 = 0x20;
const NUMBER: u8 = 0x1f;

/// Whether this is one value in DER with nothing behind it. Context-specific values that are not constructed are not
/// looked into: what they are depends on where they stand.
pub(super) fn is_der(bytes: &[u8]) -> bool {
    Value::read(bytes).is_some_and(|(value, rest)| rest.is_empty() && value.is_strict(0))
}

/// A value where it stands.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// Header and content.
    whole: &'a [u8],
}

impl<'a> Value<'a> {
    /// The value at the front, and what follows it.
    pub(super) fn read(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&tag, after) = bytes.split_first()?;
        // Nothing in a certificate has a tag of two bytes.
        if tag & NUMBER == NUMBER {
            return None;
        }
        let (length, after) = match *after {
            [length @ 0..=0x7f, ref after @ ..] => (usize::from(length), after),
            [0x81, length @ 0x80..=0xff, ref after @ ..] => (usize::from(length), after),
            [0x82, high @ 1..=0xff, low, ref after @ ..] => (usize::from(u16::from_be_bytes([high, low])), after),
            _ => return None,
        };
        let (content, rest) = after.split_at_checked(length)?;
        let whole = bytes.get(..bytes.len() - rest.len())?;
        Some((Self { tag, content, whole }, rest))
    }

    /// What is in it, if it has this tag.
    pub(super) fn parts(&self, tag: u8) -> Option<Vec<Self>> {
        let (mut rest, mut parts) = (self.content, Vec::new());
        while !rest.is_empty() {
            let (part, after) = Value::read(rest)?;
            parts.push(part);
            rest = after;
        }
        (self.tag == tag).then_some(parts)
    }

    fn is_strict(&self, depth: usize) -> bool {
        let Self { tag, content, .. } = *self;
        let constructed = tag & CONSTRUCTED != 0;
        if tag & CLASS == 0 && !KNOWN.contains(&tag) {
            return false;
        }
        match tag {
            BOOLEAN => matches!(content, [0x00 | 0xff]),
            INTEGER => is_shortest_integer(content),
            BIT_STRING => is_bit_string(content),
            NULL => content.is_empty(),
            OBJECT_IDENTIFIER => is_object_identifier(content),
            UTF8_STRING => std::str::from_utf8(content).is_ok(),
            IA5_STRING => content.is_ascii(),
            _ => !constructed || (depth < DEEPEST && self.has_strict_parts(depth + 1)),
        }
    }

    fn has_strict_parts(&self, depth: usize) -> bool {
        let mut rest = self.content;
        let mut last: &[u8] = &[];
        while !rest.is_empty() {
            let Some((part, after)) = Value::read(rest) else { return false };
            // The elements of a SET have an order.
            if !part.is_strict(depth) || (self.tag == SET && part.whole < last) {
                return false;
            }
            (last, rest) = (part.whole, after);
        }
        true
    }
}

fn is_shortest_integer(content: &[u8]) -> bool {
    !matches!(content, [] | [0x00, 0..=0x7f, ..] | [0xff, 0x80..=0xff, ..])
}

/// Unused bits are said truly, and are zero.
fn is_bit_string(content: &[u8]) -> bool {
    match content {
        [0, ..] => true,
        [unused @ 1..=7, .., last] => last.trailing_zeros() >= u32::from(*unused),
        _ => false,
    }
}

/// It ends where an arc ends, and no arc begins with a zero digit. Nobody needs arcs of more than 32 bits, or first ones
/// beyond 2.39, and not every parser reads them.
pub(super) fn is_object_identifier(content: &[u8]) -> bool {
    let [0..120, arcs @ ..] = content else { return false };
    let mut arc: Option<u32> = None;
    for byte in arcs {
        let digit = u32::from(byte & 0x7f);
        let longer = match arc {
            None if *byte == 0x80 => return false,
            None => digit,
            Some(arc) if arc >> 25 == 0 => arc << 7 | digit,
            Some(_) => return false,
        };
        arc = (byte & 0x80 != 0).then_some(longer);
    }
    arc.is_none() && content.len() <= LONGEST_IDENTIFIER
}

#[cfg(test)]
mod tests {
    use super::is_der;

    #[test]
    fn there_is_one_way_to_write_a_value() {
        let good: [&[u8]; 12] = [
            &[0x30, 0],
            &[0x05, 0],
            &[0x01, 1, 0xff],
            &[0x02, 1, 0],
            &[0x02, 2, 0, 0x80],
            &[0x03, 1, 0],
            &[0x03, 2, 7, 0x80],
            &[0x06, 3, 0x55, 0x1d, 0x11],
            &[0x06, 3, 0x2a, 0x86, 0x48],
            &[0x31, 6, 0x02, 1, 1, 0x02, 1, 2],
            &[0xa3, 2, 0x30, 0],
            &[0x86, 1, 0xff],
        ];
        for bytes in good {
            assert!(is_der(bytes), "{bytes:x?}");
        }
        let long = |header: &[u8], length| [header, &vec![0; length]].concat();
        assert!(is_der(&long(&[0x04, 0x81, 0x80], 0x80)) && is_der(&long(&[0x04, 0x82, 1, 0], 0x100)));
        let bad: [&[u8]; 20] = [
            &[],
            &[0x30],
            &[0x30, 1],
            &[0x30, 0, 0],
            &[0x30, 0x81, 0],
            &[0x30, 0x80, 0, 0],
            &[0x10, 0],
            &[0x24, 0],
            &[0x1f, 0x20, 0],
            &[0x05, 1, 0],
            &[0x01, 1, 1],
            &[0x02, 0],
            &[0x02, 2, 0, 1],
            &[0x02, 2, 0xff, 0x80],
            &[0x03, 0],
            &[0x03, 1, 1],
            &[0x03, 2, 1, 1],
            &[0x06, 2, 0x55, 0x80],
            &[0x31, 6, 0x02, 1, 2, 0x02, 1, 1],
            &[0x16, 1, 0xff],
        ];
        for bytes in bad {
            assert!(!is_der(bytes), "{bytes:x?}");
        }
        assert!(!is_der(&long(&[0x04, 0x82, 0, 0xff], 0xff)) && !is_der(&long(&[0x04, 0x83, 0, 1, 0], 0x100)));
        let deep = (0..20).fold(vec![0x05, 0], |inner, _| [&[0x30, inner.len() as u8], inner.as_slice()].concat());
        assert!(!is_der(&deep));
        assert!(!is_der(&[0x06, 3, 0x2a, 0x80, 0x01]) && !is_der(&[0x06, 1, 120]));
        assert!(is_der(&[0x06, 6, 0x2a, 0x8f, 0xff, 0xff, 0xff, 0x7f]));
        assert!(!is_der(&[0x06, 6, 0x2a, 0x90, 0x80, 0x80, 0x80, 0x00]));
    }
}
