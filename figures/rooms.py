"""Draw rooms.svg: the packages and top modules of davit/ on the floors of pyproject.toml, and what imports what.

Both are read, not drawn by hand: the floors from import-linter's contract, the arrows from the imports. An arrow that
follows from others (A to C beside A to B to C) is left out.
"""

from itertools import pairwise

import grimp
import networkx as nx
from importlinter.api import read_configuration
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from figures.style import CHANNEL, FOLDER, INK, OTHER, PLAIN, SPATIAL, arrow, blank_axes, box, canvas

_WIDTH, _FLOOR, _HEIGHT, _GAP = 1.1, 0.62, 0.3, 0.18  # of a room, from floor to floor, of a box, between neighbours
_SWEEPS = 600
_COLOURS = {"model": SPATIAL, "windows": SPATIAL, "pyramid": SPATIAL, "variants": SPATIAL, "kernels": CHANNEL}

Node = str | tuple[str, str, int]  # a room, or the place where an arrow (from, to) passes a floor


def floors() -> list[list[str]]:
    """Read the layers of pyproject.toml from the top down, each a list of rooms."""
    contracts = read_configuration(str(FOLDER.parent / "pyproject.toml"))["contracts_options"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in floor.split("|")] for floor in layers]


def imports() -> nx.DiGraph:
    """Build the graph of which room imports which; davit/__init__.py, which imports what it offers, is left out."""
    modules = grimp.build_graph("davit", cache_dir=None)
    graph = nx.DiGraph()
    graph.add_nodes_from(name.split(".")[1] for name in modules.modules if "." in name)
    for module in modules.modules:
        for other in modules.find_modules_directly_imported_by(module):
            rooms = [name.split(".")[1] for name in (module, other) if "." in name]
            if len(set(rooms)) == 2:
                graph.add_edge(*rooms)
    return graph


def figure() -> Figure:
    """Draw the rooms on their floors, and the imports between them."""
    rows, graph = floors(), nx.transitive_reduction(imports())
    rooms, ways = _with_passages(rows, graph)
    places = _places(*_ordered(rooms, ways), ways)
    width = max(places.values()) + _WIDTH / 2 + 0.3
    height = len(rows) * _FLOOR + 0.1
    drawn = canvas(width, height)
    axes = blank_axes(drawn, width, height)
    level = {node: height - 0.1 - _FLOOR * row - _HEIGHT for row, nodes in enumerate(rooms) for node in nodes}
    for start, end in graph.edges:
        _way(axes, [(places[node], level[node]) for node in ways[start, end]], f"arrow-{start}-{end}")
    for row in rows:
        for room in row:
            colour = _COLOURS.get(room, OTHER if row is rows[-1] else PLAIN)
            box(axes, places[room] - _WIDTH / 2, level[room], _WIDTH, _HEIGHT, room, colour)
            axes.patches[-1].set_gid(f"room-{room}")
    return drawn


def _with_passages(rows: list[list[str]], graph: nx.DiGraph) -> tuple[list[list[Node]], dict[tuple, list[Node]]]:
    """Give an arrow a place on every floor that it passes; returns the floors and each arrow's nodes."""
    floor = {room: number for number, row in enumerate(rows) for room in row}
    filled: list[list[Node]] = [list(row) for row in rows]
    ways = {}
    for start, end in sorted(graph.edges):
        between = [(start, end, number) for number in range(floor[start] + 1, floor[end])]
        for passage in between:
            filled[passage[2]].append(passage)
        ways[start, end] = [start, *between, end]
    return filled, ways


def _ordered(rows: list[list[Node]], ways: dict) -> tuple[list[list[Node]], nx.Graph]:
    """Order each floor by the mean place of its neighbours, down and up; the order with the fewest crossings wins."""
    lines = nx.Graph(pair for way in ways.values() for pair in pairwise(way))
    lines.add_nodes_from(node for row in rows for node in row)
    best, fewest = rows, float("inf")
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        rows = [list(row) for row in rows]
        for number in order:
            beside = rows[number - 1 if down else number + 1]
            place = {node: index for index, node in enumerate(beside)}
            mean = {}
            for index, node in enumerate(rows[number]):
                found = [place[other] for other in lines[node] if other in place]
                mean[node] = sum(found) / len(found) if found else index
            rows[number].sort(key=mean.__getitem__)
        crossings = sum(_crossings(upper, lower, lines) for upper, lower in pairwise(rows))
        if crossings < fewest:
            best, fewest = rows, crossings
    return best, lines


def _crossings(upper: list[Node], lower: list[Node], lines: nx.Graph) -> int:
    place = {node: index for index, node in enumerate(lower)}
    ends = [sorted(place[other] for other in lines[node] if other in place) for node in upper]
    return sum(a > b for index, left in enumerate(ends) for right in ends[index + 1 :] for a in left for b in right)


def _places(rows: list[list[Node]], lines: nx.Graph, ways: dict) -> dict[Node, float]:
    """Give each node a place from left to right: near its neighbours, and beside those of its floor."""

    def room_for(node: Node) -> float:
        return _WIDTH / 2 + _GAP / 2 if isinstance(node, str) else 0.12

    places: dict[Node, float] = {}
    for row in rows:
        left = 0.0
        for node in row:
            places[node] = left + room_for(node)
            left += 2 * room_for(node)
    for _ in range(_SWEEPS):
        for row in (*rows, *reversed(rows)):
            for index, node in enumerate(row):  # as near to its neighbours as those beside it allow
                wish = _mean(places, lines, node)
                if index:
                    wish = max(wish, places[row[index - 1]] + room_for(row[index - 1]) + room_for(node))
                if index < len(row) - 1:
                    wish = min(wish, places[row[index + 1]] - room_for(row[index + 1]) - room_for(node))
                places[node] = wish
    shift = min(place - room_for(node) for node, place in places.items()) - 0.2
    return {node: place - shift for node, place in places.items()}


def _mean(places: dict[Node, float], lines: nx.Graph, node: Node) -> float:
    """The mean place of a node's neighbours; passages of one arrow pull hard, so that it runs straight."""
    pulls = {other: 20 if isinstance(node, tuple) and isinstance(other, tuple) else 1 for other in lines[node]}
    if not pulls:
        return places[node]
    return sum(pull * places[other] for other, pull in pulls.items()) / sum(pulls.values())


def _way(axes, points: list[tuple[float, float]], name: str) -> None:
    """A curve from the foot of a room through its passages to the top of another, with a head."""
    x, y = points[0]
    vertices, codes = [(x, y)], [Curve.MOVETO]
    for place, (to_x, bottom) in enumerate(points[1:], start=2):
        top = bottom + _HEIGHT
        vertices += [(x, (y + top) / 2), (to_x, (y + top) / 2), (to_x, top)]
        codes += [Curve.CURVE4] * 3
        if place < len(points):  # straight on between the boxes of a floor that it passes
            vertices.append((to_x, bottom))
            codes.append(Curve.LINETO)
        x, y = vertices[-1]
    curve = PathPatch(Curve(vertices, codes), facecolor="none", edgecolor=INK, linewidth=0.9)
    curve.set_gid(name)
    axes.add_patch(curve)
    arrow(axes, (x, y + 0.05), (x, y))
