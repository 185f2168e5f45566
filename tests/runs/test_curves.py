"""The command `metrics`: curves of runs in one picture, and their last values."""

import numpy as np
import pytest
from PIL import Image

from bert_jax import metrics
from bert_jax.cli import UserError
from bert_jax.runs import curves, telemetry


def test_curves_of_two_runs_are_drawn(tmp_path):
    for name, level in (("a", 5.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        writer = telemetry.MetricWriter(tmp_path / name)
        for step in range(1, 20):
            writer.write(step, {"mlm_loss": level / step, "nsp_loss": 0.7, "nsp_accuracy": 0.5})
        accuracies = {f"eval_mlm_accuracy_{part}": 0.5 for part in ("mask", "rank_1_100")}
        writer.write(20, {"eval_mlm_loss": level / 20, "eval_other_mlm_loss": 2.0, **accuracies})
        writer.close()
    runs = [str(tmp_path / name) for name in "ab"]
    metrics.main([*runs, f"--plot={tmp_path / 'curves.png'}"])
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).reshape(-1, 3)
    for color in ([31, 119, 180], [255, 127, 14]):  # matplotlib's first two colours, the dots
        assert (pixels == color).all(1).any()


def test_unknown_kind_of_picture_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no picture ends in \.foo; expected .*png"):
        metrics.main([str(tmp_path), f"--plot={tmp_path / 'x.foo'}"])


def test_smoothing_is_a_running_mean():
    assert curves.smoothed([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


def test_run_without_metrics_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        metrics.main([str(tmp_path)])


def test_last_values_are_printed_and_returned(tmp_path, capsys):
    writer = telemetry.MetricWriter(tmp_path)
    writer.write(1, {"loss": 2.0, "learning_rate": 0.5})
    writer.write(2, {"loss": float("nan")})
    writer.close()
    assert metrics.run(str(tmp_path)) == {"step": 2, "loss": None, "learning_rate": 0.5}
    assert capsys.readouterr().out == ""
    metrics.main([str(tmp_path)])
    assert "learning_rate  0.5\n" in capsys.readouterr().out


def test_a_fine_tuning_has_panels_of_its_own_beside_a_pretraining(tmp_path, capsys):
    for name, logged in (
        (
            "tuned",
            {"loss": 0.7, "learning_rate": 1e-4, "eval_accuracy": 0.8, "eval_f1_of_a b": 0.5},
        ),
        ("pretrained", {"loss": 7.0, "mlm_loss": 6.0, "eval_mlm_loss": 6.1, "data_wait": 0.0}),
    ):
        (tmp_path / name).mkdir()
        writer = telemetry.MetricWriter(tmp_path / name)
        for step in (1, 2):
            writer.write(step, logged)
        writer.close()
    runs = [str(tmp_path / name) for name in ("tuned", "pretrained")]
    metrics.main([*runs, f"--plot={tmp_path / 'x.png'}"])
    assert capsys.readouterr().out == (
        f"wrote {tmp_path / 'x.png'}\n  training loss\n  metrics of the validation file\n"
        "  F1 by label, on the validation file\n  learning rate\n"
        "  MLM loss (nats per masked token)\n"
    )
    assert curves.panels({"loss", "eval_accuracy", "step", "epoch"}) == {
        "training loss": ("loss", {}),
        "metrics of the validation file": ("", {"eval_accuracy": "accuracy"}),
    }
    names = {"mlm_loss", "eval_mlm_loss", "eval_b_mlm_loss"}
    assert curves.panels(names | {"loss", "learning_rate", "eval_loss"}) == {
        "MLM loss (nats per masked token)": (
            "mlm_loss",
            {"eval_b_mlm_loss": "held-out b", "eval_mlm_loss": "held-out"},
        )
    }


def test_a_run_with_nothing_to_draw_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    writer = telemetry.MetricWriter(tmp_path / "run")
    writer.write(1, {"data_wait": 0.5})
    writer.close()
    with pytest.raises(UserError, match=r"run has no metrics to draw: expected losses"):
        metrics.main([str(tmp_path / "run"), f"--plot={tmp_path / 'x.png'}"])
    assert not (tmp_path / "x.png").exists()
