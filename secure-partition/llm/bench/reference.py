"""Llama-architecture inference in float32, on the dequantised weights of a GGUF file."""

import gguf
import numpy
from gguf.quants import dequantize


class Reference:
    """A model, and the keys and values of the tokens so far.

    Every operation that the integer engine rounds is a method of its own, for `rounded.py` to replace.
    """

    real = numpy.float32

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        field = lambda name: reader.fields["llama." + name].contents()
        self.layers = field("block_count")
        self.heads = field("attention.head_count")
        self.kv_heads = field("attention.head_count_kv")
        self.width = field("embedding_length")
        self.head_dim = self.width // self.heads
        self.epsilon = numpy.float32(field("attention.layer_norm_rms_epsilon"))
        pairs = numpy.arange(0, field("rope.dimension_count"), 2)
        self.turns = field("rope.freq_base") ** (-pairs / field("rope.dimension_count"))
        self.weights = {
            tensor.name: numpy.ascontiguousarray(self.weight(tensor), dtype=numpy.float32)
            for tensor in reader.tensors
        }
        self.reset()

    def reset(self):
        """Forgets every token."""
        self.keys = [numpy.zeros((0, self.kv_heads, self.head_dim), self.real)] * self.layers
        self.values = list(self.keys)

    def weight(self, tensor):
        """The numbers of a tensor of the file."""
        return dequantize(tensor.data, tensor.tensor_type)

    def stored(self, place, x):
        """What is left of values (..., vector) that are stored in a place."""
        return x

    def norm(self, x, weight):
        """RMS norm of each row."""
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * weight

    def rotate(self, x, first):
        """Rotates adjacent pairs of (tokens, heads, head_dim); the first token's position is `first`."""
        angles = (first + numpy.arange(len(x)))[:, None] * self.turns
        cos, sin = (f(angles).astype(self.real)[:, None] for f in (numpy.cos, numpy.sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        out = numpy.empty_like(x)
        out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    def softmax(self, scores):
        """Of each row. A score is minus infinity where nothing is looked at."""
        scores = numpy.exp(scores - scores.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True)

    def gated(self, gate, up):
        """SiLU of the gate, times the other one."""
        return gate / (1 + numpy.exp(-gate)) * up

    def attention(self, layer, x, weight):
        """Attention of the new tokens to all so far."""
        first, tokens = len(self.keys[layer]), len(x)
        query, key, value = (
            self.stored("projections", x @ weight(name).T).reshape(tokens, -1, self.head_dim)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        query = self.stored("query", self.rotate(query, first))
        key = self.stored("keys", self.rotate(key, first))
        self.keys[layer] = numpy.concatenate([self.keys[layer], key])
        self.values[layer] = numpy.concatenate([self.values[layer], self.stored("values", value)])
        hidden = numpy.triu(numpy.full((tokens, first + tokens), -numpy.inf, numpy.float32), first + 1)
        mixed = numpy.empty_like(query)
        for head in range(self.heads):
            group = head * self.kv_heads // self.heads
            scores = query[:, head] @ self.keys[layer][:, group].T / self.real(self.head_dim**0.5)
            weights = self.stored("mixture", self.softmax(scores + hidden))
            mixed[:, head] = weights @ self.values[layer][:, group]
        return self.stored("attention_out", mixed.reshape(tokens, -1)) @ weight("attn_output").T

    def logits(self, tokens, skip=0):
        """Adds tokens and returns the logits behind each of them, but for the first `skip`."""
        x = self.weights["token_embd.weight"][tokens].astype(self.real)
        for layer in range(self.layers):
            weight = lambda name, layer=layer: self.weights[f"blk.{layer}.{name}.weight"]
            hidden = self.stored("attention_in", self.norm(x, weight("attn_norm")))
            x = self.stored("residual", x + self.attention(layer, hidden, weight))
            hidden = self.stored("feed_forward_in", self.norm(x, weight("ffn_norm")))
            gate, up = (self.stored("projections", hidden @ weight(name).T) for name in ("ffn_gate", "ffn_up"))
            hidden = self.stored("feed_forward_down", self.gated(gate, up))
            x = self.stored("residual", x + hidden @ weight("ffn_down").T)
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        hidden = self.stored("head_in", self.norm(x[skip:], self.weights["output_norm.weight"]))
        return self.stored("logits", hidden @ head.T)
