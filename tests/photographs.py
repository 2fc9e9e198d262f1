"""Six photographs out of scikit-image's wheel: real images for tests of geometry and of the interface, of no mask's quality.

    chelsea     a cat, 451x300                         Stefan van der Walt, CC0
    coffee      a cup and a spoon, 600x400             Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0
    astronaut   Eileen Collins, 512x512                NASA, public domain
    rocket      a launch, 640x427, JPEG                SpaceX, public domain
    camera      a man with a tripod, 512x512, gray     Lav Varshney, CC0
    coins       24 coins, 384x303, gray                Brooklyn Museum, no known copyright restrictions

They are read where pip has put them, and not copied. There are no true masks of them, and the demonstration model has never
seen a photograph, so no test says that it segments them well.
"""

import importlib.util
from pathlib import Path

import pytest

SIZES = {
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "astronaut.png": (512, 512),
    "rocket.jpg": (640, 427),
    "camera.png": (512, 512),
    "coins.png": (384, 303),
}
"""File name to width and height."""

GRAY = ("camera.png", "coins.png")


def photograph(name: str) -> Path:
    """The file of a photograph; skips the test where scikit-image is not installed. The package is not imported."""
    found = importlib.util.find_spec("skimage")
    if found is None:
        pytest.skip("scikit-image, whose wheel has the photographs, is not installed: pip install scikit-image")
    return Path(found.origin).parent / "data" / name
