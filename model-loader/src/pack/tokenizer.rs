//! Makes the tokenizer's tables of a GGUF's vocabulary.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Seek};

use flexserve_container::wire::{self, Merge, NONE};
use flexserve_container::{PreTokenizer, TokenKind, TokenizerKind, limits};
use zerocopy::little_endian::U32;

use super::sections::Sections;
use crate::error::{Error, Limit};
use crate::gguf::{Gguf, required};

/// Texts of tokens that end an answer, whatever the metadata say.
const END_TEXTS: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
];

/// A vocabulary as the GGUF has it.
struct Vocabulary<'g> {
    kind: TokenizerKind,
    pre: PreTokenizer,
    texts: &'g [Vec<u8>],
    kinds: Vec<TokenKind>,
    /// Of tokens with equal texts the last one counts.
    ids: HashMap<&'g [u8], u32>,
}

/// Reads the vocabulary and stores its tables.
///
/// # Errors
/// [`Error::Tokenizer`], [`Error::Vocabulary`], [`Error::MissingKey`], [`Error::KeyType`].
pub fn write<R: Read + Seek>(gguf: &Gguf<R>, sections: &mut Sections) -> Result<wire::Tokenizer, Error> {
    let vocabulary = Vocabulary::read(gguf)?;
    let special = |name: &str, default: Option<u32>| -> Result<Option<u32>, Error> {
        let id = gguf.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
        let id = id.and_then(|id| u32::try_from(id).ok()).or(default);
        Ok(id.filter(|&id| (id as usize) < vocabulary.texts.len()))
    };
    // Numbers that GGUF leaves out when they are these.
    let spm = vocabulary.kind == TokenizerKind::SentencePiece;
    let default = |id| if spm { Some(id) } else { Some(11) };
    let bos = special("bos", default(1))?;
    let eos = special("eos", default(2))?;
    let unknown = special("unknown", if spm { Some(0) } else { None })?;
    let ends = vocabulary.ends([eos, special("eot", None)?, special("eom", None)?]);
    let bytes = vocabulary.bytes();
    let offsets = offsets(&bytes)?;
    let flags = vocabulary.flags(gguf)?;
    let mergeable = vocabulary.index(&bytes);
    let (merges, ranks) = match vocabulary.kind {
        TokenizerKind::Bpe => (vocabulary.merges(gguf)?, Vec::new()),
        TokenizerKind::SentencePiece => (Vec::new(), ranks(gguf, bytes.len())?),
    };
    let kinds: Vec<u8> = vocabulary.kinds.iter().map(|&kind| kind as u8).collect();
    let id = |id: Option<u32>| U32::new(id.unwrap_or(NONE));
    Ok(wire::Tokenizer {
        kind: (vocabulary.kind as u32).into(),
        pre: (vocabulary.pre as u32).into(),
        flags: flags.into(),
        bos: id(bos),
        eos: id(eos),
        unknown: id(unknown),
        offsets: sections.add(&offsets[..]),
        bytes: sections.add(&bytes.concat()[..]),
        kinds: sections.add(&kinds[..]),
        index: sections.add(&mergeable[..]),
        merges: sections.add(&merges[..]),
        ranks: sections.add(&ranks[..]),
        byte_ids: sections.add(&vocabulary.byte_ids()[..]),
        specials: sections.add(&vocabulary.specials()?[..]),
        ends: sections.add(&ends[..]),
    })
}

impl<'g> Vocabulary<'g> {
    fn read<R: Read + Seek>(gguf: &'g Gguf<R>) -> Result<Self, Error> {
        let model = required("tokenizer.ggml.model", gguf.string("tokenizer.ggml.model")?)?;
        let pre_name = gguf.string("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
        let (kind, pre) = match (model, pre_name) {
            ("llama", _) => (TokenizerKind::SentencePiece, PreTokenizer::None),
            ("gpt2", "gpt-2") => (TokenizerKind::Bpe, PreTokenizer::Gpt2),
            ("gpt2", "smollm") => (TokenizerKind::Bpe, PreTokenizer::SmolLm),
            ("gpt2", "llama-bpe" | "llama3" | "llama-v3") => (TokenizerKind::Bpe, PreTokenizer::Llama3),
            ("gpt2", pre) => return Err(Error::Tokenizer(format!("gpt2 with pre-tokenizer {pre}"))),
            (model, _) => return Err(Error::Tokenizer(model.to_owned())),
        };
        let texts = required("tokenizer.ggml.tokens", gguf.strings("tokenizer.ggml.tokens")?)?;
        let kinds = match gguf.integers("tokenizer.ggml.token_type")? {
            None => vec![TokenKind::Normal; texts.len()],
            Some(codes) if codes.len() != texts.len() => {
                return Err(Error::Vocabulary("token types and tokens differ in number".to_owned()));
            }
            Some(codes) => codes.iter().map(|&code| token_kind(code)).collect(),
        };
        let ids = (0..).zip(texts).map(|(id, text)| (text.as_slice(), id)).collect();
        let mut vocabulary = Self { kind, pre, texts, kinds, ids };
        for id in vocabulary.ends([None; 3]) {
            vocabulary.kinds[id.get() as usize] = TokenKind::Control;
        }
        Ok(vocabulary)
    }

    fn ends(&self, named: [Option<u32>; 3]) -> Vec<U32> {
        let by_text = END_TEXTS.iter().filter_map(|text| self.ids.get(text.as_bytes()).copied());
        let ids: BTreeSet<u32> = by_text.chain(named.into_iter().flatten()).collect();
        ids.into_iter().map(U32::new).collect()
    }

    /// Whether GPT-2's byte letters stand in a token's text.
    fn is_lettered(&self, id: usize) -> bool {
        self.kind == TokenizerKind::Bpe && matches!(self.kinds[id], TokenKind::Normal | TokenKind::Unused)
    }

    /// The tokens' bytes, as [`flexserve_container::Tokenizer::token`] gives them.
    fn bytes(&self) -> Vec<Vec<u8>> {
        let bytes = |(id, text): (usize, &Vec<u8>)| {
            let undone = if self.is_lettered(id) { undo_letters(text) } else { None };
            undone.unwrap_or_else(|| text.clone())
        };
        self.texts.iter().enumerate().map(bytes).collect()
    }

    /// Whether merging may make a token. Never one that steers the model, though llama.cpp lets it: a prompt could inject it.
    fn is_mergeable(&self, id: usize) -> bool {
        !matches!(self.kinds[id], TokenKind::Control | TokenKind::Unknown)
    }

    /// Tokens that a search by bytes may find, sorted by their bytes.
    fn index(&self, bytes: &[Vec<u8>]) -> Vec<U32> {
        let findable = |id: usize| match self.kind {
            TokenizerKind::Bpe => undo_letters(&self.texts[id]).is_some_and(|text| text == bytes[id]),
            TokenizerKind::SentencePiece => true,
        };
        let findable = |&id: &u32| self.is_mergeable(id as usize) && findable(id as usize);
        let mut ids: Vec<u32> = self.ids.values().copied().filter(findable).collect();
        ids.sort_unstable_by_key(|&id| &bytes[id as usize]);
        ids.dedup_by_key(|id| &bytes[*id as usize]);
        ids.into_iter().map(U32::new).collect()
    }

    fn byte_ids(&self) -> Vec<U32> {
        let find = |byte: u8| match self.kind {
            TokenizerKind::Bpe => self.ids.get(letter(byte).to_string().as_bytes()),
            TokenizerKind::SentencePiece => {
                self.ids.get(format!("<0x{byte:02X}>").as_bytes()).or_else(|| self.ids.get(&[byte][..]))
            }
        };
        (0..=u8::MAX).map(|byte| U32::new(find(byte).copied().unwrap_or(NONE))).collect()
    }

    /// Longest first, as they are searched for.
    fn specials(&self) -> Result<Vec<U32>, Error> {
        let is_special = |kind: &TokenKind| {
            matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
        };
        let special =
            |id: &u32| is_special(&self.kinds[*id as usize]) && !self.texts[*id as usize].is_empty();
        let mut ids: Vec<u32> = (0..self.texts.len() as u32).filter(special).collect();
        Limit::check("special tokens", ids.len() as u64, limits::SPECIALS_MAX as u64)?;
        ids.sort_by_key(|&id| std::cmp::Reverse(self.texts[id as usize].len()));
        Ok(ids.into_iter().map(U32::new).collect())
    }

    fn flags<R: Read + Seek>(&self, gguf: &Gguf<R>) -> Result<u32, Error> {
        let spm = self.kind == TokenizerKind::SentencePiece;
        let llama3 = self.pre == PreTokenizer::Llama3;
        let flag = |name: &str, default: bool, bit: u32| -> Result<u32, Error> {
            let set = gguf.boolean(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default);
            Ok(if set { bit } else { 0 })
        };
        let space = if spm { flag("add_space_prefix", true, wire::ADD_SPACE_PREFIX)? } else { 0 };
        Ok(flag("add_bos_token", spm || llama3, wire::ADD_BOS)?
            | flag("add_eos_token", false, wire::ADD_EOS)?
            | space
            | if llama3 { wire::IGNORE_MERGES } else { 0 })
    }

    fn merges<R: Read + Seek>(&self, gguf: &Gguf<R>) -> Result<Vec<Merge>, Error> {
        let rules = required("tokenizer.ggml.merges", gguf.strings("tokenizer.ggml.merges")?)?;
        Limit::check("merges", rules.len() as u64, limits::MERGES_MAX as u64)?;
        let mut merges = Vec::with_capacity(rules.len());
        for (rank, rule) in (0u32..).zip(rules) {
            let merge = self.merge(rule, rank).ok_or_else(|| {
                let rule = String::from_utf8_lossy(rule);
                Error::Vocabulary(format!("merge {rank}, \"{rule}\", names pieces that are no tokens"))
            })?;
            if self.is_mergeable(merge.result.get() as usize) {
                merges.push(merge);
            }
        }
        // A stable sort: of equal rules the first one counts.
        merges.sort_by_key(|merge| (merge.left.get(), merge.right.get()));
        merges.dedup_by_key(|merge| (merge.left.get(), merge.right.get()));
        Ok(merges)
    }

    fn merge(&self, rule: &[u8], rank: u32) -> Option<Merge> {
        // A piece may begin with a space letter, never with a space: the first space behind byte 0 divides.
        let space = 1 + rule.get(1..)?.iter().position(|&byte| byte == b' ')?;
        let (left, right) = (&rule[..space], &rule[space + 1..]);
        let id = |text: &[u8]| self.ids.get(text).map(|&id| U32::new(id));
        let result = id(&[left, right].concat())?;
        Some(Merge { left: id(left)?, right: id(right)?, rank: rank.into(), result })
    }
}

fn offsets(bytes: &[Vec<u8>]) -> Result<Vec<U32>, Error> {
    let mut offsets = vec![U32::new(0)];
    let mut end = 0u64;
    for token in bytes {
        Limit::check("bytes of a token", token.len() as u64, limits::TOKEN_BYTES_MAX as u64)?;
        end += token.len() as u64;
        Limit::check("bytes of all tokens", end, limits::MANIFEST_BYTES_MAX / 2)?;
        offsets.push(U32::new(end as u32));
    }
    Ok(offsets)
}

/// Ranks of the scores: 0 for the highest, equal for equal ones.
fn ranks<R: Read + Seek>(gguf: &Gguf<R>, vocab: usize) -> Result<Vec<U32>, Error> {
    let scores = required("tokenizer.ggml.scores", gguf.floats("tokenizer.ggml.scores")?)?;
    if scores.len() != vocab || scores.iter().any(|score| score.is_nan()) {
        return Err(Error::Vocabulary(
            "scores and tokens differ in number, or a score is no number".to_owned(),
        ));
    }
    // + 0.0 makes one zero of the two.
    let descending = |&a: &f32, &b: &f32| (b + 0.0).total_cmp(&(a + 0.0));
    let mut distinct = scores.to_vec();
    distinct.sort_unstable_by(descending);
    distinct.dedup();
    let rank = |score| distinct.binary_search_by(|probe| descending(probe, score)).unwrap_or_default();
    Ok(scores.iter().map(|score| U32::new(rank(score) as u32)).collect())
}

fn token_kind(code: i64) -> TokenKind {
    // Kinds that GGUF does not define are never shown and never found.
    u8::try_from(code).ok().and_then(TokenKind::from_code).unwrap_or(TokenKind::Unused)
}

/// GPT-2's letter for a byte: itself if it is printable in Latin-1, or the next of those from U+0100.
fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or_default()
}

/// The bytes that GPT-2's letters stand for; [`None`] if a letter is none of them.
fn undo_letters(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(byte_of_letter).collect()
}

fn byte_of_letter(letter_: char) -> Option<u8> {
    use std::sync::LazyLock;
    static BYTES: LazyLock<HashMap<char, u8>> =
        LazyLock::new(|| (0..=u8::MAX).map(|byte| (letter(byte), byte)).collect());
    BYTES.get(&letter_).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_those_of_gpt2() {
        assert_eq!(letter(b' '), 'Ġ');
        assert_eq!(letter(b'\n'), 'Ċ');
        assert_eq!(letter(b'a'), 'a');
        assert_eq!(letter(0xad), 'Ń');
        assert_eq!(undo_letters("Ġhé".as_bytes()), Some(b" h\xe9".to_vec()));
        assert_eq!(undo_letters("水".as_bytes()), None);
    }
}
