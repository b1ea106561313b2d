"""What ``config.json`` of a quantized model says to transformers without duquant.

It would warn of an unknown method, leave all packed tensors aside, and give a model of random
weights. It does refuse an implementation of experts that it does not know, also for models that
have none, and quotes its name. With duquant the field stands for the default. That of attention
will not do: users choose it, and ``output_attentions`` forbids most.
"""

from typing import Any

NOTICE_FIELD = "experts_implementation"
NOTICE = "duquant (pip install duquant, then import duquant before loading)"


def drop_notice(config: Any) -> None:
    """Take the notice off a configuration of transformers, before a model is built from it."""
    if getattr(config, "_experts_implementation", None) == NOTICE:
        config._experts_implementation = None
