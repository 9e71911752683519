"""Check that the harness measures what it says: cases, ratios, processes of their own, reports."""

import json
import threading

import pytest
import timm
import torch

from davit import VARIANTS
from davit.kernels import why_plain


@pytest.fixture
def measure(script):
    return script("measure")


@pytest.fixture
def throughput(script):
    return script("throughput")


def test_a_case_is_named_by_its_parts(measure):
    case = measure.parsed_case("DaViT_tiny:plain/amp/eager", mode="training", batch=3)
    assert case == measure.Case("DaViT_tiny:plain", "amp", "eager", mode="training", batch=3)
    assert case.name == "DaViT_tiny:plain/amp/eager"
    assert measure.size_argument("224") == (224, 224) and measure.size_argument("800x1333") == (800, 1333)
    for text in ("DaViT_tiny", "a/b/c", "DaViT_tiny/float32/quick", "DaViT_tiny/int8/eager"):
        with pytest.raises(ValueError, match=f"{text}.*float32, bfloat16"):
            measure.parsed_case(text)


def test_quantiles(measure):
    measured = measure.Measured(measure.Case("a", "float32", "eager"), [0.4, 0.1, 0.2, 0.3], ratios=[1, 2])
    assert [measured.quantile(0.0), measured.median, measured.quantile(1.0)] == [0.1, 0.25, 0.4]


def test_models_are_built_as_the_case_says(measure):
    build, case = measure.build, measure.Case
    plain, ours = build(case("DaViT_nano:plain", "bfloat16", "eager")), build(case("DaViT_nano", "float32", "eager"))
    assert len(why_plain(plain)) == 12 and not why_plain(ours)
    assert build(case("DaViT_nano", "amp", "eager", mode="training")).training
    levels = build(case("DaViT_nano", "float32", "eager", task="pyramid"))
    assert type(levels).__name__ == "DaViTPyramid" and not levels.training


def test_cases_are_compared_in_processes_of_their_own(throughput, tmp_path, capfd):
    """From the command line to the two files; a model that does not exist is left out, not fatal."""
    names = ["DaViT_nano/float32/eager", "no_such_model/float32/eager"]
    words = ["--cases", *names, "--batch", "2", "--size", "32", "--rounds", "3", "--threads", "1"]
    assert throughput.main([*words, "--folder", str(tmp_path), "--name", "small"]) == 0
    captured = capfd.readouterr()
    assert "no_such_model/float32/eager" in captured.err
    data = json.loads((tmp_path / "small.json").read_text())
    assert data["environment"]["torch"] and data["environment"]["cpu"]
    (first,) = data["results"]["cases"]
    assert first["ratio"] == 1 and len(first["seconds"]) == 3
    assert first["peak_bytes"] >= 0 and first["p99_ms"] >= first["p50_ms"] > 0
    text = (tmp_path / "small.md").read_text()
    assert text == captured.out and "`DaViT_nano/float32/eager`" in text and "no_such_model" not in text


STEP = """
def prepared(case):
    steps = []

    def step():
        steps.append(case)
        if case.model == "fails" and len(steps) > 5:  # in the second round
            raise RuntimeError("out of memory")

    return step
"""


@pytest.mark.long
def test_a_case_that_fails_in_a_round_is_left_out(measure, tmp_path, monkeypatch):
    (tmp_path / "step_of_a_test.py").write_text(STEP)
    monkeypatch.syspath_prepend(tmp_path)
    good, bad = measure.Case("works", "float32", "eager"), measure.Case("fails", "float32", "eager")
    left_out: dict = {}
    prepare = __import__("step_of_a_test").prepared
    results = measure.compare([bad, good], bad, 4, lambda _: None, prepare, together=True, left_out=left_out)
    assert [m.case for m in results] == [good] and len(results[0].seconds) == 4 and results[0].ratios == []
    assert list(left_out) == [bad] and "out of memory" in left_out[bad]


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_the_process_of_a_case_times_training_steps(measure, clock):
    """The same conversation, with a thread in place of the process."""
    case = measure.Case("DaViT_nano", "amp", "eager", "training", batch=2, size=(32, 32), clock=clock)
    ours, theirs = measure.multiprocessing.Pipe()
    thread = threading.Thread(target=measure.serve, args=(case, theirs, measure.prepared))
    thread.start()
    assert ours.recv()[0] == "ready"
    ours.send("step")
    kind, seconds = ours.recv()
    assert kind == "seconds" and 0 < seconds < 60
    ours.close()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_left_out_where_it_is_emulated_unless_asked_for(script, measure, monkeypatch, capsys, has):
    """By the harness and by each script; what --cases names is measured."""
    monkeypatch.setattr(measure, "has_bfloat16", lambda: has)
    monkeypatch.setattr(measure, "bfloat16_cost", lambda: 29.0)
    for asked in (True, False):
        assert measure.takes_bfloat16("cuda", asked, "--x") and capsys.readouterr().err == ""
        assert measure.takes_bfloat16("cpu", asked, "--x") == (has or asked)
        assert ("29 times" in capsys.readouterr().err) != has
    choices, kernels, throughput = map(script, ("cpu_choices", "kernels", "throughput"))
    fast, both = ["float32", "bfloat16"][: 1 + has], [torch.float32, torch.bfloat16]
    assert (choices.dtypes_to_time(None), choices.dtypes_to_time(["bfloat16"])) == (both[: 1 + has], both[1:])
    found: list = []
    for name in ("measure", "compile_all"):
        monkeypatch.setattr(kernels, name, lambda options: found.append(options.dtype) or 0)
    for words in (["--device", "cpu"], [], ["--device", "cpu", "--compile", "90"]):
        assert kernels.main(words) == kernels.main([*words, "--dtype", "bfloat16"]) == 0
    assert found == [fast[-1], *["bfloat16"] * 5]
    monkeypatch.setattr(throughput, "run", lambda targets, _: found.append(targets) or 0)
    for words in (["--suite", "targets"], ["--suite", "targets", "--bfloat16"], ["--cases", "a/bfloat16/eager"]):
        assert throughput.main(words) == 0
    kinds = [{case.dtype for _, listed in targets for case in listed} for targets in found[-3:]]
    every = {"float32", "bfloat16", "amp"}
    assert kinds == [every if has else {"float32"}, every, {"bfloat16"}]


def test_the_instruction_sets_are_told_with_what_forbids_them(measure, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    told = measure.instruction_sets().split()
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in told
    assert ("AVX512_BF16" in told) == torch.cpu._is_avx512_bf16_supported()
    assert measure.instruction_sets() in measure.environment()["cpu"]


@pytest.mark.parametrize(
    "name, words",
    [
        *[("throughput", "--rounds 9"), ("kernels", "--batch 0"), ("against", "--rounds 0"), ("against", "--cases a")],
        *[("openmmlab_throughput", words) for words in ("--batch 0", "--rounds 0", "--device cuda")],
        *[("throughput", "--device cuda --suite all"), ("kernels", "--device cuda")],
    ],
)
def test_flags_that_make_no_sense(script, monkeypatch, tmp_path, capsys, name, words):
    """Nothing is measured where they ask for a GPU that is not there, or for no case at all."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main, words = script(name).main, words.split()
    if name == "kernels" and "cuda" in words:
        assert main([*words, "--folder", str(tmp_path)]) == 2
    else:
        with pytest.raises(SystemExit):
            main([*words, "--folder", str(tmp_path)])
    missing = "--cases" if words == ["--rounds", "9"] else words[0]
    assert missing in capsys.readouterr().err or name == "against"
    assert list(tmp_path.iterdir()) == []


def test_suites_name_models_that_exist(throughput):
    common = {"batch": 1}
    for suite in (throughput.cpu_targets(common), throughput.cuda_targets(common, everything=True)):
        for _, listed in suite:
            assert len(set(listed)) == len(listed) > 1
            for case in listed:
                name = case.model.removesuffix(":plain")
                assert name in VARIANTS or timm.is_model(name), name
