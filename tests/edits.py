"""Edit davit/model.py as researchers do: the edits, a package with one of them, and a check of that package.

Nothing of davit is imported here, so that a fresh process may import the edited package.
"""

import copy
import shutil
import sys
from pathlib import Path

OPTIONS = {
    "embed_dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "window_size": 5, "num_classes": 7,
    "drop_path_rate": 0.0,
}  # fmt: skip

REPOSITORY = Path(__file__).resolve().parents[1]

_BLOCK = "        self.norm1 = norm_layer(dim)\n        self.attn = attention\n"
_ATTENTION = "x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC)))"
_WINDOW = "        self.window_size = window_size\n        self.qkv"

#: Name to the replacements that make the edit; each must be found once.
EDITS: dict[str, list[tuple[str, str]]] = {
    "LayerScale": [
        (_BLOCK, _BLOCK + "        self.gamma = nn.Parameter(torch.full((dim,), 0.3))\n"),
        (_ATTENTION, "x_BHWC = x_BHWC + self.drop_path(self.gamma * self.attn(self.norm1(x_BHWC)))"),
    ],
    "relative position bias": [
        (
            _WINDOW,
            "        self.window_size = window_size\n"
            "        offset = torch.arange(window_size)[:, None] - torch.arange(window_size) + window_size - 1\n"
            "        index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]\n"
            "        self.register_buffer('index', index.reshape(window_size**2, window_size**2))\n"
            "        self.table = nn.Parameter(torch.randn((2 * window_size - 1) ** 2, num_heads))\n"
            "        self.qkv",
        ),
        (
            "attend_among_positions(self.qkv(x_MNC), self.num_heads)[0]",
            "attend_among_positions(self.qkv(x_MNC), self.num_heads, self.table[self.index].permute(2, 0, 1))[0]",
        ),
        ("qkv_MNE: Tensor, num_heads: int)", "qkv_MNE: Tensor, num_heads: int, bias_GNN: Tensor)"),
        ("@ k_MGND.transpose(-2, -1)).softmax", "@ k_MGND.transpose(-2, -1) + bias_GNN).softmax"),
    ],
    "dropout in the MLP": [
        ("        self.act = nn.GELU()\n", "        self.act = nn.GELU()\n        self.drop = nn.Dropout(0.4)\n"),
        ("self.fc2(self.act(self.fc1(x)))", "self.fc2(self.drop(self.act(self.fc1(x))))"),
    ],
    "ReLU behind the stem": [
        ("self.norm(self.proj(x).permute(0, 2, 3, 1))", "self.norm(self.proj(x).permute(0, 2, 3, 1)).relu()"),
    ],
    "norm behind the attention": [
        (_ATTENTION, "x_BHWC = x_BHWC + self.drop_path(self.norm1(self.attn(x_BHWC)))"),
    ],
    "GELU by tanh": [("        self.act = nn.GELU()\n", "        self.act = nn.GELU(approximate='tanh')\n")],
    "a third branch": [
        (_BLOCK, _BLOCK + "        self.gate = nn.Linear(dim, dim)\n"),
        (_ATTENTION, _ATTENTION + "\n        x_BHWC = x_BHWC + self.gate(x_BHWC).tanh()"),
    ],
    "another scale in channel attention": [("k_BGND * D**-0.5", "k_BGND * qkv_BNE.shape[1]**-0.5")],
    "a block of more arguments": [
        ("    def forward(self, x_BHWC: Tensor) -> Tensor:\n        x_BHWC = self.cpe[0](x_BHWC)\n",
         "    def forward(self, x_BHWC: Tensor, shift: float = 0.5) -> Tensor:\n"
         "        x_BHWC = self.cpe[0](x_BHWC + shift)\n"),
        ("x = blocks(x)", "for block in blocks[0]:\n                        x = block(x, 0.25)"),
    ],
    "a property of the block": [
        ("        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()\n", ""),
        ("    def forward(self, x_BHWC: Tensor) -> Tensor:\n        x_BHWC = self.cpe[0](x_BHWC)\n",
         "    @property\n    def drop_path(self):\n        return lambda x: 0.25 * x\n\n"
         "    def forward(self, x_BHWC: Tensor) -> Tensor:\n        x_BHWC = self.cpe[0](x_BHWC)\n"),
    ],
    "windows padded by reflection of the edge": [
        ("x_MNC, tiling = window_partition(x_BHWC, self.window_size)",
         "x_MNC, tiling = window_partition(x_BHWC, self.window_size, x_BHWC[0, -1, -1])"),
    ],
}  # fmt: skip


def edited(name: str, folder: Path) -> Path:
    """Copy the package into ``folder``, with an edit of its model.py; returns the folder, to be put on the path."""
    shutil.copytree(REPOSITORY / "davit", folder / "davit", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "davit" / "model.py"
    text = path.read_text()
    for old, new in EDITS[name]:
        assert text.count(old) == 1, f"{name}: {old!r} is {text.count(old)} times in model.py"
        text = text.replace(old, new)
    path.write_text(text)
    return folder


def check(folder: Path, weights: Path, results: Path, compiled: bool) -> None:
    """Compare the accelerated with the plain model of an edited package, in a process that has not imported davit.

    Writes a checkpoint of the model to ``weights``, and its logits and loss to ``results``.
    """
    sys.path.insert(0, str(folder))
    import torch

    import davit
    from davit.checkpoint import load_checkpoint
    from davit.kernels import conditions
    from tests.conftest import randomise

    assert davit.__file__.startswith(str(folder)), davit.__file__
    torch.set_num_threads(1)
    conditions.MIN_WORK = conditions.MIN_WORK_TO_TRAIN = 0
    model = randomise(davit.create_model("DaViT_nano", **OPTIONS), 0)
    image = torch.randn(2, 3, 64, 52, generator=torch.Generator().manual_seed(1))
    plain = davit.plain(copy.deepcopy(model))

    def step(model):
        torch.manual_seed(3)
        model.train().zero_grad()
        loss = model(image).square().mean()
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters())]

    def logits(model):
        with torch.no_grad():
            return model.eval()(image)

    expected = logits(plain), step(plain)
    names = ["loss", *(name for name, _ in plain.named_parameters())]
    for run in (model, torch.compile(model, backend="aot_eager")) if compiled else (model,):
        torch.testing.assert_close(logits(run), expected[0], rtol=1e-4, atol=1e-5)
        for one, other, name in zip(step(run), expected[1], names, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None and other.grad.any(), name

    torch.save({"state_dict": model.state_dict()}, weights)
    torch.save((expected[0], expected[1][0]), results)
    fresh = davit.create_model("DaViT_nano", **OPTIONS)
    assert load_checkpoint(fresh, weights, head="require").complete
    assert torch.equal(logits(fresh), logits(model))
