"""The report: the files that it reads, its tables, gaps, protocol and plot."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval import report
from llava.eval.reporting.plot import draw, plot_points
from llava.eval.reporting.published import ACFORMER_ABLATION, ACFORMER_BENCHMARKS, ACFORMER_MAIN, VLORA_MAIN
from llava.eval.reporting.results import find_score_files, gather
from llava.eval.scoring.metrics import interval
from llava.eval.scoring.score_file import Score, item, write_score_file
from llava.program import RequestError
from tests.support.scoring import Capture

RUN = {"num_visual_tokens": 17, "connector": "acformer", "conv_mode": "vicuna_v1", "temperature": 0.0, "seconds": 0.5}


def _score(
    folder: Path, experiment: str, benchmark: str, values: list[float], run: dict[str, Any] | None = None, **more: Any
) -> None:
    rest = {"details": {}, "expected": len(values), "answered": len(values)} | more
    items = [item(n, value) for n, value in enumerate(values)]
    result = Score(benchmark, "a.jsonl", "mean", items, answers=[{"metadata": run}] if run else [], **rest)
    write_score_file(str(folder / benchmark / "scores" / f"{experiment}.json"), result, experiment)


def _make(folder: Path, *flags: str) -> str:
    out = folder / "out" / "report.md"
    report.main(report.build_parser().parse_args([str(folder), "--out", str(out), *flags]))
    return out.read_text(encoding="utf-8")


def _rows(text: str, section: str) -> dict[str, list[str]]:
    """First cell -> the other cells of the section's table."""
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_report(tmp_path: Path, capsys: Capture) -> None:
    mlp = RUN | {"connector": "mlp2x_gelu", "num_visual_tokens": 64, "seconds": 1.0}
    _score(tmp_path, "a", "GQA", [1, 1, 0, 1], RUN | {"max_new_tokens": 128})
    _score(tmp_path, "a", "POPE", [1, 0], RUN | {"max_new_tokens": 16}, expected=3, details={"subset": "new", "n": 3})
    _score(tmp_path, "b", "GQA", [1, 0], mlp)
    _score(tmp_path, "c", "Mine", [1, 0])
    text = _make(tmp_path)
    low, high = interval("mean", [item(n, value) for n, value in enumerate([1, 1, 0, 1])])
    results = _rows(text, "Results")
    assert results["model"] == ["visual tokens", *ACFORMER_BENCHMARKS, "speed"]
    place = {name: number for number, name in enumerate(results["model"])}
    assert results["a"][0] == "17" and results["a"][place["GQA"]] == f"**75.0** [{low:.1f}, {high:.1f}]"
    assert results["a"][place["POPE"]].startswith("**50.0**\\* [") and results["a"][place["MME"]] == "–"
    assert (results["a"][-1], results["b"][-1], results["c"][-1]) == ("2.00", "1.00", "?")  # b has the MLP
    assert results["c"][0] == "?"
    assert results["*LLaVA-1.5-7B (published)*"][:3] == ["576", "85.9", "1794.6"]
    assert _rows(text, "Other benchmarks")["c"][1].startswith("**50.0**")
    assert _rows(text, "The columns of VLoRA's paper")["*VLoRA-v1-7B (published)*"][:2] == ["0", "63.4"]
    assert text.count("(published)* |") == 6 + 6 + 20 + 4  # main tables, VLoRA's, ablation, data scaling
    assert "max_new_tokens 128 (GQA), 16 (POPE)" in text and "connector acformer; num_visual_tokens 17" in text
    assert "- c: not recorded for Mine" in text
    assert "- a, POPE: subset: new" in text and "n: 3" not in text
    gaps = text.split("## Missing\n")[1].split("\n## ")[0]
    assert "- a: POPE has answers to 2 of 3 questions" in gaps
    assert "- b: no score file of POPE; `bash scripts/v1_5/eval/pope.sh`" in gaps
    assert "no score file of GQA" in gaps and "a: no score file of GQA" not in gaps
    assert "missing - a: POPE has answers to 2 of 3" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "report.png") as plot:
        assert min(plot.size) > 300
    assert "](report.png)" in text


def test_nothing_is_missing(tmp_path: Path) -> None:
    for name in ACFORMER_BENCHMARKS:
        _score(tmp_path, "a", name, [1, 0], RUN)
    text = _make(tmp_path, "--no-published", "--no-plot")
    assert "Nothing: every score covers all questions" in text
    assert "(published)" not in text and "report.png" not in text
    assert not (tmp_path / "out" / "report.png").exists()


def test_mme_gives_two_columns(tmp_path: Path) -> None:
    items = [item("p", 1, "existence"), item("p", 1, "existence"), item("q", 1, "code_reasoning")]
    path = tmp_path / "scores" / "a.json"
    write_score_file(str(path), Score("MME", "a.jsonl", "mme", items, {}, expected=3, answered=3), "a")
    text = _make(tmp_path)
    assert _rows(text, "Results")["a"][2].startswith("**400.0**")
    assert _rows(text, "The columns of VLoRA's paper")["a"][2].startswith("**200.0**")


def test_ambiguous_facts_are_not_guessed(tmp_path: Path) -> None:
    """Two budgets under one name: no tokens, no point in the plot."""
    _score(tmp_path, "a", "GQA", [1], RUN)
    _score(tmp_path, "a", "POPE", [1], RUN | {"num_visual_tokens": 65})
    text = _make(tmp_path)
    assert _rows(text, "Results")["a"][0] == "?"
    assert "num_visual_tokens 17 (GQA), 65 (POPE)" in text
    assert not (tmp_path / "out" / "report.png").exists()


def test_speeds_are_compared_under_the_same_conditions(tmp_path: Path) -> None:
    """A larger batch or another device is no merit of the connector, and a time of 0 seconds is no measurement."""
    for name, run in {
        "a": {"connector": "mlp2x_gelu", "seconds": 1.0, "batch_size": 8},
        "b": {"seconds": 0.1, "batch_size": 16},
        "c": {"seconds": 0.5, "batch_size": 8},
        "d": {"seconds": 0.0, "batch_size": 8},
        "e": {"seconds": 0.5, "batch_size": 8, "device": "cuda"},
    }.items():
        _score(tmp_path, name, "GQA", [1, 0], run)
    rows = _rows(_make(tmp_path), "Results")
    assert [rows[name][-1] for name in "abcde"] == ["1.00", "?", "2.00", "?", "?"]


def test_published_figures_keep_their_digits(tmp_path: Path) -> None:
    _score(tmp_path, "a", "GQA", [1, 0])
    text = _make(tmp_path)
    scaling = _rows(text, "AcFormer's data scaling (published)")
    assert scaling["*AcFormer, 3B, LLaVA-665k (published)*"] == [
        *("145", "35.89", "55.45", "55.15", "72.76", "33.88", "1622.3"),
    ]
    ablation = _rows(text, "AcFormer's ablation (published)")
    assert ablation["*evit, 7B (published)*"] == ["146", "57.1", "61.0", "68.3", "1808.4"]


def test_plot_of_points_that_coincide(tmp_path: Path) -> None:
    """Published rows are marked by family; 0 tokens and equal numbers of tokens can be plotted."""
    for name, tokens in (("a", 0), ("b", 145), ("c", 145)):
        _score(tmp_path, name, "GQA", [1, 0], RUN | {"num_visual_tokens": tokens})
    results = gather(find_score_files([str(tmp_path)]), samples=10)
    points = plot_points(results, with_published=True)
    published = ("LLaVA-1.5 (published)", "AcFormer (published)", "other connectors (published)")
    assert {point.name for point in points} == {"a", "b", "c", *published}
    assert {point.num_visual_tokens for point in points if point.name == published[0]} == {576}
    assert draw(points).startswith(b"\x89PNG") and draw(points[:1]).startswith(b"\x89PNG")


def test_names_cannot_break_the_tables(tmp_path: Path) -> None:
    _score(tmp_path, "my | model\nnew", "GQA", [1, 0])
    lines = [line for line in _make(tmp_path).splitlines() if line.startswith("| my")]
    assert lines and all(line.startswith(r"| my \| model new | ? |") for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": []}, "no items"),
        ({"run": None}, "'run' is not an object"),
        ({"details": []}, "'details' is not an object"),
        ({"expected": "2"}, "'expected' is not a whole number"),
        ({"experiment": " "}, "'experiment' is empty"),
        ({"metric": "best"}, "unknown metric 'best'"),
        ({"items": [{"unit": "1", "group": "all", "value": "x"}]}, "not those of the metric 'mean'"),
        ({"items": [{"unit": "1", "group": "all", "value": float("nan")}]}, "not those of the metric 'mean'"),
        ({"items": [{"unit": "1", "group": [1], "value": 1}]}, "entry 1: 'group' is not a text"),
        ({"metric": "pope_f1"}, "not those of the metric 'pope_f1'"),
    ],
)
def test_a_damaged_score_file_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    _score(tmp_path, "a", "GQA", [1, 0])
    path = tmp_path / "GQA" / "scores" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RequestError, match=rf"a\.json.*{message}"):
        _make(tmp_path)


def test_bad_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere does not exist"):
        find_score_files([str(tmp_path / "nowhere")])
    with pytest.raises(RequestError, match="holds no score files"):
        find_score_files([str(tmp_path)])
    _score(tmp_path, "a", "GQA", [1])
    files = find_score_files([str(tmp_path), str(tmp_path / "GQA" / "scores" / "a.json")])
    assert len(files) == 1
    with pytest.raises(RequestError, match="--baseline z: no such experiment"):
        _make(tmp_path, "--baseline", "z")
    with pytest.raises(RequestError, match="--samples is 0"):
        _make(tmp_path, "--samples", "0")
    (tmp_path / "GQA" / "scores" / "b.json").write_text((tmp_path / "GQA" / "scores" / "a.json").read_text())
    with pytest.raises(RequestError, match=r"a\.json and .*b\.json both hold GQA of a"):
        _make(tmp_path)
    (tmp_path / "GQA" / "scores" / "b.json").write_text(json.dumps({"score": 1}))
    with pytest.raises(RequestError, match=r"b\.json: there is no 'benchmark'"):
        _make(tmp_path)


# Copied from the papers independently of the code: columns are 65, 145 and 257 tokens.
ABLATION = """
pooling, 7B | 53.4 / 59.8 / 66.8 / 1734.0 | 55.1 / 60.9 / 68.0 / 1791.4 | -
pooling_pr, 7B | 53.9 / 60.0 / 66.8 / 1728.9 | 54.7 / 60.9 / 68.0 / 1759.1 | -
random_pr, 7B | 53.9 / 59.1 / 66.9 / 1728.7 | 54.6 / 59.7 / 67.0 / 1772.7 | -
perceiver, 7B | 51.0 / 56.1 / 63.2 / 1702.8 | 52.1 / 56.4 / 65.4 / 1720.8 | 52.3 / 56.8 / 65.7 / 1735.9
c_abstractor, 7B | 52.8 / 59.0 / 67.0 / 1743.3 | 53.4 / 60.2 / 67.8 / 1775.4 | 53.7 / 60.8 / 68.3 / 1790.0
acformer, 7B | 56.1 / 59.2 / 67.3 / 1744.2 | 58.0 / 61.3 / 68.4 / 1846.1 | 58.2 / 61.2 / 68.3 / 1848.8
top_p, 7B | - | 56.3 / 60.8 / 68.2 / 1798.8 | -
evit, 7B | - | 57.1 / 61.0 / 68.3 / 1808.4 | -
perceiver, 13B | - | 53.4 / 56.9 / 64.7 / 1749.3 | -
c_abstractor, 13B | - | 58.5 / 62.1 / 68.8 / 1823.6 | -
acformer, 13B | - | 60.7 / 62.8 / 69.2 / 1869.3 | -
"""
VLORA = """
MiniGPT-4-v2 | 24.3 | 708.4 | 54.1 | 30.0 | 25.0 | 1.4
Idefics-instruct | 48.2 | 942 | 51.6 | 27.3 | 18.4 | 7.8
OpenFlamingo v2 | 6.6 | 535 | 45.7 | 29.4 | 28.2 | 6.3
Qwen-VL-Chat | 60.6 | 1467.8 | 65.5 | 36.8 | 37.0 | 41.2
LLaVA-v1.5-7B | 64.3 | 1510.7 | 66.8 | 27.6 | 35.7 | 27.5
VLoRA-v1-7B | 63.4 | 1311.3 | 66.4 | 26.4 | 33.7 | 28.6
"""


def test_published_figures_are_those_of_the_papers() -> None:
    expected = {}
    for line in ABLATION.strip().splitlines():
        name, *cells = line.split(" | ")
        for tokens, cell in zip((65, 145, 257), cells, strict=True):
            if cell != "-":
                expected[name, tokens + ("evit" in name)] = [float(score) for score in cell.split(" / ")]
    assert {(row.name, row.num_visual_tokens): list(row.scores.values()) for row in ACFORMER_ABLATION} == expected
    rows = [line.split(" | ") for line in VLORA.strip().splitlines()]
    columns = ("MMB", "MME-P", "SQA", "HallusionBench", "MMMU", "CCBench")
    vlora = {name: dict(zip(columns, map(float, scores), strict=True)) for name, *scores in rows}
    assert {row.name: row.scores for row in VLORA_MAIN} == vlora
    main = {(row.name, row.num_visual_tokens): (*row.scores.values(), row.speed) for row in ACFORMER_MAIN}
    assert main == {
        ("LLaVA-1.5-7B", 576): (85.9, 1794.6, 64.3, 30.5, 58.2, 62.0, 78.5, 50.0, 66.8, 1.0),
        ("AcFormer-7B", 145): (86.4, 1846.1, 68.4, 30.3, 2.23),
        ("AcFormer-7B", 257): (58.2, 61.2, 78.4, 52.8, 69.4, 1.65),
        ("LLaVA-1.5-13B", 576): (85.9, 1826.7, 67.7, 35.4, 61.2, 63.3, 80.0, 53.6, 71.6, 1.0),
        ("AcFormer-13B", 145): (86.1, 1870.0, 69.2, 34.1, 2.30),
        ("AcFormer-13B", 257): (61.3, 63.0, 79.8, 53.7, 71.8, 1.69),
    }


def test_published_rows_agree_with_each_other() -> None:
    """Figures that occur in two tables of the paper are equal."""
    ablation = {(row.name, row.num_visual_tokens): row.scores for row in ACFORMER_ABLATION}
    for row in ACFORMER_MAIN:
        for name, score in row.scores.items():
            same = ablation.get((f"acformer, {row.name[-2:]}", row.num_visual_tokens), {}) if "Ac" in row.name else {}
            assert same.get(name, score) == pytest.approx(score, abs=1)
