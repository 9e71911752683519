"""Stand in for `mmcv._ext` where mmcv was installed without its compiled operators.

`install_bridge` must run before anything of mmcv.ops, mmdet or mmseg is imported; importing davit.openmmlab does it.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from . import deformable, ops

log = logging.getLogger(__name__)

EXTENSION = "mmcv._ext"
_MODULE_OF = {
    **dict.fromkeys(("nms", "softnms", "roi_align_forward", "roi_align_backward"), ops),
    **dict.fromkeys(("roi_pool_forward", "roi_pool_backward"), ops),
    **dict.fromkeys(("sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"), ops),
    **dict.fromkeys(("ms_deform_attn_forward", "ms_deform_attn_backward"), deformable),
    **dict.fromkeys(
        ("deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"), deformable
    ),
    **dict.fromkeys(("modulated_deform_conv_forward", "modulated_deform_conv_backward"), deformable),
}
SERVED = tuple(_MODULE_OF)


class _Bridge(ModuleType):
    """Has every operator by name: those of `SERVED` work, any other says when it is called why it does not."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python and inspect ask of any module
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise NotImplementedError(
                f"mmcv's operator {name!r} is not there: this mmcv was installed without compiled operators, and "
                f"davit.openmmlab serves only {', '.join(SERVED)}. Install a compiled mmcv for this PyTorch "
                "(MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary onedl-mmcv onedl-mmcv, with a C++ "
                "compiler and, for CUDA, nvcc); it is then used in place of the bridge."
            )

        return missing


def ops_status() -> str:
    """Return 'compiled', 'bridged', 'missing' (mmcv without operators and no bridge), or 'no mmcv'."""
    if isinstance(sys.modules.get(EXTENSION), _Bridge):
        return "bridged"
    found = importlib.util.find_spec("mmcv")
    if found is None:
        return "no mmcv"
    return "compiled" if _compiled(found) is not None else "missing"


def install_bridge() -> str:
    """Serve `mmcv._ext` from torchvision where mmcv lacks it; returns `ops_status`.

    A compiled extension is left alone. One that cannot be loaded (built for another PyTorch) is bridged, with a
    warning.
    """
    if EXTENSION in sys.modules:
        return ops_status()
    found = importlib.util.find_spec("mmcv")
    if found is None:
        return "no mmcv"
    if _compiled(found) is not None:
        try:
            importlib.import_module(EXTENSION)
            return "compiled"
        except ImportError as error:
            log.warning("mmcv's compiled operators do not load (%s); torchvision's are used.", error)
    module = _Bridge(EXTENSION, "mmcv's operators from torchvision (davit.openmmlab.bridge).")
    module.__spec__ = ModuleSpec(EXTENSION, loader=None, origin=__file__)  # mmengine asks find_spec for it
    for name, source in _MODULE_OF.items():
        setattr(module, name, getattr(source, name))
    for name in ("get_compiler_version", "get_compiling_cuda_version"):
        setattr(module, name, lambda: "none (torchvision)")
    sys.modules[EXTENSION] = module
    return "bridged"


def _compiled(mmcv: ModuleSpec) -> ModuleSpec | None:
    """Find the compiled extension without importing mmcv."""
    return PathFinder.find_spec(EXTENSION, mmcv.submodule_search_locations)
