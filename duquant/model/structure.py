"""The shape of a decoder block, as data: which modules it has and where DuQuant touches it.

A model is accepted by what its blocks are made of, never by its name. Any pre-norm decoder block
with separate q/k/v/o projections and a gated MLP fits, whatever it is called (LLaMA, Vicuna,
Mistral, Qwen2 with biases, Qwen3 with q/k norms …).

Where each transform lives:

| site | read by | smoothing scale folds into | rotation, permutation, quantization |
|---|---|---|---|
| ``attention_input`` | q, k, v | rows of ``input_layernorm`` | online, once, behind the norm |
| ``attention_output`` | o | rows of ``v_proj``, or divided online | online, before ``o_proj`` |
| ``mlp_input`` | gate, up | rows of ``post_attention_layernorm`` | online, once, behind the norm |
| ``mlp_output`` | down | rows of ``up_proj`` | online, before ``down_proj`` |

Every weight that reads a site is multiplied by the same scale, rotations and permutations, offline.
Q, K and V are quantized inside attention (:mod:`duquant.nn.attention`).
"""

from dataclasses import dataclass

from torch import nn

from duquant.config import NOTHING_IS_TRAINED, Recipe
from duquant.transforms.table import transform_class

ATTENTION = "self_attn"
MLP = "mlp"
KNOWN_EXTRAS = {
    "": {ATTENTION, MLP, "input_layernorm", "post_attention_layernorm"},
    ATTENTION: {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"},
    MLP: {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
"""Children a block may have. Another one (a third norm, a router, an attention sink) means another
computation."""


MOST_NAMES = 6
"""Modules that a message lists."""


@dataclass(frozen=True)
class Site:
    """One activation and the linears that read it.

    Attributes:
        name: the site's name in files, logs and reports.
        producer: module whose output channels are the site's channels.
        linears: linears that read it, the first being the one whose weight the authors' code
            smooths by.
    """

    name: str
    producer: str
    linears: tuple[str, ...]

    @property
    def follows_norm(self) -> bool:
        """Whether the producer is a norm (then the site sits behind it, shared by its readers)."""
        return self.producer.endswith("layernorm")


SITES = (
    Site(
        "attention_input",
        "input_layernorm",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ),
    Site("attention_output", "self_attn.v_proj", ("self_attn.o_proj",)),
    Site("mlp_input", "post_attention_layernorm", ("mlp.up_proj", "mlp.gate_proj")),
    Site("mlp_output", "mlp.up_proj", ("mlp.down_proj",)),
)
"""The four sites of a block, in the order data meets them."""

LINEARS = tuple(linear for site in SITES for linear in site.linears)


def require_decoder_block(block: nn.Module, model_name: str) -> None:
    """Check that a block has exactly the modules DuQuant knows how to transform.

    Raises:
        ValueError: naming the modules that are missing or unknown.
    """
    norms = [site.producer for site in SITES if site.follows_norm]
    present = {name for name, _ in block.named_modules()}
    missing = [name for name in (*LINEARS, *norms) if name not in present]
    missing += [
        f"{name}.weight"
        for name in norms
        if name in present and getattr(block.get_submodule(name), "weight", None) is None
    ]
    unknown = [
        f"{parent}.{name}".lstrip(".")
        for parent, known in KNOWN_EXTRAS.items()
        if not parent or parent in present
        for name in _members(block.get_submodule(parent))
        if name not in known
    ]
    if missing or unknown:
        parts = [
            f"{title} {_listed(names)}"
            for title, names in (("lacks", missing), ("has unknown modules", unknown))
            if names
        ]
        raise ValueError(
            f"{model_name}: a {type(block).__name__} is not a block duquant can transform: it "
            f"{' and '.join(parts)}"
        )
    for name in LINEARS:
        if not isinstance(block.get_submodule(name), nn.Linear):
            kind = type(block.get_submodule(name)).__name__
            raise ValueError(f"{model_name}: {name} is a {kind}; duquant needs a plain nn.Linear")


def _members(module: nn.Module) -> list[str]:
    """Names of the modules and of the parameters that a module has itself."""
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    return [*(name for name, _ in module.named_children()), *parameters]


def _listed(names: list[str]) -> str:
    """Names separated by commas; of very many, the first."""
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def require_fitting_widths(block: nn.Module, recipe: Recipe) -> None:
    """Check that blocks and groups divide the input width of every linear.

    Raises:
        ValueError: naming the linear, its width and the sizes that would fit, or a transform that
            has to be trained where nothing is.
    """
    rotation = recipe.rotation
    learned = transform_class(rotation).learned_shapes(rotation.block_size, rotation)
    if learned and not recipe.has_lwc:
        raise ValueError(f"rotation.transform is {rotation.transform}, but {NOTHING_IS_TRAINED}")
    weights, activations = recipe.formats[:2]
    checks = [("group_size", weights.group_size)]
    if activations.group_size != weights.group_size:
        checks.append(("activations.group_size", activations.group_size))
    if recipe.rotation.selector != "none":
        checks.insert(0, ("rotation.block_size", recipe.rotation.block_size))
    widths = linear_shapes(block)
    for option, size in checks:
        for name, (_, width) in widths.items():
            if size is not None and width % size:
                fitting = [d for d in range(2, 1025) if all(w % d == 0 for _, w in widths.values())]
                raise ValueError(
                    f"{option} {size} does not divide the input width {width} of {name}; sizes "
                    f"that fit every linear of this model: {', '.join(map(str, fitting)) or 'none'}"
                )


def linear_shapes(block: nn.Module) -> dict[str, tuple[int, int]]:
    """``(out, in)`` of every linear that is quantized, by name."""
    shapes = {}
    for name in LINEARS:
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        shapes[name] = (linear.out_features, linear.in_features)
    return shapes


def short_name(linear: str) -> str:
    """``self_attn.q_proj`` -> ``q_proj``."""
    return linear.rpartition(".")[2]
