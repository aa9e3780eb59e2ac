"""The pages of what was measured, each with the name of the benchmark whose tables it has."""

from pathlib import Path

RESULTS = Path(__file__).parents[1] / "examples" / "benchmarks" / "results"


def result_page(name):
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def shown(page, name=None):
    """What a page has between the marks of its tables, which are named like it if not otherwise."""
    name = name or page.replace("_", " ")
    _, begin, rest = result_page(page).partition(f"<!-- {name} -->\n")
    tables, end, _ = rest.partition(f"\n<!-- end {name} -->")
    assert begin, f"{page}.md has no tables called {name}"
    assert end, f"{page}.md has no end of the tables called {name}"
    return tables
