"""What a node takes and gives, by the definition of its op or function."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tensorflow.core.framework import attr_value_pb2, types_pb2
from tensorflow.python.framework import dtypes, op_def_registry

REFERENCE = 100
"""Distance in TensorFlow's enum from a type to the reference of it."""

_NO_VALUE = attr_value_pb2.AttrValue()
_FIELDS = {
    "string": "s", "int": "i", "float": "f", "bool": "b", "type": "type", "shape": "shape",
    "tensor": "tensor", "func": "func",
}  # fmt: skip
"""Kind of an attribute in an op's definition -> field of `AttrValue` that holds it."""
_MOST_TENSORS = 1_000_000
_MOST_DIGITS = 9
_TYPES = frozenset(types_pb2.DataType.values()) - {types_pb2.DT_INVALID}


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a node, numbered through all its output arguments."""

    types: tuple[int, ...]
    """TensorFlow's `DataType` of each."""
    arguments: Mapping[str, range]
    """Output argument -> its outputs."""

    def port(self, text: str) -> int:
        """The output that `a`, `a:1`, `a:arg` or `a:arg:1` means.

        Raises:
          LookupError: there is none.
        """
        _, *suffix = text.split(":")
        ports = range(len(self.types))
        if suffix and suffix[0] in self.arguments:
            ports = self.arguments[suffix.pop(0)]
        number = ":".join(suffix) or "0"
        if not number.isdecimal() or len(number) > _MOST_DIGITS or int(number) >= len(ports):
            raise LookupError(text)
        return ports[int(number)]


def definition(node: Any, functions: Mapping[str, Any]) -> Any | None:
    """The `OpDef` of a node, from the library or TensorFlow's registry; None if unknown."""
    function = functions.get(node.op)
    return function.signature if function is not None else op_def_registry.get(node.op)


def attr_of(node: Any, name: str) -> Any:
    """A node's attribute, or an empty one; plain indexing would add it to the node."""
    return node.attr.get(name, _NO_VALUE)


def function_attributes(op: str) -> tuple[str, ...]:
    """The attributes of an op that name functions, sorted."""
    return () if op_def_registry.get(op) is None else _function_attributes(op)


@cache
def _function_attributes(op: str) -> tuple[str, ...]:
    attributes = op_def_registry.get(op).attr
    return tuple(sorted(a.name for a in attributes if a.type in ("func", "list(func)")))


def input_types(node: Any, op_def: Any) -> list[int]:
    """The `DataType` of every data input."""
    return [t for arg in op_def.input_arg for t in argument_types(node, arg, op_def)]


def outputs_of(node: Any, op_def: Any) -> Outputs:
    """The outputs of a node whose attributes are sound."""
    types: list[int] = []
    arguments: dict[str, range] = {}
    for arg in op_def.output_arg:
        first = len(types)
        types.extend(argument_types(node, arg, op_def))
        arguments[arg.name] = range(first, len(types))
    return Outputs(tuple(types), arguments)


def argument_types(node: Any, arg: Any, op_def: Any) -> list[int]:
    """The `DataType`s of the tensors that an `OpDef.ArgDef` stands for at a node."""
    if arg.type_list_attr:
        return list(_value(node, arg.type_list_attr, op_def).list.type)
    dtype = arg.type or _value(node, arg.type_attr, op_def).type
    count = min(_value(node, arg.number_attr, op_def).i, _MOST_TENSORS) if arg.number_attr else 1
    return [dtype + REFERENCE if arg.is_ref else dtype] * count


def type_name(dtype: int) -> str:
    """TensorFlow's name of a `DataType`, for messages about types that may not exist."""
    if dtype not in types_pb2.DataType.values():
        return f"type {dtype}"
    return str(types_pb2.DataType.Name(dtype)).removeprefix("DT_").lower()


def attr_faults(node: Any, op_def: Any) -> Iterator[str]:
    """What is wrong with a node's attributes, each as the end of a sentence about the node."""
    for attr in op_def.attr:
        value = node.attr.get(attr.name)
        if value is None and not attr.HasField("default_value"):
            yield f"lacks its attribute {attr.name!r}"
        elif value is not None and (fault := _value_fault(value, attr)):
            yield f"has the attribute {attr.name!r} {fault}"
        elif value is not None and value.i > _MOST_TENSORS and _counts(op_def, attr.name):
            yield f"has {value.i} tensors in the place of its attribute {attr.name!r}"


def _counts(op_def: Any, name: str) -> bool:
    """Whether an attribute is the number of tensors of an argument."""
    return any(arg.number_attr == name for arg in (*op_def.input_arg, *op_def.output_arg))


def _value_fault(value: Any, attr: Any) -> str:
    kind = attr.type.removeprefix("list(").removesuffix(")")
    if value.WhichOneof("value") != ("list" if kind != attr.type else _FIELDS[kind]):
        return f"of another kind than {attr.type}"
    if attr.has_minimum and kind == attr.type and value.i < attr.minimum:
        return f"below {attr.minimum}"
    if attr.has_minimum and kind != attr.type and _length(value.list) < attr.minimum:
        return f"with fewer than {attr.minimum} elements"
    if attr.type == "tensor":
        return _tensor_fault(value.tensor)
    if kind != "type":
        return ""
    known = frozenset(attr.allowed_values.list.type) or _TYPES
    given = value.list.type if kind != attr.type else [value.type]
    unknown = [t for t in given if t not in known]
    return f"with {type_name(unknown[0])}, which the op does not take" if unknown else ""


def _tensor_fault(tensor: Any) -> str:
    if tensor.dtype not in _TYPES:
        return f"of {type_name(tensor.dtype)}"
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        return "without a definite shape"
    expected = math.prod(sizes) * dtypes.as_dtype(tensor.dtype).size
    if tensor.tensor_content and len(tensor.tensor_content) != expected:
        return f"of {expected} bytes that holds {len(tensor.tensor_content)}"
    return ""


def _length(values: Any) -> int:
    return max((len(elements) for _, elements in values.ListFields()), default=0)


def _value(node: Any, name: str, op_def: Any) -> Any:
    """A node's attribute, or its default."""
    value = node.attr.get(name)
    if value is not None:
        return value
    defaults = (attr.default_value for attr in op_def.attr if attr.name == name)
    return next(defaults, _NO_VALUE)
