# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Writes an ONNX model of one node, com.microsoft.GroupQueryAttention, for onnxruntime_peer.py.

ONNX files are protobuf. Only what this model needs is here: whole numbers, and fields with a length
(strings, messages). Field numbers are those of onnx.proto.
"""

FLOAT, INT32 = 1, 6  # TensorProto.DataType
INT = 2  # AttributeProto.AttributeType
IR_VERSION, OPSET, MICROSOFT_OPSET = 8, 17, 1


def varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def value_info(name, kind, shape):
    dims = b"".join(field(1, field(1, size)) for size in shape)
    tensor = field(1, kind) + field(2, dims)
    return field(1, name) + field(2, field(1, tensor))


def attribute(name, value):
    return field(1, name) + field(3, value) + field(20, INT)


def group_query_attention(inputs, outputs, heads, kv_heads):
    """inputs, outputs: {name: (type, shape)} in the order of the operator."""
    node = b"".join(
        [
            *(field(1, name) for name in inputs),
            *(field(2, name) for name in outputs),
            field(4, "GroupQueryAttention"),
            field(5, attribute("num_heads", heads)),
            field(5, attribute("kv_num_heads", kv_heads)),
            field(7, "com.microsoft"),
        ]
    )
    graph = b"".join(
        [
            field(1, node),
            field(2, "attention"),
            *(field(11, value_info(name, *of)) for name, of in inputs.items()),
            *(field(12, value_info(name, *of)) for name, of in outputs.items()),
        ]
    )
    return b"".join(
        [
            field(1, IR_VERSION),
            field(7, graph),
            field(8, field(1, "") + field(2, OPSET)),
            field(8, field(1, "com.microsoft") + field(2, MICROSOFT_OPSET)),
        ]
    )
