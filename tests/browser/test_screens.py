"""Every screen of the console, clicked through in a browser on real services and a real log."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import MODULES, Fleet, Open
from tests.browser.fleet import (
    BEHIND,
    DEVICES,
    GAP,
    HOURS,
    PER_HOUR,
    REJECTED,
)

AXE = MODULES / "axe-core/axe.min.js"
SHOTS = os.environ.get("SIGHTLINE_SCREENSHOTS")
"""Folder of the documentation's screenshots, when they are made anew."""
OVERVIEW = (
    "devices",
    "frame",
    "defect-rate",
    "rate",
    "speed",
    "cloud-share",
    "confidence",
    "live",
    "ledger",
)
COMMITTED = len(DEVICES) * HOURS * PER_HOUR + GAP


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def check_accessibility(page: Page) -> None:
    """Fail where axe-core finds a violation of WCAG or of its best practices."""
    page.evaluate(AXE.read_text())  # not a script element, which the page's policy would refuse
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert not [
        (each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_overview(fleet: Fleet, visit: Open, scheme: str) -> None:
    visited = visit(fleet.console, color_scheme=scheme)
    page = visited.open()
    for name in OVERVIEW:
        expect(page.locator(f'[data-panel="{name}"]')).to_be_visible()
    expect(page.locator(".failure")).to_have_count(0)
    expect(page.locator('[data-card="alive"] .value')).to_have_text("8 / 8")
    expect(page.locator('[data-card="books"] .value')).to_have_text("balanced")
    expect(page.locator('[data-card="books"] .note')).to_have_text(
        f"{GAP} declared lost · {REJECTED} rejected"
    )
    expect(page.locator('[data-panel="ledger"] tfoot')).to_contain_text(f"{COMMITTED:,}")
    expect(page.locator('[data-panel="devices"] .tile')).to_have_count(8)
    expect(page.locator('[data-panel="devices"] .tile.warn')).to_contain_text(BEHIND)
    check_accessibility(page)
    shot(page, f"console-overview-{scheme}")


def test_a_device(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console, color_scheme="dark")
    page = visited.open()
    whole = page.locator('[data-card="predictions"] .value').inner_text()
    # The list of all devices has an end, beyond which this one may be.
    with page.expect_request(re.compile(f"/devices.*{BEHIND}")):
        page.get_by_role("link", name=re.compile(BEHIND)).first.click()
    expect(page).to_have_url(re.compile(f"device={BEHIND}"))
    visited.settle()
    expect(page.locator('[data-panel="device"]')).to_contain_text("falls behind")
    expect(page.locator('[data-panel="device"]')).to_contain_text("4,000 predictions")
    expect(page.locator('[data-panel="ledger"] tbody tr')).to_have_count(1)
    assert page.locator('[data-card="predictions"] .value').inner_text() != whole
    check_accessibility(page)
    shot(page, "console-device")
    page.go_back()
    visited.settle()
    expect(page.locator('[data-card="predictions"] .value')).to_have_text(whole)


def test_values_with_nothing_beside_them_are_drawn(fleet: Fleet, visit: Open) -> None:
    page = visit(fleet.console).open(f"/?device={DEVICES[0]}&range=1h")  # one in three minutes
    canvas = page.locator('[data-panel="defect-rate"] canvas')
    coloured = """canvas => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let found = 0;
        for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3] > 200 && data[at] > data[at + 1] + 80) found++;
        }
        return found;
    }"""
    assert canvas.evaluate(coloured) > 0


def test_a_prediction(fleet: Fleet, visit: Open) -> None:
    device = DEVICES[0]
    visited = visit(fleet.console)
    page = visited.open(
        f"/?view=prediction&device={device}&spool={fleet.spools[device]}&sequence=5"
    )
    found = page.locator('[data-panel="prediction"]')
    expect(found.locator("svg.outline .mark")).to_have_count(2)
    expect(found).to_contain_text("frame-5.jpg")
    expect(found).to_contain_text("stain")
    expect(page.locator('[data-panel="same"]')).to_contain_text(f"/predictions/{device}/")
    check_accessibility(page)
    shot(page, "console-prediction")


def test_what_never_came_and_what_broke_a_rule(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console)
    address = f"/?view=prediction&device={BEHIND}&spool={fleet.spools[BEHIND]}&sequence="
    page = visited.open(f"{address}{HOURS * PER_HOUR + 1}")
    expect(page.locator('[data-panel="prediction"]')).to_contain_text("It never came.")
    page = visited.open(f"{address}1")
    expect(page.locator('[data-panel="prediction"]')).to_contain_text("It broke a rule")


def test_ledger(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console)
    page = visited.open("/?view=ledger")
    expect(page.locator('[data-panel="spools"] tbody tr')).to_have_count(8)
    expect(page.locator('[data-panel="gaps"] tbody')).to_contain_text("spool bytes")
    expect(page.locator('[data-panel="rejections"] li')).to_have_count(REJECTED)
    page.locator('[data-panel="rejections"] summary').first.click()
    expect(page.locator('[data-panel="rejections"] pre').first).to_contain_text("image_id")
    check_accessibility(page)
    shot(page, "console-ledger")


def test_models(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console)
    page = visited.open("/?view=models")
    expect(page.locator('[data-panel="models"] tbody tr')).to_have_count(2)
    check_accessibility(page)
    shot(page, "console-models")


def test_keys_and_addresses(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console)
    page = visited.open()
    page.keyboard.press("3")
    expect(page).to_have_url(re.compile("range=7d"))
    page.keyboard.press("l")
    expect(page).to_have_url(re.compile("view=ledger"))
    assert "range=7d" in page.url
    page.keyboard.press("t")
    expect(page).to_have_url(re.compile("theme=dark"))
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("button", name="close")).to_be_focused()
    check_accessibility(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    visited.open("/?range=constructor&view=valueOf")  # ranges and screens that are none
    expect(page.locator('[data-card="predictions"]')).to_contain_text("24 hours")
    page.keyboard.press("o")
    visited.settle()
    page.keyboard.press("/")
    page.keyboard.type("line-2-cam-3")
    expect(page.locator('[data-panel="devices"] .tile')).to_have_count(1)


@pytest.mark.parametrize(
    "path", ["/", f"/?device={BEHIND}&range=1h", "/?view=ledger", "/?view=models"]
)
def test_a_phone_needs_no_scrolling_to_the_side(fleet: Fleet, visit: Open, path: str) -> None:
    visited = visit(fleet.console, viewport={"width": 375, "height": 740}, has_touch=True)
    page = visited.open(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    check_accessibility(page)
    if path == "/":
        shot(page, "console-phone")


def test_a_device_that_nobody_knows(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console)
    page = visited.open("/?device=nowhere")
    expect(page.locator('[data-panel="device"]')).to_contain_text("knows no device")
    expect(page.locator(".failure")).to_have_count(0)
