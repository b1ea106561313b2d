"""The last turn of a calibration: the whole quantized model learns the original's predictions.

Blocks are finished one after the other, each near to what the original's block gives; what they
lose adds up in ways that no block sees. Once the codes of all weights are chosen, what is stored
beside them in floating point (:mod:`duquant.export.float_tensors`) is trained on

    KL(p ‖ q), the mean over the calibration's tokens,

where ``p`` are the probabilities that the original predicts and ``q`` those of the quantized model
(knowledge distillation, Hinton et al. 2015). Tensors differ in scale, so each is learned in units
of its root mean square, and one learning rate does for all. The transforms of activations move too,
and weights do not follow: their codes are made for good. Nothing of this costs anything at run
time.

The blocks are borrowed and lie in memory packed. With gradient checkpointing every block's forward
pass is computed again in the backward pass, so of all blocks only the hidden states between them
are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from duquant.config import Recipe
from duquant.evaluation.perplexity import LOGITS_AT_ONCE
from duquant.export.float_tensors import Shape
from duquant.export.model_directory import ModelDirectory
from duquant.model.batch import BlockBatch
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.execution import configure_execution
from duquant.modules.block_optimizer import set_learning_rate
from duquant.modules.learner import Learner
from duquant.nn.execution import Execution

_Stored = dict[str, tuple[torch.dtype, float]]
"""Of every tensor of a block that learns, its dtype in the file and its unit."""
CLIP = "clip_ends"
SMALLEST_CLIP = 0.05
"""Least that a clip factor may leave of a token's range."""
SMALLEST_UNIT = 1e-6
LOSS_SCALE = 2.0**11
"""What the loss is multiplied by before the backward pass; float16 would lose smaller gradients."""


class Distillation(Learner):
    """What the whole model learns, and the model while it does.

    Args:
        shapes: of what learns in every block, by name.
        recipe: says for how long.
        gradient_checkpointing: do not keep what blocks computed, but compute it again.
    """

    units: Tensor

    def __init__(
        self,
        shapes: Sequence[Mapping[str, Shape]],
        recipe: Recipe,
        *,
        gradient_checkpointing: bool = True,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.gradient_checkpointing = gradient_checkpointing
        self.values = nn.ModuleList(
            nn.ParameterDict({_key(name): _zeros(shape) for name, shape in of_block.items()})
            for of_block in shapes
        )
        self.names = [tuple(of_block) for of_block in shapes]
        self.register_buffer(
            "units", torch.ones(sum(map(len, shapes)), dtype=torch.float32, device="cpu")
        )
        self._stored: list[_Stored] = []
        self._blocks: list[nn.Module] = []
        self._contexts: Sequence[BlockContext] = ()
        self._decoder: Decoder | None = None

    @torch.no_grad()
    def enter(
        self, directory: ModelDirectory, decoder: Decoder, contexts: Sequence[BlockContext]
    ) -> None:
        """Read all finished blocks; begin at their values, or go on from those that are held.

        The checkpoint of a run holds values and units from the moment this turn begins, so it does
        not matter whether blocks are stored again already.

        Args:
            directory: holds the blocks.
            decoder: embeds tokens and predicts.
            contexts: what each block's forward needs beside hidden states.

        Raises:
            ValueError: if a block is missing or damaged, naming it.
        """
        numbers = range(decoder.num_blocks)
        blocks = [directory.read_block(index, decoder).to(self.device) for index in numbers]
        configure_execution(blocks, Execution("reference", "packed"))
        self._blocks, self._contexts, self._decoder = blocks, contexts, decoder
        stored = [
            {name: held[name] for name in names}
            for names, held in zip(self.names, map(_tensors, blocks), strict=True)
        ]
        if not self.has_begun:
            units = [_unit(tensor) for block in stored for tensor in block.values()]
            self.units.copy_(torch.tensor(units, dtype=torch.float32, device="cpu"))
        units_left = iter(self.units.tolist())
        self._stored = [{n: (t.dtype, next(units_left)) for n, t in b.items()} for b in stored]
        if self.has_begun:
            return
        for index, of_block in enumerate(stored):
            for name, start in of_block.items():
                _, unit = self._stored[index][name]
                self._parameter(index, name).copy_(start.float() / unit)
        self.has_begun.fill_(True)

    def forward(self, token_ids: Tensor) -> Tensor:
        """The last block's output, ``(batch, tokens)`` -> ``(batch, tokens, hidden)``."""
        assert self._decoder is not None, "enter first"
        hidden = self._decoder.embed(token_ids, self.device)
        for index in range(len(self._blocks)):
            if self.gradient_checkpointing:
                hidden = checkpoint(self._run, index, hidden, use_reentrant=False)
            else:
                hidden = self._run(index, hidden)
        return hidden

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """A step; what is returned is scaled, ``step_loss`` is not. AdamW follows either alike."""
        return super().training_step(batch, batch_idx) * LOSS_SCALE

    def loss(self, batch: BlockBatch) -> Tensor:
        """Divergence of the predictions; the batch holds token ids and the original's outputs."""
        return self._divergence(batch.target, self(batch.quantized_input))

    def follow_schedule(self, trainer: Trainer, batch_index: int, first_epoch: int = 0) -> None:
        """From the first rate to 0 along a cosine."""
        settings = self.recipe.distillation
        set_learning_rate(
            trainer,
            batch_index,
            settings.epochs,
            schedule="cosine",
            rate=settings.learning_rate,
            first_epoch=first_epoch,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group of everything."""
        rate = self.recipe.distillation.learning_rate
        return [{"params": list(self.values.parameters()), "lr": rate}]

    @torch.no_grad()
    def stored_values(self, index: int) -> dict[str, Tensor]:
        """What block ``index`` has learned, as it is stored."""
        return {name: value.clone() for name, value in self._values(index).items()}

    def release(self) -> None:
        """Let the borrowed model go."""
        self._blocks, self._contexts, self._decoder = [], (), None

    def _run(self, index: int, hidden: Tensor) -> Tensor:
        block, context = self._blocks[index], self._contexts[index]
        output: Tensor = functional_call(block, self._values(index), (hidden,), context)
        return output

    def _values(self, index: int) -> dict[str, Tensor]:
        """What a block computes with, in the dtypes it is stored in."""
        values = {}
        for name, (dtype, unit) in self._stored[index].items():
            value = self._parameter(index, name) * unit
            if name.endswith(CLIP):  # the gradient passes: it may come back from an end
                value = value + (value.clamp(SMALLEST_CLIP, 1.0) - value).detach()
            values[name] = value.to(dtype)
        return values

    def _parameter(self, index: int, name: str) -> Tensor:
        of_block = self.values[index]
        assert isinstance(of_block, nn.ParameterDict)
        parameter: Tensor = of_block[_key(name)]
        return parameter

    def _divergence(self, target: Tensor, output: Tensor) -> Tensor:
        """Mean over tokens."""
        assert self._decoder is not None
        total: Tensor = _SummedDivergence.apply(output, target, self._decoder)
        return total / target[..., 0].numel()


class _SummedDivergence(torch.autograd.Function):
    """KL of all tokens' predictions, a few tokens' logits in memory at a time.

    The gradient is computed along with the values, so that no logits are computed twice.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, decoder: Decoder) -> Tensor:
        size = max(1, LOGITS_AT_ONCE // int(decoder.config.vocab_size) // len(target))
        total, gradients = torch.zeros((), dtype=torch.float32, device=target.device), []
        for wanted, part in zip(target.split(size, 1), output.split(size, 1), strict=True):
            teacher = decoder.logits(wanted).float().log_softmax(dim=-1)
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                student = decoder.logits(part).float().log_softmax(dim=-1)
                summed = F.kl_div(student, teacher, reduction="sum", log_target=True)
            gradients.append(torch.autograd.grad(summed, part)[0])
            total += summed.detach()
        ctx.save_for_backward(torch.cat(gradients, dim=1))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


def _unit(start: Tensor) -> float:
    """Root mean square; what is nothing but zeros hardly moves."""
    return max(float(start.double().square().mean().sqrt()), SMALLEST_UNIT)


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a finished block by name."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def _zeros(shape: Shape) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32, device="cpu"))


def _key(name: str) -> str:
    """A tensor's name as a parameter's: PyTorch allows no dots there."""
    return name.replace(".", "/")
