"""The ports that the pages name, where the services of a reader listen, and maybe somebody else's.

Tests run the pages' commands against services on ports of the kernel's choice, so what listens at
the default ports, a developer's own services for instance, must neither be needed nor be met.
"""

INGEST = "127.0.0.1:50051"
INFERENCE = "127.0.0.1:50052"
NOBODY = "127.0.0.1:1"
"""Where nothing listens."""
_PORTS = ("50051", "50052")


def moved(text: str, *, ingest: str = "", inference: str = "") -> str:
    """Returns a page's commands or program with the services where they are.

    Args:
        text: as it is printed.
        ingest: where the ingest service is; empty: the text does not name it.
        inference: where the inference service is; empty: the text does not name it.

    Raises:
        AssertionError: the text would still go to a default port, or never named what is moved.
    """
    for default, here in ((INGEST, ingest), (INFERENCE, inference)):
        if here:
            assert default in text, f"{default} is not in: {text}"
            text = text.replace(default, here)
    left = [port for port in _PORTS if f":{port}" in text]
    assert not left, f"goes to the default port {left[0]}, where another service may be: {text}"
    return text
