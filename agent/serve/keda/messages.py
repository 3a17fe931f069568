"""The messages and methods of KEDA's service `externalscaler.ExternalScaler`, by the names, numbers and types that its
protocol fixes. KEDA calls it for the triggers `external` and `external-push`.

The descriptors are in a pool of their own, so that another package with the same service does no harm. `make test-keda`
compares them with the protocol file of the KEDA that it builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

PACKAGE: Final = "externalscaler"
SERVICE: Final = f"{PACKAGE}.ExternalScaler"

STRING_MAP: Final = "map<string, string>"
REPEATED: Final = "repeated "


class Field(NamedTuple):
    """One field: its name, its number, and its type in the words of a protocol file."""

    name: str
    number: int
    type: str


class Rpc(NamedTuple):
    """One method: the messages of request and response, and whether there are many responses."""

    request: str
    response: str
    streaming: bool = False


MESSAGES: Final[Mapping[str, tuple[Field, ...]]] = {
    "ScaledObjectRef": (
        Field("name", 1, "string"),
        Field("namespace", 2, "string"),
        Field("scalerMetadata", 3, STRING_MAP),
    ),
    "IsActiveResponse": (Field("result", 1, "bool"),),
    "GetMetricSpecResponse": (Field("metricSpecs", 1, f"{REPEATED}MetricSpec"),),
    "MetricSpec": (
        Field("metricName", 1, "string"),
        Field("targetSize", 2, "int64"),
        Field("targetSizeFloat", 3, "double"),
    ),
    "GetMetricsRequest": (Field("scaledObjectRef", 1, "ScaledObjectRef"), Field("metricName", 2, "string")),
    "GetMetricsResponse": (Field("metricValues", 1, f"{REPEATED}MetricValue"),),
    "MetricValue": (
        Field("metricName", 1, "string"),
        Field("metricValue", 2, "int64"),
        Field("metricValueFloat", 3, "double"),
    ),
}
RPCS: Final[Mapping[str, Rpc]] = {
    "IsActive": Rpc("ScaledObjectRef", "IsActiveResponse"),
    "StreamIsActive": Rpc("ScaledObjectRef", "IsActiveResponse", streaming=True),
    "GetMetricSpec": Rpc("ScaledObjectRef", "GetMetricSpecResponse"),
    "GetMetrics": Rpc("GetMetricsRequest", "GetMetricsResponse"),
    "StreamMetricSpec": Rpc("ScaledObjectRef", "GetMetricSpecResponse", streaming=True),
}

_Proto = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Proto.TYPE_STRING,
    "bool": _Proto.TYPE_BOOL,
    "int64": _Proto.TYPE_INT64,
    "double": _Proto.TYPE_DOUBLE,
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="externalscaler.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add(message, name, field)
    return file


def _add(message: descriptor_pb2.DescriptorProto, owner: str, field: Field) -> None:
    made = message.field.add(name=field.name, number=field.number, label=_Proto.LABEL_OPTIONAL)
    if field.type == STRING_MAP:  # on the wire a map is a repeated message of key and value
        entry_name = f"{field.name[0].upper()}{field.name[1:]}Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        for number, name in enumerate(("key", "value"), 1):
            entry.field.add(name=name, number=number, label=_Proto.LABEL_OPTIONAL, type=_Proto.TYPE_STRING)
        made.label, made.type = _Proto.LABEL_REPEATED, _Proto.TYPE_MESSAGE
        made.type_name = f".{PACKAGE}.{owner}.{entry_name}"
        return
    if field.type.startswith(REPEATED):
        made.label = _Proto.LABEL_REPEATED
    type_name = field.type.removeprefix(REPEATED)
    scalar = _SCALARS.get(type_name)
    if scalar is None:
        made.type, made.type_name = _Proto.TYPE_MESSAGE, f".{PACKAGE}.{type_name}"
    else:
        made.type = scalar


def _classes() -> Mapping[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


CLASSES: Final[Mapping[str, Any]] = _classes()


class BadMessage(Exception):
    """The bytes are not such a message; the text says what is wrong with them."""


def parse(message: str, data: bytes) -> Any:
    """The message of this name from its bytes. Raises BadMessage."""
    try:
        return CLASSES[message].FromString(data)
    except DecodeError as error:
        raise BadMessage(f"not a {message}: {error}") from error


def serialise(message: str, **fields: Any) -> bytes:
    """The bytes of a message with these fields."""
    data: bytes = CLASSES[message](**fields).SerializeToString()
    return data
