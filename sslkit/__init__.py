"""Self-supervised learning from the command line and from Python.

    import sslkit

    run = sslkit.pretrain(sslkit.PretrainSpec(task="simclr", data="photos", minutes=10))
    sslkit.knn(sslkit.KnnSpec(ckpt=run.checkpoint))  # a notebook shows it as a table
    encoder = sslkit.load(run.checkpoint)  # a torch.nn.Module

Each command is a function and gets its settings as one object: `pretrain` a `PretrainSpec`, `knn` a `KnnSpec`.
`help(sslkit.pretrain)` describes one of them, examples/quickstart.ipynb goes through the most used.

The names below are the public interface. They are resolved when first used, so that `sslkit --help` stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslkit.audio.frames import frames as frames
    from sslkit.audio.specs import FramesSpec as FramesSpec
    from sslkit.contract.encoder import Encoder as Encoder
    from sslkit.contract.errors import RunFailedError as RunFailedError
    from sslkit.contract.errors import RunInterruptedError as RunInterruptedError
    from sslkit.contract.errors import SslkitError as SslkitError
    from sslkit.contract.errors import UnreadableSampleError as UnreadableSampleError
    from sslkit.contract.evaluation import Evaluation as Evaluation
    from sslkit.contract.evaluation import Protocol as Protocol
    from sslkit.contract.exporter import Exporter as Exporter
    from sslkit.contract.modality import Modality as Modality
    from sslkit.contract.options import DataOptions as DataOptions
    from sslkit.contract.options import TaskOptions as TaskOptions
    from sslkit.contract.paper import Paper as Paper
    from sslkit.contract.result import Data as Data
    from sslkit.contract.result import Metric as Metric
    from sslkit.contract.result import Result as Result
    from sslkit.contract.result import Results as Results
    from sslkit.contract.result import Row as Row
    from sslkit.contract.result import TestData as TestData
    from sslkit.contract.source import ReadSeed as ReadSeed
    from sslkit.contract.source import Source as Source
    from sslkit.contract.task import Batch as Batch
    from sslkit.contract.task import Clock as Clock
    from sslkit.contract.task import DataInfo as DataInfo
    from sslkit.contract.task import EncoderBuilder as EncoderBuilder
    from sslkit.contract.task import PretextTask as PretextTask
    from sslkit.contract.task import Run as Run
    from sslkit.data.indexed_source import IndexedSource as IndexedSource
    from sslkit.encoders.build import build_encoder as build_encoder
    from sslkit.encoders.build import concat as concat
    from sslkit.engine.checkpoint import load as load
    from sslkit.engine.checkpoint import read_model as read_model
    from sslkit.engine.plan import plan as plan
    from sslkit.engine.pretrain import pretrain as pretrain
    from sslkit.engine.preview import preview as preview
    from sslkit.evaluation.compare import compare as compare
    from sslkit.evaluation.curate import curate as curate
    from sslkit.evaluation.embed import embed as embed
    from sslkit.evaluation.evaluate import evaluate as evaluate
    from sslkit.evaluation.fewshot import fewshot as fewshot
    from sslkit.evaluation.finetune import finetune as finetune
    from sslkit.evaluation.knn import knn as knn
    from sslkit.evaluation.ladder import ladder as ladder
    from sslkit.evaluation.map import map_features as map_features
    from sslkit.evaluation.predict import predict as predict
    from sslkit.evaluation.probe import probe as probe
    from sslkit.evaluation.regress import regress as regress
    from sslkit.evaluation.retrieval import retrieval as retrieval
    from sslkit.evaluation.scaffold import new_evaluation as new_evaluation
    from sslkit.evaluation.search import search as search
    from sslkit.exporting.export import export as export
    from sslkit.exporting.push import push as push
    from sslkit.image.adapt import adapt as adapt
    from sslkit.image.anomaly import anomaly as anomaly
    from sslkit.image.correspond import correspond as correspond
    from sslkit.image.demo import demo as demo
    from sslkit.image.robustness import robustness as robustness
    from sslkit.image.segment import segment as segment
    from sslkit.image.specs import AdaptSpec as AdaptSpec
    from sslkit.image.specs import AnomalySpec as AnomalySpec
    from sslkit.image.specs import CorrespondSpec as CorrespondSpec
    from sslkit.image.specs import RobustnessSpec as RobustnessSpec
    from sslkit.image.specs import SegmentSpec as SegmentSpec
    from sslkit.image.specs import VisualizeSpec as VisualizeSpec
    from sslkit.image.task import ImageTask as ImageTask
    from sslkit.image.visualize import visualize as visualize
    from sslkit.image_text.caption import caption as caption
    from sslkit.image_text.pairs import pairs as pairs
    from sslkit.image_text.specs import CaptionSpec as CaptionSpec
    from sslkit.image_text.specs import PairsSpec as PairsSpec
    from sslkit.image_text.specs import ZeroshotSpec as ZeroshotSpec
    from sslkit.image_text.zeroshot import zeroshot as zeroshot
    from sslkit.reporting.report import report as report
    from sslkit.reporting.watch import watch as watch
    from sslkit.specs.evaluation import EvaluateSpec as EvaluateSpec
    from sslkit.specs.evaluation import FewshotSpec as FewshotSpec
    from sslkit.specs.evaluation import KnnSpec as KnnSpec
    from sslkit.specs.evaluation import ProbeSpec as ProbeSpec
    from sslkit.specs.evaluation import RegressSpec as RegressSpec
    from sslkit.specs.evaluation import RetrievalSpec as RetrievalSpec
    from sslkit.specs.extend import NewEvaluationSpec as NewEvaluationSpec
    from sslkit.specs.extend import NewTaskSpec as NewTaskSpec
    from sslkit.specs.look import MapSpec as MapSpec
    from sslkit.specs.look import PreviewSpec as PreviewSpec
    from sslkit.specs.look import ReportSpec as ReportSpec
    from sslkit.specs.look import WatchSpec as WatchSpec
    from sslkit.specs.train import CompareSpec as CompareSpec
    from sslkit.specs.train import DemoSpec as DemoSpec
    from sslkit.specs.train import FinetuneSpec as FinetuneSpec
    from sslkit.specs.train import PretrainSpec as PretrainSpec
    from sslkit.specs.use import CurateSpec as CurateSpec
    from sslkit.specs.use import EmbedSpec as EmbedSpec
    from sslkit.specs.use import ExportSpec as ExportSpec
    from sslkit.specs.use import PredictSpec as PredictSpec
    from sslkit.specs.use import PushSpec as PushSpec
    from sslkit.specs.use import SearchSpec as SearchSpec
    from sslkit.tasks.scaffold import new_task as new_task
    from sslkit.text.cloze import cloze as cloze
    from sslkit.text.fill_mask import fill_mask as fill_mask
    from sslkit.text.generate import generate as generate
    from sslkit.text.perplexity import perplexity as perplexity
    from sslkit.text.prompt import prompt as prompt
    from sslkit.text.pseudo_perplexity import pseudo_perplexity as pseudo_perplexity
    from sslkit.text.specs import ClozeSpec as ClozeSpec
    from sslkit.text.specs import FillMaskSpec as FillMaskSpec
    from sslkit.text.specs import GenerateSpec as GenerateSpec
    from sslkit.text.specs import PerplexitySpec as PerplexitySpec
    from sslkit.text.specs import PromptSpec as PromptSpec
    from sslkit.text.specs import PseudoPerplexitySpec as PseudoPerplexitySpec
    from sslkit.text.specs import TagSpec as TagSpec
    from sslkit.text.specs import WordVectorSpec as WordVectorSpec
    from sslkit.text.tag import tag as tag
    from sslkit.text.word_vectors import word_vectors as word_vectors

_MODULES = {
    "sslkit.audio.frames": ("frames",),
    "sslkit.audio.specs": ("FramesSpec",),
    "sslkit.contract.encoder": ("Encoder",),
    "sslkit.contract.errors": (
        "RunFailedError",
        "RunInterruptedError",
        "SslkitError",
        "UnreadableSampleError",
    ),
    "sslkit.contract.evaluation": (
        "Evaluation",
        "Protocol",
    ),
    "sslkit.contract.exporter": ("Exporter",),
    "sslkit.contract.modality": ("Modality",),
    "sslkit.contract.options": (
        "DataOptions",
        "TaskOptions",
    ),
    "sslkit.contract.paper": ("Paper",),
    "sslkit.contract.result": (
        "Data",
        "Metric",
        "Result",
        "Results",
        "Row",
        "TestData",
    ),
    "sslkit.contract.source": (
        "ReadSeed",
        "Source",
    ),
    "sslkit.contract.task": (
        "Batch",
        "Clock",
        "DataInfo",
        "EncoderBuilder",
        "PretextTask",
        "Run",
    ),
    "sslkit.data.indexed_source": ("IndexedSource",),
    "sslkit.encoders.build": (
        "build_encoder",
        "concat",
    ),
    "sslkit.engine.checkpoint": (
        "load",
        "read_model",
    ),
    "sslkit.engine.plan": ("plan",),
    "sslkit.engine.pretrain": ("pretrain",),
    "sslkit.engine.preview": ("preview",),
    "sslkit.evaluation.compare": ("compare",),
    "sslkit.evaluation.curate": ("curate",),
    "sslkit.evaluation.embed": ("embed",),
    "sslkit.evaluation.evaluate": ("evaluate",),
    "sslkit.evaluation.fewshot": ("fewshot",),
    "sslkit.evaluation.finetune": ("finetune",),
    "sslkit.evaluation.knn": ("knn",),
    "sslkit.evaluation.ladder": ("ladder",),
    "sslkit.evaluation.map": ("map_features",),
    "sslkit.evaluation.search": ("search",),
    "sslkit.evaluation.predict": ("predict",),
    "sslkit.evaluation.probe": ("probe",),
    "sslkit.evaluation.regress": ("regress",),
    "sslkit.evaluation.retrieval": ("retrieval",),
    "sslkit.evaluation.scaffold": ("new_evaluation",),
    "sslkit.exporting.export": ("export",),
    "sslkit.exporting.push": ("push",),
    "sslkit.image.demo": ("demo",),
    "sslkit.image.adapt": ("adapt",),
    "sslkit.image.anomaly": ("anomaly",),
    "sslkit.image.correspond": ("correspond",),
    "sslkit.image.robustness": ("robustness",),
    "sslkit.image.segment": ("segment",),
    "sslkit.image.specs": ("AdaptSpec", "AnomalySpec", "CorrespondSpec", "RobustnessSpec", "SegmentSpec", "VisualizeSpec"),
    "sslkit.image.task": ("ImageTask",),
    "sslkit.image.visualize": ("visualize",),
    "sslkit.image_text.caption": ("caption",),
    "sslkit.image_text.pairs": ("pairs",),
    "sslkit.image_text.specs": ("CaptionSpec", "PairsSpec", "ZeroshotSpec"),
    "sslkit.image_text.zeroshot": ("zeroshot",),
    "sslkit.reporting.report": ("report",),
    "sslkit.reporting.watch": ("watch",),
    "sslkit.specs.evaluation": (
        "EvaluateSpec",
        "FewshotSpec",
        "KnnSpec",
        "ProbeSpec",
        "RegressSpec",
        "RetrievalSpec",
    ),
    "sslkit.specs.extend": (
        "NewEvaluationSpec",
        "NewTaskSpec",
    ),
    "sslkit.specs.look": (
        "MapSpec",
        "PreviewSpec",
        "ReportSpec",
        "WatchSpec",
    ),
    "sslkit.specs.train": (
        "CompareSpec",
        "DemoSpec",
        "FinetuneSpec",
        "PretrainSpec",
    ),
    "sslkit.specs.use": (
        "CurateSpec",
        "EmbedSpec",
        "ExportSpec",
        "SearchSpec",
        "PredictSpec",
        "PushSpec",
    ),
    "sslkit.tasks.scaffold": ("new_task",),
    "sslkit.text.cloze": ("cloze",),
    "sslkit.text.fill_mask": ("fill_mask",),
    "sslkit.text.generate": ("generate",),
    "sslkit.text.perplexity": ("perplexity",),
    "sslkit.text.prompt": ("prompt",),
    "sslkit.text.pseudo_perplexity": ("pseudo_perplexity",),
    "sslkit.text.specs": (
        "ClozeSpec",
        "FillMaskSpec",
        "GenerateSpec",
        "PerplexitySpec",
        "PromptSpec",
        "PseudoPerplexitySpec",
        "TagSpec",
        "WordVectorSpec",
    ),
    "sslkit.text.tag": ("tag",),
    "sslkit.text.word_vectors": ("word_vectors",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("sslkit")
    if name not in _WHERE:
        raise AttributeError(f"module 'sslkit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
