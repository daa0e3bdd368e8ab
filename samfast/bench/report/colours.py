"""The charts' colours on white, and the same on black."""

from __future__ import annotations

LIGHT = {
    "paper": "#fefefe",
    "ink": "#1b1f24",
    "muted": "#59626c",
    "grid": "#dfe3e8",
    "own": "#0b6e4f",
    "own_light": "#7fc3a5",
    "rival": "#a4501f",
    "rival_light": "#e0ac84",
    "accuracy": "#2a4d9b",
}
DARK = {
    "paper": "#14171b",
    "ink": "#e8ebee",
    "muted": "#a0a9b3",
    "grid": "#333a42",
    "own": "#3fc08d",
    "own_light": "#1f7053",
    "rival": "#e58a4e",
    "rival_light": "#8a4c24",
    "accuracy": "#8fb0ff",
}


def variables(colours: dict[str, str]) -> str:
    """CSS that gives each colour its value."""
    return " ".join(f"--{name.replace('_', '-')}: {value};" for name, value in colours.items())


def themed(svg: str) -> str:
    """An SVG of the light colours with each one as a CSS variable."""
    for name, value in LIGHT.items():
        svg = svg.replace(value, f"var(--{name.replace('_', '-')}, {value})")
    return svg
