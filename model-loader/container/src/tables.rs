//! The tokenizer's tables and the chat template's strings, proven.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::wire::{self, Merge, NONE, Span};
use crate::{Error, limits};

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TokenizerKind {
    /// Byte-pair encoding of words, by ranked merges ("gpt2" in GGUF).
    Bpe = 1,
    /// SentencePiece: merges by score, unknown characters as bytes ("llama" in GGUF).
    SentencePiece = 2,
}

/// How byte-pair encoding divides text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PreTokenizer {
    /// Not at all (SentencePiece).
    None = 0,
    /// GPT-2's expression.
    Gpt2 = 1,
    /// GPT-2's, with each digit on its own.
    SmolLm = 2,
    /// Llama 3's: contractions in any case, up to three digits, line ends kept with what precedes them.
    Llama3 = 3,
}

/// What a token is for. The numbers are GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// A piece of text.
    Normal = 1,
    /// Stands for what cannot be encoded.
    Unknown = 2,
    /// Steers the model; never shown, never made from a user's text.
    Control = 3,
    /// A piece of text that is found before the rest is divided.
    UserDefined = 4,
    /// Reserved.
    Unused = 5,
    /// One byte.
    Byte = 6,
}

impl TokenKind {
    /// Reads a kind.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The tokenizer's tables.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'a> {
    kind: TokenizerKind,
    pre: PreTokenizer,
    flags: u32,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    offsets: &'a [U32],
    bytes: &'a [u8],
    kinds: &'a [u8],
    index: &'a [U32],
    merges: &'a [Merge],
    ranks: &'a [U32],
    byte_ids: &'a [U32],
    specials: &'a [U32],
    ends: &'a [U32],
}

impl<'a> Tokenizer<'a> {
    pub(crate) fn parse(data: &'a [u8], raw: &wire::Tokenizer, vocab: usize) -> Result<Self, Error> {
        let kind = match raw.kind.get() {
            1 => TokenizerKind::Bpe,
            2 => TokenizerKind::SentencePiece,
            _ => return Err(Error::Unknown("tokenizer")),
        };
        let pre = match (kind, raw.pre.get()) {
            (TokenizerKind::SentencePiece, 0) => PreTokenizer::None,
            (TokenizerKind::Bpe, 1) => PreTokenizer::Gpt2,
            (TokenizerKind::Bpe, 2) => PreTokenizer::SmolLm,
            (TokenizerKind::Bpe, 3) => PreTokenizer::Llama3,
            _ => return Err(Error::Unknown("pre-tokenizer")),
        };
        let known = wire::ADD_BOS | wire::ADD_EOS | wire::ADD_SPACE_PREFIX | wire::IGNORE_MERGES;
        if raw.flags.get() & !known != 0 {
            return Err(Error::Unknown("flag of the tokenizer"));
        }
        let token = |id: U32| match id.get() {
            NONE => Ok(None),
            id if (id as usize) < vocab => Ok(Some(id)),
            _ => Err(Error::BadTable("special tokens")),
        };
        let all = usize::MAX;
        let tables = Self {
            kind,
            pre,
            flags: raw.flags.get(),
            bos: token(raw.bos)?,
            eos: token(raw.eos)?,
            unknown: token(raw.unknown)?,
            offsets: section(data, raw.offsets, all, "the tokens' offsets")?,
            bytes: section(data, raw.bytes, all, "the tokens' bytes")?,
            kinds: section(data, raw.kinds, all, "the tokens' kinds")?,
            index: section(data, raw.index, all, "the tokens' index")?,
            merges: section(data, raw.merges, limits::MERGES_MAX, "the number of merges")?,
            ranks: section(data, raw.ranks, all, "the tokens' ranks")?,
            byte_ids: section(data, raw.byte_ids, all, "the bytes' tokens")?,
            specials: section(data, raw.specials, limits::SPECIALS_MAX, "the number of special tokens")?,
            ends: section(data, raw.ends, limits::ENDS_MAX, "the number of end tokens")?,
        };
        tables.check(vocab)?;
        Ok(tables)
    }

    fn check(&self, vocab: usize) -> Result<(), Error> {
        let exists = |id: &U32| (id.get() as usize) < vocab;
        if self.offsets.len() != vocab + 1 || self.kinds.len() != vocab || self.byte_ids.len() != 256 {
            return Err(Error::BadTable("tokens"));
        }
        if self.offsets[0].get() != 0 || self.offsets[vocab].get() as usize != self.bytes.len() {
            return Err(Error::BadTable("tokens"));
        }
        for pair in self.offsets.windows(2) {
            match pair[1].get().checked_sub(pair[0].get()) {
                None => return Err(Error::BadTable("tokens")),
                Some(bytes) if bytes as usize > limits::TOKEN_BYTES_MAX => {
                    return Err(Error::OutOfRange("a token's length"));
                }
                Some(_) => {}
            }
        }
        if self.kinds.iter().any(|&code| TokenKind::from_code(code).is_none()) {
            return Err(Error::Unknown("kind of token"));
        }
        if !self.byte_ids.iter().all(|id| id.get() == NONE || exists(id)) {
            return Err(Error::BadTable("bytes' tokens"));
        }
        if !self.specials.iter().all(|id| exists(id) && !self.token(id.get()).is_empty()) {
            return Err(Error::BadTable("special tokens"));
        }
        if !self.ends.iter().all(exists) || !self.ends.is_sorted_by_key(|id| id.get()) {
            return Err(Error::BadTable("end tokens"));
        }
        if !self.index.iter().all(exists)
            || !self.index.is_sorted_by(|a, b| self.token(a.get()) < self.token(b.get()))
        {
            return Err(Error::BadTable("sorted tokens"));
        }
        self.check_rules(vocab)
    }

    /// Merges for byte-pair encoding, ranks for `SentencePiece`, never both.
    fn check_rules(&self, vocab: usize) -> Result<(), Error> {
        let ranks = if self.kind == TokenizerKind::SentencePiece { vocab } else { 0 };
        if self.ranks.len() != ranks || (ranks != 0 && !self.merges.is_empty()) {
            return Err(Error::BadTable("ranks"));
        }
        let exists = |id: U32| (id.get() as usize) < vocab;
        let sound = |m: &Merge| exists(m.left) && exists(m.right) && exists(m.result);
        let key = |m: &Merge| (m.left.get(), m.right.get());
        if !self.merges.iter().all(sound) || !self.merges.is_sorted_by(|a, b| key(a) < key(b)) {
            return Err(Error::BadTable("merges"));
        }
        Ok(())
    }

    /// How text becomes tokens.
    #[must_use]
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// How text is divided first.
    #[must_use]
    pub fn pre(&self) -> PreTokenizer {
        self.pre
    }

    /// Whether [`wire::ADD_BOS`], [`wire::ADD_EOS`], [`wire::ADD_SPACE_PREFIX`] or [`wire::IGNORE_MERGES`] is set.
    #[must_use]
    pub fn flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Token that stands for what cannot be encoded.
    #[must_use]
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.kinds.len()
    }

    /// A token's bytes: text with GPT-2's byte letters undone, or as it stands in a `SentencePiece` vocabulary.
    /// Empty for a token that does not exist.
    #[must_use]
    pub fn token(&self, id: u32) -> &'a [u8] {
        let id = id as usize;
        match (self.offsets.get(id), self.offsets.get(id + 1)) {
            (Some(from), Some(to)) => self.bytes.get(from.get() as usize..to.get() as usize).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// What a token is for.
    #[must_use]
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).and_then(|&code| TokenKind::from_code(code))
    }

    /// Finds the token that has exactly these bytes, among those that merging may produce.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        let place = self.index.binary_search_by(|id| self.token(id.get()).cmp(bytes)).ok()?;
        Some(self.index[place].get())
    }

    /// Finds the rule that merges two tokens: its rank, the lowest merges first, and the token that they become.
    #[must_use]
    pub fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let place =
            self.merges.binary_search_by_key(&(left, right), |m| (m.left.get(), m.right.get())).ok()?;
        Some((self.merges[place].rank.get(), self.merges[place].result.get()))
    }

    /// Rank of a token's score, the highest merges first. 0 without scores.
    #[must_use]
    pub fn rank(&self, id: u32) -> u32 {
        self.ranks.get(id as usize).map_or(0, |rank| rank.get())
    }

    /// The token that stands for a byte.
    #[must_use]
    pub fn byte_token(&self, byte: u8) -> Option<u32> {
        self.byte_ids.get(usize::from(byte)).map(|id| id.get()).filter(|&id| id != NONE)
    }

    /// Tokens that are found in text before it is divided, in the order of search.
    pub fn specials(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.specials.iter().map(|id| id.get())
    }

    /// Whether a token ends an answer.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search_by_key(&id, |end| end.get()).is_ok()
    }
}

/// Family of chat templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ChatKind {
    /// No template: the prompt is the text.
    None = 0,
    /// `<|im_start|>role … <|im_end|>`
    ChatMl = 1,
    /// `[INST] … [/INST]`
    Llama2 = 2,
    /// `<|start_header_id|>role<|end_header_id|> … <|eot_id|>`
    Llama3 = 3,
}

/// The strings around messages. Special tokens in them are meant as such.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// Family.
    pub kind: ChatKind,
    /// The system message stands inside the first user message, whose own prefix is left out.
    pub system_in_user: bool,
    /// System message if there is none; empty for no system message at all.
    pub default_system: &'a str,
    /// Before and behind a system message.
    pub system: [&'a str; 2],
    /// Before and behind a user message.
    pub user: [&'a str; 2],
    /// Before and behind an assistant message; the part before it also opens the answer.
    pub assistant: [&'a str; 2],
}

impl<'a> Chat<'a> {
    fn parse_kind(code: u32) -> Option<ChatKind> {
        [ChatKind::None, ChatKind::ChatMl, ChatKind::Llama2, ChatKind::Llama3]
            .into_iter()
            .find(|&kind| kind as u32 == code)
    }

    pub(crate) fn parse(data: &'a [u8], raw: &wire::Chat) -> Result<Self, Error> {
        if raw.flags.get() & !wire::SYSTEM_IN_USER != 0 {
            return Err(Error::Unknown("flag of the chat template"));
        }
        let text = |span| {
            let bytes = section(data, span, limits::STRING_BYTES_MAX, "the length of the chat template")?;
            core::str::from_utf8(bytes).map_err(|_| Error::BadTable("chat strings"))
        };
        let pair = |spans: [Span; 2]| Ok([text(spans[0])?, text(spans[1])?]);
        Ok(Self {
            kind: Self::parse_kind(raw.kind.get()).ok_or(Error::Unknown("chat template"))?,
            system_in_user: raw.flags.get() & wire::SYSTEM_IN_USER != 0,
            default_system: text(raw.default_system)?,
            system: pair(raw.system)?,
            user: pair(raw.user)?,
            assistant: pair(raw.assistant)?,
        })
    }
}

/// Reads a section of segment 0 as a table of at most `most` entries.
pub(crate) fn section<'a, T>(
    data: &'a [u8],
    span: Span,
    most: usize,
    what: &'static str,
) -> Result<&'a [T], Error>
where
    T: FromBytes + KnownLayout + Immutable,
{
    let start = span.offset.get() as usize;
    let end = start.checked_add(span.bytes.get() as usize).ok_or(Error::BadLayout(what))?;
    let bytes = data.get(start..end).ok_or(Error::BadLayout(what))?;
    let table = <[T]>::ref_from_bytes(bytes).map_err(|_| Error::BadLayout(what))?;
    if table.len() > most {
        return Err(Error::OutOfRange(what));
    }
    Ok(table)
}
