"""The harness measures what it says: cases, ratios, processes of their own, reports."""

import json
import sys
from pathlib import Path

import pytest

from davit.kernels import why_plain

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _import_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def measure():
    import measure

    return measure


def test_a_case_is_named_by_its_parts(measure):
    case = measure.parsed_case("DaViT_tiny:plain/amp/eager", mode="training", batch=3)
    assert (case.model, case.dtype, case.execution, case.mode, case.batch) == (
        "DaViT_tiny:plain",
        "amp",
        "eager",
        "training",
        3,
    )
    assert case.name == "DaViT_tiny:plain/amp/eager"


@pytest.mark.parametrize("text", ["DaViT_tiny", "a/b/c", "DaViT_tiny/float32/quick", "DaViT_tiny/int8/eager"])
def test_a_case_that_is_none(measure, text):
    with pytest.raises(ValueError, match="must be MODEL/DTYPE/EXECUTION with DTYPE one of float32, bfloat16"):
        measure.parsed_case(text)


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("800x1333", (800, 1333))])
def test_sizes(measure, text, size):
    assert measure.size_argument(text) == size


def test_quantiles_and_ratios(measure):
    measured = measure.Measured(measure.Case("a", "float32", "eager"), [0.4, 0.1, 0.2, 0.3], ratios=[1, 2])
    assert measured.median == 0.25
    assert (measured.quantile(0.0), measured.quantile(1.0)) == (0.1, 0.4)


def test_models_are_built_as_the_case_says(measure):
    build, case = measure.build, measure.Case
    plain, ours = build(case("DaViT_nano:plain", "bfloat16", "eager")), build(case("DaViT_nano", "float32", "eager"))
    assert len(why_plain(plain)) == 12 and not why_plain(ours)
    assert build(case("DaViT_nano", "amp", "eager", mode="training")).training
    levels = build(case("DaViT_nano", "float32", "eager", task="pyramid"))
    assert type(levels).__name__ == "DaViTPyramid" and not levels.training


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cases_are_compared_in_processes_of_their_own(measure, tmp_path, capfd, mode):
    """From the command line to the two files; a model that does not exist is left out, not fatal."""
    import throughput

    names = ["DaViT_nano:plain/float32/eager", "DaViT_nano/float32/eager", "no_such_model/float32/eager"]
    arguments = ["--cases", *names, "--mode", mode, "--batch", "2", "--size", "32", "--rounds", "3", "--threads", "1"]
    arguments += ["--clock", "cpu"] if mode == "training" else []
    assert throughput.main([*arguments, "--folder", str(tmp_path), "--name", "small"]) == 0
    captured = capfd.readouterr()
    assert "no_such_model/float32/eager: left out" in captured.err
    data = json.loads((tmp_path / "small.json").read_text())
    assert data["environment"]["torch"] and data["environment"]["cpu"]
    first, second = data["results"]["cases"]
    assert first["ratio"] == 1 and len(second["seconds"]) == 3 and second["ratio"] > 0
    assert first["peak_bytes"] >= 0 and first["p99_ms"] >= first["p50_ms"] > 0
    text = (tmp_path / "small.md").read_text()
    assert text == captured.out and "`DaViT_nano/float32/eager`" in text


@pytest.fixture
def processor(measure, monkeypatch):
    """A processor without instructions for bfloat16, or with them."""

    def pretend(has):
        monkeypatch.setattr(measure, "has_bfloat16", lambda: has)
        monkeypatch.setattr(measure, "bfloat16_cost", lambda: 29.0)

    return pretend


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_bfloat16_is_left_out_where_it_is_emulated_unless_asked_for(measure, processor, capsys, has, asked):
    processor(has)
    assert measure.takes_bfloat16("cuda", asked, "--x") and capsys.readouterr().err == ""
    assert measure.takes_bfloat16("cpu", asked, "--x") == (has or asked)
    assert ("29 times" in capsys.readouterr().err) != has


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("flags", [[], ["--bfloat16"]])
def test_a_suite_on_a_processor_without_bfloat16(measure, processor, monkeypatch, has, flags):
    import throughput

    processor(has)
    monkeypatch.setattr(throughput, "run", lambda targets, _: found.extend(targets) or 0)
    found: list = []
    assert throughput.main(["--suite", "targets", *flags]) == 0
    kinds = {case.dtype for _, listed in found for case in listed}
    assert kinds == ({"float32", "bfloat16", "amp"} if has or flags else {"float32"})
    assert all(len(listed) > 1 for _, listed in found)
    found.clear()
    assert throughput.main(["--cases", "DaViT_nano/bfloat16/eager"]) == 0
    assert len(found[0][1]) == 1  # named, so measured


@pytest.mark.parametrize("has", [True, False])
def test_choices_on_a_processor_without_bfloat16(processor, has):
    import cpu_choices
    import torch

    processor(has)
    both = [torch.float32, torch.bfloat16]
    assert cpu_choices.formats(None) == (both if has else both[:1])
    assert cpu_choices.formats(["bfloat16"]) == both[1:]


def test_the_instruction_sets_are_told_with_what_forbids_them(measure, monkeypatch):
    import torch

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    told = measure.instruction_sets().split()
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in told
    assert ("AVX512_BF16" in told) == torch.cpu._is_avx512_bf16_supported()
    assert measure.instruction_sets() in measure.environment()["cpu"]


def test_nothing_to_measure(measure, capsys):
    import throughput

    with pytest.raises(SystemExit):
        throughput.main([])
    assert "give --suite or --cases" in capsys.readouterr().err


def test_suites_name_models_that_exist(measure):
    import throughput
    import timm

    import davit

    common = {"batch": 1}
    for suite in (throughput.cpu_targets(common), throughput.cuda_targets(common, everything=True)):
        for _, listed in suite:
            assert len(set(listed)) == len(listed) > 1
            for case in listed:
                name = case.model.removesuffix(":plain")
                assert name in davit.VARIANTS or timm.is_model(name), name
    assert "measure" in sys.modules
