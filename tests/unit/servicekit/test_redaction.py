"""Secrets that a redactor removes, in every form that a text may hold them."""

import base64
import json
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest
from pydantic import Field, SecretStr

from servicekit.auth.api_keys import generate
from servicekit.redaction import Redactor, known_secrets
from servicekit.settings import OptionalPath, Settings

SECRET = "hunter2/x y"
PEM = "-----BEGIN EC PRIVATE KEY-----\nAbc+hunter2/x\nhunter2=\n-----END EC PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2-_x"


@pytest.mark.parametrize(
    "text",
    [
        "open rtsp://operator:hunter2@10.0.0.7/live failed",
        "open rtsp://operator:hunter 2@10.0.0.7/live failed",
        "open rtsp://operator:hun/hunter2@10.0.0.7/live failed",
        "open rtsp://10.0.0.7/live?token=hunter2 failed",
        "open rtsp:operator:hunter2@10.0.0.7/live failed",
        "open operator:hunter2@10.0.0.7/live failed",
        "results of rtsp___operator_hunter2_10.0.0.7_live",
        r'{"url": "rtsp:\/\/operator:hunter2@10.0.0.7\/live"}',
        "GET /?next=rtsp%3A%2F%2Foperator%3Ahunter2%4010.0.0.7",
        "authorization: Bearer hunter2",
        "{'Authorization': 'Token hunter2'}",
        "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20hunter2,x=1",
        "Authorization: Basic " + base64.b64encode(b"a:hunter2").decode(),
        "Cookie: session=hunter2; other=hunter2",
        '{"password": "hunter2 \\" hunter2", "user": "a"}',
        r'{"event": "{\"api_key\": \"hunter2 x\"}"}',
        "settings(jwt_secret='hunter2 x', level='info')",
        "curl -u operator:hunter2 http://127.0.0.1:1/",
        "--jwt-secret hunter2 --listen 127.0.0.1:1",
        "MY_DB_PASSWORD=hunter2",
        "api-key = hunter2",
        PEM,
        json.dumps({"pem": PEM}),
        PEM.partition("\n")[2],
        PEM.rpartition("\n")[0],
        f"token {JWT} is refused",
    ],
)
def test_what_looks_like_a_secret_is_removed(text: str) -> None:
    shown = Redactor().text(text)
    assert "hunter" not in shown
    assert base64.b64encode(b"a:hunter2").decode() not in shown
    assert Redactor().text(shown) == shown


def test_of_an_api_key_its_id_stays() -> None:
    key, key_id, _ = generate()
    assert Redactor().text(f"{key} was refused") == f"slk_{key_id}_*** was refused"


@pytest.mark.parametrize(
    "text",
    [
        "listening at 127.0.0.1:50051, [::1]:9464 and unix:/run/a.sock",
        "see http://127.0.0.1:9464/metrics, and write to a@example.org",
        'sightline_grpc_requests_total{method="Infer",reason="API_KEY_UNKNOWN"} 3.0',
        "2026-11-30T22:07:55Z the credential is accepted: may log as gate-1",
        "icon@2x.png, C:/a@2x.jpg, weld___01.jpg",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda secret: quote(secret, safe=""),
        lambda secret: json.dumps({"x": secret}),
        repr,
    ],
)
@pytest.mark.parametrize("secret", [SECRET, 'a"b\\c', "pässwörd", "a'b%20c"])
def test_a_known_secret_is_removed_in_every_form(secret: str, form: object) -> None:
    text = form(secret)  # type: ignore[operator]
    assert str(text).strip("'\"") not in Redactor([secret]).text(f"<{text}>")


def test_texts_of_json_are_cleaned_names_included() -> None:
    value = {SECRET: [{"a": f"x{SECRET}", "b": 1, "c": None, "d": True}]}
    cleaned = {"***": [{"a": "x***", "b": 1, "c": None, "d": True}]}
    assert Redactor([SECRET]).json(value) == cleaned  # type: ignore[arg-type]


def test_short_and_usual_words_are_not_taken_for_secrets() -> None:
    assert Redactor(["", "abc", "true"]).text("abc is true") == "abc is true"


class _Guarded(Settings):
    part: ClassVar[str] = "edge"

    api_key: SecretStr | None = Field(None, description="key")
    tls_key_file: OptionalPath = Field(None, description="file of a key")
    place: str = Field("", description="address")


def test_secrets_are_known_from_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name says where its secret is from; what is no secret begins with `plain`."""
    (tmp_path / "secrets").mkdir()
    for name, content in (
        ("sightline_inference_upload_secret", "from-the-folder\n"),
        ("other-secret", "of-another-program"),
        ("sightline_ingest_listen", "plain-listen"),
    ):
        (tmp_path / "secrets" / name).write_text(content)
    (tmp_path / "tls.key").write_text("from-a-file-of-settings")
    (tmp_path / "environment.key").write_text("from-a-file-of-the-environment")
    config = tmp_path / "sightline.toml"
    config.write_text('[ingest]\njwt_secret = "from-toml"\nlisten = "plain-toml"\n')
    environment = {
        "SIGHTLINE_SECRETS_DIR": str(tmp_path / "secrets"),
        "SIGHTLINE_CONFIG": str(config),
        "SIGHTLINE_INGEST_JWT_SECRET": "from-a-variable",
        "SIGHTLINE_EDGE_API_KEY_FILE": str(tmp_path / "environment.key"),
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20of-the-headers,x-other=and-another",
        "https_proxy": "http://user:of-the-proxy@plain-proxy:3128",
        "SOURCE": "rtsp://of-a-token@plain-camera/live",
        "LANG": "plain-language",
    }
    monkeypatch.delenv("SIGHTLINE_SECRETS_DIR", raising=False)
    settings = _Guarded(
        api_key=SecretStr("of-settings"),
        tls_key_file=tmp_path / "tls.key",
        place="rtsp://a:of-an-address@plain-place/",
    )
    known = list(known_secrets([settings], environment))
    redactor = Redactor(known)
    for secret in (
        *("from-the-folder", "of-another-program", "from-a-file-of-settings", "from-toml"),
        *("from-a-file-of-the-environment", "from-a-variable", "of-the-headers", "and-another"),
        *("of-the-proxy", "of-a-token", "of-settings", "of-an-address"),
        *(str(tmp_path / "tls.key"), str(tmp_path / "environment.key")),
    ):
        assert redactor.text(f"<{secret}>") == "<***>"
    assert "plain" not in " ".join(known)


def test_places_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[ingest")
    (tmp_path / "binary.key").write_bytes(b"\xff\xfe\x00")
    environment = {
        "SIGHTLINE_SECRETS_DIR": str(tmp_path / "gone"),
        "SIGHTLINE_CONFIG": str(tmp_path / "broken.toml"),
        "SIGHTLINE_EDGE_API_KEY_FILE": str(tmp_path / "binary.key"),
    }
    assert list(known_secrets([], environment)) == [str(tmp_path / "binary.key")]
