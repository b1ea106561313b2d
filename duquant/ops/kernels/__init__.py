"""C kernels, compiled where they are first used; PyTorch serves wherever they are missing.

* :mod:`duquant.ops.kernels.int4`: linears of packed 4-bit weights, for running a model;
* :mod:`duquant.ops.kernels.transform`: rotations and permutations of a site;
* :mod:`duquant.ops.kernels.rows`: quantization, fake and real, and its gradient, for both.
"""
