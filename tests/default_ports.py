"""Default ports of the pages, and their replacement by the ports of a test's services.

Tests run the pages' commands against services on ports of the kernel's choice, so what listens at
the default ports, such as a developer's own services, must be neither needed nor reached.
"""

INGEST = "127.0.0.1:50051"
INFERENCE = "127.0.0.1:50052"
NOBODY = "127.0.0.1:1"
"""Port on which nothing listens."""
_PORTS = ("50051", "50052")


def moved(text: str, *, ingest: str = "", inference: str = "") -> str:
    """Return a page's commands or program with the addresses of the running services.

    Args:
        text: text of the page.
        ingest: address of the ingest service; empty if the text does not name it.
        inference: address of the inference service; empty if the text does not name it.

    Raises:
        AssertionError: the text still names a default port, or never named the service.
    """
    for default, here in ((INGEST, ingest), (INFERENCE, inference)):
        if here:
            assert default in text, f"{default} is not in: {text}"
            text = text.replace(default, here)
    default_ports = [port for port in _PORTS if f":{port}" in text]
    assert not default_ports, (
        f"goes to the default port {default_ports[0]}, where another service may be: {text}"
    )
    return text
