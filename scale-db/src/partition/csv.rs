//! CSV as written by Postgres' `COPY`: an empty field without quotes is null, a field in quotes is
//! text (otherwise RFC 4180).

/// A field; `None` is null.
pub(super) type Field = Option<Vec<u8>>;

/// Appends a record and its line break.
#[cfg_attr(not(feature = "mysql"), allow(dead_code))]
pub(super) fn push<'a>(text: &mut Vec<u8>, fields: impl IntoIterator<Item = Option<&'a [u8]>>) {
    for (n, field) in fields.into_iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        let Some(field) = field else { continue };
        text.push(b'"');
        for byte in field {
            if *byte == b'"' {
                text.push(b'"');
            }
            text.push(*byte);
        }
        text.push(b'"');
    }
    text.push(b'\n');
}

/// Parses records from chunks of a text.
#[derive(Debug, Default)]
pub(super) struct Reader {
    record: Vec<Field>,
    field: Vec<u8>,
    /// True if the current field has had quotes.
    quoted: bool,
    /// True if the parser is within quotes.
    open: bool,
}

impl Reader {
    /// Parses one chunk, and calls `each` for each record that ends in it.
    pub(super) fn read<E>(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(Vec<Field>) -> Result<(), E>,
    ) -> Result<(), E> {
        for byte in piece {
            match byte {
                // The second of two quotes opens the field again, and stands for one quote.
                b'"' => {
                    if !self.open && self.quoted {
                        self.field.push(b'"');
                    }
                    self.open = !self.open;
                    self.quoted = true;
                }
                b',' if !self.open => self.end_field(),
                b'\n' if !self.open => {
                    self.end_field();
                    each(std::mem::take(&mut self.record))?;
                }
                other => self.field.push(*other),
            }
        }
        Ok(())
    }

    /// Returns the number of bytes of the unfinished record.
    pub(super) fn length(&self) -> usize {
        self.field.len() + self.record.iter().flatten().map(Vec::len).sum::<usize>()
    }

    /// Returns whether the text ended with a record.
    pub(super) fn is_at_end(&self) -> bool {
        self.record.is_empty() && self.field.is_empty() && !self.quoted
    }

    fn end_field(&mut self) {
        let field = std::mem::take(&mut self.field);
        let quoted = std::mem::take(&mut self.quoted);
        self.record.push((quoted || !field.is_empty()).then_some(field));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(text: &[u8], piece: usize) -> Vec<Vec<Field>> {
        let (mut reader, mut found) = (Reader::default(), Vec::new());
        for piece in text.chunks(piece.max(1)) {
            reader.read::<()>(piece, |record| (found.push(record), Ok(())).1).unwrap();
        }
        assert!(reader.is_at_end());
        found
    }

    #[test]
    fn null_and_empty_are_told_apart() {
        let text = |s: &str| Some(s.as_bytes().to_vec());
        assert_eq!(
            records(b"a,,\"\"\n\n\"x\"\"\ny\",b\n", 3),
            [vec![text("a"), None, text("")], vec![None], vec![text("x\"\ny"), text("b")],]
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            written: Vec<(Option<Vec<u8>>, Option<String>)>,
            piece in 1_usize..9,
        ) {
            let mut text = Vec::new();
            let rows: Vec<Vec<Field>> = written.into_iter()
                .map(|(a, b)| vec![a, b.map(String::into_bytes)])
                .collect();
            for row in &rows {
                push(&mut text, row.iter().map(|field| field.as_deref()));
            }
            prop_assert_eq!(records(&text, piece), rows);
        }
    }
}
