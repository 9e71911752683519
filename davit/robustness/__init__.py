"""Measure how a classifier does on images unlike those of its training: ImageNet's variants, and corrupted images.

`python -m davit.robustness CHECKPOINT ROOT`; import the submodules.
"""
