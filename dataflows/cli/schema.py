"""``anabranch schema``: an AsyncAPI document of a pipeline, or the JSON Schema of one topic."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from anabranch.dataflows.cli.options import PipelineName
from anabranch.dataflows.telemetry.console import echo


def schema(
    pipeline: PipelineName,
    topic: Annotated[
        str | None,
        typer.Option(
            "--topic",
            metavar="TOPIC",
            help="Only the JSON Schema of this topic's messages; or of events, labels, "
            "predictions, drift, dead-letters, control or rollouts.",
        ),
    ] = None,
) -> None:
    """Print an AsyncAPI 3.0 document of a pipeline's topics, with JSON Schemas of the messages.

    It follows from the declaration alone; no bus is needed. Fields of inputs are where their paths
    lead in a message, inside its envelope.

    Examples:

        anabranch schema fraud.py > asyncapi.json

        anabranch schema fraud.py --topic predictions
    """
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.schemas.asyncapi import asyncapi, topic_schema

    declared = load_pipeline(pipeline)
    written = asyncapi(declared) if topic is None else topic_schema(declared, topic)
    echo(orjson.dumps(written, option=orjson.OPT_INDENT_2).decode())
