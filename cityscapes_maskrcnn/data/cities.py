"""The cities of every split of the official release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# The cities of the recipe's stage 0 stand first, so that a small generated set has them: Bremen is
# a city of train, the others are of train_extra.
CITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "train": (
        "bremen", "aachen", "bochum", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg",
        "hanover", "jena", "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen",
        "ulm", "weimar", "zurich",
    ),
    "val": ("frankfurt", "lindau", "munster"),
    "test": ("berlin", "bielefeld", "bonn", "leverkusen", "mainz", "munich"),
    "train_extra": (
        "augsburg", "dortmund", "dresden", "wuppertal", "erlangen", "bad-honnef", "bamberg",
        "bayreuth", "duisburg", "freiburg", "heidelberg", "heilbronn", "karlsruhe", "konigswinter",
        "konstanz", "mannheim", "muhlheim-ruhr", "nuremberg", "oberhausen", "saarbrucken",
        "schweinfurt", "troisdorf", "wurzburg",
    ),
}  # fmt: skip
