"""A quantized block run by each candidate that ``auto`` chooses from, see ``execution.py``."""

import copy

import torch
from torch import nn

from duquant.model.execution import configure_execution
from duquant.model.structure import LINEARS
from duquant.nn.execution import Choice, Execution
from duquant.ops.integer_product import layout_kernels
from duquant.ops.integer_weight import ROW_COUNTS


def candidates(block: nn.Module) -> dict[str, nn.Module]:
    """A quantized block as ``auto`` runs it, and as each candidate alone would."""
    executions = {
        "auto": Execution(),
        "reference": Execution("reference"),
        "packed": Execution("integer", "packed"),
    }
    layouts = layout_kernels(torch.device("cpu"))
    blocks = {name: copy.deepcopy(block) for name in (*executions, *layouts)}
    for name, each in blocks.items():
        configure_execution([each], executions.get(name, Execution("integer")))
        if name in layouts:
            for linear in (each.get_submodule(one) for one in LINEARS):
                linear.choice, linear.shared = Choice(True, (name,) * len(ROW_COUNTS)), None
    return blocks
