"""Find what a machine, a data folder or a config lacks for a run: ``python -m davit.doctor [DATASET_DIR|CONFIG]``."""

from .findings import Finding

__all__ = ["Finding"]
