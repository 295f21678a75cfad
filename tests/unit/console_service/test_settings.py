"""Settings of the console: what is refused, and in which words."""

import pytest

from console_service.settings import ConsoleSettings
from servicekit.settings import SettingsError, load


def loaded(*flags: str) -> ConsoleSettings:
    return load(ConsoleSettings, flags, prog="console")


def test_without_settings_it_is_for_this_machine_only() -> None:
    settings = loaded()
    assert (settings.listen, settings.cors_origins) == ("127.0.0.1:8080", ())
    assert (settings.ingest_target, settings.inference_target) == (
        "127.0.0.1:50051",
        "127.0.0.1:50052",
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--listen", "unix:/x"], "listen: must be host:port"),
        (["--listen", ""], "listen: must be host:port"),
        (["--cors-origins", "https://a.example/path"], "cors_origins: must be origins"),
        (["--cors-origins", "*"], "cors_origins: must be origins"),
        (["--allowed-hosts", "a.example:80"], "allowed_hosts: must be host names"),
        (["--allowed-hosts", "a.*.example"], "allowed_hosts: must be host names"),
        (["--tls-cert-file", "c"], "tls_key_file: must be given with tls_cert_file"),
        (["--backend-tls-key-file", "k"], "backend_tls_cert_file: must be given with"),
        (
            ["--backend-tls-cert-file", "c", "--backend-tls-key-file", "k"],
            "backend_tls_ca_file: must be given with",
        ),
        (["--max-requests", "0"], "max_requests: must be greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named(flags: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        loaded(*flags)


def test_lists_are_separated_by_commas() -> None:
    settings = loaded("--allowed-hosts", "A.example,*.b.example", "--cors-origins", "http://x:1")
    assert settings.allowed_hosts == ("a.example", "*.b.example")
    assert settings.cors_origins == ("http://x:1",)
