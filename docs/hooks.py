"""Hooks of MkDocs: add the generated pages, and lead links out of docs/ to the repository.

`python -m mkdocs build` in the repository's root finds this file by mkdocs.yml, and the packages
that it imports because the root is the current folder.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate import pages

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pages that are made from the code in the place of their notes in the checkout."""
    for path, text in pages().items():
        if (note := files.get_file_from_path(path)) is not None:
            files.remove(note)
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its links to files outside of docs/ led to the repository.

    Without `repo_url` such a link becomes the file's name.
    """
    del files
    folder = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return match[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {target} is not in the repository")
        return f"[{text}]({config.repo_url}/blob/main/{path}{anchor})" if config.repo_url else text

    return _LINK.sub(lead, markdown)
