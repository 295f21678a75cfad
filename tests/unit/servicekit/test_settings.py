import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError

from servicekit.distribution import version
from servicekit.server_settings import ServerSettings
from servicekit.settings import ClientTlsSettings, SettingsError, Words, load, mistyped_variables


class IngestSettings(ServerSettings):
    """Settings of a test."""

    part: ClassVar[str] = "ingest"
    signing_key: SecretStr = Field(
        default=SecretStr("default"), min_length=4, description="a secret"
    )
    labels: Words = Field(default=(), description="some words")
    bounds: tuple[int, int] = Field(default=(0, 1), description="a pair")
    compact: bool = Field(default=False, description="a switch")


class NeedySettings(ServerSettings):
    """Settings with one that must be given."""

    part: ClassVar[str] = "inference"
    models_dir: Path = Field(description="where models are")


class EdgeSettings(ClientTlsSettings):
    """Settings of a client."""

    part: ClassVar[str] = "edge"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Run in an empty directory and without SIGHTLINE_* variables."""
    import os

    for name in list(os.environ):
        if name.startswith("SIGHTLINE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(*argv: str) -> IngestSettings:
    return load(IngestSettings, argv, prog="test")


def refusal(*argv: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_stronger_sources_win(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = clean / "secrets"
    secrets.mkdir()
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(secrets))
    assert loaded().grace_seconds == 10
    (secrets / "SIGHTLINE_INGEST_GRACE_SECONDS").write_text("1\n")
    assert loaded().grace_seconds == 1
    (clean / "sightline.toml").write_text("[ingest]\ngrace_seconds = 2\n")
    assert loaded().grace_seconds == 2
    monkeypatch.setenv("SIGHTLINE_INGEST_GRACE_SECONDS", "3")
    assert loaded().grace_seconds == 3
    assert loaded("--grace-seconds", "4").grace_seconds == 4
    assert load(IngestSettings, None, prog="test").grace_seconds == 3
    assert IngestSettings().grace_seconds == 3
    assert IngestSettings(grace_seconds=5).grace_seconds == 5


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        loaded().grace_seconds = 3


def test_the_toml_file_is_named_by_flag_or_variable(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("sightline", 1), ("variable", 2), ("flag", 3)):
        (clean / f"{name}.toml").write_text(f"[ingest]\ngrace_seconds = {seconds}\n")
    assert loaded().grace_seconds == 1
    monkeypatch.setenv("SIGHTLINE_CONFIG", "variable.toml")
    assert loaded().grace_seconds == 2
    assert loaded("--config", "flag.toml").grace_seconds == 3


def test_one_file_may_hold_the_tables_of_other_parts(clean: Path) -> None:
    (clean / "sightline.toml").write_text("[inference]\nunheard_of = 1\n[edge]\n")
    assert loaded().grace_seconds == 10


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        (
            "[ingest]\ngrace_second = 1",
            "grace_second: is not a setting, did you mean grace_seconds? (from grace_second of",
        ),
        (
            "[ingest]\ngrace_seconds = 601",
            "must be less than or equal to 600 (got 601; from grace_seconds of [ingest] in c.toml)",
        ),
        (
            "[ingets]",
            "c.toml must hold only the tables console, edge, inference, ingest (got 'ingets')",
        ),
        (
            "ingest = 3",
            "c.toml must hold only the tables console, edge, inference, ingest (got 'ingest')",
        ),
        ("[ingest", "c.toml is not TOML: "),
        ("\xff", "c.toml is not TOML: "),
    ],
)
def test_a_bad_file_is_refused(clean: Path, toml: str, complaint: str) -> None:
    (clean / "c.toml").write_text(toml, encoding="latin-1")
    assert complaint in refusal("--config", "c.toml")


def test_a_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none.toml cannot be read: No such file" in refusal("--config", "none.toml")
    monkeypatch.setenv("SIGHTLINE_CONFIG", "gone.toml")
    assert "gone.toml cannot be read: No such file" in refusal()


def test_a_bad_value_names_field_rule_and_origin(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "listen: must be host:port, [IPv6]:port or unix:path, with a port of 0 to 65535"
    assert refusal("--listen", "here") == f"{address} (got 'here'; from --listen)"
    monkeypatch.setenv("SIGHTLINE_INGEST_LISTEN", "h:65536")
    assert refusal() == f"{address} (got 'h:65536'; from SIGHTLINE_INGEST_LISTEN)"
    assert loaded("--listen", "h:65535").listen == "h:65535"
    monkeypatch.delenv("SIGHTLINE_INGEST_LISTEN")
    monkeypatch.setenv("SIGHTLINE_INGEST_BOUNDS", "not json")
    assert "bounds" in refusal()


def test_every_bad_value_is_named_at_once() -> None:
    both = refusal("--grace-seconds", "-1", "--max-message-bytes", "x")
    assert "grace_seconds: must be greater than or equal to 0 (got '-1'; from --gr" in both
    assert "max_message_bytes: must be a valid integer" in both


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--grace-second", ", did you mean --grace-seconds?"),
        ("--grace", ""),
        ("--no-such-flag", ""),
        ("--no-compct", ", did you mean --no-compact?"),
        ("--grace_seconds=1", ", did you mean --grace-seconds?"),
    ],
)
def test_unknown_flags_and_abbreviations_are_refused(flag: str, meant: str) -> None:
    name = flag.partition("=")[0]
    assert refusal(flag) == f"no such flag: {name}{meant} (see test --help)"


def test_words_that_are_no_flags_are_refused() -> None:
    assert "unexpected argument 'now': settings are given as --name value" in refusal("now")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIGHTLINE_INGEST_PORT", "tcp://10.0.0.1:50051"),
        ("SIGHTLINE_INGEST_SERVICE_HOST", "10.0.0.1"),
        ("SIGHTLINE_INGEST_SERVICE_PORT", "50051"),
        ("SIGHTLINE_INGEST_SERVICE_PORT_GRPC", "50051"),
        ("SIGHTLINE_INGEST_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("SIGHTLINE_INGEST_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("SIGHTLINE_INGEST_HEADLESS_SERVICE_HOST", "10.0.0.1"),
        ("SIGHTLINE_INFERENCE_NONSENSE", "of another part"),
        ("SIGHTLINE_OTHER", "of no part"),
    ],
)
def test_variables_that_are_not_of_this_part_are_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert loaded().grace_seconds == 10
    assert IngestSettings().grace_seconds == 10


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("SIGHTLINE_INGEST_GRACE_SECOND", ", did you mean SIGHTLINE_INGEST_GRACE_SECONDS?"),
        ("sightline_ingest_lable", ", did you mean SIGHTLINE_INGEST_LABELS?"),
        ("SIGHTLINE_INGEST_QQQQQQQQQQQQQQQQQQQQQQ", ": unset it"),
        # A person's: Kubernetes gives it a URL.
        ("SIGHTLINE_INGEST_PORT", ""),
    ],
)
def test_an_unknown_variable_of_this_part_is_refused(
    name: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "50051")
    assert refusal().startswith(f"{name} is not a setting{complaint}")
    with pytest.raises(SettingsError, match="is not a setting"):
        IngestSettings()


def test_a_value_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(SettingsError) as caught:
        load(NeedySettings, [], prog="test")
    assert str(caught.value) == (
        "models_dir: must be given (--models-dir or SIGHTLINE_INFERENCE_MODELS_DIR)"
    )


def test_secrets_come_from_files_and_are_never_shown(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(clean))
    for name in ("sightline_ingest_signing_key", "SIGHTLINE_INGEST_SIGNING_KEY"):
        secret = clean / name
        secret.write_text("  hunter2 \n")
        assert loaded().signing_key.get_secret_value() == "hunter2"
        assert "hunter2" not in repr(loaded())
        secret.write_text("hu2")
        complaint = refusal()
        assert complaint.startswith("signing_key: ")
        assert f"SIGHTLINE_INGEST_SIGNING_KEY in {clean}" in complaint
        assert "hu2" not in complaint
        secret.unlink()


def test_a_mounted_secret_may_be_a_link_inside_its_directory(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / "..data").mkdir()  # as Kubernetes lays them out
    (clean / "..data" / "SIGHTLINE_INGEST_SIGNING_KEY").write_text("hunter2")
    (clean / "SIGHTLINE_INGEST_SIGNING_KEY").symlink_to("..data/SIGHTLINE_INGEST_SIGNING_KEY")
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(clean))
    assert loaded().signing_key.get_secret_value() == "hunter2"


def test_a_missing_secrets_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", "nowhere")
    assert refusal() == "SIGHTLINE_SECRETS_DIR: must be a directory (got 'nowhere')"


def test_an_empty_flag_turns_metrics_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_INGEST_METRICS_LISTEN", "127.0.0.1:9000")
    assert loaded().metrics_listen == "127.0.0.1:9000"
    assert loaded("--metrics-listen", "").metrics_listen == ""


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:0", "localhost:50051", "[::1]:0", "[fe80::1%eth0]:1", "unix:a.sock", "unix:///a"],
)
def test_addresses_that_can_be_served(address: str) -> None:
    assert loaded("--listen", address).listen == address


@pytest.mark.parametrize(
    "address", ["", ":50051", "host", "host:", "host:-1", "::1:5", "[::1]", "unix:", "http://a:1"]
)
def test_addresses_that_cannot_be_served(address: str) -> None:
    assert refusal(f"--listen={address}").startswith("listen: must be host:port")


def test_metrics_are_not_served_on_unix_sockets() -> None:
    assert "HTTP is not served on unix sockets" in refusal("--metrics-listen", "unix:a")


def test_levels_are_read_in_any_case() -> None:
    assert loaded("--log-level", "DEBUG").log_level == "debug"


def test_half_of_tls_is_refused() -> None:
    assert refusal("--tls-cert-file", "c") == "tls_key_file: must be given with tls_cert_file"
    assert refusal("--tls-key-file", "k") == "tls_cert_file: must be given with tls_key_file"
    assert refusal("--tls-client-ca-file", "a") == (
        "tls_cert_file: must be given with tls_client_ca_file"
    )
    for argv, missing in (
        (["--tls-cert-file", "c"], "tls_key_file: must be given with tls_cert_file"),
        (["--tls-key-file", "k", "--tls-cert-file", "c"], "tls_ca_file: must be given with"),
    ):
        with pytest.raises(SettingsError, match=missing):
            load(EdgeSettings, argv, prog="test")
    assert loaded("--tls-cert-file", "").tls_cert_file is None


def test_help_shows_the_basic_settings_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        loaded("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    basic, advanced = text.split("Advanced")
    assert "Usage: test [OPTIONS]" in basic
    assert "--listen" in basic
    assert "--config" in basic
    assert "SIGHTLINE_INGEST_LISTEN=" in basic
    assert "--grace-seconds" not in basic
    assert "Time for running calls to finish after SIGTERM, s. (default: 10.0)" in advanced
    assert "(one of: console, json)" in advanced
    assert "A switch; --no-compact: no." in advanced


def test_every_setting_is_in_one_of_the_two_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loaded("--help")
    text = capsys.readouterr().out
    for name in IngestSettings.model_fields:
        assert text.count(f"│ --{name.replace('_', '-')} ") == 1, name


def test_the_version_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        loaded("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sightline {version()}\n"


def test_words_are_separated_by_commas(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "sightline.toml").write_text('[ingest]\nlabels = ["with, comma"]\n')
    assert loaded().labels == ("with, comma",)
    monkeypatch.setenv("SIGHTLINE_INGEST_LABELS", " a b,, c ")
    assert loaded().labels == ("a b", "c")
    assert loaded("--labels", "d,e", "--labels", "f").labels == ("d", "e", "f")
    assert loaded("--labels", "").labels == ()


def test_switches_have_flags() -> None:
    assert loaded("--compact").compact
    assert not loaded("--no-compact").compact


def test_settings_need_no_server_packages() -> None:
    """The plain edge install has none of these."""
    code = (
        "import sys\n"
        "for name in ('structlog', 'prometheus_client', 'grpc_health', 'grpc_reflection'):\n"
        "    sys.modules[name] = None\n"
        "import servicekit.settings, servicekit.tls, servicekit.errors, servicekit.calls.deadline\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SIGHTLINE_INGESTION_LISTEN", ", did you mean SIGHTLINE_INGEST_LISTEN?"),
        ("sightline_ingst_listen", ", did you mean SIGHTLINE_INGEST_LISTEN?"),
        ("SIGHTLINE_INGESTER_OPERATOR_HOME_PAGE", ""),
    ],
)
def test_a_prefix_that_is_nearly_this_parts_is_named(name: str, said: str) -> None:
    (sentence,) = mistyped_variables(IngestSettings, {name: "1", "HOME": "/"})
    assert sentence == f"the variable {name} is set, and nothing reads it{said}"


@pytest.mark.parametrize(
    "name",
    [
        "SIGHTLINE_INGEST_LISTEN",
        "SIGHTLINE_CONFIG",
        "SIGHTLINE_API_KEYS_FILE",
        "SIGHTLINE_TEST_MODELS",
        "SIGHTLINE_INFERENC_LISTEN",  # the other service's log names it
        "SIGHTLINE_OPERATOR",
        "SIGHTLINE_INGESTION_SERVICE_HOST",  # Kubernetes
        "PATH",
    ],
)
def test_other_variables_are_left_alone(name: str) -> None:
    assert mistyped_variables(IngestSettings, {name: "1"}) == []
