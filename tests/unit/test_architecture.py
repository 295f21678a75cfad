"""The order of the house: who may import whom, and which modules decide without acting."""

import ast
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS: Mapping[str, tuple[str, ...]] = {
    # A part may import those named beside it, and no other.
    "vision": ("servicekit",),
    "servicekit": (),
    "edge": ("servicekit", "vision"),
    "ingest_service": ("servicekit",),
    "inference_service": ("servicekit", "vision"),
    "console_service": ("servicekit",),
    "sightline": (
        *("console_service", "edge", "ingest_service", "inference_service"),
        *("servicekit", "vision"),
    ),
}
# The rooms (folders) and single modules of each part, from the ground up. A module may import what
# stands before its own room, and what is in its room.
ORDER: Mapping[str, tuple[str, ...]] = {
    "vision": (
        *("errors", "guards", "openers", "rgb", "letterbox", "onnx_names", "pinned_outputs"),
        *("preprocess", "trial", "file_kinds", "model_files", "session_options", "classify"),
        *("external_data", "model_identity", "images", "metadata", "onnx_session"),
        *("masks", "detections", "prototypes", "rotated", "suppress", "keypoints", "layouts"),
        *("mask_limits", "yolo", "network", "onnx_classifier", "onnx_yolo", "__init__"),
    ),
    "servicekit": (
        *(
            "distribution",
            "about",
            "addresses",
            "contract_bounds",
            "mask_formats",
            "routes",
            "media_kinds",
            "names",
            "durable",
            "errors",
            "free_memory",
            "memory",
            "pace",
            "plain",
            "resources",
            "standard_streams",
            "abandoned_threads",
        ),
        *(
            "help",
            "variables",
            "private_files",
            "quotas",
            "settings",
            "parsing",
            "redaction",
            "health",
            "server_settings",
            "server_options",
        ),
        *("terminal", "tls", "auth", "telemetry", "calls", "lifecycle", "__init__"),
    ),
    "edge": (
        *("fields", "names", "columns", "geometry", "detections", "percentile", "backoff"),
        *("channel", "wire", "records", "left_out"),
        *("errors", "spool", "options", "ship", "detect", "sources", "cloud", "decide", "run"),
        *("settings", "endpoints", "device_model", "log", "assemble", "tally", "doctor"),
        *("metrics", "entry", "node", "commands", "__init__", "__main__"),
    ),
    "ingest_service": (
        *("settings", "store", "store.duckdb", "receive", "metrics", "backup"),
        *("translate", "read", "server", "__init__", "__main__"),
    ),
    "inference_service": (
        *("domain", "settings", "fair_threads", "serving", "telemetry", "idempotency"),
        *("uploads", "validate", "models", "answers", "device", "stage_report", "pipeline"),
        *("server", "open_inference", "assemble", "__init__", "__main__"),
    ),
    "console_service": (
        *("settings", "errors", "hosts", "known", "places", "session", "mistakes", "query"),
        *("metrics", "backend", "front", "context", "answers", "schemas", "live", "routes"),
        *("app", "connections", "server", "__init__", "__main__"),
    ),
    "sightline": ("log_client", "cli", "__init__", "__main__"),
}
# Who may import a library that is large, or that another could take the place of.
ONLY_IN = {
    "duckdb": ("ingest_service/store/duckdb/", "sightline/log_client.py"),
    "onnxruntime": ("vision/", "inference_service/device.py"),
    "ultralytics": ("edge/detect/", "edge/log/"),
    "torch": (),
    "cv2": ("edge/sources/", "edge/detect/masks.py", "vision/"),
    "fastapi": ("console_service/",),
    "uvicorn": ("console_service/connections.py", "console_service/server.py"),
    "ptars": ("ingest_service/receive/ptars_decoder.py",),
}
CORES = (
    "console_service/errors.py",
    "console_service/hosts.py",
    "console_service/known.py",
    "console_service/mistakes.py",
    "console_service/query.py",
    "console_service/session.py",
    "edge/cloud/downscale.py",
    "edge/cloud/scaled_masks.py",
    "edge/decide/core.py",
    "edge/decide/events.py",
    "edge/decide/labels.py",
    "edge/decide/policy.py",
    "edge/log/encode.py",
    "edge/ship/core.py",
    "edge/sources/sampling.py",
    "edge/spool/lineage.py",
    "edge/wire.py",
    "ingest_service/receive/capture_window.py",
    "ingest_service/receive/checks.py",
    "ingest_service/receive/conflicts.py",
    "ingest_service/receive/content.py",
    "ingest_service/receive/decision.py",
    "ingest_service/receive/fair_waiting.py",
    "ingest_service/receive/sequence.py",
    "ingest_service/receive/undated.py",
    "ingest_service/store/duckdb/file_format.py",
    "ingest_service/store/duckdb/verdict.py",
    "inference_service/idempotency/lease_watch.py",
    "inference_service/models/calibration.py",
    "inference_service/open_inference/describe.py",
    "inference_service/open_inference/request.py",
    "inference_service/open_inference/statistics.py",
    "inference_service/open_inference/tensors.py",
    "inference_service/serving/admission.py",
    "inference_service/serving/estimates.py",
    "inference_service/serving/fair_queue.py",
    "inference_service/serving/places.py",
    "inference_service/serving/schedule.py",
    "inference_service/serving/tickets.py",
    "servicekit/calls/fair_share.py",
    "servicekit/pace.py",
    "servicekit/plain.py",
    "servicekit/telemetry/repeats.py",
    "vision/file_kinds.py",
    "vision/onnx_names.py",
)
ACTS = {"time", "socket", "sqlite3", "threading", "asyncio", "pathlib", "os", "subprocess"}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return what a file imports: at its top, for its annotations, or late inside a function."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def files(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def graph() -> dict[str, set[str]]:
    """Return for each module of ours those that it imports."""
    paths = {module_of(path): path for part in PARTS for path in files(part)}
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        named = {name if name in paths else name.rpartition(".")[0] for name in imports(path)}
        found[module] = (named & paths.keys()) - {module}
    return found


def room_of(module: str, part: str) -> str:
    """Return the longest name in `ORDER` that a module belongs to."""
    if module == part:
        return "__init__"
    name = module.removeprefix(f"{part}.")
    rooms = [room for room in ORDER[part] if name == room or name.startswith(f"{room}.")]
    return max(rooms, key=len, default=f"{name}: in no room")


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_only_what_is_below_them(part: str) -> None:
    ours = {*PARTS, "models", "examples", "tests", "bench"} - {part, *PARTS[part]}
    if part != "sightline":
        ours -= {"sightline"}  # the stubs; the rest of it has a test of its own
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(part)
        for module in imports(path)
        if module.split(".")[0] in ours
    }
    assert wrong == set()


@pytest.mark.parametrize("part", [part for part in PARTS if part != "sightline"])
def test_parts_use_the_stubs_and_nothing_else_of_the_front_door(part: str) -> None:
    stubs = {path.name for path in (ROOT / "generated/sightline").iterdir()}
    used = {module for path in files(part) for module in imports(path)}
    assert {name for name in used if name.split(".")[0] == "sightline"} <= {
        name for name in used if name.split(".")[1:2] and name.split(".")[1] in stubs
    }


@pytest.mark.parametrize("part", PARTS)
def test_arrows_point_down_inside_a_part(part: str) -> None:
    place = {room: number for number, room in enumerate(ORDER[part])}
    wrong = []
    for module, imported in graph().items():
        if module != part and not module.startswith(f"{part}."):
            continue
        room = room_of(module, part)
        assert room in place
        for other in imported:
            if other.startswith(f"{part}.") and place[room_of(other, part)] > place[room]:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


@pytest.mark.parametrize("part", PARTS)
def test_every_room_exists(part: str) -> None:
    rooms = {room_of(module_of(path), part) for path in files(part)}
    assert rooms == set(ORDER[part])


def test_there_is_no_circle_between_modules() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other, if late: {error.args[1]}")


def test_vision_takes_six_modules_of_servicekit() -> None:
    used = {name for path in files("vision") for name in imports(path)}
    ours = {name for name in used if name.split(".")[0] == "servicekit"}
    assert {name.rpartition(".")[0] for name in ours} == {
        "servicekit.contract_bounds",
        "servicekit.mask_formats",
        "servicekit.media_kinds",
        "servicekit.memory",
        "servicekit.names",
        "servicekit.resources",
    }


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_its_place_only(library: str) -> None:
    wrong = {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in files(part)
        if library in {module.split(".")[0] for module in imports(path)}
        and not str(path.relative_to(ROOT)).startswith(ONLY_IN[library] or "nowhere")
    }
    assert wrong == set()


@pytest.mark.parametrize("core", CORES)
def test_what_decides_does_not_act(core: str) -> None:
    assert {module.split(".")[0] for module in imports(ROOT / core)} & ACTS == set()
