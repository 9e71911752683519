# SegFormer's head on ADE20K, as MMSegmentation trains it for 160,000 iterations, on DaViT.
# Why no "mmseg::": see schedule_160k.py.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py"
custom_imports = dict(imports=["davit.openmmlab", "davit.openmmlab.segmentation"])
runner_type = "DaViTRunner"

model = dict(
    backbone=dict(_delete_=True, type="DaViT", variant="DaViT_tiny", drop_path_rate=0.1),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)

data_root = "{{ fileDirname }}/../../data/ade/ADEChallengeData2016"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
