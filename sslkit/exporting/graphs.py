"""Formats that hold the traced network, normalization included: torch.export's and ONNX."""

import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import DESCRIPTION, Exporter, ExportJob, Settings


class Pt2(Exporter):
    """torch.export program."""

    suffix = ".pt2"
    reader = Path(__file__).with_name("read_pt2.py")
    normalizes = True

    def write(self, job: ExportJob, samples: Tensor, path: Path) -> Settings:
        """Write a torch.export program."""
        archive = io.BytesIO()  # where a disk is full, torch's own writer ends the process
        torch.export.save(_trace(job, samples), archive, extra_files={f"{DESCRIPTION}.json": json.dumps(job.description)})
        path.write_bytes(archive.getbuffer())
        return {"input": job.input}

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need torch only."""
        return ["import torch", f'network = torch.export.load("{name}").module()', f"{output} = network({settings['input']})"]


class Onnx(Exporter):
    """ONNX graph with input `image` (`audio`, `text`), output `features` or `logits`, and the axis `batch`."""

    suffix = ".onnx"
    reader = Path(__file__).with_name("read_onnx.py")
    normalizes = True
    takes_tensors = False
    _packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    def check(self, job: ExportJob) -> None:
        """Raise SslkitError if a package of the extra is missing."""
        for package in self._packages:
            if importlib.util.find_spec(package) is None:
                raise SslkitError(f"onnx needs {package}", "pip install 'sslkit[onnx]'", flag="to")

    def write(self, job: ExportJob, samples: Tensor, path: Path) -> Settings:
        """Write an ONNX graph, weights inside."""
        program = _trace(job, samples)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # The exporter warns about its own internals; what the file computes is what counts.
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(
                program,
                (),
                input_names=[job.input],
                output_names=[job.output],
                dynamic_shapes=(_axis_names(job, samples.dim()),),
                verbose=False,
            )
            assert graph is not None
            graph.model.metadata_props[DESCRIPTION] = json.dumps(job.description)
            graph.save(path, external_data=False)
        return {"input": job.input}

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need onnxruntime only."""
        return [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{name}")',
            f'({output},) = session.run(["{output}"], {{"{settings["input"]}": {settings["input"]}}})',
        ]


def _trace(job: ExportJob, samples: Tensor) -> torch.export.ExportedProgram:
    """Return the network as a graph; raises SslkitError if it cannot be traced with the requested dynamic sizes."""
    shapes = _dynamic_shapes(job, samples.dim())
    try:
        with warnings.catch_warnings():
            # Of recurrent layers, whose weights torch gathers anew when they are traced; the result is verified.
            warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")
            program = torch.export.export(job.network, (samples[: 2 if job.dynamic_batch else 1],), dynamic_shapes=(shapes,))
    except (torch._dynamo.exc.UserError, RuntimeError) as error:  # raised for shapes and for branches on values
        reason = str(error).strip().partition("\n")[0]
        hint = "leave out --dynamic-size" if job.dynamic_size else "try --no-dynamic-batch"
        raise SslkitError(f"torch.export cannot trace the encoder with dynamic sizes: {reason}", hint) from error
    remove_paths(program)
    return program


def remove_paths(program: torch.export.ExportedProgram) -> None:
    """Remove what names files of this machine, and would be written."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _dynamic_shapes(job: ExportJob, dimensions: int) -> dict[int, Any]:
    """Return the dimensions of `[B, C, ...]` that may differ from the traced ones: the sizes upwards only, in whole steps."""
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")} if job.dynamic_batch else {}
    if job.dynamic_size:
        step = job.network.encoder.size_step
        for dimension in range(2, dimensions):
            count = torch.export.Dim(f"size_{dimension}", min=job.size // step)
            shapes[dimension] = step * count if step > 1 else count
    return shapes


def _axis_names(job: ExportJob, dimensions: int) -> dict[int, Any]:
    """Return the names of the dimensions of `[B, C, ...]` that may differ."""
    names = {0: "batch"} if job.dynamic_batch else {}
    return names | dict(enumerate(("height", "width")[: dimensions - 2], 2)) if job.dynamic_size else names
