"""The export targets by the names that the command line uses."""

from duquant.export.targets.compressed_tensors import CompressedTensors
from duquant.export.targets.dequantized import Dequantized
from duquant.export.targets.exporter import Exporter
from duquant.export.targets.native import Native

EXPORTERS: dict[str, type[Exporter]] = {
    kind.name: kind for kind in (Native, Dequantized, CompressedTensors)
}
