//! Divides text into words before byte-pair encoding.
//!
//! Three expressions are known. GPT-2's:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`; the same after every `\p{N}` was set apart
//! (SmolLM); and Llama 3's: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|`
//! `\s*[\r\n]+|\s+(?!\S)|\s+`. Each is followed by hand: a character is looked at a bounded number of times.

use flexserve_container::PreTokenizer;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::Error;

/// Class of a character, as far as the expressions tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// Everything else.
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        match c.general_category_group() {
            GeneralCategoryGroup::Letter => Self::Letter,
            GeneralCategoryGroup::Number => Self::Number,
            _ if c.is_whitespace() => Self::Space,
            _ => Self::Other,
        }
    }
}

/// Gives each word of `text` to `word`, in order; together they are the text.
///
/// # Errors
/// The first that `word` returns.
pub fn divide(
    text: &str,
    pre: PreTokenizer,
    mut word: impl FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    match pre {
        PreTokenizer::None => word(text),
        PreTokenizer::Gpt2 => divide_by(text, gpt2, word),
        PreTokenizer::Llama3 => divide_by(text, llama3, word),
        PreTokenizer::SmolLm => {
            let mut rest = text;
            while let Some(at) = rest.find(is_number) {
                divide_by(&rest[..at], gpt2, &mut word)?;
                let digit = rest[at..].chars().next().map_or(0, char::len_utf8);
                word(&rest[at..at + digit])?;
                rest = &rest[at + digit..];
            }
            divide_by(rest, gpt2, word)
        }
    }
}

fn is_number(c: char) -> bool {
    Class::of(c) == Class::Number
}

/// Cuts words off the front, as long as `first` says.
fn divide_by(
    text: &str,
    first: fn(&str) -> usize,
    mut word: impl FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut rest = text;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(first(rest));
        word(head)?;
        rest = tail;
    }
    Ok(())
}

/// Bytes of the longest beginning whose characters all satisfy `wanted`.
fn run(text: &str, wanted: impl Fn(char) -> bool) -> usize {
    text.find(|c| !wanted(c)).unwrap_or(text.len())
}

fn class_run(text: &str, class: Class) -> usize {
    run(text, |c| Class::of(c) == class)
}

fn first_class(text: &str) -> Option<Class> {
    text.chars().next().map(Class::of)
}

/// Bytes of a contraction's ending that `text` begins with, or 0.
fn contraction(text: &str, same: fn(&str, &str) -> bool) -> usize {
    const ENDINGS: [&str; 7] = ["'s", "'t", "'m", "'d", "'re", "'ve", "'ll"];
    let is_ending = |ending: &&&str| text.get(..ending.len()).is_some_and(|head| same(head, ending));
    ENDINGS.iter().find(is_ending).map_or(0, |ending| ending.len())
}

/// `\s+(?!\S)|\s+`: white space, without its last character if a word follows that can take it.
fn space(text: &str) -> usize {
    let spaces = class_run(text, Class::Space);
    let last = text[..spaces].chars().next_back().map_or(0, char::len_utf8);
    if spaces < text.len() && spaces > last { spaces - last } else { spaces }
}

/// Bytes of the first word by GPT-2's expression, at least one character of a text that is not empty.
fn gpt2(text: &str) -> usize {
    let ending = contraction(text, |a, b| a == b);
    if ending != 0 {
        return ending;
    }
    let blank = usize::from(text.starts_with(' '));
    match first_class(&text[blank..]) {
        Some(class @ (Class::Letter | Class::Number | Class::Other)) => {
            blank + class_run(&text[blank..], class)
        }
        Some(Class::Space) | None => space(text),
    }
}

/// Bytes of the first word by Llama 3's expression, at least one character of a text that is not empty.
fn llama3(text: &str) -> usize {
    let ending = contraction(text, str::eq_ignore_ascii_case);
    if ending != 0 {
        return ending;
    }
    let Some(first) = text.chars().next() else { return 0 };
    let behind = &text[first.len_utf8()..];
    let class = Class::of(first);
    if class == Class::Number {
        return text
            .char_indices()
            .take(3)
            .take_while(|&(_, c)| is_number(c))
            .map(|(at, c)| at + c.len_utf8())
            .last()
            .unwrap_or(0);
    }
    if class == Class::Letter
        || (first != '\r' && first != '\n' && first_class(behind) == Some(Class::Letter))
    {
        return first.len_utf8() + class_run(behind, Class::Letter);
    }
    let blank = usize::from(first == ' ');
    let others = class_run(&text[blank..], Class::Other);
    if others != 0 {
        return blank + others + run(&text[blank + others..], is_line_end);
    }
    let spaces = &text[..class_run(text, Class::Space)];
    spaces.rfind(is_line_end).map_or_else(|| space(text), |at| at + 1)
}

fn is_line_end(c: char) -> bool {
    c == '\r' || c == '\n'
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    fn words(text: &str, pre: PreTokenizer) -> Vec<String> {
        let mut words = Vec::new();
        divide(text, pre, |word| {
            words.push(word.into());
            Ok(())
        })
        .unwrap();
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn gpt2_takes_one_space_with_the_word_behind_it() {
        assert_eq!(
            words("I'll see  you\n\n 42!?", PreTokenizer::Gpt2),
            ["I", "'ll", " see", " ", " you", "\n\n", " 42", "!?"]
        );
        assert_eq!(words("a  ", PreTokenizer::Gpt2), ["a", "  "]);
    }

    #[test]
    fn smollm_sets_digits_apart() {
        assert_eq!(words("x 1234", PreTokenizer::SmolLm), ["x", " ", "1", "2", "3", "4"]);
        assert_eq!(words("   ½'s", PreTokenizer::SmolLm), ["   ", "½", "'s"]);
    }

    #[test]
    fn llama3_groups_digits_and_keeps_line_ends() {
        assert_eq!(
            words("I'LL 12345.\r\n\n  x\n ", PreTokenizer::Llama3),
            ["I", "'LL", " ", "123", "45", ".\r\n\n", " ", " x", "\n", " "]
        );
        assert_eq!(words("(word", PreTokenizer::Llama3), ["(word"]);
    }

    #[test]
    fn an_apostrophe_before_a_wide_character_is_no_contraction() {
        assert_eq!(words("'é", PreTokenizer::Gpt2), ["'", "é"]);
    }
}
