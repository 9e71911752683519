# UPerNet with a narrow head on DaViT_nano, from random weights on two CPU cores.
_base_ = "../upernet_davit_folders.py"

width = 32
# The released recipes draw the last layer with std 0.01, for heads of 512 channels behind pretrained backbones. With
# 32 channels the classes would not be told apart for a thousand iterations.
last_layer = dict(type="Normal", std=0.1, override=dict(name="conv_seg"))

model = dict(
    backbone=dict(variant="DaViT_nano", drop_path_rate=0.0),
    decode_head=dict(
        in_channels=[32, 64, 128, 160], channels=width, num_classes=11, dropout_ratio=0.0, init_cfg=last_layer
    ),
    auxiliary_head=dict(in_channels=128, channels=width, num_classes=11, dropout_ratio=0.0, init_cfg=last_layer),
)
train_dataloader = dict(batch_size=8, num_workers=1)
val_dataloader = dict(num_workers=1)
optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=8)
