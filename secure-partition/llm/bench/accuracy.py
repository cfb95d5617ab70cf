#!/usr/bin/env python3
"""Holds the integer engine to a float32 evaluation of the same weights, and to llama.cpp.

Perplexity over a text, in windows of 512 tokens, and greedy answers to ten prompts. Prints a table, and writes --json.
Exits with 1 if the engine's perplexity is more than 1.5 % above float32's.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT = 1.015
ANSWER = 24
PROMPTS = [
    "What is the capital of France?",
    "What is 7 plus 5?",
    "Name three primary colors.",
    "Who wrote Romeo and Juliet?",
    "Write a haiku about the sea.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Write a Python function that reverses a string.",
]


def enter_environment(folder):
    """Runs this script again inside a virtual environment with what it needs, made if it is not there."""
    python = folder / "bin" / "python"
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    stamp = folder / "requirements.txt"
    requirements = HERE / "requirements.txt"
    if not stamp.exists() or stamp.read_bytes() != requirements.read_bytes():
        needs = {"python3-venv": importlib.util.find_spec("ensurepip"), "g++": shutil.which("c++")}
        missing = " ".join(package for package, found in needs.items() if not found)
        if missing:
            sys.exit(f"the peers cannot be installed; first: apt-get install --no-install-recommends {missing}")
        print(f"Installing {', '.join(requirements.read_text().split())} into {folder} (minutes, once)", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        stamp.write_bytes(requirements.read_bytes())
    os.execv(python, [python, *sys.argv])


def nll(logits, targets):
    """Negative log-likelihood of each target, given (tokens, vocab) logits."""
    logits = logits.astype("float64")
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[range(len(targets)), targets]
    return (numpy.log(numpy.exp(logits).sum(-1)) - chosen).tolist()


def greedy(step, prompt, ends):
    """Answers a prompt greedily; `step(tokens)` adds tokens and returns the logits behind the last one."""
    answer, logits = [], step(prompt)
    while len(answer) < ANSWER:
        token = int(logits.argmax())
        if token in ends:
            break
        answer.append(token)
        logits = step([token])
    return answer


def perplexity(values):
    """Of negative log-likelihoods."""
    return math.exp(sum(values) / len(values))


def peer_float32(path):
    """Evaluates and answers with numpy."""
    model = Reference(path)

    def evaluate(tokens):
        model.reset()
        return model.logits(tokens)

    return evaluate, lambda tokens: model.logits(tokens)[-1], model.reset


def peer_llama_cpp(path):
    """Evaluates and answers with llama.cpp."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=1024, logits_all=True, verbose=False, n_threads=os.cpu_count())

    def evaluate(tokens):
        model.reset()
        model.eval(tokens)
        return model.scores[: len(tokens)]

    def step(tokens):
        model.eval(tokens)
        return model.scores[model.n_tokens - 1]

    return evaluate, step, model.reset


def measure(peer, windows, answers, ends):
    """A peer's perplexity, and its answers to the engine's prompts."""
    evaluate, step, reset = peer
    values = []
    for window in windows:
        tokens = window["tokens"]
        values += nll(evaluate(tokens)[:-1], tokens[1:])
    replies = []
    for answer in answers:
        reset()
        replies.append(greedy(step, answer["prompt_ids"], ends))
    return perplexity(values), replies


def agreement(ours, theirs):
    """Prompts that are answered alike, and tokens before the first difference, of all."""
    alike = sum(a == b for a, b in zip(ours, theirs))
    common = sum(len(os.path.commonprefix([a, b])) for a, b in zip(ours, theirs))
    return alike, common / max(1, sum(map(len, theirs)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--evaluate", type=Path, required=True, help="the example `evaluate` of flexserve-model-loader")
    parser.add_argument("--venv", type=Path, required=True, help="where the peers are installed")
    parser.add_argument("--text", type=Path, default="/usr/share/common-licenses/GPL-3")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    enter_environment(options.venv)
    global numpy, Reference
    import numpy
    from reference import Reference

    def engine(*arguments, **more):
        command = [options.evaluate, options.model, *arguments]
        return [json.loads(line) for line in subprocess.run(command, check=True, stdout=-1, **more).stdout.splitlines()]

    windows = engine("perplexity", options.text)
    answers = engine("answers", str(ANSWER), input="\n".join(PROMPTS).encode())
    ours = perplexity(sum((window["nll"] for window in windows), []))
    replies = [answer["output_ids"] for answer in answers]
    import gguf

    end = gguf.GGUFReader(options.model).fields["tokenizer.ggml.eos_token_id"].contents()
    float32, float32_replies = measure(peer_float32(options.model), windows, answers, {end})
    llama, llama_replies = measure(peer_llama_cpp(options.model), windows, answers, {end})
    tokens = sum(len(window["nll"]) for window in windows)
    print(f"{options.text}: {options.text.stat().st_size} bytes, {tokens} predictions, windows of 512 tokens")
    print(f"{'':24}{'perplexity':>12}{'/ float32':>11}{'same answers':>14}{'same tokens':>13}")
    alike, common = agreement(replies, float32_replies)
    llama_alike, llama_common = agreement(llama_replies, float32_replies)
    print(f"{'float32':24}{float32:12.4f}{1:11.5f}")
    print(f"{'this engine':24}{ours:12.4f}{ours / float32:11.5f}{alike:11}/10{common:13.1%}")
    print(f"{'llama.cpp':24}{llama:12.4f}{llama / float32:11.5f}{llama_alike:11}/10{llama_common:13.1%}")
    for prompt, answer in zip(PROMPTS, answers):
        print(f"  {prompt} -> {answer['text']!r}")
    rows = [
        ("accuracy_perplexity", "perplexity", ours, float32),
        ("accuracy_perplexity_llama_cpp", "perplexity", ours, llama),
        ("accuracy_same_answers", "of 10", alike, llama_alike),
        ("accuracy_same_tokens", "fraction", common, llama_common),
    ]
    if options.json:
        keys = ("name", "unit", "ours", "peer", "ratio")
        rows = [dict(zip(keys, (*row, row[2] / row[3] if row[3] else None))) for row in rows]
        options.json.write_text(json.dumps({"commands": [" ".join(map(str, sys.argv))], "rows": rows}, indent=1) + "\n")
    if ours > LIMIT * float32:
        sys.exit(f"perplexity is {ours / float32 - 1:.2%} above float32's, more than {LIMIT - 1:.1%}")


if __name__ == "__main__":
    main()
