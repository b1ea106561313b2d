"""Estimates of memory: what they grow with, and which option they name."""

from dataclasses import replace

import pytest

from callbacks.preflight import describe_job
from duquant.config import DistillationConfig, LWCConfig, RoundingConfig
from duquant.export.packed_size import packed_bytes
from duquant.ops.copy_stream import pinned_bytes
from duquant.preflight.job import Job
from duquant.preflight.memory import SCORES, WIDE, host_phase, largest_phase, memory_phases
from tests.in_process import LEARNS_ALL, NO_LWC, small_data, small_language_model, write_text
from tests.small_run import write_small_model


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    directory = tmp_path_factory.mktemp("job")
    source = write_small_model(directory / "source")
    data = small_data(source, write_text(directory / "text.txt"))
    return describe_job(small_language_model(source, directory / "run"), data)


def phases(job: Job) -> dict[str, int]:
    return {phase.name: phase.num_bytes for phase in memory_phases(job)}


def test_training_is_a_phase_only_where_something_is_trained(job: Job) -> None:
    assert "training" in phases(job)
    assert "training" not in phases(replace(job, recipe=replace(job.recipe, lwc=NO_LWC)))


def test_measuring_is_a_phase_only_where_something_is_measured(job: Job) -> None:
    measured = {"measuring", "logits"}
    assert measured <= phases(job).keys()
    assert phases(job).keys() - phases(replace(job, windows=())).keys() == measured


def test_it_counts_the_model(job: Job) -> None:
    assert job.block_weights == 4 * 64 * 64 - 2 * 32 * 64 + 3 * 64 * 96
    assert job.largest_linear == 64 * 96
    assert job.outside == 2 * job.embeddings + 64
    assert job.tokens_at_once == 8 * 32


def test_streams_on_disk_take_no_memory(job: Job) -> None:
    large = replace(job, streams=replace(job.streams, samples=10**6))
    on_disk = replace(large, streams_in_memory=False)
    held, mapped = phases(large), phases(on_disk)
    for name in ("full precision", "search", "training"):
        assert held[name] - mapped[name] > 2 * large.streams.stream_bytes
    assert largest_phase(large).remedy == "--data.stream_memory_gb 0"
    assert largest_phase(on_disk).remedy != "--data.stream_memory_gb 0"


def test_what_is_too_large_is_named(job: Job) -> None:
    trained = replace(job, recipe=replace(job.recipe, lwc=LWCConfig(epochs=1)), batch_size=10**5)
    assert largest_phase(trained).remedy.endswith("lwc.batch_size")
    windows = replace(job, windows=(10**6,), validation_chunk=10**6)
    assert largest_phase(windows).remedy.endswith("validation_chunk")


def test_distillation_holds_the_activations_of_one_block_or_of_all(job: Job) -> None:
    recipe = replace(job.recipe, lwc=NO_LWC, distillation=DistillationConfig(epochs=1))
    again = replace(job, recipe=recipe, streams=replace(job.streams, tokens=1 << 17))
    kept = replace(again, gradient_checkpointing=False)
    blocks = job.decoder.num_blocks
    assert 1.5 < phases(kept)["distillation"] / phases(again)["distillation"] < blocks
    assert largest_phase(kept).remedy == "--model.gradient_checkpointing true"
    assert largest_phase(again).remedy == "--model.distillation.epochs 0"


def test_factoring_a_wide_gram_matrix_is_a_phase_of_gptq(job: Job) -> None:
    assert "rounding" not in phases(job)
    wide = replace(job, recipe=replace(job.recipe, rounding=RoundingConfig(method="gptq")))
    vars(wide)["linears"] = {**job.linears, "mlp.down_proj": (64, 1 << 14)}  # it is cached there
    matrix = (1 << 28) * WIDE
    # The matrix itself, twice as wide numbers to factor, and the factor.
    assert 4 * matrix < phases(wide)["rounding"] < 4.2 * matrix
    assert phases(wide)["rounding"] > phases(wide)["search"]


def test_what_is_written_while_the_run_goes_on_is_counted(job: Job) -> None:
    """The block before the one that is entered, in the host's memory, whoever computes."""
    block = packed_bytes(job.decoder.meta_block(), job.recipe)
    wide = replace(job, recipe=replace(job.recipe, weight_bits=8))
    more = packed_bytes(job.decoder.meta_block(), wide.recipe) - block
    assert more > 0
    grown = {name: phases(wide)[name] - phases(job)[name] for name in phases(job)}
    assert grown["full precision"] == grown["search"] == more
    assert grown["training"] == 0, "it is written by then"
    on_gpu = [replace(each, on_gpu=True) for each in (job, wide)]
    assert phases(on_gpu[0])["search"] == phases(on_gpu[1])["search"]
    pinned = pinned_bytes(block + more) - pinned_bytes(block)
    assert host_phase(on_gpu[1]).num_bytes - host_phase(on_gpu[0]).num_bytes == pinned


def test_a_copy_of_what_is_learned_is_counted_where_the_checkpoint_lies(job: Job) -> None:
    learning = replace(job, recipe=replace(job.recipe, **LEARNS_ALL))
    on_gpu = replace(learning, on_gpu=True)
    scores = SCORES * job.batch_size * job.attention_scores * WIDE
    copy = phases(learning)["training"] - (phases(on_gpu)["training"] - scores)
    widths = [64, 64, 64, 96]
    numbers = sum(2 * width * 16 for width in widths)
    assert copy >= (job.decoder.num_blocks + 2) * numbers * WIDE
