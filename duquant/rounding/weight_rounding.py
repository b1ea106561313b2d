"""tmp"""
from typing import Protocol
class WeightRounding(Protocol):
    needs_gram: bool
