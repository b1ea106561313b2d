"""Faster versions of operators, in C and compiled where they are first used.

:mod:`duquant.ops.kernels.table` lists them; a file each:

* :mod:`duquant.ops.kernels.int4`: linears of packed 4-bit weights, for running a model;
* :mod:`duquant.ops.kernels.scaled_sums`: what comes after other integer products;
* :mod:`duquant.ops.kernels.transform`: rotations and permutations of a site;
* :mod:`duquant.ops.kernels.rows`: quantization, fake and real, and its gradient, for both;
* :mod:`duquant.ops.kernels.screen`: the largest entries of a rotation search.

Their operators are defined in :mod:`duquant.ops`; the definitions serve where a kernel does not.
"""
