"""Faster versions of operators on GPUs, in Triton, compiled where they are first used.

Triton comes with PyTorch's CUDA wheels; nothing here imports it before a kernel is wanted.
:mod:`duquant.ops.kernels.table` lists the kernels beside those in C; a file each, and its source:

* :mod:`duquant.ops.triton_kernels.int4`: linears of packed 4-bit weights, for running a model;
* :mod:`duquant.ops.triton_kernels.rows`: quantization, fake and real, and its gradient;
* :mod:`duquant.ops.triton_kernels.transform`: rotations and permutations of a site.

Tiles are fixed, never chosen by a clock: a result depends on nothing but its arguments. Products
and sums of floats stay apart (``enable_fp_fusion=False``) wherever a definition rounds in between.
"""
