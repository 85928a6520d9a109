# SPDX-License-Identifier: Apache-2.0
"""The pages of docs: every Python snippet runs and prints what the page shows; every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from paged import _C
from test_structured_llm import save_with_tokenizer

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NEEDS = {"applications.md": "fastapi", "evaluate.md": "lm_eval", "ray.md": "ray", "structured-output.md": "llguidance"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
TOOL_TEMPLATE = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}<tool_call>"


@dataclass(frozen=True)
class Snippet:
    line: int  # of the page, where its first line stands
    code: str
    output: str | None  # of a text block right behind it


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text()
    blocks = [match for match in BLOCK.finditer(text) if match[1] == "python"]
    return [Snippet(text.count("\n", 0, block.start(2)) + 1, block[2], block[3]) for block in blocks]


def same_output(printed: str, shown: str) -> bool:
    """To the letter where kernels round as those that the pages were written with; others may break near ties."""
    if _C.ops.isa() in ("avx2", "baseline"):
        return printed.rstrip("\n") == shown.rstrip("\n")
    return printed.strip() != ""


def identify(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=identify)
def test_snippets_run_and_print_what_the_page_shows(
    page: Path,
    real_models: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From top to bottom in one namespace. The default model comes from the cache; a random one stands for Qwen3."""
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name], reason=f"{page.name} needs {NEEDS[page.name]}")
    (tmp_path / "smollm2-135m-instruct.gguf").symlink_to(real_models["smollm2-135m-instruct.gguf"].resolve())
    (save_with_tokenizer(tmp_path / "Qwen3-0.6B") / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    monkeypatch.setenv("PAGED_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for snippet in snippets(page):
        code = "\n" * (snippet.line - 1) + snippet.code  # so that a traceback names the line of the page
        exec(compile(code, str(page), "exec"), namespace)
        printed = capsys.readouterr().out
        if snippet.output is not None:
            assert same_output(printed, snippet.output), f"{page.name}:{snippet.line}: {printed}"


def anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.*)", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=identify)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]+)#?([^)\s]*)", BLOCK.sub("", page.read_text())):
        assert target.startswith("https://") or (page.parent / target).exists(), target
        assert not anchor or anchor in anchors(page.parent / target), anchor


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()
