"""Measure how a classifier does on pictures unlike those of its training: ImageNet's variants, and corrupted pictures.

`python -m davit.robustness CHECKPOINT ROOT`; import the submodules.
"""
