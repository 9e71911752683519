"""DaViT in MMDetection and MMSegmentation: the backbone by name, and mmcv's operators without a compiler.

Importing this package registers ``DaViT`` in mmengine's root registry and, where mmcv has no compiled operators,
serves them from torchvision. Configs import it by ``custom_imports``; the tools import it first of all.

    bridge.py, ops.py  mmcv._ext where it is missing
    backbone.py        DaViTPyramid with the words of configs
    config.py          configs, old command-line words, paths, devices
    datasets.py        data sets checked before a run starts: coco.py, masks.py
    segmentation.py    for MMSegmentation: labels to ignore, views averaged one at a time, predictions drawn
    runner.py          mmengine's runner: files opened safely and audited, states written whole
    cli.py             train.py and test.py of mmdet/tools and mmseg/tools
    flops.py           parameters and FLOPs of detectors and segmentors
    demo.py            pictures with boxes, masks and segments drawn
"""

from .bridge import install_bridge, ops_status

install_bridge()

from .backbone import DaViTBackbone  # noqa: E402

__all__ = ["DaViTBackbone", "install_bridge", "ops_status"]
