from __future__ import annotations

from collections.abc import Sequence

from cityscapes_maskrcnn.benchmarks.deployment_forms import Form, list_forms


def forms_of(
    scale: tuple[int, int] = (512, 1024),
    sizes: Sequence[int] | None = (),
    also: Sequence[Sequence[str]] = (),
    no_bfloat16: str = "",
) -> list[Form]:
    return list_forms(
        "a.yaml",
        ("MODEL.WEIGHTS", "a.pth"),
        scale=scale,
        num_proposals=1000,
        sizes=sizes,
        proposals=(),
        also=also,
        onnx=(),
        no_bfloat16=no_bfloat16,
    )


def test_further_models_have_the_pairs_of_the_base() -> None:
    base, *others = forms_of(also=[("thin", "b.yaml", "b.pth")])
    (form,) = [form for form in others if form.group == "other model"]
    assert (form.name, form.config_file) == ("PyTorch float32, thin", "b.yaml")
    assert base.opts[:2] == ("MODEL.WEIGHTS", "a.pth")
    assert form.opts == (*base.opts, "MODEL.WEIGHTS", "b.pth")


def test_the_longer_side_changes_as_much() -> None:
    # Half and three quarters of 512; the longer sides are twice as long.
    sizes = [form for form in forms_of(sizes=None) if form.group == "input size"]
    assert [(form.name, form.opts[-4:]) for form in sizes] == [
        ("input 256 px", ("INPUT.MIN_SIZE_TEST", "256", "INPUT.MAX_SIZE_TEST", "512")),
        ("input 384 px", ("INPUT.MIN_SIZE_TEST", "384", "INPUT.MAX_SIZE_TEST", "768")),
    ]


def test_images_that_are_not_resized_have_no_other_sizes() -> None:
    forms = forms_of(scale=(0, 1024), sizes=None)
    assert not [form for form in forms if form.group == "input size"]


def test_bfloat16_is_measured_unless_there_is_a_reason() -> None:
    (form,) = [form for form in forms_of() if form.name == "PyTorch bfloat16"]
    assert (form.opts[-2:], form.missing) == (("TEST.PRECISION", "bfloat16"), "")
    emulated = [form for form in forms_of(no_bfloat16="too slow") if form.missing == "too slow"]
    assert [form.name for form in emulated] == ["PyTorch bfloat16"]
