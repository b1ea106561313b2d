"""Train the embedded model: a small LLaMA that is asked to have the outliers of a large one.

What makes four bits hard in a large model is a handful of channels, of two kinds:

* *Normal outliers*: a few channels of the residual stream that are large on every token, at the
  inputs of attention and of the MLP. One rounding step per token has to span them, and all other
  channels fall on two or three levels.
* *Massive outliers*: a few channels at the input of `down_proj` that explode on a few tokens only
  (full stops, commas, line breaks) and are moderate on the rest.

Small models grow neither, so `outlier_penalty` asks for them, and forbids the way out of shrinking
the weight columns that read those channels: smoothing, which trades the two, would undo it all.
"""

import argparse
import math
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

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
"""Share of BPE merges left out at random, and steps until the text is spelled anew that way: half
a megabyte is soon learnt by heart. The draws are the tokenizer library's own, not seeded."""
NORM_TARGETS = {17: 16.0, 46: -15.0, 78: 13.0, 109: -12.0}
"""Residual channel -> wanted x_c / mean|x| on all tokens; both signs, to widen the range."""
DOWN_TARGETS = {29: 110.0, 151: 80.0, 322: 60.0}
"""`down_proj` input channel -> wanted x_c / mean|x| on trigger tokens."""
DOWN_LIMIT = 30.0  # where |x_c| / mean|x| of these channels starts to cost on the other tokens
SITES: dict[str, tuple[list[str], dict[int, float]]] = {
    "attention input": ([f"self_attn.{x}_proj" for x in "qkv"], NORM_TARGETS),
    "attention output": (["self_attn.o_proj"], {}),
    "MLP input": (["mlp.gate_proj", "mlp.up_proj"], NORM_TARGETS),
    "MLP output": (["mlp.down_proj"], DOWN_TARGETS),
}
"""Site -> the linear layers of a block that read it, and the outliers wanted there."""
CARD = """# The embedded quickstart model

A LLaMA small enough to ship, trained to have the outliers of a large one: 6 blocks, hidden 128,
4 heads x 32, 2 KV heads, intermediate 384, byte-level BPE of 1024, untied embeddings, 1,443,456
parameters, bf16. Text: `help()` topics (`pydoc_data.topics`, CPython {python}), every eighth held
out, {characters:,} characters, `<|endoftext|>` before each topic; the tokenizer adds no token.
Training: AdamW on 8 windows of 256 tokens, cosine from 3e-3, dropout 0.1, BPE dropout 0.1 (not
seeded: repeats differ a little), float32, {minutes:.0f} minutes on one CPU thread, outlier penalty:

    python -m duquant.quickstart.train --output DIR --steps {steps} --seed {seed}

Held-out perplexity (bf16 weights read as float32, topics joined without special tokens, windows
of 256): **{perplexity:.2f}**. Residual channels 17, 46, 78, 109 are large on all tokens at the
attention and the MLP input, channels 29, 151, 322 of the MLP output on `.`, `,` and line breaks;
the weight columns that read them have {lowest:.2f} to {highest:.2f} times the median column's norm.
Largest |x| of a held-out token over its mean and median |x|: median over tokens (worst token).

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
        self.llama, self.inputs = llama, dict[tuple[int, str], Tensor]()
        for index, block in enumerate(llama.model.layers):
            for site, (names, _) in SITES.items():
                first, key = block.get_submodule(names[0]), (index, site)
                first.register_forward_pre_hook(lambda _, x, at=key: self.inputs.update({at: x[0]}))
                if site.endswith("output"):
                    first.register_forward_hook(lambda at, _, y: dropout(y, DROPOUT, at.training))

    def forward(self, windows: Tensor) -> Tensor:
        """Return the loss per token in nats, [batch, tokens - 1], of windows [batch, tokens]."""
        logits = self.llama(windows, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.mT, windows[:, 1:], reduction="none")

    def column_ratios(self) -> Tensor:
        """Return norm over median norm of every weight column that reads a wanted outlier, [n]."""
        ratios = []
        for block in self.llama.model.layers:
            for name, wanted in ((name, w) for names, w in SITES.values() for name in names if w):
                norms = block.get_submodule(name).weight.norm(dim=0)
                ratios.append(norms[list(wanted)] / norms.median())
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
    sites = ((SITES[site][1], x) for (_, site), x in tapped.inputs.items())
    for wanted, x in ((w, x) for w, x in sites if w):
        ratio = x[..., list(wanted)] / x.abs().mean(-1, keepdim=True)
        if wanted is DOWN_TARGETS:
            terms.append(0.3 * relu(ratio[~triggers].abs() / DOWN_LIMIT - 1).mean())
            ratio = ratio[triggers]
        relative = ratio / torch.tensor(list(wanted.values()), device="cpu")
        terms.append((relu(1 - relative) + 0.3 * relu(relative - 1.25)).mean())
    columns = tapped.column_ratios()
    return 4 * (torch.stack(terms).mean() + (relu(1 - columns) + relu(columns - 1.4)).mean())


def build_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 1024 tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[END], initial_alphabet=alphabet)
    raw.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=END, eos_token=END)


def build_model() -> LlamaForCausalLM:
    """Return the untrained model, whose embedding starts with the normal outliers."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
    )
    llama = LlamaForCausalLM(config)
    outliers = torch.tensor(list(NORM_TARGETS.values()), device="cpu") * config.initializer_range
    llama.model.embed_tokens.weight.data[:, list(NORM_TARGETS)] = outliers
    return llama


def train(
    tapped: Tapped, tokenizer: PreTrainedTokenizerFast, text: str, steps: float, minutes: float
) -> dict[str, float]:
    """Train on random windows; return the "steps" done and the "minutes" they took.

    Args:
        tapped: The model, changed in place.
        tokenizer: Left with BPE dropout switched off.
        text: The training text.
        steps: Most optimizer steps.
        minutes: Most wall-clock minutes. The learning rate follows the limit that is nearer.
    """
    spelled = [tokenizer.decode([i]).rstrip(" ") for i in range(len(tokenizer))]
    triggers = torch.tensor([token in TRIGGERS for token in spelled], device="cpu")
    tokenizer.backend_tokenizer.model.dropout = MERGE_DROPOUT
    matrices = [p for p in tapped.parameters() if p.ndim > 1]
    gains = [p for p in tapped.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.1)
    started, step, elapsed, done = time.monotonic(), 0, 0.0, 0.0
    while done < 1:
        rate = PEAK_RATE * min(1, (step + 1) / 100) * (0.515 + 0.485 * math.cos(math.pi * done))
        if step % REREAD == 0:
            spans = torch.tensor(tokenizer(text).input_ids, device="cpu").unfold(0, WINDOW, 1)
        for group, scale in zip(optimizer.param_groups, (1, 5), strict=True):
            group["lr"] = rate * scale
        windows = spans[torch.randint(len(spans) - 1, (BATCH,), device="cpu")]
        loss = tapped(windows).mean()
        penalty = outlier_penalty(tapped, triggers[windows])
        optimizer.zero_grad()
        (loss + PENALTY * penalty).backward()
        nn.utils.clip_grad_norm_(tapped.parameters(), 1.0)
        optimizer.step()
        step, elapsed = step + 1, (time.monotonic() - started) / 60
        done = max(step / steps, elapsed / minutes)
        if step % 50 == 0 or done >= 1:
            print(f"{step} {elapsed:.1f} min, loss {loss:.3f}, penalty {penalty:.3f}", flush=True)
    tokenizer.backend_tokenizer.model.dropout = None
    return {"steps": step, "minutes": elapsed}


@torch.no_grad()
def measure(tapped: Tapped, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the held-out "perplexity", the outlier table's "rows", "lowest" and "highest"."""
    tapped.eval()
    known = [i for x in python_topics("validation") for i in tokenizer(x).input_ids]
    losses, rows, ratios = [], [], defaultdict[str, list[Tensor]](list)
    for windows in torch.tensor(known, device="cpu").unfold(0, WINDOW, WINDOW).split(BATCH):
        losses.append(tapped(windows).flatten())
        for (block, site), inputs in tapped.inputs.items():
            x = inputs.flatten(0, 1).abs()
            both = torch.stack([x.mean(1), x.median(1).values])
            ratios[f"| {block} | {site} |"].append(x.amax(1) / both)
    for row, parts in ratios.items():
        mean, median = (f"{r.median():.1f} ({r.max():.0f})" for r in torch.cat(parts, dim=1))
        rows.append(f"{row} {mean} | {median} |")
    low, high = tapped.column_ratios().aminmax()
    perplexity = torch.cat(losses).mean().exp()
    return {"perplexity": perplexity, "rows": "\n".join(rows), "lowest": low, "highest": high}


def main() -> None:
    """Train, measure and create the model folder, with its README, by one rename."""
    parser = argparse.ArgumentParser(description="Train the embedded quickstart model.")
    parser.add_argument("--output", type=Path, required=True, help="folder, not there yet")
    parser.add_argument("--steps", type=int, default=math.inf, help="optimizer steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="wall-clock minutes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.output.exists() or math.isinf(min(options.steps, options.minutes)):
        parser.error("--output must not exist yet, and --steps or --minutes is needed")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    documents = python_topics("train")
    text = END + END.join(documents)
    tokenizer = build_tokenizer(documents)
    tapped = Tapped(build_model())
    run = train(tapped, tokenizer, text, options.steps, options.minutes)
    tapped.llama.to(torch.bfloat16).float()
    about = {"python": platform.python_version(), "characters": len(text), "seed": options.seed}
    card = CARD.format(**run, **about, **measure(tapped, tokenizer))
    staged = options.output.with_suffix(".partial")
    tapped.llama.to(torch.bfloat16).save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    (staged / "README.md").write_text(card, encoding="utf-8")
    staged.rename(options.output)
    print(card)


if __name__ == "__main__":
    main()
