"""Which pixels a polygon, an ellipse or a line marks, pixel by pixel and section by section, in plain Python."""

import math

Ring = list[tuple[float, float]]
NEAR = 1e-7


def on_edge(ring: Ring, x: float, y: float) -> bool:
    for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        share = 0.0 if not length else max(0, min(1, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2))
        if math.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay)) < NEAR:
            return True
    return False


def inside(ring: Ring, x: float, y: float) -> bool:
    odd = False
    for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1], strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            odd = not odd
    return odd or on_edge(ring, x, y)


def centres(ring: Ring, height: int, width: int) -> set[tuple[int, int]]:
    """Returns rows and columns of the pixels whose centre lies in a ring or on it."""
    return {(r, c) for r in range(height) for c in range(width) if inside(ring, c + 0.5, r + 0.5)}


def thin(ring: Ring, height: int, width: int) -> set[tuple[int, int]]:
    """Returns the pixels of stretches of rows and columns that hold no centre; no corner may lie on such a line."""
    found = set()
    for turned in (False, True):
        own = [(y, x) for x, y in ring] if turned else ring
        rows, columns = (width, height) if turned else (height, width)
        for row in range(rows):
            y = row + 0.5
            cuts = sorted(
                ax + (y - ay) / (by - ay) * (bx - ax)
                for (ax, ay), (bx, by) in zip(own, own[1:] + own[:1], strict=True)
                if (ay > y) != (by > y)
            )
            for start, end in zip(cuts[::2], cuts[1::2], strict=True):
                if math.ceil(start - 0.5) > math.floor(end - 0.5):
                    column = math.floor((start + end) / 2)
                    if 0 <= column < columns:
                        found.add((column, row) if turned else (row, column))
    return found


def ellipse(x: float, y: float, a: float, b: float, angle: float, height: int, width: int) -> set[tuple[int, int]]:
    """Returns the pixels whose centre lies in an ellipse that is turned clockwise, as one sees it, by degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    found = set()
    for r in range(height):
        for c in range(width):
            dx, dy = c + 0.5 - x, r + 0.5 - y
            along, across = dx * cos + dy * sin, dy * cos - dx * sin
            if (along / a) ** 2 + (across / b) ** 2 <= 1:
                found.add((r, c))
    return found


def line(points: Ring, line_width: float, height: int, width: int) -> set[tuple[int, int]]:
    """Returns the pixels whose centre lies within half of a width of a line."""
    found = set()
    for r in range(height):
        for c in range(width):
            for (ax, ay), (bx, by) in zip(points, points[1:] or points, strict=False):
                length = math.hypot(bx - ax, by - ay)
                share = ((c + 0.5 - ax) * (bx - ax) + (r + 0.5 - ay) * (by - ay)) / (length**2 or 1)
                share = max(0, min(1, share))
                if math.hypot(c + 0.5 - ax - share * (bx - ax), r + 0.5 - ay - share * (by - ay)) <= line_width / 2:
                    found.add((r, c))
    return found
