"""The outlier picture is a picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.outlier_picture import TITLES, draw_outliers
from duquant.model.site_report import SiteReport

STAGES = tuple(TITLES)


def report(width: int, stages: tuple[str, ...] = STAGES) -> SiteReport:
    generator = torch.Generator().manual_seed(0)
    return SiteReport({stage: torch.rand(width, generator=generator) * 9 for stage in stages})


def pixels(png: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    image = Image.open(io.BytesIO(png))
    image.verify()
    assert image.format == "PNG"
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("width", [64, 4096, 11008])
def test_it_is_a_png_that_shows_something(width: int) -> None:
    shown = pixels(draw_outliers({"attention_input": report(64), "mlp": report(width)}, "block 0"))
    assert shown.shape[0] > 200
    assert shown.shape[1] > 800
    assert shown.std() > 5, "an empty sheet has next to no variance"


def test_other_activations_are_another_picture() -> None:
    calm, wild = report(64), report(64)
    wild.magnitudes["original"][7] = 400.0
    pictures = [pixels(draw_outliers({"mlp": one}, "block 0")) for one in (calm, wild)]
    assert (pictures[0] != pictures[1]).any()


def test_stages_that_did_not_happen_are_left_out() -> None:
    full = pixels(draw_outliers({"mlp": report(64)}, ""))
    bare = pixels(draw_outliers({"mlp": report(64, ("original",))}, ""))
    assert bare.shape[1] * len(STAGES) == full.shape[1], "a column per stage"
    mixed = {"mlp": report(64), "attention": report(64, ("original", "rotated"))}
    assert pixels(draw_outliers(mixed, "")).shape[1] == full.shape[1]
