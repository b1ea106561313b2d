"""tmp"""
from duquant.rounding.nearest import Nearest
def build_rounding(config): return Nearest()
