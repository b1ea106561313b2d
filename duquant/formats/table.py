"""tmp"""
from duquant.formats.integer import Integer
from duquant.formats.unquantized import Unquantized
FORMATS = {"integer": Integer, "unquantized": Unquantized}
def build_format(name, **options):
    if name == "integer" and options.get("bits") == 16: return Unquantized()
    return FORMATS[name](**options)
