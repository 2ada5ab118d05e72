"""Reports of whole run directories: numbers, files, pages."""

import csv
import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fake_run import expected_rmse, write_run
from matplotlib import rc_context

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.reports import page as html
from schnetpack_softadapt.reports import style
from schnetpack_softadapt.reports.compare import group_runs, spread_text
from schnetpack_softadapt.reports.errors import duration, figures
from schnetpack_softadapt.reports.parity import draw_parity, interleaved
from schnetpack_softadapt.reports.report import read_runs, terminal_summary, write_report
from schnetpack_softadapt.reports.run import Run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Draw, but do not lay out and encode: the fixtures below do it for all kinds of pictures.

    Fixtures of the module are made before this one takes effect.
    """

    def drawn(draw, *args):
        with rc_context(style._RC):
            return None if draw(*args) is None else PNG

    monkeypatch.setattr(html, "png_bytes", drawn)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A finished run with its report: folder of the run, arrays, folder of the report."""
    folder = tmp_path_factory.mktemp("one") / "run <1>"
    arrays = write_run(folder, stress_labelled=0.7)
    return folder, arrays, write_report(read_runs([folder]))


@pytest.fixture(scope="module")
def four_runs(tmp_path_factory):
    """Two settings with two seeds each: folders, arrays by folder, folder of the report."""
    base = tmp_path_factory.mktemp("four_runs")
    arrays = {}
    for beta in (0.1, 1.0):
        for seed in (0, 1):
            folder = base / f"b{beta}_s{seed}"
            errors = (0.002 * (1 + beta), 0.05, 0.0004)
            arrays[folder] = write_run(folder, beta=beta, seed=seed, errors=errors)
    return base, arrays, write_report(read_runs(list(arrays)))


def _json(out):
    return json.loads((out / "report.json").read_text())


def _csv(out):
    with (out / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class _Page(HTMLParser):
    """Collects what a page refers to, its tables and pictures."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.references, self.images, self.open, self.counts = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [
            attrs[k] for k in ("src", "href", "srcset", "data", "action") if k in attrs
        ]
        if tag == "img":
            self.images.append(attrs)
        if tag == "th":
            assert attrs.get("scope") in ("row", "col")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _page(out):
    page = _Page()
    text = (out / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    page.close()
    assert page.open == []
    return page, text


def test_numbers_in_json_and_csv(one):
    _, arrays, out = one
    rows = _json(out)["runs"][0]["errors"]
    for subset, of_subset in arrays.items():
        for quantity, value in expected_rmse(of_subset).items():
            [row] = [
                r
                for r in rows
                if (r["subset"], r["quantity"], r["selection"]) == (subset, quantity, "all")
            ]
            assert row["rmse"] == pytest.approx(value, rel=1e-9)
            assert row["source"] == "predictions"
    labelled = int(arrays["train"]["stress_mask"].sum())
    assert 0 < labelled < len(arrays["train"]["stress_mask"])
    counts = {
        r["quantity"]: r["n"] for r in rows if (r["subset"], r["selection"]) == ("train", "all")
    }
    n_atoms = int(arrays["train"]["n_atoms"].sum())
    assert counts == {"energy": 60, "forces": 3 * n_atoms, "stress": 6 * labelled}
    assert {r["name"] for r in rows if r["selection"] == "element"} == {"Mo", "Te"}
    assert {r["name"] for r in rows if r["selection"] == "group"} == {
        "bulk",
        "surface",
        "liquid <hot>",
    }


def test_csv_and_json_agree(one, four_runs):
    for _, _, out in (one, four_runs):
        table = _csv(out)
        rows = [{"run": run["name"], **row} for run in _json(out)["runs"] for row in run["errors"]]
        assert len(table) == len(rows) > 0
        for line, row in zip(table, rows, strict=True):
            assert line == {key: "" if value is None else str(value) for key, value in row.items()}


def test_page_is_self_contained(one, four_runs):
    for _, _, out in (one, four_runs):
        page, text = _page(out)
        assert page.images
        for image in page.images:
            assert image["alt"]
        assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
        style_sheet = text[text.index("<style>") : text.index("</style>")]
        assert "url(" not in style_sheet
        assert "@import" not in style_sheet
        assert "script" not in page.counts
        assert page.counts["table"] == page.counts["caption"]
        assert "liquid <hot>" not in text  # names of users are escaped


def test_text_of_users_is_escaped():
    cells = pd.DataFrame({"<b>": ["<d>"]}, index=pd.Index(["<c>"], name="<k>"))
    text = html.table("<a>", cells) + html.points(["<e>"])
    text += html.paragraph("<f>") + html.figure(PNG, '"<h>', "<i>") + html.page("<j>", [])
    report = html.Report(Path("no_folder"))
    report.heading("<g>")
    report.add("text")
    text += report.blocks[0]
    for letter in "abcdefghijk":
        assert f"&lt;{letter}&gt;" in text
    assert 'alt="&quot;' in text


def test_page_shows_the_numbers(one):
    _, arrays, out = one
    _, text = _page(out)
    for of_subset in arrays.values():
        for value in expected_rmse(of_subset).values():
            assert f"<td>{figures(value)}</td>" in text
    assert "run &lt;1&gt;" in text
    assert "best epoch 24" in text


def test_pictures_stand_before_tables(one, four_runs):
    for _, _, out in (one, four_runs):
        _, text = _page(out)
        assert text.rindex("<img") < text.index("<table")


def test_errors_by_group_are_one_wide_table_for_each_subset(one):
    """Groups down, quantities across: of 4 tables, each group has a row in three."""
    _, arrays, out = one
    page, text = _page(out)
    assert page.counts["table"] == 4
    for name in ("bulk", "surface", "liquid &lt;hot&gt;", "atoms of Mo", "atoms of Te"):
        assert text.count(f'<th scope="row">{name}</th>') == 3
    [table] = [part for part in text.split("<table>") if "Validation errors by" in part]
    header, row = (
        re.findall(r">([^<>]+)</t[hd]>", line)
        for line in (table, table[table.index('row">surface') :])
    )
    columns = dict(zip(header[:8], row[:8], strict=True))
    of = arrays["val"]
    chosen = of["group"] == 1
    energy = (of["energy"] - of["energy_ref"])[chosen] / of["n_atoms"][chosen]
    atoms = np.repeat(chosen, of["n_atoms"])
    forces = (of["forces"].astype(float) - of["forces_ref"])[atoms]
    assert columns["structures"] == str(chosen.sum())
    assert columns["energy RMSE, meV/atom"] == figures(1e3 * np.sqrt(np.mean(energy**2)))
    assert columns["energy MAE, meV/atom"] == figures(1e3 * np.mean(np.abs(energy)))
    assert columns["forces RMSE, meV/Å"] == figures(1e3 * np.sqrt(np.mean(forces**2)))
    assert list(columns)[6:] == ["stress RMSE, MPa", "stress MAE, MPa"]


def test_all_pictures_are_there(one):
    _, _, out = one
    expected = {
        "parity.png",
        "histograms.png",
        "learning_curves.png",
        "loss_weights.png",
    }
    assert {path.name for path in out.glob("*.png")} == expected == set(_json(out)["figures"])
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(PNG)


def test_finished_run_has_nothing_to_note(one):
    folder, _, _ = one
    assert Run.read(folder).notes == []


def test_half_finished_run(tmp_path, capsys):
    write_run(tmp_path / "half", subsets=("train",), metrics=False, n_epochs=6)
    assert main(["report", str(tmp_path / "half")]) == 0
    printed = capsys.readouterr().out
    assert "6 of at most 30 epochs" in printed
    assert "No metrics.json" in printed
    assert "No predictions for validation and test" in printed
    out = tmp_path / "half" / "report"
    content = _json(out)["runs"][0]
    assert content["finished"] is False
    assert content["epochs"] == 6
    sources = {row["subset"]: row["source"] for row in content["errors"]}
    assert sources == {"train": "predictions", "val": "history"}
    assert "6 of at most 30 epochs" in (out / "report.html").read_text()


@pytest.mark.parametrize(("n_epochs", "said"), [(30, "All 30 epochs"), (36, "stopped: 36 epochs")])
def test_run_killed_at_its_end_or_after_it_was_extended(tmp_path, n_epochs, said):
    """A stock run that is extended keeps the config.yaml of its first start."""
    write_run(tmp_path / "run", metrics=False, n_epochs=n_epochs)
    [note] = [note for note in Run.read(tmp_path / "run").notes if "epochs" in note]
    assert said in note


def test_run_before_its_first_epoch(tmp_path):
    write_run(tmp_path / "new", subsets=(), metrics=False, n_epochs=None)
    out = write_report(read_runs([tmp_path / "new"]))
    assert _json(out)["runs"][0]["errors"] == []
    assert _json(out)["figures"] == []
    _, text = _page(out)
    assert "No errors are known yet." in text
    assert "no epoch is logged" in text


def test_run_with_predictions_only(tmp_path):
    write_run(tmp_path / "run", metrics=False, n_epochs=None)
    (tmp_path / "run" / "config.yaml").unlink()
    out = write_report(read_runs([tmp_path / "run"]), tmp_path / "elsewhere")
    assert out == tmp_path / "elsewhere"
    assert "parity.png" in _json(out)["figures"]
    assert not (tmp_path / "run" / "report").exists()


def test_metrics_only(tmp_path):
    write_run(tmp_path / "run", n_epochs=None, sizes={"train": 6, "val": 4, "test": 4})
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for file in (tmp_path / "run" / "predictions").iterdir():
        file.unlink()
    rows = _json(write_report(read_runs([tmp_path / "run"])))["runs"][0]["errors"]
    [row] = [r for r in rows if (r["subset"], r["quantity"]) == ("test", "stress")]
    assert row["rmse"] == metrics["test"]["stress_rmse_MPa"]
    assert (row["source"], row["mae"], row["n"]) == ("metrics.json", None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_predictions_are_noted_and_json_is_valid(tmp_path, value):
    arrays = write_run(tmp_path / "run", metrics=False)["val"]
    arrays["forces"][0, 0] = value
    np.savez(tmp_path / "run" / "predictions" / "val.npz", **arrays)
    [run] = read_runs([tmp_path / "run"])
    assert any("forces values of the validation" in note for note in run.notes)
    out = write_report([run])
    rows = _json(out)["runs"][0]["errors"]  # NaN would not be JSON: json.dumps refuses it
    [row] = [
        r for r in rows if (r["subset"], r["quantity"], r["selection"]) == ("val", "forces", "all")
    ]
    assert row["rmse"] is None


def test_seeds_share_a_group(four_runs):
    _, arrays, out = four_runs
    content = _json(out)
    assert [group["label"] for group in content["groups"]] == ["beta 0.1", "beta 1.0"]
    assert [len(group["runs"]) for group in content["groups"]] == [2, 2]
    folders = [f for f in arrays if f.name.startswith("b0.1")]
    values = [expected_rmse(arrays[folder]["test"])["energy"] for folder in folders]
    [error] = [
        e
        for e in content["groups"][0]["errors"]
        if (e["subset"], e["quantity"], e["metric"]) == ("test", "energy", "rmse")
    ]
    assert error["values"] == pytest.approx(values, rel=1e-9)
    assert error["mean"] == pytest.approx(sum(values) / 2, rel=1e-9)
    # two values: the sample deviation is their distance over sqrt(2)
    assert error["deviation"] == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2), rel=1e-9)
    assert content["groups"][0]["wall_s"]["mean"] == pytest.approx(65.5)
    assert set(content["figures"]) == {"compared_errors.png", "compared_curves.png"}
    assert out == next(iter(arrays)).parent / "report"
    _, text = _page(out)
    assert spread_text(np.mean(values), np.std(values, ddof=1)) in text
    assert "mean ± standard deviation over seeds" in text


def test_summary_of_several_runs(four_runs):
    _, arrays, _ = four_runs
    lines = terminal_summary(read_runs(list(arrays))).splitlines()
    assert lines[0].split()[0] == "RMSE"
    assert sum(line.startswith("beta 0.1, ") for line in lines) == 3


def test_groups_of_other_settings_and_equal_names(tmp_path):
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "run", n_epochs=5, sizes={"train": 6, "val": 4, "test": 4})
    config = tmp_path / "b" / "run" / "config.yaml"
    config.write_text(config.read_text() + "extra: {one: 1, two: 2, three: 3, four: 4}\n")
    runs = read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    assert len(group_runs(runs)) == 2
    out = write_report(runs)
    assert [run["name"] for run in _json(out)["runs"]] == ["a/run", "b/run"]
    labels = [group["label"] for group in _json(out)["groups"]]
    assert len(set(labels)) == 2


def test_stale_pictures_go_and_other_files_stay(tmp_path):
    write_run(tmp_path / "run", n_epochs=5, sizes={"train": 6, "val": 4, "test": 4})
    out = write_report(read_runs([tmp_path / "run"]))
    (out / "mine.png").write_bytes(PNG)
    (tmp_path / "run" / "history.csv").unlink()
    write_report(read_runs([tmp_path / "run"]))
    assert not (out / "learning_curves.png").exists()
    assert (out / "parity.png").exists()
    assert (out / "mine.png").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda path: None, "is not a directory"),
        (lambda path: path.mkdir(), "has none of config.yaml"),
        (lambda path: (path.mkdir(), (path / "metrics.json").write_text("{")), "not valid JSON"),
        (lambda path: (path.mkdir(), (path / "config.yaml").write_text("a: [")), "cannot be read"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, prepare, match):
    prepare(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert match in message
    assert str(tmp_path / "run") in message


def test_one_epoch_one_structure_and_one_quantity(tmp_path):
    arrays = write_run(
        tmp_path / "run", subsets=("val",), n_epochs=1, metrics=False, sizes={"val": 1}
    )["val"]
    few = {key: arrays[key] for key in ("n_atoms", "numbers", "energy", "energy_ref")}
    np.savez(tmp_path / "run" / "predictions" / "val.npz", **few)
    out = write_report(read_runs([tmp_path / "run"]))
    assert "parity.png" in _json(out)["figures"]
    run = Run.read(tmp_path / "run")
    titles = [axes.get_title() for axes in draw_parity(list(run.predictions.values())).axes]
    assert titles == ["Energy", ""]


def test_matplotlib_of_the_caller_is_untouched(tmp_path):
    write_run(tmp_path / "run", n_epochs=5, sizes={"train": 6, "val": 4, "test": 4})
    # A size of its own: reports made before this test may have left theirs behind.
    with matplotlib.rc_context({"font.size": 7.77}):
        before = dict(matplotlib.rcParams)
        write_report(read_runs([tmp_path / "run"]))
        assert dict(matplotlib.rcParams) == before


def test_no_pyplot_and_light_help():
    code = (
        "import sys; from schnetpack_softadapt.cli.main import main\n"
        "try: main(['report', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'schnetpack'} & set(sys.modules)\n"
        "import schnetpack_softadapt.reports.report\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_thinning_keeps_every_spot_and_all_outliers():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(0, 0.1, 100_000), [-9.0, 9.0]])
    table = pd.DataFrame({"reference": x, "prediction": x, "error": 0.0})
    table.loc[7, "error"] = 3.0
    points = interleaved({"train": table, "val": table[:10]})
    assert len(points) < 200
    assert {-9.0, 9.0} <= set(points["reference"])
    assert 3.0 in set(points["error"])
    assert set(points["colour"]) == {style.SUBSET_COLOURS[name] for name in ("train", "val")}


def test_numbers_for_readers():
    assert [figures(v) for v in (None, float("nan"), 0.0, 2.345, 23.45, 2345.6, 1.2e-7)] == [
        "–",
        "–",
        "0",
        "2.35",
        "23.4",
        "2350",
        "1.20e−07",
    ]
    assert [duration(v) for v in (None, 12.34, 125.0, 7384.0)] == [
        "–",
        "12.3 s",
        "2 min 05 s",
        "2 h 03 min",
    ]
    for values, text in (((3.68, 3.70, 3.60), "3.66 ± 0.05"), ((40.0, 46.0, 52.0), "46.0 ± 6.0")):
        assert spread_text(statistics.mean(values), statistics.stdev(values)) == text
    assert spread_text(3.68, np.nan) == "3.68"
