"""Distillers of tiny models, and batches for them."""

import torch
from tiny import tiny_model

import comet_kernels
from comet.batch import Batch
from comet.objective import Distiller
from comet.projections import make_projection
from comet.recipe import ObjectiveRecipe, StudentRecipe
from comet.students import make_student
from comet.tap import TappedEncoder
from comet.teachers import OnlineTeacher, needed_parts

STUDENT = StudentRecipe(layers=2, hidden_size=24, heads=2, intermediate_size=32, dropout=0.0)
LANGUAGES = ("hau", "swa", "yor")
LENGTHS = (9, 5, 12)


def batch_of(ids, lengths, masked, languages, kd="all"):
    """A batch of sequences `ids` `[B, S]`, of which the tokens `masked` `[B, S]` were chosen for masking."""
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    chosen = mask if kd == "all" else masked
    return Batch(
        input_ids=ids.masked_fill(~mask, 1),
        mask=None if mask.all() else mask,
        kd_positions=chosen.flatten().nonzero().flatten(),
        masked_positions=masked.flatten().nonzero().flatten(),
        labels=torch.where(masked, (ids * 7) % 115 + 5, -100),
        languages=torch.tensor(languages),
        tokens=sum(lengths),
        squared_lengths=sum(n * n for n in lengths),
    )


def padded_batch(lengths=LENGTHS, kd="all"):
    """Random tokens, of which the middle sequences have none that was masked; languages take turns."""
    ids = torch.randint(5, 120, (len(lengths), max(lengths)))
    masked = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    masked &= torch.rand(ids.shape) < 0.4
    masked[1:-1] = False
    masked[0, 2] = True
    return batch_of(ids, list(lengths), masked, [row % 3 for row in range(len(lengths))], kd)


def piece(batch, rows, lengths=LENGTHS, kd="all"):
    """Some sequences of a batch, padded no longer than they need."""
    kept = [lengths[row] for row in rows]
    ids, labels = (of[rows][:, : max(kept)] for of in (batch.input_ids, batch.labels))
    found = batch_of(ids, kept, labels != -100, batch.languages[rows].tolist(), kd)
    found.labels.copy_(labels)
    return found


def distiller_for(
    architecture, ops=comet_kernels, recipe=None, max_length=16, vocabulary=(120, 120), **student
):
    """A teacher of 4 layers, 4 heads and width 32, and a student of 2, 2 and 24 unless said otherwise."""
    torch.manual_seed(7)
    teacher = tiny_model(architecture, vocabulary[0])
    config = tiny_model(architecture, vocabulary[1]).config
    shape = StudentRecipe(**{**vars(STUDENT), **student})
    torch.manual_seed(8)
    model = make_student(config, shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else None
    recipe = recipe or ObjectiveRecipe(projection="kronecker")
    projection = make_projection(recipe, max_length)
    if recipe.projection == "kronecker":
        torch.nn.init.normal_(projection.right, std=0.1)
    online = OnlineTeacher(TappedEncoder(teacher), ops, needed_parts(recipe))
    return Distiller(online, TappedEncoder(model), projection, recipe, ops, LANGUAGES)


def losses_and_gradients(distiller, *batches, totals=None):
    """Summed losses of the pieces of a step, and the gradients of their sum."""
    distiller.zero_grad()
    found = [distiller(batch, totals) for batch in batches]
    sum(one.total for one in found).backward()
    terms = {name: sum(one.terms[name] for one in found) for name in found[0].terms}
    total = sum(one.total.detach() for one in found)
    gradients = {n: v.grad.clone() for n, v in distiller.named_parameters() if v.grad is not None}
    return {"total": total, **terms}, gradients


def rows_of_logits(distiller, batch, positions):
    """Teacher's and student's logits `[N, V]` in float64, multiplied out."""
    with torch.no_grad():
        return [
            encoder.logits(encoder(batch.input_ids, batch.mask).hidden)
            .flatten(0, 1)[positions]
            .double()
            for encoder in (distiller.teacher.encoder, distiller.student)
        ]
