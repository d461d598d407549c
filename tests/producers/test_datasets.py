"""River's data sets as messages and pipelines: the same rows in the same order as River's own."""

from __future__ import annotations

import math

import msgspec
import pytest
from river import datasets, evaluate, metrics

from anabranch.dataflows.pipelines.datasets import dataset_event, dataset_pipeline
from anabranch.producers.datasets import DATASETS, dataset_messages, dataset_shape
from anabranch.state.errors import InputError


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_rivers_rows(name: str) -> None:
    shape = dataset_shape(name)
    decoder = msgspec.json.Decoder(dataset_event(shape))
    rows = iter(getattr(datasets, name)())
    number, last = 0, 0
    for batch in dataset_messages(name):
        assert not batch.labels.any()
        assert set(batch.keys) == {shape.pipeline.encode()}
        for value, time in zip(batch.values, batch.times.tolist(), strict=True):
            event = decoder.decode(value)
            features, target = next(rows)
            assert event.id == str(number)
            assert event.ts == time >= last
            assert event.target == target
            for feature, (field, _) in shape.fields.items():
                assert getattr(event, field) == features[feature]
            number, last = number + 1, time
    assert number == shape.rows
    assert next(rows, None) is None


@pytest.mark.parametrize("name", DATASETS)
def test_the_pipeline_has_the_numeric_features_in_rivers_order(name: str) -> None:
    pipeline = dataset_pipeline(name.upper())
    features, _ = next(iter(getattr(datasets, name)()))
    assert pipeline.name == name.lower()
    assert len(pipeline.columns) == len(features)
    assert [c.removeprefix("x").replace("_", "") for c in pipeline.columns] == [
        f.replace("-", "").replace("_", "") for f in features
    ]


@pytest.mark.parametrize("name", ["Phishing", "TrumpApproval", "ImageSegments"])
def test_the_pipelines_model_scores_as_in_river(name: str) -> None:
    pipeline, shape = dataset_pipeline(name), dataset_shape(name)
    metric = metrics.MAE() if shape.task == "regression" else metrics.Accuracy()
    want = evaluate.progressive_val_score(
        getattr(datasets, name)(), pipeline.model.clone(), type(metric)()
    )
    model = pipeline.model.clone()
    for batch in dataset_messages(name):
        for value in batch.values:
            event = msgspec.json.decode(value, type=pipeline.event)
            features = {column: float(getattr(event, column)) for column in pipeline.columns}
            predicted = model.predict_one(features)
            if predicted is not None:
                metric.update(event.target, predicted)
            model.learn_one(features, event.target)
    assert math.isclose(metric.get(), want.get(), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Elec2", "'Elec2' would have to be downloaded: choose one of Bananas"),
        ("SolarFlare", "'SolarFlare' has no single target with a numeric feature"),
        ("waterflow", "'WaterFlow' has no single target with a numeric feature"),
        ("Phisching", "River has no data set 'Phisching': choose one of .*Phishing"),
        ("base", "River has no data set 'base'"),
    ],
)
def test_a_data_set_that_can_t_be_used_is_one_sentence(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        dataset_messages(name)
