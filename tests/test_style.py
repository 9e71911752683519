"""All figures look alike: sizes of letters, colours, sharpness; what is drawn of few numbers can be seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from davit import style
from davit.data.imagenet import readable_names, without_id
from davit.engine import curves
from davit.engine.calibration import reliability
from davit.engine.report_figures import Tile, draw_confusion, draw_reliability, draw_sheet
from davit.visualize.sheet import Shown, render_sheet


def confusion_figure() -> Figure:
    matrix = np.array([[8, 2, 0], [1, 9, 0]])
    figure = draw_confusion(matrix, ["a", "b"], [0, 1])
    assert isinstance(figure, Figure)
    return figure


def reliability_figure() -> Figure:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.3, 1, 200)
    figure = draw_reliability({"": reliability(confidence, draw.uniform(size=200) < confidence)})
    assert isinstance(figure, Figure)
    return figure


def curves_figure(tmp_path: Path, rows: str = "0,1.5,2.0,0.001\n1,1.2,,0.002\n2,1.0,1.5,0.001\n") -> Figure:
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/summary.csv").write_text(f"epoch,train_loss,eval_loss,lr\n{rows}")
    kept: list[Figure] = []
    bare = Figure.savefig

    def save(self: Figure, *words: Any, **options: Any) -> None:
        kept.append(self)
        bare(self, *words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        curves.draw_curves([tmp_path / "run/summary.csv"], tmp_path / "curves.png")
    return kept[0]


def sheet_figure() -> Figure:
    shown = Shown(Image.new("RGB", (8, 8), "red"), ("0.9",))
    figure = render_sheet([(shown, [shown])], "nearest")
    assert isinstance(figure, Figure)
    return figure


def title_of(figure: Figure) -> Any:
    return vars(figure)["_suptitle"]


def test_letters_have_the_same_sizes_in_all_figures(tmp_path: Path) -> None:
    for figure in (confusion_figure(), reliability_figure(), curves_figure(tmp_path), sheet_figure()):
        assert figure.dpi == style.DPI
        if figure.get_suptitle():
            assert title_of(figure).get_fontsize() == style.TITLE
        for axes in figure.axes:
            if axes.get_title():
                assert axes.title.get_fontsize() == style.TITLE
            if axes.get_ylabel():
                assert axes.yaxis.label.get_fontsize() == style.TEXT
            if legend := axes.get_legend():
                assert {text.get_fontsize() for text in legend.get_texts()} == {style.SMALL}
            sizes = {tick.get_fontsize() for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())}
            assert sizes <= {style.SMALL, style.TEXT}


def test_colours_are_the_palettes(tmp_path: Path) -> None:
    lines = [line for axes in curves_figure(tmp_path).axes for line in axes.get_lines()]
    assert lines and {to_hex(str(line.get_color())) for line in lines} <= set(style.COLOURS)
    channels = [tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in style.COLOURS]
    apart = [sum(abs(a - b) for a, b in zip(p, q, strict=True)) for i, p in enumerate(channels) for q in channels[:i]]
    assert min(apart) > 60


def test_epochs_without_an_evaluation_do_not_break_a_curve(tmp_path: Path) -> None:
    loss = curves_figure(tmp_path).axes[0]
    ends = {tuple(np.asarray(line.get_xdata()).tolist()) for line in loss.get_lines()}
    assert ends == {(0, 1, 2), (0, 2)}
    many = "".join(f"{epoch},1.0,{'0.5' if epoch == 29 else ''},0.001\n" for epoch in range(30))
    last = curves_figure(tmp_path, many).axes[0].get_lines()[-1]
    assert (np.asarray(last.get_xdata()).tolist(), last.get_marker()) == ([29], "o"), "one evaluation is a dot"


def test_formulas_in_names_are_text_and_in_scales_are_formulas(tmp_path: Path) -> None:
    figure = curves_figure(tmp_path)
    scales = [axes.yaxis.get_offset_text() for axes in figure.axes]
    assert any(text.get_text() for text in scales) and all(text.get_parse_math() for text in scales)
    assert figure.get_suptitle() and not title_of(figure).get_parse_math()


def test_sheets_are_drawn_in_the_figures_font() -> None:
    from davit.fonts import pillow_font

    font: Any = pillow_font("a", style.pixels(style.TEXT))
    assert font.getname()[0] == "DejaVu Sans" and font.size == style.pixels(style.TEXT)
    tile = Tile(np.zeros((4, 4, 3), np.float32), "cat", 0, 0.9, False)
    sheet = draw_sheet([("dog", 1, "1 of 2 right", [tile] * 8)], "worst")
    inks = {colour for _, colour in sheet.getcolors(1 << 20) or ()}
    orange = tuple(int(style.ORANGE[at : at + 2], 16) for at in (1, 3, 5))
    assert orange in inks


def test_ids_of_imagenet_are_put_into_words_where_all_names_are_such() -> None:
    ids = ["n01440764", "n13133613"]
    assert [without_id(name) for name in readable_names(ids)] == ["tench", "ear"]
    assert without_id("a screw (n04, steel)") == "a screw (n04, steel)"
    assert readable_names(["n01440764", "n02102040"]) == ("tench (n01440764)", "English springer (n02102040)")
    assert readable_names(["n01440764", "dog"]) == ("n01440764", "dog") and readable_names([]) == ()
    labels = [
        text.get_text()
        for text in draw_confusion(
            np.array([[1, 0, 0], [0, 1, 0]]), readable_names(["n01440764", "n02102040"]), [0, 1]
        )
        .axes[0]
        .get_xticklabels()
    ]
    assert labels == ["tench", "English springer"]


# --- reports ---


def test_nothing_of_a_confusion_matrix_is_cut_off() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for count in (2, 3, 25):
        names = [f"a rather long name of class {number}" for number in range(count)]
        figure = draw_confusion(np.eye(count, count + 1, dtype=int), names, list(range(count)))
        FigureCanvasAgg(figure).draw()
        axes = figure.axes[0]
        for text in (axes.yaxis.label, axes.xaxis.label, axes.title, *axes.get_yticklabels()):
            extent = text.get_window_extent()
            assert extent.x0 >= 0 and extent.y0 >= 0, text.get_text()
            assert extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height, text.get_text()


def test_names_on_a_sheet_stay_beside_and_below_their_images() -> None:
    """However wide their letters are: the columns between the images stay white."""
    wide = "W" * 60
    tile = Tile(np.zeros((4, 4, 3), np.float32), wide, 0, 0.9, True)
    sheet = np.asarray(draw_sheet([(wide, 1, "1 of 2 right", [tile] * 8)], "worst"))
    for left in range(192, 1168, 120):
        assert (sheet[:, left : left + 8] == 255).all(), left


@pytest.mark.parametrize("count", [1, 3, 12])
def test_nothing_of_a_sheet_of_neighbours_is_cut_off_or_covers_another(count: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown = [Shown(Image.new("RGB", (8 + 4 * (n % 3), 8), "red"), ("0.9", f"{'W' * 40}{n}.png")) for n in range(count)]
    figure = render_sheet([(shown[0], shown), (shown[0], shown)], "nearest by the features of some model (cosine)")
    FigureCanvasAgg(figure).draw()
    extents = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    for extent in (*extents, title_of(figure).get_window_extent()):
        assert min(extent.x0, extent.y0) >= 0
        assert extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height
    assert not any(one.overlaps(other) for place, one in enumerate(extents) for other in extents[:place])


# --- curves ---


def several(tmp_path: Path, runs: list[str], rows: str, monkeypatch: pytest.MonkeyPatch) -> Figure:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    files = [tmp_path / name / "summary.csv" for name in runs]
    for file in files:
        file.parent.mkdir()
        file.write_text(rows)
    curves.draw_curves(files, tmp_path / "curves.png")
    return kept[0]


ACCURACIES = "epoch,eval_top1,eval_top5,ema_top1,ema_top5,train_top1\n0,1,2,3,4,5\n1,2,3,4,5,6\n"


def test_each_run_has_a_colour_and_each_curve_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = several(tmp_path, [f"run{number}" for number in range(12)], ACCURACIES, monkeypatch)
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), vars(line)["_unscaled_dash_pattern"]) for line in lines}) == len(lines) == 60


@pytest.mark.parametrize("name", ["a very long name of a run, with all its settings, ", "x"])
def test_the_names_of_runs_are_within_the_figure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = several(tmp_path, [f"{name * 4}{number}" for number in range(5)], ACCURACIES, monkeypatch)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width
    assert len({text.get_text() for text in legend.get_texts()}) == 5


def test_of_one_epoch_the_values_of_both_scales_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = several(tmp_path, ["run"], "epoch,lr,grad_norm\n0,0.001,2.5\n", monkeypatch)
    below, above = (axes.get_lines()[0] for axes in figure.axes)
    assert above.get_markerfacecolor() == "none" and above.get_markersize() > below.get_markersize()


def test_a_log_scale_of_a_few_decades_has_several_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "epoch,grad_norm\n0,30\n1,2\n2,0.9\n"
    axes = several(tmp_path, ["run"], rows, monkeypatch).axes[0]
    low, high = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert axes.get_yscale() == "log" and len(shown) >= 4
    assert [axes.yaxis.get_major_formatter()(tick) for tick in shown] == [f"{tick:g}" for tick in shown]
