"""C kernels, compiled where they are first used; PyTorch serves wherever they are missing.

* :mod:`duquant.ops.kernels.int4`: products with packed 4-bit weights, for running a model;
* :mod:`duquant.ops.kernels.rows`: fake quantization and its gradient, for training one.
"""
