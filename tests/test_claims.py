"""The table of published claims: verdicts by hand, and the file's form."""

import re

import pandas as pd
import pytest

from faithlab.claims import COLUMNS, judge, read_claims, tally, verdict
from faithlab.errors import FaithlabError

BASE = dict(method="m", source="paper", claim="c", model="x", published="1 to 2")


def row(value, low=float("nan"), high=float("nan"), quantity="q", reasoner="abacus", unit="share"):
    return dict(reasoner=reasoner, quantity=quantity, value=value, low=low, high=high, n=10, unit=unit)


@pytest.mark.parametrize(
    ("ours", "other", "test", "expected"),
    [
        (row(2, 1.5, 2.5), row(1, 0.5, 1.4), "above", "holds"),
        (row(2, 1.5, 2.5), row(1, 0.5, 1.6), "above", "open"),
        (row(1, 0.5, 1.4), row(2, 1.5, 2.5), "above", "does not"),
        (row(1, 0.5, 1.4), row(2, 1.5, 2.5), "below", "holds"),
        (row(0.1, 0.05, 0.2), 0, "above", "holds"),
        (row(0.1, -0.05, 0.2), 0, "above", "open"),
        (row(0.02, -0.01, 0.04), 0, "near", "holds"),
        (row(0.1, -0.05, 0.2), 0, "near", "open"),
        (row(0.1, 0.04, 0.2), 0, "near", "open"),
        (row(0.1, 0.06, 0.2), 0, "near", "does not"),
        (row(3), row(1, 0, 2), "above", "no interval"),
        (row(3), row(1), "above", "no interval"),
        (row(3, 2.5, 3.5), row(1), "above", "no interval"),
        (row(3), 1, "above", "no interval"),
        (row(3), row(3, 2, 4), "near", "no interval"),
    ],
)
def test_verdicts(ours, other, test, expected):
    assert verdict(ours, other, test) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.04, "holds"), (0.05, "open"), (float("nan"), "open")])
def test_a_difference_between_arms_needs_its_corrected_p(p, expected):
    gap = row(0.1, 0.05, 0.2, "a minus b", unit="difference")
    assert verdict(gap, 0, "above", p=p) == expected
    results = [gap] if p != p else [gap, row(p, quantity="a minus b, p corrected")]
    assert judge([BASE | dict(ours="a minus b", above=0)], pd.DataFrame(results))["verdict"].tolist() == [expected]
    assert verdict(row(0.01, -0.01, 0.04, unit="difference"), 0, "near") == "holds"  # whose interval says it all


def test_a_claim_counts_once_and_ours_are_kept_apart():
    claims = [
        BASE | dict(ours="q", above=0, reasoners=["abacus", "smollm2"]),
        BASE | dict(claim="d", ours="q", above=1, reasoners=["abacus", "smollm2"]),
        BASE | dict(claim="e", origin="own", ours="q", above=0),
        BASE | dict(claim="f", why="needs people"),
    ]
    found = tally(judge(claims, pd.DataFrame([row(2, 1.8, 2.2), row(0.5, 0.4, 0.6, reasoner="smollm2")])))
    assert found["published"].to_dict() == {"holds": 1, "untested": 1, "differs": 1}
    assert found["own"].to_dict() == {"holds": 1, "untested": 0, "differs": 0}


def test_each_claim_and_reasoner_has_its_row():
    claims = [
        BASE | dict(ours="q", above="p", reasoners=["abacus", "smollm2"]),
        BASE | dict(ours="missing", above=0),
        BASE | dict(why="needs people"),
    ]
    results = pd.DataFrame([row(2, 1.8, 2.2), row(1, 0.8, 1.2, "p"), row(1, 0.9, 1.1, reasoner="smollm2"),
                            row(1, 0.9, 1.1, "p", "smollm2")])  # fmt: skip
    found = judge(claims, results)
    assert found.columns.tolist() == COLUMNS
    assert found["verdict"].tolist() == ["holds", "open", "no result", "untested"]
    assert found["against"][0] == "above 1 (p)" and found["against"][3] == "needs people"


def test_a_change_in_per_cent_is_divided_by_what_it_changes():
    results = pd.DataFrame(
        [row(-2, -3, -1, "gap", unit="difference"), row(8, 7, 9, "base"), row(0.01, quantity="gap, p corrected")]
    )
    (found,) = judge([BASE | dict(ours="gap", per="base", below=0)], results).to_dict("records")
    assert (found["ours"], found["low"], found["high"], found["verdict"]) == (-0.25, -0.375, -0.125, "holds")
    assert (found["quantity"], found["unit"], found["n"]) == ("gap", "relative difference", 10)
    missing = judge([BASE | dict(ours="gap", per="bass", below=0)], results)
    assert missing["verdict"].tolist() == ["no result"]


FIGURES = {  # what the publications report as results, method by method; figures of one claim in one line
    "preplan and anchor": """0.2386 0.3608
        22.41 60.84
        36.87 52.53
        0.2404 0.3082
        24.19 72.25
        30.00 40.22
        0.534 0.631
        87.14
        52.6 59.9
        52.6 60.4
        52.6 63.1
        48.0 50.1
        39.4 43.2
        4.8 5.7
        1.6 72 2.0 3.3
        20 100""",
    "FlowTracer": """45.9 29.5
        14.9 29.5
        14.9 4.5
        0.5 4.5
        37.1 39.4
        44.8 48.6
        39.4 43.4
        52.6 63.2
        4.8 5.9
        2.2 4.5""",
    "AtManRL": """45.2 48.9
        38.5 41.2
        15
        4.2 3.5
        44
        46
        25
        48
        61
        90.0 89.6
        200 48""",
}


@pytest.mark.parametrize(("method", "figures"), FIGURES.items())
def test_every_published_figure_has_its_row(method, figures):
    rows = [c for c in read_claims() if c["method"] == method and c.get("origin", "published") == "published"]
    said = [set(re.findall(r"\d+(?:\.\d+)?", f"{c['published']} {c['claim']}")) for c in rows]
    for claim in figures.splitlines():
        assert sum(set(claim.split()) <= numbers for numbers in said), f"no row has {claim.strip()}"


def test_no_published_figure_counts_twice():
    """Variants of a claim in settings of our own are not published."""
    published = [c for c in read_claims() if c.get("origin", "published") == "published"]
    figures = [(c["method"], c["source"], c["published"], c["claim"].split(" (")[0], c["model"]) for c in published]
    assert len(figures) == len(set(figures))
    results = [c["ours"] for c in published if "ours" in c]
    assert len(results) == len(set(results)), "one of our results tests one published claim"


def test_the_file_is_sound_and_keeps_its_sources_apart():
    claims = read_claims()
    assert {c["method"] for c in claims} == {"preplan and anchor", "FlowTracer", "AtManRL"}
    assert {c["source"] for c in claims if c["method"] == "AtManRL"} == {
        "paper",
        "notes on the paper",
        "summary article",
    }
    table = judge()
    assert len(table) >= len(claims)
    tested = table[~table["verdict"].isin(["untested", "not run", "no result"])]
    assert tested["ours"].notna().all() and len(tested) >= 20


def test_what_was_not_tried_is_told_from_what_cannot_be():
    found = judge(
        [BASE | dict(not_run="we ran another"), BASE | dict(claim="d", why="needs people")], pd.DataFrame([row(1)])
    )
    assert found["verdict"].tolist() == ["not run", "untested"] and found["against"].tolist() == [
        "we ran another",
        "needs people",
    ]


@pytest.mark.parametrize("base", [0.0, -1.0, float("nan")])
def test_a_change_relative_to_nothing_is_refused(base):
    with pytest.raises(FaithlabError, match="means nothing"):
        judge([BASE | dict(ours="q", per="p", above=0)], pd.DataFrame([row(1, 0.5, 2), row(base, quantity="p")]))


def test_two_results_of_one_name_are_refused():
    with pytest.raises(FaithlabError, match="two results are called 'q'"):
        judge([BASE | dict(ours="q", above=0)], pd.DataFrame([row(1), row(2)]))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (BASE | dict(ours="q", abve=1), "did you mean 'above'"), (BASE | dict(ours="q"), "needs `ours` and one of"),
        (BASE | dict(ours="q", above=1, why="x"), "needs `ours`"), (BASE | dict(ours="q", above=1, below=2), "needs"),
        (BASE | dict(above=1), "needs `ours`"), (dict(method="m", why="x"), "lacks claim, model, published, source"),
        (BASE | dict(source="blog", why="x"), "unknown source"), (BASE | dict(origin="us", why="x"), "unknown origin"),
        (BASE | dict(ours="q", above=1, reasoners="abacus"), "must be a list"),
        (BASE | dict(ours="q", per="p", above=1), "compare it with 0"),
        (BASE | dict(why="x", not_run="y"), "needs `ours`"), (BASE | dict(ours=["q"], above=1), "name of a result"),
        (BASE | dict(ours="q", above=None), "`above` of claim 1 .* must be a number"),
        (BASE | dict(ours="q", above=True), "must be a number"), (BASE | dict(ours="q", near=[1]), "must be a number"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_named(tmp_path, entry, message):
    import yaml

    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(dict(claims=[entry])))
    with pytest.raises(FaithlabError, match=message):
        read_claims(path)
