"""Linear layers in several number formats, which replace `nn.Linear` in a block, for inference.

`dequantized` is the reference of the quantized ones in plain torch; `prune` makes weights 2:4
sparse.
"""

from samfast.linear.fp8 import Fp8Linear
from samfast.linear.int8 import Int8Linear
from samfast.linear.pattern import check_24
from samfast.linear.quantization import quantize_rows
from samfast.linear.quantized_linear import QuantizedLinear
from samfast.linear.sparse_24 import SparseLinear
from samfast.linear.sparse_int8 import SparseInt8Linear

__all__ = [
    "Fp8Linear",
    "Int8Linear",
    "QuantizedLinear",
    "SparseInt8Linear",
    "SparseLinear",
    "check_24",
    "quantize_rows",
]
