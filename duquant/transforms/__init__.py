"""In which space tensors are rounded: one transform per file, joined by a table.

A *transform* multiplies the input of a site by a matrix that spreads outliers, and the weights that
read it by the inverse's transpose, so that their product stays what it was. A new one is a file
here and a row in :mod:`duquant.transforms.table`.
"""
