"""The distillation step several ways, on models with random weights.

plain       as a user of transformers writes AfroXLMR-Comet's step (arXiv 2502.18020): eager attention with
            `output_attentions=True`, the logits of both models, `log_softmax` and `kl_div`, a dense S² × S² projection
unfused     Comet's step in plain torch: one layer's query and key, the factorized projection
fused       Comet's step with `comet_kernels`
cached      the same from a teacher cache that holds the inputs of the teacher's head
cached-top  from one that holds its largest logits

The caches are files that the teacher has written before; a step reads its batch from them as a run does.
"""

import functools
import gc
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss, softmax
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, XLMRobertaConfig

import comet_kernels
from bench import parts
from bench.memory import forget_peak
from comet.batch import Batch
from comet.cache_files import CheckedFiles, batch_from, write_tensors
from comet.cache_writer import Kept, Reader
from comet.frozen import round_weights
from comet.objective import Distiller
from comet.objective_recipe import ObjectiveRecipe
from comet.projections import make_projection
from comet.student_recipe import StudentRecipe
from comet.students import student_config
from comet.tap import TappedEncoder
from comet.teacher_cache import CachedTeacher
from comet.teachers import OnlineTeacher, Teacher
from comet_kernels import reference

VARIANTS = ("plain", "unfused", "fused", "cached", "cached-top")
OBJECTIVE = ObjectiveRecipe(projection="kronecker", attention_reduction="mean")
LEARNING_RATE = 5e-4

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Shapes:
    """What the step works on; by default the paper's teacher and student.

    `top` is how many logits `cached-top` keeps: all of them in `TINY`, where its loss is to be that of the others.
    `precision` is that of matrix products: weights and optimizer stay in float32, products run under autocast.
    """

    batch: int = 4
    length: int = 128
    precision: str = "float32"
    device: str = "cpu"
    vocabulary: int = 250_002
    layers: int = 24
    hidden_size: int = 1024
    heads: int = 16
    intermediate_size: int = 4096
    top: int = 64
    student: StudentRecipe = field(
        default_factory=lambda: StudentRecipe(
            layers=6, hidden_size=256, heads=8, intermediate_size=1024
        )
    )

    @property
    def teacher(self) -> PreTrainedConfig:
        """An XLM-RoBERTa configuration."""
        return XLMRobertaConfig(
            vocab_size=self.vocabulary,
            num_hidden_layers=self.layers,
            hidden_size=self.hidden_size,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=514,
            type_vocab_size=1,
        )


TINY = Shapes(
    batch=2,
    length=16,
    vocabulary=1009,
    layers=2,
    hidden_size=32,
    heads=4,
    intermediate_size=48,
    top=1009,
    student=StudentRecipe(layers=2, hidden_size=16, heads=2, intermediate_size=24, dropout=0.0),
)


def random_model(config: PreTrainedConfig, attention: str, device: str) -> PreTrainedModel:
    """A model whose weights were allocated once and written once."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForMaskedLM.from_config(
            config, attn_implementation=attention
        )
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_gain else 0.0, std=0.05)
        for name, buffer in model.named_buffers():
            # what no checkpoint holds: positions count up, token types are 0
            count = torch.arange(buffer.shape[-1], device=device)
            buffer.copy_(count.expand_as(buffer) if name.endswith("position_ids") else 0 * buffer)
    return model


def plain_step(
    shapes: Shapes, ids_BS: Tensor, clock: parts.Clock
) -> tuple[Step, list[nn.Parameter]]:
    """The paper's loss, written plainly."""
    teacher = random_model(shapes.teacher, "eager", shapes.device).eval()
    student = random_model(
        student_config(shapes.teacher, shapes.student), "eager", shapes.device
    ).train()
    size = shapes.length**2
    projection = nn.utils.skip_init(nn.Linear, size, size, bias=False, device=shapes.device)
    nn.init.eye_(projection.weight)
    temperature, alpha = OBJECTIVE.temperature, OBJECTIVE.alpha
    mask_BS = torch.ones_like(ids_BS)
    for model in (teacher, student):
        head = model.get_output_embeddings()
        head.forward = parts.timed(clock, parts.HEAD, head.forward)

    def divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kl_div(
            log_softmax(student_logits.flatten(0, 1).float() / temperature, dim=-1),
            softmax(teacher_logits.flatten(0, 1).float() / temperature, dim=-1),
            reduction="batchmean",
        )

    def distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
        return mse_loss(projection(student_map), teacher_map)

    def mean_map(map_BHSS: Tensor) -> Tensor:
        return map_BHSS.mean(1).flatten(1)

    def outputs(part: str, model: PreTrainedModel) -> Any:
        with clock.part(part):
            return model(input_ids=ids_BS, attention_mask=mask_BS, output_attentions=True)

    def loss() -> Tensor:
        with torch.no_grad():
            t = outputs(parts.TEACHER, teacher)
        s = outputs(parts.STUDENT, student)
        kd = parts.timed(clock, parts.HEAD, divergence)(s.logits, t.logits)
        average = parts.timed(clock, parts.ATTENTION, mean_map)
        maps = (average(m.attentions[-1]) for m in (s, t))
        attention = parts.timed(clock, parts.PROJECTION, distance)(*maps)
        return alpha * temperature**2 * kd + (1 - alpha) * attention

    return loss, [*student.parameters(), *projection.parameters()]


def comet_step(
    variant: str, shapes: Shapes, ids_BS: Tensor, clock: parts.Clock
) -> tuple[Step, list[nn.Parameter]]:
    """Comet's: with `comet_kernels` or its reference, with a teacher at work or from a cache."""
    ops = parts.timed_ops(clock, reference if variant == "unfused" else comet_kernels)
    teacher = online_teacher(shapes, ops)
    batch = full_batch(ids_BS)
    if variant.startswith("cached"):
        top = shapes.top if variant == "cached-top" else 0
        files = write_cache(teacher, batch.to(torch.device("cpu")), shapes, top)
        del teacher
        gc.collect()
        forget_peak(shapes.device)
        head = files.tensors("head")
        cached = CachedTeacher(head["weight"], head["bias"], shapes.precision)
        cached.to(torch.device(shapes.device))
        distiller = make_distiller(cached, shapes, ops, clock)

        @functools.partial(parts.timed, clock, parts.TEACHER)
        def from_files() -> Batch:
            return batch_from(files.tensors("steps"), "all").to(ids_BS.device)

        return (lambda: distiller(from_files()).total), list(distiller.parameters())
    distiller = make_distiller(teacher, shapes, ops, clock)
    return (lambda: distiller(batch).total), list(distiller.parameters())


def online_teacher(shapes: Shapes, ops: ModuleType) -> OnlineTeacher:
    """The teacher as a run holds it."""
    encoder = TappedEncoder(random_model(shapes.teacher, "sdpa", shapes.device))
    round_weights(encoder, shapes.precision, torch.device(shapes.device))
    return OnlineTeacher(encoder, ops)


def make_distiller(
    teacher: Teacher, shapes: Shapes, ops: ModuleType, clock: parts.Clock
) -> Distiller:
    """With a student of the shapes'."""
    student = random_model(student_config(shapes.teacher, shapes.student), "sdpa", shapes.device)
    projection = make_projection(OBJECTIVE, shapes.length).to(shapes.device)
    encoder = TappedEncoder(student.train())
    timed_teacher = parts.TimedTeacher(teacher, clock)
    distiller = Distiller(timed_teacher, encoder, projection, OBJECTIVE, ops)
    parts.watch(distiller, clock)
    return distiller


def full_batch(ids_BS: Tensor) -> Batch:
    """Nothing padded, nothing masked, all tokens matched."""
    rows, length = ids_BS.shape
    tokens = ids_BS.numel()
    return Batch(
        input_ids=ids_BS,
        mask=None,
        kd_positions=torch.arange(tokens, device=ids_BS.device),
        masked_positions=torch.arange(0, device=ids_BS.device),
        labels=torch.full_like(ids_BS, -100),
        languages=torch.zeros_like(ids_BS[:, 0]),
        tokens=tokens,
        squared_lengths=rows * length**2,
    )


def write_cache(teacher: OnlineTeacher, batch: Batch, shapes: Shapes, top: int) -> CheckedFiles:
    """What `comet.cache_teacher` writes of one step: largest logits if `top` is above 0, else hidden states."""
    folder = tempfile.TemporaryDirectory(prefix="bench-cache-")
    kept = Kept("logits" if top else "hidden", top, OBJECTIVE.temperature)
    reader = Reader(teacher, shapes.precision, torch.device(shapes.device))
    assert teacher.output_bias is not None
    tensors = {
        "steps": reader.read(batch, kept),
        "head": {"weight": teacher.output_weight, "bias": teacher.output_bias},
    }
    described = {name: write_tensors(Path(folder.name) / name, tensors[name]) for name in tensors}
    files = CheckedFiles(Path(folder.name), described)
    weakref.finalize(files, folder.cleanup)
    return files


class Steps(NamedTuple):
    """A variant at work.

    Attributes:
        loss: forward alone.
        step: forward, backward and AdamW; returns the loss.
        parts: a step that is interrupted at every border, and the seconds of its parts.
    """

    loss: Step
    step: Step
    parts: Callable[[], dict[str, float]]


def make_step(variant: str, shapes: Shapes) -> Steps:
    """Models, optimizer and one batch of a variant."""
    torch.manual_seed(0)
    clock = parts.Clock(shapes.device)
    ids_BS = torch.randint(
        5, shapes.vocabulary, (shapes.batch, shapes.length), device=shapes.device
    )
    if variant == "plain":
        forward, parameters = plain_step(shapes, ids_BS, clock)
    else:
        forward, parameters = comet_step(variant, shapes, ids_BS, clock)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    halved = shapes.precision == "bfloat16"

    def loss() -> Tensor:
        with torch.autocast(shapes.device, torch.bfloat16, enabled=halved):
            return forward()

    def step() -> Tensor:
        found = loss()
        with clock.part(parts.STUDENT):  # whatever no hook has given to another part
            found.backward()
        with clock.part(parts.OPTIMIZER):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return found.detach()

    def by_part() -> dict[str, float]:
        with clock.running() as seconds:
            step()
        return dict(seconds)

    return Steps(loss, step, by_part)
