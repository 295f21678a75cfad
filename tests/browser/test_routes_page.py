"""The reference of routes at /docs: it works without internet and says nothing in the console."""

from playwright.sync_api import expect

from tests.browser.conftest import Fleet, Open


def test_the_routes_are_listed_and_open(fleet: Fleet, visit: Open) -> None:
    visited = visit(fleet.console)
    page = visited.page
    page.goto(f"{visited.url}/docs")
    expect(page.get_by_text("/predictions", exact=True)).to_be_visible()
    page.get_by_text("/stats", exact=True).click()
    expect(page.get_by_text("edge_device_id").first).to_be_visible()
