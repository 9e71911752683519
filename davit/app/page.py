"""Build the page with Gradio, and serve it: to this machine alone unless asked otherwise, and silent to all others."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..addresses import OwnAddresses, is_loopback, open_port
from ..data import BadImageError
from ..text import install_extra
from .readers import Answer, Reader

log = logging.getLogger(__name__)

_KEPT_SECONDS = 600  # pictures that were dropped are removed after about so long
_WAITING = 16  # pictures in the queue
_SHOWN = 5  # classes
_FONTS = ["system-ui", "sans-serif"]  # of the viewer's machine: nothing is fetched


def answer_file(reader: Reader, file: str | None) -> Answer | str:
    """Ask what is in a file that was dropped; errors come as a sentence, and "" for no file."""
    if not file:
        return ""
    name = Path(file).name
    try:
        return reader.answer(Path(file))
    except BadImageError as error:
        return f"{name} cannot be read: {error.reason}."
    except ValueError as error:
        return f"{name}: {error}"
    except Exception:
        log.exception("%s", name)
        return f"{name}: an error of this program; the log of the server says which."


def build_page(reader: Reader) -> Any:
    """Build the page, as Gradio's `Blocks`.

    Raises:
        ValueError: Gradio is not installed.
    """
    gr = gradio()

    def show(file: str | None) -> tuple[Any, ...]:
        answer = answer_file(reader, file)
        if isinstance(answer, str):
            hidden = gr.update(value=None, visible=False)
            return gr.update(value=answer, visible=bool(answer)), None, hidden, hidden
        return (
            gr.update(value="", visible=False),
            dict(answer.scores) or None,
            gr.update(value=answer.picture, label=answer.caption, visible=True),
            gr.update(value=answer.detail, visible=answer.detail is not None),
        )

    # no button to share: it would upload the picture
    still = {"interactive": False, "visible": False, "format": "png", "buttons": ["fullscreen", "download"]}
    with gr.Blocks(title="DaViT", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        gr.Markdown(f"## {reader.title}")
        with gr.Row():
            with gr.Column(scale=2):
                file = gr.File(label="Drop a picture", elem_id="file")
                message = gr.Textbox(label="Message", visible=False, interactive=False, elem_id="message")
                scores = gr.Label(label="Classes", num_top_classes=_SHOWN, elem_id="scores")
            with gr.Column(scale=3):
                picture = gr.Image(elem_id="picture", **still)
        detail = gr.Image(label="what the model looks at", elem_id="detail", **still)
        file.change(show, file, [message, scores, picture, detail], api_visibility="private")
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
