"""Open checkpoints of DaViT safely, convert their names, load them with an audit.

`load_checkpoint` loads any of them into any model; `convert_state_dict` renames weights between the layouts:

    davit      the original's classification names, which are ours
    pyramid    the same trunk with the norms of the levels (norm0 ...), alone or inside a detector
    timm       timm's davit_tiny ... and davit_*_fl
    florence2  the vision tower of Florence-2, whose channel attention is another function, as Microsoft released it
    florence2_native  the same tower in the transformers library
    mmpretrain mmpretrain's classifier or backbone

On the command line: ``python -m davit.checkpoint inspect FILE`` and ``... convert SRC DST --to LAYOUT``.
"""

from .adapters import CONFIG as ADAPTER_CONFIG
from .convert import ConversionReport, convert_state_dict, convert_with_report
from .folders import holds_one_checkpoint
from .load import LoadReport, load_checkpoint
from .names import LAYOUTS, CheckpointError, detect_layout
from .read import Checkpoint, read_checkpoint, read_contents, sha256_of, unwrap, write_checkpoint

__all__ = [
    "ADAPTER_CONFIG",
    "LAYOUTS",
    "Checkpoint",
    "CheckpointError",
    "ConversionReport",
    "LoadReport",
    "convert_state_dict",
    "convert_with_report",
    "detect_layout",
    "holds_one_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "read_contents",
    "sha256_of",
    "unwrap",
    "write_checkpoint",
]
