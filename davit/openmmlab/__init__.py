"""Use DaViT in MMDetection and MMSegmentation: the backbone by name, and mmcv's operators without a compiler.

Importing this package registers ``DaViT`` in mmengine's root registry, puts our `LoadImageFromFile` in the place of
mmcv's, takes a mean for each of any number of bands and, where mmcv has no compiled operators, serves them from
torchvision. Configs import it by ``custom_imports``; the tools import it first of all.

    bridge.py          mmcv._ext where it is missing, by ops.py and deformable.py
    swap.py            DaViT in the place of another backbone
    backbone.py        DaViTPyramid with the arguments of configs
    loading.py         LoadImageFromFile, by the decoder of davit.data
    resizing.py        no image becomes larger than davit.data allows
    bands.py           images of other than three bands
    config.py          configs, and what flags and old names change in them
    parts.py           whether a config's parts are parts
    datasets.py        checks before a run starts, by masks.py and davit/data/coco.py
    mask_layouts.py    where images, masks and polygons lie below --data-root
    regions.py         polygons and masks of COCO's form as a label for every pixel
    segmentation.py    for MMSegmentation: data sets, views averaged one at a time, predictions drawn
    runner.py          mmengine's runner: checkpoints read safely, audited, written whole
    cli.py             train.py and test.py of mmdet/tools and mmseg/tools
    flops.py           get_flops.py: parameters and FLOPs
    predictor.py       a trained model for images: boxes, masks and segments, drawn or as values
    demo.py            image_demo.py, by the predictor
"""

from .bridge import install_bridge, ops_status

install_bridge()

from .backbone import DaViTBackbone  # noqa: E402

if ops_status() != "no mmcv":
    from . import bands, loading, resizing  # noqa: F401

__all__ = ["DaViTBackbone", "install_bridge", "ops_status"]
