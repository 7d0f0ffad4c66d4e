"""Runs a chain of fake steps as tools/train_stages.py runs the real ones: OUTPUT SECONDS [NAME]."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.recipe.chain import read_states, run_chain
from cityscapes_maskrcnn.recipe.chain_status import format_plan
from cityscapes_maskrcnn.recipe.step import Step
from cityscapes_maskrcnn.utils.tool import run_tool

FAKE_STEP = Path(__file__).with_name("fake_step.py")
COUNTS = {"first": 8, "second": 5, "third": 8}


def steps(output: Path, seconds: str, names: list[str]) -> list[Step]:
    built = []
    parent: dict[str, Path] = {}
    for name in names:
        folder, count = output / name, COUNTS.get(name, 2)
        words = (sys.executable, str(FAKE_STEP), str(folder), str(count), seconds)
        built.append(
            Step(
                name=name,
                folder=folder,
                commands=((*words, *map(str, parent.values())),),
                settings={"count": str(count)},
                needs=parent,
                outputs=("result",),
                data="numbers",
                images=count,
            )
        )
        parent = {f"{name}/result": folder / "result"}
    return built


if __name__ == "__main__":
    output, seconds, *names = sys.argv[1:]
    chain = steps(Path(output), seconds, names or list(COUNTS))

    def main() -> None:
        print(format_plan(chain, read_states(chain)), flush=True)
        run_chain(chain, Path(output), sys.stdout, patience=2)

    sys.exit(run_tool(main))
