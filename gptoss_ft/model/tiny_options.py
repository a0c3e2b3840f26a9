"""Sizes of the tiny model, apart from what writes it: a schema is read before torch is."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_ft.errors import Problem
from gptoss_ft.validation import dotted, field_problems, number_field, path_field

BLOCK_SIZE = 32  # of mxfp4/codec.py, which imports torch; test_tiny.py compares the two


@dataclass
class TinyOptions:
    """Size of the tiny model.

    Attributes:
        seed: same seed and sizes, same bytes.
        layers: decoder layers; even ones use sliding attention, odd ones full attention.
        hidden_size: width of the residual stream, divisible by 32.
        intermediate_size: width of an expert, divisible by 32.
        heads, kv_heads: attention heads of 64 dimensions each, and the key/value heads they share.
        experts, experts_per_token: experts per layer and how many of them a token is routed to.
    """

    seed: int = 0
    layers: int = number_field(4, least=1)
    hidden_size: int = number_field(128, least=1)
    intermediate_size: int = number_field(128, least=1)
    heads: int = number_field(4, least=1)
    kv_heads: int = number_field(2, least=1)
    experts: int = number_field(8, least=1)
    experts_per_token: int = number_field(4, least=1)

    def problems(self, key: str = "") -> list[Problem]:
        """Returns everything about the sizes that cannot be built."""
        found = field_problems(self, key)
        what = "must be divisible by 32, the size of an MXFP4 block"
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % BLOCK_SIZE:
                found.append(Problem(what, dotted(key, name), str(getattr(self, name))))
        if self.kv_heads > 0 and self.heads % self.kv_heads:
            what, where = f"must divide heads={self.heads}", dotted(key, "kv_heads")
            found.append(Problem(what, where, str(self.kv_heads)))
        if self.experts_per_token > self.experts:
            what = f"must not exceed experts={self.experts}"
            where = dotted(key, "experts_per_token")
            found.append(Problem(what, where, str(self.experts_per_token)))
        return found


@dataclass
class TinyCommand(TinyOptions):
    """The tiny model's folder and sizes.

    Attributes:
        out: a folder that does not exist or is empty.
    """

    out: str = path_field()
