"""Which numbers stand for a tensor: one number format per file, joined by a table.

A *format* says how a row of floats becomes small *codes* and a *grid* (scales, and zero points
where it has them), and what values they stand for. The recipe names one for the weights, one for
the linears' inputs, and one each for Q, K and V. A new format is a file here and a row in
:mod:`duquant.formats.table`.
"""
