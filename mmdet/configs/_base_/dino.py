# DINO with four scales, as MMDetection trains it, on DaViT.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
custom_imports = dict(imports=["davit.openmmlab"])
runner_type = "DaViTRunner"

model = dict(
    backbone=dict(_delete_=True, type="DaViT", variant="DaViT_tiny", out_indices=(1, 2, 3), drop_path_rate=0.1),
    neck=dict(in_channels=[192, 384, 768]),
)

data_root = "{{ fileDirname }}/../../data/coco/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="auto"))
