from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from cityscapes_maskrcnn.visualization.style import About
from cityscapes_maskrcnn.visualization.trade_chart import TradePoint, plot_trade, undominated

POINTS = [
    TradePoint("PyTorch float32 (1024 px, 1000 proposals)", "PyTorch", 36.4, 3850, 176, 2900),
    TradePoint("input 512 px", "input size", 29.1, 1100, 176, 1500),
    TradePoint("ONNX Runtime int8, int8", "ONNX Runtime", 36.1, 2100, 45.1, 1400),
    TradePoint("ONNX Runtime float32, onnx", "ONNX Runtime", 36.4, 3700, 176, 1800),
]


def test_every_point_is_numbered_and_its_values_are_listed(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None]
) -> None:
    about = About(dataset="cityscapes_instance_val", num_images=500, model="Xeon, 2 threads")
    missing = ["PyTorch float16", "PyTorch float32, compiled"]
    plot_trade(tmp_path / "trade.png", POINTS, missing=missing, about=about)
    (figure,) = figures
    assert_readable(figure)
    texts = [text.get_text() for text in figure.findobj(Text)]
    for value in ("ONNX Runtime int8, int8", "36.1", "2,100", "45.1", "1,400"):
        assert value in texts
    assert any(
        "Not measured: PyTorch float16; PyTorch float32, compiled." in each for each in texts
    )
    labels = [[text.get_text() for text in axis.texts] for axis in figure.axes[:3]]
    # The first and the last need 4 % of the axis less time than each other; their files are equal.
    assert labels == [["2", "3", "4, 1"], ["2", "3", "1, 4"], ["1", "2", "3", "4"]]


def test_long_names_end_before_the_values(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None]
) -> None:
    name = "PyTorch float32, pruned30 (512/1024 px, 300 proposals)"
    points = [*POINTS, TradePoint(name, "other model", 30.1, 2500, 85.1, 1800)]
    plot_trade(tmp_path / "trade.png", points)
    assert_readable(figures[0])
    texts = {text.get_text(): text.get_window_extent() for text in figures[0].axes[3].texts}
    assert texts[name].x1 < texts["30.1"].x0


def test_one_point(tmp_path: Path, figures: list[Figure]) -> None:
    plot_trade(tmp_path / "trade.png", [TradePoint("int8", "ONNX Runtime", 0.0, 1, 1, 1)])
    low, high = figures[0].axes[0].get_ylim()
    assert low <= 0 < high


def test_undominated_forms_rise_in_ap_with_cost() -> None:
    costs = np.array([4.0, 1.0, 2.0, 3.0, 1.0, 4.0])
    ap = np.array([30.0, 10.0, 25.0, 24.0, 12.0, 31.0])
    # 3 costs more than 2 and finds less; 1 costs what 4 costs, 0 what 5 costs.
    assert undominated(costs, ap) == [4, 2, 5]
