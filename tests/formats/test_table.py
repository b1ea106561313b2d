"""Formats by name."""

from dataclasses import fields

import pytest
import torch

from duquant.formats.integer import Integer
from duquant.formats.mxfp4 import MXFP4
from duquant.formats.nvfp4 import NVFP4
from duquant.formats.table import FORMATS, build_format
from duquant.formats.unquantized import Unquantized


def test_names_and_options_build_formats() -> None:
    assert build_format("integer") == Integer()
    assert build_format("integer", bits=3, symmetric=True, group_size=64) == Integer(3, True, 64)
    assert build_format("mxfp4") == MXFP4()
    assert build_format("nvfp4", group_size=8) == NVFP4(8)
    assert build_format("integer", bits=16, symmetric=True) == Unquantized()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("int4", {}, "no number format 'int4'; there are integer, mxfp4, nvfp4, unquantized"),
        ("mxfp4", {"bits": 4}, "mxfp4 has no bits to choose; its options are group_size"),
        ("nvfp4", {"symmetric": True}, "nvfp4 has no symmetric to choose"),
        ("unquantized", {"bits": 16}, "unquantized has no bits to choose; it has no options"),
        ("integer", {"bits": 16, "zero": 1}, "integer has no zero to choose; its options are bits"),
        ("integer", {"bits": 17}, "bits is 17"),
        ("integer", {"bits": 16, "group_size": 0}, "group_size is 0"),
    ],
)
def test_what_does_not_exist_is_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_format(name, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_every_option_is_documented(name: str) -> None:
    kind = FORMATS[name]
    for option in fields(kind):  # type: ignore[arg-type]
        assert f"{option.name}: " in (kind.__doc__ or "")


def test_an_unquantized_tensor_is_left_alone_and_has_no_codes() -> None:
    x, form = torch.randn(2, 5), Unquantized()
    assert form.fake_quantize(x) is x
    assert form.fitted_to(7) is form
    assert (form.bits, form.group_size) == (16, None)
    calls = [
        lambda: form.grid(x),
        lambda: form.codes(x, ()),
        lambda: form.values(x, ()),
        lambda: form.store(x, ()),
        lambda: form.restore({}, 5),
        lambda: form.stored_shapes(2, 5),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="unquantized tensor has no codes"):
            call()
