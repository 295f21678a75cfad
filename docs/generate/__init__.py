"""Pages of the reference that are made from the code when the site is built.

`pages` returns them all. They are not in the repository, so they cannot differ from the code. A
note at the same path says so to a reader of the checkout, whose links lead there.
"""

from docs.generate import commands, contract, public_names, settings


def pages() -> dict[str, str]:
    """Return the Markdown of each generated page, by its path below docs/."""
    return {
        "reference/settings.md": settings.page(),
        "reference/commands.md": commands.page(),
        "reference/rpcs.md": contract.page(),
        "reference/python.md": public_names.page(),
    }
