"""Which options a bare weights file takes, and what is made of it at another size."""

from pathlib import Path

import pytest

from ferryman.errors import UsageError
from ferryman.specs import segmentation_spec, semantic_spec
from ferryman_export.sources import SourceOptions, open_source, resize_spec
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.checkpoints.weights_file import DETR_PREPROCESS, SEMANTIC_PREPROCESS
from ferryman_models.detr import DETRConfig
from ferryman_models.detr_masks import DETRForMasks
from ferryman_models.patch_segmenter import PatchSegmenter
from ferryman_models.resnet import ResNetConfig
from ferryman_models.vit import ViTConfig

from ..models.test_google_npz import google_arrays, hf_vit, write


def test_google_npz_says_itself_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "ViT-B_16.npz", google_arrays(hf_vit()))
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    assert open_source(str(path), SourceOptions(labels=labels)).spec.labels == tuple("abcde")
    for options in ({"arch": "vit_b_16"}, {"head": path}):
        with pytest.raises(UsageError, match="belongs to"):
            open_source(str(path), SourceOptions(**options))  # pyright: ignore[reportArgumentType]


def test_head_of_a_source_that_names_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--head belongs to the bare weights of a DINOv2, got vit-digits"):
        open_source("vit-digits", SourceOptions(head=tmp_path / "head.pth"))


def test_other_sizes() -> None:
    config = DETRConfig(3, ResNetConfig("basic", (1, 1, 1), (8, 8, 8)), dim=32, queries=5)
    spec = segmentation_spec(DETR_PREPROCESS, ("a", "b", "c"), 5, (200, 267), stuff=(2,))
    detr = Checkpoint("x", "0" * 64, "detr", DETRForMasks(config), spec)
    resized = resize_spec(detr, (90, 122))
    assert (resized.outputs[-1].shape, resized.stuff) == (("batch", 5, 23, 31), (2,))

    vit = ViTConfig(image_size=(56, 56), patch=14, dim=16, depth=1, heads=2, hidden=16, classes=0)
    semantic = semantic_spec(SEMANTIC_PREPROCESS, ("a", "b"))
    segmenter = Checkpoint("x", "0" * 64, "vit", PatchSegmenter(vit, 2), semantic)
    assert resize_spec(segmenter, (28, 42)).outputs[0].shape == ("batch", 28, 42)
    with pytest.raises(UsageError, match="can't be exported at 30x42: image of 30x42 is not a multiple of the patch"):
        resize_spec(segmenter, (30, 42))
