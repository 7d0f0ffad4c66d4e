"""The steps of the recipe, one per row; facts about a stage are looked up here."""

from __future__ import annotations

from typing import Final, NamedTuple


class _Step(NamedTuple):
    """A row of the table.

    Attributes:
        config: name of its file in the folder of configs.
        parent: the step whose weights it starts from; empty for none.
        title: in tables and charts; empty for a step whose result is no model.
        masks: whether its model predicts masks, which are scored.
    """

    config: str
    parent: str = ""
    title: str = ""
    masks: bool = False


STEPS: Final[dict[str, _Step]] = {
    "stage_0": _Step("stage_0_backbone.yaml", title="0 backbone"),
    "stage_1": _Step("stage_1_heads.yaml", parent="stage_0", title="1 heads", masks=True),
    "anchors": _Step("stage_2_tuned.yaml"),
    "search": _Step("stage_2_search.yaml", parent="stage_1"),
    "stage_2": _Step("stage_2_tuned.yaml", parent="stage_1", title="2 tuned", masks=True),
    "stage_3": _Step("stage_3_refine.yaml", parent="stage_2", title="3 refined", masks=True),
}
# Folder, beside those of the steps, of the pictures that tell most about the last stage.
GALLERY_FOLDER: Final = "gallery"
# The steps that train a model, and their titles.
STAGES: Final = {name: step.title for name, step in STEPS.items() if step.title}
