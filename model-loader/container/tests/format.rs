//! A sound container is read; each thing that may be wrong with one is refused.

mod common;

use common::{LAYERS, Parts, VOCAB, WIDTH, poke, rehash};
use flexserve_abi::GRANULE_SIZE;
use flexserve_container::wire::{self, NONE};
use flexserve_container::{
    Error, Header, Manifest, Model, SegmentKind, TensorKind, TokenKind, TokenizerKind, limits,
};
use proptest::prelude::*;
use zerocopy::little_endian::U32;

/// What becomes of a container whose parts were changed.
fn refusal(spoil: impl FnOnce(&mut Parts)) -> Option<Error> {
    let mut parts = Parts::sound();
    spoil(&mut parts);
    Manifest::parse(&parts.build()[0]).err()
}

/// What becomes of a container whose head or table was changed, with sound hashes.
fn refusal_of(offset: usize, bytes: &[u8]) -> Option<Error> {
    let mut segments = Parts::sound().build();
    poke(&mut segments, offset, bytes);
    Manifest::parse(&segments[0]).err()
}

/// Offset of a segment's table entry.
const fn entry(index: usize) -> usize {
    64 + 64 * index
}

#[test]
fn reads_what_was_written() {
    let segments = Parts::sound().build();
    let slices: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    let manifest = Manifest::parse(slices[0]).unwrap();
    assert_eq!((manifest.name(), manifest.params().vocab), ("tiny", VOCAB));
    assert_eq!(manifest.header().security_version(), 5);
    assert_eq!(manifest.chat().default_system, "Be kind.");
    assert_eq!(manifest.tensors().len(), 9 * LAYERS as usize + 2);
    let model = Model::new(manifest, &slices).unwrap();
    let view = model.tensor(TensorKind::FfnDown, 1).unwrap();
    assert_eq!((view.rows, view.cols, view.format, view.bytes.len()), (32, 64, 3, 2048));
    assert!(view.bytes.iter().all(|&byte| byte == 3), "it lies in segment 3");
    assert_eq!(model.tensor(TensorKind::TokenEmbedding, 99).unwrap().rows, VOCAB);
    assert!(model.tensor(TensorKind::Output, 0).is_none(), "the head is tied");
    assert!(model.tensor(TensorKind::AttnQ, LAYERS).is_none());
}

#[test]
fn a_loader_needs_the_first_granule_only() {
    let segments = Parts::sound().build();
    let needed = Header::bytes_needed(&segments[0][..Header::PREFIX_BYTES]).unwrap();
    assert_eq!(needed, entry(5));
    let header = Header::parse(&segments[0][..GRANULE_SIZE]).unwrap();
    let kinds: Vec<SegmentKind> = header.segments().map(|segment| segment.kind).collect();
    assert_eq!(
        kinds,
        [
            SegmentKind::Manifest,
            SegmentKind::Embedding,
            SegmentKind::Layer(0),
            SegmentKind::Layer(1),
            SegmentKind::Output
        ]
    );
    let bytes: usize = header.segments().map(|segment| segment.granule_bytes()).sum();
    assert_eq!(bytes as u64, header.file_bytes());
    for (index, segment) in segments.iter().enumerate() {
        header.verify_segment(index, segment).unwrap();
    }
}

#[test]
fn tokens_are_found_by_bytes_and_by_rule() {
    let segments = Parts::sound().build();
    let manifest = Manifest::parse(&segments[0]).unwrap();
    let tokens = manifest.tokenizer();
    assert_eq!((tokens.kind(), tokens.vocab()), (TokenizerKind::Bpe, 8));
    assert_eq!((tokens.token(4), tokens.token(99)), (&b"abc"[..], &b""[..]));
    assert_eq!((tokens.find(b"bc"), tokens.find(b"cb"), tokens.find(b"<s>")), (Some(5), None, None));
    assert_eq!((tokens.merge(3, 2), tokens.merge(2, 3)), (Some((2, 4)), None));
    assert_eq!((tokens.byte_token(b'c'), tokens.byte_token(b'd')), (Some(2), None));
    assert_eq!((tokens.bos(), tokens.eos(), tokens.unknown()), (Some(6), Some(7), None));
    assert_eq!(tokens.token_kind(6), Some(TokenKind::Control));
    assert!(tokens.is_end(7) && !tokens.is_end(6));
}

#[test]
fn rejects_other_files() {
    assert_eq!(Header::bytes_needed(b"short").err(), Some(Error::Truncated("the header")));
    assert_eq!(refusal_of(0, b"GGUF"), Some(Error::BadMagic));
    for other in [0, 1, 255] {
        assert_eq!(refusal_of(8, &[other]), Some(Error::BadVersion(other.into())));
    }
}

#[test]
fn rejects_counts_of_segments() {
    assert_eq!(refusal_of(12, &[3]), Some(Error::OutOfRange("the number of segments")));
    let above = limits::SEGMENTS.end() + 1;
    assert_eq!(refusal_of(12, &above.to_le_bytes()), Some(Error::OutOfRange("the number of segments")));
    assert_eq!(refusal_of(12, &[4]), Some(Error::BadLayout("a segment")), "one less than there are");
}

#[test]
fn rejects_a_file_of_another_size() {
    assert_eq!(refusal_of(16, &[1]), Some(Error::BadLayout("the end of the file")));
}

#[test]
fn rejects_misplaced_segments() {
    assert_eq!(refusal_of(entry(1), &[0, 0]), Some(Error::BadLayout("a segment")), "offset");
    assert_eq!(refusal_of(entry(1) + 16, &[9]), Some(Error::Unknown("kind of segment")));
    assert_eq!(
        refusal_of(entry(1) + 16, &[3]),
        Some(Error::BadLayout("a segment")),
        "kind in another's place"
    );
    assert_eq!(refusal_of(entry(2) + 20, &[1]), Some(Error::BadLayout("a segment")), "layer");
    assert_eq!(refusal_of(entry(2) + 24, &[9]), Some(Error::BadLayout("a segment's granules")));
    assert_eq!(refusal_of(entry(2) + 28, &[1]), Some(Error::BadLayout("a segment")), "reserved");
}

#[test]
fn rejects_sizes_of_segments() {
    let size = |bytes: u64| refusal_of(entry(1) + 8, &bytes.to_le_bytes());
    let above = limits::SEGMENT_BYTES.end() + 1;
    assert_eq!(size(0), Some(Error::OutOfRange("a segment's size")));
    assert_eq!(size(above), Some(Error::OutOfRange("a segment's size")));
    assert_eq!(size(u64::MAX), Some(Error::OutOfRange("a segment's size")));
    assert_eq!(size(1 << 30), Some(Error::BadLayout("a segment's granules")), "just inside");
}

#[test]
fn rejects_a_manifest_outside_segment_0() {
    for offset in [4096u32, 1 << 20, u32::MAX] {
        assert_eq!(refusal_of(28, &offset.to_le_bytes()), Some(Error::Truncated("the manifest")));
    }
}

#[test]
fn rejects_changed_segments() {
    let mut segments = Parts::sound().build();
    let whole = segments.clone();
    segments[0][4000] ^= 1;
    assert_eq!(Manifest::parse(&segments[0]).err(), Some(Error::BadHash(Some(0))));
    segments[0][40] ^= 1;
    assert_eq!(Manifest::parse(&segments[0]).err(), Some(Error::BadHash(None)));
    let header = Header::parse(&whole[0]).unwrap();
    segments[3][4095] ^= 1;
    assert_eq!(header.verify_segment(3, &segments[3]), Err(Error::BadHash(Some(3))));
    assert_eq!(header.verify_segment(3, &whole[3][1..]), Err(Error::Truncated("a segment")));
    assert_eq!(header.verify_segment(5, &whole[3]), Err(Error::OutOfRange("the segment's index")));
}

#[test]
fn rejects_missing_segments() {
    let segments = Parts::sound().build();
    let mut slices: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    let manifest = Manifest::parse(slices[0]).unwrap();
    slices[2] = &slices[2][1..];
    assert_eq!(Model::new(manifest, &slices).err(), Some(Error::Truncated("a segment")));
    assert_eq!(Model::new(manifest, &slices[..2]).err(), Some(Error::Truncated("a segment")));
}

#[test]
fn rejects_unknown_codes() {
    type Spoil = fn(&mut Parts);
    let codes: [(Spoil, Error); 8] = [
        (|p| p.manifest.architecture = 2.into(), Error::Unknown("architecture")),
        (|p| p.manifest.flags = 3.into(), Error::Unknown("flag")),
        (|p| p.manifest.tokenizer.kind = 0.into(), Error::Unknown("tokenizer")),
        (|p| p.manifest.tokenizer.pre = 4.into(), Error::Unknown("pre-tokenizer")),
        (|p| p.manifest.tokenizer.flags = 16.into(), Error::Unknown("flag of the tokenizer")),
        (|p| p.kinds[2] = 7, Error::Unknown("kind of token")),
        (|p| p.manifest.chat.kind = 4.into(), Error::Unknown("chat template")),
        (|p| p.manifest.chat.flags = 2.into(), Error::Unknown("flag of the chat template")),
    ];
    for (spoil, error) in codes {
        assert_eq!(refusal(spoil), Some(error));
    }
}

/// Sets a size of the model.
type Setter = fn(&mut wire::Manifest, u32);

#[test]
fn rejects_sizes_of_the_model() {
    let sizes: [(Setter, u32, &str); 9] = [
        (|m, v| m.vocab = v.into(), *limits::VOCAB.end(), "the vocabulary's size"),
        (|m, v| m.embedding = v.into(), *limits::EMBEDDING.end(), "the embedding's width"),
        (|m, v| m.layers = v.into(), limits::LAYERS_MAX, "the number of layers"),
        (|m, v| m.heads = v.into(), *limits::HEADS.end(), "the number of heads"),
        (|m, v| m.kv_heads = v.into(), *limits::HEADS.end(), "the number of key and value heads"),
        (|m, v| m.head_dim = v.into(), *limits::HEAD_DIM.end(), "the width of a head"),
        (
            |m, v| m.feed_forward = v.into(),
            *limits::FEED_FORWARD.end(),
            "the width of the feed-forward network",
        ),
        (|m, v| m.context = v.into(), *limits::CONTEXT.end(), "the context"),
        (|m, v| m.rope_dims = v.into(), *limits::HEAD_DIM.end(), "the number of rotated dimensions"),
    ];
    for (set, most, what) in sizes {
        for value in [0, most + 1, u32::MAX] {
            assert_eq!(refusal(|p| set(&mut p.manifest, value)), Some(Error::OutOfRange(what)), "{value}");
        }
        // Within its cap the value fails elsewhere, if at all, for it contradicts the others.
        let inside = refusal(|p| set(&mut p.manifest, most));
        assert!(
            inside != Some(Error::OutOfRange(what))
                || what == "the number of layers"
                || what == "the number of rotated dimensions"
        );
    }
}

#[test]
fn rejects_sizes_that_contradict_each_other() {
    let heads = Error::OutOfRange("the ratio of query heads to key and value heads");
    assert_eq!(refusal(|p| p.manifest.kv_heads = 3.into()), Some(heads));
    let dims = Error::OutOfRange("the number of rotated dimensions");
    assert_eq!(refusal(|p| p.manifest.rope_dims = 15.into()), Some(dims));
    assert_eq!(refusal(|p| p.manifest.rope_dims = 18.into()), Some(dims));
    assert_eq!(refusal(|p| p.manifest.layers = 1.into()), Some(Error::OutOfRange("the number of layers")));
    assert_eq!(refusal(|p| p.manifest.embedding = (WIDTH + 1).into()), Some(Error::BadShape));
    assert_eq!(refusal(|p| p.steps.truncate(7)), Some(Error::BadTable("rotary steps")));
    assert_eq!(refusal(|p| p.name = vec![0xff]), Some(Error::BadTable("names")));
    assert_eq!(refusal(|p| p.system = vec![0xff]), Some(Error::BadTable("chat strings")));
}

#[test]
fn rejects_tensors() {
    let last = 9 * LAYERS as usize + 1;
    assert_eq!(refusal(|p| p.tensors.truncate(p.tensors.len() - 1)), Some(Error::MissingTensor));
    assert_eq!(refusal(|p| p.tensors[1] = p.tensors[0]), Some(Error::MissingTensor));
    assert_eq!(refusal(|p| p.manifest.flags = 0.into()), Some(Error::MissingTensor), "untied without a head");
    assert_eq!(refusal(|p| p.tensors[3].rows = 17.into()), Some(Error::BadShape));
    assert_eq!(refusal(|p| p.tensors[3].segment = 3.into()), Some(Error::BadTable("tensors")));
    assert_eq!(refusal(|p| p.tensors[3].segment = 99.into()), Some(Error::BadTable("tensors")));
    assert_eq!(refusal(|p| p.tensors[last].reserved = 1.into()), Some(Error::BadTable("tensors")));
    for (offset, bytes) in [(1, 32), (64, 0), (1 << 40, 1), (u64::MAX - 63, 64)] {
        let layout =
            refusal(|p| (p.tensors[last].offset, p.tensors[last].bytes) = (offset.into(), bytes.into()));
        assert_eq!(layout, Some(Error::BadLayout("a tensor")), "{offset} {bytes}");
    }
    assert_eq!(refusal(|p| p.tensors[2].offset = 0.into()), Some(Error::BadLayout("a tensor")), "overlap");
}

#[test]
fn rejects_tables_of_tokens() {
    let tokens = Some(Error::BadTable("tokens"));
    assert_eq!(refusal(|p| p.offsets.truncate(p.offsets.len() - 1)), tokens);
    assert_eq!(refusal(|p| p.kinds.truncate(p.kinds.len() - 1)), tokens);
    assert_eq!(refusal(|p| p.byte_ids.truncate(p.byte_ids.len() - 1)), tokens);
    assert_eq!(refusal(|p| p.offsets[0] = 1.into()), tokens);
    assert_eq!(refusal(|p| p.offsets[3] = 1.into()), tokens, "descending");
    assert_eq!(refusal(|p| p.bytes.push(0)), tokens, "bytes of no token");
    assert_eq!(refusal(|p| p.byte_ids[0] = VOCAB.into()), Some(Error::BadTable("bytes' tokens")));
    assert_eq!(refusal(|p| p.manifest.tokenizer.bos = VOCAB.into()), Some(Error::BadTable("special tokens")));
    assert_eq!(refusal(|p| p.specials[0] = VOCAB.into()), Some(Error::BadTable("special tokens")));
    assert_eq!(refusal(|p| p.ends.push(0.into())), Some(Error::BadTable("end tokens")), "not sorted");
    assert_eq!(refusal(|p| p.ends.push(NONE.into())), Some(Error::BadTable("end tokens")));
    assert_eq!(refusal(|p| p.index.swap(0, 1)), Some(Error::BadTable("sorted tokens")));
    assert_eq!(refusal(|p| p.index[0] = VOCAB.into()), Some(Error::BadTable("sorted tokens")));
    assert_eq!(refusal(|p| p.merges.swap(0, 1)), Some(Error::BadTable("merges")));
    assert_eq!(refusal(|p| p.merges[2].result = VOCAB.into()), Some(Error::BadTable("merges")));
    assert_eq!(refusal(|p| p.ranks.push(0.into())), Some(Error::BadTable("ranks")));
}

#[test]
fn rejects_tokens_that_are_too_long() {
    let token_of = |bytes: usize| {
        refusal(|p| {
            p.offsets[8] = (13 + bytes as u32).into();
            p.bytes.resize(13 + bytes, b'x');
        })
    };
    assert_eq!(token_of(limits::TOKEN_BYTES_MAX), None);
    assert_eq!(token_of(limits::TOKEN_BYTES_MAX + 1), Some(Error::OutOfRange("a token's length")));
}

#[test]
fn rejects_too_many_merges_specials_ends_and_letters() {
    let merges = |count: usize| refusal(|p| p.merges = vec![p.merges[0]; count]);
    assert_eq!(merges(limits::MERGES_MAX + 1), Some(Error::OutOfRange("the number of merges")));
    assert_eq!(merges(limits::MERGES_MAX), Some(Error::BadTable("merges")), "as many as may be, but equal");
    let specials = |count: usize| refusal(|p| p.specials = vec![U32::new(6); count]);
    assert_eq!(specials(limits::SPECIALS_MAX), None);
    assert_eq!(specials(limits::SPECIALS_MAX + 1), Some(Error::OutOfRange("the number of special tokens")));
    let ends = |count: usize| refusal(|p| p.ends = vec![U32::new(6); count]);
    assert_eq!(ends(limits::ENDS_MAX), None);
    assert_eq!(ends(limits::ENDS_MAX + 1), Some(Error::OutOfRange("the number of end tokens")));
    let system = |count: usize| refusal(|p| p.system = vec![b'x'; count]);
    assert_eq!(system(limits::STRING_BYTES_MAX), None);
    assert_eq!(
        system(limits::STRING_BYTES_MAX + 1),
        Some(Error::OutOfRange("the length of the chat template"))
    );
    let name = |count: usize| refusal(|p| p.name = vec![b'x'; count]);
    assert_eq!(name(limits::STRING_BYTES_MAX + 1), Some(Error::OutOfRange("the model's name")));
}

/// Uses all that a proven container offers.
fn use_all(segments: &[Vec<u8>]) {
    let slices: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    let Ok(manifest) = Manifest::parse(slices[0]) else { return };
    let tokens = *manifest.tokenizer();
    for id in 0..=tokens.vocab() as u32 {
        let found = tokens.find(tokens.token(id));
        assert!(found.is_none_or(|found| tokens.token(found) == tokens.token(id)));
        assert!(tokens.merge(id, 0).is_none_or(|(_, result)| (result as usize) < tokens.vocab()));
        assert_eq!(tokens.token_kind(id).is_some(), (id as usize) < tokens.vocab());
    }
    assert!((0..=255).filter_map(|byte| tokens.byte_token(byte)).all(|id| (id as usize) < tokens.vocab()));
    assert!(tokens.specials().all(|id| (id as usize) < tokens.vocab()));
    let Ok(model) = Model::new(manifest, &slices) else { return };
    for info in manifest.tensors() {
        let view = model.tensor(info.kind, info.layer.unwrap_or(0)).unwrap();
        assert_eq!(view.bytes.len(), info.bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whoever changes bytes without the hashes is noticed.
    #[test]
    fn any_change_is_noticed(at in 0usize..8192, xor in 1u8..) {
        let mut segments = Parts::sound().build();
        let at = at % segments[0].len();
        segments[0][at] ^= xor;
        prop_assert!(Manifest::parse(&segments[0]).is_err());
    }

    /// Whoever can make hashes still cannot make the reader panic.
    #[test]
    fn no_content_panics(at in 0usize..8192, bytes in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut segments = Parts::sound().build();
        let at = at % (segments[0].len() - 64);
        segments[0][at..at + bytes.len()].copy_from_slice(&bytes);
        rehash(&mut segments[0]);
        use_all(&segments);
    }

    /// Nor by single numbers, which random bytes seldom hit.
    #[test]
    fn no_number_panics(at in 0usize..2048, value in prop::sample::select(vec![0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX])) {
        let mut segments = Parts::sound().build();
        let at = at * 4 % (segments[0].len() - 4);
        segments[0][at..at + 4].copy_from_slice(&value.to_le_bytes());
        rehash(&mut segments[0]);
        use_all(&segments);
    }

    #[test]
    fn no_end_panics(bytes in 0usize..8192) {
        let mut segments = Parts::sound().build();
        let bytes = bytes % segments[0].len();
        segments[0].truncate(bytes);
        prop_assert!(Manifest::parse(&segments[0]).is_err());
    }
}
