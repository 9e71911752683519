# UPerNet, DaViT_tiny, 160,000 iterations, on data of your own: images with masks or polygons.
# Command:  python tools/train.py THIS --data-root DIR --classes NAME NAME ... (examples are in mmseg/README.md)
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: depends on the data.
_base_ = "./upernet_davit_512x512_160k_ade20k.py"

# Where --data-root has other folders than the ones below, it is found out which (mmseg/README.md).
# The masks number the classes from 0; 255, and the values in ignored_labels, are neither trained on nor counted.
# Masks with 0 for "none of the classes" and classes from 1 on want reduce_zero_label=True (see _base_/ade20k.py).
data_root = "{{ fileDirname }}/../data/folders"
own = dict(type="MaskFolders", data_root=data_root, reduce_zero_label=False, ignored_labels=[])

train_dataloader = dict(dataset=dict(**own, data_prefix=dict(img_path="images/train", seg_map_path="masks/train")))
val_dataloader = dict(dataset=dict(**own, data_prefix=dict(img_path="images/val", seg_map_path="masks/val")))
test_dataloader = val_dataloader
