"""Files that the console serves: what is vendored is unchanged, what is inline is allowed."""

import base64
import hashlib

from console_service.routes.page import APIDOCS, page_policy


def test_what_is_vendored_is_unchanged() -> None:
    lines = (APIDOCS / "SHA256SUMS").read_text().splitlines()
    hashes = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert hashes == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in APIDOCS.iterdir()
        if path.name not in ("README.md", "SHA256SUMS", "index.html")
    }


def test_scripts_inside_of_the_page_are_allowed_by_their_hash_and_no_others() -> None:
    script = '{"imports": {}}'
    html = f'<script type="importmap">{script}</script><script defer src="/static/a.js"></script>'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page_policy(html).endswith(f"; script-src 'self' 'sha256-{digest}'")
    assert page_policy("<p>").endswith("; script-src 'self'")
