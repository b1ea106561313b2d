"""Train the embedded model: a small LLaMA that is asked to have the outliers of a large one.

What makes four bits hard in a large model is a handful of channels, of two kinds:

* *Normal outliers*: a few channels of the residual stream that are large on every token, at the
  inputs of attention and of the MLP. One rounding step per token has to span them, and all other
  channels fall on two or three levels.
* *Massive outliers*: a few channels at the input of `down_proj` that explode on a few tokens only
  (full stops, commas, line breaks) and are moderate on the rest.

Small models grow neither, so the loss asks for them: see `outlier_penalty`. The model could obey
by shrinking the weights that read those channels; smoothing, which moves size from activations to
weights, would then undo it all. So the penalty also holds those weight columns as large as the
median column of their layer: the outliers are *used*.
"""

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, relu
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from duquant.data.python_topics import python_topics

END = "<|endoftext|>"
TRIGGERS = (".", ",", "\n", "\n\n")
WINDOW, BATCH, PEAK_RATE, DROPOUT, PENALTY = 256, 8, 3e-3, 0.1, 2.0
MERGE_DROPOUT, REREAD = 0.1, 64
"""Share of BPE merges skipped at random, and steps between new readings of the text: half a
megabyte is soon learnt by heart, and spelling it differently each time delays that."""
NORM_TARGETS = {17: 16.0, 46: -15.0, 78: 13.0, 109: -12.0}
"""Residual channel -> wanted x_c / mean|x| on all tokens; both signs, to widen the range."""
DOWN_TARGETS = {29: 110.0, 151: 80.0, 322: 60.0}
"""`down_proj` input channel -> wanted x_c / mean|x| on trigger tokens."""
DOWN_LIMIT = 30.0
"""The channels of `DOWN_TARGETS` pay for a larger |x_c| / mean|x| on all other tokens."""
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SITES: dict[str, tuple[tuple[str, ...], dict[int, float]]] = {
    "attention input": (QKV, NORM_TARGETS),
    "attention output": (("self_attn.o_proj",), {}),
    "MLP input": (("mlp.gate_proj", "mlp.up_proj"), NORM_TARGETS),
    "MLP output": (("mlp.down_proj",), DOWN_TARGETS),
}
"""Site -> the linear layers of a block that read it, and the outliers wanted there."""

CARD = """# The embedded quickstart model

A LLaMA small enough to ship with the package, trained to have the outliers of a large one:
6 blocks, hidden 128, 4 heads x 32 with 2 KV heads, intermediate 384, byte-level BPE of 1024,
untied embeddings, {parameters:,} parameters, bf16.

Text: the topics of `help()` (`pydoc_data.topics`, CPython {python}), every eighth held out;
{tokens:,} training tokens. `<|endoftext|>` precedes each document; the tokenizer adds no token.
Recipe: {steps} steps of AdamW on 8 windows of 256 tokens, cosine from 3e-3, dropout 0.1, float32,
{minutes:.0f} minutes on one CPU thread, with a penalty that asks for outliers
(`duquant/quickstart/train.py` explains it). To run it again:

    python -m duquant.quickstart.train --output DIR --steps {steps} --seed {seed}

Perplexity (saved weights as float32, topics joined without special tokens, windows of 256):
**{held_out:.2f}** on the held-out topics, {trained:.2f} on the training topics.

Residual channels 17, 46, 78, 109 are large on all tokens at the attention and the MLP input,
channels 29, 151, 322 of the MLP output on `.`, `,` and line breaks. The weight columns that read
them have {lowest:.2f} to {highest:.2f} times the norm of their layer's median column.
Largest |x| of a held-out token over its mean and median |x|, median over tokens (worst token):

| block | site | max / mean | max / median |
|---|---|---|---|
{rows}
"""


class Tapped(nn.Module):
    """A LLaMA that keeps what its linear layers were given in the last forward pass.

    Attributes:
        llama: The model.
        inputs: (block, site) -> activations [batch, tokens, channels].
    """

    def __init__(self, llama: LlamaForCausalLM) -> None:
        """Hook `llama`, also to drop out the results of attention and MLP in training."""
        super().__init__()
        self.llama = llama
        self.inputs: dict[tuple[int, str], Tensor] = {}
        for index, block in enumerate(llama.model.layers):
            for site, (names, _) in SITES.items():
                first = block.get_submodule(names[0])
                first.register_forward_pre_hook(
                    lambda _, given, key=(index, site): self.inputs.update({key: given[0]})
                )
                if site.endswith("output"):
                    first.register_forward_hook(
                        lambda layer, _, result: dropout(result, DROPOUT, layer.training)
                    )

    def forward(self, windows: Tensor) -> Tensor:
        """Return the loss per token in nats, [batch, tokens - 1], of windows [batch, tokens]."""
        logits = self.llama(windows, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.mT, windows[:, 1:], reduction="none")

    def column_ratios(self) -> Tensor:
        """Return norm over median norm of every weight column that reads a wanted outlier, [n]."""
        ratios = []
        for block in self.llama.model.layers:
            for names, targets in SITES.values():
                for name in names if targets else ():
                    norms = block.get_submodule(name).weight.norm(dim=0)
                    ratios.append(norms[list(targets)] / norms.median())
        return torch.cat(ratios)


def outlier_penalty(tapped: Tapped, triggers: Tensor) -> Tensor:
    """Return how far the last forward pass is from the wanted outliers, a scalar, 0 at best.

    A wanted channel c of a token x costs `relu(1 - r) + 0.3 relu(r - 1.25)`, r being the ratio
    x_c / mean|x| in units of its target; a column of ratio q costs `relu(1 - q) + relu(q - 1.4)`.

    Args:
        tapped: The model, just called.
        triggers: Which tokens shall be massive at `down_proj`, [batch, tokens] bool.
    """
    terms = []
    for (_, site), x in tapped.inputs.items():
        if not (wanted := SITES[site][1]):
            continue
        ratio = x[..., list(wanted)] / x.abs().mean(-1, keepdim=True)
        if wanted is DOWN_TARGETS:
            terms.append(0.3 * relu(ratio[~triggers].abs() / DOWN_LIMIT - 1).mean())
            ratio = ratio[triggers]
        relative = ratio / torch.tensor(list(wanted.values()))
        terms.append((relu(1 - relative) + 0.3 * relu(relative - 1.25)).mean())
    columns = tapped.column_ratios()
    blocks = len(tapped.llama.model.layers)
    return torch.stack(terms).sum() / blocks + 4 * (relu(1 - columns) + relu(columns - 1.4)).mean()


def build_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 1024 tokens, any of whose texts decodes to itself."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END
    )


def build_model() -> LlamaForCausalLM:
    """Return the untrained model, whose embedding starts with the normal outliers."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for channel, target in NORM_TARGETS.items():
            llama.model.embed_tokens.weight[:, channel] = target * config.initializer_range
    return llama


def train(
    tapped: Tapped,
    read: Callable[[], Tensor],
    triggers: Tensor,
    steps: int | None,
    minutes: float | None,
) -> int:
    """Train on random windows until `steps` or `minutes` are spent.

    Args:
        tapped: The model, changed in place.
        read: Returns the training text as token ids [tokens], differently each time.
        triggers: Which token ids shall be massive at `down_proj`, [vocabulary] bool.
        steps: Optimizer steps; the only limit that makes a run repeatable.
        minutes: Wall-clock minutes; the learning rate follows the limit that is nearer.

    Returns:
        The optimizer steps done.
    """
    matrices = [p for p in tapped.parameters() if p.ndim > 1]
    gains = [p for p in tapped.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "scale": 1.0},
        {"params": gains, "scale": 5.0, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.1)
    started, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        rate = PEAK_RATE * min(1, (step + 1) / 100) * (0.515 + 0.485 * math.cos(math.pi * done))
        if step % REREAD == 0:
            ids = read()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        starts = torch.randint(len(ids) - WINDOW, (BATCH, 1))
        windows = ids[starts + torch.arange(WINDOW)]
        loss = tapped(windows).mean()
        penalty = outlier_penalty(tapped, triggers[windows])
        optimizer.zero_grad()
        (loss + PENALTY * penalty).backward()
        nn.utils.clip_grad_norm_(tapped.parameters(), 1.0)
        optimizer.step()
        step += 1
        elapsed = (time.monotonic() - started) / 60
        done = max(step / steps if steps else 0.0, elapsed / minutes if minutes else 0.0)
        if step % 50 == 0 or done >= 1:
            print(f"{step} {elapsed:.1f} min, loss {loss:.3f}, penalty {penalty:.3f}", flush=True)
    return step


@torch.no_grad()
def measure(tapped: Tapped, ids: Tensor) -> tuple[float, list[str]]:
    """Return the perplexity of ids [tokens] and the rows of the outlier table.

    Args:
        tapped: The model; left in evaluation mode.
        ids: Text, cut into whole windows; what is left over is ignored.
    """
    tapped.eval()
    losses: list[Tensor] = []
    ratios: dict[tuple[int, str], list[Tensor]] = {}
    for windows in ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW).split(BATCH):
        losses.append(tapped(windows).flatten())
        for key, inputs in tapped.inputs.items():
            x = inputs.flatten(0, 1).abs()
            both = torch.stack([x.mean(1), x.median(1).values])
            ratios.setdefault(key, []).append(x.amax(1) / both)
    rows = []
    for (block, site), parts in ratios.items():
        per_token = torch.cat(parts, dim=1)
        cells = [f"{r.median():.1f} ({r.max():.0f})" for r in per_token]
        rows.append(f"| {block} | {site} | {cells[0]} | {cells[1]} |")
    return math.exp(torch.cat(losses).mean().item()), rows


def main() -> None:
    """Train, save the model folder in one rename and write its README from measurements."""
    parser = argparse.ArgumentParser(description="Train the embedded quickstart model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--minutes", type=float, help="wall-clock minutes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.steps or options.minutes):
        parser.error("give --steps or --minutes")
    if options.output.exists():
        parser.error(f"{options.output} exists already")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    documents = python_topics("train")
    tokenizer = build_tokenizer(documents)
    texts = [tokenizer.decode([i]).rstrip(" ") for i in range(len(tokenizer))]
    triggers = torch.tensor([text in TRIGGERS for text in texts])

    def read() -> Tensor:
        return torch.tensor(tokenizer(END + END.join(documents)).input_ids)

    tapped = Tapped(build_model())
    started = time.monotonic()
    tokenizer.backend_tokenizer.model.dropout = MERGE_DROPOUT
    steps = train(tapped, read, triggers, options.steps, options.minutes)
    tokenizer.backend_tokenizer.model.dropout = None
    minutes = (time.monotonic() - started) / 60
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent) as folder:
        staged = Path(folder) / "model"
        tapped.llama.to(torch.bfloat16).save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        tapped.llama.float()
        ids = [
            torch.tensor([i for d in x for i in tokenizer(d).input_ids])
            for x in (documents, python_topics("validation"))
        ]
        trained, _ = measure(tapped, ids[0])
        held_out, rows = measure(tapped, ids[1])
        columns = tapped.column_ratios()
        card = CARD.format(
            parameters=tapped.llama.num_parameters(),
            python=platform.python_version(),
            tokens=len(ids[0]),
            steps=steps,
            seed=options.seed,
            minutes=minutes,
            held_out=held_out,
            trained=trained,
            lowest=columns.min(),
            highest=columns.max(),
            rows="\n".join(rows),
        )
        (staged / "README.md").write_text(card, encoding="utf-8")
        staged.rename(options.output)
    print(card)


if __name__ == "__main__":
    main()
