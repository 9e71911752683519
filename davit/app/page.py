"""Build the page with Gradio, and serve it: to this machine alone unless asked otherwise, and silent to all others."""

from __future__ import annotations

import base64
import importlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from ..addresses import OwnAddresses, is_loopback, open_port
from ..data import BadImageError, load_rgb
from ..files import write_bytes, write_csv
from ..parsing.results import as_json
from ..text import as_line, as_utf8, install_extra
from ..visualize.figure import MapRow
from .readers import Answer, Found, Reader

log = logging.getLogger(__name__)

_KEPT_SECONDS = 600  # images that were dropped are removed after about so long
_WAITING = 16  # images in the queue
_SHOWN = 5  # classes
_MOST_AT_ONCE = 16  # images of one drop
_LISTED = 2000  # classes
_ASK = f"Drop images, up to {_MOST_AT_ONCE} at once, to see what the model finds in each."
_THUMBNAIL = 640  # pixels
_FONTS = ["system-ui", "sans-serif"]  # of the viewer's machine: nothing is fetched


def answer_file(reader: Reader, file: str | None) -> Answer | str:
    """Ask what is in a file that was dropped; errors come as a sentence, and "" for no file."""
    return _told(reader.answer, file) if file else ""


def _told(ask: Callable[[Path], Any], file: str) -> Any:
    """Ask a reader about a file; errors come as a sentence."""
    name = as_line(Path(file).name)
    try:
        return ask(Path(file))
    except BadImageError as error:
        return f"{name} cannot be read: {error.reason}."
    except ValueError as error:
        return f"{name}: {error}"
    except Exception:
        log.exception("%s", name)
        return f"{name}: an error of this program; the log of the server says which."


def results_of(reader: Reader, files: Sequence[str], first: Found | str | None = None) -> list[dict[str, Any]]:
    """Say what is in each file, for the table and the downloads: its name, and what was found or an error.

    Args:
        first: what is known of the first file already.
    """
    results: list[dict[str, Any]] = []
    for place, file in enumerate(files):
        found = first if place == 0 and first is not None else _told(reader.find, file)
        key = "error" if isinstance(found, str) else reader.entries
        results.append({"file": as_utf8(Path(file).name), key: found})
    return results


def as_rows(results: Sequence[dict[str, Any]], number: str) -> list[dict[str, Any]]:
    """Turn results into rows of a table, one for each image and class, or object; without the masks of objects.

    Args:
        number: what stands beside a class, a key of what was found.
    """
    rows = []
    for result in results:
        found = result.get("classes", result.get("objects")) or [{"class": "", number: ""}]
        for rank, one in enumerate(found, start=1):
            row = {"file": result["file"], "rank": rank if one["class"] else "", **one}
            row.pop("mask", None)
            for name, value in zip(("x1", "y1", "x2", "y2"), row.pop("box", ()), strict=False):
                row[name] = value
            rows.append({**row, "error": result.get("error", "")})
    return rows


def _write_downloads(results: Sequence[dict[str, Any]], number: str) -> tuple[str, str]:
    """Write results.csv and results.json where Gradio keeps its files, and name them."""
    root = os.environ.get("GRADIO_TEMP_DIR")
    folder = Path(tempfile.mkdtemp(prefix="results-", dir=root if root and Path(root).is_dir() else None))
    write_csv(folder / "results.csv", as_rows(results, number))
    write_bytes(folder / "results.json", as_json(results).encode())
    return str(folder / "results.csv"), str(folder / "results.json")


def _text(gr: Any, text: str) -> Any:
    """Show a text, or nothing in its place."""
    return gr.update(value=text, visible=bool(text))


def _alert(text: str) -> str:
    """Write a message as one that screen readers say at once."""
    return f'<p role="alert">{escape(text)}</p>' if text else ""


def _thumbnail(file: str) -> Image.Image | None:
    try:
        picture = load_rgb(Path(file))
    except ValueError:  # of other bands; what the model sees of it is beside
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture


def scores_html(found: Found, number: str) -> str:
    """List the first classes with a bar for each, the first in larger letters; of several objects of one the best.

    Args:
        number: what stands beside a class, a key of what was found.
    """
    numbers: dict[str, float] = {}
    for one in found:
        numbers[one["class"]] = max(one[number], numbers.get(one["class"], 0.0))
    lines = [
        f"<li><span>{escape(as_line(name))}</span><span>{value:.1%}</span>"
        f'<div class="bar" style="width: {100 * min(max(value, 0.0), 1.0):.2f}%"></div></li>'
        for name, value in sorted(numbers.items(), key=lambda item: -item[1])[:_SHOWN]
    ]
    return f'<ol aria-label="classes and their {number}s">{"".join(lines)}</ol>' if lines else ""


def maps_html(rows: Sequence[MapRow]) -> str:
    """Lay maps out under the title of their row, each with its own title and the sentence on how it is read."""
    parts = []
    for row in rows:
        title = escape(row.title[:1].upper() + row.title[1:])
        parts.append(f'<details open><summary>{title}</summary><div class="maps-row">')
        for one in row.maps:
            title, how = escape(one.title), escape(one.how)
            parts.append(
                f'<figure><img src="{_data_url(one.image)}" alt="{title}"><figcaption><b>{title}</b> {how}'
                "</figcaption></figure>"
            )
        parts.append("</div></details>")
    return "".join(parts)


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _known(classes: Sequence[str]) -> str:
    return "\n".join(f"{index}  {as_line(name)}" for index, name in enumerate(classes[:_LISTED])) + (
        f"\n... and {len(classes) - _LISTED:,} more" if len(classes) > _LISTED else ""
    )


def build_page(reader: Reader) -> Any:
    """Build the page, as Gradio's `Blocks`.

    Raises:
        ValueError: Gradio is not installed.
    """
    gr = gradio()

    def show(file: str | None, answer: Answer | str, error: str = "") -> list[Any]:
        """Show one image: message, the image as given, scores, what was found, how to read it, and the maps."""
        hidden = gr.update(value=None, visible=False)
        if isinstance(answer, str):
            said = " ".join(filter(None, (answer, error)))
            return [_text(gr, _alert(said)), hidden, _text(gr, ""), hidden, _text(gr, ""), _text(gr, "")]
        name = as_line(Path(file or "").name)
        given = _thumbnail(file or "")
        found = f"{name}: {answer.caption}"
        return [
            _text(gr, _alert(error)),
            gr.update(value=given, label=name, alt_text=name, visible=given is not None),
            _text(gr, scores_html(answer.found, reader.number)),
            gr.update(value=answer.picture, label=found, alt_text=found, visible=True),
            _text(gr, answer.how),
            _text(gr, maps_html(answer.maps)),
        ]

    def take(files: list[str] | None) -> list[Any]:
        """Answer all images, and show the first."""
        hidden = gr.update(value=None, visible=False)
        if not files:
            return [gr.update(choices=[], value=None, visible=False), hidden, hidden, hidden, *show(None, "")]
        left_out = f"The first {_MOST_AT_ONCE} of {len(files)} images are answered." * (len(files) > _MOST_AT_ONCE)
        files = files[:_MOST_AT_ONCE]
        answer = answer_file(reader, files[0])
        results = results_of(reader, files, answer if isinstance(answer, str) else answer.found)
        csv_file, json_file = _write_downloads(results, reader.number)
        choices = [(f"{place + 1}. {as_line(Path(file).name)}", place) for place, file in enumerate(files)]
        several = len(files) > 1
        lines = []
        for result in results:
            first = (result.get(reader.entries) or [{}])[0]
            number = f"{first[reader.number]:.1%}" if first else ""
            lines.append([result["file"], result.get("error") or first.get("class", "nothing found"), number])
        return [
            gr.update(choices=choices, value=0, visible=several),
            gr.update(value=lines, visible=several),
            gr.update(value=csv_file, visible=True),
            gr.update(value=json_file, visible=True),
            *show(files[0], answer, left_out),
        ]

    def pick(files: list[str] | None, place: Any) -> list[Any]:
        """Show another of the images: by its number, as a path could be any file of this machine."""
        is_one = isinstance(place, int) and 0 <= place < min(len(files or ()), _MOST_AT_ONCE)
        file = (files or [])[place] if is_one else None
        return show(file, answer_file(reader, file))

    def pick_row(files: list[str] | None, chosen: Any) -> list[Any]:
        """Show the image whose row of the table was chosen."""
        place = chosen.index[0] if isinstance(chosen.index, list | tuple) and chosen.index else None
        if not files:  # taken away meanwhile
            return [gr.skip()] * (1 + len(shown))
        return [place, *pick(files, place)]

    pick_row.__annotations__["chosen"] = gr.SelectData  # by which Gradio knows that this is the event

    # no button to share: it would upload the image
    still = {"interactive": False, "visible": False, "format": "png", "buttons": ["fullscreen", "download"]}
    with gr.Blocks(title="DaViT", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        gr.Markdown(f"# {reader.title}\n{_ASK}")
        if reader.classes:
            with gr.Accordion(f"The {len(reader.classes):,} classes it knows", open=False, elem_id="classes"):
                known = {"show_label": False, "lines": 3, "max_lines": 12, "interactive": False}
                gr.Textbox(_known(reader.classes), label="The classes", **known)
        with gr.Row():
            with gr.Column(scale=2, min_width=280, elem_id="asked"):
                file = gr.File(label="Drop images", file_count="multiple", height=180, elem_id="file")
                which = gr.Dropdown(label="Image", visible=False, interactive=True, elem_id="which")
                message = gr.HTML(visible=False, elem_id="message")
                given = gr.Image(elem_id="given", height=240, **{**still, "buttons": ["fullscreen"]})
                scores = gr.HTML(visible=False, elem_id="scores")
            with gr.Column(scale=3, min_width=280):
                table = gr.Dataframe(
                    headers=["file", reader.first, reader.number],
                    column_widths=["38%", "42%", "20%"],
                    max_height=1000,
                    visible=False,
                    interactive=False,
                    wrap=True,
                    elem_id="table",
                )
                with gr.Row():
                    as_csv = gr.DownloadButton("Results as csv", visible=False, size="sm", elem_id="csv")
                    as_json_file = gr.DownloadButton("Results as json", visible=False, size="sm", elem_id="json")
                picture = gr.Image(elem_id="picture", **still)
                how = gr.Markdown(visible=False, elem_id="how")
                maps = gr.HTML(visible=False, elem_id="maps")
        gr.Markdown(reader.programs)
        shown = [message, given, scores, picture, how, maps]
        file.change(take, file, [which, table, as_csv, as_json_file, *shown], api_visibility="private")
        which.input(pick, [file, which], shown, api_visibility="private")
        table.select(pick_row, file, [which, *shown], api_visibility="private")
    page.queue(max_size=_WAITING, api_open=False)
    return page


def serve(
    page: Any, host: str, port: int, max_megabytes: int, block: bool, *, folder: Path, also_at: Sequence[str] = ()
) -> str:
    """Serve a page of `build_page` to those who ask for it by its own address, and return that.

    Args:
        port: 0 takes a free one.
        max_megabytes: files larger than that are refused before they are stored.
        block: return only when the server ends.
        folder: where Gradio keeps uploads, of which the oldest make room for new ones.
        also_at: other addresses by which browsers reach it, through a proxy or a tunnel.

    Raises:
        ValueError: the port is taken, or the host is not of this machine.
    """
    gr = gradio()
    from starlette.middleware import Middleware  # comes with Gradio

    from .guard import Guard, malformed, unknown

    with open_port(host, port) as free:
        port = int(free.getsockname()[1])
    largest = max_megabytes * 1024 * 1024
    guard = Middleware(
        Guard,
        own=OwnAddresses(host, port, also_at),
        folder=folder,
        largest=largest,
        sessions=page._queue.pending_messages_per_session,
    )
    if not is_loopback(host):
        log.warning("%s can be reached by other machines, and the page asks nobody for a password", host)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        app_kwargs={
            "middleware": [guard],
            "exception_handlers": {LookupError: unknown, TypeError: malformed, ValueError: malformed},
        },
        max_file_size=largest,
        css=resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"),
        theme=gr.themes.Default(font=_FONTS, font_mono=["monospace"]),
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    # Gradio has put a layer before ours, which answers requests of other origins that ask what they may do.
    page.app.user_middleware.remove(guard)
    page.app.user_middleware.insert(0, guard)
    page.app.middleware_stack = page.app.build_middleware_stack()
    log.info("the page is at %s (Ctrl-C ends it)", address)
    if block:
        page.block_thread()
    return str(address)


def gradio() -> Any:
    """Import Gradio, after telling it to report nothing to anyone."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        remedy = install_extra("app")
        raise ValueError(f"the page needs Gradio, which is not installed ({error}): {remedy}") from error
