from __future__ import annotations

import ast
import hashlib
import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, TRAINED, UsedData, used_data
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.checkpoint_origin import origin_of_run
from cityscapes_maskrcnn.engine.solver import build_optimizer
from cityscapes_maskrcnn.utils.errors import InputError


def net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, classes))


class Evil:
    """Unpickling this creates a file: the proof that code was run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.proof,))


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    model, other = net(), net()
    SafeCheckpointer(model, str(tmp_path)).save("model_0000009", iteration=np.int64(9))
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    rest = SafeCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 9
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_weights_alone_are_nothing_to_resume_from(tmp_path: Path) -> None:
    model, seen = net(), (UsedData("a", TRAINED, contents=frozenset({"0" * 12})),)
    checkpointer = SafeCheckpointer(
        model, str(tmp_path), trainer=torch.optim.SGD([model[0].weight])
    )
    checkpointer.save("model_0000004", iteration=4)
    checkpointer.replaced = {"0.bias": torch.full((5,), 9.0)}
    checkpointer.save_weights(
        "model_best", replaced={"0.bias": torch.ones(5)}, history=seen, iteration=5, value=0.5
    )
    checkpointer.save_weights("model_plain")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert checkpointer.saved_iteration == 4
    whole, best, plain = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True)
        for name in ("model_0000004", "model_best", "model_plain")
    )
    assert "trainer" in whole
    assert best.keys() == {"model", SEEN_IMAGES_KEY, "iteration", "value"}
    assert plain.keys() == {"model", SEEN_IMAGES_KEY}
    assert best["model"]["0.bias"].tolist() == [1.0] * 5
    assert torch.equal(best["model"]["0.weight"], model[0].weight)
    assert torch.equal(plain["model"]["0.bias"], model[0].bias)
    assert (len(best[SEEN_IMAGES_KEY]), len(plain[SEEN_IMAGES_KEY])) == (1, 0)


def test_loading_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SafeCheckpointer(net(), str(tmp_path)).save("model")
    with caplog.at_level("INFO"):
        SafeCheckpointer(net()).load(str(tmp_path / "model.pth"))
    lines = [message for message in caplog.messages if "Loading from" in message]
    assert lines == [f"[Checkpointer] Loading from {tmp_path}/model.pth ..."]


# A small file is written when all of it is known, a large one while torch packs it, which gives
# the error a text of its own.
@pytest.mark.parametrize(
    ("classes", "limit", "message"),
    [
        (3, 1000, "cannot be written: File too large"),
        (30_000, 100_000, "the disk is probably full"),
    ],
)
def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    classes: int,
    limit: int,
    message: str,
) -> None:
    checkpointer = SafeCheckpointer(net(classes), str(tmp_path))
    checkpointer.save("model_0000000")
    before = (tmp_path / "model_0000000.pth").read_bytes()
    assert len(before) > limit
    refused = pytest.raises(InputError, match=rf"/model_0000000\.pth: .*{message}")
    with full_disk(limit), refused:
        checkpointer.save("model_0000000", iteration=1)
    assert {path.name for path in tmp_path.iterdir()} == {"last_checkpoint", "model_0000000.pth"}
    assert (tmp_path / "model_0000000.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_loading_runs_no_code(tmp_path: Path, suffix: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"model": net().state_dict(), "extra": Evil(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Evil(proof), "__author__": "somebody"}))
    with pytest.raises(InputError, match=str(path)):
        SafeCheckpointer(net(), allow_pickle=["*"]).load(str(path))
    assert not proof.exists()


def test_the_zoos_pickles_of_arrays_load(tmp_path: Path) -> None:
    model = net()
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    path = tmp_path / "model_final.pkl"
    # Detectron2's zoo files are dictionaries of NumPy arrays in pickle protocol 2 and later.
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "the zoo"}, protocol=2))
    other = net()
    nn.init.zeros_(other[0].weight)
    SafeCheckpointer(other, allow_pickle=[str(tmp_path / "*.pkl")]).load(str(path))
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_wrong_shape_is_refused_unless_it_may_differ(tmp_path: Path) -> None:
    SafeCheckpointer(net(3), str(tmp_path)).save("weights")
    model, path = net(8), str(tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"1\.weight is \(3, 5\) in the file and \(8, 5\) in the"):
        SafeCheckpointer(model).load(path)
    SafeCheckpointer(model, may_differ=["1."]).load(path)
    assert model[1].weight.shape == (8, 5)
    assert torch.equal(model[0].weight, net(3)[0].weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"plain text, not weights", "not a checkpoint"),
        ([1, 2], "holds no tensors"),
        ({"model": {"other.weight": torch.zeros(2)}}, "none of its tensors belongs to this model"),
        # A buffer that fits is no sign of the right network.
        ({"model": {"2.running_mean": torch.zeros(3)}}, "none of its tensors belongs to this"),
    ],
)
def test_what_is_no_checkpoint_gets_one_line(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    model = nn.Sequential(*net(), nn.BatchNorm1d(3))
    with pytest.raises(InputError, match=rf"{path}: .*{message}"):
        SafeCheckpointer(model).load(str(path))


@pytest.mark.parametrize(
    "content",
    [
        3,
        {"model": 3, "__author__": "x"},
        {"model": {"w": 3}},
        {1: np.zeros(3)},
        {"model": {1: np.zeros(3)}, "__author__": "x"},
        {"blobs": 3},
    ],
)
def test_a_pickle_of_something_else_gets_one_line(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=rf"{path}: not a checkpoint: holds no"):
        SafeCheckpointer(net(), allow_pickle=["*"]).load(str(path))


WEIGHT, VARIANCE = "1.weight", "2.running_var"


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (WEIGHT, lambda value: value > 0, "is of type bool, where floats are expected"),
        (WEIGHT, lambda value: value.to(torch.int8), "is of type int8, where floats"),
        (WEIGHT, lambda value: torch.full_like(value, torch.nan), "values that are not finite"),
        (WEIGHT, lambda value: value.double() + 1e300, "values that are not finite"),
        (VARIANCE, lambda value: value - 2, "holds negative variances"),
        (WEIGHT, lambda value: value.sum(), r"is \(\) in the file and \(3, 5\) in the model"),
        (WEIGHT, 0.5, "holds a value of type float, not a tensor"),
        (WEIGHT, "0.5", "holds a value of type str, not a tensor"),
        (WEIGHT, None, "holds a value of type NoneType, not a tensor"),
        (f"{WEIGHT}\x1b[2J", None, r"1\.weight\\x1b\[2J: not a valid tensor name"),
    ],
)
def test_values_that_are_no_weights_are_refused(
    tmp_path: Path, suffix: str, name: str, change: object, message: str
) -> None:
    model = nn.Sequential(*net(), nn.BatchNorm1d(3))
    state = model.state_dict()
    state[name] = change(state[name]) if callable(change) else change
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"model": state}, path)
    else:
        arrays = {
            key: value.numpy() if torch.is_tensor(value) else value for key, value in state.items()
        }
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "the zoo"}))
    with pytest.raises(InputError, match=rf"{path}: .*{message}"):
        SafeCheckpointer(model, allow_pickle=["*"]).load(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.float8_e4m3fn), "is of type float8_e4m3fn; save dense"),
        (lambda value: value.to(torch.complex64), "is of type complex64, where floats"),
        (lambda value: value.to("meta"), "is a meta tensor, which has no values"),
        (lambda value: value.to_sparse(), "is a sparse or nested tensor"),
    ],
)
def test_tensors_of_other_kinds_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    state = net().state_dict()
    torch.save({**state, WEIGHT: change(state[WEIGHT])}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=rf"weights\.pth: 1\.weight {message}"):
        SafeCheckpointer(net()).load(str(tmp_path / "weights.pth"))


def test_weights_of_half_precision_and_counters_load(tmp_path: Path) -> None:
    model, other = (nn.Sequential(*net(), nn.BatchNorm1d(3)) for _ in range(2))
    model[2].num_batches_tracked.fill_(7)
    torch.save(model.bfloat16().state_dict(), tmp_path / "weights.pth")
    SafeCheckpointer(other).load(str(tmp_path / "weights.pth"))
    assert torch.equal(other[0].weight, model[0].weight.float())
    assert other[2].num_batches_tracked == 7


def test_statistics_may_not_be_missing_where_nothing_is_trained(tmp_path: Path) -> None:
    model = nn.Sequential(*net(), nn.BatchNorm1d(3))
    torch.save(dict(model.named_parameters()), tmp_path / "weights.pth")
    SafeCheckpointer(model).load(str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match=r"lacks 2 tensors of 2 \(first 2\.running_mean\)"):
        SafeCheckpointer(model, require_all=True).load(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("catalog://x", "cannot be fetched: model not present in the catalog: x"),
        ("http://127.0.0.1:9/x.pth", "cannot be fetched: .*Connection refused"),
        ("nowhere://x", "cannot be read: .* not found"),
        ("/dev/null", "no such file"),
    ],
)
def test_an_address_without_weights_gets_one_line(
    path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(InputError, match=f"{path}: {message}"):
        SafeCheckpointer(net()).load(path)


def test_files_of_pycls_are_read_safely(tmp_path: Path) -> None:
    path, model = tmp_path / "regnet.pyth", net()
    torch.save({"model_state": net().state_dict(), "epoch": 1}, path)
    nn.init.zeros_(model[0].weight)
    SafeCheckpointer(model).load(str(path))
    assert torch.equal(model[0].weight, net()[0].weight)
    torch.save({"model_state": net().state_dict(), "extra": Evil(tmp_path / "proof")}, path)
    with pytest.raises(InputError, match=r"regnet\.pyth: not a checkpoint that can be loaded"):
        SafeCheckpointer(model).load(str(path))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0bad", b"model_0000099.pth"])
def test_a_damaged_last_checkpoint_gets_one_line(tmp_path: Path, content: bytes) -> None:
    SafeCheckpointer(net(), str(tmp_path)).save("model_0000009")
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=r"last_checkpoint: names .* no such checkpoint"):
        SafeCheckpointer(net(), str(tmp_path)).resume_or_load("", resume=True)


def test_last_checkpoint_leads_to_no_other_run(tmp_path: Path) -> None:
    for run in ("first", "copy"):
        SafeCheckpointer(net(), str(tmp_path / run)).save("model_0000009")
    for name in (tmp_path / "first" / "model_0000009.pth", "../first/model_0000009.pth"):
        (tmp_path / "copy" / "last_checkpoint").write_text(str(name))
        with pytest.raises(InputError, match=r"/model_0000009.pth', and there is no such checkpo"):
            SafeCheckpointer(net(), str(tmp_path / "copy")).resume_or_load("", resume=True)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "stage_1").mkdir()
    for folder in (tmp_path, tmp_path / "stage_1"):
        with pytest.raises(InputError, match=f"^{folder}: a folder; MODEL.WEIGHTS must name a che"):
            SafeCheckpointer(net()).load(str(folder))


class Counter:
    """What a trainer keeps, to the checkpointer."""

    def state_dict(self) -> dict[str, int]:
        return {"iteration": 9}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {"iteration": 9}


@pytest.mark.parametrize(
    "trainer", [None, {"junk": 1}, 3, *({"iteration": each} for each in (-5, "x", None, 2.5))]
)
def test_a_run_goes_on_only_from_the_state_of_a_run(tmp_path: Path, trainer: object) -> None:
    checkpointer = SafeCheckpointer(net(), str(tmp_path), trainer=Counter())
    checkpointer.save("model_0000009")
    checkpointer.resume_or_load("", resume=True)
    content = torch.load(tmp_path / "model_0000009.pth", weights_only=True)
    del content["trainer"]
    torch.save(content | ({} if trainer is None else {"trainer": trainer}), tmp_path / "x.pth")
    (tmp_path / "x.pth").replace(tmp_path / "model_0000009.pth")
    with pytest.raises(InputError, match=r"model_0000009\.pth: holds no state of a training run"):
        checkpointer.resume_or_load("", resume=True)
    # As weights to start from it is as good as any.
    checkpointer.resume_or_load(str(tmp_path / "model_0000009.pth"), resume=False)


def training(folder: Path, optimizer: str, classes: int = 3) -> SafeCheckpointer:
    """A run of one step, or the one in the folder, which must be at iteration 0."""
    model = net(classes)
    options = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.MOMENTUM", "0.9"]
    trainer = SimpleTrainer(model, [], build_optimizer(build_config("", options), model))
    checkpointer = SafeCheckpointer(model, str(folder), may_differ=["1."], trainer=trainer)
    checkpointer.resume_or_load("", resume=True)
    model(torch.ones(1, 4)).sum().backward()
    trainer.optimizer.step()
    return checkpointer


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_resuming_starts_no_layer_anew(tmp_path: Path, optimizer: str) -> None:
    """Moments of 3 classes are not for 30,000: a fused optimizer reads beyond their end."""
    training(tmp_path, optimizer).save("model_0000000")
    message = (
        r"model_0000000\.pth: 1\.weight is \(3, 5\) in the file and \(30000, 5\) in the model; a"
    )
    with pytest.raises(InputError, match=message):
        training(tmp_path, optimizer, classes=30_000)
    training(tmp_path, optimizer)


@pytest.mark.parametrize(
    ("before", "after"), [("Adam", "AdamW"), ("AdamW", "Adam"), ("SGD", "AdamW"), ("AdamW", "SGD")]
)
def test_a_run_is_not_resumed_with_another_optimizer(
    tmp_path: Path, before: str, after: str
) -> None:
    training(tmp_path, before).save("model_0000000")
    with pytest.raises(InputError, match=r"_0000000\.pth: .*(another optimizer|no betas|no mom)"):
        training(tmp_path, after)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["iteration"], -5, "iteration is -5"),
        (["iteration"], "x", "iteration is 'x'"),
        (["optimizer"], None, "no optimizer"),
        (["optimizer"], [], r"optimizer is \[\]"),
        (["optimizer", "param_groups"], 5, "param_groups is 5"),
        (["optimizer", "param_groups", 0], 5, "param_groups is 5"),
        (["optimizer", "param_groups", 0, "lr"], "x", "lr is 'x'"),
        (["optimizer", "param_groups", 0, "lr"], math.nan, "lr is nan"),
        (["optimizer", "param_groups", 0, "betas"], None, "no betas"),
        (["optimizer", "state"], [3], r"state is \[3\]"),
        (["optimizer", "state", 0], 3, "state of a parameter is 3"),
        (["optimizer", "state", 0, "exp_avg"], 3.0, r"exp_avg of .* shape \(5, 4\) is 3\.0"),
        (["optimizer", "state", 0, "exp_avg"], None, r"exp_avg of .* shape \(5, 4\) is None"),
        (["optimizer", "state", 0, "exp_avg"], torch.ones(4, 5), r"shape \(5, 4\) is \(4, 5\)"),
        (["optimizer", "state", 0, "exp_avg_sq"], torch.full((5, 4), math.inf), "not of finite"),
        (["optimizer", "state", 0, "exp_avg"], torch.ones(5, 4, dtype=torch.int64), "not of fin"),
        (["optimizer", "state", 0, "step"], torch.ones(3), r"step of a parameter is tensor\("),
        (["optimizer", "state", 0, "step"], "x", "step of a parameter is 'x'"),
    ],
)
def test_a_state_that_cannot_be_resumed_gets_one_line(
    tmp_path: Path, keys: list[object], value: object, message: str
) -> None:
    training(tmp_path, "AdamW").save("model_0000000")
    path = tmp_path / "model_0000000.pth"
    content = torch.load(path, weights_only=True)
    part = content["trainer"]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    torch.save(content, path)
    with pytest.raises(InputError, match=rf"model_0000000\.pth: .*{message}"):
        training(tmp_path, "AdamW")


def test_hooks_come_and_go_but_must_be_hooks(tmp_path: Path) -> None:
    own = {"iteration": 0, "hooks": {"LRScheduler": {"last_epoch": 3}, "EarlyStopping": {"bad": 0}}}

    class Hooked(Counter):
        def state_dict(self) -> dict[str, object]:
            return own

        def load_state_dict(self, state: dict[str, object]) -> None:
            assert state["iteration"] == 9

    def resume(hooks: object) -> None:
        writer = SafeCheckpointer(net(), str(tmp_path))
        writer.save("model_0000009", trainer={"iteration": 9, "hooks": hooks})
        SafeCheckpointer(net(), str(tmp_path), trainer=Hooked()).resume_or_load("", resume=True)

    resume({"LRScheduler": {"last_epoch": 9}, "Theirs": 3})
    for hooks, message in {
        "5": "hooks is 5",
        "{}": "no LRScheduler",
        "{'LRScheduler': 3}": "LRScheduler is 3",
        "{'LRScheduler': {'last_epoch': 'x'}}": "last_epoch is 'x'",
        "{'LRScheduler': {'last_epoch': 9}, 'EarlyStopping': {}}": "no bad",
    }.items():
        with pytest.raises(InputError, match=message):
            resume(ast.literal_eval(hooks))


def test_without_last_checkpoint_the_newest_whole_one_is_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = SafeCheckpointer(net(), str(tmp_path))
    # The final one of a shorter run that went on; damaged; of no run; the one.
    for name, state in {
        "model_final": {"trainer": {"iteration": 9}},
        "model_0000029": {"trainer": {"iteration": 29}},
        "model_best": {"value": 3.0},
        "model_0000019": {"trainer": {"iteration": 19}},
    }.items():
        checkpointer.save(name, **state)
    damaged = tmp_path / "model_0000029.pth"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True)["trainer"]["iteration"] == 19
    message = "last_checkpoint is missing: continuing from model_0000019.pth, the newest"
    assert message in caplog.text
    for name in ("model_final", "model_0000019"):
        (tmp_path / f"{name}.pth").unlink()
    # Never from 0 over them.
    with pytest.raises(InputError, match=r"no last_checkpoint, and none of them can be resumed"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize("stage", ["stage_0", "coco_staged_1"])
def test_missing_weights_of_a_stage_say_how_they_are_made(tmp_path: Path, stage: str) -> None:
    path = tmp_path / stage / "model_final.pth"
    with pytest.raises(InputError, match=rf"what {stage} ends with: .*OUTPUT_DIR {path.parent}"):
        SafeCheckpointer(net()).load(str(path))


def test_parents_are_handed_down(tmp_path: Path) -> None:
    """Stage 2 from stage 1 from a file of somebody's; resumed, it has the parents that it had."""
    torch.save(net().state_dict(), tmp_path / "zoo.pth")
    expected: list[dict[str, str]] = []
    start = tmp_path / "zoo.pth"
    for stage in ("stage_1", "stage_2"):
        checkpointer = SafeCheckpointer(net(), str(tmp_path / stage), trainer=Counter())
        checkpointer.load(str(start), checkpointables=[])
        digest = hashlib.sha256(start.read_bytes()).hexdigest()
        # Only a checkpoint of this project that says what it has seen is known to be one.
        ours = {"program": "cityscapes_maskrcnn"} if stage == "stage_2" else {}
        expected = [{"file": str(start), "sha256": digest, **ours}, *expected]
        assert checkpointer.parents() == expected
        checkpointer.origin = origin_of_run(
            config="SEED: 1", seed=1, device="cpu", environment={}, parents=checkpointer.parents()
        )
        checkpointer.history = (UsedData("a", "trained", contents=frozenset(["0" * 12])),)
        checkpointer.save("model_final", iteration=9)
        start = tmp_path / stage / "model_final.pth"
    resumed = SafeCheckpointer(net(), str(tmp_path / "stage_2"), trainer=Counter())
    resumed.resume_or_load("", resume=True)
    assert resumed.parents() == expected
    assert SafeCheckpointer(net()).parents() == []


def test_a_file_of_other_classes_is_not_what_a_model_goes_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many, but others, or in another order: every prediction would bear a wrong name."""
    checkpointer = SafeCheckpointer(net(2), str(tmp_path), trainer=Counter())
    checkpointer.origin = origin_of_run(
        config="", seed=1, device="cpu", environment={}, parents=[], classes=["person", "car"]
    )
    checkpointer.save("model_final", iteration=9)
    path = str(tmp_path / "model_final.pth")
    message = (
        f"{path}: predicts person, car, but the classes of the config's datasets are car, person"
    )
    other = ["car", "person"]
    with pytest.raises(InputError, match=f"{message}; name the data or DATASETS.CLASSES"):
        SafeCheckpointer(net(2), require_all=True, classes=other).load(path)
    resumed = SafeCheckpointer(net(2), str(tmp_path), classes=other, trainer=Counter())
    with pytest.raises(InputError, match=message):
        resumed.resume_or_load("", resume=True)
    assert message not in caplog.text
    SafeCheckpointer(net(2), classes=other).load(path)  # to be trained to them
    assert message in caplog.text
    SafeCheckpointer(net(2), require_all=True, classes=["person", "car"]).load(path)


def test_what_the_model_has_seen_is_saved_and_replaced_by_loading(tmp_path: Path) -> None:
    checkpointer = SafeCheckpointer(net(), str(tmp_path))
    (tmp_path / "a.png").touch()
    image = {"file_name": str(tmp_path / "a.png")}
    checkpointer.history = (used_data("train", TRAINED, [image]),)
    checkpointer.save("seen")
    # Other programs keep their losses under the name that this project once used.
    foreign = {"model": net().state_dict(), "history": {"loss": [0.5]}}
    torch.save(foreign, tmp_path / "foreign.pth")
    other = SafeCheckpointer(net())
    other.load(str(tmp_path / "seen.pth"))
    assert other.history == checkpointer.history
    other.load(str(tmp_path / "foreign.pth"))
    assert other.history == ()
