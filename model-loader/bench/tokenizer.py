#!/usr/bin/env python3
"""Compares this project's tokenizer with llama.cpp's, line by line.

    tokenizer.py --tool FLEXSERVE-MODEL --model MODEL.gguf --venv FOLDER [--json OUT] [--golden FOLDER]

The first call builds llama.cpp (PyPI: llama-cpp-python) in the virtual environment FOLDER, which takes minutes; later
calls reuse it. Lines come from files that a Debian system has and from a generator with a fixed
seed. Besides the model's own vocabulary, variants of it are compared: other pre-tokenizers, and a SentencePiece vocabulary
made of the same text. Exit code 1 if any line differs.
"""

import argparse
import collections
import functools
import glob
import json
import pathlib
import random
import subprocess
import sys
import tempfile

# The accuracy bench has the same peers and makes the same environment.
ACCURACY = pathlib.Path(__file__).resolve().parents[2] / "secure-partition" / "llm" / "bench"
sys.path.append(str(ACCURACY))
sys.dont_write_bytecode = True
from accuracy import enter_environment  # noqa: E402

FILES = [
    "/usr/share/common-licenses/*",
    "/usr/share/perl/5*/pod/perl*.pod",
    "/usr/share/perl/5*/*.pm",
    "/usr/lib/python3*/**/*.py",
    "/usr/share/zoneinfo/*.tab",
    "/usr/share/i18n/locales/*",
    "/usr/share/doc/*/copyright",
    "/etc/*.conf",
    "/etc/services",
]
LINES_FROM_FILES = 3000


def lines_from_files():
    """Lines of text and code, an even sample over all files that are there."""
    lines = []
    for pattern in FILES:
        for path in sorted(glob.glob(pattern, recursive=True))[:200]:
            try:
                with open(path, encoding="utf-8", newline="") as file:
                    lines += [line for line in file.read(200_000).split("\n") if line]
            except (OSError, UnicodeDecodeError):
                continue
    lines = sorted(set(lines))
    random.Random(1).shuffle(lines)
    return lines[:LINES_FROM_FILES]


def generated_lines():
    """What files seldom hold: every kind of character, long runs, things that look like special tokens."""
    dice = random.Random(2)
    spaces = [" ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
    marks = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'x", "'", "’s"]
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_start", "<s>", "</s>", "<unk>", "[USER]", ">>", "<0x41>"]
    emoji = ["😀", "👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "❤️", "🏳️‍🌈", "1️⃣"]
    words = ["hello", "World", "naïve", "Straße", "Привет", "мир", "你好", "世界", "こんにちは", "안녕", "שלום", "مرحبا", "नमस्ते", "ไทย", "ﬁ", "e\u0301", "x²", "½", "Ⅷ", "٣", "४", "①", "_a_b", "camelCase", "0x1f", "3.14159", "1,234,567", "2026-11-22", "€", "…", "—"]
    blocks = [(0x20, 0x7F), (0x80, 0x250), (0x250, 0x600), (0x600, 0xE00), (0xE00, 0x2000), (0x2000, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00), (0x20000, 0x32000), (0xE0000, 0xE0200), (0, 0x110000)]
    lines = []
    for run in (1, 2, 3, 4, 7, 8, 15, 16, 31, 64, 100, 1000):
        for space in spaces:
            lines += [space * run, "a" + space * run + "b", space * run + "42", "x" + space * run]
        lines += ["9" * run, "a" * run, "é" * run, "!" * run, "😀" * run, "-=" * run, "'s" * run]
    for start, end in blocks:
        for _ in range(60):
            characters = [dice.randrange(start, end) for _ in range(dice.randint(1, 40))]
            lines.append("".join(chr(c) for c in characters if not 0xD800 <= c < 0xE000 and c != 0))
    for _ in range(800):
        kinds = [spaces, spaces[:1], marks, specials, emoji, words, words, words]
        lines.append("".join(dice.choice(dice.choice(kinds)) for _ in range(dice.randint(1, 25))))
    for start in range(0, 0x110000, 512):
        text = "".join(chr(c) for c in range(max(start, 1), start + 512) if not 0xD800 <= c < 0xE000)
        lines.append(text)
    return [line for line in lines if line]


def ours(tool, model, lines, special):
    """Tokens of each line by this project."""
    command = [tool, "tokenize", model] + (["--special"] if special else [])
    text = "".join(json.dumps(line) + "\n" for line in lines)
    result = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


@functools.cache
def silence():
    """A log callback that drops everything. Cached, since llama.cpp keeps a pointer to it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


def theirs(model, lines, special):
    """Tokens of each line by llama.cpp."""
    import llama_cpp

    llama_cpp.llama_log_set(silence(), None)
    llama = llama_cpp.Llama(model_path=str(model), vocab_only=True, verbose=False)
    return [llama.tokenize(line.encode(), add_bos=True, special=special) for line in lines]


def metadata(model):
    """Vocabulary of a GGUF model."""
    import gguf

    fields = gguf.GGUFReader(model).fields
    strings = lambda key: [bytes(fields[key].parts[i]) for i in fields[key].data]
    kinds = fields["tokenizer.ggml.token_type"]
    return {
        "tokens": strings("tokenizer.ggml.tokens"),
        "kinds": [int(kinds.parts[i][0]) for i in kinds.data],
        "merges": [merge.decode() for merge in strings("tokenizer.ggml.merges")] if "tokenizer.ggml.merges" in fields else [],
    }


def write_variant(path, tokenizer, pre, tokens, kinds, merges=None, scores=None):
    """A tiny model with this vocabulary: what our packer wants beyond it is all zero."""
    import gguf
    import numpy

    width, writer = 32, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", numpy.zeros(width, numpy.float32))
    for name in [f"blk.0.{matrix}" for matrix in matrices]:
        writer.add_tensor(f"{name}.weight", numpy.zeros((width, width), numpy.float16))
    writer.add_tensor("token_embd.weight", numpy.zeros((len(tokens), width), numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sentencepiece_vocabulary(lines, most=20_000):
    """Pieces of the lines' words, the frequent ones first, with control, byte and user-defined tokens."""
    counts = collections.Counter()
    for line in lines:
        for word in ("▁" + line.replace(" ", "▁")).replace("▁", " ▁").split(" ")[:60]:
            for start in range(min(len(word), 12)):
                counts.update(word[start : start + size] for size in range(1, min(8, len(word) - start) + 1))
    pieces = [piece for piece, _ in counts.most_common(most) if not piece.startswith("<0x")]
    fixed = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["[USER]", ">>"]
    # llama.cpp lets pieces merge into control tokens, so that plain text can hold them; we never do. Without parts of their
    # texts neither can.
    parts = {text[i:j] for text in fixed[:3] for i in range(len(text)) for j in range(i + 2, len(text) + 1)}
    pieces = [piece for piece in pieces if piece not in fixed and piece not in parts]
    kinds = [2, 3, 3] + [6] * 256 + [4, 4] + [1] * len(pieces)
    # Equal scores now and then, so that ties are tried too.
    scores = [0.0] * len(fixed) + [-float(rank // 3) for rank in range(len(pieces))]
    return [piece.encode() for piece in fixed + pieces], kinds, scores


def variants(model, folder, lines):
    """The model itself, then files with the same vocabulary under other rules."""
    yield "own", model
    vocabulary = metadata(model)
    if vocabulary["merges"]:
        kinds = list(vocabulary["kinds"])
        kinds[3] = 4  # one user-defined token
        for pre in ["gpt-2", "llama-bpe"]:
            path = folder / f"{pre}.gguf"
            write_variant(path, "gpt2", pre, vocabulary["tokens"], kinds, merges=vocabulary["merges"])
            yield pre.replace("-", "_"), path
    path = folder / "spm.gguf"
    tokens, kinds, scores = sentencepiece_vocabulary(lines)
    write_variant(path, "llama", "default", tokens, kinds, scores=scores)
    yield "sentencepiece", path


def compare(tool, model, lines):
    """Lines compared, and those that differ, with and without special tokens."""
    differing = []
    for special in (False, True):
        for line, own, peer in zip(lines, ours(tool, model, lines, special), theirs(model, lines, special), strict=True):
            if own != peer:
                differing.append((line, special, own, peer))
    return 2 * len(lines), differing


def write_golden(folder, model, lines):
    """Samples with llama.cpp's tokens, for the unit tests."""
    sample = [line for line in random.Random(3).sample(lines, len(lines)) if len(line) <= 120][:400]
    with open(folder / "tokenizer.jsonl", "w", encoding="utf-8") as file:
        for special in (False, True):
            half = sample[300:] if special else sample[:300]
            for line, tokens in zip(half, theirs(model, half, special), strict=True):
                file.write(json.dumps({"text": line, "special": special, "tokens": tokens}) + "\n")
    tokens, kinds, scores = sentencepiece_vocabulary(lines, 1200)
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "spm.gguf"
        write_variant(path, "llama", "default", tokens, kinds, scores=scores)
        expected = theirs(path, sample[:150], False)
    vocabulary = {"tokens": [token.decode() for token in tokens], "kinds": kinds, "scores": scores}
    pairs = [{"text": line, "tokens": tokens} for line, tokens in zip(sample, expected)]
    (folder / "sentencepiece.json").write_text(json.dumps({**vocabulary, "lines": pairs}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", required=True, help="the flexserve-model program")
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--venv", type=pathlib.Path, required=True, help="where llama.cpp is installed")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--golden", type=pathlib.Path, help="write the unit tests' samples to this folder instead")
    arguments = parser.parse_args()
    enter_environment(arguments.venv)
    lines = lines_from_files() + generated_lines()
    if arguments.golden:
        return write_golden(arguments.golden, arguments.model, lines)
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for name, model in variants(arguments.model, pathlib.Path(folder), lines):
            count, differing = compare(arguments.tool, model, lines)
            print(f"{name}: {count} lines compared, {len(differing)} mismatches", flush=True)
            for line, special, own, peer in differing[:5]:
                print(f"  {line[:200]!r} (special tokens {special})\n    ours  {own[:40]}\n    theirs {peer[:40]}")
            for figure, value in [("lines", count), ("mismatches", len(differing))]:
                row = {"name": f"tokenizer_{figure}_{name}", "unit": "lines", "ours": value, "peer": None, "ratio": None}
                rows.append(row)
            failed |= bool(differing)
    if arguments.json:
        arguments.json.write_text(json.dumps({"commands": [" ".join(sys.argv)], "rows": rows}, indent=1))
    sys.exit(failed)


if __name__ == "__main__":
    main()
