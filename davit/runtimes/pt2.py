"""Run programs of torch.export by PyTorch.

`torch.export.load` is not safe for files of others: in torch 2.14 it unpickles weights and constants where the file
says so, loads compiled libraries, hands the sizes' expressions to sympy's `sympify`, which evaluates them, resolves
the graph's operators from any name below `torch`, and compiles the guards that the file holds. So an archive is first
looked through, and only one of plain weights, plain operators and plain arithmetic is handed to it.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import open_regular
from .metadata import KEY, MOST_BYTES, Metadata, MetadataError
from .model import ExportedError, ExportedModel

_MOST_MEMBERS = 200_000
_MOST_GRAPH = 256 << 20  # bytes of the graph's JSON text
_MEMBERS = re.compile(
    r"models/model\.json|data/(weights|constants)/model_\w+_config\.json|data/weights/weight_\d+|"
    r"data/constants/tensor_\d+|data/sample_inputs/model\.pt|extra/.*|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id)|\.format_version|\.storage_alignment|version"
)
_TARGETS = re.compile(
    r"torch\.ops\.(aten|torchvision|prims|quantized_decomposed|torchao)\.\w+\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|pow)"
    r"|math\.(ceil|floor|trunc)"
    r"|torch\.sym_(int|float|max|min|not|ite|sum)"
)
_FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Min"),
        *("Max", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilToInt", "FloorToInt"),
        *("TruncToInt", "ToFloat", "IntTrueDiv", "FloatTrueDiv", "FloatPow", "Eq", "Ne", "Equality"),
        *("Unequality", "Lt", "Le", "Gt", "Ge", "StrictLessThan", "LessThan"),
        *("StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "Piecewise", "Identity"),
    )
)
_SYMBOL = re.compile(r"[a-z]+\d+")
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,20})?(e-?\d{1,2})?")  # as Float('-0.5') has it
_NODES = (
    *(ast.Expression, ast.Load, ast.Constant, ast.Name, ast.Call, ast.keyword, ast.Tuple, ast.Compare),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.BoolOp, ast.And, ast.Or),
)
_WORDS = frozenset(("positive", "negative", "integer", "real", "nonnegative", "nonzero", "evaluate", "precision"))


class Pt2Model(ExportedModel):
    """A program of torch.export, run by PyTorch."""

    runtime = "pt2"

    def __init__(self, path: Path, metadata: Metadata, threads: int, module: Any) -> None:
        super().__init__(path, metadata, threads)
        self._module = module

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        before = torch.get_num_threads()
        if before != self.threads:
            torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                outputs = self._module(images)
        finally:
            if before != self.threads:
                torch.set_num_threads(before)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def open_program(path: Path, threads: int) -> Pt2Model:
    """Open a .pt2 file (errors as in `davit.runtimes.open_exported`)."""
    with open_regular(path) as stream:
        contents = io.BytesIO(stream.read())  # what is looked through is what is loaded
    try:
        text = require_plain(contents)
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, RecursionError, SyntaxError, OSError) as error:
        raise ExportedError(f"{path} is damaged ({type(error).__name__}: {error}); export it again.") from error
    except (MetadataError, ValueError) as error:
        raise ExportedError(f"{path} is not opened: {error}.") from error
    if text is None:
        raise ExportedError(
            f"{path} is a program of torch.export without davit's metadata: nothing says how its images are "
            "prepared and what its outputs mean. Write it by `python -m davit.export CHECKPOINT OUT.pt2`, "
            "or run it by torch.export.load if you trust it: that can run code of the file."
        )
    try:
        metadata = Metadata.from_json(text)
        contents.seek(0)
        program = torch.export.load(contents)
        program._guards_code = []
        module = program.module(check_guards=False)
    except MetadataError as error:
        raise ExportedError(f"{path}: {error}; export it again.") from error
    except Exception as error:  # of a program of another version, of no common type
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ExportedError(
            f"{path} cannot be loaded by this PyTorch ({torch.__version__}; {reason}); export it again."
        ) from error
    return Pt2Model(path, metadata, threads, module)


def require_plain(contents: io.BytesIO) -> str | None:
    """Raise a ValueError unless an archive has nothing that runs when it is loaded; return its text of davit.

    Raises:
        ValueError: it holds a pickle, a library, or a name or expression that no export of ours has.
    """
    with zipfile.ZipFile(contents) as archive:
        members = archive.infolist()
        names = [member.filename.partition("/")[2] for member in members]
        if len(names) > _MOST_MEMBERS or len(set(names)) < len(names):
            raise ValueError("it has too many members, or two of one name")
        if len({member.filename.partition("/")[0] for member in members}) != 1:
            raise ValueError("its members are in several folders")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed, which those of torch.export.save are not")
        if strange := [name for name in names if not _MEMBERS.fullmatch(name)]:
            raise ValueError(f"it holds {strange[0][:80]!r}, which no export of davit's has")
        by_name = dict(zip(names, members, strict=True))
        for kind in ("weights", "constants"):
            _require_raw(json.loads(_read(archive, by_name, f"data/{kind}/model_{kind}_config.json", _MOST_GRAPH)))
        _require_arithmetic(json.loads(_read(archive, by_name, "models/model.json", _MOST_GRAPH)))
        if (name := f"extra/{KEY}") not in by_name:
            return None
        return _read(archive, by_name, name, MOST_BYTES).decode()


def _read(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, most: int) -> bytes:
    if members[name].file_size > most:
        raise ValueError(f"its {name} is larger than {most:,} bytes")
    return archive.read(members[name])


def _require_raw(config: dict[str, Any]) -> None:
    for name, entry in config["config"].items():
        if entry.get("use_pickle") is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError(f"its tensor {name[:80]!r} is a pickle, which could run code")


def _require_arithmetic(program: Any) -> None:
    """Look through a graph: its operators are known ones, and its sizes' expressions plain arithmetic."""
    for name in program.get("range_constraints", {}):
        _require_expression(name)
    if program["graph_module"].get("treespec_namedtuple_fields"):
        raise ValueError("it takes or returns named tuples, which no export of davit's does")
    found = [program]
    while found:
        value = found.pop()
        if isinstance(value, list):
            found += [one for one in value if isinstance(one, list | dict)]
            continue
        for key, one in value.items():
            if key == "expr_str":
                _require_expression(one)
            elif key == "target" and isinstance(one, str) and "inputs" in value and not _TARGETS.fullmatch(one):
                raise ValueError(f"it calls {one[:80]!r}, which no export of davit's does")
            elif key == "metadata" and isinstance(one, dict) and {"source_fn_stack", "from_node"} & one.keys():
                raise ValueError("it holds notes on its source, which exports of davit's do not")
            elif key in ("as_custom_obj", "as_operator") and one is not None:
                raise ValueError("it holds objects other than tensors, which could run code")
            if isinstance(one, list | dict):
                found.append(one)


def _require_expression(text: str) -> None:
    """Raise a ValueError unless a text is arithmetic of symbols and numbers: it will be evaluated."""
    if len(text) > 100_000:
        raise ValueError("an expression of its sizes is too long")
    for node in ast.walk(ast.parse(text, mode="eval")):
        is_plain = isinstance(node, _NODES)
        if isinstance(node, ast.Call):
            is_plain = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        elif isinstance(node, ast.Name):
            is_plain = node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.Constant):
            is_number = isinstance(node.value, bool | int | float) and abs(node.value) < 1e30
            is_plain = is_number or (
                isinstance(node.value, str) and any(form.fullmatch(node.value) for form in (_SYMBOL, _NUMBER))
            )
        elif isinstance(node, ast.keyword):
            is_plain = node.arg in _WORDS
        if not is_plain:
            raise ValueError(f"an expression of its sizes is no plain arithmetic: {text[:80]!r}")
