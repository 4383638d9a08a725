//! Python literals, as far as `.npy` headers use them: strings, integers, booleans, tuples, lists, dicts.
//!
//! NumPy reads headers with `ast.literal_eval`; this reads the same texts without Python. Nesting is bounded.

use super::FormatError;

/// Deepest nesting of tuples, lists and dicts that is read.
const MAX_DEPTH: usize = 64;

/// One Python literal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Literal {
    Str(String),
    Int(u64),
    Bool(bool),
    Tuple(Vec<Literal>),
    List(Vec<Literal>),
    Dict(Vec<(Literal, Literal)>),
}

/// Reads one literal that fills all of `text`, but for white space around it.
pub(super) fn parse(text: &str) -> Result<Literal, FormatError> {
    let mut parser = Parser { rest: text };
    let literal = parser.literal(0)?;
    parser.skip_space();
    if parser.rest.is_empty() { Ok(literal) } else { Err(parser.unexpected("the end")) }
}

/// The text that Python's `repr` gives for a string.
pub(super) fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() && u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn unexpected(&self, expected: &str) -> FormatError {
        let found: String = self.rest.chars().take(20).collect();
        FormatError::NpyHeader { what: format!("expected {expected} at {found:?}") }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn literal(&mut self, depth: usize) -> Result<Literal, FormatError> {
        if depth > MAX_DEPTH {
            return Err(FormatError::NpyHeader { what: format!("nested deeper than {MAX_DEPTH}") });
        }
        let inner = depth.saturating_add(1);
        self.skip_space();
        if self.eat("(") {
            return self.parenthesised(inner);
        }
        if self.eat("[") {
            return Ok(Literal::List(self.items("]", inner)?.0));
        }
        if self.eat("{") {
            return self.dict(inner);
        }
        if self.eat("True") {
            return Ok(Literal::Bool(true));
        }
        if self.eat("False") {
            return Ok(Literal::Bool(false));
        }
        let digits = self.rest.trim_start_matches(|c: char| c.is_ascii_digit());
        if digits.len() < self.rest.len() {
            return self.integer(digits.len());
        }
        // A `u` before the quote is how Python 2 wrote Unicode field names.
        let rest = self.rest.strip_prefix('u').unwrap_or(self.rest);
        if rest.starts_with(['\'', '"']) {
            self.rest = rest;
            return self.string();
        }
        Err(self.unexpected("a Python literal"))
    }

    fn integer(&mut self, len_after: usize) -> Result<Literal, FormatError> {
        let (digits, rest) = self.rest.split_at(self.rest.len().saturating_sub(len_after));
        let value = digits.parse().map_err(|_| self.unexpected("an integer below 2**64"))?;
        // Python 2 wrote long integers with a trailing L.
        self.rest = rest.strip_prefix('L').unwrap_or(rest);
        Ok(Literal::Int(value))
    }

    fn parenthesised(&mut self, depth: usize) -> Result<Literal, FormatError> {
        let (mut items, comma) = self.items(")", depth)?;
        // `(x)` is x itself; `(x,)` is a tuple.
        match items.pop() {
            Some(only) if items.is_empty() && !comma => Ok(only),
            Some(last) => {
                items.push(last);
                Ok(Literal::Tuple(items))
            }
            None => Ok(Literal::Tuple(items)),
        }
    }

    /// The items up to `end`, and whether a comma stood after the last one.
    fn items(&mut self, end: &str, depth: usize) -> Result<(Vec<Literal>, bool), FormatError> {
        let mut items = Vec::new();
        let mut comma = false;
        loop {
            if self.eat(end) {
                return Ok((items, comma));
            }
            if !items.is_empty() && !comma {
                return Err(self.unexpected("a comma"));
            }
            items.push(self.literal(depth)?);
            comma = self.eat(",");
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Literal, FormatError> {
        let mut entries = Vec::new();
        let mut comma = true;
        loop {
            if self.eat("}") {
                return Ok(Literal::Dict(entries));
            }
            if !comma {
                return Err(self.unexpected("a comma"));
            }
            let key = self.literal(depth)?;
            if !self.eat(":") {
                return Err(self.unexpected("a colon"));
            }
            entries.push((key, self.literal(depth)?));
            comma = self.eat(",");
        }
    }

    fn string(&mut self) -> Result<Literal, FormatError> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map(|(_, c)| c);
        let mut out = String::new();
        while let Some((at, c)) = chars.next() {
            if Some(c) == quote {
                self.rest = self.rest.get(at.saturating_add(1)..).unwrap_or("");
                return Ok(Literal::Str(out));
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let escaped = chars.next().map(|(_, c)| c);
            let code_len = match escaped {
                Some('n') => {
                    out.push('\n');
                    continue;
                }
                Some('r') => {
                    out.push('\r');
                    continue;
                }
                Some('t') => {
                    out.push('\t');
                    continue;
                }
                Some(c @ ('\\' | '\'' | '"')) => {
                    out.push(c);
                    continue;
                }
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                _ => return Err(self.unexpected("a known escape in")),
            };
            let code: String = chars.by_ref().take(code_len).map(|(_, c)| c).collect();
            let decoded = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
            out.push(decoded.ok_or_else(|| self.unexpected("a valid character code in"))?);
        }
        Err(self.unexpected("a closing quote of"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_numpy_writes() {
        let Literal::Dict(entries) =
            parse("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2L), }  \n").unwrap()
        else {
            panic!("not a dict")
        };
        assert_eq!(entries[1], (Literal::Str("fortran_order".into()), Literal::Bool(false)));
        assert_eq!(entries[2].1, Literal::Tuple(vec![Literal::Int(3), Literal::Int(2)]));
    }

    #[test]
    fn one_item_in_parentheses_is_a_tuple_only_with_a_comma() {
        assert_eq!(parse("(3,)").unwrap(), Literal::Tuple(vec![Literal::Int(3)]));
        assert_eq!(parse("(3)").unwrap(), Literal::Int(3));
        assert_eq!(parse("()").unwrap(), Literal::Tuple(vec![]));
    }

    #[test]
    fn strings_survive_repr() {
        for text in
            ["", "a", "it's", "\"both\" '", "back\\slash", "tab\tnew\nline", "\u{e9}\u{6570}", "\u{7f}\0"]
        {
            assert_eq!(parse(&repr(text)).unwrap(), Literal::Str(text.into()), "{text:?}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_literal() {
        for text in
            ["", "{", "(1 2)", "'open", "{'a' 1}", "1 2", "99999999999999999999", "'\\q'", "'\\ud800'", "f()"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&"(".repeat(100_000)).is_err());
    }
}
