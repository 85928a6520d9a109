# SPDX-License-Identifier: Apache-2.0
"""Six agents at once look into Python's own library with a shell, in a KV cache that holds about half of them.

Each thinks, chooses a command, waits for it while the engine serves the others, and reads what came. A model this small
chooses by letter. What was in the cache when is drawn into `agents.svg`, or the file that is given.
"""

import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paged

COMMANDS = {
    "A": ("count", "find . -name '*.py' | wc -l"),
    "B": ("words", "cat $(find . -name '*.py') | wc -w"),
    "C": ("classes", "grep -rhoE '^class \\w+' --include='*.py' . | sort | head -3"),
    "D": ("compile", "python3 -c \"import glob, ast; print(sum(len(list(ast.walk(ast.parse(open(f).read())))) "
          "for f in glob.glob('**/*.py', recursive=True)), 'nodes')\""),
    "E": ("checksum", "sleep 1; find . -name '*.py' | sort | xargs sha256sum | sha256sum | cut -c 1-8"),
}  # fmt: skip
FOLDERS = ["json", "email", "asyncio", "unittest", "xml", "multiprocessing"]
SYSTEM = "You are an agent that looks into a folder of Python code with a shell. The commands are:\n" + "".join(
    f"{letter}: {name}: {command}\n" for letter, (name, command) in COMMANDS.items()
)
COLOURS = {
    "running": "#2a9d4a",
    "paused": "#5b8def",
    "idle": "#9aa5b1",
    "queued": "#f2a33a",
    "waits for room": "#d9480f",
}
Sample = tuple[float, str, int]  # seconds, state, resident bytes


def run_agent(llm: paged.LLM, session: paged.Session, folder: str) -> paged.Explanation:
    """The loop of an agent: think, choose, wait, read. Whoever is done makes room."""
    thought = paged.SamplingParams(temperature=0.7, seed=1, max_tokens=20, stop="\n")
    letters = {letter: llm.tokenizer.encode(f" {letter}", add_special_tokens=False)[0] for letter in COMMANDS}
    news = f"\nThe folder is {folder}.\n"
    left = dict(letters)
    while left:
        session.generate(news + "Thought:", thought)
        choice = paged.SamplingParams(temperature=0.0, max_tokens=1, allowed_token_ids=list(left.values()))
        letter = session.generate("\nI run command", choice).text.strip()
        del left[letter]
        tool, command = COMMANDS[letter]
        started = time.monotonic()
        session.pause(tool)  # how long it takes is learnt by its name
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, cwd=Path(os.__file__).parent / folder, check=False
        )
        output = (done.stdout + done.stderr).strip()[:120]
        news = f"\nOutput of {tool}: {output}\n"
        print(f"{folder:>16}  {tool:<9} {time.monotonic() - started:4.1f} s  {' '.join(output.split())}", flush=True)
    print(f"{folder} is {session.generate(news + f'In short, {folder} is', thought).text.strip()}", flush=True)
    told = session.explain()
    session.close()
    return told


def _told(session: paged.Session) -> tuple[str, int]:
    try:
        told = session.explain()
    except ValueError:  # it is closed
        return "idle", 0
    return told.state, told.resident_bytes


class Watch(threading.Thread):
    """Notes ten times a second what each session has in the cache."""

    def __init__(self, sessions: dict[str, paged.Session]) -> None:
        super().__init__(daemon=True)
        self._sessions = sessions
        self._stopped = threading.Event()
        self.samples: dict[str, list[Sample]] = {name: [] for name in sessions}

    def run(self) -> None:
        start = time.monotonic()
        with ThreadPoolExecutor(len(self._sessions)) as pool:  # explain() waits for the end of a step: all for the same
            while not self._stopped.wait(0.1):
                told = pool.map(_told, self._sessions.values())
                for each, (state, size) in zip(self.samples.values(), told, strict=True):
                    each.append((time.monotonic() - start, state, size))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def timeline(samples: dict[str, list[Sample]], width: int = 900, row: int = 44) -> str:
    """A row for each agent: as high as what it has in the cache, in the colour of what it does."""
    end = max(each[-1][0] for each in samples.values())
    most = max(size for each in samples.values() for _, _, size in each) or 1
    text = 'font-family="sans-serif" font-size="12"'
    parts = []
    for i, (name, each) in enumerate(samples.items()):
        base = 30 + (i + 1) * row
        parts.append(f'<text x="0" y="{base - 4}" {text}>{name}</text>')
        parts.append(f'<path d="M120 {base}H{width}" stroke="#ccc"/>')
        for (begin, state, size), (until, _, _) in itertools.pairwise(each):
            x, w, h = 120 + begin / end * (width - 120), (until - begin) / end * (width - 120), size / most * (row - 8)
            parts.append(
                f'<rect x="{x:.1f}" y="{base - h:.1f}" width="{w + 0.3:.1f}" height="{max(h, 2):.1f}" '
                f'fill="{COLOURS[state]}"/>'
            )
    for i, (state, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{120 + i * 130}" y="6" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{138 + i * 130}" y="16" {text}>{state}</text>')
    height = 30 + len(samples) * row + 24
    parts.append(
        f'<text x="120" y="{height - 6}" {text}>{end:.0f} s; a full row is {most / 1e6:.1f} MB of cache</text>'
    )
    content = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">\n{content}\n</svg>\n'


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "agents.svg")
    with paged.LLM("smollm2-135m", kv_cache_bytes=32 << 20, max_model_len=800) as llm:
        system = llm.prefix(SYSTEM)
        sessions = {folder: llm.session(parent=system) for folder in FOLDERS}
        watch = Watch(sessions)
        watch.start()
        with ThreadPoolExecutor(len(sessions)) as pool:
            told = list(pool.map(lambda folder: run_agent(llm, sessions[folder], folder), sessions))
        watch.stop()
    missed = sum(miss.num_tokens for each in told for miss in each.misses)
    reused = sum(each.num_reused_tokens for each in told)
    target.write_text(timeline(watch.samples), encoding="utf-8")
    print(f"{reused} tokens were found in the cache, {missed} computed again; {target} shows where they were")


if __name__ == "__main__":
    main()
