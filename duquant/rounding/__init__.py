"""Which of a format's numbers stand for a weight: one way of rounding per file, and a table.

The nearest number is the obvious choice and not the best: what counts is the error of the linear's
output, where errors of correlated inputs cancel or add up. A new rounding is a file here and a row
in :mod:`duquant.rounding.table`.
"""
