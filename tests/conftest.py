"What a run of the tests says at its end: how many notebooks, tests and flagged cells ran, how many did not, and why."
import os

import pytest

# The tests compare with arithmetic that a CPU does, so they see no GPU; test_gpu.py and the chapters do (house.seeing_gpus).
os.environ.setdefault("HIDDEN_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import house


def pytest_configure(config):
    config.book = {}                    # chapter -> seconds, filled by test_chapters.py


@pytest.fixture
def book(request):
    return request.config.book


def pytest_terminal_summary(terminalreporter, config):
    tr, say = terminalreporter, terminalreporter.write_line
    if config.book:
        tr.section("the book")
        for name, seconds in config.book.items():
            say(f"{seconds:6.1f} s  {name}")
        wanted = house.wanted_flags()
        flagged = [(p.stem, f) for p in house.chapters() for c in house.code_cells(house.read(p)) if (f := house.flags(c)) and p.stem in config.book]
        ran = [f for f in flagged if set(f[1]) <= wanted]
        why = {"gpu": "no GPU here", "slow": "make test FLAGS=slow runs them", "hub": "they download; make test FLAGS=hub runs them"}
        left = {f: sum(f in fs for _, fs in flagged if not set(fs) <= wanted) for f in house.FLAGS if f not in wanted}
        reasons = ", ".join(f"{n} {f} ({why[f]})" for f, n in left.items() if n)
        passed = [r for r in tr.stats.get("passed", []) if r.when == "call"]
        chapters = sum("test_chapters.py" in r.nodeid for r in passed)
        skipped = [r.longrepr[2].removeprefix("Skipped: ") for r in tr.stats.get("skipped", [])]
        say(f"notebooks: {chapters} ran to the end, of {len(config.book)}")
        say(f"tests: {len(passed) - chapters} passed, {len(tr.stats.get('failed', []))} failed, {len(skipped)} skipped" + "".join(f"\n  skipped: {s}" for s in dict.fromkeys(skipped)))
        say(f"flagged cells: {len(ran)} ran, {len(flagged) - len(ran)} skipped" + (f": {reasons}" if reasons else ""))
    if getattr(config, "budget", None):
        tr.section("size budget (a report)")
        say(f"{'':14} code  text  median  >15  longest   kB  largest PNG kB")
        for b in config.budget:
            say(f"{b.name:14} {b.code:4} {b.text:5} {b.median:7} {b.long:4} {b.longest:8} {b.kB:4.0f} {b.png:9.0f}")
