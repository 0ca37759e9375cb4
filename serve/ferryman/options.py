"""Arguments and options that several subcommands of `ferryman` share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: NAME/VERSION, or NAME for its newest.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="JPEG, PNG, WebP or BMP files.")]
OptionalBundle = Annotated[Path | None, typer.Option("--bundle", help="Answer in this process, with this bundle.")]
Address = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ask the server there; needs --model.")]
Model = Annotated[str | None, typer.Option(metavar="NAME[/VERSION]", help="The server's model.")]
TargetName = Annotated[str | None, typer.Option("--target", help="The variant, by default the bundle's first.")]
ALL = "all"  # of a bundle's targets
TargetNames = Annotated[list[str] | None, typer.Option("--target", help="Of several variants this one; repeatable.")]
Certificates = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of certificates, by default each bundle's; for read-only storage."),
]
AccuracyPlace = Annotated[
    Path | None,
    typer.Option(
        "--accuracy",
        metavar="DIR",
        help="Count right answers too: pictures in a folder a class, or COCO's annotations.",
    ),
]
Draw = Annotated[
    Path | None,
    typer.Option(metavar="OUT.png", help="Draw the answer; a folder when there are several images."),
]
Explain = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT.png",
        help="Draw where the model looked, of models exported with --explain; a folder when there are several images.",
    ),
]
SourceName = Annotated[
    str,
    typer.Argument(
        help="An embedded name, a Ferryman checkpoint, a folder in Hugging Face or timm layout, a weights file with "
        "--arch, an exported program with --spec, or a model on the Hugging Face hub as owner/name."
    ),
]
Arch = Annotated[
    str | None, typer.Option(help="What a bare weights file holds, such as dinov2_vits14 or detr_resnet50.")
]
Labels = Annotated[Path | None, typer.Option(help="Text file with its labels, one a line.")]
Head = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Linear head of a DINOv2: of classes, or of segmentation.")
]
Adapter = Annotated[Path | None, typer.Option(metavar="DIR", help="LoRA adapter of peft to merge into it.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on a hub.")]
Spec = Annotated[
    Path | None, typer.Option(help="JSON file with task, labels and preprocess of an exported program (.pt2).")
]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads of a model; by default all.")]
Streams = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Inferences side by side that share the threads, where the runtime has such."),
]
HintName = Annotated[
    Literal["latency", "throughput"] | None, typer.Option("--hint", help="What to be good at; by default latency.")
]


class Via(StrEnum):
    """How a model is asked. An enumeration, as Typer takes no list of literals."""

    TYPED = "typed"
    INFER = "infer"
    TENSORS = "tensors"
