"""torch.compile, torch.export, TorchScript and torch.fx see the whole model, and compute what it computes."""

import copy

import pytest
import torch
from torch.export import Dim
from torchvision.models.feature_extraction import create_feature_extractor

from davit import DaViT, DaViTPyramid, accelerate

pytestmark = pytest.mark.filterwarnings("ignore")  # of TorchScript, deprecated by torch and asked for by users
SIZES = [(64, 64), (33, 47), (90, 35), (57, 128)]  # windows of 4 tile the maps of the first alone


def two_stages(cls=DaViT, **options):
    """Options of a model that compiles in half the time."""
    levels = {"out_indices": (0, 1)} if cls is DaViTPyramid else {}
    return {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (2, 4), **levels, **options}


def assert_same(output, expected):
    for one, other in zip(aslist(output), aslist(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def aslist(output):
    return [output] if isinstance(output, torch.Tensor) else list(output)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# --- torch.compile ---


def test_compile_with_dynamic_sizes_compiles_once_without_a_break(either, small, picture):
    options = {} if either is DaViT else {"ffn": False, "cpe_act": True, "overlapped_patch": True}
    model, graphs = small(either, **two_stages(either, **options)), []

    def count(graph_module, _inputs):
        graphs.append(graph_module)
        return graph_module.forward

    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=count, dynamic=True)
    with torch.no_grad():
        for size in SIZES[1:]:
            assert_same(compiled(picture(2, 3, *size)), model(picture(2, 3, *size)))
    assert len(graphs) <= 2


@pytest.mark.parametrize(("cls", "checkpointing"), [(DaViT, False), (DaViTPyramid, True)])
def test_compiled_training_step(cls, checkpointing, small, picture):
    model = small(cls, **two_stages(cls, drop_path_rate=0.0)).train()
    model.set_grad_checkpointing(checkpointing)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for function in (model, compiled):
        sum(level.square().mean() for level in aslist(function(picture()))).backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)


# --- torch.export ---


NAMED = (Dim("batch", min=1, max=64), Dim("height", min=33, max=2048), Dim("width", min=33, max=2048))
AUTOMATIC = (Dim.AUTO, Dim.AUTO, Dim.AUTO)


@pytest.mark.parametrize(
    ("cls", "dims", "example", "options"),
    [
        (DaViT, NAMED, (64, 64), {}),
        (DaViT, AUTOMATIC, (70, 99), {"qkv_bias": False, "ffn": False}),
        (DaViT, NAMED, (64, 70), {"overlapped_patch": True, "cpe_act": True}),
        (DaViTPyramid, NAMED, (64, 64), {}),
    ],
    ids=["named", "automatic", "options", "pyramid"],
)
def test_export_with_dynamic_batch_and_size_saves_and_loads(small, picture, tmp_path, cls, dims, example, options):
    model = small(cls, **two_stages(cls, **options))
    dynamic = ({0: dims[0], 2: dims[1], 3: dims[2]},)
    strict = torch.__version__.startswith("2.11.")  # docs/model.md: it proves free sizes in the strict mode alone
    program = torch.export.export(model, (picture(2, 3, *example),), dynamic_shapes=dynamic, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for batch, size in zip((1, 2, 3, 5), SIZES, strict=True):
            assert_same(program(picture(batch, 3, *size)), model(picture(batch, 3, *size)))


def test_export_with_a_fixed_size_pads_no_more_than_needed(small, picture):
    image = picture(2, 3, 33, 47)
    model = small(**two_stages())
    program = torch.export.export(model, (image,))
    assert_same(program.module()(image), model(image))
    assert not any("unfold" in str(node.target) for node in program.graph.nodes)


# --- TorchScript ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ffn": False, "qkv_bias": False},
        {"cpe_act": True, "overlapped_patch": True, "global_pool": "avgmax"},
    ],
    ids=str,
)
def test_script(small, picture, options):
    model = small(**two_stages(**options))
    scripted = torch.jit.script(model)
    for size in [(64, 64), (33, 47), (1, 1), (7, 80)]:
        assert_same(scripted(picture(2, 3, *size)), model(picture(2, 3, *size)))
    grads = []
    for net in (model, scripted):
        pixels = picture().requires_grad_()
        net(pixels).square().sum().backward()
        grads.append(pixels.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_script_saves_and_loads_and_refuses_the_same_inputs(small, picture, tmp_path):
    model = small(**two_stages())
    torch.jit.script(model).save(tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    assert_same(loaded(picture()), model(picture()))
    with pytest.raises(Exception, match=r"in_chans=3.* 4 "):
        loaded(torch.zeros(1, 4, 32, 32))


@pytest.mark.parametrize("cls", [DaViT, DaViTPyramid])
def test_trace(cls, small, picture):
    """A trace holds for the size it was made with."""
    model, image = small(cls, **two_stages(cls)), picture(2, 3, 33, 47)
    assert_same(torch.jit.trace(model, image)(image), model(image))


# --- torch.fx ---


def test_fx_trace_computes_the_same_at_any_size(either, small, picture):
    """To the last bit: the graph has the operations of the text."""
    model = small(either, accelerated=False)
    graphs = [torch.fx.symbolic_trace(model), torch.fx.symbolic_trace(accelerate(copy.deepcopy(model)))]
    for size in [*SIZES, (1, 1)]:
        for graph in graphs:
            pairs = zip(aslist(graph(picture(2, 3, *size))), aslist(model(picture(2, 3, *size))), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_fx_feature_extraction(small, picture):
    model = small()
    extractor = create_feature_extractor(model, {"main_blocks.1": "second", "norms": "pooled"})
    out = extractor(picture())
    torch.testing.assert_close(out["second"], model.forward_stages(picture())[1])
    features = model.forward_features(picture())
    torch.testing.assert_close(out["pooled"], model.forward_head(features, pre_logits=True))
