"""The gRPC options of a server: those that are always the same, and those that settings choose."""

from servicekit.server_settings import ServerSettings

_FIXED: dict[str, int | str] = {
    # Two servers on one port would share its calls: the second must fail to bind.
    "grpc.so_reuseport": 0,
    # Devices behind a NAT ping to keep an idle connection; gRPC's default of one ping in five
    # minutes would end theirs with "too many pings".
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    # A device that lost power closes no socket: detect it in minutes instead of gRPC's two hours.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    # Close connections that send nothing, or that stop in the middle of TLS; gRPC waits for two
    # minutes.
    "grpc.server_handshake_timeout_ms": 10_000,
    # Calls of one method that wait to be handed over. By default gRPC cancels random ones from 1000
    # on, which a flood of a few connections or a fleet that reconnects reaches. Above the first
    # number it does so rarely, above the second always.
    "grpc.server.max_pending_requests": 16_384,
    "grpc.server.max_pending_requests_hard_limit": 20_480,
}


def server_options(settings: ServerSettings) -> dict[str, int | str]:
    """Return the options of a server by name, without those of its memory budgets."""
    return {
        **_FIXED,
        "grpc.max_send_message_length": settings.max_message_bytes,
        "grpc.max_concurrent_streams": settings.max_concurrent_streams,
        # Calls that were reset and have not ended here count against the connection. The limit is
        # as high again, because answered calls count until gRPC has released them, and must not
        # make it refuse the next calls of a busy client.
        "grpc.http.overload_protection": 1,
        "grpc.http2.max_deallocating_streams": settings.max_concurrent_streams,
        "grpc.max_allowed_incoming_connections": settings.max_connections,
        **_age_options(settings),
    }


def _age_options(settings: ServerSettings) -> dict[str, int]:
    """Return the options that end connections at their age; empty: they are never ended."""
    age, grace = settings.max_connection_age_seconds, settings.connection_grace_seconds
    if not age:
        return {}
    options = {"grpc.max_connection_age_ms": round(age * 1000)}
    if grace is not None:
        options["grpc.max_connection_age_grace_ms"] = round(grace * 1000)
    return options
