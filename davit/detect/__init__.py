"""Train, evaluate and use detectors of the transformers library on DaViT: D-FINE and RT-DETRv2, without OpenMMLab.

The engine is that of train.py (`davit.engine`); `task` is what detection adds to it.
"""
