"""The shape of a decoder, what it costs, and named shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from curation.errors import RecipeError

RopeStyle = Literal["interleaved", "half"]
QKNorm = Literal["none", "l2_after_rope", "rms_before_rope"]
Family = Literal["llama4_text", "llama", "qwen2", "qwen3"]

# What the Hugging Face class of a family can express; refused when a model is made, not when it is exported.
FAMILY_SWITCHES: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama4_text": {
        "rope_style": ("interleaved",),
        "qk_norm": ("l2_after_rope", "none"),
        "qkv_bias": (False,),
    },
    "llama": {"rope_style": ("half",), "qk_norm": ("none",), "qkv_bias": (False,)},
    "qwen2": {"rope_style": ("half",), "qk_norm": ("none",), "qkv_bias": (True,)},
    "qwen3": {"rope_style": ("half",), "qk_norm": ("rms_before_rope",), "qkv_bias": (False,)},
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of a decoder; the defaults are MobileLLM-R1's (arXiv 2509.24945, released weights).

    vocab_size, dim, layers, heads, kv_heads, head_dim, ffn_dim : sizes; `heads` is a multiple of `kv_heads`
    rope_theta, rope_style, rope_scaling : rotary positions, see training.attention
    qk_norm  : "l2_after_rope" divides queries and keys by their root mean square after the rotation, without
               a weight (MobileLLM-R1); "rms_before_rope" is Qwen3's learned RMS norm before it
    qkv_bias : Qwen2.5's biases on the three input projections
    tied     : the output weight is the embedding
    family   : the Hugging Face model type under which it is exported
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    rope_theta: float = 1_000_000.0
    rope_style: RopeStyle = "interleaved"
    rope_scaling: dict[str, Any] | None = None
    qk_norm: QKNorm = "l2_after_rope"
    qkv_bias: bool = False
    tied: bool = True
    norm_eps: float = 1e-5
    max_positions: int = 4096
    initializer_range: float = 0.02
    family: Family = "llama4_text"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn_dim",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}", where="model", remedy="Give a positive number"
                )
        if self.heads % self.kv_heads:
            raise RecipeError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key heads evenly",
                where="model.kv_heads",
                remedy="Make heads a multiple of kv_heads",
            )
        if self.head_dim % 2:
            raise RecipeError(
                f"head_dim is {self.head_dim}, but rotary positions turn pairs",
                where="model.head_dim",
                remedy="Make it even",
            )

        wanted = FAMILY_SWITCHES.get(self.family)
        if wanted is None:
            raise RecipeError(
                f"There is no model family {self.family!r}",
                where="model.family",
                remedy=f"Choose one of {', '.join(FAMILY_SWITCHES)}",
            )
        for name, allowed in wanted.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"A {self.family} model cannot have {name} = {getattr(self, name)!r}",
                    where=f"model.{name}",
                    remedy=f"Set it to {' or '.join(map(repr, allowed))}, or change the family",
                )

    def parameters(self) -> int:
        """Number of trainable numbers; a tied output weight counts once.

        >>> MOBILELLM_R1_140M.parameters()
        140248512
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.dim * (2 * queries + 2 * keys) + (queries + 2 * keys if self.qkv_bias else 0)
        norms = 2 * self.dim + (2 * self.head_dim if self.qk_norm == "rms_before_rope" else 0)
        embeddings = self.vocab_size * self.dim * (1 if self.tied else 2)
        return embeddings + self.layers * (attention + 3 * self.dim * self.ffn_dim + norms) + self.dim

    def flops_per_token(self, context: int) -> float:
        """Floating-point operations to train on one token of rows of `context` tokens, output head included.

        Six per parameter that is multiplied (a look-up in an untied embedding is not), and 6 L H d `context`
        for causal attention, in which a token reads half of the row on average. A forward pass is a third.
        """
        multiplied = self.parameters() - (0 if self.tied else self.vocab_size * self.dim)
        return 6.0 * multiplied + 6.0 * self.layers * self.heads * self.head_dim * context


MOBILELLM_R1_140M = ModelConfig(128_256, 576, 15, heads=9, kv_heads=3, head_dim=64, ffn_dim=2048)
MOBILELLM_R1_360M = ModelConfig(128_256, 1024, 15, heads=16, kv_heads=4, head_dim=64, ffn_dim=4096)
MOBILELLM_R1_950M = ModelConfig(128_256, 1536, 22, heads=24, kv_heads=6, head_dim=64, ffn_dim=6144)
PRESETS: dict[str, ModelConfig] = {
    "mobilellm-r1-140m": MOBILELLM_R1_140M,
    "mobilellm-r1-360m": MOBILELLM_R1_360M,
    "mobilellm-r1-950m": MOBILELLM_R1_950M,
    # One minute on a CPU: the proxy models of the quickstart.
    "tiny": ModelConfig(8192, 128, 4, heads=4, kv_heads=2, head_dim=32, ffn_dim=384, max_positions=2048),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named shape, with `changes` (for example `vocab_size`) applied."""
    if name not in PRESETS:
        raise RecipeError(
            f"There is no model preset {name!r}", remedy=f"Choose one of {', '.join(sorted(PRESETS))}"
        )
    return replace(PRESETS[name], **changes)
