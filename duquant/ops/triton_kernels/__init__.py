"""Faster versions of operators on GPUs, in Triton, compiled where they are first used.

Triton comes with PyTorch's CUDA wheels; nothing here imports it before a kernel is wanted.
:mod:`duquant.ops.kernels.table` lists the kernels beside those in C; a file each, and its source:

* :mod:`duquant.ops.triton_kernels.int4`: linears of packed 4-bit weights, for running a model;
* :mod:`duquant.ops.triton_kernels.scaled_sums`: what comes after other integer products;
* :mod:`duquant.ops.triton_kernels.rows`: quantization, fake and real, and its gradient;
* :mod:`duquant.ops.triton_kernels.transform`: rotations and permutations of a site;
* :mod:`duquant.ops.triton_kernels.transformed`: the same and quantization, and heads of Q, K and V.

Tiles are fixed, never chosen by a clock: a result depends on nothing but its arguments. Where a
definition rounds between a product and a sum, ``enable_fp_fusion=False`` keeps the two apart.

They were written without a GPU at hand: their numbers are tested in Triton's interpreter, and its
compiler takes them for GPUs of capability 8.0, 9.0, 10.0 and 12.0. On a GPU they have never run.
"""
