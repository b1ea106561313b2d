"""Settings of every test: one thread, reproducible examples."""

import torch
from hypothesis import settings

# One thread adds floats in one order on every machine, and two cores are shared with other work.
torch.set_num_threads(1)

# Examples come from a fixed seed: a red test is red again. No deadline: it would assert a time.
settings.register_profile(
    "duquant", deadline=None, derandomize=True, database=None, max_examples=25
)
settings.load_profile("duquant")
