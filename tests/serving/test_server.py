"""vLLM's server of a quantized model: many requests at once, clients that die, and our commands."""

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest

from duquant.data.python_topics import python_topics
from tests.chat_bench import QUESTIONS, read_lines, write_questions
from tests.serving.served import needs_vllm
from tests.serving.server import CONTEXT, VllmServer, vllm_server, write_served_model

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]
needs_evaluation = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason='lm-eval is not installed: pip install "duquant[evaluate]"'
)
NUM_REQUESTS = 200
PATIENCE = 300.0
"""Seconds in which a request of a dead client must be gone, on a busy machine."""
UNMOVED = 0.9
"""Share of answers that have the same levels of 4 bits, alone and in a batch: float32 sums come in
another order there, and now and then one moves an activation to the next level, from which on the
answer may be another one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """One server for all tests."""
    directory = tmp_path_factory.mktemp("server")
    with vllm_server(write_served_model(directory), directory / "log") as running:
        yield running


def test_many_requests_at_once_are_answered_as_each_alone(server: VllmServer) -> None:
    chance = random.Random(0)
    lengths = [(chance.randint(2, 60), chance.randint(1, 12)) for _ in range(NUM_REQUESTS)]
    requests = [([chance.randrange(1, 1024) for _ in range(m)], n) for m, n in lengths]
    alone = [server.complete(prompt, count) for prompt, count in requests]
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        together = list(pool.map(lambda request: server.complete(*request), requests))
    assert [len(tokens) for tokens in together] == [count for _, count in requests]
    same = sum(one == other for one, other in zip(together, alone, strict=True))
    print(f"{same} of {NUM_REQUESTS} answers are those of each alone")
    assert same >= UNMOVED * NUM_REQUESTS
    assert [tokens[0] for tokens in together].count(together[0][0]) < NUM_REQUESTS / 2


def test_a_client_that_dies_leaves_nothing_behind(server: VllmServer) -> None:
    prompt, wanted = [5, 6, 7, 8], CONTEXT - 10
    before = server.complete(prompt, 8)
    produced = server.metric("vllm:generation_tokens_total")
    clients = [server.begin_stream(prompt, wanted) for _ in range(3)]
    for client in clients:
        client.close()
    assert server.complete(prompt, 8) == before
    end = time.monotonic() + PATIENCE
    while server.metric("vllm:num_requests_running") or server.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < end, "a request is stuck"
        time.sleep(0.1)
    produced = server.metric("vllm:generation_tokens_total") - produced
    assert produced < len(clients) * wanted / 2, "nobody ended what nobody reads"


@needs_evaluation
def test_our_commands_measure_what_is_served(
    server: VllmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    from duquant.evaluation.command import Evaluate
    from duquant.evaluation.mt_bench.answer_command import answer

    answer(
        write_questions(tmp_path),
        endpoint=server.url,
        output_dir=tmp_path / "bench",
        max_new_tokens=5,
    )
    records = read_lines(tmp_path / "bench" / "model_answer" / "quick.jsonl")
    assert len(records) == len(QUESTIONS)
    assert all(turn for record in records for turn in record["choices"][0]["turns"])
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(islice(python_topics("train"), 6)), encoding="utf-8")
    Evaluate(
        endpoint=server.url,
        compare=str(server.directory),
        perplexity={"c4_joined": str(text)},
        sequence_length=64,
        perplexity_windows=4,
        output_dir=str(tmp_path / "out"),
    )()
    (file,) = (tmp_path / "out" / "results").iterdir()
    found = json.loads(file.read_text())
    assert found["labels"] == ["W4A4, served", "W4A4"]
    served, loaded = (
        found[name]["perplexity_c4_joined"]["metrics"]["perplexity"]["value"]
        for name in ("results", "compared_results")
    )
    # 256 tokens; a level that moves changes some of them
    assert served == pytest.approx(loaded, rel=0.02)
