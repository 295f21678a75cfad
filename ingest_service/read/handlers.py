"""gRPC handlers of methods with one request and one response."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message


def unary(handler: Callable[..., Any], request: type[Message]) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return the handler of a unary method.

    Args:
        handler: the coroutine function with the request and the context.
        request: the class of the request.
    """
    return grpc.unary_unary_rpc_method_handler(
        handler,
        request_deserializer=request.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )
