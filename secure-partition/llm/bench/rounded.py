"""The float32 reference with some of its operations rounded as the integer engine rounds them, to see what each costs.

Each operation is the engine's, in numpy: `silu.rs`, `norm.rs`, `rope.rs`, `attention.rs`, `cache.rs`, `activations.rs`,
`pack.rs`. Keys and values are those of a model without weights of 16 bits.
"""

import gguf
import numpy
from gguf.quants import dequantize
from reference import Reference

# Where a token's values become the octets that a matrix is multiplied with, and by how much a block's largest must exceed the mean
# of that of all blocks to have two.
INPUTS = {
    "attention_in": 2,
    "attention_out": numpy.inf,
    "feed_forward_in": 2,
    "feed_forward_down": 4,
    "head_in": 2,
}
# The largest mantissa, octet, and number that two octets hold.
MANTISSA, OCTET, PAIR = 4096 * 127, 127, 127 * 255 + 127
# Bits of queries and of weights of the mixture, but for the sign.
WORD = 15
# In the order of the table.
OPERATIONS = (
    *("weights", *INPUTS, "residual", "norm", "projections", "rotation", "keys", "values", "query"),
    *("softmax", "mixture", "gate", "logits"),
)
# What it would cost to do otherwise, and what float32 itself costs.
ALTERNATIVES = ("octets", "two_octets", "activations_of_8_bits", "keys_as_they_are", "keys_and_values_of_15_bits", "float64")

ONE = 1 << 30
EXP2 = (2_004_816, 9_681_962, 59_914_701, 257_874_615, 744_265_554, ONE)
# Numbers of a key or a query that a Hadamard matrix mixes.
MIXED = 16


def nearest(x, step):
    """The nearest multiple of `step`, halves up."""
    return numpy.floor(x.astype(numpy.float64) / step + 0.5) * step


def mantissas(x, bits):
    """Rounds each row to integers of this many bits under one power of 2."""
    _, exponent = numpy.frexp(numpy.abs(x).max(-1, keepdims=True))
    return nearest(x, numpy.ldexp(1.0, exponent - bits))


def activations(x, excess):
    """Rounds each row's blocks of 32 to octets with a scale each, or two octets where the largest exceeds the mean that much."""
    _, exponent = numpy.frexp(numpy.abs(x).max(-1, keepdims=True))
    unit = numpy.ldexp(1.0, exponent - 19)
    unit *= 1 + (nearest(numpy.abs(x).max(-1, keepdims=True), unit) > MANTISSA * unit)
    blocks = (nearest(x, unit) / unit).reshape(*x.shape[:-1], -1, 32)
    largest = numpy.abs(blocks).max(-1, keepdims=True)
    one = nearest(blocks, numpy.maximum(numpy.ceil(largest / OCTET), 1))
    two = nearest(blocks, 2.0 ** numpy.ceil(numpy.log2(numpy.maximum(largest / PAIR, 1))))
    outliers = largest > excess * largest.mean(-2, keepdims=True)
    return numpy.where(outliers, two, one).reshape(x.shape) * unit


def octets(x, block, largest=OCTET):
    """Rounds to 8-bit integers, with a scale for each block, as llama.cpp does."""
    blocks = x.reshape(*x.shape[:-1], -1, block)
    scale = numpy.abs(blocks).max(-1, keepdims=True) / largest
    return (numpy.round(blocks / numpy.where(scale == 0, 1, scale)) * scale).reshape(x.shape)


def turned(x):
    """Mixes each 16 numbers of a head of 64, 4 apart, by an orthogonal matrix that is its own inverse."""
    pieces, matrix = x.reshape(*x.shape[:-1], -1, MIXED, 4), numpy.ones((1, 1))
    while len(matrix) < MIXED:
        matrix = numpy.block([[matrix, matrix], [matrix, -matrix]]) / 2**0.5
    return numpy.einsum("ij,...jk->...ik", matrix, pieces).reshape(x.shape)


def exp2(x):
    """2^x of x <= 0 in Q15.16 (int64), in Q2.30."""
    whole, fraction = x >> 16, x & 0xFFFF
    mantissa = 0
    for factor in EXP2:
        mantissa = factor + ((mantissa * (fraction << 15) + ONE) >> 31)
    return numpy.where(whole < -31, 0, mantissa >> numpy.clip(-whole, 0, 31))


def high(a, b):
    """The product's upper word but one bit, rounded."""
    return a * b + (1 << 30) >> 31


# 2^(u/2), lowest term first, of u in Q0.31.
POWER = ((1 << 30) - 1, 372_118_218, 64_489_199, 7_503_633, 643_094)


def sigmoid(x):
    """1 / (1 + e^-x) of x in Q15.16 (int64), in Q2.30."""
    exponent = high(numpy.minimum(numpy.abs(x) << 10, (1 << 31) - 1), -1_549_082_005)
    whole = exponent + (1 << 24) >> 25
    u = exponent - (whole << 25) << 7
    power = POWER[-1]
    for term in POWER[-2::-1]:
        power = high(power, u) + term
    shift = -whole - 1
    e = numpy.where(shift < 0, power << 1, power + (1 << numpy.maximum(shift, 0) >> 1) >> numpy.maximum(shift, 0))
    total = (1 << 31) + e
    estimate = ((1 << 19) // (2 * (total >> 23) + 1) + 1 >> 1) << 22
    inverse = high(estimate, (1 << 31) - high(total >> 1, estimate))
    return high(numpy.where(x < 0, e, (1 << 31) - 1), inverse)


def room(x):
    """By how much each row's words can be shifted left."""
    return 31 - numpy.frexp(numpy.abs(x).max(-1, keepdims=True).astype(numpy.float64))[1]


def row_mantissas(scales):
    """Rounds (rows, blocks, ...) to 15-bit integers under one power of 2 a row."""
    flat = scales.reshape(len(scales), -1)
    return mantissas(flat, 15).reshape(scales.shape)


def packed(tensor):
    """The numbers of a matrix as they are once packed."""
    kind, rows = gguf.GGMLQuantizationType(tensor.tensor_type), len(tensor.data)
    if kind == gguf.GGMLQuantizationType.Q4_1:
        blocks = tensor.data.reshape(rows, -1, 20)
        halves = blocks[..., :4].copy().view(numpy.float16).astype(numpy.float64)
        # The kernels know nibbles less 8 and times 16, and multiply minima by 128.
        both = numpy.stack([halves[..., 0] / 16, (halves[..., 1] + 8 * halves[..., 0]) / 128], -1)
        scale, minimum = numpy.moveaxis(row_mantissas(both), -1, 0)[..., None]
        nibbles = numpy.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1).astype(numpy.float64) - 8
        return (16 * scale * nibbles + 128 * minimum).reshape(rows, -1)
    values = dequantize(tensor.data, kind).astype(numpy.float64).reshape(rows, -1, 32)
    if kind == gguf.GGMLQuantizationType.Q8_0:
        octet = tensor.data.reshape(rows, -1, 34)
        scale = octet[..., :2].copy().view(numpy.float16).astype(numpy.float64)
        return (row_mantissas(scale) * octet[..., 2:].view(numpy.int8)).reshape(rows, -1)
    # Scales of 7 bits under one power of 2 a row, rounded up so that 16 bits of each weight are enough.
    scale = numpy.abs(values).max(-1, keepdims=True) / 32639
    mantissa, exponent = numpy.frexp(scale.max(1, keepdims=True))
    step = numpy.ldexp(1.0, exponent - 7 + (mantissa * 128 > 127))
    scale = numpy.maximum(numpy.ceil(scale / step), 1) * step
    return (scale * numpy.round(values / scale)).reshape(rows, -1)


def packed_weights(path):
    """The weights of a file as they are once packed, in float32."""
    tensors = gguf.GGUFReader(path).tensors
    return {
        t.name: numpy.ascontiguousarray(packed(t), dtype=numpy.float32) for t in tensors if len(t.shape) == 2
    }


class Rounded(Reference):
    """A reference's model, with the `operations` rounded."""

    def __init__(self, reference, operations, weights):
        self.__dict__.update(reference.__dict__)
        self.operations = operations
        if "weights" in operations:
            self.weights = {**self.weights, **weights}
        if "float64" in operations:
            self.real = numpy.float64
        self.reset()

    def stored(self, place, x):
        rounds = lambda operation: operation in self.operations
        out = x
        if place in INPUTS and rounds(place):
            out = activations(x, INPUTS[place])
        elif place in INPUTS and rounds("octets"):
            out = activations(x, numpy.inf)
        elif place in INPUTS and rounds("two_octets"):
            out = activations(x, 0)
        elif place in INPUTS and rounds("activations_of_8_bits"):
            out = octets(x, 32)
        elif place in ("projections", "logits") and rounds(place):
            out = nearest(x, 2.0**-16)
        elif place == "residual" and rounds(place):
            out = nearest(x, 2.0**-24)
        elif place == "keys" and rounds(place):
            out = turned(octets(turned(x), self.head_dim))
        elif place == "keys" and rounds("keys_as_they_are") or place == "values" and rounds(place):
            out = octets(x, self.head_dim)
        elif place in ("keys", "values") and rounds("keys_and_values_of_15_bits"):
            out = octets(x, self.head_dim, 127 * 128 + 63)
        elif place == "query" and rounds(place):
            out = turned(mantissas(turned(x), WORD))
        elif place == "mixture" and rounds(place):
            out = mantissas(x, WORD)
        return out.astype(self.real, copy=False)

    def norm(self, x, weight):
        if "norm" not in self.operations:
            return super().norm(x, weight)
        x, weight = x.astype(numpy.float64), weight.astype(numpy.float64)
        _, exponent = numpy.frexp(numpy.abs(x).max(-1, keepdims=True))
        narrow = nearest(numpy.ldexp(x, 30 - exponent), 1).astype(numpy.int64)
        squares = high(narrow, narrow).mean(-1, keepdims=True) * 2.0**31
        mean = squares + numpy.ldexp(float(self.epsilon), 2 * (30 - exponent))
        shift = 30 - numpy.frexp(numpy.abs(weight).max())[1]
        weighted = high(narrow, numpy.round(numpy.ldexp(weight, shift)).astype(numpy.int64))
        root, power = numpy.frexp(1 / numpy.sqrt(mean))
        out = high(weighted, numpy.floor(numpy.ldexp(root, 31)).astype(numpy.int64))
        return numpy.ldexp(out.astype(numpy.float64), 31 - shift + power).astype(self.real)

    def rotate(self, x, first):
        if "rotation" not in self.operations:
            return super().rotate(x, first)
        # The angle's rounding, to 2^-64 of a turn a position, is below what float64 holds.
        angles = (first + numpy.arange(len(x)))[:, None] * self.turns
        cos, sin = (nearest(f(angles), 2.0**-30)[:, None] for f in (numpy.cos, numpy.sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        out = numpy.empty_like(x)
        out[..., 0::2] = nearest(even * cos - odd * sin, 2.0**-16)
        out[..., 1::2] = nearest(even * sin + odd * cos, 2.0**-16)
        return out

    def softmax(self, scores):
        if "softmax" not in self.operations:
            return super().softmax(scores)
        # 2^-16 below the most negative score is nothing.
        scores = numpy.maximum(scores * numpy.log2(numpy.e), -(2.0**13))
        scores = nearest(scores, 2.0**-16) * 65536
        weights = exp2((scores - scores.max(-1, keepdims=True)).astype(numpy.int64)).astype(numpy.float64)
        return (weights / weights.sum(-1, keepdims=True)).astype(self.real)

    def gated(self, gate, up):
        if "gate" not in self.operations:
            return super().gated(gate, up)
        gate, up = (nearest(v, 2.0**-16) * 65536 for v in (gate, up))
        gate, up = (v.astype(numpy.int64) for v in (gate, up))
        shifts = room(gate), room(up)
        out = high(high(gate << shifts[0], sigmoid(gate)), up << shifts[1])
        return numpy.ldexp(out.astype(numpy.float64), -(shifts[0] + shifts[1])).astype(self.real)
