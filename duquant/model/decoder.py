"""A decoder that is never whole: skeleton on the meta device, one block of real weights at a time.

The skeleton is the model as transformers builds it, without memory behind its parameters. Real
weights are read where they are needed: a block when it is its turn, embeddings or final norm and
head for as long as something passes through them. What a block needs beside hidden states (position
embeddings, causal or sliding mask, …) is not rebuilt here: the model's own ``forward`` runs once
with recorders in place of its blocks, and each recorder keeps what it was given. So every family
prepares its blocks' inputs itself.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from duquant.model.checkpoint import Checkpoint, find_model_directory
from duquant.model.skeleton import build_skeleton, read_config
from duquant.model.tokenizer import require_known_tokens
from duquant.nn.attention import register_attention
from duquant.ops.precision import exact_products
from duquant.plain_text import in_one_line

BlockContext = dict[str, Any]
"""Keyword arguments of one block's forward, for sequences of one length."""

RECOMPUTED = "rotary_emb.inv_freq"
"""Older LLaMA checkpoints store these frequencies; they follow from the configuration."""


class _Recorder(nn.Module):
    """Stands where a block stood: keeps what it is called with and passes hidden states on.

    Args:
        replacement: hidden states to pass on instead of those it is called with.
    """

    def __init__(self, replacement: Tensor | None = None) -> None:
        super().__init__()
        self.replacement = replacement
        self.hidden: Tensor | None = None
        self.context: BlockContext = {}

    def forward(self, hidden_states: Tensor, **context: Any) -> Tensor:
        """Record."""
        self.hidden = hidden_states
        self.context = {**context, "past_key_values": None, "use_cache": False}
        return hidden_states if self.replacement is None else self.replacement


class Decoder:
    """A Hugging Face causal language model, one block in memory at a time.

    Args:
        pretrained: model directory or hub id.
        dtype: dtype of the weights and of the computation.

    Raises:
        ValueError: if the directory, its weights or its block structure do not fit.
    """

    def __init__(self, pretrained: str, dtype: torch.dtype) -> None:
        register_attention()
        self.pretrained = pretrained
        self.dtype = dtype
        self.directory = find_model_directory(pretrained)
        self.config = read_config(self.directory)
        self.checkpoint = Checkpoint(self.directory)
        self._settle_head()
        self.skeleton = build_skeleton(self.config, dtype, pretrained)
        self._require_stored()
        self._has_frequencies = False

    @property
    def num_blocks(self) -> int:
        """Decoder blocks of the model."""
        return len(self._blocks)

    @property
    def hidden_size(self) -> int:
        """Channels of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence the model was made for."""
        return int(getattr(self.config, "max_position_embeddings", 2**31))

    def require_windows(self, windows: Tensor, tokenizer: Any) -> None:
        """Raise ``ValueError`` if token ids ``(windows, tokens)`` are too long or unknown."""
        length = windows.shape[1]
        if length > self.max_positions:
            limit = f"the model has {self.max_positions} positions"
            raise ValueError(f"sequence_length is {length}, but {limit}")
        require_known_tokens([int(windows.max())], int(self.config.vocab_size), tokenizer)

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.skeleton.model.layers
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def meta_block(self, index: int = 0) -> nn.Module:
        """Block ``index`` without weights, for shapes and structure."""
        return self._blocks[index]

    def load_block(self, index: int) -> nn.Module:
        """Block ``index`` with its real weights, on the CPU, for the caller to change."""
        block = copy.deepcopy(self._blocks[index])
        stored = self.checkpoint.read(f"model.layers.{index}.", self.dtype)
        tensors = {name: t for name, t in stored.items() if not name.endswith(RECOMPUTED)}
        _fill(block, tensors, f"{self.directory}: block {index}")
        return block.requires_grad_(False)

    @torch.no_grad()
    def contexts(self, sequence_length: int, device: torch.device) -> list[BlockContext]:
        """What each block's forward needs beside hidden states, for one sequence length."""
        hidden = torch.zeros(1, sequence_length, self.hidden_size, dtype=self.dtype, device="cpu")
        model = self.skeleton.model
        with exact_products():  # RoPE is a matrix product in older transformers
            _, recorders = self._run_outside(model, device, makes_masks=True, inputs_embeds=hidden)
        return [recorder.context for recorder in recorders]

    @torch.no_grad()
    def embed(self, input_ids: Tensor, device: torch.device) -> Tensor:
        """Hidden states that enter block 0: ``(batch, tokens)`` -> ``(batch, tokens, hidden)``."""
        self._load_outside("model.embed_tokens", device)
        _, recorders = self._run_outside(self.skeleton.model, device, input_ids=input_ids)
        assert recorders[0].hidden is not None
        return recorders[0].hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows the last block: ``(batch, tokens, hidden)`` -> ``(…, vocabulary)``.

        Differentiable in ``hidden``.

        That is the final norm and the head, and whatever else the model's own ``forward`` does to
        its logits (Granite divides them), so that runs here too, with ``hidden`` as blocks' output.
        """
        self._load_outside("lm_head", hidden.device)
        output, _ = self._run_outside(
            self.skeleton, hidden.device, replacement=hidden, inputs_embeds=hidden
        )
        logits: Tensor = output.logits
        return logits

    def release(self) -> None:
        """Drop embeddings and head from memory; they are read again when they are needed."""
        for name in ("model.embed_tokens", "lm_head"):
            self.skeleton.get_submodule(name).to("meta")

    def outside_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored tensors that belong to no block: embeddings, final norm, head."""
        needed = {name for name, _ in self.skeleton.named_parameters()}
        names = [n for n in self.checkpoint.files if n in needed]
        outside = [name for name in names if not name.startswith("model.layers.")]
        return {name: self.checkpoint.shape(name) for name in outside}

    def outside_tensor(self, name: str) -> Tensor:
        """One of these tensors, in the model's dtype."""
        return self.checkpoint.read(name, self.dtype)[""]

    def _run_outside(
        self,
        model: Any,
        device: torch.device,
        *,
        replacement: Tensor | None = None,
        makes_masks: bool = False,
        **inputs: Tensor,
    ) -> tuple[Any, list[_Recorder]]:
        base, blocks = self.skeleton.model, self._blocks
        self._load_outside("model.norm", device)
        if not self._has_frequencies:
            with torch.device("cpu"):  # transformers leaves the device to the default
                base.rotary_emb = type(base.rotary_emb)(config=self.config)
            self._has_frequencies = True
        base.rotary_emb.to(device)
        recorders = [_Recorder(replacement) for block in blocks]
        base.layers = nn.ModuleList(recorders)
        try:
            on_device = {name: value.to(device) for name, value in inputs.items()}
            if not makes_masks:  # a mask of four dimensions is taken as it is, without a wait
                on_device["attention_mask"] = torch.zeros(
                    1, 1, 1, 1, dtype=torch.float32, device=device
                )
            with torch.device(device):
                return model(**on_device, use_cache=False), recorders
        finally:
            base.layers = blocks

    def _load_outside(self, name: str, device: torch.device) -> None:
        """Give one module outside of the blocks its weights, unless it has them."""
        module = self.skeleton.get_submodule(name)
        if any(parameter.is_meta for parameter in module.parameters()):
            tensors = self.checkpoint.read(f"{name}.", self.dtype)
            if not tensors and name == "lm_head" and self.config.tie_word_embeddings:
                tensors = self.checkpoint.read("model.embed_tokens.", self.dtype)
            _fill(module, tensors, f"{self.directory}: {name}")
            _compute_buffers(self.skeleton, module)
        module.to(device)

    def _settle_head(self) -> None:
        """Tie embeddings and head as transformers does, where the configuration says so.

        A file may have kept both although they are tied. Where they are equal one is read; where
        they are not, the configuration is wrong, and the head is a weight of its own.
        """
        embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
        stored = self.checkpoint.files
        if not getattr(self.config, "tie_word_embeddings", False) or head not in stored:
            return
        if embeddings not in stored:
            self.checkpoint.rename(head, embeddings)
        elif torch.equal(*(tensor for _, tensor in self.checkpoint.tensors([embeddings, head]))):
            self.checkpoint.drop(head)
        else:
            self.config.tie_word_embeddings = False

    def _require_stored(self) -> None:
        """Refuse weights that lack a parameter or hold one of another shape."""
        for key, parameter in self.skeleton.named_parameters():
            if key not in self.checkpoint.files:
                raise ValueError(f"{self.directory}: the weights lack {key}")
            if self.checkpoint.shape(key) != tuple(parameter.shape):
                raise ValueError(
                    f"{self.directory}: {key} has shape {self.checkpoint.shape(key)}; config.json "
                    f"asks for {tuple(parameter.shape)}"
                )


def _fill(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(tensors, assign=True, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{what}: {in_one_line(error)}") from error
    module.requires_grad_(False)


def _compute_buffers(model: Any, module: nn.Module) -> None:
    """Compute the buffers that no file holds (Gemma scales its embeddings by one)."""
    missing = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if not missing:
        return
    for name in missing:
        setattr(module, name, torch.empty_like(module.get_buffer(name), device="cpu"))
    for parameter in module.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    model._init_weights(module)
