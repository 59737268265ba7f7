"""How many floating-point operations and bytes a model's passes take. Pure.

A matrix product with w weights takes 2w FLOP a token, so a forward and backward pass takes 6w (Narayanan et al.,
2104.04473, appendix; the "6 N T" of scaling laws). Causal attention of a sequence of n tokens adds, in every layer,
2 n^2 x heads x head_dim FLOP forward: QK^T and the weighted sum of V, 2 x 2 x n^2 / 2. Norms, rotations, softmax and
the embedding are left out. Recomputation runs a part of the forward pass again (Korthikanti et al., 2205.05198): `full`
that of the layers, `selective` that of attention alone.

Invariants:
- as_counted: the FLOPs are those of a model written out product by product.
- stages_add_up: the stages of a pipeline together do what one rank would.
- more_is_more: more tokens, or the same in fewer and longer sequences, never take fewer operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.config import LearnerConfig
from siri_megatron.estimate.activations import BYTES
from siri_megatron.learner.architecture import Architecture

BACKWARD = 2
"""Of the forward pass: gradients of inputs and of weights."""


@dataclass(frozen=True)
class Passes:
    """FLOPs of one micro-batch on one pipeline stage (all of its tensor- and context-parallel ranks together)."""

    forward: float
    backward: float
    """With what is recomputed."""

    @property
    def both(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class ModelWork:
    """A model as seen by the clock."""

    layers: int
    layer_weights: int
    """Weights of a layer's matrix products."""
    head_weights: int
    """Weights of the output layer."""
    attention_width: int
    """heads x head_dim."""
    hidden: int
    key_value_width: int
    """Numbers that a token leaves in the KV cache of a layer: 2 x groups x head_dim."""
    item: int
    """Bytes of a number."""

    @classmethod
    def of(cls, arch: Architecture, dtype: str) -> ModelWork:
        width, key_value = arch.heads * arch.head_dim, 2 * arch.groups * arch.head_dim
        layer = arch.hidden * (width + key_value) + width * arch.hidden + 3 * arch.hidden * arch.ffn
        return cls(arch.layers, layer, arch.hidden * arch.vocab, width, arch.hidden, key_value, BYTES[dtype])

    @property
    def weight_bytes(self) -> int:
        """What a decode round reads of the weights: every matrix product once."""
        return (self.layers * self.layer_weights + self.head_weights) * self.item

    @property
    def context_bytes(self) -> int:
        """What a decode round reads of the KV cache for each token of context."""
        return self.layers * self.key_value_width * self.item

    @property
    def token_flops(self) -> float:
        """A token through all matrix products, forward."""
        return 2.0 * (self.layers * self.layer_weights + self.head_weights)

    @property
    def context_flops(self) -> float:
        """Attention of one new token to one token of context, all layers."""
        return 4.0 * self.layers * self.attention_width

    def stage(self, layout: LearnerConfig, stage: int, tokens: float, squares: float) -> Passes:
        """A micro-batch on one stage.

        Args:
            tokens: that run through the model, padding included.
            squares: sum of the squared lengths of its sequences.
        """
        layers = self.layers / layout.pp
        products = 2.0 * tokens * layers * self.layer_weights
        attention = 2.0 * squares * layers * self.attention_width
        head = 2.0 * tokens * self.head_weights if stage == layout.pp - 1 else 0.0
        again = {"none": 0.0, "selective": attention, "full": products + attention}[layout.recompute]
        forward = products + attention + head
        return Passes(forward, BACKWARD * forward + again)
