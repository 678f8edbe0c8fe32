"""Linear layers in whole numbers of eight bits, for a first look that `recheck` and `embedding_recheck` follow up.

On processors with VNNI instructions a product of 8-bit numbers is about twice as fast as one in bfloat16. Weights
are rounded once, to 127 steps of the largest weight of each output; what goes in is rounded at each call, to 127
steps of the largest number of its token, so that what a token gets does not depend on the others in its batch.

    y[t, o] = s[t] w[o] (sum_i q[t, i] p[o, i]) + b[o],   q = round((x - m) / g / s), s[t] = max |(x[t] - m) / g| / 127

m[i] and g[i] belong to an input channel. Few channels of a transformer are far larger than the others, and would
leave these few steps; dividing by g and multiplying the weights by it shares the rounding between both (SmoothQuant,
arXiv 2211.10438, g = max|x|^a / max|w|^(1 - a)), and what all tokens have in common, m, goes into the bias. Both are
measured on sequences of random tokens (`calibrated`), a is the one of `POWERS` with the least error there. So no
text is needed, and the rounded model is a function of the model alone.

Sums are exact whole numbers, the rest is bfloat16. Everything between the linear layers (attention, norms,
activations) is what `precision.to_bfloat16` makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from curation.packed_encoder import HalfLinear, Product, Site, can_pack, pack
from curation.precision import to_bfloat16

POWERS = (0.35, 0.5, 0.65, 0.8)
_STEPS = 127
_NUMBERS_AT_ONCE = 1 << 18
"""Numbers that are rounded at once, so that their float32 stays in the cache."""
_SEQUENCES, _TOKENS = 8, 128
_TRIED_ROWS = 256


@lru_cache(maxsize=4)
def fast_int8(device: str = "cpu") -> bool:
    """Whether this processor multiplies 8-bit numbers by instruction, and torch has the product that we use.

    That product (oneDNN's, with its scaling) is one that torch's own quantiser uses on x86; it is not part of
    torch's stable interface, so it is looked for and tried out.
    """
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    if device != "cpu" or probe is None or not probe():
        return False
    try:
        layer = Int8Product(torch.ones(2, 4), torch.zeros(2))
        with torch.inference_mode():
            return bool(torch.isfinite(layer(torch.ones(1, 4, dtype=torch.bfloat16))).all())
    except (AttributeError, RuntimeError):
        return False


def to_int8(model: Any, chosen: Callable[[Site], bool] = lambda site: True) -> Any:
    """Turn the linear layers of a transformers model's body to int8 and the rest of it to bfloat16, in place.

    A pooler stays in bfloat16 or float32, and a head keeps computing in float32 (see `to_bfloat16`): both are cheap.

    chosen : which products of a packed encoder are rounded to int8; the others are bfloat16
    """
    body = model.base_model
    if can_pack(body):
        inputs = calibrated(body)
        pack(
            body,
            lambda site: _rounded(site, inputs[site.layer, site.name]) if chosen(site) else HalfLinear(site),
        )
        return model
    last = _LastInput()
    for path, module in list(body.named_modules()):
        for name, child in list(module.named_children()):
            if (
                type(child) is nn.Linear and "pooler" not in path
            ):  # a pooler reads one token, and its error counts
                setattr(module, name, Int8Linear(child, last))
    return to_bfloat16(model)


def calibrated(body: Any) -> dict[tuple[int, str], torch.Tensor]:
    """What goes into each product of `body`, float32 [tokens, in], on random tokens of its vocabulary."""
    random = torch.Generator().manual_seed(0)
    positions = getattr(body.config, "max_position_embeddings", _TOKENS)
    tokens = max(1, min(_TOKENS, positions - 2))  # RoBERTa's positions begin behind its padding token's
    ids = torch.randint(body.config.vocab_size, (_SEQUENCES, tokens), generator=random)
    found: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for index, layer in enumerate(body.encoder.layer):
        sites = {
            "qkv": layer.attention.self.query,
            "out": layer.attention.output.dense,
            "up": layer.intermediate.dense,
            "down": layer.output.dense,
        }
        for name, linear in sites.items():

            def keep(module: Any, inputs: Any, place: tuple[int, str] = (index, name)) -> None:
                found[place] = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()

            hooks.append(linear.register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            body(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _rounded(site: Site, inputs: torch.Tensor) -> Product:
    """The product of `site` in int8, with the centre and the scales that are best for `inputs` [tokens, in]."""
    centre = inputs.mean(0)
    spread = (inputs - centre).abs().amax(0).clamp(min=1e-6)
    heaviest = site.weight.abs().amax(0).clamp(min=1e-6)
    some = inputs[:: max(1, len(inputs) // _TRIED_ROWS)]
    exact = some @ site.weight.T + site.bias

    def error(product: Int8Product) -> float:
        return float((product(some).float() - exact).square().sum())

    tried = (spread**power / heaviest ** (1 - power) for power in POWERS)
    with torch.inference_mode():
        return min((Int8Product(site.weight, site.bias, centre, scale) for scale in tried), key=error)


class Int8Product:
    """A product as the module's text says, of a weight [out, in] and a bias [out]; without `scale`, m = 0 and g = 1."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        centre: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> None:
        weight, bias = weight.detach().float(), bias.detach().float()
        self.inverse = self.shift = None
        if centre is not None and scale is not None:
            bias = bias + weight @ centre
            self.inverse, self.shift = 1 / scale, -centre / scale
            weight = weight * scale
        step = weight.abs().amax(1).clamp(min=1e-12) / _STEPS
        rounded = (weight / step[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.step, self.zero = step, torch.zeros(len(step), dtype=torch.int32)
        self.bias = bias.to(torch.bfloat16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[t, in], float32 or bfloat16, to [t, out] in bfloat16."""
        return self.of_rounded(*self.rounded(x))

    def of_rounded(self, rounded: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The product of what `rounded` returned."""
        # The activations' zero is 128, since the instruction wants them unsigned.
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, self.packed, self.step, self.zero, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )  # fmt: skip
        return torch.addcmul(self.bias, product, step, out=product)

    def rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole numbers + 128 as bytes [t, in], and the step of each row, bfloat16 [t, 1].

        The step is a bfloat16 number from the start, so that multiplying by it later adds no error.
        """
        rounded = torch.empty(x.shape, dtype=torch.int8)
        steps = torch.empty(len(x), 1, dtype=torch.bfloat16)
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, x.shape[1]))
        for first in range(0, len(x), at_once):
            part = slice(first, first + at_once)
            numbers = x[part].float()
            if self.inverse is not None and self.shift is not None:
                numbers = torch.addcmul(self.shift, numbers, self.inverse)
            largest = numbers.abs().amax(-1, keepdim=True)
            # 1 + 2^-8 is more than rounding to bfloat16 takes away, so that no number needs more than 127 steps.
            steps[part] = (largest * ((1 + 2.0**-8) / _STEPS)).clamp_(min=1e-12)
            rounded[part] = (numbers * (1 / steps[part].float())).round_()
        return rounded.view(torch.uint8).bitwise_xor_(128), steps


class _LastInput:
    """The last input of a layer and its rounded form: queries, keys and values are made from the same one."""

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None
        self.rounded: tuple[torch.Tensor, torch.Tensor] | None = None


class Int8Linear(nn.Module):
    """A linear layer of a model that is not packed as an `Int8Product`; for inference."""

    def __init__(self, linear: nn.Linear, last: _LastInput) -> None:
        super().__init__()
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        # Not a module: `.to(bfloat16)` of the body must leave the scales alone.
        self.product, self._last = Int8Product(linear.weight, bias), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], bfloat16."""
        last = self._last
        if last.value is not x or last.rounded is None:
            last.value, last.rounded = x, self.product.rounded(x.reshape(-1, x.shape[-1]))
        return self.product.of_rounded(*last.rounded).view(*x.shape[:-1], len(self.product.step))
