# UPerNet on DaViT_tiny. Batch norm is synchronised over GPUs; in one process, and on CPUs, it is made plain.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/models/upernet_swin.py"  # why: see schedule_160k.py
model = dict(
    data_preprocessor=dict(size=(512, 512)),  # smaller crops are padded to this, with label 255
    backbone=dict(_delete_=True, type="DaViT", variant="DaViT_tiny", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
)
