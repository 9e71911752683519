"""Folders of several files, and files that are none of ours: shards, DeepSpeed, what is lacking is named."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import davit
from davit.checkpoint import CheckpointError, load_checkpoint, read_checkpoint, read_contents
from davit.checkpoint.__main__ import main
from davit.checkpoint.folders import holds_one_checkpoint
from davit.checkpoint.unwrap import unwrap
from tests.checkpoint.conftest import built, is_loaded, same, under, weights_of

WEIGHTS = weights_of(seed=2)


def error_of(path: Path, **options: Any) -> str:
    """One paragraph that names what was given."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) > 60
    return text


def shards(
    folder: Path,
    weights: dict[str, Tensor] = WEIGHTS,
    count: int = 3,
    stem: str = "model",
    suffix: str = ".safetensors",
) -> Path:
    """Shards with an index, as accelerate and transformers write them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(weights)
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}{suffix}"
        part = {name: weights[name] for name in names[number::count]}
        if suffix == ".safetensors":
            safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: weight_map[name] for name in names}}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return folder


# ---- shards with an index ----


@pytest.mark.parametrize(
    "stem, suffix", [("model", ".safetensors"), ("pytorch_model", ".bin"), ("other", ".safetensors")]
)
@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards_are_one_checkpoint(tmp_path: Path, capsys: Any, stem: str, suffix: str, given: str) -> None:
    folder = shards(tmp_path / "weights", under("model.", WEIGHTS), stem=stem, suffix=suffix)
    path = folder if given == "folder" else folder / f"{stem}{suffix}.index.json"
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, under("model.", WEIGHTS)) and checkpoint.metadata["total_size"] > 0
    model = built(seed=1)
    assert load_checkpoint(model, path, head="require").complete and is_loaded(model, WEIGHTS)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "3 files" in out and f"{stem}-00002-of-00003{suffix}" in out and "7 classes" in out
    assert main(["convert", str(path), str(tmp_path / "out.safetensors"), "--to", "timm"]) == 0
    assert holds_one_checkpoint(folder)


def test_what_accelerate_and_transformers_save_is_read(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = built(seed=2)
    accelerate.Accelerator(cpu=True).save_model(model, str(tmp_path / "shards"), max_shard_size="300KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    target = built(seed=1)
    assert load_checkpoint(target, tmp_path / "shards").complete and is_loaded(target, WEIGHTS)
    accelerate.Accelerator(cpu=True).save_model(model, str(tmp_path / "single"))
    assert [file.name for file in (tmp_path / "single").iterdir()] == ["model.safetensors"]
    target = built(seed=1)
    assert load_checkpoint(target, tmp_path / "single").complete and is_loaded(target, WEIGHTS)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))[0]
    accelerator.save_state(str(tmp_path / "state"))
    assert load_checkpoint(target, tmp_path / "state").complete and is_loaded(target, dict(prepared.state_dict()))


def test_the_commands_take_folders(tmp_path: Path) -> None:
    """Those that call `read_checkpoint` with what they are given; the hub's names are `davit.pretrained`'s."""
    from davit.engine.load_model import ModelOptions, load_model

    model = davit.create_model("DaViT_nano", num_classes=3)
    folder = shards(tmp_path / "weights", model.state_dict(), 2)
    loaded = load_model(None, folder, ModelOptions(img_size=32), torch.device("cpu"))
    assert loaded.name == "DaViT_nano" and is_loaded(loaded.model, dict(model.state_dict()))


def change(folder: Path, **entries: Any) -> Path:
    """Rewrite the index with other entries."""
    index = folder / "model.safetensors.index.json"
    written = json.loads(index.read_text())
    written["weight_map"].update(entries)
    index.write_text(json.dumps(written))
    return folder


SECOND = "model-00002-of-00003.safetensors"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "weights")
    (folder / SECOND).unlink()
    assert SECOND in error_of(folder)
    (folder / SECOND).mkdir()
    assert SECOND in error_of(folder)


def test_one_shard_is_not_the_weights(tmp_path: Path) -> None:
    folder = shards(tmp_path / "weights")
    text = error_of(folder / SECOND)
    assert str(folder) in text and "3" in text
    alone = (folder / SECOND).rename(tmp_path / "model-00001-of-00001.safetensors")
    assert read_checkpoint(alone).state_dict


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "a\0b",
        "C:\\a",
        "\\\\a\\b",
        3,
        None,
        ["a"],
    ],
)
def test_an_index_leads_nowhere_else(tmp_path: Path, file: Any) -> None:
    safetensors.torch.save_file({"head.weight": torch.ones(7, 64)}, tmp_path / "model.safetensors")
    folder = change(shards(tmp_path / "weights"), **{"head.weight": file})
    assert "head.weight" in error_of(folder)


def test_an_index_and_its_shards_agree(tmp_path: Path) -> None:
    folder = change(shards(tmp_path / "a"), **{"head.extra": SECOND})
    assert "head.extra" in error_of(folder)
    folder = shards(tmp_path / "b")
    first = "model-00001-of-00003.safetensors"
    held = safetensors.torch.load_file(folder / first)
    twice = next(iter(safetensors.torch.load_file(folder / SECOND)))
    safetensors.torch.save_file({**held, twice: WEIGHTS[twice]}, folder / first)
    assert twice in error_of(folder)
    safetensors.torch.save_file({**held, "head.other": torch.ones(1)}, folder / first)
    assert "head.other" in error_of(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        '{"weight_map": {"a": "model-00001-of-00003.safetensors"}, "weight_map": {"b": "y"}}',
        "[" * 100_000,
        '{"weight_map": ' + "1" * 5000 + "}",
        "\xff\xfe",
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    folder = shards(tmp_path / "weights")
    (folder / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    assert "model.safetensors.index.json" in error_of(folder)


def test_hostile_folders_end_soon(tmp_path: Path) -> None:
    folder = change(shards(tmp_path / "many"), **{f"x{i}": f"{i}.safetensors" for i in range(5000)})
    error_of(folder)
    folder = shards(tmp_path / "large")
    with (folder / SECOND).open("r+b") as stream:
        stream.truncate(1 << 40)  # a file of a terabyte, without a byte of it on the disk
    error_of(folder)
    folder = shards(tmp_path / "cycle")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(SECOND)
    assert SECOND in error_of(folder)
    folder = shards(tmp_path / "pipe")
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)
    assert SECOND in error_of(folder)
    folder = shards(tmp_path / "device")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("/dev/zero")
    assert SECOND in error_of(folder)
    folder = shards(tmp_path / "index")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors.index.json").symlink_to("/dev/zero")
    error_of(folder)
    folder = shards(tmp_path / "grown")
    with (folder / "model.safetensors.index.json").open("r+b") as stream:
        stream.truncate(1 << 36)
    error_of(folder)
    folder = tmp_path / "socket"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "model.safetensors"))
        error_of(folder)


def test_a_shard_runs_nothing(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = shards(tmp_path / "weights", stem="pytorch_model", suffix=".bin")
    torch.save({"x": Runs()}, folder / "pytorch_model-00002-of-00003.bin")
    with pytest.raises(CheckpointError, match="mkdir"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_the_hubs_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    folder = shards(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert same(read_checkpoint(snapshot).state_dict, WEIGHTS)


# ---- DeepSpeed ----


def deepspeed(folder: Path, files: dict[str, dict[str, Any]], tag: str = "global_step10") -> Path:
    """What ``model_engine.save_checkpoint`` leaves."""
    (folder / tag).mkdir(parents=True)
    (folder / "latest").write_text(tag)
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    for name, contents in files.items():
        torch.save(contents, folder / tag / name)
    return folder


def state(weights: dict[str, Tensor], shapes: dict[str, Any] | None = None, **entries: Any) -> dict[str, Any]:
    told = {name: tensor.shape for name, tensor in weights.items()} if shapes is None else shapes
    return {
        **{
            "module": weights,
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [told],
            "frozen_param_shapes": None,
        },
        **{"shared_params": {}, "global_steps": 10, "skipped_steps": 0, "dp_world_size": 2, "mp_world_size": 1},
        **{"ds_config": {"zero_optimization": {"stage": 2}}, "ds_version": "0.19.8", "lr_scheduler": None, **entries},
    }


OPTIMIZER = {"optimizer_state_dict": {"zero_stage": 2, "single_partition_of_fp32_groups": [torch.ones(4)]}}


@pytest.mark.parametrize("prefix", ["", "module.", "_forward_module.model."])
@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_deepspeeds_folder_with_whole_weights(tmp_path: Path, name: str, prefix: str) -> None:
    weights = under(prefix, WEIGHTS)
    files = {name: state(weights), "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": OPTIMIZER}
    folder = deepspeed(tmp_path / "run", files)
    if name.startswith("zero"):
        torch.save(state(weights), folder / "global_step10" / name.replace("pp_rank_0", "pp_rank_1"))
    for path in (folder, folder / "global_step10", folder / "global_step10" / name):
        model = built(seed=1)
        assert load_checkpoint(model, path, head="require").complete and is_loaded(model, WEIGHTS)
        assert read_checkpoint(path).metadata["global_steps"] == 10
        assert path.is_file() or holds_one_checkpoint(path)


@pytest.mark.parametrize("held", ["empty", "absent"])
def test_zero_3_has_pieces_only(tmp_path: Path, held: str) -> None:
    shapes = {name: tensor.shape for name, tensor in WEIGHTS.items()}
    pieces = {name: torch.empty(0) for name in WEIGHTS} if held == "empty" else {}
    files = {f"zero_pp_rank_{i}_mp_rank_00_model_states.pt": state(pieces, shapes) for i in range(2)}
    folder = deepspeed(tmp_path / "run", {**files, "zero_pp_rank_0_mp_rank_00_optim_states.pt": OPTIMIZER})
    for path in (folder, folder / "global_step10", folder / "global_step10" / next(iter(files))):
        with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py") as caught:
            read_checkpoint(path)
        assert next(iter(WEIGHTS)) in str(caught.value)


def test_deepspeeds_other_folders(tmp_path: Path) -> None:
    both = {f"mp_rank_0{i}_model_states.pt": state(WEIGHTS) for i in range(2)}
    with pytest.raises(CheckpointError, match="mp_rank_01_model_states"):
        read_checkpoint(deepspeed(tmp_path / "parallel", both))
    folder = deepspeed(tmp_path / "gone", {})
    (folder / "global_step10").rmdir()
    assert "global_step10" in error_of(folder)
    for tag in ("..", ".", "/etc", "a/b", ""):
        folder = deepspeed(tmp_path / f"tag{len(tag)}{tag[:1].isalpha()}", {})
        (folder / "latest").write_text(tag)
        error_of(folder)
    folder = deepspeed(tmp_path / "cycle", {})
    (folder / "global_step10").rmdir()
    (folder / "global_step10").symlink_to(".")
    error_of(folder)
    inner = deepspeed(tmp_path / "loop", {})
    (inner / "global_step10" / "latest").write_text("back")
    (inner / "global_step10" / "back").symlink_to("..")
    error_of(inner)


# ---- other folders ----


def test_folders_of_torch_distributed_checkpoint_are_not_read(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": WEIGHTS}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    text = error_of(tmp_path / "dcp")
    assert "dcp_to_torch" in text
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(str(tmp_path / "dcp"), str(tmp_path / "joined.pth"))
    assert same(
        dict(sorted(read_checkpoint(tmp_path / "joined.pth").state_dict.items())), dict(sorted(WEIGHTS.items()))
    )


def test_a_folder_of_many_things_is_not_guessed(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pth")
    torch.save(WEIGHTS, tmp_path / "b.ckpt")
    assert "a.pth, b.ckpt" in error_of(tmp_path) and not holds_one_checkpoint(tmp_path)
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    assert same(read_checkpoint(tmp_path).state_dict, WEIGHTS) and holds_one_checkpoint(tmp_path)
    contents, _ = read_contents(tmp_path)
    assert same(unwrap(contents, "x").state_dict, WEIGHTS)
    trainer = tmp_path / "trainer"
    shards(trainer / "checkpoint-500")
    (trainer / "logs").mkdir()
    text = error_of(trainer)
    assert "checkpoint-500" in text and "logs" not in text
    empty = tmp_path / "empty"
    empty.mkdir()
    error_of(empty)
    error_of(tmp_path / "nowhere")


# ---- files of other programs ----


def test_files_of_other_programs_are_told_apart(tmp_path: Path) -> None:
    gguf = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2 + bytes(64)
    onnx = b"\x08\x08\x12\x07pytorch\x1a\x052.11.0:\x10" + bytes(range(64))
    for name, data, says in (
        ("a.gguf", gguf, "GGUF"),
        ("renamed.pth", gguf, "GGUF"),
        ("a.onnx", onnx, "ONNX"),
        ("renamed.pt", onnx, "ONNX"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    ):
        (tmp_path / name).write_bytes(data)
        text = error_of(tmp_path / name)
        assert says in text and "state_dict()" in text


def test_programs_are_not_run(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), tmp_path / "a.pt2")
    assert "torch.export.load" in error_of(tmp_path / "a.pt2")
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), tmp_path / "a.pt")
    assert "torch.jit.load" in error_of(tmp_path / "a.pt")
