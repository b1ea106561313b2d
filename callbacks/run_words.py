"""A run's recipe and its whole model's turn, in words and plain values."""

from collections.abc import Mapping
from typing import Any

from callbacks.block_events import BlockRecord
from duquant.modules.language_model import LanguageModel


def describe_recipe(model: LanguageModel) -> str:
    """``W4A4 DuQuant+LWC`` and the like."""
    recipe = model.recipe
    name = "DuQuant" if recipe.rotation.selector != "none" else "no rotation"
    has = {
        "LWC": recipe.has_lwc,
        "trained transforms": len(model.current_block.activation_side.transforms) > 0,
        recipe.rounding.method.upper(): recipe.rounding.method != "nearest",
        "distillation": recipe.distillation.epochs > 0,
    }
    return "+".join([f"{recipe.bits_in_words} {name}", *(part for part in has if has[part])])


def describe_distillation(record: BlockRecord) -> dict[str, Any]:
    """What the whole model's turn did: mean loss of every epoch, and what it cost."""
    return {
        "losses": record.lwc_losses,
        "skipped_steps": record.skipped_steps,
        "complaint": record.complaint,
        "seconds": record.seconds,
    }


def distillation_in_words(turn: Mapping[str, Any]) -> str:
    """How the loss of the whole model fell, what that took, and what is wrong with it if anything.

    Args:
        turn: what :func:`describe_distillation` gave.
    """
    losses, complaint = turn["losses"], turn["complaint"]
    change = f": loss {losses[0]:.4g} -> {losses[-1]:.4g}" if losses else ""
    words = f"distillation of the whole model{change}, {turn['seconds']:.0f} s of the time"
    return f"{words}; {complaint}" if complaint else words
