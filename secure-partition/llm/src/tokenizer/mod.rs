//! Text to tokens and back, byte for byte as llama.cpp does it, without allocation and in time `n log n`.
//!
//! | module | what |
//! |---|---|
//! | `words` | divides text before byte-pair encoding |
//! | `merge` | merges symbols, the best pair first |
//! | `scratch` | divides the caller's memory |
//!
//! A prompt is a sequence of [`Piece`]s. Special tokens are found in the pieces that the chat template adds, never in
//! those that a user wrote; for everything else the pieces are one text.

mod merge;
mod scratch;
mod words;

use core::fmt;
use core::ops::Range;

use flexserve_container::{TokenKind, Tokenizer as Tables, TokenizerKind, wire};

use merge::{Merger, Rule};
use scratch::{Owner, Scratch};

pub use scratch::scratch_bytes;

/// A part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'p> {
    /// What a user wrote: never a special token, whatever it looks like.
    Text(&'p str),
    /// What the chat template adds: the texts of special tokens stand for these.
    Markup(&'p str),
}

impl<'p> Piece<'p> {
    /// Its text.
    #[must_use]
    pub const fn text(self) -> &'p str {
        match self {
            Self::Text(text) | Self::Markup(text) => text,
        }
    }
}

/// Why a text cannot be tokenized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The scratch memory is smaller than [`scratch_bytes`].
    Scratch,
    /// There are more tokens than places for them.
    TooManyTokens,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scratch => write!(f, "the text is too long for the tokenizer's memory"),
            Self::TooManyTokens => write!(f, "the text has too many tokens"),
        }
    }
}

impl core::error::Error for Error {}

/// Where tokens go.
struct Output<'o> {
    tokens: &'o mut [u32],
    used: usize,
}

impl Output<'_> {
    fn push(&mut self, token: u32) -> Result<(), Error> {
        *self.tokens.get_mut(self.used).ok_or(Error::TooManyTokens)? = token;
        self.used += 1;
        Ok(())
    }
}

/// Turns text into tokens and back, by a model's tables.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'t> {
    tables: &'t Tables<'t>,
}

impl<'t> Tokenizer<'t> {
    /// Uses these tables.
    #[must_use]
    pub const fn new(tables: &'t Tables<'t>) -> Self {
        Self { tables }
    }

    /// Tokenizes pieces of a prompt into the front of `tokens` and returns how many there are. With `add_special` a token
    /// that begins or ends texts is added if the model wants it. `scratch` has [`scratch_bytes`] for the texts' bytes
    /// together; what it holds does not matter, and it holds the text afterwards.
    ///
    /// # Errors
    /// [`Error::Scratch`], [`Error::TooManyTokens`].
    pub fn encode(
        &self,
        pieces: &[Piece],
        add_special: bool,
        scratch: &mut [u8],
        tokens: &mut [u32],
    ) -> Result<usize, Error> {
        let bytes = pieces.iter().map(|piece| piece.text().len()).sum();
        let mut scratch = Scratch::new(scratch, bytes)?;
        let mut output = Output { tokens, used: 0 };
        self.mark_specials(pieces, &mut scratch);
        if let (true, Some(bos)) = (add_special && self.tables.flag(wire::ADD_BOS), self.tables.bos()) {
            output.push(bos)?;
        }
        let mut at = 0;
        let mut after_special = true;
        while at < bytes {
            if let Some(token) = scratch.owners[at].token() {
                output.push(token)?;
                at += scratch.owned(at);
                after_special = true;
            } else {
                let end = at + scratch.owners[at..].iter().take_while(|owner| owner.is_free()).count();
                self.encode_plain(at..end, after_special, &mut scratch, &mut output)?;
                at = end;
                after_special = false;
            }
        }
        if let (true, Some(eos)) = (add_special && self.tables.flag(wire::ADD_EOS), self.tables.eos()) {
            output.push(eos)?;
        }
        Ok(output.used)
    }

    /// Copies the text and marks in it the tokens that are found before it is divided: one token after the other, the
    /// longest first, each from left to right.
    fn mark_specials(&self, pieces: &[Piece], scratch: &mut Scratch) {
        let mut at = 0;
        for piece in pieces {
            scratch.text[at..at + piece.text().len()].copy_from_slice(piece.text().as_bytes());
            at += piece.text().len();
        }
        scratch.owners.fill(Owner::FREE);
        for token in self.tables.specials() {
            let text = self.tables.token(token);
            if self.tables.token_kind(token) == Some(TokenKind::UserDefined) {
                scratch.mark(0..scratch.text.len(), text, token);
                continue;
            }
            let mut start = 0;
            for piece in pieces {
                let end = start + piece.text().len();
                if matches!(piece, Piece::Markup(_)) {
                    scratch.mark(start..end, text, token);
                }
                start = end;
            }
        }
    }

    /// Tokenizes a stretch of text between special tokens.
    fn encode_plain(
        &self,
        range: Range<usize>,
        after_special: bool,
        scratch: &mut Scratch,
        output: &mut Output,
    ) -> Result<(), Error> {
        match self.tables.kind() {
            TokenizerKind::Bpe => {
                let (text, symbols, queue) = (&*scratch.text, &mut *scratch.symbols, &mut *scratch.queue);
                let text = core::str::from_utf8(&text[range]).unwrap_or_default();
                let mut merger = Merger::new(symbols, queue);
                words::divide(text, self.tables.pre(), |word| {
                    self.encode_word(word.as_bytes(), &mut merger, output)
                })
            }
            TokenizerKind::SentencePiece => {
                let prefix = after_special && self.tables.flag(wire::ADD_SPACE_PREFIX);
                let (escaped, symbols, queue) = scratch.escape(range, prefix);
                self.encode_sentence(escaped, &mut Merger::new(symbols, queue), output)
            }
        }
    }

    /// Byte-pair encoding of one word.
    fn encode_word(&self, word: &[u8], merger: &mut Merger, output: &mut Output) -> Result<(), Error> {
        if self.tables.flag(wire::IGNORE_MERGES)
            && let Some(token) = self.tables.find(word)
        {
            return output.push(token);
        }
        merger.clear();
        for (start, &byte) in word.iter().enumerate() {
            merger.push(start..start + 1, self.tables.byte_token(byte))?;
        }
        merger.merge(|left, right| {
            let (rank, token) = self.tables.merge(left.token()?, right.token()?)?;
            Some(Rule { rank, token })
        })?;
        // A byte that the vocabulary lacks is left out, as in llama.cpp.
        merger.symbols().filter_map(|(_, token)| token).try_for_each(|token| output.push(token))
    }

    /// `SentencePiece`'s encoding of a text with its spaces replaced.
    fn encode_sentence(&self, text: &[u8], merger: &mut Merger, output: &mut Output) -> Result<(), Error> {
        merger.clear();
        let mut start = 0;
        while start < text.len() {
            let end = (start + utf8_length(text[start])).min(text.len());
            merger.push(start..end, self.tables.find(&text[start..end]))?;
            start = end;
        }
        merger.merge(|left, right| {
            let token = self.tables.find(text.get(left.start()..right.end())?)?;
            Some(Rule { rank: self.tables.rank(token), token })
        })?;
        for (range, token) in merger.symbols() {
            match token {
                Some(token) => output.push(token)?,
                None => {
                    for &byte in &text[range] {
                        if let Some(token) = self.tables.byte_token(byte).or(self.tables.unknown()) {
                            output.push(token)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a token's text to `sink`, in one or more parts: bytes, since a character may be divided among tokens. Tokens
    /// that steer the model have none.
    pub fn decode(&self, token: u32, mut sink: impl FnMut(&[u8])) {
        let bytes = self.tables.token(token);
        match self.tables.token_kind(token) {
            Some(TokenKind::Normal) if self.tables.kind() == TokenizerKind::SentencePiece => {
                let mut rest = bytes;
                while let Some(at) = rest.windows(SPACE.len()).position(|window| window == SPACE) {
                    sink(&rest[..at]);
                    sink(b" ");
                    rest = &rest[at + SPACE.len()..];
                }
                sink(rest);
            }
            Some(TokenKind::Normal | TokenKind::UserDefined) => sink(bytes),
            Some(TokenKind::Byte) => {
                if let Some(byte) = (0..=u8::MAX).find(|&byte| self.tables.byte_token(byte) == Some(token)) {
                    sink(&[byte]);
                }
            }
            Some(TokenKind::Unknown | TokenKind::Control | TokenKind::Unused) | None => {}
        }
    }

    /// Whether a token ends an answer.
    #[must_use]
    pub fn is_end(&self, token: u32) -> bool {
        self.tables.is_end(token)
    }
}

/// What stands for a space in a `SentencePiece` vocabulary, U+2581.
const SPACE: &[u8] = "\u{2581}".as_bytes();

/// Bytes of the character that begins with this byte.
const fn utf8_length(first: u8) -> usize {
    match first {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
        _ => 1,
    }
}
