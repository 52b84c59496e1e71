"""Self-supervised learning from the command line and from Python.

The names below are the public interface. They are resolved when first used, so that `sslkit --help` stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslkit.data.source import Source as Source
    from sslkit.digits import demo as demo
    from sslkit.encoders import Encoder as Encoder
    from sslkit.encoders import build_encoder as build_encoder
    from sslkit.encoders import concat as concat
    from sslkit.engine.checkpoint import load as load
    from sslkit.engine.checkpoint import read_model as read_model
    from sslkit.engine.forecast import plan_run as plan_run
    from sslkit.engine.pretrain import pretrain as pretrain
    from sslkit.engine.preview import preview as preview
    from sslkit.errors import RunFailed as RunFailed
    from sslkit.errors import SslkitError as SslkitError
    from sslkit.evaluate.compare import compare as compare
    from sslkit.evaluate.embed import embed as embed
    from sslkit.evaluate.embed import map_features as map_features
    from sslkit.evaluate.everything import evaluate_all as evaluate_all
    from sslkit.evaluate.finetune import finetune as finetune
    from sslkit.evaluate.knn import knn as knn
    from sslkit.evaluate.neighbors import neighbors as neighbors
    from sslkit.evaluate.predict import predict as predict
    from sslkit.evaluate.probe import probe as probe
    from sslkit.evaluate.retrieval import retrieval as retrieval
    from sslkit.evaluate.words import words as words
    from sslkit.evaluate.zeroshot import zeroshot as zeroshot
    from sslkit.exports import export as export
    from sslkit.report.html import write_report as write_report
    from sslkit.specs import CompareSpec as CompareSpec
    from sslkit.specs import DemoSpec as DemoSpec
    from sslkit.specs import EmbedSpec as EmbedSpec
    from sslkit.specs import EvaluateSpec as EvaluateSpec
    from sslkit.specs import ExportSpec as ExportSpec
    from sslkit.specs import FinetuneSpec as FinetuneSpec
    from sslkit.specs import KnnSpec as KnnSpec
    from sslkit.specs import MapSpec as MapSpec
    from sslkit.specs import NeighborsSpec as NeighborsSpec
    from sslkit.specs import NewTaskSpec as NewTaskSpec
    from sslkit.specs import PredictSpec as PredictSpec
    from sslkit.specs import PretrainSpec as PretrainSpec
    from sslkit.specs import PreviewSpec as PreviewSpec
    from sslkit.specs import ProbeSpec as ProbeSpec
    from sslkit.specs import ReportSpec as ReportSpec
    from sslkit.specs import RetrievalSpec as RetrievalSpec
    from sslkit.specs import TaskOptions as TaskOptions
    from sslkit.specs import WordsSpec as WordsSpec
    from sslkit.specs import ZeroshotSpec as ZeroshotSpec
    from sslkit.task import Batch as Batch
    from sslkit.task import Clock as Clock
    from sslkit.task import DataInfo as DataInfo
    from sslkit.task import EncoderBuilder as EncoderBuilder
    from sslkit.task import PretextTask as PretextTask
    from sslkit.task import Run as Run
    from sslkit.template import new_task as new_task

_WHERE = {
    "PretextTask": "sslkit.task",
    "Batch": "sslkit.task",
    "Clock": "sslkit.task",
    "DataInfo": "sslkit.task",
    "EncoderBuilder": "sslkit.task",
    "Run": "sslkit.task",
    "TaskOptions": "sslkit.specs",
    "PretrainSpec": "sslkit.specs",
    "PreviewSpec": "sslkit.specs",
    "KnnSpec": "sslkit.specs",
    "ProbeSpec": "sslkit.specs",
    "NeighborsSpec": "sslkit.specs",
    "FinetuneSpec": "sslkit.specs",
    "EmbedSpec": "sslkit.specs",
    "PredictSpec": "sslkit.specs",
    "MapSpec": "sslkit.specs",
    "EvaluateSpec": "sslkit.specs",
    "RetrievalSpec": "sslkit.specs",
    "WordsSpec": "sslkit.specs",
    "ZeroshotSpec": "sslkit.specs",
    "ExportSpec": "sslkit.specs",
    "ReportSpec": "sslkit.specs",
    "CompareSpec": "sslkit.specs",
    "NewTaskSpec": "sslkit.specs",
    "DemoSpec": "sslkit.specs",
    "pretrain": "sslkit.engine.pretrain",
    "preview": "sslkit.engine.preview",
    "plan_run": "sslkit.engine.forecast",
    "knn": "sslkit.evaluate.knn",
    "probe": "sslkit.evaluate.probe",
    "predict": "sslkit.evaluate.predict",
    "embed": "sslkit.evaluate.embed",
    "map_features": "sslkit.evaluate.embed",
    "evaluate_all": "sslkit.evaluate.everything",
    "retrieval": "sslkit.evaluate.retrieval",
    "words": "sslkit.evaluate.words",
    "zeroshot": "sslkit.evaluate.zeroshot",
    "neighbors": "sslkit.evaluate.neighbors",
    "finetune": "sslkit.evaluate.finetune",
    "export": "sslkit.exports",
    "new_task": "sslkit.template",
    "write_report": "sslkit.report.html",
    "compare": "sslkit.evaluate.compare",
    "demo": "sslkit.digits",
    "load": "sslkit.engine.checkpoint",
    "read_model": "sslkit.engine.checkpoint",
    "Encoder": "sslkit.encoders",
    "build_encoder": "sslkit.encoders",
    "concat": "sslkit.encoders",
    "Source": "sslkit.data.source",
    "SslkitError": "sslkit.errors",
    "RunFailed": "sslkit.errors",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("sslkit")
    if name not in _WHERE:
        raise AttributeError(f"module 'sslkit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
