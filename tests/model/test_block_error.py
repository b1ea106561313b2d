"""How far a quantized block is from full precision, and who is named for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from duquant.config import ClippingConfig, Recipe
from duquant.formats.integer import Integer
from duquant.formats.number_format import NumberFormat
from duquant.formats.unquantized import Unquantized
from duquant.model import block_error, surgery
from duquant.model.block_error import (
    OPERANDS,
    PROBED_TOKENS,
    TOLERABLE,
    BlockError,
    Probe,
    in_the_end,
    measure_block,
    measure_sites,
    num_probed,
)
from duquant.model.decoder import Decoder
from duquant.model.surgery import QuantizedBlock
from duquant.processes import ALONE, Processes
from tests.block_by_block import CPU, quantize_decoder, small_recipe
from tests.planted_biases import BIASED, biased_model
from tests.tiny_models import token_ids

IDS = token_ids(4, 24)
PARTS = {
    "quantizing Q": "--model.query_bits 16",
    "quantizing K": "--model.key_bits 16",
    "quantizing V": "--model.value_bits 16",
    "quantizing the attention input": "--model.activation_bits 16",
    "quantizing the attention output": "--model.activation_bits 16",
    "quantizing the mlp input": "--model.activation_bits 16",
    "quantizing the mlp output": "--model.activation_bits 16",
    "quantizing the weights of q_proj, k_proj, v_proj": "--model.weight_bits 16",
    "quantizing the weights of o_proj": "--model.weight_bits 16",
    "quantizing the weights of up_proj, gate_proj": "--model.weight_bits 16",
    "quantizing the weights of down_proj": "--model.weight_bits 16",
}
"""Everything that can be to blame, and the remedy where 8 bits are exceeded."""


class Bench:
    """The first block of a tiny Qwen2 whose K has a large bias."""

    def __init__(self, decoder: Decoder, recipe: Recipe) -> None:
        self.recipe = recipe
        self.context = decoder.contexts(IDS.shape[1], CPU)[0]
        self.inputs = decoder.embed(IDS, CPU)
        with torch.no_grad():
            self.targets = decoder.load_block(0)(self.inputs, **self.context)
        self.quantized: QuantizedBlock = quantize_decoder(decoder, recipe, IDS, rounded=False)[0]

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.quantized.layer(hidden, **self.context)
        return output

    def measure(self, processes: Processes = ALONE) -> BlockError:
        share = [processes.share(stream) for stream in (self.inputs, self.targets)]
        return measure_block(self.quantized, self.forward, Probe(*share), self.recipe, processes)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("model")
    biased_model({**BIASED["qwen2"], "num_hidden_layers": 1}).save_pretrained(path)
    return Decoder(str(path), torch.float32)


def formats(bench: Bench) -> list[NumberFormat]:
    parts = block_error._parts(bench.quantized, bench.recipe)
    return [quantizer.form for part in parts for quantizer in part.quantizers]


def test_unquantized_nothing_is_lost(decoder: Decoder) -> None:
    error = Bench(decoder, small_recipe(16)).measure()
    assert error.relative is not None
    assert error.relative < 1e-3
    assert error.complaint == ""


def test_it_is_the_mean_over_tokens_of_what_is_lost(decoder: Decoder) -> None:
    bench = Bench(decoder, small_recipe())
    with torch.no_grad():
        lost = (bench.forward(bench.inputs) - bench.targets).norm(dim=-1)
    added = (bench.targets - bench.inputs).norm(dim=-1)
    assert bench.measure().relative == pytest.approx(float((lost / added).mean()), rel=1e-5)


def test_a_massive_token_hides_no_other(decoder: Decoder) -> None:
    bench = Bench(decoder, small_recipe())
    before = bench.measure().relative
    bench.targets[0, 0] += 1e6
    after = bench.measure().relative
    assert before is not None
    assert after is not None
    # That token alone is lost whole: its share was at most what one token can have.
    assert after > 0.9 * before


def test_a_bias_quantized_with_the_key_is_found(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = Bench(decoder, replace(small_recipe(8), key_bits=4)).measure()
    monkeypatch.setattr(surgery, "separable_biases", lambda *_: [])
    inside = Bench(decoder, replace(small_recipe(8), key_bits=4)).measure()
    assert apart.relative is not None
    assert inside.relative is not None
    assert apart.relative < TOLERABLE < inside.relative
    assert apart.complaint == ""
    assert "quantizing K is to blame" in inside.complaint
    assert inside.complaint.endswith("--model.key_bits 16")


@pytest.mark.parametrize("name", PARTS)
def test_whoever_is_to_blame_is_named(
    name: str, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_error, "TOLERABLE", 0.0)
    recipe = replace(small_recipe(12), clipping=ClippingConfig(1.0, 1.0))
    bench = Bench(decoder, recipe)
    (part,) = (p for p in block_error._parts(bench.quantized, bench.recipe) if p.name == name)
    for quantizer in part.quantizers:
        quantizer.form = Integer(2)
    before = formats(bench)
    complaint = bench.measure().complaint
    assert f"; {name} is to blame (" in complaint
    assert complaint.endswith(f"without it): {PARTS[name]}")
    assert formats(bench) == before, "everything is switched on again"


def test_at_4_bits_8_are_the_remedy(decoder: Decoder) -> None:
    bench = Bench(decoder, small_recipe())
    parts = block_error._parts(bench.quantized, bench.recipe)
    assert {p.remedy for p in parts[3:]} == {"--model.activation_bits 8", "--model.weight_bits 8"}


def test_what_is_not_quantized_is_not_blamed(decoder: Decoder) -> None:
    bench = Bench(decoder, replace(small_recipe(), weight_bits=16, query_bits=16))
    names = [part.name for part in block_error._parts(bench.quantized, bench.recipe)]
    assert names == [name for name in PARTS if name != "quantizing Q" and "weights" not in name]


def test_where_everything_is_too_coarse_nobody_is_named(decoder: Decoder) -> None:
    error = Bench(decoder, small_recipe(2)).measure()
    assert error.relative is not None
    assert error.relative > TOLERABLE
    assert "no single site or operand is to blame" in error.complaint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_said_to_be(value: float, decoder: Decoder) -> None:
    bench = Bench(decoder, small_recipe())
    bench.quantized.linears["mlp.down_proj"].bias = torch.full((64,), value)
    error = bench.measure()
    assert error.relative is None
    assert error.complaint.startswith("its output is not finite; no single site")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("tokens", [1, 100, 512, 2048, 9999])
def test_all_processes_together_probe_as_many_samples_as_one(count: int, tokens: int) -> None:
    shares = [num_probed(tokens, Processes(rank, count)) for rank in range(count)]
    assert sum(shares) == num_probed(tokens) == max(1, PROBED_TOKENS // tokens)


@contextmanager
def together(monkeypatch: pytest.MonkeyPatch, others: Tensor) -> Iterator[None]:
    """Sums of a process whose peers contribute ``others``."""
    with monkeypatch.context() as patch:
        patch.setattr(Processes, "sum", lambda _, value: value + others)
        yield


@pytest.mark.parametrize("count", [2, 5])
def test_every_process_finds_the_error_of_all_samples(
    count: int, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five processes one has no sample."""
    bench, sums = Bench(decoder, small_recipe()), []
    alone = bench.measure()
    for rank in range(count):
        with monkeypatch.context() as patch:
            patch.setattr(Processes, "sum", lambda _, value: sums.append(value) or value)
            bench.measure(Processes(rank, count))
    for rank in range(count):
        others = sum(sums[:rank] + sums[rank + 1 :], torch.zeros(2, dtype=torch.float64))
        with together(monkeypatch, others):
            found = bench.measure(Processes(rank, count))
        assert found.relative == pytest.approx(alone.relative, rel=1e-6)


PLACES = ["attention_input", OPERANDS, "attention_output", "mlp_input", "mlp_output"]


def sites(bench: Bench) -> dict[str, float]:
    probe = Probe(bench.inputs, bench.targets)
    return measure_sites(bench.quantized, bench.forward, probe, bench.recipe)


def test_a_site_alone_loses_what_it_loses_if_nothing_else_is_quantized(decoder: Decoder) -> None:
    bench = Bench(decoder, small_recipe())
    before, errors = formats(bench), sites(bench)
    assert list(errors) == PLACES
    assert formats(bench) == before, "everything is switched on again"
    for part in block_error._parts(bench.quantized, bench.recipe):
        if part.place != "mlp_output":
            for quantizer in part.quantizers:
                quantizer.form = Unquantized()
    assert errors["mlp_output"] == pytest.approx(bench.measure().relative, rel=1e-2)


@pytest.mark.parametrize("place", PLACES)
def test_the_site_that_is_coarse_has_the_largest_error(place: str, decoder: Decoder) -> None:
    bench = Bench(decoder, small_recipe(8))
    for part in block_error._parts(bench.quantized, bench.recipe):
        if part.place == place:
            for quantizer in part.quantizers:
                quantizer.form = Integer(2)
    errors = sites(bench)
    assert max(errors, key=errors.__getitem__) == place


def test_sites_that_are_not_quantized_have_no_error(decoder: Decoder) -> None:
    assert sites(Bench(decoder, small_recipe(16))) == {}


@pytest.mark.parametrize(
    ("relative", "complaint"),
    [
        (0.5, ""),
        (0.6, "quantization changes its output by 60% of what the block adds to its input: more"),
        (None, "its output is not finite: more bits or smaller groups help"),
    ],
)
def test_rounding_has_the_last_word(relative: float | None, complaint: str) -> None:
    """A warning comes where the error that is kept is too large, and nowhere else."""
    end = in_the_end(BlockError(0.4), relative)
    assert end.relative == relative
    assert end.complaint.startswith(complaint)
    assert bool(end.complaint) == bool(complaint)
    known = in_the_end(BlockError(0.7, "quantizing K is to blame"), relative)
    assert known.complaint == ("quantizing K is to blame" if complaint else "")
