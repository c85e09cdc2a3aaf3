//! Cutting text into the pieces that merges never cross, as the tokenizers of GPT-2 and SmolLM do.
//!
//! Promises the same pieces as `tokenizers`' `ByteLevel` (and `Digits` before it, for SmolLM).
//! The pattern is GPT-2's: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.

use crate::letters::LETTERS;

/// Which cut the model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    Smollm,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            '\t'..='\r' | ' ' => Class::Space,
            _ => Class::Other,
        };
    }
    let point = c as u32;
    let run = LETTERS.partition_point(|(_, last)| *last < point);
    if run < LETTERS.len() && LETTERS[run].0 <= point {
        Class::Letter
    } else if c.is_numeric() {
        Class::Number
    } else if c.is_whitespace() {
        Class::Space
    } else {
        Class::Other
    }
}

/// Call `each` with every piece of `text`, in order; together they are the text.
pub fn pieces(text: &str, cut: Cut, mut each: impl FnMut(&str)) {
    if cut == Cut::Gpt2 {
        return gpt2(text, &mut each);
    }
    let mut start = 0;
    for (at, c) in text.char_indices() {
        if class(c) == Class::Number {
            let end = at + c.len_utf8();
            gpt2(&text[start..at], &mut each);
            each(&text[at..end]);
            start = end;
        }
    }
    gpt2(&text[start..], &mut each);
}

fn gpt2(text: &str, each: &mut impl FnMut(&str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(next(rest));
        each(piece);
        rest = left;
    }
}

/// The length in bytes of the first piece of a text that is not empty.
fn next(text: &str) -> usize {
    for contraction in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"] {
        if text.starts_with(contraction) {
            return contraction.len();
        }
    }
    let body = text.strip_prefix(' ').unwrap_or(text);
    let kind = body.chars().next().map_or(Class::Space, class);
    if kind != Class::Space {
        let run = body.find(|c| class(c) != kind).unwrap_or(body.len());
        return text.len() - body.len() + run;
    }
    let Some(end) = text.find(|c| class(c) != Class::Space) else {
        return text.len();
    };
    // A space before something else belongs to what follows, unless it stands alone.
    match text[..end].char_indices().next_back() {
        Some((last, _)) if last > 0 => last,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, how: Cut) -> Vec<String> {
        let mut all = Vec::new();
        pieces(text, how, |piece| all.push(piece.to_string()));
        all
    }

    #[test]
    fn text_is_cut_as_gpt2_cuts_it() {
        let text = "I've  got 42\u{a0}apples,\n\n  don't!  ";
        let expected = ["I", "'ve", " ", " got", " 42", "\u{a0}", "apples", ",", "\n\n ", " don", "'t", "!", "  "];
        assert_eq!(cut(text, Cut::Gpt2), expected);
        assert_eq!(cut("a  12 b", Cut::Smollm), ["a", "  ", "1", "2", " b"]);
        assert_eq!(cut("a  12 b", Cut::Gpt2), ["a", " ", " 12", " b"]);
    }
}
