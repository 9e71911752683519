# RTMDet with group norm, as MMDetection trains it on transformers for 100 epochs, on DaViT.
_base_ = "mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py"
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
auto_scale_lr = dict(base_batch_size=128)  # 4 GPUs x 32 images
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="auto"))
