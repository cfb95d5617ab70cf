"""Llama-architecture inference in float32, on the dequantised weights of a GGUF file."""

import gguf
import numpy
from gguf.quants import dequantize


class Reference:
    """A model, and the keys and values of the tokens so far."""

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
            tensor.name: numpy.ascontiguousarray(
                dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32
            )
            for tensor in reader.tensors
        }
        self.reset()

    def reset(self):
        """Forgets every token."""
        self.keys = [numpy.zeros((0, self.kv_heads, self.head_dim), numpy.float32)] * self.layers
        self.values = list(self.keys)

    def norm(self, x, weight):
        """RMS norm of each row."""
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * weight

    def rotate(self, x, first):
        """Rotates adjacent pairs of (tokens, heads, head_dim); the first token's position is `first`."""
        angles = (first + numpy.arange(len(x)))[:, None] * self.turns
        cos, sin = (f(angles).astype(numpy.float32)[:, None] for f in (numpy.cos, numpy.sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        out = numpy.empty_like(x)
        out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    def attention(self, layer, x, weight):
        """Attention of the new tokens to all so far."""
        first, tokens = len(self.keys[layer]), len(x)
        query = self.rotate((x @ weight("attn_q").T).reshape(tokens, self.heads, -1), first)
        key = self.rotate((x @ weight("attn_k").T).reshape(tokens, self.kv_heads, -1), first)
        value = (x @ weight("attn_v").T).reshape(tokens, self.kv_heads, -1)
        self.keys[layer] = numpy.concatenate([self.keys[layer], key])
        self.values[layer] = numpy.concatenate([self.values[layer], value])
        group = self.heads // self.kv_heads
        keys = numpy.repeat(self.keys[layer], group, 1)
        values = numpy.repeat(self.values[layer], group, 1)
        scores = numpy.einsum("thd,shd->hts", query, keys, optimize=True)
        scores /= numpy.float32(self.head_dim**0.5)
        scores += numpy.triu(numpy.full((tokens, first + tokens), -numpy.inf, numpy.float32), first + 1)
        scores = numpy.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = numpy.einsum("hts,shd->thd", scores, values, optimize=True)
        return mixed.reshape(tokens, -1) @ weight("attn_output").T

    def logits(self, tokens):
        """Adds tokens and returns the logits behind each of them."""
        x = self.weights["token_embd.weight"][tokens]
        for layer in range(self.layers):
            weight = lambda name, layer=layer: self.weights[f"blk.{layer}.{name}.weight"]
            x = x + self.attention(layer, self.norm(x, weight("attn_norm")), weight)
            hidden = self.norm(x, weight("ffn_norm"))
            gate, up = hidden @ weight("ffn_gate").T, hidden @ weight("ffn_up").T
            x = x + (gate / (1 + numpy.exp(-gate)) * up) @ weight("ffn_down").T
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return self.norm(x, self.weights["output_norm.weight"]) @ head.T
