"""torchvision and torchmetrics import in a fresh interpreter, and missing operators say their name."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_fresh(code: str) -> Any:
    """Run in a new interpreter with warnings as errors; the JSON that the code prints last."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return json.loads(done.stdout.splitlines()[-1])


def test_models_transforms_and_metrics_work_after_import() -> None:
    result = run_fresh("""
        import json, torch
        from orchestrator.vision import import_torchvision
        torchvision = import_torchvision()
        assert import_torchvision() is torchvision
        from torchvision.transforms import v2
        import torchmetrics.classification
        logits = torchvision.models.resnet18(weights=None, num_classes=7)(torch.zeros(2, 3, 32, 32))
        flipped = v2.RandomHorizontalFlip(p=1.0)(torch.arange(4.0).reshape(1, 2, 2))
        accuracy = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
        accuracy.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 1]))
        print(json.dumps([list(logits.shape), flipped.flatten().tolist(), float(accuracy.compute())]))
    """)
    assert result == [[2, 7], [1, 0, 3, 2], 0.75]


def test_preparing_is_enough_for_a_plain_import_and_imports_nothing_itself() -> None:
    result = run_fresh("""
        import json, sys
        from orchestrator.vision import prepare_torchvision
        prepare_torchvision()
        prepare_torchvision()
        before = "torchvision" in sys.modules
        import torchmetrics.classification
        import torchvision
        print(json.dumps([before, torchvision.ops.nms.__name__]))
    """)
    assert result == [False, "nms"]


def test_importing_the_module_loads_no_torch() -> None:
    assert run_fresh("""
        import sys, orchestrator.vision
        print(int("torch" in sys.modules))
    """) == 0  # fmt: skip


def test_a_missing_operator_says_its_name_both_versions_and_the_mend() -> None:
    result = run_fresh("""
        import importlib.metadata, json, pickle, torch
        from orchestrator.errors import MissingPackage
        from orchestrator.vision import import_torchvision
        torchvision = import_torchvision()
        ops, io = torchvision.ops, torchvision.io
        boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
        image, rois = torch.ones(1, 4, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
        data = torch.zeros(4, dtype=torch.uint8)
        angled = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.5]])
        calls = {
            "nms": lambda: ops.nms(boxes, scores, 0.5),
            "nms ": lambda: ops.batched_nms(boxes, scores, torch.zeros(1, dtype=torch.long), 0.5),
            "nms  ": lambda: torch.ops.torchvision.nms(boxes, scores, 0.5),
            "qnms": lambda: torch.ops.torchvision.qnms(boxes, scores, 0.5),
            "roi_align": lambda: ops.roi_align(image, rois, 2),
            "roi_align ": lambda: ops.RoIAlign(2, 1.0, 1)(image, rois),
            "roi_pool": lambda: ops.roi_pool(image, rois, 2),
            "ps_roi_align": lambda: ops.ps_roi_align(image, rois, 2),
            "ps_roi_pool": lambda: ops.ps_roi_pool(image, rois, 2),
            "deform_conv2d": lambda: ops.deform_conv2d(image, torch.zeros(1, 18, 2, 2), image[..., :3, :3]),
            "box_iou_rotated": lambda: ops.box_iou(angled, angled, fmt="cxcywhr"),
            "decode_jpeg": lambda: io.decode_jpeg(data),
            "decode_image": lambda: io.decode_image(data),
            "encode_png": lambda: io.encode_png(torch.zeros(3, 2, 2, dtype=torch.uint8)),
            "read_image": lambda: io.read_image("a.png"),
        }
        said = {}
        for name, call in calls.items():
            try:
                call()
            except MissingPackage as error:
                said[name] = str(pickle.loads(pickle.dumps(error)))
        plain_box_iou = ops.box_iou(boxes, boxes).item()
        versions = [torch.__version__, importlib.metadata.version("torchvision")]
        loads = [torchvision.extension._has_ops(), io.image._has_image_ops()]
        print(json.dumps([loads, sorted(calls), said, versions, plain_box_iou]))
    """)
    loads, calls, said, versions, plain_box_iou = result
    assert plain_box_iou == 1.0
    if any(loads):
        pytest.skip("the compiled operators of this torchvision load")
    assert sorted(said) == calls
    for name, message in said.items():
        assert f"'{name.strip()}'" in message
        assert all(version in message for version in versions)
        assert "pip install" in message


def test_operators_that_load_are_left_alone() -> None:
    # The stand-in for a torchvision that fits: its library loads, and it finds its operators.
    result = run_fresh("""
        import json, torch
        from orchestrator import vision
        vision._compiled_operators_load = lambda: True
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
        torchvision.extension._has_ops = torchvision.io.image._has_image_ops = lambda: True
        before = [torchvision.ops.nms, torchvision.ops.roi_align, torchvision.io.decode_jpeg]
        vision.import_torchvision()
        after = [torchvision.ops.nms, torchvision.ops.roi_align, torchvision.io.decode_jpeg]
        print(json.dumps([before == after, len(vision._stand_ins)]))
    """)
    assert result == [True, 0]
