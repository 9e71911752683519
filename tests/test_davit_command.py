"""The command `davit`: its table, what it answers without PyTorch, names in usage lines, exit statuses."""

import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest

import davit
from davit import cli
from davit.cli import COMMANDS, Command, Group, main

WORDS = [
    (name, *inner)
    for name, entry in COMMANDS.items()
    for inner in ([(word,) for word in entry.commands] if isinstance(entry, Group) else [()])
]


def command_of(words: tuple[str, ...]) -> Command:
    entry = COMMANDS[words[0]]
    found = entry.commands[words[1]] if isinstance(entry, Group) else entry
    assert isinstance(found, Command)
    return found


def test_the_table_has_what_is_promised() -> None:
    promised = [
        "train",
        "validate",
        "predict",
        "visualize",
        "app",
        "doctor",
        "checkpoint",
        "complexity",
        "data",
        "det",
        "seg",
    ]
    assert set(promised) <= set(COMMANDS)
    for group in ("det", "seg"):
        entry = COMMANDS[group]
        assert isinstance(entry, Group) and set(entry.commands) == {"train", "test", "demo", "flops"}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_command_has_a_help_that_calls_it_as_it_was_called(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if command_of(words).extra:
        pytest.importorskip("mmdet")
    with pytest.raises(SystemExit) as leave:
        main([*words, "--help"])
    assert leave.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: davit {' '.join(words)} ")


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_command_runs_the_main_of_its_script_with_the_rest_of_the_words(words: tuple[str, ...]) -> None:
    place = command_of(words)
    if place.extra:
        pytest.importorskip("mmdet")
    module, _, name = place.main.partition(":")
    parser, _, make = place.parser.partition(":")
    unread = mock.patch.object(importlib.import_module(f"davit.{parser}"), make)  # its parser takes any words
    called_main = mock.patch.object(importlib.import_module(f"davit.{module}"), name, return_value=75)
    with unread as made, called_main as called:
        made.return_value.parse_args.return_value.json = False
        assert main([*words, "x"]) == 75
    called.assert_called_once_with(["x"])


def test_after_a_command_usage_lines_are_those_of_the_scripts_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    capsys.readouterr()
    from davit.doctor.__main__ import main as doctor

    with pytest.raises(SystemExit):
        doctor(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m davit.doctor ")


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["trian"], "train"),
        (["Validate"], "validate"),
        (["det", "tets"], "test"),
        (["seg", "flop"], "flops"),
        (["--no-such"], ""),
        (["det", "--no-such"], ""),
        (["train.py"], "train"),
        (["quux"], ""),
    ],
)
def test_a_mistyped_command_ends_with_2_and_the_nearest(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and words[-1] in said.err and "train" in said.err
    assert not near or f"'{near}'" in said.err


@pytest.mark.parametrize("words", [[], ["det"], ["seg"]])
def test_a_command_that_is_left_out_is_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["det", "--help"], ["seg", "-h"]])
def test_help_is_a_line_a_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    entry = COMMANDS.get(words[0])
    for name, inner in (entry.commands if isinstance(entry, Group) else COMMANDS).items():
        assert any(line.split()[:1] == [name] and inner.help in line for line in said.splitlines())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["davit", davit.__version__]
    project = (repository / "pyproject.toml").read_text()
    assert '\nname = "davit-torch"' in project and 'attr = "davit.__version__"' in project


def test_mistakes_and_exit_statuses_are_those_of_the_mains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nowhere", "-c", "davit_tiny_224"]) == 2
    assert main(["checkpoint", "inspect", "nowhere.pth"]) == 2
    (tmp_path / "no.png").write_bytes(b"not an image")
    assert main(["predict", "no.png", "--model", "DaViT_nano", "--checkpoint", "none.pth"]) == 2
    with pytest.raises(SystemExit) as leave:
        main(["train", "--no-such-flag"])
    assert leave.value.code == 2


def test_what_a_command_lacks_is_named_with_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(cli, "_resolve", side_effect=ModuleNotFoundError("gone", name="mmengine.config")):
        assert main(["det", "flops", "x"]) == 2
        assert "pip install 'davit-torch[openmmlab]'" in capsys.readouterr().err
        with pytest.raises(ModuleNotFoundError):
            main(["complexity"])
    broken = mock.patch.object(cli, "_resolve", side_effect=ModuleNotFoundError("ours", name="davit.gone"))
    with broken, pytest.raises(ModuleNotFoundError):
        main(["seg", "train", "x"])


# --- in a process of its own ---


def run(*words: str, at: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(davit.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run([sys.executable, *words], cwd=at, env=env, capture_output=True, text=True, check=False)


QUICK = [
    ["--help"],
    ["--version"],
    ["det", "--help"],
    ["train", "--help"],
    ["validate", "--help"],
    ["predict", "--help"],
]


@pytest.mark.parametrize("words", [*QUICK, ["trian"], ["train", "--no-such"], ["predict"]], ids=" ".join)
def test_help_and_mistakes_are_answered_without_torch(words: list[str], tmp_path: Path) -> None:
    catch = "import sys\ntry:\n    from davit_command import main\n    main({})\nexcept SystemExit: pass\n"
    told = run("-c", catch.format(words) + "print('torch' in sys.modules, file=sys.stderr)", at=tmp_path)
    assert told.stderr.splitlines()[-1] == "False", told.stderr
    done = run("-m", "davit", *words, at=tmp_path)
    assert done.returncode == (0 if words in QUICK else 2), done.stderr


def test_a_program_that_imports_davit_has_the_variants_in_timm_and_a_command_too(tmp_path: Path) -> None:
    say = "import timm, os; print(timm.is_model('DaViT_tiny'), os.environ.get('OMP_WAIT_POLICY', '').lower())"
    assert run("-c", f"import davit; {say}", at=tmp_path).stdout.split()[0] == "True"
    (tmp_path / "davit_user.py").write_text(f"import davit; {say}")
    assert run("-m", "davit_user", at=tmp_path).stdout.split()[0] == "True"
    inside = f"from davit_command import main; main(['complexity', '--model', 'DaViT_nano']); import davit; {say}; "
    shown = run(
        "-c", inside + "print(davit.DaViT.__name__, davit.load.__name__, sorted(davit.VARIANTS)[0])", at=tmp_path
    )
    assert shown.stdout.splitlines()[-2:] == ["True passive", "DaViT load DaViT_base"], shown.stderr


@pytest.mark.parametrize("asked", [[], ["always"]], ids=["by itself", "as PYTHONWARNINGS asks"])
def test_warnings_that_a_user_cannot_act_on_are_hidden(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a library about its own code; not those for the user, nor any where warnings are asked for."""
    kinds = [DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning, RuntimeWarning]

    def work(_: object) -> int:
        for kind in kinds:
            warnings.warn(kind.__name__, kind, stacklevel=1)
        for text in ("is deprecated", "is broken"):
            logging.getLogger("torch.utils._pytree").warning(text)  # as torch does of torchao
        return 0

    monkeypatch.setattr("davit.complexity.main", work)
    monkeypatch.setattr(sys, "warnoptions", asked)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main(["complexity"]) == 0
        warnings.warn("after", DeprecationWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == [
        *(kind.__name__ for kind in (kinds if asked else kinds[3:])),
        "after",
    ]
    logged = [record.getMessage() for record in caplog.records if record.name == "torch.utils._pytree"]
    assert logged == (["is deprecated", "is broken"] if asked else ["is broken"])


@pytest.mark.long
def test_torchrun_starts_the_command_as_a_module(tmp_path: Path) -> None:
    """Two processes train together, and each image counts once."""
    tiny = "--img-size 16 --epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --workers 0 --experiment one"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "davit", "train"]
    done = run(*torchrun, *tiny.split(), at=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output/train/one/summary.csv").is_file()
    words = [
        "-m",
        "davit",
        "validate",
        "data/digits",
        "--checkpoint",
        "output/train/one/model_best.pth.tar",
        "-j",
        "0",
        "--json",
    ]
    shown = run(*words, at=tmp_path)
    assert json.loads(shown.stdout)["count"] == 360
