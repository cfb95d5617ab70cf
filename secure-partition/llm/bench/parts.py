"""The parts of `accuracy.py`."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy
from convert import convert
from llama_cpp import Llama
from reference import Reference
from rounded import ALTERNATIVES, OPERATIONS, Rounded, packed_weights

WINDOW = 512
LONG = 2048
QUARTERS = 4
# Tokens of each text whose second half is evaluated once for each operation.
ABLATION = 256
# Predictions that are compared at a time: their distributions are large.
AT_ONCE = 64
ANSWER = 24
# The targets.
PERPLEXITY = 1.003
TOP_1 = 0.97
# From one position to another, the perplexity over float32's may vary by this much.
BY_POSITION = 1.003
# The divergence at later positions over that at the first ones.
LATER = 1.1
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


class Scores:
    """What was found of each prediction: one entry a prediction."""

    def __init__(self):
        self.nll, self.kl, self.same = [], [], []

    def extend(self, other):
        """Adds another's predictions."""
        self.nll += other.nll
        self.kl += other.kl
        self.same += other.same

    def part(self, first, end):
        """Only these predictions."""
        part = Scores()
        part.nll, part.kl, part.same = self.nll[first:end], self.kl[first:end], self.same[first:end]
        return part

    perplexity = property(lambda self: float(numpy.exp(numpy.mean(self.nll))))
    mean = property(lambda self: float(numpy.mean(self.kl)))
    p99 = property(lambda self: float(numpy.percentile(self.kl, 99)))
    top_1 = property(lambda self: float(numpy.mean(self.same)))


def log_softmax(logits):
    """Of each row."""
    logits = logits.astype(numpy.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))


def compare(reference, others, targets):
    """Scores of the reference and of others by their logits (predictions, vocab)."""
    scores = [Scores() for _ in range(1 + len(others))]
    for first in range(0, len(targets), AT_ONCE):
        chunk = slice(first, first + AT_ONCE)
        exact = log_softmax(reference[chunk])
        chosen = numpy.arange(len(exact)), targets[chunk]
        for score, logits in zip(scores, [reference, *others]):
            found = log_softmax(logits[chunk])
            score.nll += (-found[chosen]).tolist()
            score.kl += (numpy.exp(exact) * (exact - found)).sum(-1).tolist()
            score.same += (found.argmax(-1) == exact.argmax(-1)).tolist()
    return scores


class File:
    """A model file, and who evaluates it. Each of them is loaded when it is first asked for."""

    def __init__(self, path, program):
        self.path, self.program = path, program
        self.reference = self.peer = self.engine = None
        self.reader = ThreadPoolExecutor(1)

    def close(self):
        """Gives the memory back."""
        if self.engine:
            self.engine.stdin.close()
            self.engine.wait()
        self.reference = self.peer = self.engine = None

    def run(self, mode, argument, **more):
        """What the engine's program prints, line by line."""
        command = [self.program, self.path, mode, str(argument)]
        return [json.loads(line) for line in subprocess.run(command, check=True, stdout=-1, **more).stdout.splitlines()]

    def tokens(self, text):
        """Of a file of text."""
        return self.run("tokens", text)[0]

    def load_float32(self):
        """The float32 evaluation."""
        self.reference = self.reference or Reference(self.path)
        return self.reference

    def load_llama_cpp(self):
        """llama.cpp's model, as its Python package sets it up."""
        threads = os.cpu_count()
        more = {"n_ctx": LONG, "logits_all": True, "verbose": False, "n_threads": threads, "n_threads_batch": threads}
        self.peer = self.peer or Llama(str(self.path), **more)
        return self.peer

    def ask_engine(self, tokens, skip):
        """The engine's logits, some time: it computes while the others do."""
        if not self.engine:
            command = [self.program, self.path, "logits", str(LONG)]
            self.engine = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.vocab = len(gguf.GGUFReader(self.path).fields["tokenizer.ggml.tokens"].data)
        self.engine.stdin.write(json.dumps([skip, *tokens]).encode() + b"\n")
        self.engine.stdin.flush()
        size = 4 * self.vocab * (len(tokens) - skip)
        return self.reader.submit(lambda: numpy.frombuffer(self.engine.stdout.read(size), "<i4").reshape(-1, self.vocab))

    def float32(self, tokens, skip):
        """Logits behind the tokens, but for the first `skip`."""
        model = self.load_float32()
        model.reset()
        return model.logits(tokens, skip)

    def llama_cpp(self, tokens, skip):
        """The same by llama.cpp."""
        model = self.load_llama_cpp()
        model.reset()
        model.eval(tokens)
        return model.scores[skip : len(tokens)]

    def window(self, tokens, skip):
        """Scores of float32, the engine and llama.cpp over one window; all but the first `skip` predictions are scored."""
        inputs, targets = tokens[:-1], tokens[skip + 1 :]
        ours = self.ask_engine(inputs, skip)
        reference, peer = self.float32(inputs, skip), self.llama_cpp(inputs, skip)
        return compare(reference, [ours.result() / numpy.float32(65536), peer], targets)


def windows(tokens, size, count):
    """The first whole windows of a text."""
    return [tokens[first : first + size] for first in range(0, len(tokens) - size + 1, size)][:count]


def files(model, texts, count, rows, kind="Q4_1"):
    """Perplexity, KL divergence and agreement on the likeliest token, of one file."""
    print(f"\n{kind}: windows of {WINDOW} tokens, second half scored")
    print(f"{'':20}{'':12}{'perplexity':>12}{'/ float32':>11}{'KL mean':>12}{'KL 99 %':>12}{'same top-1':>12}")
    for text, tokens in texts.items():
        totals = [Scores(), Scores(), Scores()]
        chosen = windows(tokens, WINDOW, count)
        for tokens in chosen:
            for total, scores in zip(totals, model.window(tokens, WINDOW // 2 - 1)):
                total.extend(scores)
        float32, ours, peer = totals
        for name, score in zip(("float32", "this engine", "llama.cpp"), totals):
            figures = f"{score.perplexity:12.4f}{score.perplexity / float32.perplexity:11.5f}"
            print(f"{text:20}{name:12}{figures}{score.mean:12.2e}{score.p99:12.2e}{score.top_1:12.2%}")
        print(f"{text:20}{len(ours.kl)} predictions in {len(chosen)} windows")
        name = lambda row: f"accuracy_{row}/{kind.lower()}/{text}"
        # llama.cpp's may fall below float32's by chance; ours has to be as near then.
        distance = abs(peer.perplexity - float32.perplexity)
        rows.add(name("perplexity"), "perplexity", ours.perplexity, float32.perplexity, most=PERPLEXITY * float32.perplexity)
        rows.add(name("perplexity_llama_cpp"), "perplexity", ours.perplexity, peer.perplexity, most=float32.perplexity + distance)
        rows.add(name("kl_mean"), "nats", ours.mean, peer.mean, most=peer.mean)
        rows.add(name("kl_p99"), "nats", ours.p99, peer.p99, most=peer.p99)
        rows.add(name("top_1"), "fraction", ours.top_1, peer.top_1, least=TOP_1)


def converted(model, path, kind, texts, count, rows):
    """The same of a model's weights in another type."""
    convert(model.path, path, kind)
    file = File(path, model.program)
    files(file, texts, count, rows, kind)
    Ablation(file, texts, kind, rows).measure("weights", {"weights"})
    file.close()
    path.unlink()


class Ablation:
    """A model's first tokens of each text, evaluated by float32 and by float32 with some operations rounded."""

    def __init__(self, file, texts, kind, rows):
        self.reference, self.weights = file.load_float32(), packed_weights(file.path)
        self.kind, self.rows = kind.lower(), rows
        self.texts = [tokens[:ABLATION] for tokens in texts.values()]
        self.exact = [self.evaluate(self.reference, tokens) for tokens in self.texts]

    def evaluate(self, model, tokens):
        """Logits behind the second half of the tokens."""
        model.reset()
        return model.logits(tokens[:-1], ABLATION // 2 - 1)

    def measure(self, name, operations):
        """Prints and notes the KL divergence that these operations cause."""
        total = Scores()
        rounded = Rounded(self.reference, operations, self.weights)
        for exact, tokens in zip(self.exact, self.texts):
            total.extend(compare(exact, [self.evaluate(rounded, tokens)], tokens[ABLATION // 2 :])[1])
        print(f"{f'{self.kind}: {name}':30}{total.mean:12.2e}{total.p99:12.2e}{total.top_1:12.2%}")
        self.rows.add(f"accuracy_ablation_kl/{self.kind}/{name}", "nats", total.mean)


def ablation(model, texts, rows):
    """What each rounding of the engine costs: float32 with that operation alone as the engine has it."""
    print(f"\n{'float32 but for':30}{'KL mean':>12}{'KL 99 %':>12}{'same top-1':>12}")
    found = Ablation(model, texts, "Q4_1", rows)
    for name in (*OPERATIONS, *ALTERNATIVES):
        found.measure(name, {name})
    found.measure("all", set(OPERATIONS))


def positions(model, texts, rows):
    """Perplexity and KL divergence by position, in a window of 2,048 tokens of each text."""
    totals = [[Scores(), Scores(), Scores()] for _ in range(QUARTERS)]
    for tokens in texts.values():
        for tokens in windows(tokens, LONG, 1):
            found = model.window(tokens, 0)
            for quarter, total in enumerate(totals):
                bounds = (quarter * LONG // QUARTERS, (quarter + 1) * LONG // QUARTERS)
                for total, scores in zip(total, found):
                    total.extend(scores.part(*bounds))
    print(f"\n{'predictions of a window':24}{'perplexity':>12}{'/ float32':>11}{'KL mean':>12}{'llama.cpp':>12}{'KL mean':>12}")
    for quarter, (float32, ours, peer) in enumerate(totals, 1):
        first, end = (quarter - 1) * LONG // QUARTERS, quarter * LONG // QUARTERS
        ratio, other = ours.perplexity / float32.perplexity, peer.perplexity / float32.perplexity
        print(f"{f'{first}..{end}':24}{ours.perplexity:12.4f}{ratio:11.5f}{ours.mean:12.2e}{other:12.5f}{peer.mean:12.2e}")
        most = BY_POSITION * float32.perplexity
        rows.add(f"accuracy_perplexity_by_position/{quarter}", "perplexity", ours.perplexity, float32.perplexity, most=most)
        most = min(peer.mean, LATER * totals[0][1].mean)
        rows.add(f"accuracy_kl_by_position/{quarter}", "nats", ours.mean, peer.mean, most=most)


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


def agreement(ours, theirs):
    """Prompts that are answered alike, and tokens before the first difference, of all."""
    alike = sum(a == b for a, b in zip(ours, theirs))
    common = sum(len(os.path.commonprefix([a, b])) for a, b in zip(ours, theirs))
    return alike, common / max(1, sum(map(len, theirs)))


def answers(model, rows):
    """Greedy answers, token by token."""
    found = model.run("answers", ANSWER, input="\n".join(PROMPTS).encode())
    end = gguf.GGUFReader(model.path).fields["tokenizer.ggml.eos_token_id"].contents()
    float32, llama = model.load_float32(), model.load_llama_cpp()

    def step_llama_cpp(tokens):
        llama.eval(tokens)
        return llama.scores[llama.n_tokens - 1]

    def replies(peer, step):
        for answer in found:
            peer.reset()
            yield greedy(step, answer["prompt_ids"], {end})

    exact = list(replies(float32, lambda tokens: float32.logits(tokens, len(tokens) - 1)[-1]))
    alike, common = agreement([answer["output_ids"] for answer in found], exact)
    peer_alike, peer_common = agreement(list(replies(llama, step_llama_cpp)), exact)
    print(f"\n{'greedy answers':24}{'same as float32':>16}{'same tokens':>13}")
    print(f"{'this engine':24}{alike:13}/{len(PROMPTS)}{common:13.1%}")
    print(f"{'llama.cpp':24}{peer_alike:13}/{len(PROMPTS)}{peer_common:13.1%}")
    for prompt, answer in zip(PROMPTS, found):
        print(f"  {prompt} -> {answer['text']!r}")
    rows.add("accuracy_same_answers", f"of {len(PROMPTS)}", alike, peer_alike, least=peer_alike)
    rows.add("accuracy_same_tokens", "fraction", common, peer_common, least=peer_common)
