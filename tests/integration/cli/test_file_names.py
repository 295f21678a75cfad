"""`sightline log` and `infer` over files whose names are no text, in any locale."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes.inference import FakeInference, Reply, serving
from tests.fakes.ingest import FakeIngest
from tests.integration.cli.terminal import REPOSITORY, ROOT, SIGHTLINE, environment
from tests.unit.edge.sources.monitors import save_video
from vision import decode_image

MODEL = REPOSITORY / "plates/1/model.onnx"
LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
Done = subprocess.CompletedProcess[bytes]


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as made:
        yield made


@pytest.fixture
def inference() -> Iterator[FakeInference]:
    with serving(Reply()) as made:
        yield made


def bad(folder: Path, name: bytes) -> Path:
    return folder / os.fsdecode(name)


def sightline(*words: str | Path, env: dict[str, str]) -> Done:
    return subprocess.run(
        [*map(os.fsencode, [*SIGHTLINE, *words])],
        env=env,
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("locale", LOCALES)
def test_log_goes_on_after_a_name_that_is_no_text(
    ingest: FakeIngest, locale: str, tmp_path: Path
) -> None:
    folder = bad(tmp_path, b"shift-\xe4")
    folder.mkdir()
    image = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    for name in (b"a-\xff.jpg", "ä.png".encode(), b"z.tif"):
        image.save(bad(folder, name))
    bad(folder, b"broken-\xfe.jpg").write_bytes(b"no image")
    bad(folder, b"notes.\xfd").touch()
    video = bad(tmp_path, b"gate-\xff.mp4")
    save_video(tmp_path / "gate.mp4", frames=2).rename(video)
    settings = environment(
        ingest_target=ingest.target, device_id="gate-1", mode="device", spool_dir=tmp_path / "spool"
    )
    words = ("log", folder, video, "--model", MODEL, "--json")
    done = sightline(*words, env={**settings, **LOCALES[locale]})
    assert done.returncode == 1, done.stderr  # one file is no image
    assert b"Traceback" not in done.stderr
    assert sorted(ingest.images()) == [
        "a-\\xff.jpg",
        "gate-\\xff.mp4#000000",
        "gate-\\xff.mp4#000001",
        "z.tif",
        "ä.png",
    ]
    stats = json.loads(done.stdout)
    assert list(stats["sources"]) == [f"{tmp_path}/shift-\\xe4", f"{tmp_path}/gate-\\xff.mp4"]
    assert b"shift-\\xe4/broken-\\xfe.jpg: " in done.stderr
    assert b"skipped 1 file without the suffix of an image (.\\xfd)" in done.stderr


@pytest.mark.parametrize(("locale", "flags"), [("UTF-8", ("--json",)), ("ASCII", ())])
def test_infer_goes_on_after_a_name_that_is_no_text(
    inference: FakeInference, locale: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    names = (b"a-\xff.png", "ä.tif".encode(), b"b.png")
    paths = [bad(tmp_path, name) for name in names]
    for path in paths:
        Image.new("RGB", (64, 48)).save(path)
    missing = bad(tmp_path, b"missing-\xfe.png")
    words: tuple[str | Path, ...] = (
        "infer",
        missing,
        *paths,
        "--save",
        bad(tmp_path, b"boxes-\xfd"),
        *flags,
    )
    settings = environment(inference_target=inference.target)
    done = sightline(*words, env={**settings, **LOCALES[locale]})
    assert done.returncode == 1, done.stderr  # one file is missing
    assert b"Traceback" not in done.stderr
    assert b"missing-\\xfe.png: " in done.stderr
    sent = [seen.request.images[0] for seen in inference.seen]
    assert [image.image_id for image in sent] == ["a-\\xff.png", "ä.tif", "b.png"]
    assert all(decode_image(image.data).shape == (48, 64, 3) for image in sent)
    saved = {os.fsencode(path.name) for path in bad(tmp_path, b"boxes-\xfd").iterdir()}
    assert saved == {b"a-\xff.png", "ä.png".encode(), b"b.png"}
    if flags:
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["image_id"] for line in lines] == [
            "missing-\\xfe.png",
            "a-\\xff.png",
            "ä.tif",
            "b.png",
        ]
        assert lines[1]["saved"] == f"{tmp_path}/boxes-\\xfd/a-\\xff.png"
